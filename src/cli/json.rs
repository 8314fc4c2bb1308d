//! JSON that several commands share. The fields are those of README's table; they are added to, never
//! renamed.

use serde_json::{Value, json};

/// What `--json` prints on stdout when a command fails before it has an answer.
pub fn error(message: &str, code: u8) -> Value {
    json!({ "error": message, "code": code })
}

/// `weights` of `generate` and `chat`: format as asked for, bits per weight with everything resident
/// counted, bytes on the GPU.
pub fn weights(format: &str, bits_per_weight: f64, resident_bytes: u64) -> Value {
    json!({
        "format": format,
        "bits_per_weight": round(bits_per_weight, 4),
        "resident_bytes": resident_bytes,
    })
}

/// A number with so many digits after the point; what is not finite becomes null.
pub fn round(value: f64, digits: i32) -> Value {
    let scale = 10f64.powi(digits);
    json!((value * scale).round() / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_finite() {
        assert_eq!(round(4.251234567, 4), json!(4.2512));
        assert_eq!(round(f64::INFINITY, 2), Value::Null);
        assert_eq!(weights("int4", 4.25, 7)["resident_bytes"], 7);
        assert_eq!(error("x", 4).to_string(), "{\"error\":\"x\",\"code\":4}");
    }
}
