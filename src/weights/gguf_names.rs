//! GGUF's tensors under Hugging Face's names and in Hugging Face's order.
//!
//! The names are those of gguf-py's `tensor_mapping.py`, the changes of order and value those of
//! llama.cpp's convert_hf_to_gguf.py, undone: the rows of Llama's and SmolLM3's q and k are
//! interleaved there, Gemma's norms hold weight + 1, GPT-2's matrices lie as `[N, K]`.

use std::collections::BTreeMap;

use super::gguf::Gguf;
use super::gguf_repack::Rows;
use crate::{Error, Result};

/// A family of models as `general.architecture` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Gemma,
    Gemma2,
    Gemma3,
    Phi2,
    Phi3,
    Gpt2,
    SmolLm3,
    Olmo2,
}

use Architecture::*;

/// The families there are, by the name that the file and its metadata keys have.
pub const ARCHITECTURES: [(&str, Architecture); 11] = [
    ("llama", Llama),
    ("qwen2", Qwen2),
    ("qwen3", Qwen3),
    ("gemma", Gemma),
    ("gemma2", Gemma2),
    ("gemma3", Gemma3),
    ("phi2", Phi2),
    ("phi3", Phi3),
    ("gpt2", Gpt2),
    ("smollm3", SmolLm3),
    ("olmo2", Olmo2),
];

impl Architecture {
    /// What the file says it is.
    ///
    /// # Errors
    /// `Model` for a family there is no net for, naming those there are.
    pub fn of(gguf: &Gguf) -> Result<Architecture> {
        let name = gguf.text("general.architecture")?.unwrap_or_default();
        let found = ARCHITECTURES.iter().find(|(n, _)| *n == name);
        found.map(|(_, architecture)| *architecture).ok_or_else(|| {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
            Error::Model(format!(
                "{}: the architecture `{name}` is not one that runs here; there are {}",
                gguf.path().display(),
                known.join(", ")
            ))
        })
    }

    /// The prefix of its metadata keys.
    pub fn name(self) -> &'static str {
        ARCHITECTURES.iter().find(|(_, a)| *a == self).map_or("", |(name, _)| name)
    }
}

/// Where a tensor of Hugging Face's name comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Source {
    /// The name in the file.
    pub(super) tensor: String,
    /// Hugging Face's shape.
    pub(super) shape: Vec<usize>,
    pub(super) rows: Rows,
    /// Hugging Face has `[K, N]` where the file has `[N, K]` (GPT-2's `Conv1D`).
    pub(super) transposed: bool,
    /// What is subtracted from every value: 1 for Gemma's norms.
    pub(super) minus: f32,
}

/// Tensors that hold factors of rotary frequencies; they go into the configuration.
pub(super) const ROPE_TENSORS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// All tensors of the file under Hugging Face's names.
///
/// # Errors
/// `Model` for a tensor that the family does not have, and for types without a decoder.
pub(super) fn sources(gguf: &Gguf, architecture: Architecture) -> Result<BTreeMap<String, Source>> {
    check_types(gguf)?;
    let heads = Heads::of(gguf, architecture)?;
    let mut found = BTreeMap::new();
    for (name, tensor) in gguf.tensors() {
        if ROPE_TENSORS.contains(&name.as_str()) {
            continue;
        }
        let refuse =
            |why: &str| Error::Model(format!("{}: tensor `{name}` {why}", gguf.path().display()));
        let unknown =
            || refuse(&format!("does not belong to a model of the kind {}", architecture.name()));
        let (target, kind) = hugging_face(architecture, name).ok_or_else(unknown)?;
        if tensor.shape.len() > 2 {
            return Err(refuse(&format!(
                "has the shape {:?}; 1 or 2 axes are expected",
                tensor.shape
            )));
        }
        let plain = Source {
            tensor: name.clone(),
            shape: tensor.shape.clone(),
            rows: Rows::default(),
            transposed: false,
            minus: 0.0,
        };
        let rows = tensor.shape[0];
        let many = match kind {
            Kind::Plain => vec![(target, plain)],
            Kind::Norm => {
                let gemma = matches!(architecture, Gemma | Gemma2 | Gemma3);
                vec![(target, Source { minus: if gemma { 1.0 } else { 0.0 }, ..plain })]
            }
            Kind::Rotated => {
                let interleaved = matches!(architecture, Llama | SmolLm3).then_some(heads.dim);
                if interleaved.is_some_and(|d| !d.is_multiple_of(2) || !rows.is_multiple_of(d)) {
                    return Err(refuse(&format!(
                        "has {rows} rows, no multiple of the head's {}",
                        heads.dim
                    )));
                }
                vec![(target, Source { rows: Rows { first: 0, interleaved }, ..plain })]
            }
            Kind::Conv1d => {
                let shape = tensor.shape.iter().rev().copied().collect();
                let transposed = tensor.shape.len() == 2;
                vec![(target, Source { shape, transposed, ..plain })]
            }
            Kind::Fused => split(&target, plain, &heads).ok_or_else(|| {
                refuse(&format!("has {rows} rows, which do not divide into q, k and v"))
            })?,
        };
        for (target, source) in many {
            if let Some(other) = found.insert(target.clone(), source) {
                return Err(refuse(&format!("and `{}` are both `{target}`", other.tensor)));
            }
        }
    }
    Ok(found)
}

/// Refuses files with types that there is no decoder for.
fn check_types(gguf: &Gguf) -> Result<()> {
    let mut types: Vec<_> =
        gguf.tensors().values().map(|t| t.ty).filter(|ty| !ty.is_supported()).collect();
    types.sort();
    types.dedup();
    if types.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = types.iter().map(|ty| ty.to_string()).collect();
    Err(Error::Model(format!(
        "{}: it holds tensors of the type {}, which is not read here; take the same model as Q4_0, \
         Q4_K_M, Q5_K_M, Q6_K or Q8_0, or quantize it to one of these with llama.cpp's \
         llama-quantize",
        gguf.path().display(),
        names.join(", ")
    )))
}

/// Numbers of channels that taking apart and reordering need.
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) kv: usize,
    pub(super) dim: usize,
}

impl Heads {
    pub(super) fn of(gguf: &Gguf, architecture: Architecture) -> Result<Heads> {
        let key = |name: &str| format!("{}.{name}", architecture.name());
        let need = |name: &str| {
            let key = key(name);
            let value = gguf.count(&key)?;
            value.filter(|n| *n > 0).ok_or_else(|| gguf.bad(&key, "is missing or zero"))
        };
        let heads = need("attention.head_count")?;
        let kv = gguf.count(&key("attention.head_count_kv"))?.unwrap_or(heads);
        let dim = gguf.count(&key("attention.key_length"))?;
        let values = gguf.count(&key("attention.value_length"))?;
        if values.is_some() && values != dim {
            return Err(gguf.bad(&key("attention.value_length"), "differs from the keys' length"));
        }
        let width = need("embedding_length")?;
        let dim = dim.unwrap_or(width / heads);
        if kv == 0 || dim == 0 || !heads.is_multiple_of(kv) || heads.checked_mul(dim).is_none() {
            return Err(gguf.bad(
                &key("attention.head_count"),
                &format!(
                    "of {heads} over {kv} key/value heads of {dim} channels makes no attention"
                ),
            ));
        }
        Ok(Heads { heads, kv, dim })
    }
}

/// What is to be done with a tensor beside renaming it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Norm,
    /// q and k, which take rotary positions.
    Rotated,
    Conv1d,
    /// q, k and v in one.
    Fused,
}

/// q, k and v of a fused tensor whose Hugging Face name ends in `qkv_proj`.
fn split(target: &str, whole: Source, heads: &Heads) -> Option<Vec<(String, Source)>> {
    let sizes = [heads.heads, heads.kv, heads.kv].map(|n| n.checked_mul(heads.dim));
    let [Some(q), Some(k), Some(v)] = sizes else { return None };
    if q.checked_add(k)?.checked_add(v)? != whole.shape[0] {
        return None;
    }
    let part = |name: &str, first: usize, rows: usize| {
        let mut shape = whole.shape.clone();
        shape[0] = rows;
        let rows = Rows { first, interleaved: None };
        (target.replace("qkv_proj", name), Source { shape, rows, ..whole.clone() })
    };
    Some(vec![part("q_proj", 0, q), part("k_proj", q, k), part("v_proj", q + k, v)])
}

/// Hugging Face's name of a tensor of the file, and what is to be done with it.
fn hugging_face(architecture: Architecture, name: &str) -> Option<(String, Kind)> {
    let (stem, part) = name.rsplit_once('.').filter(|(_, p)| ["weight", "bias"].contains(p))?;
    let gpt2 = architecture == Gpt2;
    let Some((layer, stem)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.'))
    else {
        let (to, kind) = match (stem, architecture) {
            ("token_embd", Gpt2) => ("transformer.wte", Kind::Plain),
            ("position_embd", Gpt2) => ("transformer.wpe", Kind::Plain),
            ("output_norm", Gpt2) => ("transformer.ln_f", Kind::Norm),
            ("token_embd", _) => ("model.embed_tokens", Kind::Plain),
            ("output_norm", Phi2) => ("model.final_layernorm", Kind::Norm),
            ("output_norm", _) => ("model.norm", Kind::Norm),
            ("output", _) => ("lm_head", Kind::Plain),
            _ => return None,
        };
        return Some((format!("{to}.{part}"), kind));
    };
    if layer.is_empty() || !layer.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    if part == "bias" && !has_bias(architecture, stem) {
        return None;
    }
    let (to, kind) = match architecture {
        Gpt2 => gpt2_layer(stem)?,
        Phi2 => phi2_layer(stem)?,
        _ => llama_layer(architecture, stem)?,
    };
    let root = if gpt2 { "transformer.h" } else { "model.layers" };
    Some((format!("{root}.{layer}.{to}.{part}"), kind))
}

/// Whether the net has a bias there, or may have one (`attention_bias` and `mlp_bias`).
fn has_bias(architecture: Architecture, stem: &str) -> bool {
    let attention = ["attn_q", "attn_k", "attn_v", "attn_output"].contains(&stem);
    match architecture {
        Gpt2 | Phi2 => true,
        Qwen2 => attention && stem != "attn_output",
        Llama | SmolLm3 => attention || ["ffn_gate", "ffn_up", "ffn_down"].contains(&stem),
        Qwen3 | Gemma | Gemma2 | Gemma3 | Olmo2 => attention,
        Phi3 => false,
    }
}

/// Llama and those built like it.
fn llama_layer(architecture: Architecture, stem: &str) -> Option<(&'static str, Kind)> {
    // Gemma 2 and 3 have a norm on either side of attention and MLP, OLMo 2 only behind them.
    let sandwich = matches!(architecture, Gemma2 | Gemma3);
    let behind = sandwich || architecture == Olmo2;
    let q_norm = matches!(architecture, Qwen3 | Gemma3 | Olmo2);
    let phi3 = architecture == Phi3;
    Some(match stem {
        "attn_norm" if architecture != Olmo2 => ("input_layernorm", Kind::Norm),
        "ffn_norm" if sandwich => ("pre_feedforward_layernorm", Kind::Norm),
        "ffn_norm" if architecture != Olmo2 => ("post_attention_layernorm", Kind::Norm),
        "post_attention_norm" if behind => ("post_attention_layernorm", Kind::Norm),
        "post_ffw_norm" if behind => ("post_feedforward_layernorm", Kind::Norm),
        "attn_q_norm" if q_norm => ("self_attn.q_norm", Kind::Norm),
        "attn_k_norm" if q_norm => ("self_attn.k_norm", Kind::Norm),
        "attn_qkv" if phi3 => ("self_attn.qkv_proj", Kind::Plain),
        "ffn_up" if phi3 => ("mlp.gate_up_proj", Kind::Plain),
        "attn_q" if !phi3 => ("self_attn.q_proj", Kind::Rotated),
        "attn_k" if !phi3 => ("self_attn.k_proj", Kind::Rotated),
        "attn_v" if !phi3 => ("self_attn.v_proj", Kind::Plain),
        "attn_output" => ("self_attn.o_proj", Kind::Plain),
        "ffn_gate" if !phi3 => ("mlp.gate_proj", Kind::Plain),
        "ffn_up" => ("mlp.up_proj", Kind::Plain),
        "ffn_down" => ("mlp.down_proj", Kind::Plain),
        _ => return None,
    })
}

fn phi2_layer(stem: &str) -> Option<(&'static str, Kind)> {
    Some(match stem {
        "attn_norm" => ("input_layernorm", Kind::Norm),
        "attn_qkv" => ("self_attn.qkv_proj", Kind::Fused),
        "attn_q" => ("self_attn.q_proj", Kind::Plain),
        "attn_k" => ("self_attn.k_proj", Kind::Plain),
        "attn_v" => ("self_attn.v_proj", Kind::Plain),
        "attn_output" => ("self_attn.dense", Kind::Plain),
        "ffn_up" => ("mlp.fc1", Kind::Plain),
        "ffn_down" => ("mlp.fc2", Kind::Plain),
        _ => return None,
    })
}

fn gpt2_layer(stem: &str) -> Option<(&'static str, Kind)> {
    Some(match stem {
        "attn_norm" => ("ln_1", Kind::Norm),
        "ffn_norm" => ("ln_2", Kind::Norm),
        "attn_qkv" => ("attn.c_attn", Kind::Conv1d),
        "attn_output" => ("attn.c_proj", Kind::Conv1d),
        "ffn_up" => ("mlp.c_fc", Kind::Conv1d),
        "ffn_down" => ("mlp.c_proj", Kind::Conv1d),
        _ => return None,
    })
}
