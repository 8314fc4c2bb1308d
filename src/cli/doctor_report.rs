//! What `inknib doctor` says of folders and disks.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::avoid::cache_folder;
use crate::gpu::{Gpu, mib};

/// A folder that the program may use.
pub(super) struct Place {
    pub name: &'static str,
    /// None if there is no such folder for this user.
    pub path: Option<PathBuf>,
    /// Whether it has to be writable.
    written: bool,
    /// Where it is set.
    variable: &'static str,
}

/// Every such folder.
pub(super) fn places() -> Vec<Place> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = || variable("HOME").map(|home| home.join(".cache/huggingface"));
    let place = |name, path, written, variable| Place { name, path, written, variable };
    vec![
        place("working folder", std::env::current_dir().ok(), true, ""),
        place("temporary files", Some(std::env::temp_dir()), true, "TMPDIR"),
        place("cache", cache_folder(), true, "INKNIB_CACHE"),
        place(
            "models",
            variable("INKNIB_MODELS").or(Some("models".into())),
            false,
            "INKNIB_MODELS",
        ),
        place("Hugging Face", variable("HF_HOME").or_else(home), false, "HF_HOME"),
    ]
}

impl Place {
    /// The folder, or the nearest one above it that exists.
    fn existing(&self) -> Option<&Path> {
        let path = self.path.as_deref()?;
        match path.ancestors().find(|p| p.is_dir()) {
            // A relative path that is not there is below the working folder.
            None => Some(Path::new(".")),
            found => found,
        }
    }
    /// None where it need not be.
    fn writable(&self) -> Option<Result<(), String>> {
        if !self.written {
            return None;
        }
        let probe = || -> std::io::Result<()> {
            let folder = self.existing().ok_or(std::io::ErrorKind::NotFound)?;
            let probe = folder.join(format!("inknib-doctor.{}", std::process::id()));
            std::fs::write(&probe, b"x")?;
            std::fs::remove_file(&probe)
        };
        Some(probe().map_err(|e| e.to_string()))
    }
    fn free(&self) -> Option<u64> {
        fs4::available_space(self.existing()?).ok()
    }
    fn exists(&self) -> bool {
        self.path.as_deref().is_some_and(Path::is_dir)
    }

    /// For people: where it is, what is wrong with it, what is free on its disk.
    pub fn describe(&self) -> String {
        let set = match self.variable {
            "" => String::new(),
            name if std::env::var_os(name).is_some() => format!(", ${name}"),
            name => format!(", ${name} is not set"),
        };
        let Some(path) = &self.path else { return format!("none{set}") };
        let state = match self.writable() {
            Some(Err(error)) if self.variable.is_empty() => error,
            Some(Err(error)) => {
                format!("{error}; set {} to a folder that can be written", self.variable)
            }
            Some(Ok(())) => "writable".into(),
            None if self.exists() => "there".into(),
            None => "not there".into(),
        };
        let free = self.free().map_or(String::new(), |free| {
            format!(", {:.1} GiB free", free as f64 / f64::from(1 << 30))
        });
        format!("{} ({state}{free}{set})", path.display())
    }
    pub fn json(&self) -> Value {
        let writable = self.writable();
        json!({
            "name": self.name,
            "path": self.path,
            "exists": self.exists(),
            "writable": writable.as_ref().map(Result::is_ok),
            "error": writable.and_then(Result::err),
            "free_bytes": self.free(),
        })
    }
}

/// Where kernels that a driver has compiled are kept, and how much that is.
#[derive(Serialize)]
pub(super) struct Kept {
    file: Option<PathBuf>,
    bytes: u64,
    #[serde(skip)]
    offered: bool,
}

impl Kept {
    pub fn by(gpu: &Gpu) -> Kept {
        let file = gpu.pipelines().map(Path::to_path_buf);
        let bytes = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |of| of.len());
        Kept { file, bytes, offered: gpu.caps().pipeline_cache }
    }
    pub fn describe(&self) -> String {
        match &self.file {
            Some(file) if self.bytes == 0 => format!("{} (nothing yet)", file.display()),
            Some(file) if self.bytes < 1 << 10 => {
                format!(
                    "{} ({} bytes: the driver gives nothing to keep)",
                    file.display(),
                    self.bytes
                )
            }
            Some(file) => format!("{} ({})", file.display(), mib(self.bytes)),
            None if self.offered => {
                "not kept: there is no folder for them; set INKNIB_CACHE".into()
            }
            None => "not kept here: the adapter has no pipeline cache, or it is left out".into(),
        }
    }
}
