//! What the nets' configuration files have in common.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::weights::read_json;
use crate::{Error, Result};

/// A configuration field and the JSON values this program can serve, separated by `|`. A field that
/// is absent has upstream's default, which every rule allows.
pub(super) type Rule = (&'static str, &'static str);

/// Where a net's configuration lies: `path` is a folder with a `config.json`, or the file itself.
fn locate(path: &Path) -> (PathBuf, String) {
    if path.is_dir() {
        return (path.to_path_buf(), "config.json".to_string());
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    (path.parent().unwrap_or(Path::new("")).to_path_buf(), name)
}

/// Reads a configuration after holding it against the rules.
pub(super) fn read<T: DeserializeOwned>(path: &Path, net: &str, rules: &[Rule]) -> Result<T> {
    let (source, fields) = fields(path)?;
    check(&fields, &source, net, rules)?;
    let (folder, file) = locate(path);
    read_json(&folder, &file)
}

/// The whole of a configuration and the file it came from.
pub(super) fn fields(path: &Path) -> Result<(PathBuf, Value)> {
    let (folder, file) = locate(path);
    Ok((folder.join(&file), read_json(&folder, &file)?))
}

/// Holds a configuration against the rules.
pub(super) fn check(fields: &Value, source: &Path, net: &str, rules: &[Rule]) -> Result<()> {
    for (field, allowed) in rules {
        let value = fields.get(field).map(Value::to_string);
        if let Some(value) = value.filter(|v| !allowed.split('|').any(|a| a == v)) {
            return Err(Error::Model(format!(
                "{}: `{field}` is {value}, which {net} here does not support; supported is {}",
                source.display(),
                allowed.replace('|', " or ")
            )));
        }
    }
    Ok(())
}

/// An error about a configuration that is well-formed but makes no model.
pub(super) fn wrong(path: &Path, why: impl std::fmt::Display) -> Error {
    let (folder, file) = locate(path);
    Error::Model(format!("{}: {why}", folder.join(file).display()))
}
