//! What `tune` found fastest on a driver: every other command takes it from here.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::avoid::{Subject, cache_folder, read, write};
use crate::Result;
use crate::gpu::{AdapterSummary, Gpu, Tuning};

const FILE: &str = "tuning.json";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    of: Subject,
    tuning: Tuning,
}

/// The file with all entries, if there is a place for it.
pub fn file() -> Option<PathBuf> {
    Some(cache_folder()?.join(FILE))
}

/// Replaces what is known of an adapter, or takes it away. Returns whether the file changed.
pub fn remember(adapter: &AdapterSummary, tuning: Option<Tuning>) -> Result<bool> {
    let Some(file) = file() else { return Ok(false) };
    let of = Subject::of(adapter);
    let before: Vec<Entry> = read(&file);
    let mut entries: Vec<Entry> = before.iter().filter(|old| old.of != of).cloned().collect();
    entries.extend(tuning.map(|tuning| Entry { of, tuning }));
    if entries == before {
        return Ok(false);
    }
    write(&file, &entries)?;
    Ok(true)
}

/// The device with what was measured on it, if anything was.
pub fn apply(gpu: Gpu) -> Gpu {
    let entries: Vec<Entry> = file().map(|file| read(&file)).unwrap_or_default();
    let of = Subject::of(gpu.adapter());
    match entries.into_iter().find(|entry| entry.of == of) {
        Some(entry) => gpu.tuned(entry.tuning),
        None => gpu,
    }
}
