//! What a self-test found wrong with a driver: `doctor` writes it down, every other command goes around it.

use std::path::{Path, PathBuf};
use std::sync::Once;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::common::Ui;
use crate::files::write_whole;
use crate::gpu::{AdapterSummary, GpuOptions, Without, chosen};
use crate::{Error, Result};

const FILE: &str = "drivers.json";

/// What something that is known goes for: another version of the driver, or of inknib, has to be tried again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    pub adapter: String,
    pub driver: String,
    pub backend: String,
    pub version: String,
}

impl Subject {
    /// This adapter and this version of inknib.
    pub fn of(adapter: &AdapterSummary) -> Subject {
        Subject {
            adapter: adapter.name.clone(),
            driver: adapter.driver.clone(),
            backend: adapter.backend.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// One driver that computes something wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(flatten)]
    pub of: Subject,
    /// Words of `--without`.
    pub avoid: Vec<String>,
    /// False where nothing computes right, whatever is left out.
    pub usable: bool,
    /// The first thing that was wrong.
    pub why: String,
}

impl Entry {
    /// For this adapter and this version of inknib.
    pub fn new(adapter: &AdapterSummary, avoid: Option<Without>, why: &str) -> Entry {
        let words = avoid.unwrap_or_default().words();
        Entry {
            of: Subject::of(adapter),
            avoid: words.into_iter().map(String::from).collect(),
            usable: avoid.is_some(),
            why: why.into(),
        }
    }
    /// The adapter without what is to be avoided on it.
    ///
    /// # Errors
    /// `OutOfTolerance` if nothing is left of it.
    fn options(&self, options: GpuOptions) -> Result<GpuOptions> {
        if !self.usable {
            return Err(Error::OutOfTolerance(format!(
                "{}: `inknib doctor` found that no kernel computes right on this driver ({}); update the \
                 driver or take another --device; `inknib doctor --forget` lets it be tried all the same",
                self.of.adapter, self.why
            )));
        }
        let without = Without::parse(&self.avoid.join(","))?;
        Ok(GpuOptions { without: options.without.and(without), ..options })
    }
}

/// `$INKNIB_CACHE`, else `inknib` in the user's folder for what can be made again: `$XDG_CACHE_HOME` or `~/.cache`,
/// `~/Library/Caches` on macOS, `%LOCALAPPDATA%` on Windows.
pub fn cache_folder() -> Option<PathBuf> {
    let given = |name: &str| std::env::var_os(name).filter(|p| !p.is_empty()).map(PathBuf::from);
    if let Some(folder) = given("INKNIB_CACHE") {
        return Some(folder);
    }
    let absolute = |name: &str| given(name).filter(|p| p.is_absolute());
    let caches = if cfg!(windows) {
        absolute("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        absolute("HOME").map(|home| home.join("Library/Caches"))
    } else {
        absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))
    };
    Some(caches?.join("inknib"))
}

/// The file with all entries, if there is a place for it.
pub fn file() -> Option<PathBuf> {
    Some(cache_folder()?.join(FILE))
}

/// A missing file has no entries, and one that cannot be read is worth no more than a missing one: the self-test can
/// be run again.
pub(super) fn read<T: DeserializeOwned>(file: &Path) -> Vec<T> {
    let Ok(text) = std::fs::read_to_string(file) else { return Vec::new() };
    serde_json::from_str(&text).unwrap_or_else(|error| {
        tracing::warn!(
            "{}: {error}; it is written anew when there is something to remember",
            file.display()
        );
        Vec::new()
    })
}

/// Replaces the file.
pub(super) fn write<T: Serialize>(file: &Path, entries: &[T]) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    let text = serde_json::to_string_pretty(entries)
        .map_err(|e| Error::Runtime(format!("{}: {e}", file.display())))?;
    write_whole(file, text.as_bytes())
}

/// What is known of the adapter that these options name.
pub fn known(adapter: &AdapterSummary) -> Option<Entry> {
    let wanted = Subject::of(adapter);
    read::<Entry>(&file()?).into_iter().find(|entry| entry.of == wanted)
}

/// Replaces what is known of an adapter; an entry that avoids nothing is not kept. Returns whether the file
/// changed.
pub fn remember(entry: Entry) -> Result<bool> {
    let Some(file) = file() else { return Ok(false) };
    let before: Vec<Entry> = read(&file);
    let mut entries: Vec<Entry> =
        before.iter().filter(|other| other.of != entry.of).cloned().collect();
    if !entry.usable || !entry.avoid.is_empty() {
        entries.push(entry);
    }
    if entries == before {
        return Ok(false);
    }
    write(&file, &entries)?;
    Ok(true)
}

/// Takes the file away. Returns the entries that were in it.
pub fn forget() -> Result<Vec<Entry>> {
    let Some(file) = file().filter(|file| file.exists()) else { return Ok(Vec::new()) };
    let entries = read(&file);
    std::fs::remove_file(&file).map_err(|e| Error::io(&file, e))?;
    Ok(entries)
}

/// The options without what is known to be wrong, said once.
pub fn obey(options: GpuOptions, ui: &Ui) -> Result<GpuOptions> {
    static SAID: Once = Once::new();
    if file().is_none_or(|file| read::<Entry>(&file).is_empty()) {
        return Ok(options);
    }
    let Some(entry) = known(&chosen(&options)?) else { return Ok(options) };
    let options = entry.options(options)?;
    SAID.call_once(|| {
        ui.warn(&format!(
            "{}: {} not used, because `inknib doctor` found it wrong on this driver ({}); \
             `inknib doctor --forget` undoes that",
            entry.of.adapter,
            entry.avoid.join(" and "),
            entry.why
        ));
    });
    Ok(options)
}
