//! Tokenizers and generation settings of real models; chat templates held to what transformers renders.

#[path = "text/templates.rs"]
mod templates;
#[path = "text/tokens.rs"]
mod tokens;

use std::path::PathBuf;

/// A path of `../shared`, or None with one line that says what is skipped.
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("INKNIB_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    present(root.join(path))
}

/// A path of the repository's own models, or None with one line that says what is skipped.
pub fn model(path: &str) -> Option<PathBuf> {
    present(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models").join(path))
}

fn present(path: PathBuf) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: no {}", path.display());
    None
}
