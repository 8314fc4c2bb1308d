//! A GGUF file: its header, its tensors under Hugging Face's names, its vocabulary and chat template.
#![no_main]

use inknib::text::template::Template;
use inknib::text::tokenizer::Tokenizer;
use inknib::weights::{Gguf, WeightStore};
use inknib_fuzz::exercise;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let file = [b"GGUF", data].concat();
    let Ok(gguf) = Gguf::from_bytes("fuzz", file) else { return };
    for tensor in gguf.tensors().values() {
        let _ = gguf.data(tensor);
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
        let _ = tokenizer.encode("Once upon a time, 東京 1234\n", true);
        let _ = tokenizer.decode(&[0, 1, 2, 3, u32::MAX], false);
    }
    let _ = Template::from_gguf(&gguf);
    if let Ok(store) = WeightStore::from_gguf(gguf) {
        let _ = exercise(&store);
    }
});
