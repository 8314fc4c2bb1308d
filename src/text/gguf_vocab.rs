//! The vocabulary, special tokens, chat template and sampling settings inside a GGUF file, in the
//! forms that a model folder has them: `tokenizer.json`, `tokenizer_config.json`,
//! `generation_config.json`.
//!
//! Keys: gguf-py's constants.py. What llama.cpp knows by heart: its src/llama-vocab.cpp. Pipelines:
//! transformers' convert_slow_tokenizer.py and the tokenizer.json files of the models themselves.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::gguf_pre::{Split, split};
use super::tokenizer::{END_OF_TURN, SpecialTokens};
use crate::weights::Gguf;
use crate::{Error, Result};

/// Kinds of tokens (llama.h `enum llama_token_type`).
const UNKNOWN: usize = 2;
const CONTROL: usize = 3;
const USER_DEFINED: usize = 4;
const BYTE: usize = 6;

/// Longest token in bytes; the longest of real vocabularies are runs of some hundred spaces.
const MOST_TOKEN_BYTES: usize = 1024;

/// What all parts are made from.
struct Vocabulary<'a> {
    gguf: &'a Gguf,
    tokens: Vec<&'a str>,
    kinds: Vec<usize>,
    /// Ids by text; of two equal texts the first has it.
    ids: HashMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    fn read(gguf: &'a Gguf) -> Result<Vocabulary<'a>> {
        let key = "tokenizer.ggml.tokens";
        let tokens = gguf.texts(key)?.filter(|t| !t.is_empty());
        let tokens = tokens.ok_or_else(|| {
            gguf.bad(key, "is missing: the file has no vocabulary and cannot be used for text")
        })?;
        if let Some(long) = tokens.iter().find(|t| t.len() > MOST_TOKEN_BYTES) {
            return Err(gguf.bad(key, &format!("has a token of {} bytes", long.len())));
        }
        let kinds = match gguf.numbers("tokenizer.ggml.token_type")? {
            Some(kinds) if kinds.len() == tokens.len() => {
                kinds.iter().map(|&kind| kind as usize).collect()
            }
            Some(kinds) => {
                return Err(self::lengths(gguf, "token_type", kinds.len(), tokens.len()));
            }
            None => vec![1; tokens.len()],
        };
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, &token) in tokens.iter().enumerate() {
            ids.entry(token).or_insert(id);
        }
        Ok(Vocabulary { gguf, tokens, kinds, ids })
    }

    /// The id that a key of the metadata names; an error where it is beyond the vocabulary.
    fn named(&self, name: &str) -> Result<Option<usize>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let id = self.gguf.count(&key)?;
        match id.filter(|&id| id >= self.tokens.len()) {
            // Files without a token of that kind have 2^32 − 1 here.
            Some(id) if id == u32::MAX as usize => Ok(None),
            Some(id) => Err(self
                .gguf
                .bad(&key, &format!("is {id}, the vocabulary has {} tokens", self.tokens.len()))),
            None => Ok(id),
        }
    }

    /// All tokens with their ids, as tokenizer.json has them.
    fn json(&self) -> Map<String, Value> {
        self.tokens
            .iter()
            .enumerate()
            .filter(|(id, token)| self.ids.get(*token) == Some(id))
            .map(|(id, token)| (token.to_string(), json!(id)))
            .collect()
    }

    /// The tokens that are cut out of a text before anything else.
    fn added(&self) -> Result<Vec<Value>> {
        let names = ["bos", "eos", "eot", "eom"].map(|name| self.named(name));
        let ends = names.into_iter().collect::<Result<Vec<_>>>()?;
        let strip = self.strips_right()?;
        let mut added = Vec::new();
        for (id, (token, &kind)) in self.tokens.iter().zip(&self.kinds).enumerate() {
            let ending = ends.contains(&Some(id)) || END_OF_TURN.contains(token);
            let special = matches!(kind, UNKNOWN | CONTROL) || ending && kind != BYTE;
            let first = self.ids.get(token) == Some(&id);
            if token.is_empty() || !first || !(special || kind == USER_DEFINED) {
                continue;
            }
            let plain = ["<unk>", "<s>", "<|endoftext|>"].contains(token);
            added.push(json!({ "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": strip && !plain, "normalized": false, "special": special }));
        }
        Ok(added)
    }

    /// Phi-3's special tokens swallow the spaces behind them, which the file does not say; llama.cpp
    /// goes by the model's name as well.
    fn strips_right(&self) -> Result<bool> {
        let name = self.gguf.text("general.name")?.unwrap_or_default().to_lowercase();
        let spm = self.gguf.text("tokenizer.ggml.model")? == Some("llama");
        Ok(spm && ["phi-3", "phi3"].iter().any(|part| name.contains(part)))
    }

    /// `[bos] text [eos]` as the file asks for it, else as `bos` says.
    fn post_processor(&self, bos: bool) -> Result<Value> {
        let flag = |name: &str| self.gguf.flag(&format!("tokenizer.ggml.add_{name}_token"));
        let bos = if flag("bos")?.unwrap_or(bos) { self.named("bos")? } else { None };
        let eos = if flag("eos")?.unwrap_or(false) { self.named("eos")? } else { None };
        if bos.or(eos).is_none() {
            return Ok(Value::Null);
        }
        let token = |id: usize| json!({ "SpecialToken": { "id": self.tokens[id], "type_id": 0 } });
        let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
        let around = |texts: Vec<Value>| -> Vec<Value> {
            bos.map(token).into_iter().chain(texts).chain(eos.map(token)).collect()
        };
        let special: Map<String, Value> = [bos, eos]
            .into_iter()
            .flatten()
            .map(|id| {
                let token = self.tokens[id];
                (token.to_string(), json!({ "id": token, "ids": [id], "tokens": [token] }))
            })
            .collect();
        Ok(json!({ "type": "TemplateProcessing", "single": around(vec![text("A")]),
            "pair": around(vec![text("A"), text("B")]), "special_tokens": special }))
    }
}

fn lengths(gguf: &Gguf, key: &str, is: usize, tokens: usize) -> Error {
    let key = format!("tokenizer.ggml.{key}");
    gguf.bad(&key, &format!("has {is} entries, the vocabulary {tokens}"))
}

/// The file's tokenizer as a `tokenizer.json`.
///
/// # Errors
/// `Model` for kinds of tokenizers that are not known here, by name.
pub fn tokenizer_json(gguf: &Gguf) -> Result<Value> {
    let vocabulary = Vocabulary::read(gguf)?;
    let key = "tokenizer.ggml.model";
    match gguf.text(key)? {
        Some("llama") => sentencepiece(&vocabulary),
        Some("gpt2") => byte_level(&vocabulary),
        other => Err(gguf.bad(
            key,
            &format!(
                "is `{}`; there are llama (SentencePiece) and gpt2 (byte-level BPE)",
                other.unwrap_or("")
            ),
        )),
    }
}

/// SentencePiece's BPE: the pair whose joined token has the highest score is joined first; characters
/// without a token become byte tokens.
fn sentencepiece(v: &Vocabulary<'_>) -> Result<Value> {
    let key = "tokenizer.ggml.scores";
    let scores = v.gguf.numbers(key)?.ok_or_else(|| v.gguf.bad(key, "is missing"))?;
    if scores.len() != v.tokens.len() {
        return Err(lengths(v.gguf, "scores", scores.len(), v.tokens.len()));
    }
    let prefix = v.gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let space = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let normalizer = match prefix {
        true => json!({ "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" }, space] }),
        false => space,
    };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let unknown = match v.named("unknown")? {
        Some(id) => Some(id),
        None => v.kinds.iter().position(|&kind| kind == UNKNOWN),
    };
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": v.added()?,
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": v.post_processor(true)?,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": { "type": "BPE", "dropout": null, "unk_token": unknown.map(|id| v.tokens[id]),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": v.kinds.contains(&BYTE), "ignore_merges": false,
            "vocab": v.json(), "merges": merges_of(v, &scores) }
    }))
}

/// The merges that scores stand for: every way to make a token of two, best score first, and of
/// equals in the order of the ids, as transformers' `generate_merges` lists them.
fn merges_of<'a>(v: &Vocabulary<'a>, scores: &[f64]) -> Vec<[&'a str; 2]> {
    let id = |text: &str| {
        let id = *v.ids.get(text)?;
        (![UNKNOWN, CONTROL, BYTE].contains(&v.kinds[id])).then_some(id)
    };
    let mut merges: Vec<(usize, usize, usize)> = Vec::new();
    for (whole, token) in v.tokens.iter().enumerate() {
        if id(token) != Some(whole) {
            continue;
        }
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        merges.extend(cuts.filter_map(|(left, right)| Some((whole, id(left)?, id(right)?))));
    }
    merges.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]).then(a.cmp(b)));
    merges.into_iter().map(|(_, left, right)| [v.tokens[left], v.tokens[right]]).collect()
}

/// GPT-2's byte-level BPE with the split of the model's own family.
fn byte_level(v: &Vocabulary<'_>) -> Result<Value> {
    let Split { pattern, digits, nfc, ignore_merges, bos } = split(v.gguf, v.tokens.len())?;
    let key = "tokenizer.ggml.merges";
    let merges = v.gguf.texts(key)?.ok_or_else(|| v.gguf.bad(key, "is missing"))?;
    let pairs = merges.iter().map(|merge| {
        // The first half may itself begin with a space in files that do not spell spaces as Ġ.
        let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        at.map(|at| [&merge[..at], &merge[at + 1..]])
            .ok_or_else(|| v.gguf.bad(key, &format!("has an entry `{merge}` that is no pair")))
    });
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    let mut parts = Vec::new();
    if digits {
        parts.push(json!({ "type": "Digits", "individual_digits": true }));
    }
    if let Some(pattern) = pattern {
        parts.push(json!({ "type": "Split", "pattern": { "Regex": pattern },
            "behavior": "Isolated", "invert": false }));
    }
    let bytes = |use_regex: bool| {
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": use_regex })
    };
    parts.push(bytes(pattern.is_none()));
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": v.added()?,
        "normalizer": if nfc { json!({ "type": "NFC" }) } else { Value::Null },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": parts },
        "post_processor": v.post_processor(bos)?,
        "decoder": bytes(true),
        "model": { "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": v.json(), "merges": pairs }
    }))
}

/// The special tokens by transformers' names.
pub fn special_tokens(gguf: &Gguf) -> Result<SpecialTokens> {
    let vocabulary = Vocabulary::read(gguf)?;
    let mut special = SpecialTokens::default();
    for (name, key) in [
        ("bos", "bos"),
        ("eos", "eos"),
        ("unk", "unknown"),
        ("pad", "padding"),
        ("sep", "seperator"),
    ] {
        if let Some(id) = vocabulary.named(key)? {
            special.set(&format!("{name}_token"), vocabulary.tokens[id]);
        }
    }
    Ok(special)
}

/// Ids that end a text: end of text, end of turn, end of message.
pub fn end_ids(gguf: &Gguf) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        let id = gguf.count(&format!("tokenizer.ggml.{name}_token_id"))?;
        let id = id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX);
        ids.extend(id.filter(|id| !ids.contains(id)));
    }
    Ok(ids)
}

/// The file's `chat_template`: a text, or a list of named ones; `None` where it has none.
pub fn chat_template(gguf: &Gguf) -> Result<Option<Value>> {
    let key = "tokenizer.chat_template";
    let default = gguf.text(key)?;
    let names = gguf.texts("tokenizer.chat_templates")?.unwrap_or_default();
    let mut list: Vec<Value> = Vec::new();
    for name in names {
        if let Some(template) = gguf.text(&format!("{key}.{name}"))? {
            list.push(json!({ "name": name, "template": template }));
        }
    }
    match (default, list.is_empty()) {
        (None, true) => Ok(None),
        (Some(one), true) => Ok(Some(json!(one))),
        (default, false) => {
            let default = default.map(|one| json!({ "name": "default", "template": one }));
            list.extend(default);
            Ok(Some(Value::Array(list)))
        }
    }
}

/// The file's sampling settings and ids as a `generation_config.json`.
pub fn generation_config(gguf: &Gguf) -> Result<Map<String, Value>> {
    let mut map = Map::new();
    map.insert("eos_token_id".into(), json!(end_ids(gguf)?));
    for (name, key) in [("bos_token_id", "bos"), ("pad_token_id", "padding")] {
        if let Some(id) = gguf.count(&format!("tokenizer.ggml.{key}_token_id"))? {
            map.insert(name.into(), json!(id));
        }
    }
    for (name, key) in [
        ("temperature", "temp"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("repetition_penalty", "penalty_repeat"),
    ] {
        if let Some(value) = gguf.number(&format!("general.sampling.{key}"))? {
            map.insert(name.into(), json!(value));
        }
    }
    if let Some(k) = gguf.count("general.sampling.top_k")? {
        map.insert("top_k".into(), json!(k));
    }
    if map.contains_key("temperature") || map.contains_key("top_k") || map.contains_key("top_p") {
        map.insert("do_sample".into(), json!(true));
    }
    Ok(map)
}
