//! CLIP's tokenizer: prompts of a fixed length, and its pipeline where a folder has no `tokenizer.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::tokenizer::{Tokenizer, read_object};
use crate::{Error, Result};

/// A CLIP prompt of fixed length.
#[derive(Debug, Clone, PartialEq)]
pub struct PaddedPrompt {
    /// Exactly the asked number of ids: bos, the prompt, eos, padding.
    pub ids: Vec<u32>,
    /// Tokens of the prompt that were kept, without bos and eos.
    pub kept: usize,
    /// Tokens of the prompt that did not fit.
    pub dropped: usize,
    /// The part of the prompt that did not fit, as the user wrote it.
    pub dropped_text: String,
}

/// The ids that frame a CLIP prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClipMarks {
    pub bos: u32,
    pub eos: u32,
    pub pad: u32,
}

/// The tokenizer of a CLIP text encoder: fixed length, padding and a report of what was cut.
#[derive(Clone)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
    length: usize,
}

impl ClipTokenizer {
    /// Loads the tokenizer of a CLIP folder, or of a diffusers folder with a `tokenizer/`.
    pub fn load(folder: impl AsRef<Path>) -> Result<ClipTokenizer> {
        ClipTokenizer::new(Tokenizer::load(folder)?)
    }

    /// Takes a loaded tokenizer; bos, eos and pad come from its special tokens, else from OpenAI's
    /// spelling. Stable Diffusion 1.x pads with `<|endoftext|>`, 2.x with `!`.
    pub fn new(tokenizer: Tokenizer) -> Result<ClipTokenizer> {
        let find = |name: &str, usual: &str| {
            let found = tokenizer.special_id(name).or_else(|| tokenizer.token_id(usual));
            found.ok_or_else(|| {
                Error::Model(format!(
                    "{}: no {name} in the vocabulary (nor {usual}); this is not CLIP's tokenizer",
                    tokenizer.origin.display()
                ))
            })
        };
        let bos = find("bos_token", "<|startoftext|>")?;
        let eos = find("eos_token", "<|endoftext|>")?;
        let pad = tokenizer.special_id("pad_token").unwrap_or(eos);
        // 77 positions is the length of every CLIP text encoder that OpenAI and LAION released.
        let length = tokenizer.max_length.unwrap_or(77);
        Ok(ClipTokenizer { tokenizer, bos, eos, pad, length })
    }

    /// The model's length in tokens, 77 for Stable Diffusion.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The tokenizer without padding.
    pub fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Ids before a prompt, behind it, and in the places behind that.
    pub fn marks(&self) -> ClipMarks {
        ClipMarks { bos: self.bos, eos: self.eos, pad: self.pad }
    }

    /// Ids of a text without bos and eos, each with the byte of the text at which it begins.
    pub fn encode_with_starts(&self, text: &str) -> Result<Vec<(u32, usize)>> {
        let encoding = self.tokenizer.encoding(text, false)?;
        let starts = encoding.get_offsets().iter().map(|(start, _)| *start);
        Ok(encoding.get_ids().iter().copied().zip(starts).collect())
    }

    /// `[bos, prompt…, eos, pad…]` of exactly `length` ids, and what had to be left out.
    pub fn encode_padded(&self, prompt: &str, length: usize) -> Result<PaddedPrompt> {
        if length < 2 {
            return Err(Error::Usage(format!(
                "a prompt of {length} tokens has no room for its two end marks; ask for 2 or more"
            )));
        }
        let encoding = self.tokenizer.encoding(prompt, false)?;
        let all = encoding.get_ids();
        let kept = all.len().min(length - 2);
        let mut ids = Vec::with_capacity(length);
        ids.push(self.bos);
        ids.extend_from_slice(&all[..kept]);
        ids.push(self.eos);
        ids.resize(length, self.pad);
        let start = encoding.get_offsets().get(kept).map(|(start, _)| *start);
        let dropped_text = start.and_then(|at| prompt.get(at..)).unwrap_or_default().to_string();
        Ok(PaddedPrompt { ids, kept, dropped: all.len() - kept, dropped_text })
    }
}

/// CLIP's pipeline over a folder's `vocab.json` and `merges.txt`.
pub(super) fn clip_json(folder: &Path) -> Result<Value> {
    let vocab = read_object(&folder.join("vocab.json"))?.unwrap_or_default();
    let file = folder.join("merges.txt");
    let merges = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
    let merges: Vec<&str> =
        merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()).collect();
    clip_pipeline(vocab, &merges, &folder.join("vocab.json"))
}

/// The pipeline of CLIP's `tokenizer.json`, filled from a vocabulary and its merges (transformers'
/// convert_slow_tokenizer.py, `CLIPConverter`). `origin` is the vocabulary's name in messages.
pub(super) fn clip_pipeline(
    vocab: Map<String, Value>,
    merges: &[&str],
    origin: &Path,
) -> Result<Value> {
    let id = |text: &str| {
        vocab.get(text).and_then(Value::as_u64).ok_or_else(|| {
            Error::Model(format!(
                "{}: no {text}, so this is not CLIP's vocabulary; other tokenizers need their \
                 tokenizer.json",
                origin.display()
            ))
        })
    };
    let (bos, eos) = (id("<|startoftext|>")?, id("<|endoftext|>")?);
    let added = |id: u64, text: &str| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let pieces = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                            "use_regex": true});
    Ok(json!({
        "version": "1.0",
        "added_tokens": [added(bos, "<|startoftext|>"), added(eos, "<|endoftext|>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pieces}, "behavior": "Removed", "invert": true},
            byte_level]},
        "post_processor": {"type": "RobertaProcessing", "sep": ["<|endoftext|>", eos],
            "cls": ["<|startoftext|>", bos], "trim_offsets": false, "add_prefix_space": false},
        "decoder": byte_level,
        "model": {"type": "BPE", "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": merges}
    }))
}
