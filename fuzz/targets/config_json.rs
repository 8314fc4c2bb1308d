//! A `config.json` of a language model, and as what says how weights were quantized.
#![no_main]

use std::path::Path;

use inknib::nets::language::LanguageConfig;
use inknib::weights::WeightStore;
use libfuzzer_sys::fuzz_target;

/// A safetensors file without tensors.
const EMPTY: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

fuzz_target!(|data: &[u8]| {
    let Ok(config) = serde_json::from_slice(data) else { return };
    if let Ok(config) = LanguageConfig::from_json(&config, Path::new("fuzz")) {
        let _ = (config.family(), config.vocab_size(), config.layers(), config.hidden_size());
    }
    let _ = WeightStore::from_bytes_with_config("fuzz", EMPTY.to_vec(), &config);
});
