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
struct KnownFailure {
    adapter: String,
    #[serde(default = "anything")]
    driver: String,
    #[serde(default = "anything")]
    backend: String,
    /// As [`Case::name`] writes it: `matmul fp16* 1x40x136, fast f16 in tier *`.
    case: String,
    /// What is known of the cause.
    reason: String,
    /// Where it is told or reported.
    link: String,
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

    /// Marks a case in the light of what is known of the adapter, given by its name, driver and backend: a failure that
    /// is listed with its reason, and what passes though it is listed.
    pub fn judge(&self, [adapter, driver, backend]: [&str; 3], case: &mut Case) {
        let name = case.name();
        let texts = [adapter, driver, backend, &name];
        let fits = |entry: &&Entry| entry.globs.iter().zip(texts).all(|(g, text)| g.is_match(text));
        let Some(Entry { of, .. }) = self.0.iter().find(fits) else { return };
        match case.status {
            Status::Passed => case.status = Status::Unexpected,
            Status::Failed => {
                case.why = Some(format!("{}: {} ({})", case.trouble(), of.reason, of.link));
                case.status = Status::Known;
            }
            Status::Known | Status::Unexpected | Status::Skipped => {}
        }
    }
}
