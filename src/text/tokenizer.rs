//! Text to token ids and back: the `tokenizers` crate behind the few calls that models need.
//!
//! A folder is read as transformers reads it: `tokenizer.json` holds the pipeline, and
//! `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` and `config.json` hold
//! the special tokens and the longest input. CLIP folders that carry only `vocab.json` and `merges.txt`
//! (Stable Diffusion 1.x) get the same pipeline that their `tokenizer.json` would have had.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::gguf_vocab;
use super::tokenizer_clip::clip_json;
pub use super::tokenizer_clip::{ClipMarks, ClipTokenizer, PaddedPrompt};
use crate::weights::{Gguf, gguf_file};
use crate::{Error, Result};

/// Tokens that end a turn in widely used chat formats. A model whose configuration names only
/// `<|endoftext|>` as its end still stops where its own template ends a turn (llama.cpp keeps the same
/// list as "end of generation" tokens, src/llama-vocab.cpp).
pub(super) const END_OF_TURN: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<｜end▁of▁sentence｜>",
    "<EOT>",
];

/// transformers writes this or larger as `model_max_length` when a model has no limit.
const NO_LIMIT: u64 = 1 << 40;

/// Named special tokens of a model folder, as `tokenizer_config.json` spells them
/// (`bos_token`, `eos_token`, `unk_token`, `pad_token`, …).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpecialTokens {
    named: Vec<(String, String)>,
}

impl SpecialTokens {
    /// Reads `tokenizer_config.json` and, for names it lacks, `special_tokens_map.json`.
    /// Missing files are no error: GGUF and bare `tokenizer.json` folders have neither.
    pub fn load(folder: &Path) -> Result<SpecialTokens> {
        let mut special = SpecialTokens::default();
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let Some(map) = read_object(&folder.join(name))? else { continue };
            for (key, value) in &map {
                let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
                let (true, Some(text)) = (key.ends_with("_token"), text) else { continue };
                if special.get(key).is_none() {
                    special.set(key, text);
                }
            }
        }
        Ok(special)
    }

    /// Text of the token with this name, `"eos_token"` for example.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(key, _)| key == name).map(|(_, text)| text.as_str())
    }

    /// Sets or replaces a token.
    pub fn set(&mut self, name: &str, text: &str) {
        self.named.retain(|(key, _)| key != name);
        self.named.push((name.to_string(), text.to_string()));
    }

    /// Name and text of every token, in the order of the files.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }
}

/// A model's tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    eos: Vec<u32>,
    pub(super) max_length: Option<usize>,
    pub(super) origin: PathBuf,
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder. Looks for `tokenizer.json` in the folder and in its
    /// `tokenizer/`, then for CLIP's `vocab.json` with `merges.txt` in the same two places. A GGUF file,
    /// or a folder that stands for one, has its vocabulary inside.
    pub fn load(folder: impl AsRef<Path>) -> Result<Tokenizer> {
        let folder = folder.as_ref();
        if let Some(file) = gguf_file(folder)? {
            return Tokenizer::from_gguf(&Gguf::open(file)?);
        }
        let places = [folder.to_path_buf(), folder.join("tokenizer")];
        for place in &places {
            let file = place.join("tokenizer.json");
            if file.is_file() {
                let bytes = std::fs::read(&file).map_err(|e| Error::io(&file, e))?;
                return Tokenizer::from_json(&bytes, &file)?.with_folder(place);
            }
        }
        for place in &places {
            if place.join("vocab.json").is_file() && place.join("merges.txt").is_file() {
                let json = clip_json(place)?;
                let file = place.join("vocab.json");
                return Tokenizer::from_json(json.to_string().as_bytes(), &file)?
                    .with_folder(place);
            }
        }
        let only_model = places.iter().find(|p| p.join("tokenizer.model").is_file());
        Err(Error::Model(match only_model {
            Some(place) => format!(
                "{}: a SentencePiece tokenizer.model without the tokenizer.json that belongs to it; \
                 save one with transformers' `AutoTokenizer.from_pretrained(..).save_pretrained(..)`",
                place.display()
            ),
            None => format!(
                "{}: no tokenizer (looked for tokenizer.json and for vocab.json with merges.txt, \
                 here and in tokenizer/); is this a whole model folder?",
                folder.display()
            ),
        }))
    }

    /// A tokenizer from the bytes of a `tokenizer.json`. `origin` is named in messages. No special
    /// token has a name until [`with_special`](Tokenizer::with_special).
    pub fn from_json(bytes: &[u8], origin: &Path) -> Result<Tokenizer> {
        let bad = |e: tokenizers::Error| {
            Error::Model(format!("{}: not a readable tokenizer: {e}", origin.display()))
        };
        check_json(bytes).map_err(|e| bad(e.into()))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(bad)?;
        // Files may carry the truncation and padding of the run that saved them; length is the
        // caller's business here, and a prompt that lost its end in silence would be a riddle.
        inner.with_truncation(None).map_err(bad)?;
        inner.with_padding(None);
        Ok(Tokenizer {
            inner,
            special: SpecialTokens::default(),
            eos: Vec::new(),
            max_length: None,
            origin: origin.to_path_buf(),
        })
    }

    /// The tokenizer inside a GGUF file.
    ///
    /// # Errors
    /// `Model` for kinds of vocabularies and splits that are not known here.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer> {
        let json = gguf_vocab::tokenizer_json(gguf)?;
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), gguf.path())?;
        let mut tokenizer = tokenizer.with_special(gguf_vocab::special_tokens(gguf)?);
        gguf_vocab::end_ids(gguf)?.into_iter().for_each(|id| push_new(&mut tokenizer.eos, id));
        let architecture = gguf.text("general.architecture")?.unwrap_or_default();
        tokenizer.max_length = gguf.count(&format!("{architecture}.context_length"))?;
        Ok(tokenizer)
    }

    /// Gives the special tokens their names; `eos_token` becomes an end id.
    pub fn with_special(mut self, special: SpecialTokens) -> Tokenizer {
        self.special = special;
        if let Some(id) = self.special_id("eos_token") {
            push_new(&mut self.eos, id);
        }
        self
    }

    fn with_folder(self, folder: &Path) -> Result<Tokenizer> {
        let mut tokenizer = self.with_special(SpecialTokens::load(folder)?);
        let config = read_object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        // f64, because the file's "no limit" is 1e30.
        let limit = config.get("model_max_length").and_then(Value::as_f64);
        tokenizer.max_length = limit.filter(|n| *n < NO_LIMIT as f64).map(|n| n as usize);
        for name in ["generation_config.json", "config.json"] {
            let config = read_object(&folder.join(name))?.unwrap_or_default();
            for id in config.get("eos_token_id").map(ids_of).unwrap_or_default() {
                push_new(&mut tokenizer.eos, id);
            }
            let limit = config.get("max_position_embeddings").and_then(Value::as_u64);
            tokenizer.max_length = tokenizer.max_length.or(limit.map(|n| n as usize));
        }
        Ok(tokenizer)
    }

    /// Ids of a text. With `add_special` the tokenizer's own rule adds bos and eos; text rendered by a
    /// chat template carries them already and wants `false`. Special tokens written out in the text
    /// become their ids, as in transformers.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        Ok(self.encoding(text, add_special)?.get_ids().to_vec())
    }

    pub(super) fn encoding(&self, text: &str, add_special: bool) -> Result<tokenizers::Encoding> {
        self.inner.encode(text, add_special).map_err(|e| {
            Error::Runtime(format!("{}: cannot encode the text: {e}", self.origin.display()))
        })
    }

    /// Text of a sequence of ids. Ids outside of the vocabulary are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| {
            Error::Runtime(format!(
                "{}: cannot decode {} ids: {e}",
                self.origin.display(),
                ids.len()
            ))
        })
    }

    /// Number of entries, added tokens included. A model's embedding may have more rows (padding).
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of a token by its exact spelling in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Spelling of an id in the vocabulary (byte-level tokenizers spell a space `Ġ`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Id of a special token by its name, `"bos_token"` for example.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.special.get(name).and_then(|text| self.token_id(text))
    }

    /// The named special tokens, which chat templates also want.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Ids that end a text according to the folder: the tokenizer's `eos_token` and `eos_token_id` of
    /// `generation_config.json` and `config.json`.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// [`eos_ids`](Tokenizer::eos_ids) and the special tokens that end a turn in common chat formats,
    /// `<|im_end|>` for example. What a chat stops at.
    pub fn end_of_turn_ids(&self) -> Vec<u32> {
        let mut ids = self.eos.clone();
        let added = self.inner.get_added_tokens_decoder();
        for id in END_OF_TURN.iter().filter_map(|text| self.token_id(text)) {
            if added.get(&id).is_some_and(|token| token.special) {
                push_new(&mut ids, id);
            }
        }
        ids
    }

    /// Longest input in tokens that the folder states, if it states one.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// A streamer for text that starts here.
    pub fn streamer(&self, skip_special: bool) -> Streamer<'_> {
        Streamer::after(self, &[], skip_special)
    }
}

/// Refuses what the crate would panic at instead of returning an error: a decoder that is no JSON
/// (`expect("Helper")` in its decoders/mod.rs).
fn check_json(bytes: &[u8]) -> serde_json::Result<()> {
    #[derive(serde::Deserialize)]
    struct Fragile {
        #[serde(default, rename = "decoder")]
        _decoder: Value,
    }
    serde_json::from_slice::<Fragile>(bytes).map(drop)
}

/// Turns ids into text as they arrive. Holds back the bytes of a character that is not complete, so
/// that no replacement character ever stands for a half-received one.
///
/// The method is the two-offset one of text-generation-inference: decode a short window with and
/// without the new ids and show the difference, because a token's text depends on its neighbours
/// (leading spaces, byte sequences).
pub struct Streamer<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    ids: Vec<u32>,
    shown: usize,
}

/// A character has at most four bytes, hence at most four byte tokens; a longer run of undecodable
/// tokens is no beginning of anything and is shown as it decodes.
const MOST_PENDING: usize = 8;
/// Ids of context that settle the spacing of the first shown token.
const CONTEXT: usize = 8;

impl<'t> Streamer<'t> {
    /// A streamer that continues `context` (the prompt): nothing of it is shown, but the first token
    /// keeps the leading space that a text's very first token would lose.
    pub fn after(tokenizer: &'t Tokenizer, context: &[u32], skip_special: bool) -> Streamer<'t> {
        let ids = context[context.len().saturating_sub(CONTEXT)..].to_vec();
        let shown = ids.len();
        Streamer { tokenizer, skip_special, ids, shown }
    }

    /// Takes the next id; returns the text that is now certain, if any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.ids.push(id);
        let text = self.pending()?;
        let whole = !text.ends_with(char::REPLACEMENT_CHARACTER)
            || self.ids.len() - self.shown >= MOST_PENDING;
        if text.is_empty() || !whole {
            return Ok(None);
        }
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Ok(Some(text))
    }

    /// What was held back, without the bytes of an incomplete character.
    pub fn finish(mut self) -> Result<Option<String>> {
        let text = self.pending()?;
        self.ids.clear();
        let text = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        Ok((!text.is_empty()).then(|| text.to_string()))
    }

    fn pending(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.shown], self.skip_special)?;
        let after = self.tokenizer.decode(&self.ids, self.skip_special)?;
        // A context that ends inside a character decodes to replacement characters that the next id
        // turns into the character itself; then only the common beginning counts as shown.
        let common = before.char_indices().zip(after.chars()).find(|((_, a), b)| a != b);
        let at = common.map_or(before.len().min(after.len()), |((at, _), _)| at);
        Ok(after.get(at..).unwrap_or_default().to_string())
    }
}

/// A JSON object from a file; `None` where the file is absent.
pub(crate) fn read_object(file: &Path) -> Result<Option<Map<String, Value>>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(file, e)),
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(Error::Model(format!("{}: not a JSON object", file.display()))),
        Err(e) => Err(Error::Model(format!("{}: not JSON: {e}", file.display()))),
    }
}

/// One id or a list of ids, as `eos_token_id` comes in both forms.
pub(crate) fn ids_of(value: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    }
}

fn push_new(ids: &mut Vec<u32>, id: u32) {
    if !ids.contains(&id) {
        ids.push(id);
    }
}
