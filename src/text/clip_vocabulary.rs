//! CLIP's vocabulary for checkpoints that carry none: single files hold weights alone.

use std::path::Path;

use serde_json::{Map, Value};

use super::tokenizer::{ClipTokenizer, SpecialTokens, Tokenizer};
use super::tokenizer_clip::clip_pipeline;
use crate::Result;
use crate::weights::{ImageModel, Part, Vocabulary};

/// OpenAI's merges, most frequent pair first (models/clip-vocabulary/README.md).
const MERGES: &str = include_str!("../../models/clip-vocabulary/merges.txt");
/// What messages call it.
const ORIGIN: &str = "CLIP's vocabulary";

/// Characters that stand for bytes: those that can be printed for themselves, the other 68 for
/// `U+0100 + n`, in this order (`bytes_to_unicode` of openai/CLIP's simple_tokenizer.py).
fn byte_letters() -> impl Iterator<Item = char> {
    let printable = (0x21..=0x7e).chain(0xa1..=0xac).chain(0xae..=0xff);
    printable.chain(0x100..0x144).filter_map(char::from_u32)
}

/// Tokens by id: 256 bytes, the same at the end of a word, one token per merge, the two ends.
fn vocabulary<'a>(merges: impl Iterator<Item = &'a str>) -> Map<String, Value> {
    let inner = byte_letters().map(String::from);
    let last = byte_letters().map(|letter| format!("{letter}</w>"));
    let merged = merges.map(|pair| pair.replace(' ', ""));
    let ends = ["<|startoftext|>", "<|endoftext|>"].map(String::from);
    let tokens = inner.chain(last).chain(merged).chain(ends);
    tokens.enumerate().map(|(id, token)| (token, Value::from(id))).collect()
}

impl ClipTokenizer {
    /// OpenAI's tokenizer. `pad` fills prompts up: `<|endoftext|>` for Stable Diffusion 1.x and SDXL's
    /// first text encoder, `!` for 2.x and SDXL's second.
    pub fn shipped(pad: &str) -> Result<ClipTokenizer> {
        let merges: Vec<&str> = MERGES.lines().skip(1).filter(|line| !line.is_empty()).collect();
        let vocabulary = vocabulary(merges.iter().copied());
        let json = clip_pipeline(vocabulary, &merges, Path::new(ORIGIN))?;
        let mut special = SpecialTokens::default();
        let names = [
            ("bos_token", "<|startoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", pad),
        ];
        names.iter().for_each(|(name, text)| special.set(name, text));
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), Path::new(ORIGIN))?;
        ClipTokenizer::new(tokenizer.with_special(special))
    }

    /// The tokenizer of a text encoder of `model`.
    ///
    /// # Errors
    /// `Model` where its own tokenizer cannot be read.
    pub fn of(model: &ImageModel, part: Part) -> Result<ClipTokenizer> {
        match model.vocabulary(part) {
            Vocabulary::Folder(folder) => ClipTokenizer::load(folder),
            Vocabulary::Clip { pad } => ClipTokenizer::shipped(pad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_has_clips_size_and_ends() {
        let merges: Vec<&str> = MERGES.lines().skip(1).filter(|line| !line.is_empty()).collect();
        let vocabulary = vocabulary(merges.into_iter());
        assert_eq!(vocabulary.len(), 49408, "the rows of every CLIP's embedding");
        for (token, id) in [
            ("!", 0),
            ("\u{100}", 188),
            ("!</w>", 256),
            ("in", 512),
            ("<|startoftext|>", 49406),
            ("<|endoftext|>", 49407),
        ] {
            assert_eq!(vocabulary[token], id, "{token}");
        }
    }

    #[test]
    fn pads_as_asked() {
        for (pad, id) in [("<|endoftext|>", 49407), ("!", 0)] {
            let tokenizer = ClipTokenizer::shipped(pad).unwrap();
            assert_eq!(tokenizer.length(), 77);
            let ids = tokenizer.encode_padded("a photo of a cat", 10).unwrap().ids;
            let cat = [49406, 320, 1125, 539, 320, 2368, 49407, id, id, id];
            assert_eq!(ids, cat, "openai/CLIP gives these");
        }
    }
}
