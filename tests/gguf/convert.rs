//! A Hugging Face folder to GGUF as llama.cpp's convert_hf_to_gguf.py does it, for the families that
//! have golden tensors here.

use inknib::tensor::Tensor;
use serde_json::Value;

use crate::writer::{File, Meta, Stored};

/// Names of a layer's parts, Hugging Face's and GGUF's.
const PARTS: [(&str, &str); 24] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.dense", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.fc2", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("ln_1", "attn_norm"),
    ("ln_2", "ffn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
    ("post_attention_layernorm", "ffn_norm"),
];

fn name_of(model: &str, name: &str) -> String {
    let (stem, part) = name.rsplit_once('.').unwrap();
    let layer = ["model.layers.", "transformer.h."].iter().find_map(|p| stem.strip_prefix(p));
    let Some((number, stem)) = layer.and_then(|rest| rest.split_once('.')) else {
        let stem = match stem {
            "model.embed_tokens" | "transformer.wte" => "token_embd",
            "transformer.wpe" => "position_embd",
            "model.norm" | "model.final_layernorm" | "transformer.ln_f" => "output_norm",
            "lm_head" => "output",
            other => panic!("{other}"),
        };
        return format!("{stem}.{part}");
    };
    let behind = ["gemma2", "gemma3_text", "olmo2"].contains(&model);
    let to = match stem {
        "post_attention_layernorm" if behind => "post_attention_norm",
        stem => PARTS.iter().find(|(hf, _)| *hf == stem).unwrap_or_else(|| panic!("{stem}")).1,
    };
    format!("blk.{number}.{to}.{part}")
}

/// Rows of each head from halves to pairs: `reshape(heads, 2, d/2, ..).swapaxes(1, 2)`.
fn interleave(values: &[f32], rows: usize, head: usize) -> Vec<f32> {
    let width = values.len() / rows;
    let row = |r: usize| {
        let (h, c) = (r / head, r % head);
        let from = h * head + (c % 2) * (head / 2) + c / 2;
        &values[from * width..(from + 1) * width]
    };
    (0..rows).flat_map(|r| row(r).iter().copied()).collect()
}

fn number(config: &Value, keys: &[&str]) -> Option<f64> {
    keys.iter().find_map(|key| config.get(*key)?.as_f64())
}

/// `rope_parameters` of transformers 5 or `rope_scaling` of 4; Gemma 3's for its full layers.
fn rope(config: &Value) -> Value {
    let whole = ["rope_scaling", "rope_parameters"].iter().find_map(|k| config.get(*k));
    let whole = whole.cloned().unwrap_or_default();
    whole.get("full_attention").cloned().unwrap_or(whole)
}

/// The file; matrices are kept as F16, which the golden checkpoints have, everything else as F32.
pub fn convert(config: &Value, tensors: &[(String, Tensor)]) -> File {
    let model = config["model_type"].as_str().unwrap();
    let mut file = File::default();
    let arch = match model {
        "mistral" => "llama",
        "phi" => "phi2",
        "gemma3_text" => "gemma3",
        other => other,
    };
    file.text("general.architecture", arch);
    metadata(config, arch, &mut file);
    let heads = number(config, &["num_attention_heads", "n_head"]).unwrap() as usize;
    let width = number(config, &["hidden_size", "n_embd"]).unwrap() as usize;
    let head = number(config, &["head_dim"]).map_or(width / heads, |d| d as usize);
    for (name, tensor) in tensors {
        let (mut values, mut shape) = (tensor.to_f32(), tensor.shape.clone());
        if ["llama", "smollm3"].contains(&arch)
            && ["q_proj", "k_proj"].iter().any(|part| name.contains(part))
        {
            values = interleave(&values, shape[0], head);
        }
        if arch.starts_with("gemma") && name.ends_with("norm.weight") {
            values.iter_mut().for_each(|v| *v += 1.0);
        }
        if arch == "gpt2" && shape.len() == 2 && name.contains(".h.") {
            let (k, n) = (shape[0], shape[1]);
            values = (0..n * k).map(|i| values[i % k * n + i / k]).collect();
            shape = vec![n, k];
        }
        let name = name_of(model, name);
        if shape.len() == 1 {
            file.f32(&name, &shape, &values);
        } else {
            let bytes = values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
            file.tensors.push(Stored { name, shape, ty: 1, bytes });
        }
    }
    rope_tensors(config, head, &mut file);
    file
}

fn metadata(config: &Value, arch: &str, file: &mut File) {
    let mut count = |key: &str, from: &[&str]| {
        if let Some(n) = number(config, from) {
            file.put(&format!("{arch}.{key}"), Meta::U32(n as u32));
        }
    };
    count("embedding_length", &["hidden_size", "n_embd"]);
    count("block_count", &["num_hidden_layers", "n_layer"]);
    count("feed_forward_length", &["intermediate_size"]);
    count("attention.head_count", &["num_attention_heads", "n_head"]);
    count("attention.head_count_kv", &["num_key_value_heads"]);
    count("context_length", &["max_position_embeddings", "n_positions"]);
    count("attention.key_length", &["head_dim"]);
    count("attention.value_length", &["head_dim"]);
    count("attention.sliding_window", &["sliding_window"]);
    count("rope.scaling.original_context_length", &["original_max_position_embeddings"]);
    if arch == "gpt2" {
        let width = number(config, &["n_embd"]).unwrap() as u32;
        file.put("gpt2.feed_forward_length", Meta::U32(4 * width));
    }
    let rope = rope(config);
    let mut real = |key: &str, value: Option<f64>| {
        if let Some(value) = value {
            file.put(&format!("{arch}.{key}"), Meta::F32(value as f32));
        }
    };
    real("attention.layer_norm_rms_epsilon", number(config, &["rms_norm_eps"]));
    real("attention.layer_norm_epsilon", number(config, &["layer_norm_eps", "layer_norm_epsilon"]));
    real("rope.freq_base", number(&rope, &["rope_theta"]).or(number(config, &["rope_theta"])));
    real("attn_logit_softcapping", number(config, &["attn_logit_softcapping"]));
    real("final_logit_softcapping", number(config, &["final_logit_softcapping"]));
    let kind = rope["rope_type"].as_str().unwrap_or_default().to_string();
    if ["linear", "yarn"].contains(&kind.as_str()) {
        real("rope.scaling.factor", rope["factor"].as_f64());
        file.text(&format!("{arch}.rope.scaling.type"), &kind);
        if let Some(n) = number(&rope, &["original_max_position_embeddings"]) {
            file.put(&format!("{arch}.rope.scaling.original_context_length"), Meta::U32(n as u32));
        }
    }
    if let Some(share) = number(&rope, &["partial_rotary_factor"]).filter(|share| *share < 1.0) {
        let width = number(config, &["hidden_size"]).unwrap();
        let head = width / number(config, &["num_attention_heads"]).unwrap();
        file.put(&format!("{arch}.rope.dimension_count"), Meta::U32((share * head) as u32));
    }
    if arch == "gemma3" {
        let kinds = config["layer_types"].as_array().unwrap();
        let flags = kinds.iter().map(|kind| kind == "sliding_attention").collect();
        file.put("gemma3.attention.sliding_window_pattern", Meta::Bools(flags));
    }
}

/// The factors of rotary frequencies that the converter computes (`generate_extra_tensors`).
fn rope_tensors(config: &Value, head: usize, file: &mut File) {
    let rope = rope(config);
    let list = |key: &str| -> Vec<f32> {
        rope[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    };
    match rope["rope_type"].as_str() {
        Some("llama3") => {
            let get = |key: &str| rope[key].as_f64().unwrap();
            let (factor, original) = (get("factor"), get("original_max_position_embeddings"));
            let (low, high) = (get("low_freq_factor"), get("high_freq_factor"));
            let theta = number(config, &["rope_theta"]).unwrap();
            let factors = (0..head / 2).map(|i| {
                let wave = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head as f64);
                if wave < original / high {
                    return 1.0;
                }
                if wave > original / low {
                    return factor as f32;
                }
                let smooth = (original / wave - low) / (high - low);
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            });
            let factors: Vec<f32> = factors.collect();
            file.f32("rope_freqs.weight", &[head / 2], &factors);
        }
        Some("longrope") => {
            let (long, short) = (list("long_factor"), list("short_factor"));
            file.f32("rope_factors_long.weight", &[long.len()], &long);
            file.f32("rope_factors_short.weight", &[short.len()], &short);
            let scale = number(config, &["max_position_embeddings"]).unwrap()
                / number(config, &["original_max_position_embeddings"]).unwrap();
            let original = number(config, &["original_max_position_embeddings"]).unwrap();
            let attention = (1.0 + scale.ln() / original.ln()).sqrt();
            file.put("phi3.rope.scaling.attn_factor", Meta::F32(attention as f32));
        }
        _ => {}
    }
}
