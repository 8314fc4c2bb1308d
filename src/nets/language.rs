//! Language models of any family: `model_type` in the configuration decides which net is built.

use std::path::Path;

use serde_json::Value;

use super::config::{self, Fields};
use super::gpt2::{Gpt2, Gpt2Config};
use super::llama::Llama;
use super::llama_config::LlamaConfig;
use super::phi::{Phi, PhiConfig};
use crate::gpu::Gpu;
use crate::graph::Var;
use crate::nn::Loader;
pub use crate::nn::{KvCache, KvFormat};
use crate::ops::embed::take_row;
use crate::weights::{gguf_file, read_config};
use crate::{Error, Result};

/// The values of `model_type` that there is a net for. SmolLM 2 calls itself a Llama, Qwen 2.5 a Qwen 2,
/// Phi-4 a Phi-3; `gemma3` holds the language model beside a vision tower, `gemma3_text` alone.
pub const FAMILIES: [&str; 13] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "olmo2",
    "phi",
    "phi3",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gpt2",
];

/// The configuration of a language model of any family.
#[derive(Clone, Debug)]
pub struct LanguageConfig {
    family: &'static str,
    sizes: Sizes,
    net: NetConfig,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    vocab: usize,
    hidden: usize,
    layers: usize,
    positions: usize,
    /// Heads of keys and values, and the channels of each.
    kv: [usize; 2],
}

#[derive(Clone, Debug)]
enum NetConfig {
    Llama(LlamaConfig),
    Phi(PhiConfig),
    Gpt2(Gpt2Config),
}

impl LanguageConfig {
    /// Reads `config.json` of a model folder (or a file of that form), or the metadata of a GGUF file.
    ///
    /// # Errors
    /// `Model` for another architecture, and for a field whose value is not supported.
    pub fn read(path: impl AsRef<Path>) -> Result<LanguageConfig> {
        let path = path.as_ref();
        let (source, fields) = match gguf_file(path)? {
            Some(file) => read_config(file)?,
            None => config::fields(path)?,
        };
        LanguageConfig::from_json(&fields, &source)
    }

    /// From the contents of a `config.json`. Messages name `source`.
    ///
    /// # Errors
    /// As [`LanguageConfig::read`].
    pub fn from_json(config: &Value, source: &Path) -> Result<LanguageConfig> {
        let f = Fields { json: config, source };
        let named = f.text("model_type")?.unwrap_or("llama");
        let Some(family) = FAMILIES.into_iter().find(|family| *family == named) else {
            return Err(Error::Model(format!(
                "{}: `model_type` is \"{named}\", for which there is no net here; supported are {}",
                source.display(),
                FAMILIES.join(", ")
            )));
        };
        let family = if family == "gemma3_text" { "gemma3" } else { family };
        let beside_vision = f.object("text_config").map(|text| with_defaults(text.json));
        let f = beside_vision.as_ref().map_or(f, |json| Fields { json, source });
        let net = match family {
            "phi" => NetConfig::Phi(PhiConfig::read(f)?),
            "gpt2" => NetConfig::Gpt2(Gpt2Config::read(f)?),
            _ => NetConfig::Llama(LlamaConfig::read(family, f)?),
        };
        Ok(LanguageConfig { family, sizes: net.sizes(), net })
    }

    /// The family: `model_type`, but "gemma3" for "gemma3_text" as well.
    pub fn family(&self) -> &'static str {
        self.family
    }
    /// Rows of the output layer; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.sizes.vocab
    }
    /// Channels of the stream between layers.
    pub fn hidden_size(&self) -> usize {
        self.sizes.hidden
    }
    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.sizes.layers
    }
    /// Tokens of the longest text that the model was made for.
    pub fn max_position_embeddings(&self) -> usize {
        self.sizes.positions
    }
    /// An empty cache for `context` tokens. Floats must be the graphs' activation type.
    pub fn kv_cache(
        &self,
        gpu: &Gpu,
        context: usize,
        format: impl Into<KvFormat>,
    ) -> Result<KvCache> {
        KvCache::new(gpu, self.sizes.layers, self.sizes.kv, context, format)
    }
}

/// The language model's part of a Gemma 3 with a vision tower. Its file leaves out what transformers'
/// `Gemma3TextConfig` has as defaults.
fn with_defaults(text: &Value) -> Value {
    let mut all = serde_json::json!({
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8
    });
    if let (Some(all), Some(text)) = (all.as_object_mut(), text.as_object()) {
        all.extend(text.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    all
}

impl NetConfig {
    fn sizes(&self) -> Sizes {
        match self {
            NetConfig::Llama(c) => Sizes {
                vocab: c.vocab_size,
                hidden: c.hidden_size,
                layers: c.layers.len(),
                positions: c.max_position_embeddings,
                kv: [c.kv_heads, c.head_dim],
            },
            NetConfig::Phi(c) => Sizes {
                vocab: c.vocab_size,
                hidden: c.hidden_size,
                layers: c.layers,
                positions: c.max_position_embeddings,
                kv: [c.kv_heads, c.head_dim()],
            },
            NetConfig::Gpt2(c) => Sizes {
                vocab: c.vocab_size,
                hidden: c.hidden_size,
                layers: c.layers,
                positions: c.positions,
                kv: [c.heads, c.hidden_size / c.heads],
            },
        }
    }
}

/// The text that is being read.
pub(super) struct Text<'g, 'a> {
    /// Position of the first token, u32 `[1]`.
    pub start: Var<'g>,
    pub cache: &'a KvCache,
}

/// What a family's net is.
pub(super) trait Net {
    /// The stream `[1, S, hidden]` after the last layer, for the tokens `ids` (u32 `[1, S]`).
    fn hidden<'g>(&self, ids: Var<'g>, text: &Text<'g, '_>) -> Var<'g>;
    /// Logits f32 `[.., vocab]` of the stream `[.., hidden]`.
    fn logits<'g>(&self, x: Var<'g>) -> Var<'g>;
}

/// A language model on the GPU.
pub struct Language {
    config: LanguageConfig,
    net: Box<dyn Net>,
}

impl Language {
    /// Loads every tensor; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, config: &LanguageConfig) -> Result<Language> {
        let net: Box<dyn Net> = match &config.net {
            NetConfig::Llama(c) => Box::new(Llama::load(ld, c)?),
            NetConfig::Phi(c) => Box::new(Phi::load(ld, c)?),
            NetConfig::Gpt2(c) => Box::new(Gpt2::load(ld, c)?),
        };
        Ok(Language { config: config.clone(), net })
    }
    /// The configuration it was built from.
    pub fn config(&self) -> &LanguageConfig {
        &self.config
    }

    /// The logits f32 `[1, vocab]` that follow token number `last` (u32 `[1]`) of `ids` (u32
    /// `[1, S]`), whose first token stands at position `start` (u32 `[1]`). Keys and values of all S
    /// tokens go into the cache, so that the same call serves a prompt, a part of one, and one token.
    #[track_caller]
    pub fn forward<'g>(
        &self,
        ids: Var<'g>,
        start: Var<'g>,
        last: Var<'g>,
        cache: &KvCache,
    ) -> Var<'g> {
        let x = take_row(self.net.hidden(ids, &Text { start, cache }), last);
        self.net.logits(x).reshape([1, self.config.vocab_size()])
    }

    /// The logits f32 `[1, S, vocab]` after every token.
    #[track_caller]
    pub fn logits_all<'g>(&self, ids: Var<'g>, start: Var<'g>, cache: &KvCache) -> Var<'g> {
        self.net.logits(self.net.hidden(ids, &Text { start, cache }))
    }
}

#[cfg(test)]
#[path = "language_tests.rs"]
mod tests;
