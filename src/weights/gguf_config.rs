//! A GGUF file's metadata as the `config.json` that transformers would have for the same model.
//!
//! Keys: ggml's docs/gguf.md and gguf-py's constants.py. What llama.cpp knows by heart of a family
//! and does not store (activation functions, which layers slide) is added as llama.cpp's `load_hparams`
//! has it.

use serde_json::{Map, Value, json};

use super::gguf::Gguf;
use super::gguf_blocks::decode;
use super::gguf_names::{Architecture, Heads};
use crate::{Error, Result};

use Architecture::*;

/// The configuration; `Model` errors name the key that is missing or out of range.
pub(super) fn config(gguf: &Gguf) -> Result<Value> {
    let architecture = Architecture::of(gguf)?;
    let reader = Reader { gguf, architecture, heads: Heads::of(gguf, architecture)? };
    reader.refuse_experts()?;
    reader.refuse_parts()?;
    let mut map = Map::new();
    for (key, value) in match architecture {
        Gpt2 => reader.gpt2()?,
        _ => reader.rotary()?,
    } {
        if !value.is_null() {
            map.insert(key.to_string(), value);
        }
    }
    reader.own(&mut map)?;
    for (key, name) in
        [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")]
    {
        if let Some(id) = gguf.count(&format!("tokenizer.ggml.{name}_token_id"))? {
            map.insert(key.to_string(), json!(id));
        }
    }
    Ok(Value::Object(map))
}

struct Reader<'a> {
    gguf: &'a Gguf,
    architecture: Architecture,
    heads: Heads,
}

type Fields = Vec<(&'static str, Value)>;

impl Reader<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    fn count(&self, name: &str) -> Result<usize> {
        let key = self.key(name);
        self.gguf.count(&key)?.ok_or_else(|| self.gguf.bad(&key, "is missing"))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.gguf.number(&self.key(name))
    }

    fn tied(&self) -> bool {
        !self.gguf.tensors().contains_key("output.weight")
    }

    /// Rows of the embedding: files exist whose `vocab_size` says something else.
    fn vocabulary(&self) -> Result<usize> {
        let table = self.gguf.tensors().get("token_embd.weight");
        table.and_then(|t| t.shape.first().copied()).ok_or_else(|| {
            Error::Model(format!("{}: no tensor `token_embd.weight`", self.gguf.path().display()))
        })
    }

    fn refuse_experts(&self) -> Result<()> {
        match self.gguf.count(&self.key("expert_count"))? {
            None | Some(0) => Ok(()),
            Some(_) => Err(self.gguf.bad(
                &self.key("expert_count"),
                "makes it a mixture of experts, which there is no net for here",
            )),
        }
    }

    fn refuse_parts(&self) -> Result<()> {
        match self.gguf.count("split.count")? {
            None | Some(0 | 1) => Ok(()),
            Some(n) => Err(self.gguf.bad(
                "split.count",
                &format!("says this is one of {n} parts; join them with llama-gguf-split --merge"),
            )),
        }
    }

    fn gpt2(&self) -> Result<Fields> {
        Ok(vec![
            ("architectures", json!(["GPT2LMHeadModel"])),
            ("model_type", json!("gpt2")),
            ("vocab_size", json!(self.vocabulary()?)),
            ("n_embd", json!(self.count("embedding_length")?)),
            ("n_layer", json!(self.count("block_count")?)),
            ("n_head", json!(self.heads.heads)),
            ("n_inner", json!(self.count("feed_forward_length")?)),
            ("n_positions", json!(self.count("context_length")?)),
            ("layer_norm_epsilon", json!(self.number("attention.layer_norm_epsilon")?)),
            ("activation_function", json!("gelu_new")),
            ("tie_word_embeddings", json!(self.tied())),
        ])
    }

    /// What all families with rotary positions have.
    fn rotary(&self) -> Result<Fields> {
        let Heads { heads, kv, dim } = self.heads;
        let rotated = self.gguf.count(&self.key("rope.dimension_count"))?.unwrap_or(dim);
        if rotated == 0 || rotated > dim {
            return Err(self.gguf.bad(&self.key("rope.dimension_count"), "is out of range"));
        }
        let partial = (rotated != dim).then_some(rotated as f64 / dim as f64);
        let (kind, class) = match self.architecture {
            Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
            Gemma => ("gemma", "GemmaForCausalLM"),
            Gemma2 => ("gemma2", "Gemma2ForCausalLM"),
            Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
            Phi2 => ("phi", "PhiForCausalLM"),
            Phi3 => ("phi3", "Phi3ForCausalLM"),
            SmolLm3 => ("smollm3", "SmolLM3ForCausalLM"),
            Olmo2 => ("olmo2", "Olmo2ForCausalLM"),
            Llama | Gpt2 => ("llama", "LlamaForCausalLM"),
        };
        let activation = match self.architecture {
            Gemma | Gemma2 | Gemma3 => "gelu_pytorch_tanh",
            Phi2 => "gelu_new",
            _ => "silu",
        };
        Ok(vec![
            ("architectures", json!([class])),
            ("model_type", json!(kind)),
            ("vocab_size", json!(self.vocabulary()?)),
            ("hidden_size", json!(self.count("embedding_length")?)),
            ("intermediate_size", json!(self.count("feed_forward_length")?)),
            ("num_hidden_layers", json!(self.count("block_count")?)),
            ("num_attention_heads", json!(heads)),
            ("num_key_value_heads", json!(kv)),
            ("head_dim", json!(dim)),
            ("hidden_act", json!(activation)),
            ("max_position_embeddings", json!(self.count("context_length")?)),
            ("rms_norm_eps", json!(self.number("attention.layer_norm_rms_epsilon")?)),
            ("layer_norm_eps", json!(self.number("attention.layer_norm_epsilon")?)),
            ("rope_theta", json!(self.number("rope.freq_base")?.unwrap_or(10_000.0))),
            ("partial_rotary_factor", json!(partial)),
            ("rope_scaling", self.rope_scaling(rotated)?),
            ("tie_word_embeddings", json!(self.tied())),
        ])
    }

    /// What only one family has.
    fn own(&self, map: &mut Map<String, Value>) -> Result<()> {
        let mut put = |key: &str, value: Value| map.insert(key.to_string(), value);
        let has = |name: &str| self.gguf.tensors().contains_key(name);
        if !matches!(self.architecture, Gpt2 | Phi2 | Phi3 | Qwen2) {
            put("attention_bias", json!(has("blk.0.attn_q.bias")));
            put("mlp_bias", json!(has("blk.0.ffn_up.bias")));
        }
        let window = self.gguf.count(&self.key("attention.sliding_window"))?.filter(|n| *n > 0);
        let layers = self.count("block_count")?;
        match self.architecture {
            Gemma | Gemma2 | Gemma3 => {
                put("hidden_activation", json!("gelu_pytorch_tanh"));
                if self.architecture == Gemma {
                    return Ok(());
                }
                let (softcap, final_cap) = ("attn_logit_softcapping", "final_logit_softcapping");
                put(softcap, json!(self.number(softcap)?));
                put(final_cap, json!(self.number(final_cap)?));
                put("query_pre_attn_scalar", json!(self.query_scale(layers)?));
                put("sliding_window", json!(window));
                let every = if self.architecture == Gemma2 { 2 } else { 6 };
                put("layer_types", self.layer_types(layers, every, window.is_some())?);
                if self.architecture == Gemma3 {
                    let local = self.number("rope.freq_base_swa")?;
                    put("rope_local_base_freq", json!(local.unwrap_or(10_000.0)));
                }
            }
            Phi3 => {
                put("sliding_window", json!(window));
                let original =
                    self.gguf.count(&self.key("rope.scaling.original_context_length"))?;
                if let Some(original) = original {
                    put("original_max_position_embeddings", json!(original));
                }
            }
            SmolLm3 => {
                // Every fourth layer is without rotary positions (`n_no_rope_layer_step`).
                let rotary = (0..layers).map(|i| u8::from((i + 1) % 4 != 0));
                put("no_rope_layers", json!(rotary.collect::<Vec<u8>>()));
                put("no_rope_layer_interval", json!(4));
            }
            Olmo2 if window.is_some() => {
                return Err(self.gguf.bad(
                    &self.key("attention.sliding_window"),
                    "makes it an OLMo 3, which there is no net for here",
                ));
            }
            Llama if window.is_some() => {
                put("model_type", json!("mistral"));
                put("architectures", json!(["MistralForCausalLM"]));
                put("sliding_window", json!(window));
            }
            _ => {}
        }
        Ok(())
    }

    /// The number whose root divides the queries: the head's width, but for the 27B models, whose
    /// number of layers tells them (llama.cpp's `f_attention_scale`).
    fn query_scale(&self, layers: usize) -> Result<usize> {
        Ok(match (self.architecture, layers) {
            (Gemma2, 46) | (Gemma3, 62) => self.count("embedding_length")? / self.heads.heads,
            _ => self.heads.dim,
        })
    }

    /// Which layers see a window only: all but each `every`th, unless the file says which.
    fn layer_types(&self, layers: usize, every: usize, window: bool) -> Result<Value> {
        let key = self.key("attention.sliding_window_pattern");
        let flags = self.gguf.flags(&key)?;
        let every = match &flags {
            None => self.gguf.count(&key)?.filter(|n| *n > 0).unwrap_or(every),
            Some(flags) if flags.len() < layers => {
                return Err(self.gguf.bad(&key, "is shorter than the layers are many"));
            }
            Some(_) => every,
        };
        let slides = |i: usize| match &flags {
            Some(flags) => flags[i],
            None => !(i + 1).is_multiple_of(every),
        };
        let names = (0..layers).map(|i| match window && slides(i) {
            true => "sliding_attention",
            false => "full_attention",
        });
        Ok(json!(names.collect::<Vec<_>>()))
    }

    fn rope_scaling(&self, rotated: usize) -> Result<Value> {
        let original = self.gguf.count(&self.key("rope.scaling.original_context_length"))?;
        let factors = |name| self.factors(name, rotated);
        if let Some(factors) = factors("rope_freqs.weight")? {
            return self.llama3(&factors, rotated);
        }
        let (long, short) =
            (factors("rope_factors_long.weight")?, factors("rope_factors_short.weight")?);
        if let (Some(long), Some(short)) = (long, short) {
            let mut map = json!({ "rope_type": "longrope", "long_factor": long, "short_factor": short,
                "original_max_position_embeddings": original });
            // transformers derives it from the two contexts; the file may state it.
            if let Some(factor) = self.number("rope.scaling.attn_factor")? {
                map["attention_factor"] = json!(factor);
            }
            return Ok(map);
        }
        let key = self.key("rope.scaling.type");
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("rope.scale_linear")?,
        };
        match (self.gguf.text(&key)?, factor) {
            (Some("none" | "longrope"), _) | (_, None | Some(0.0 | 1.0)) => Ok(Value::Null),
            (None | Some("linear"), Some(factor)) => {
                Ok(json!({ "rope_type": "linear", "factor": factor }))
            }
            (Some("yarn"), Some(factor)) => Ok(json!({ "rope_type": "yarn", "factor": factor,
                "original_max_position_embeddings": original })),
            (Some(other), _) => {
                Err(self.gguf.bad(&key, &format!("is `{other}`, which is not known here")))
            }
        }
    }

    /// The factors of rotary frequencies, one for each pair of channels.
    fn factors(&self, name: &str, rotated: usize) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.gguf.tensors().get(name) else { return Ok(None) };
        let mut values = vec![0.0f32; tensor.len().min(rotated)];
        if tensor.len() != rotated / 2 || tensor.ty.is_quantized() || !tensor.ty.is_supported() {
            return Err(Error::Model(format!(
                "{}: tensor `{name}` has {} numbers ({}), the head needs {}",
                self.gguf.path().display(),
                tensor.len(),
                tensor.ty,
                rotated / 2
            )));
        }
        decode(tensor.ty, self.gguf.data(tensor), &mut values);
        match values.iter().all(|v| v.is_finite() && *v > 0.0) {
            true => Ok(Some(values)),
            false => Err(Error::Model(format!(
                "{}: tensor `{name}` holds numbers that are not positive",
                self.gguf.path().display()
            ))),
        }
    }

    /// Llama 3.1's scaling, of which the file has only the factors that follow from it. Those of Meta's
    /// own models are recognised; others go as they are through "longrope", whose short and long
    /// factors are then the same.
    fn llama3(&self, factors: &[f32], rotated: usize) -> Result<Value> {
        let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
        if factor == 1.0 {
            return Ok(Value::Null);
        }
        let (low, high, original) = (1.0, 4.0, 8192.0);
        let meta = (0..factors.len()).map(|i| {
            let frequency = theta.powf(-2.0 * i as f64 / rotated as f64);
            let turns = original * frequency / std::f64::consts::TAU;
            let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / factor + smooth)
        });
        // The file's factors were computed in f32 from an f32 frequency.
        let is_meta = meta.zip(factors).all(|(a, &b)| (a / f64::from(b) - 1.0).abs() < 1e-4);
        Ok(match is_meta {
            true => json!({ "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
                "high_freq_factor": high, "original_max_position_embeddings": 8192 }),
            false => json!({ "rope_type": "longrope", "long_factor": factors,
                "short_factor": factors, "attention_factor": 1.0,
                "original_max_position_embeddings": self.count("context_length")? }),
        })
    }
}
