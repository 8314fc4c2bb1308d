//! GGUF: the container against gguf-py's own files and against damage, blocks against gguf-py's
//! decoding, names and configurations against Hugging Face's, vocabularies against tokenizer.json.

#[path = "gguf/blocks.rs"]
mod blocks;
#[path = "gguf/cli.rs"]
mod cli;
#[path = "gguf/container.rs"]
mod container;
#[path = "gguf/convert.rs"]
mod convert;
#[path = "gguf/names.rs"]
mod names;
#[path = "gguf/nets.rs"]
mod nets;
#[path = "gguf/vocab.rs"]
mod vocab;
#[path = "gguf/writer.rs"]
mod writer;

use std::path::PathBuf;

/// A file of `tests/golden/gguf`, which tools/golden_gguf.py makes.
pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf").join(name)
}

/// A file or folder of the shared data; says so and gives `None` where it is absent.
pub fn shared(path: &str) -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let root = std::env::var_os("INKNIB_SHARED").map_or_else(beside, PathBuf::from);
    let found = root.join(path);
    if !found.exists() {
        eprintln!("skipped: there is no {}", found.display());
        return None;
    }
    Some(found)
}
