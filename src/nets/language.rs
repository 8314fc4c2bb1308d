//! Language models of any family: `model_type` in the configuration decides which net is built.

use std::path::Path;

use serde_json::Value;

use super::config;
use super::llama::{Llama, LlamaConfig};
use crate::gpu::{Elem, Gpu};
use crate::graph::Var;
pub use crate::nn::KvCache;
use crate::nn::Loader;
use crate::ops::embed::take_row;
use crate::weights::{gguf_file, read_config};
use crate::{Error, Result};

/// The values of `model_type` that there is a net for.
pub const FAMILIES: [&str; 1] = ["llama"];

/// The configuration of a language model of any family.
#[derive(Clone, Debug)]
pub struct LanguageConfig {
    family: &'static str,
    net: LlamaConfig,
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
        let named = config.get("model_type").and_then(Value::as_str).unwrap_or("llama");
        let Some(family) = FAMILIES.into_iter().find(|f| *f == named) else {
            return Err(Error::Model(format!(
                "{}: `model_type` is \"{named}\", for which there is no net here; supported are {}",
                source.display(),
                FAMILIES.join(", ")
            )));
        };
        Ok(LanguageConfig { family, net: LlamaConfig::from_json(config, source)? })
    }

    /// `model_type`: "llama".
    pub fn family(&self) -> &'static str {
        self.family
    }
    /// Rows of the output layer; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.net.vocab_size
    }
    /// Channels of the stream between layers.
    pub fn hidden_size(&self) -> usize {
        self.net.hidden_size
    }
    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.net.num_hidden_layers
    }
    /// Tokens of the longest text that the model was made for.
    pub fn max_position_embeddings(&self) -> usize {
        self.net.max_position_embeddings
    }
    /// An empty cache for `context` tokens, stored as `elem` (the graphs' activation type).
    pub fn kv_cache(&self, gpu: &Gpu, context: usize, elem: Elem) -> Result<KvCache> {
        self.net.kv_cache(gpu, context, elem)
    }
}

/// A language model on the GPU.
pub struct Language {
    config: LanguageConfig,
    net: Llama,
}

impl Language {
    /// Loads every tensor; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, config: &LanguageConfig) -> Result<Language> {
        Ok(Language { net: Llama::load(ld, &config.net)?, config: config.clone() })
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
        let x = take_row(self.net.hidden(ids, start, cache), last);
        self.net.logits(x).reshape([1, self.config.vocab_size()])
    }

    /// The logits f32 `[1, S, vocab]` after every token.
    #[track_caller]
    pub fn logits_all<'g>(&self, ids: Var<'g>, start: Var<'g>, cache: &KvCache) -> Var<'g> {
        self.net.logits(self.net.hidden(ids, start, cache))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_family_is_refused_with_the_names_of_those_there_are() {
        let fields = serde_json::json!({ "model_type": "mamba" });
        let e = LanguageConfig::from_json(&fields, Path::new("x/config.json")).unwrap_err();
        let e = e.to_string();
        assert!(e.contains("x/config.json") && e.contains("mamba") && e.contains("llama"), "{e}");
    }
}
