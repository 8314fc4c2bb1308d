//! Names, orders and configurations: what is taken apart, what is recognised, what is refused.

use inknib::weights::{Checkpoint, Gguf, WeightStore, read_config};
use serde_json::{Value, json};

use crate::golden;
use crate::writer::{File, Meta, Stored};

fn head(arch: &str) -> File {
    let mut file = File::default();
    file.text("general.architecture", arch);
    for (key, value) in [
        ("embedding_length", 64),
        ("block_count", 1),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 128),
    ] {
        file.put(&format!("{arch}.{key}"), Meta::U32(value));
    }
    file.f32("token_embd.weight", &[8, 64], &[0.5; 512]);
    file
}

fn store(file: &File) -> Result<WeightStore, String> {
    let gguf = Gguf::from_bytes("x.gguf", file.bytes()).map_err(|e| e.to_string())?;
    WeightStore::from_gguf(gguf).map_err(|e| {
        assert_eq!(e.exit_code(), 4);
        e.to_string()
    })
}

fn config(file: &File) -> Result<Value, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.gguf"), file.bytes()).unwrap();
    read_config(folder.path()).map(|(_, config)| config).map_err(|e| e.to_string())
}

#[test]
fn phi_2_files_with_one_matrix_for_q_k_and_v_are_taken_apart() {
    let mut file = head("phi2");
    file.put("phi2.attention.head_count_kv", Meta::U32(4));
    let values: Vec<f32> = (0..192 * 64).map(|i| i as f32).collect();
    file.f32("blk.0.attn_qkv.weight", &[192, 64], &values);
    file.f32("blk.0.attn_qkv.bias", &[192], &values[..192]);
    let store = store(&file).unwrap();
    for (i, part) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
        let name = format!("model.layers.0.self_attn.{part}");
        let rows = i * 64..(i + 1) * 64;
        let weight = store.values(&format!("{name}.weight")).unwrap();
        assert_eq!(weight, &values[rows.start * 64..rows.end * 64], "{part}");
        assert_eq!(store.vector(&format!("{name}.bias"), 64).unwrap(), &values[rows], "{part}");
    }
    file.tensors.retain(|t| t.name != "blk.0.attn_qkv.bias");
    file.f32("blk.0.attn_qkv.bias", &[100], &values[..100]);
    let error = self::store(&file).unwrap_err();
    assert!(error.contains("`blk.0.attn_qkv.bias`") && error.contains("100 rows"), "{error}");
}

#[test]
fn transposed_matrices_keep_their_blocks() {
    let blocks = Gguf::open(golden("blocks.gguf")).unwrap();
    for (ty, number) in [("Q4_0", 2), ("Q8_0", 8), ("Q4_K", 12), ("F16", 1)] {
        let tensor = &blocks.tensors()[&format!("{ty}.weight")];
        let mut file = head("gpt2");
        for name in ["blk.0.ffn_up.weight", "blk.0.ffn_down.weight"] {
            let (bytes, ty) = match name {
                "blk.0.ffn_up.weight" => (blocks.data(tensor).to_vec(), number),
                // Something quantized beside the F16 case.
                _ => (blocks.data(&blocks.tensors()["Q8_0.weight"]).to_vec(), 8),
            };
            file.tensors.push(Stored { name: name.into(), shape: vec![3, 256], ty, bytes });
        }
        let store = store(&file).unwrap();
        let name = "transformer.h.0.mlp.c_fc.weight";
        assert_eq!(store.shape(name).unwrap(), [256, 3]);
        let spec = "int4".parse().unwrap();
        let packed = store.pack_transposed(name, [256, 3], &spec, true).unwrap();
        assert_eq!((packed.layout.rows, packed.layout.channels), (3, 256));
        let values = store.values(name).unwrap();
        let turned: Vec<f32> = (0..768).map(|i| values[i % 256 * 3 + i / 256]).collect();
        // Exact but for Q4_K, whose scales are rounded to 11 bits.
        let least = if ty == "Q4_K" { 65.0 } else { f64::INFINITY };
        assert!(packed.sqnr_against(&turned) >= least, "{ty}");
        let plain = store.pack_transposed(name, [256, 3], &"fp32".parse().unwrap(), false).unwrap();
        assert_eq!(plain.decode(), turned, "{ty}");
        assert!(store.pack_transposed(name, [3, 256], &spec, true).is_err(), "{ty}");
    }
}

#[test]
fn llama_3_is_recognised_by_its_factors() {
    // Llama 3.2: θ = 500,000, heads of 64, factor 32; computed as llama.cpp's converter does, in f32.
    let mut file = head("llama");
    file.put("llama.attention.key_length", Meta::U32(64));
    file.put("llama.rope.freq_base", Meta::F32(500_000.0));
    let factors = |factor: f32, original: f32| -> Vec<f32> {
        (0..32)
            .map(|i| {
                let wave = 2.0 * std::f32::consts::PI * 500_000f32.powf(2.0 * i as f32 / 64.0);
                if wave < original / 4.0 {
                    1.0
                } else if wave > original {
                    factor
                } else {
                    let smooth = (original / wave - 1.0) / 3.0;
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            })
            .collect()
    };
    let mut with = |values: &[f32]| {
        file.tensors.retain(|t| t.name != "rope_freqs.weight");
        file.f32("rope_freqs.weight", &[values.len()], values);
        config(&file)
    };
    let found = with(&factors(32.0, 8192.0)).unwrap();
    assert_eq!(
        found["rope_scaling"],
        json!({ "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 })
    );
    assert_eq!((&found["head_dim"], &found["rope_theta"]), (&json!(64), &json!(500_000.0)));
    // Another original context: the factors themselves.
    let other = with(&factors(32.0, 4096.0)).unwrap();
    assert_eq!(other["rope_scaling"]["rope_type"], "longrope");
    assert_eq!(other["rope_scaling"]["long_factor"].as_array().unwrap().len(), 32);
    assert_eq!(with(&[1.0; 32]).unwrap().get("rope_scaling"), None);
    let error = with(&[1.0; 31]).unwrap_err();
    assert!(error.contains("rope_freqs.weight") && error.contains("31"), "{error}");
    assert!(with(&[-1.0; 32]).unwrap_err().contains("not positive"));
}

#[test]
fn what_a_family_fixes_is_said() {
    let mut file = head("gemma2");
    file.put("gemma2.attention.sliding_window", Meta::U32(64));
    file.put("gemma2.block_count", Meta::U32(46));
    let found = config(&file).unwrap();
    // The 27B model divides its queries by the root of width over heads, 64 / 4 here.
    assert_eq!(found["query_pre_attn_scalar"], 16);
    assert_eq!(found["layer_types"][0], "sliding_attention");
    assert_eq!(found["layer_types"][1], "full_attention");
    let found = config(&head("smollm3")).unwrap();
    assert_eq!(found["no_rope_layers"], json!([1]));
    let mut file = head("qwen2");
    file.put("qwen2.attention.layer_norm_rms_epsilon", Meta::F32(1e-6));
    file.put("tokenizer.ggml.eos_token_id", Meta::U32(7));
    let found = config(&file).unwrap();
    assert_eq!((&found["rms_norm_eps"], &found["eos_token_id"]), (&json!(1e-6), &json!(7)));
    assert_eq!((&found["tie_word_embeddings"], &found["vocab_size"]), (&json!(true), &json!(8)));
    file.f32("output.weight", &[8, 64], &[0.0; 512]);
    assert_eq!(config(&file).unwrap()["tie_word_embeddings"], false);
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    let error = store(&head("mamba")).unwrap_err();
    assert!(error.contains("`mamba`") && error.contains("qwen3"), "{error}");
    let mut file = head("llama");
    file.tensors.push(Stored {
        name: "blk.0.ffn_up.weight".into(),
        shape: vec![1, 256],
        ty: 10,
        bytes: vec![0; 84],
    });
    let error = store(&file).unwrap_err();
    assert!(error.contains("Q2_K") && error.contains("llama-quantize"), "{error}");
    let mut file = head("llama");
    file.f32("blk.0.ffn_gate_exps.weight", &[2, 2], &[0.0; 4]);
    let error = store(&file).unwrap_err();
    assert!(error.contains("blk.0.ffn_gate_exps.weight"), "{error}");
    let mut file = head("phi3");
    file.f32("blk.0.attn_qkv.bias", &[4], &[0.0; 4]);
    assert!(store(&file).unwrap_err().contains("blk.0.attn_qkv.bias"));
    let mut file = head("llama");
    file.put("split.count", Meta::U32(2));
    assert!(config(&file).unwrap_err().contains("llama-gguf-split"));
    let mut file = head("llama");
    assert_eq!(config(&file).unwrap()["attention_bias"], false);
    file.f32("blk.0.attn_q.bias", &[64], &[0.0; 64]);
    assert_eq!(config(&file).unwrap()["attention_bias"], true);
    let mut file = head("llama");
    file.put("llama.expert_count", Meta::U32(8));
    assert!(config(&file).unwrap_err().contains("mixture of experts"));
    let mut file = head("llama");
    file.put("llama.attention.head_count", Meta::U32(0));
    assert!(store(&file).unwrap_err().contains("llama.attention.head_count"));
    let mut file = head("llama");
    file.put("llama.rope.scaling.type", Meta::Text("spiral".into()));
    file.put("llama.rope.scaling.factor", Meta::F32(2.0));
    assert!(config(&file).unwrap_err().contains("spiral"));
    file.text("llama.rope.scaling.type", "linear");
    assert_eq!(config(&file).unwrap()["rope_scaling"]["factor"], 2.0);
}

#[test]
fn a_folder_stands_for_its_only_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("a.gguf", &head("llama").bytes());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.config()["model_type"], "llama");
    assert!(checkpoint.store().contains("model.embed_tokens.weight"));
    assert!(checkpoint.path().ends_with("a.gguf"));
    write("b.gguf", &head("llama").bytes());
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("2 GGUF files"), "{error}");
    write("model.bin", b"PK\x03\x04");
    let error = Checkpoint::open(folder.path().join("model.bin")).unwrap_err().to_string();
    assert!(error.contains("pickle"), "{error}");
}
