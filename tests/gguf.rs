//! GGUF: the container against gguf-py's own files and against damage, blocks against gguf-py's
//! decoding, names and configurations against Hugging Face's, vocabularies against tokenizer.json.

#[path = "common/device.rs"]
mod device;
#[path = "common/shared.rs"]
mod shared_data;

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

pub use device::gpu;
pub use shared_data::shared;

/// A file of `tests/golden/gguf`, which tools/golden_gguf.py makes.
pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf").join(name)
}
