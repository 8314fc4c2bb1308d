//! Failures that are known, by adapter and driver: they do not fail a run, and one that passes does.

use globset::{GlobBuilder, GlobMatcher};
use serde::Deserialize;

use super::{Case, Status};
use crate::{Error, Result};

/// The list that ships with inknib.
const SHIPPED: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/adapters.toml"));

/// An entry of the list: globs, in which `*` stands for anything and case does not count.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownFailure {
    pub adapter: String,
    #[serde(default = "anything")]
    pub driver: String,
    #[serde(default = "anything")]
    pub backend: String,
    /// As [`Case::name`] writes it: `matmul fp16* 1x40x136, fast f16 in tier *`.
    pub case: String,
    /// What is known of the cause.
    pub reason: String,
    /// Where it is told or reported.
    pub link: String,
}

fn anything() -> String {
    "*".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    known: Vec<KnownFailure>,
}

struct Entry {
    globs: [GlobMatcher; 4],
    of: KnownFailure,
}

/// A list of known failures.
pub struct Known(Vec<Entry>);

impl Known {
    /// The list that ships with inknib (tests/adapters.toml).
    ///
    /// # Errors
    /// As [`Known::parse`].
    pub fn shipped() -> Result<Known> {
        Known::parse(SHIPPED, "tests/adapters.toml")
    }

    /// Reads a list from TOML; `source` is named in errors.
    ///
    /// # Errors
    /// `Usage` for what is no such list.
    pub fn parse(text: &str, source: &str) -> Result<Known> {
        let refuse = |why: String| Error::Usage(format!("{source}: {why}"));
        let file: File = toml::from_str(text).map_err(|error| refuse(error.to_string()))?;
        let entry = |of: KnownFailure| {
            let glob = |text: &str| {
                // Brackets are part of some drivers' names, not sets of letters.
                let escaped = text.replace('[', "[[]").replace('{', "[{]");
                GlobBuilder::new(&escaped)
                    .case_insensitive(true)
                    .build()
                    .map(|glob| glob.compile_matcher())
                    .map_err(|error| refuse(error.to_string()))
            };
            let globs =
                [glob(&of.adapter)?, glob(&of.driver)?, glob(&of.backend)?, glob(&of.case)?];
            Ok(Entry { globs, of })
        };
        Ok(Known(file.known.into_iter().map(entry).collect::<Result<_>>()?))
    }

    /// The entry that a case falls under; of the adapter its name, driver and backend.
    pub fn find(&self, adapter: [&str; 3], case: &Case) -> Option<&KnownFailure> {
        let name = case.name();
        let [adapter, driver, backend] = adapter;
        let texts = [adapter, driver, backend, &name];
        let fits =
            |entry: &&Entry| entry.globs.iter().zip(&texts).all(|(g, text)| g.is_match(text));
        self.0.iter().find(fits).map(|entry| &entry.of)
    }

    /// The status of a case in the light of what is known.
    pub fn judge(&self, adapter: [&str; 3], case: &Case) -> Status {
        let known = self.find(adapter, case).is_some();
        match case.status {
            Status::Passed if known => Status::Unexpected,
            Status::Failed if known => Status::Known,
            status => status,
        }
    }
}
