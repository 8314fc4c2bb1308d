//! What `tune` found fastest on a driver: every other command takes it from here.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::avoid::{cache_folder, read, write};
use crate::Result;
use crate::gpu::{AdapterSummary, GpuOptions, Tuning, chosen};

const FILE: &str = "tuning.json";

/// One driver. Another version of it, or of inknib, has to be measured again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    adapter: String,
    driver: String,
    backend: String,
    version: String,
    tuning: Tuning,
}

impl Entry {
    fn new(adapter: &AdapterSummary, tuning: Tuning) -> Entry {
        Entry {
            adapter: adapter.name.clone(),
            driver: adapter.driver.clone(),
            backend: adapter.backend.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            tuning,
        }
    }
    fn same(&self, other: &Entry) -> bool {
        Entry { tuning: other.tuning, ..self.clone() } == *other
    }
}

/// The file with all entries, if there is a place for it.
pub fn file() -> Option<PathBuf> {
    Some(cache_folder()?.join(FILE))
}

/// Replaces what is known of an adapter, or takes it away. Returns whether the file changed.
pub fn remember(adapter: &AdapterSummary, tuning: Option<Tuning>) -> Result<bool> {
    let Some(file) = file() else { return Ok(false) };
    let entry = Entry::new(adapter, tuning.unwrap_or_default());
    let before: Vec<Entry> = read(&file);
    let mut entries: Vec<Entry> = before.iter().filter(|old| !old.same(&entry)).cloned().collect();
    entries.extend(tuning.map(|_| entry));
    if entries == before {
        return Ok(false);
    }
    write(&file, &entries)?;
    Ok(true)
}

/// The options with what was measured on the adapter that they name.
///
/// # Errors
/// As choosing an adapter does.
pub fn apply(options: GpuOptions) -> Result<GpuOptions> {
    let entries: Vec<Entry> = file().map(|file| read(&file)).unwrap_or_default();
    if entries.is_empty() {
        return Ok(options);
    }
    let wanted = Entry::new(&chosen(&options)?, Tuning::default());
    let found = entries.into_iter().find(|entry| entry.same(&wanted));
    Ok(GpuOptions { tuning: options.tuning.or(found.map(|entry| entry.tuning)), ..options })
}
