//! The same numbers as a folder and as GGUF give the same logits.

use std::path::{Path, PathBuf};

use inknib::gpu::{Elem, Gpu};
use inknib::graph::Kernels;
use inknib::nets::language::{Language, LanguageConfig};
use inknib::nn::Loader;
use inknib::probe::perplexity::{Windows, read_text, score, windows};
use inknib::probe::scorer::Scorer;
use inknib::quant::Recipe;
use inknib::tensor::Tensor;
use inknib::text::tokenizer::Tokenizer;
use inknib::weights::{Checkpoint, GgmlType, WeightStore, read_tensors};
use serde_json::{Value, json};

use crate::convert::convert;
use crate::writer::{File, Meta, Stored};
use crate::{gpu, shared};

fn load(gpu: &Gpu, config: &LanguageConfig, store: &WeightStore, weights: &str) -> Language {
    let recipe = Recipe::from_argument(weights, "llm").unwrap();
    Language::load(&Loader::new(gpu, store, &recipe), config).unwrap()
}

fn logits(gpu: &Gpu, net: &Language) -> Vec<f32> {
    let ids: Vec<u32> =
        (0..40u32).map(|i| (i * 37 + 5) % net.config().vocab_size() as u32).collect();
    let mut scorer = Scorer::new(gpu, net, (64, Elem::F32, Kernels::Fast)).unwrap();
    scorer.logits(&ids, 0, 0).unwrap()
}

/// A golden folder's configuration, as far as GGUF can say it: what a family fixes and the file does
/// not hold is set to what llama.cpp takes.
fn sayable(case: &str, folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    match case {
        "gemma2" | "gemma3" => config["query_pre_attn_scalar"] = config["head_dim"].clone(),
        "smollm3" => {
            config["no_rope_layers"] = json!([1, 1, 1]);
            config["no_rope_layer_interval"] = json!(4);
        }
        "qwen2_yarn" => {
            config["use_sliding_window"] = json!(false);
            config["sliding_window"] = Value::Null;
        }
        _ => {}
    }
    config
}

fn same_logits(gpu: &Gpu, case: &str) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
    let config = sayable(case, &folder);
    let tensors = read_tensors(&folder).unwrap();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.gguf");
    std::fs::write(&path, convert(&config, &tensors).bytes()).unwrap();

    let original = WeightStore::open(&folder).unwrap();
    let from_folder = LanguageConfig::from_json(&config, &folder.join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(place.path()).unwrap();
    let from_file = LanguageConfig::from_json(checkpoint.config(), checkpoint.path()).unwrap();
    assert_eq!(from_file.family(), from_folder.family(), "{case}");
    assert!(checkpoint.store().names().eq(original.names()), "{case}");
    for name in original.names() {
        let (a, b) = (checkpoint.store().values(name).unwrap(), original.values(name).unwrap());
        // Gemma's norms lose the last bits to the one that was added: half an ulp of 2.
        let close = a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1.2e-7);
        assert!(a == b || case.starts_with("gemma") && close, "{case}: {name}");
    }
    for weights in ["fp32", "int8"] {
        let ours = logits(gpu, &load(gpu, &from_file, checkpoint.store(), weights));
        let theirs = logits(gpu, &load(gpu, &from_folder, &original, weights));
        let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let spread = theirs.iter().map(|v| v * v).sum::<f32>() / theirs.len() as f32;
        println!("{case} {weights}: {worst:.1e} of {:.2}", spread.sqrt());
        assert!(spread.sqrt() > 0.01, "{case}: the logits say nothing");
        // Weights are the same; frequencies and norms may differ in the last bit of an f32.
        assert!(worst <= 2e-5 * spread.sqrt().max(1.0), "{case} {weights}: {worst:e}");
    }
}

#[test]
fn every_family_gives_the_logits_of_its_folder() {
    let Some(gpu) = gpu() else { return };
    for case in [
        "llama",
        "llama3rope",
        "mistral",
        "qwen2",
        "qwen2_yarn",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3",
        "phi",
        "phi3",
        "phi3_long",
        "gpt2",
        "smollm3",
        "olmo2",
    ] {
        same_logits(gpu, case);
    }
}

/// A net of one layer whose every matrix, the tied embedding included, holds random blocks of a type.
fn of_blocks(number: u32) -> File {
    let ty = GgmlType::from_number(number).unwrap();
    let mut file = File::default();
    file.text("general.architecture", "llama");
    for (key, value) in [
        ("embedding_length", 256),
        ("block_count", 1),
        ("feed_forward_length", 512),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 64),
    ] {
        file.put(&format!("llama.{key}"), Meta::U32(value));
    }
    file.put("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5));
    for name in ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"] {
        file.f32(name, &[256], &[1.0; 256]);
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        // Knuth's MMIX generator; its high bits are random enough.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32
    };
    for (name, rows, columns) in [
        ("token_embd", 96, 256),
        ("blk.0.attn_q", 256, 256),
        ("blk.0.attn_k", 128, 256),
        ("blk.0.attn_v", 128, 256),
        ("blk.0.attn_output", 256, 256),
        ("blk.0.ffn_gate", 512, 256),
        ("blk.0.ffn_up", 512, 256),
        ("blk.0.ffn_down", 256, 512),
    ] {
        let blocks = rows * columns / ty.block();
        let mut bytes: Vec<u8> = (0..blocks * ty.block_bytes()).map(|_| random() as u8).collect();
        for block in bytes.chunks_mut(ty.block_bytes()) {
            // Scales that make weights of about a tenth, minima that make their mean about zero.
            let put = |block: &mut [u8], at: usize, value: f32| {
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
            };
            let about = 0.75 + (random() % 1024) as f32 / 2048.0;
            match ty {
                GgmlType::Q6K => put(block, 208, 7e-5 * about),
                GgmlType::Q5_0 => put(block, 0, 1e-2 * about),
                GgmlType::Q8_0 => put(block, 0, 1.5e-3 * about),
                GgmlType::Q4_0 => put(block, 0, 2e-2 * about),
                _ => {
                    let (scale, min) = match ty {
                        GgmlType::Q4K => (6e-4, 4.5e-3),
                        GgmlType::Q5K => (3e-4, 4.5e-3),
                        GgmlType::Q4_1 => (2e-2, -0.15),
                        _ => (1e-2, -0.15),
                    };
                    put(block, 0, scale * about);
                    put(block, 2, min * about);
                }
            }
        }
        let name = format!("{name}.weight");
        file.tensors.push(Stored { name, shape: vec![rows, columns], ty: number, bytes });
    }
    file
}

/// Repacked blocks under the kernels that run them, against the same weights decoded on the host. What
/// repacking itself loses is measured in blocks.rs; here is only printed what becomes of it.
#[test]
fn every_type_computes_what_it_decodes_to() {
    let Some(gpu) = gpu() else { return };
    for number in [2, 3, 6, 7, 8, 12, 13, 14] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        std::fs::write(&path, of_blocks(number).bytes()).unwrap();
        let (config, store) =
            (LanguageConfig::read(&path).unwrap(), WeightStore::open(&path).unwrap());
        let spec = "int4".parse().unwrap();
        let decoded = store.names().map(|name| {
            let shape = store.shape(name).unwrap().to_vec();
            let values = match shape.len() {
                2 => store.pack(name, &shape, &spec).unwrap().decode(),
                _ => store.values(name).unwrap(),
            };
            (name.to_string(), Tensor::f32(&shape, values))
        });
        let decoded = WeightStore::from_tensors(&decoded.collect::<Vec<_>>()).unwrap();
        let of = |store, weights| logits(gpu, &load(gpu, &config, store, weights));
        let ours = of(&store, "auto");
        let ty = GgmlType::from_number(number).unwrap();
        let kernels = relative(&ours, &of(&decoded, "fp32"));
        println!("{ty}: kernels {kernels:.1e}, all {:.1e}", relative(&ours, &of(&store, "fp32")));
        // f32 sums of a few hundred terms in another order, two layers deep.
        assert!(kernels <= 1e-5, "{ty}: {kernels:e}");
    }
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    let square = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let whole = square(&mut b.iter().copied());
    assert!(whole > 0.0, "there is nothing to compare with");
    (square(&mut a.iter().zip(b).map(|(a, b)| a - b)) / whole).sqrt()
}

#[test]
fn perplexity_of_the_stories_is_what_gguf_py_and_torch_give() {
    let (Some(gpu), Some(folder)) = (gpu(), shared("data/llm/stories260K")) else { return };
    let Some(text) = shared("data/text/tinystories_sample.txt") else { return };
    let text = read_text(&text).unwrap();
    for (file, expected) in [("Q4_0", 3.8143), ("Q4_1", 3.7786), ("Q8_0", 3.5501)] {
        let path = folder.join(format!("stories260K-{file}.gguf"));
        let how = Windows::Documents { context: 512 };
        let windows = windows(&Tokenizer::load(&path).unwrap(), &text, how, None).unwrap();
        let config = LanguageConfig::read(&path).unwrap();
        let store = WeightStore::open(&path).unwrap();
        for weights in ["auto", "fp32"] {
            let net = load(gpu, &config, &store, weights);
            let mut scorer = Scorer::new(gpu, &net, (512, Elem::F32, Kernels::Fast)).unwrap();
            let totals = score(&mut scorer, None, &windows, &mut |_, _, _| {}).unwrap();
            let p = totals.finish(windows.len(), "").unwrap();
            println!("{file} {weights}: {:.4}", p.perplexity);
            // 0.0005: the last digit of the reference. Repacking these types loses nothing.
            assert!((p.perplexity - expected).abs() < 5e-4, "{file} {weights}: {}", p.perplexity);
        }
    }
}
