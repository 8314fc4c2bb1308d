//! Tokenizers and generation settings of real models; chat templates held to what transformers renders.

#[path = "common/shared.rs"]
mod shared_data;

#[path = "text/templates.rs"]
mod templates;
#[path = "text/tokens.rs"]
mod tokens;

use std::path::PathBuf;

pub use shared_data::shared;

/// A path of the repository's own models, or None with one line that says what is skipped.
pub fn model(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models").join(path);
    if !path.exists() {
        println!("skipped: no {}", path.display());
        return None;
    }
    Some(path)
}
