//! A `tokenizer.json`.
#![no_main]

use std::path::Path;

use inknib::text::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_json(data, Path::new("fuzz")) else { return };
    let _ = tokenizer.vocab_size();
    if let Ok(ids) = tokenizer.encode("Once upon a time, 東京 1234\n", true) {
        let _ = tokenizer.decode(&ids, true);
    }
    let _ = tokenizer.decode(&[0, 1, 2, 3, u32::MAX], false);
});
