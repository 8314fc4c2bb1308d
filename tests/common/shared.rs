//! Data that is not part of the repository.

use std::path::PathBuf;

/// A path of `../shared` (or of `INKNIB_SHARED`), or None with one line that says what is skipped.
pub fn shared(path: &str) -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let path = std::env::var_os("INKNIB_SHARED").map_or_else(beside, PathBuf::from).join(path);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no {}", path.display());
    None
}
