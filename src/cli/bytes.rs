//! Sizes of memory as people write them.

use crate::{Error, Result};

/// Reads `4G`, `1.5GiB`, `512MiB`, `300MB`, `4096`: powers of 1024 but for KB, MB, GB and TB, which are
/// powers of 1000.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let refuse = || {
        Error::Usage(format!("`{text}` is no size; write 4G, 512MiB, 300MB or a number of bytes"))
    };
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..split].trim(), text[split..].to_ascii_lowercase());
    let factor: u64 = match unit.as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(refuse()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(refuse);
    }
    let value = number.parse::<f64>().map_err(|_| refuse())? * factor as f64;
    // 2^63: beyond any memory, and safely within u64.
    if !(0.0..9.2e18).contains(&value) || !number.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(refuse());
    }
    Ok(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_memory() {
        for (text, bytes) in [
            ("4096", 4096),
            ("4G", 4 << 30),
            ("512MiB", 512 << 20),
            ("300MB", 300_000_000),
            ("1.5gib", 3 << 29),
            (" 2 k", 2048),
            ("0", 0),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "G", "4X", "-1", "1e9", "nan", "inf", "99999999999G", ".", "4 G B"] {
            let e = parse_bytes(bad).unwrap_err();
            assert!(e.to_string().contains("512MiB") && e.exit_code() == 2, "{bad}: {e}");
        }
    }
}
