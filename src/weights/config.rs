//! Configuration files beside the weights (`config.json`, `scheduler_config.json` …).

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Reads `folder/file` as JSON into `T`. An error names the file, the line and the field it happened
/// in. A file without a byte-order mark is expected, but one is accepted.
pub fn read_json<T: DeserializeOwned>(folder: impl AsRef<Path>, file: &str) -> Result<T> {
    let folder = folder.as_ref();
    let path = folder.join(file);
    let text = std::fs::read_to_string(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound if folder.is_dir() => Error::Model(format!(
            "{}: there is no `{file}` in this folder; is it the right subfolder of the checkpoint?",
            folder.display()
        )),
        std::io::ErrorKind::NotFound => {
            Error::Model(format!("{}: there is no such folder", folder.display()))
        }
        std::io::ErrorKind::InvalidData => {
            Error::Model(format!("{}: not UTF-8 text", path.display()))
        }
        _ => Error::io(&path, e),
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    parse_json(&path.display().to_string(), text)
}

/// Parses JSON; `source` stands for its origin in messages.
pub(super) fn parse_json<T: DeserializeOwned>(source: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| {
        // A missing field is reported where its object ends; the last name read would mislead.
        let message = e.to_string();
        let named = !message.starts_with("missing field");
        let field = named.then(|| field_before(text, e.line(), e.column())).flatten();
        let field = field.map(|name| format!("field `{name}`: ")).unwrap_or_default();
        Error::Model(format!("{source}: {field}{message}"))
    })
}

/// The last `"name":` that begins before the given place (1-based line and column in bytes): the
/// field a type error is about, which serde_json does not name.
fn field_before(text: &str, line: usize, column: usize) -> Option<&str> {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let mut end = (start + column).min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut before = &text[..end];
    while let Some(colon) = before.rfind(':') {
        let name = before[..colon].trim_end();
        if let Some(open) = name.strip_suffix('"').and_then(|name| name.rfind('"')) {
            return Some(&name[open + 1..name.len() - 1]);
        }
        before = &before[..colon];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug)]
    #[allow(dead_code)]
    struct Config {
        hidden_size: usize,
        act: String,
        sizes: Option<Vec<usize>>,
    }

    fn read(text: &str) -> std::result::Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        read_json(folder.path(), "config.json").map_err(|e| {
            assert_eq!(e.exit_code(), 4, "a bad configuration is a bad model file: {e}");
            e.to_string()
        })
    }

    #[test]
    fn errors_name_file_line_and_field() {
        let good = read("\u{feff}{\"hidden_size\": 64, \"act\": \"gelu\"}").unwrap();
        assert_eq!((good.hidden_size, good.sizes), (64, None));
        let wrong = read("{\n \"hidden_size\": \"x\",\n \"act\": \"gelu\"}").unwrap_err();
        assert!(wrong.contains("config.json") && wrong.contains("`hidden_size`"), "{wrong}");
        assert!(wrong.contains("line 2"), "{wrong}");
        let list = read("{\"hidden_size\": 1, \"act\": \"g\", \"sizes\": [1, -2]}").unwrap_err();
        assert!(list.contains("`sizes`"), "{list}");
        let missing = read("{\"hidden_size\": 1, \"other\": 2}").unwrap_err();
        assert!(missing.contains("missing field `act`") && !missing.contains("other"), "{missing}");
        for cut in 0..20 {
            assert!(read(&"{\"hidden_size\": 64, \"act\": \"gelu\"}"[..cut]).is_err());
        }
    }

    #[test]
    fn says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let e = read_json::<Config>(folder.path(), "config.json").unwrap_err().to_string();
        assert!(e.contains("no `config.json`"), "{e}");
        let e = read_json::<Config>(folder.path().join("x"), "config.json").unwrap_err();
        assert!(e.to_string().contains("no such folder"), "{e}");
    }
}
