//! [`Checkpoint`]: a language model on disk in Hugging Face's terms, whatever file it lies in.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::gguf::Gguf;
use super::gguf_config::config;
use super::locate::{is_gguf_name, is_pickle_name, pickle_error};
use super::{WeightStore, read_json};
use crate::{Error, Result};

/// A configuration and the tensors that belong to it. A GGUF file looks like the folder it was once
/// converted from: its metadata as a `config.json`, its tensors under their original names, in their
/// original order.
#[derive(Debug)]
pub struct Checkpoint {
    config: Value,
    store: WeightStore,
}

impl Checkpoint {
    /// Opens a folder with `config.json` and weights, a `.gguf` file, or a folder that holds exactly
    /// one and no `config.json`.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        match gguf_file(path)? {
            None => Ok(Checkpoint {
                config: read_json(path, "config.json")?,
                store: WeightStore::open(path)?,
            }),
            Some(file) => {
                let gguf = Gguf::open(file)?;
                let config = config(&gguf)?;
                Ok(Checkpoint { config, store: WeightStore::from_gguf(gguf)? })
            }
        }
    }

    /// `config.json`, or what it would be for a GGUF file.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The tensors.
    pub fn store(&self) -> &WeightStore {
        &self.store
    }

    /// The path the weights were opened with.
    pub fn path(&self) -> &Path {
        self.store.path()
    }
}

/// The GGUF file that a path stands for: the file itself, or the only one of a folder that has no
/// `config.json`; `None` for any other folder, and for other files.
///
/// # Errors
/// `Model` for a pickle, and for a folder with several GGUF files.
pub fn gguf_file(path: &Path) -> Result<Option<PathBuf>> {
    if path.is_file() && is_pickle_name(path) {
        return Err(pickle_error(path));
    }
    if path.is_file() {
        return Ok(is_gguf_name(path).then(|| path.to_path_buf()));
    }
    if !path.is_dir() || path.join("config.json").exists() || path.join("model_index.json").exists()
    {
        return Ok(None);
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let files = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut files: Vec<PathBuf> = files.filter(|p| is_gguf_name(p) && p.is_file()).collect();
    files.sort();
    match files.len() {
        0 | 1 => Ok(files.pop()),
        n => Err(Error::Model(format!(
            "{}: {n} GGUF files and no config.json; give one of them, for instance {}",
            path.display(),
            files[0].display()
        ))),
    }
}

/// `config.json` of a model folder, or what it would be for a GGUF file; and the file it came from.
/// Only a GGUF file's header is read.
pub fn read_config(path: impl AsRef<Path>) -> Result<(PathBuf, Value)> {
    let path = path.as_ref();
    match gguf_file(path)? {
        Some(file) => {
            let config = config(&Gguf::open(&file)?)?;
            Ok((file, config))
        }
        None => Ok((path.join("config.json"), read_json(path, "config.json")?)),
    }
}
