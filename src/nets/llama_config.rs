//! What `config.json` says of a Llama and of the families that differ from it in details. Here every
//! detail becomes data, so that the net itself asks for no family.

use super::config::{Fields, Rule};
use super::rotary::{RotaryConfig, RotaryRules};
use crate::Result;
use crate::ops::pointwise::Act;

/// A Llama or one of its relatives.
#[derive(Clone, Debug)]
pub(super) struct LlamaConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub max_position_embeddings: usize,
    pub heads: usize,
    /// Fewer than the heads: grouped-query attention (Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    pub layers: Vec<LayerKind>,
    /// What [`LayerKind::rope`] counts.
    pub ropes: Vec<RotaryConfig>,
    pub act: Act,
    pub eps: f64,
    /// The checkpoint holds the norms' weights minus one.
    pub norm_offset: bool,
    pub norms: Norms,
    pub qk_norm: QkNorm,
    pub bias: Biases,
    /// `qkv_proj` and `gate_up_proj` in place of five matrices.
    pub fused: bool,
    pub embedding_scale: f32,
    /// Factor of the scores.
    pub attention_scale: f32,
    /// Limits of scores and logits.
    pub attention_cap: Option<f32>,
    pub logit_cap: Option<f32>,
    /// Absent: tied if the checkpoint has no `lm_head.weight`.
    pub tied: Option<bool>,
}

/// In what layers differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LayerKind {
    /// Which of the frequencies; `None` has no positions at all (NoPE, Kazemnejad et al. 2023).
    pub rope: Option<usize>,
    /// Only the last so many tokens are seen.
    pub window: Option<usize>,
}

/// The checkpoint's names of the norms around attention and feed-forward unit, where there are any.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norms {
    pub before_attention: Option<&'static str>,
    pub after_attention: Option<&'static str>,
    pub before_mlp: Option<&'static str>,
    pub after_mlp: Option<&'static str>,
}

/// Llama's.
const BEFORE: Norms = Norms {
    before_attention: Some("input_layernorm"),
    after_attention: None,
    before_mlp: Some("post_attention_layernorm"),
    after_mlp: None,
};
/// OLMo 2's (OLMo et al. 2024).
const AFTER: Norms = Norms {
    before_attention: None,
    after_attention: Some("post_attention_layernorm"),
    before_mlp: None,
    after_mlp: Some("post_feedforward_layernorm"),
};
/// Gemma 2's.
const AROUND: Norms = Norms {
    before_attention: Some("input_layernorm"),
    after_attention: Some("post_attention_layernorm"),
    before_mlp: Some("pre_feedforward_layernorm"),
    after_mlp: Some("post_feedforward_layernorm"),
};

/// RMS norm of queries and keys (`q_norm`, `k_norm`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QkNorm {
    No,
    /// Of each head by itself.
    Head,
    /// Of all heads together.
    Width,
}

/// Which matrices have biases.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Biases {
    pub qkv: bool,
    pub o: bool,
    pub mlp: bool,
}

/// What only other architectures have. Many call themselves after the family they come from.
const RULES: [Rule; 8] = [
    ("num_local_experts", "null|0"),
    ("num_experts", "null|0"),
    ("n_routed_experts", "null|0"),
    ("attention_sinks", "null|false|0"),
    ("use_bidirectional_attention", "null|false"),
    ("attention_chunk_size", "null"),
    ("clip_qkv", "null"),
    ("num_kv_shared_layers", "null|0"),
];

/// Layers beyond this number are a mistake in the file.
const MOST_LAYERS: usize = 4096;

impl LlamaConfig {
    /// Reads the configuration of `family`, one of those in [`super::language`].
    ///
    /// # Errors
    /// `Model` for a field whose value is not supported.
    pub fn read(family: &str, f: Fields<'_>) -> Result<LlamaConfig> {
        f.check("the language model", &RULES)?;
        let config = match family {
            "mistral" => mistral(f),
            "qwen2" => qwen2(f),
            "qwen3" => qwen3(f),
            "smollm3" => smollm3(f),
            "olmo2" => olmo2(f),
            "phi3" => phi3(f),
            "gemma" => gemma(f),
            "gemma2" => gemma2(f),
            "gemma3" => gemma3(f),
            _ => llama(f, Defaults::default()),
        }?;
        let (heads, kv, d) = (config.heads, config.kv_heads, config.head_dim);
        if !heads.is_multiple_of(kv) || !d.is_multiple_of(2) {
            return Err(f.wrong(format!(
                "{heads} heads over {kv} key/value heads of {d} channels make no attention"
            )));
        }
        Ok(config)
    }
}

/// What transformers takes where the configuration is silent, as far as families differ.
struct Defaults {
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    eps: f64,
    theta: f64,
    positions: usize,
    /// See [`RotaryRules`].
    partial: Option<f64>,
}

impl Default for Defaults {
    fn default() -> Defaults {
        let (theta, positions) = (10_000.0, 2048);
        Defaults { kv_heads: None, head_dim: None, eps: 1e-6, theta, positions, partial: None }
    }
}

/// Llama (Touvron et al. 2023; Grattafiori et al. 2024), and what all relatives share with it.
fn llama(f: Fields<'_>, or: Defaults) -> Result<LlamaConfig> {
    let (hidden_size, heads) = (f.size(&["hidden_size"])?, f.size(&["num_attention_heads"])?);
    let head_dim = match f.opt_size("head_dim")?.or(or.head_dim) {
        Some(d) => d,
        None => (hidden_size / heads).max(1),
    };
    let positions = f.size_or("max_position_embeddings", or.positions)?;
    let rules = RotaryRules { head_dim, theta: or.theta, partial: or.partial, positions };
    let layers = f.size(&["num_hidden_layers"])?;
    if layers > MOST_LAYERS {
        return Err(f.wrong(format!("`num_hidden_layers` is {layers}, at most {MOST_LAYERS} here")));
    }
    let attention_bias = f.flag_or("attention_bias", false)?;
    Ok(LlamaConfig {
        vocab_size: f.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: f.size(&["intermediate_size"])?,
        max_position_embeddings: positions,
        heads,
        kv_heads: f.size_or("num_key_value_heads", or.kv_heads.unwrap_or(heads))?,
        head_dim,
        layers: vec![LayerKind { rope: Some(0), window: None }; layers],
        ropes: vec![RotaryConfig::read(f, FULL, rules)?],
        act: f.activation("hidden_act", Act::Silu)?,
        eps: f.number_or("rms_norm_eps", or.eps)?,
        norm_offset: false,
        norms: BEFORE,
        qk_norm: QkNorm::No,
        bias: Biases { qkv: attention_bias, o: attention_bias, mlp: f.flag_or("mlp_bias", false)? },
        fused: false,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_cap: None,
        logit_cap: None,
        tied: f.opt_flag("tie_word_embeddings")?,
    })
}

/// Values of `layer_types`.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// The field `sliding_window`: `null` is none, absent is the family's own.
fn window(f: Fields<'_>, default: Option<usize>) -> Result<Option<usize>> {
    match f.has("sliding_window") {
        true => f.opt_size("sliding_window"),
        false => Ok(default),
    }
}

/// Which layers see a window: by `layer_types`, or else by number.
fn sliding(f: Fields<'_>, layers: usize, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let Some(kinds) = f.list("layer_types")? else { return Ok((0..layers).map(rule).collect()) };
    let kind = |kind: &serde_json::Value| match kind.as_str() {
        Some(FULL) => Ok(false),
        Some(SLIDING) => Ok(true),
        _ => Err(f.wrong(format!(
            "`layer_types` has {kind}, which is not supported; supported are {FULL} and {SLIDING}"
        ))),
    };
    match kinds.len() == layers {
        true => kinds.iter().map(kind).collect(),
        false => Err(f.wrong(format!("`layer_types` has {} of {layers} layers", kinds.len()))),
    }
}

impl LlamaConfig {
    fn slide(&mut self, window: Option<usize>, which: &[bool]) {
        for (layer, slides) in self.layers.iter_mut().zip(which) {
            layer.window = window.filter(|_| *slides);
        }
    }
}

/// Mistral 7B (Jiang et al. 2023): every layer sees a window.
fn mistral(f: Fields<'_>) -> Result<LlamaConfig> {
    let positions = 4096 * 32;
    let mut c = llama(f, Defaults { kv_heads: Some(8), positions, ..Defaults::default() })?;
    c.slide(window(f, Some(4096))?, &vec![true; c.layers.len()]);
    c.bias = Biases::default();
    Ok(c)
}

/// Qwen 2 and 2.5 (Yang et al. 2024): biases on q, k and v; a window from some layer on, if at all.
fn qwen2(f: Fields<'_>) -> Result<LlamaConfig> {
    let mut c = qwen(f, Defaults { positions: 32_768, ..Defaults::default() })?;
    c.bias = Biases { qkv: true, ..Biases::default() };
    Ok(c)
}

/// Qwen 3 (Yang et al. 2025): norms on the heads of q and k, whose size is its own.
fn qwen3(f: Fields<'_>) -> Result<LlamaConfig> {
    let mut c =
        qwen(f, Defaults { head_dim: Some(128), positions: 32_768, ..Defaults::default() })?;
    c.qk_norm = QkNorm::Head;
    Ok(c)
}

fn qwen(f: Fields<'_>, or: Defaults) -> Result<LlamaConfig> {
    let mut c = llama(f, or)?;
    let window = match f.flag_or("use_sliding_window", false)? {
        true => window(f, Some(4096))?,
        false => None,
    };
    let first = f.opt_number("max_window_layers")?.unwrap_or(28.0);
    c.slide(window, &sliding(f, c.layers.len(), |i| i as f64 >= first)?);
    Ok(c)
}

/// SmolLM 3 (Bakouch et al. 2025): every fourth layer has no positions.
fn smollm3(f: Fields<'_>) -> Result<LlamaConfig> {
    let or = Defaults { kv_heads: Some(4), theta: 2e6, positions: 32_768, ..Defaults::default() };
    let mut c = llama(f, or)?;
    let interval = f.size_or("no_rope_layer_interval", 4)?;
    // The list says which layers do have positions, whatever its name.
    let turns: Vec<bool> = match f.numbers("no_rope_layers")? {
        Some(list) if list.len() == c.layers.len() => list.iter().map(|n| *n != 0.0).collect(),
        Some(list) => {
            let (have, need) = (list.len(), c.layers.len());
            return Err(f.wrong(format!("`no_rope_layers` has {have} of {need} layers")));
        }
        None => (1..=c.layers.len()).map(|i| !i.is_multiple_of(interval)).collect(),
    };
    let window = match f.flag_or("use_sliding_window", false)? {
        true => window(f, None)?,
        false => None,
    };
    c.slide(window, &sliding(f, c.layers.len(), |i| !turns[i])?);
    for (layer, turns) in c.layers.iter_mut().zip(turns) {
        layer.rope = turns.then_some(0);
    }
    Ok(c)
}

/// OLMo 2 (OLMo et al. 2024): norms behind the blocks, and on q and k across all heads.
fn olmo2(f: Fields<'_>) -> Result<LlamaConfig> {
    let mut c = llama(f, Defaults { eps: 1e-5, ..Defaults::default() })?;
    c.norms = AFTER;
    c.qk_norm = QkNorm::Width;
    Ok(c)
}

/// Phi-3 and Phi-4 (Abdin et al. 2024): joined matrices, part of each head turns, LongRoPE.
fn phi3(f: Fields<'_>) -> Result<LlamaConfig> {
    let or = Defaults { eps: 1e-5, positions: 4096, partial: Some(1.0), ..Defaults::default() };
    let mut c = llama(f, or)?;
    c.slide(window(f, None)?, &vec![true; c.layers.len()]);
    c.bias = Biases::default();
    c.fused = true;
    Ok(c)
}

/// Gemma (Gemma Team 2024): scaled embeddings, GELU, weights of norms less one, multi-query attention.
fn gemma(f: Fields<'_>) -> Result<LlamaConfig> {
    let or = Defaults { head_dim: Some(256), positions: 8192, ..Defaults::default() };
    gemma_like(f, or)
}

fn gemma_like(f: Fields<'_>, or: Defaults) -> Result<LlamaConfig> {
    let mut c = llama(f, or)?;
    // The first files say `hidden_act` gelu and mean its tanh form.
    let old = f.activation("hidden_act", Act::GeluTanh)?;
    let old = if old == Act::Gelu { Act::GeluTanh } else { old };
    c.act = f.activation("hidden_activation", old)?;
    c.norm_offset = true;
    c.embedding_scale = (c.hidden_size as f32).sqrt();
    c.bias.mlp = false;
    Ok(c)
}

/// Gemma 2 (Gemma Team 2024): norms around the blocks, capped scores and logits, every other layer sees
/// a window.
fn gemma2(f: Fields<'_>) -> Result<LlamaConfig> {
    let (kv_heads, head_dim) = (Some(4), Some(256));
    let mut c =
        gemma_like(f, Defaults { kv_heads, head_dim, positions: 8192, ..Defaults::default() })?;
    c.norms = AROUND;
    c.attention_scale = 1.0 / f.number_or("query_pre_attn_scalar", 256.0)?.sqrt() as f32;
    c.attention_cap = cap(f, "attn_logit_softcapping", Some(50.0))?;
    c.logit_cap = cap(f, "final_logit_softcapping", Some(30.0))?;
    c.slide(window(f, Some(4096))?, &sliding(f, c.layers.len(), |i| i.is_multiple_of(2))?);
    Ok(c)
}

/// Gemma 3 (Gemma Team 2025): five layers with a window and their own frequencies for each without,
/// norms on the heads of q and k.
fn gemma3(f: Fields<'_>) -> Result<LlamaConfig> {
    let (kv_heads, head_dim) = (Some(4), Some(256));
    let (theta, positions) = (1e6, 131_072);
    let or = Defaults { kv_heads, head_dim, theta, positions, ..Defaults::default() };
    let mut c = gemma_like(f, or)?;
    c.norms = AROUND;
    c.qk_norm = QkNorm::Head;
    c.attention_scale = 1.0 / f.number_or("query_pre_attn_scalar", 256.0)?.sqrt() as f32;
    c.attention_cap = cap(f, "attn_logit_softcapping", None)?;
    c.logit_cap = cap(f, "final_logit_softcapping", None)?;
    let own_name = if f.has("sliding_window_pattern") { "" } else { "_" };
    let every = f.size_or(&format!("{own_name}sliding_window_pattern"), 6)?;
    c.slide(
        window(f, Some(4096))?,
        &sliding(f, c.layers.len(), |i| !(i + 1).is_multiple_of(every))?,
    );
    c.ropes.push(local_rope(f, c.head_dim, c.max_position_embeddings)?);
    for layer in &mut c.layers {
        layer.rope = Some(usize::from(layer.window.is_some()));
    }
    Ok(c)
}

/// The frequencies of Gemma 3's layers with a window: an entry of their own in transformers 5, one field
/// before, and never scaled.
fn local_rope(f: Fields<'_>, head_dim: usize, positions: usize) -> Result<RotaryConfig> {
    let rules = RotaryRules { head_dim, theta: 10_000.0, partial: None, positions };
    if f.object("rope_parameters").is_some_and(|p| p.get(SLIDING).is_some()) {
        return RotaryConfig::read(f, SLIDING, rules);
    }
    let theta = f.number_or("rope_local_base_freq", 10_000.0)?;
    let json = serde_json::json!({ "rope_theta": theta });
    RotaryConfig::read(Fields { json: &json, source: f.source }, SLIDING, rules)
}

/// A limit: `null` is none, absent is the family's own.
fn cap(f: Fields<'_>, name: &str, default: Option<f32>) -> Result<Option<f32>> {
    let cap = match f.has(name) {
        true => f.opt_number(name)?.map(|cap| cap as f32),
        false => default,
    };
    match cap {
        Some(cap) if cap <= 0.0 => Err(f.wrong(format!("`{name}` is {cap}, needed is a limit"))),
        cap => Ok(cap),
    }
}
