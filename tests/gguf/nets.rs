//! The same numbers as a folder and as GGUF give the same logits.

use std::path::{Path, PathBuf};

use inknib::Error;
use inknib::gpu::{Elem, Gpu, GpuOptions};
use inknib::graph::Kernels;
use inknib::nets::language::{Language, LanguageConfig};
use inknib::nn::Loader;
use inknib::probe::perplexity::{Windows, read_text, score, windows};
use inknib::probe::scorer::Scorer;
use inknib::quant::Recipe;
use inknib::text::tokenizer::Tokenizer;
use inknib::weights::{Checkpoint, WeightStore, read_tensors};
use serde_json::{Value, json};

use crate::convert::convert;
use crate::shared;

fn gpu() -> Option<Gpu> {
    match Gpu::open(&GpuOptions::default()) {
        Ok(gpu) => Some(gpu),
        Err(Error::NoAdapter(why)) => {
            println!("skipped: {why}");
            None
        }
        Err(other) => panic!("{other}"),
    }
}

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
        same_logits(&gpu, case);
    }
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
            let net = load(&gpu, &config, &store, weights);
            let mut scorer = Scorer::new(&gpu, &net, (512, Elem::F32, Kernels::Fast)).unwrap();
            let totals = score(&mut scorer, None, &windows, &mut |_, _, _| {}).unwrap();
            let p = totals.finish(windows.len(), "").unwrap();
            println!("{file} {weights}: {:.4}", p.perplexity);
            // 0.0005: the last digit of the reference. Repacking these types loses nothing.
            assert!((p.perplexity - expected).abs() < 5e-4, "{file} {weights}: {}", p.perplexity);
        }
    }
}
