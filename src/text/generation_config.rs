//! `generation_config.json`: how a model wants to be sampled, and what the command line changes.
//!
//! Fields and defaults are transformers' (`GenerationConfig`, generation/configuration_utils.py).

use std::path::Path;

use serde_json::{Map, Value};

use super::gguf_vocab::generation_config;
use super::sampler::SamplerOptions;
use super::tokenizer::{ids_of, read_object};
use crate::weights::{Gguf, gguf_file};
use crate::{Error, Result};

/// A model's own generation settings.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end the text; `eos_token_id` may be one id or a list.
    pub eos_token_ids: Vec<u32>,
    pub bos_token_id: Option<u32>,
    pub pad_token_id: Option<u32>,
    /// false means greedy, whatever the temperature says.
    pub do_sample: bool,
    pub temperature: f32,
    /// Candidates kept; 0 is "all".
    pub top_k: usize,
    pub top_p: f32,
    /// Share of the best token's probability below which tokens are dropped; 0 is "off".
    pub min_p: f32,
    pub typical_p: f32,
    pub repetition_penalty: f32,
    /// Most tokens to add to the prompt, where the model states it.
    pub max_new_tokens: Option<usize>,
    /// Most tokens of prompt and answer together, where the model states it.
    pub max_length: Option<usize>,
    pub stop_strings: Vec<String>,
    /// Never chosen.
    pub suppress_tokens: Vec<u32>,
    /// No token ends the text before so many.
    pub min_new_tokens: usize,
    /// No sequence of so many tokens comes twice; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// Sequences that are not completed.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Not chosen as the first token.
    pub begin_suppress_tokens: Vec<u32>,
    pub epsilon_cutoff: f32,
    pub eta_cutoff: f32,
    /// Settings of the file that change what is generated and are not followed here.
    pub unserved: Vec<String>,
}

/// Fields with the value that changes nothing; with another one they ask for what is not done here.
const UNSERVED: [(&str, f64); 8] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("penalty_alpha", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("guidance_scale", 1.0),
    ("top_h", 0.0),
    ("min_length", 0.0),
    ("num_return_sequences", 1.0),
];
/// Fields that ask for something whenever they are there.
const UNSERVED_LISTS: [&str; 4] = [
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
];

fn unserved(map: &Map<String, Value>) -> Vec<String> {
    let numbers = UNSERVED.iter().filter_map(|(name, neutral)| {
        let value = map.get(*name)?.as_f64()?;
        (value != *neutral).then(|| format!("{name} {value}"))
    });
    let lists = UNSERVED_LISTS.iter().filter(|name| match map.get(**name) {
        None | Some(Value::Null) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(_) => true,
    });
    numbers.chain(lists.map(|name| name.to_string())).collect()
}

impl Default for GenerationConfig {
    fn default() -> GenerationConfig {
        GenerationConfig {
            eos_token_ids: Vec::new(),
            bos_token_id: None,
            pad_token_id: None,
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            max_new_tokens: None,
            max_length: None,
            stop_strings: Vec::new(),
            suppress_tokens: Vec::new(),
            min_new_tokens: 0,
            no_repeat_ngram_size: 0,
            bad_words_ids: Vec::new(),
            begin_suppress_tokens: Vec::new(),
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            unserved: Vec::new(),
        }
    }
}

/// What the user asks for on the command line or in a request; `None` keeps the model's setting.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// 0 is greedy; any other value turns sampling on.
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    /// Tokens that the penalties look back on.
    pub penalty_last_n: Option<usize>,
    pub seed: Option<u64>,
    pub max_new_tokens: Option<usize>,
    pub logit_bias: Vec<(u32, f32)>,
    pub top_logprobs: usize,
    /// Texts that end an answer, besides the model's own.
    pub stop: Vec<String>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` of a model folder. Without that file the ids of `config.json`
    /// stand with transformers' defaults, as transformers derives it. A GGUF file has its own inside.
    pub fn load(folder: impl AsRef<Path>) -> Result<GenerationConfig> {
        let folder = folder.as_ref();
        if let Some(file) = gguf_file(folder)? {
            return GenerationConfig::from_map(&generation_config(&Gguf::open(&file)?)?, &file);
        }
        let file = folder.join("generation_config.json");
        if let Some(map) = read_object(&file)? {
            return GenerationConfig::from_map(&map, &file);
        }
        let file = folder.join("config.json");
        let mut map = read_object(&file)?.unwrap_or_default();
        // Old configs carry a whole set of generation fields at values that nobody chose
        // ("max_length": 20), so only the ids are taken.
        map.retain(|key, _| key.ends_with("_token_id"));
        GenerationConfig::from_map(&map, &file)
    }

    fn from_map(map: &Map<String, Value>, file: &Path) -> Result<GenerationConfig> {
        let default = GenerationConfig::default();
        let fields = Fields { map, file };
        let id = |key| map.get(key).map(ids_of).unwrap_or_default().first().copied();
        Ok(GenerationConfig {
            eos_token_ids: map.get("eos_token_id").map(ids_of).unwrap_or_default(),
            bos_token_id: id("bos_token_id"),
            pad_token_id: id("pad_token_id"),
            do_sample: fields.flag("do_sample")?.unwrap_or(default.do_sample),
            temperature: fields.number("temperature")?.unwrap_or(default.temperature),
            top_k: fields.count("top_k")?.unwrap_or(default.top_k),
            top_p: fields.number("top_p")?.unwrap_or(default.top_p),
            min_p: fields.number("min_p")?.unwrap_or(default.min_p),
            typical_p: fields.number("typical_p")?.unwrap_or(default.typical_p),
            repetition_penalty: fields
                .number("repetition_penalty")?
                .unwrap_or(default.repetition_penalty),
            max_new_tokens: fields.count("max_new_tokens")?,
            max_length: fields.count("max_length")?,
            stop_strings: fields.strings("stop_strings")?,
            suppress_tokens: map.get("suppress_tokens").map(ids_of).unwrap_or_default(),
            min_new_tokens: fields.count("min_new_tokens")?.unwrap_or(0),
            no_repeat_ngram_size: fields.count("no_repeat_ngram_size")?.unwrap_or(0),
            bad_words_ids: match map.get("bad_words_ids") {
                Some(Value::Array(words)) => words.iter().map(ids_of).collect(),
                _ => Vec::new(),
            },
            begin_suppress_tokens: map.get("begin_suppress_tokens").map(ids_of).unwrap_or_default(),
            epsilon_cutoff: fields.number("epsilon_cutoff")?.unwrap_or(0.0),
            eta_cutoff: fields.number("eta_cutoff")?.unwrap_or(0.0),
            unserved: unserved(map),
        })
    }

    /// Does this combination sample, or is it greedy? A user who names any sampling setting wants
    /// sampling, and temperature 0 means greedy.
    pub fn samples(&self, over: &Overrides) -> bool {
        let asked = over.top_k.is_some_and(|k| k != 1)
            || over.top_p.is_some()
            || over.min_p.is_some()
            || over.typical_p.is_some();
        match over.temperature {
            // A value out of range is for the sampler to refuse, not for greedy to hide.
            Some(t) => t != 0.0,
            None => (self.do_sample || asked) && self.temperature > 0.0,
        }
    }

    /// The sampler's options: the model's settings with the user's on top. Greedy comes out as
    /// temperature 0.
    pub fn sampler_options(&self, over: &Overrides) -> SamplerOptions {
        let default = SamplerOptions::default();
        let temperature = over.temperature.unwrap_or(self.temperature);
        SamplerOptions {
            temperature: if self.samples(over) { temperature } else { 0.0 },
            top_k: over.top_k.unwrap_or(self.top_k),
            top_p: over.top_p.unwrap_or(self.top_p),
            min_p: over.min_p.unwrap_or(self.min_p),
            typical_p: over.typical_p.unwrap_or(self.typical_p),
            repetition_penalty: over.repetition_penalty.unwrap_or(self.repetition_penalty),
            presence_penalty: over.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: over.frequency_penalty.unwrap_or(default.frequency_penalty),
            penalty_last_n: over.penalty_last_n.unwrap_or(default.penalty_last_n),
            logit_bias: self
                .suppress_tokens
                .iter()
                .map(|id| (*id, f32::NEG_INFINITY))
                .chain(over.logit_bias.iter().copied())
                .collect(),
            no_repeat_ngram: self.no_repeat_ngram_size,
            bad_words: self.bad_words_ids.clone(),
            begin_suppress: self.begin_suppress_tokens.clone(),
            epsilon_cutoff: self.epsilon_cutoff,
            eta_cutoff: self.eta_cutoff,
            min_tokens: self.min_new_tokens,
            end_tokens: if self.min_new_tokens > 0 { self.eos_token_ids.clone() } else { vec![] },
            seed: over.seed.unwrap_or(default.seed),
            top_logprobs: over.top_logprobs,
        }
    }

    /// Most tokens to generate after a prompt of `prompt` tokens in a context of `context` tokens: the
    /// user's limit, else the model's, else what the context leaves room for. The context always binds.
    pub fn new_token_limit(&self, over: &Overrides, prompt: usize, context: usize) -> usize {
        let room = context.saturating_sub(prompt);
        let stated = over.max_new_tokens.or(self.max_new_tokens);
        let by_length = self.max_length.map(|n| n.saturating_sub(prompt));
        stated.or(by_length).unwrap_or(room).min(room)
    }
}

struct Fields<'a> {
    map: &'a Map<String, Value>,
    file: &'a Path,
}

impl Fields<'_> {
    /// The value under a key; JSON's null is "not stated".
    fn get<T>(
        &self,
        key: &str,
        what: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| {
                Error::Model(format!("{}: {key} is {value}, not {what}", self.file.display()))
            }),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f32>> {
        self.get(key, "a number", |v| v.as_f64().map(|n| n as f32))
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        self.get(key, "a whole number", |v| v.as_u64().map(|n| n as usize))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", Value::as_bool)
    }

    fn strings(&self, key: &str) -> Result<Vec<String>> {
        let read = |v: &Value| match v {
            Value::String(one) => Some(vec![one.clone()]),
            Value::Array(list) => list.iter().map(|s| s.as_str().map(String::from)).collect(),
            _ => None,
        };
        Ok(self.get(key, "a string or a list of strings", read)?.unwrap_or_default())
    }
}
