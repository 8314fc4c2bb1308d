//! Llama (Touvron et al. 2023; Grattafiori et al. 2024): RMSNorm, rotary positions, grouped-query
//! attention, SwiGLU. Names and numbers as transformers' `modeling_llama.py` has them.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::config::{self, wrong};
use crate::Result;
use crate::gpu::{Elem, Gpu};
use crate::graph::{Var, Vector};
use crate::nn::{Bias, Embedding, KvCache, Linear, Loader, RmsNorm};
use crate::ops::attention::{Attention, Mask, attention};
use crate::ops::kv_cache::kv_write;
use crate::ops::pointwise::{Act, gated};
use crate::ops::rope::rope;

/// `config.json` of a Llama. Absent fields have transformers' defaults.
#[derive(Clone, Debug, Deserialize)]
pub struct LlamaConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Fewer than the heads: grouped-query attention (Ainslie et al. 2023).
    #[serde(default)]
    num_key_value_heads: Option<usize>,
    #[serde(default)]
    head_dim: Option<usize>,
    #[serde(default = "default_eps")]
    pub rms_norm_eps: f64,
    #[serde(default = "default_context")]
    pub max_position_embeddings: usize,
    #[serde(default)]
    pub attention_bias: bool,
    #[serde(default)]
    pub mlp_bias: bool,
    /// Absent: tied if the checkpoint has no `lm_head.weight`.
    #[serde(default)]
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    rope_theta: Option<f64>,
    #[serde(default)]
    rope_scaling: Option<Rope>,
    /// Where transformers 5 writes what were `rope_theta` and `rope_scaling`.
    #[serde(default)]
    rope_parameters: Option<Rope>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Rope {
    #[serde(default)]
    rope_theta: Option<f64>,
    #[serde(default, alias = "type")]
    rope_type: Option<String>,
    #[serde(default)]
    factor: Option<f64>,
    #[serde(default)]
    low_freq_factor: Option<f64>,
    #[serde(default)]
    high_freq_factor: Option<f64>,
    #[serde(default)]
    original_max_position_embeddings: Option<f64>,
    #[serde(default)]
    partial_rotary_factor: Option<f64>,
}

fn default_eps() -> f64 {
    1e-6
}
fn default_context() -> usize {
    2048
}

impl LlamaConfig {
    /// From the contents of a `config.json`. Messages name `source`.
    ///
    /// # Errors
    /// `Model` for a field whose value is not supported.
    pub fn from_json(fields: &Value, source: &Path) -> Result<LlamaConfig> {
        let rules = [
            ("architectures", "[\"LlamaForCausalLM\"]|null"),
            ("hidden_act", "\"silu\""),
            ("partial_rotary_factor", "1.0|1|null"),
        ];
        config::check(fields, source, "the language model", &rules)?;
        let config: LlamaConfig =
            serde_json::from_value(fields.clone()).map_err(|e| wrong(source, e))?;
        let (heads, kv, d) = (config.num_attention_heads, config.kv_heads(), config.head_dim());
        if heads == 0 || kv == 0 || !heads.is_multiple_of(kv) || d == 0 || !d.is_multiple_of(2) {
            return Err(wrong(
                source,
                format!(
                    "{heads} heads over {kv} key/value heads of {d} channels make no attention"
                ),
            ));
        }
        config.inv_freq().map_err(|why| wrong(source, why))?;
        Ok(config)
    }
    /// Heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }
    /// Channels of one head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// An empty cache for `context` tokens, stored as `elem` (the graphs' activation type).
    pub fn kv_cache(&self, gpu: &Gpu, context: usize, elem: Elem) -> Result<KvCache> {
        KvCache::new(gpu, self.num_hidden_layers, self.kv_heads() * self.head_dim(), context, elem)
    }

    /// Radians per position of each pair of channels, `[head_dim / 2]`: θ^(−2i/D) (Su et al. 2021),
    /// scaled as transformers' `modeling_rope_utils.py` does.
    fn inv_freq(&self) -> Result<Vec<f32>, String> {
        let rope = self.rope_parameters.clone().or(self.rope_scaling.clone()).unwrap_or_default();
        let theta = rope.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        if rope.partial_rotary_factor.is_some_and(|f| f != 1.0) {
            return Err("`partial_rotary_factor` other than 1 is not supported".into());
        }
        let d = self.head_dim();
        let plain = (0..d / 2).map(|i| theta.powf(-2.0 * i as f64 / d as f64));
        let kind = rope.rope_type.as_deref().unwrap_or("default");
        let need = |value: Option<f64>, name: &str| {
            let missing =
                || format!("`{name}` is needed for rope_type {kind} and must be positive");
            value.filter(|v| *v > 0.0).ok_or_else(missing)
        };
        let scaled: Vec<f64> = match kind {
            "default" => plain.collect(),
            "linear" => {
                let factor = need(rope.factor, "factor")?;
                plain.map(|f| f / factor).collect()
            }
            "llama3" => {
                let factor = need(rope.factor, "factor")?;
                let low = need(rope.low_freq_factor, "low_freq_factor")?;
                let high = need(rope.high_freq_factor, "high_freq_factor")?;
                let original = rope.original_max_position_embeddings;
                let original = need(original, "original_max_position_embeddings")?;
                plain.map(|f| llama3(f, factor, low, high, original)).collect()
            }
            other => {
                return Err(format!(
                    "`rope_type` is \"{other}\"; supported are default, linear and llama3"
                ));
            }
        };
        Ok(scaled.into_iter().map(|f| f as f32).collect())
    }
}

/// Llama 3.1's scaling of one frequency: turns longer than the original context are slowed by
/// `factor`, short ones stay, those between are mixed.
fn llama3(f: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let turns = original * f / std::f64::consts::TAU;
    if turns < low {
        return f / factor;
    }
    if turns > high {
        return f;
    }
    let smooth = (turns - low) / (high - low);
    (1.0 - smooth) * f / factor + smooth * f
}

struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl SelfAttention {
    fn load(ld: &Loader<'_>, c: &LlamaConfig) -> Result<SelfAttention> {
        let (heads, kv_heads, head_dim) = (c.num_attention_heads, c.kv_heads(), c.head_dim());
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let bias = Bias::from(c.attention_bias);
        Ok(SelfAttention {
            q_proj: ld.linear("q_proj", width, c.hidden_size, bias)?,
            k_proj: ld.linear("k_proj", kv_width, c.hidden_size, bias)?,
            v_proj: ld.linear("v_proj", kv_width, c.hidden_size, bias)?,
            o_proj: ld.linear("o_proj", c.hidden_size, width, bias)?,
            heads,
            kv_heads,
            head_dim,
        })
    }

    fn forward<'g>(&self, x: Var<'g>, at: &Place<'g, '_>, cache: [Var<'g>; 2]) -> Var<'g> {
        let q = rope(self.q_proj.forward(x), at.start, at.inv_freq, self.heads);
        let k = rope(self.k_proj.forward(x), at.start, at.inv_freq, self.kv_heads);
        let v = self.v_proj.forward(x);
        let [keys, values] = cache;
        let keys = kv_write(keys, k, at.start);
        let values = kv_write(values, v, at.start);
        let how = Attention {
            heads: self.heads,
            kv_heads: self.kv_heads,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            mask: Mask::Cached { start: at.start },
        };
        self.o_proj.forward(attention(q, keys, values, how))
    }
}

/// Where in the text the tokens stand.
struct Place<'g, 'a> {
    start: Var<'g>,
    inv_freq: &'a Vector,
}

/// SwiGLU (Shazeer 2020): down(silu(gate(x)) · up(x))
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn load(ld: &Loader<'_>, c: &LlamaConfig) -> Result<Mlp> {
        let (inner, width, bias) = (c.intermediate_size, c.hidden_size, Bias::from(c.mlp_bias));
        Ok(Mlp {
            gate_proj: ld.linear("gate_proj", inner, width, bias)?,
            up_proj: ld.linear("up_proj", inner, width, bias)?,
            down_proj: ld.linear("down_proj", width, inner, bias)?,
        })
    }

    fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let (gate, up) = (self.gate_proj.forward(x), self.up_proj.forward(x));
        self.down_proj.forward(gated(gate, up, Act::Silu))
    }
}

struct Layer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
    path: String,
}

impl Layer {
    fn load(ld: &Loader<'_>, c: &LlamaConfig) -> Result<Layer> {
        let norm = |name| ld.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        Ok(Layer {
            input_layernorm: norm("input_layernorm")?,
            self_attn: SelfAttention::load(&ld.pp("self_attn"), c)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(&ld.pp("mlp"), c)?,
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>, at: &Place<'g, '_>, cache: [Var<'g>; 2]) -> Var<'g> {
        let a = self.self_attn.forward(self.input_layernorm.forward(x), at, cache);
        let x = x + a.tap(format!("{}.self_attn", self.path));
        let m = self.mlp.forward(self.post_attention_layernorm.forward(x));
        (x + m.tap(format!("{}.mlp", self.path))).tap(self.path.as_str())
    }
}

/// A Llama on the GPU.
pub struct Llama {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
    inv_freq: Vector,
}

impl Llama {
    /// Loads every tensor; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, config: &LlamaConfig) -> Result<Llama> {
        let (vocab, width) = (config.vocab_size, config.hidden_size);
        let model = ld.pp("model");
        let embed_tokens = model.embedding("embed_tokens", vocab, width)?;
        let layers = model.pp("layers");
        let layer = |i| Layer::load(&layers.pp(i), config);
        let layers = (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?;
        let tied = config.tie_word_embeddings.unwrap_or(!ld.contains("lm_head.weight"));
        let lm_head = match tied {
            true => embed_tokens.as_linear(),
            false => ld.linear("lm_head", vocab, width, Bias::No)?,
        };
        let norm = model.rms_norm("norm", width, config.rms_norm_eps)?;
        let inv_freq = config.inv_freq().map_err(crate::Error::Model)?;
        let inv_freq = Vector::upload(ld.gpu(), "inv_freq", &inv_freq)?;
        Ok(Llama { embed_tokens, layers, norm, lm_head, inv_freq })
    }
    /// Logits f32 `[.., vocab]` of the stream `[.., hidden]`.
    pub fn logits<'g>(&self, x: Var<'g>) -> Var<'g> {
        self.lm_head.forward_f32(self.norm.forward(x)).tap("lm_head")
    }

    /// The stream after the last layer, `[1, S, hidden]`.
    pub fn hidden<'g>(&self, ids: Var<'g>, start: Var<'g>, cache: &KvCache) -> Var<'g> {
        let at = Place { start, inv_freq: &self.inv_freq };
        let x = self.embed_tokens.forward(ids).tap("model.embed_tokens");
        let layers = self.layers.iter().enumerate();
        layers.fold(x, |x, (i, layer)| layer.forward(x, &at, cache.layer(ids.graph(), i)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(extra: &str) -> Result<LlamaConfig, String> {
        let text = format!(
            "{{\"vocab_size\": 8, \"hidden_size\": 64, \"intermediate_size\": 8, \
             \"num_hidden_layers\": 1, \"num_attention_heads\": 4{extra}}}"
        );
        let fields = serde_json::from_str(&text).unwrap();
        LlamaConfig::from_json(&fields, Path::new("config.json")).map_err(|e| e.to_string())
    }

    #[test]
    fn both_places_of_theta_mean_the_same() {
        let new = read(", \"rope_parameters\": {\"rope_theta\": 5e5, \"rope_type\": \"default\"}")
            .unwrap();
        let old = read(", \"rope_theta\": 500000.0, \"rope_scaling\": null").unwrap();
        assert_eq!(new.inv_freq(), old.inv_freq());
        assert_eq!((new.head_dim(), new.kv_heads(), new.inv_freq().unwrap().len()), (16, 4, 8));
    }

    #[test]
    fn llama3_has_three_bands() {
        // Original context 8192, factor 8: fast frequencies stay, slow ones are divided.
        assert_eq!(llama3(1.0, 8.0, 1.0, 4.0, 8192.0), 1.0);
        assert_eq!(llama3(1e-5, 8.0, 1.0, 4.0, 8192.0), 1e-5 / 8.0);
        let middle = llama3(2.5 * std::f64::consts::TAU / 8192.0, 8.0, 1.0, 4.0, 8192.0);
        let expected = 2.5 * std::f64::consts::TAU / 8192.0 * (0.5 / 8.0 + 0.5);
        assert!((middle / expected - 1.0).abs() < 1e-12);
    }

    #[test]
    fn refuses_by_field_and_value() {
        let e = read(", \"hidden_act\": \"gelu\"").unwrap_err();
        assert!(e.contains("`hidden_act`") && e.contains("gelu") && e.contains("silu"), "{e}");
        let e = read(", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4}").unwrap_err();
        assert!(e.contains("yarn") && e.contains("llama3"), "{e}");
        let e = read(", \"num_key_value_heads\": 3").unwrap_err();
        assert!(e.contains("3 key/value heads"), "{e}");
        assert!(read(", \"rope_scaling\": {\"type\": \"linear\"}").unwrap_err().contains("factor"));
    }
}
