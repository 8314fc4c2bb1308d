//! What the nets' configuration files have in common.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::ops::pointwise::Act;
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

/// A configuration after holding it against the rules; `source` is where it came from, for messages.
pub(super) fn parse<T: DeserializeOwned>(
    fields: &Value,
    source: &Path,
    net: &str,
    rules: &[Rule],
) -> Result<T> {
    check(fields, source, net, rules)?;
    T::deserialize(fields).map_err(|e| Error::Model(format!("{}: {e}", source.display())))
}

/// The whole of a configuration and the file it came from.
pub(super) fn fields(path: &Path) -> Result<(PathBuf, Value)> {
    let (folder, file) = locate(path);
    Ok((folder.join(&file), read_json(&folder, &file)?))
}

/// Holds a configuration against the rules.
fn check(fields: &Value, source: &Path, net: &str, rules: &[Rule]) -> Result<()> {
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

/// The fields of a configuration. A field that is `null` is as good as absent.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub json: &'a Value,
    pub source: &'a Path,
}

/// Larger numbers in a configuration are mistakes, and products of smaller ones do not overflow.
const MOST: u64 = 1 << 24;

impl<'a> Fields<'a> {
    /// Whether the field is there, be it `null`.
    pub fn has(&self, name: &str) -> bool {
        self.json.get(name).is_some()
    }
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.json.get(name).filter(|v| !v.is_null())
    }
    /// The fields of an object in this one.
    pub fn object(&self, name: &str) -> Option<Fields<'a>> {
        let json = self.get(name).filter(|v| v.as_object().is_some_and(|o| !o.is_empty()))?;
        Some(Fields { json, source: self.source })
    }
    /// An error about a configuration that is well-formed but makes no model.
    pub fn wrong(&self, why: impl std::fmt::Display) -> Error {
        Error::Model(format!("{}: {why}", self.source.display()))
    }
    fn read<T>(
        &self,
        name: &str,
        what: &str,
        as_t: fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match as_t(value) {
            Some(t) => Ok(Some(t)),
            None => Err(self.wrong(format!("`{name}` is {value}, needed is {what}"))),
        }
    }

    pub fn opt_size(&self, name: &str) -> Result<Option<usize>> {
        let size = |v: &Value| v.as_u64().filter(|n| (1..=MOST).contains(n)).map(|n| n as usize);
        self.read(name, "a whole number from 1 to 2^24", size)
    }
    /// The first of several names for the same thing.
    pub fn size(&self, names: &[&str]) -> Result<usize> {
        for name in names {
            if let Some(size) = self.opt_size(name)? {
                return Ok(size);
            }
        }
        Err(self.wrong(format!("there is no `{}`", names.join("` or `"))))
    }
    pub fn size_or(&self, name: &str, default: usize) -> Result<usize> {
        Ok(self.opt_size(name)?.unwrap_or(default))
    }
    pub fn opt_number(&self, name: &str) -> Result<Option<f64>> {
        self.read(name, "a number", Value::as_f64)
    }
    pub fn number_or(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.opt_number(name)?.unwrap_or(default))
    }
    pub fn opt_flag(&self, name: &str) -> Result<Option<bool>> {
        self.read(name, "true or false", Value::as_bool)
    }
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.opt_flag(name)?.unwrap_or(default))
    }
    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.read(name, "a text", Value::as_str)
    }
    pub fn list(&self, name: &str) -> Result<Option<&'a Vec<Value>>> {
        self.read(name, "a list", Value::as_array)
    }
    /// A list of numbers.
    pub fn numbers(&self, name: &str) -> Result<Option<Vec<f64>>> {
        let Some(list) = self.list(name)? else { return Ok(None) };
        let numbers = list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
        match numbers {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(self.wrong(format!("`{name}` is not a list of numbers"))),
        }
    }

    /// The activation that the field names in transformers' words.
    pub fn activation(&self, name: &str, default: Act) -> Result<Act> {
        match self.text(name)? {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Act::Silu),
            Some("gelu") => Ok(Act::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Act::GeluTanh),
            Some("quick_gelu") => Ok(Act::QuickGelu),
            Some(other) => Err(self.wrong(format!(
                "`{name}` is \"{other}\", which is not supported; supported are silu, gelu, gelu_new, \
                 gelu_pytorch_tanh and quick_gelu"
            ))),
        }
    }

    /// Holds the configuration against what no net here can do.
    pub fn check(&self, net: &str, rules: &[Rule]) -> Result<()> {
        check(self.json, self.source, net, rules)
    }
}
