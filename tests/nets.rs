//! Nets against golden tensors of diffusers and transformers (tests/golden/README.md), fast kernels
//! against reference kernels on packed weights, and decoding through the KV cache.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use inknib::gpu::{Elem, Gpu, GpuOptions, Without};
use inknib::graph::{Graph, Kernels, Plan, PlanOptions};
use inknib::nets::language::{Language, LanguageConfig};
use inknib::nets::unet::{Unet, UnetConfig};
use inknib::nets::vae::{VaeConfig, VaeDecoder};
use inknib::nn::Loader;
use inknib::probe::verify::{Family, VerifyReport, golden, verify, verify_as};
use inknib::probe::{evaluate, recipe};
use inknib::quant::{QuantSpec, Recipe};
use inknib::tensor::Tensor;
use inknib::weights::{WeightStore, read_tensors};

/// The device of `INKNIB_TEST_DEVICE`, without the features in `INKNIB_WITHOUT`, as in the op tests.
fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| {
        let without = Without::parse(&std::env::var("INKNIB_WITHOUT").unwrap_or_default()).unwrap();
        let device = std::env::var("INKNIB_TEST_DEVICE").ok();
        match Gpu::open(&GpuOptions { device, without, ..Default::default() }) {
            Ok(gpu) => Some(gpu),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    })
    .as_ref()
}

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

const BOTH: [Kernels; 2] = [Kernels::Fast, Kernels::Reference];

/// One line per case with its worst value; the test fails with every value that is beyond the limit.
fn expect(report: &VerifyReport, kernels: Kernels, not_compared: &[&str]) {
    let worst = report.outputs.iter().max_by(|a, b| a.rel_l2.total_cmp(&b.rel_l2)).unwrap();
    println!(
        "{} {} {kernels:?}: {} values, worst {} {:.2e} (max abs {:.2e})",
        report.case,
        report.weights,
        report.outputs.len(),
        worst.name,
        worst.rel_l2,
        worst.max_abs
    );
    let bad: Vec<_> = report.outputs.iter().filter(|c| c.rel_l2 > report.limit).collect();
    assert!(report.passed && bad.is_empty(), "{} {:?}: {bad:#?}", report.case, report.unsupported);
    assert_eq!(report.not_compared, not_compared, "{}", report.case);
}

/// Limits are those of `verify`, with their reasons: 2e-5 in fp32, 2e-3 in fp16.
fn check(case: &str, outputs: usize, not_compared: &[&str]) {
    let Some(gpu) = gpu() else { return };
    for weights in ["fp32", "fp16"] {
        for kernels in BOTH {
            let report = verify(folder(case), weights, kernels, gpu).unwrap();
            expect(&report, kernels, not_compared);
            assert_eq!(report.outputs.len(), outputs, "{case}");
        }
    }
}

#[test]
fn clip_with_quick_gelu() {
    check("clip_l", 3, &[]);
}

#[test]
fn clip_with_published_names() {
    check("clip_l_prefix", 3, &[]);
}

#[test]
fn clip_with_gelu() {
    check("clip_h", 3, &[]);
}

#[test]
fn unet_of_sd15() {
    check("unet_sd15", 15, &[]);
}

#[test]
fn unet_of_sd21() {
    check("unet_sd21", 15, &[]);
}

#[test]
fn vae_decoder() {
    let encoder = ["logvar", "mean", "tap.encoder.down_blocks.0", "tap.encoder.mid_block"];
    check("vae_kl", 7, &encoder);
}

#[test]
fn llama() {
    check("llama", 2, &[]);
}

#[test]
fn llama_with_tied_embeddings() {
    check("llama_tied", 2, &[]);
}

#[test]
fn llama_with_scaled_positions() {
    check("llama3rope", 2, &[]);
}

/// f16 activations round every stored value by 2⁻¹¹ (3e-4 in the mean); some tens of stores on the
/// way add up like a random walk, to a few parts in a thousand.
#[test]
fn f16_activations_stay_near() {
    let Some(gpu) = gpu().filter(|gpu| gpu.caps().f16) else {
        println!("skipped: this device stores no f16");
        return;
    };
    for case in ["clip_l", "unet_sd15", "vae_kl", "llama"] {
        let report = verify_as(folder(case), "fp16", Kernels::Fast, Elem::F16, gpu).unwrap();
        let worst = report.outputs.iter().map(|c| c.rel_l2).fold(0.0, f64::max);
        println!("{case} f16 activations: worst {worst:.2e}");
        assert!(worst <= 1e-2, "{case}: {:#?}", report.outputs);
    }
}

fn nmse(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_f32(), b.to_f32());
    assert_eq!(a.len(), b.len());
    assert!(a.iter().all(|v| v.is_finite()), "a value is not finite");
    let error: f64 = a.iter().zip(&b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    error / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()
}

/// Both kernels decode the same packed weights and differ in the order of f32 sums alone: about 1e-6
/// relative, squared 1e-12. A thousand times that leaves room for a driver's exp and still stands far
/// below the error of four bits themselves (1e-2).
#[test]
fn int4_fast_is_int4_reference() {
    let Some(gpu) = gpu() else { return };
    let cases = [
        ("clip_l", Family::ClipText),
        ("unet_sd15", Family::Unet),
        ("unet_sd21", Family::Unet),
        ("vae_kl", Family::Vae),
        ("llama", Family::Language),
    ];
    for (case, family) in cases {
        let (dir, golden) = (folder(case), golden(&folder(case)).unwrap());
        // Every matrix in four bits: the recipes would keep the VAE at 16.
        for weights in [Recipe::uniform(QuantSpec::INT4), recipe("int4", family).unwrap()] {
            let run = |kernels| evaluate(&dir, &golden, &weights, kernels, Elem::F32, gpu).unwrap();
            let (fast, reference) = (run(Kernels::Fast), run(Kernels::Reference));
            let mut worst = 0.0f64;
            for ((name, a), (other, b)) in fast.iter().zip(&reference) {
                assert_eq!(name, other);
                let e = nmse(a, b);
                assert!(e <= 1e-9, "{case} {name}: {e:.2e}");
                worst = worst.max(e);
            }
            let (_, truth) = golden.iter().find(|(name, _)| *name == fast[0].0).unwrap();
            let quantization = nmse(&fast[0].1, truth);
            println!(
                "{case} {}: fast against reference {worst:.1e}, quantization {quantization:.1e}",
                weights.name
            );
            let four_bits = weights.name != "int4" || family == Family::Language;
            assert!(!four_bits || quantization > 1e-5, "{case}: these are not four bits");
        }
    }
}

#[test]
fn int4_is_sane() {
    let Some(gpu) = gpu() else { return };
    for case in ["clip_l", "unet_sd15", "vae_kl", "llama"] {
        let report = verify(folder(case), "int4", Kernels::Fast, gpu).unwrap();
        assert!(report.passed, "{report:#?}");
    }
}

/// Runs `pieces` of a text one after the other through one cache; the logits after each token.
fn decode(gpu: &Gpu, llama: &Language, ids: &[u32], pieces: &[usize]) -> Vec<f32> {
    // Room for more than the text: rows that were never written must not count.
    let cache = llama.config().kv_cache(gpu, ids.len() + 7, Elem::F32).unwrap();
    let (mut at, mut logits) = (0, Vec::new());
    for n in pieces {
        let graph = Graph::new(Elem::F32);
        let input = graph.input("ids", [1, *n], Elem::U32);
        let start = graph.input("start", [1], Elem::U32);
        graph.output("logits", llama.logits_all(input, start, &cache));
        let options = PlanOptions { poison: true, ..Default::default() };
        let plan = Plan::new(gpu, &graph, &options).unwrap();
        plan.set_u32("ids", &ids[at..at + n]).unwrap();
        plan.set_u32("start", &[at as u32]).unwrap();
        plan.run().unwrap();
        logits.extend(plan.read("logits").unwrap());
        at += n;
    }
    assert_eq!(at, ids.len());
    logits
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    nmse(&Tensor::f32(&[a.len()], a.to_vec()), &Tensor::f32(&[b.len()], b.to_vec())).sqrt()
}

/// The same sums in another order (other kernels serve one row): a few 1e-7 per layer.
const SAME: f64 = 1e-5;

#[test]
fn token_by_token_is_the_full_pass() {
    let Some(gpu) = gpu() else { return };
    for case in ["llama", "llama3rope"] {
        let dir = folder(case);
        let (config, store) =
            (LanguageConfig::read(&dir).unwrap(), WeightStore::open(&dir).unwrap());
        for recipe in [Recipe::uniform(QuantSpec::F32), Recipe::builtin("int4", "llm").unwrap()] {
            let llama = Language::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
            let golden = golden(&dir).unwrap();
            let ids = &golden.iter().find(|(name, _)| name == "input_ids").unwrap().1;
            let ids: Vec<u32> = ids.to_i64().iter().map(|id| *id as u32).collect();
            let full = decode(gpu, &llama, &ids, &[ids.len()]);
            let single = decode(gpu, &llama, &ids, &vec![1; ids.len()]);
            let chunks = decode(gpu, &llama, &ids, &[13, ids.len() - 13]);
            let mixed = decode(gpu, &llama, &ids, &[9, 1, 1, ids.len() - 11]);
            for (name, other) in [("single", single), ("two chunks", chunks), ("mixed", mixed)] {
                let e = relative(&other, &full);
                println!("{case} {} {name}: {e:.1e}", recipe.name);
                assert!(e <= SAME, "{case} {} {name}: {e:.2e}", recipe.name);
            }
        }
    }
}

/// `forward` gives the row that was asked for, and padding behind it changes nothing.
#[test]
fn one_plan_serves_prompts_of_many_lengths() {
    let Some(gpu) = gpu() else { return };
    let dir = folder("llama");
    let (config, store) = (LanguageConfig::read(&dir).unwrap(), WeightStore::open(&dir).unwrap());
    let recipe = Recipe::uniform(QuantSpec::F32);
    let llama = Language::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
    let ids: Vec<u32> = (0..12u32).map(|i| (i * 37 + 5) % 320).collect();
    let all = decode(gpu, &llama, &ids, &[12]);
    let cache = config.kv_cache(gpu, 16, Elem::F32).unwrap();
    let graph = Graph::new(Elem::F32);
    let input = graph.input("ids", [1, 16], Elem::U32);
    let start = graph.input("start", [1], Elem::U32);
    let last = graph.input("last", [1], Elem::U32);
    let logits = llama.forward(input, start, last, &cache);
    assert_eq!(logits.shape().dims(), [1, 320]);
    graph.output("logits", logits);
    let plan = Plan::new(gpu, &graph, &PlanOptions::default()).unwrap();
    for length in [12, 5, 1] {
        let mut padded = ids[..length].to_vec();
        padded.resize(16, 3);
        plan.set_u32("ids", &padded).unwrap();
        plan.set_u32("start", &[0]).unwrap();
        plan.set_u32("last", &[length as u32 - 1]).unwrap();
        plan.run().unwrap();
        let e = relative(&plan.read("logits").unwrap(), &all[(length - 1) * 320..][..320]);
        assert!(e <= SAME, "{length}: {e:.2e}");
    }
}

/// Names and shapes that diffusers wrote before version 0.12.
#[test]
fn vae_attention_under_its_old_names() {
    let Some(gpu) = gpu() else { return };
    let dir = folder("vae_kl");
    let renames =
        [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
    let mut tensors = read_tensors(&dir).unwrap();
    for (name, tensor) in &mut tensors {
        for (new, old) in renames {
            if name.contains("mid_block.attentions") && name.contains(new) {
                *name = name.replace(new, old);
                if tensor.shape.len() == 2 {
                    tensor.shape.extend([1, 1]);
                }
            }
        }
    }
    let (config, recipe) = (VaeConfig::read(&dir).unwrap(), Recipe::uniform(QuantSpec::F32));
    let old = WeightStore::from_tensors(&tensors).unwrap();
    assert!(old.contains("decoder.mid_block.attentions.0.proj_attn.weight"));
    let pictures = [old, WeightStore::open(&dir).unwrap()].map(|store| {
        let decoder = VaeDecoder::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
        let graph = Graph::new(Elem::F32);
        let z = graph.literal([1, 2, 2, 4], (0..16).map(|i| (i as f32).sin()).collect());
        graph.output("picture", decoder.forward(z));
        let plan = Plan::new(gpu, &graph, &PlanOptions::default()).unwrap();
        plan.run().unwrap();
        plan.read("picture").unwrap()
    });
    assert_eq!(pictures[0], pictures[1]);
}

#[test]
fn reports_count_everything_resident() {
    let Some(gpu) = gpu() else { return };
    let dir = folder("llama");
    let (config, store) = (LanguageConfig::read(&dir).unwrap(), WeightStore::open(&dir).unwrap());
    let told = std::cell::Cell::new(0);
    let progress = |_: &_| told.set(told.get() + 1);
    let mut bits = Vec::new();
    for name in ["fp32", "fp16", "int4"] {
        let recipe = Recipe::builtin(name, "llm").unwrap();
        let loader = Loader::with_progress(gpu, &store, &recipe, Some(&progress));
        let llama = Language::load(&loader, &config).unwrap();
        let report = loader.report();
        assert_eq!(report.tensors.len(), told.replace(0));
        // The checkpoint has these and no other tensors; the whole of it is resident.
        let elements: usize =
            store.names().map(|name| store.shape(name).unwrap().iter().product::<usize>()).sum();
        assert_eq!(report.elements(), elements as u64);
        bits.push(report.bits_per_weight());
        drop(llama);
    }
    assert!((bits[0] - 32.0).abs() < 0.1, "{bits:?}");
    // Norms stay at 32 bits; the rows are short, so scales and padding weigh more than in a real model.
    assert!(bits[1] > 16.0 && bits[1] < 17.0, "{bits:?}");
    assert!(bits[2] > 4.25 && bits[2] < 9.0, "{bits:?}");
}

#[test]
fn odd_sizes_and_wrong_tables_are_errors_with_the_models_line() {
    let Some(gpu) = gpu() else { return };
    let dir = folder("unet_sd15");
    let (config, store) = (UnetConfig::read(&dir).unwrap(), WeightStore::open(&dir).unwrap());
    let recipe = Recipe::uniform(QuantSpec::F32);
    let unet = Unet::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
    for (height, expected) in [(6, "multiples of 4, for instance 8x8"), (8, "0 time tables")] {
        let graph = Graph::new(Elem::F32);
        let x = graph.input("x", [1, height, 8, 4], Elem::F32);
        let row = graph.input("row", [1], Elem::U32);
        graph.output("eps", unet.forward(x, &[], row, &[]));
        let error = graph.finish().unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("tests/nets.rs"), "{error}");
    }
}

#[test]
fn what_is_not_supported_is_said_and_never_passes() {
    let Some(gpu) = gpu() else { return };
    let report = |config: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        let report = verify(folder.path(), "fp32", Kernels::Fast, gpu).unwrap();
        assert!(!report.passed && report.outputs.is_empty());
        report.unsupported.unwrap()
    };
    let mamba = report("{\"model_type\": \"mamba\"}");
    assert!(mamba.contains("mamba is not supported") && mamba.contains("gemma3"), "{mamba}");
    let text = std::fs::read_to_string(folder("unet_sd15").join("config.json")).unwrap();
    let xl =
        text.replace("\"addition_embed_type\": null", "\"addition_embed_type\": \"text_time\"");
    assert!(report(&xl).contains("`addition_embed_type` is \"text_time\""));
}

/// More cases of the same form, in the folders under `INKNIB_GOLDEN`. Families that are not supported
/// are listed.
#[test]
fn further_golden_folders() {
    let Some(gpu) = gpu() else { return };
    let Ok(root) = std::env::var("INKNIB_GOLDEN") else {
        println!("skipped: INKNIB_GOLDEN names no folder of further golden cases");
        return;
    };
    let mut dirs: Vec<PathBuf> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    for dir in dirs.iter().filter(|dir| dir.join("config.json").is_file()) {
        for kernels in BOTH {
            let report = verify(dir, "fp32", kernels, gpu).unwrap();
            match &report.unsupported {
                Some(why) => println!("{}: {why}", report.case),
                None => {
                    let left: Vec<&str> = report.not_compared.iter().map(String::as_str).collect();
                    println!("{}: not compared: {left:?}", report.case);
                    expect(&report, kernels, &left);
                }
            }
        }
    }
}

fn model(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(path)
}

/// The shipped chat model's own words: transformers' greedy tokens and its largest logits.
#[test]
fn the_chat_model_says_what_it_says_in_transformers() {
    let Some(gpu) = gpu() else { return };
    let dir = model("demo-chat");
    let (config, store) = (LanguageConfig::read(&dir).unwrap(), WeightStore::open(&dir).unwrap());
    let recipe = Recipe::builtin("fp16", "llm").unwrap();
    let llama = Language::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
    let text = std::fs::read_to_string(folder("demo_chat.json")).unwrap();
    let cases: serde_json::Value = serde_json::from_str(&text).unwrap();
    let numbers = |v: &serde_json::Value| -> Vec<f64> {
        v.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect()
    };
    // Two of the ten: the shortest answer and one of 77 tokens.
    for case in [&cases["cases"][0], &cases["cases"][6]] {
        let prompt = numbers(&case["prompt_ids"]);
        let all: Vec<u32> =
            prompt.iter().chain(&numbers(&case["greedy_ids"])).map(|id| *id as u32).collect();
        let logits = decode(gpu, &llama, &all, &[prompt.len(), all.len() - prompt.len()]);
        let rows: Vec<&[f32]> = logits.chunks_exact(config.vocab_size()).collect();
        for at in prompt.len()..all.len() {
            let row = rows[at - 1];
            let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
            assert_eq!(best as u32, all[at], "token {at} of {}", case["text"]);
        }
        let top = numbers(&case["top_ids"]).into_iter().zip(numbers(&case["top_logits"]));
        for (id, expected) in top {
            let got = f64::from(rows[prompt.len() - 1][id as usize]);
            // The file has four decimals (5e-5); logits of 16 in f32 add about as much.
            assert!((got - expected).abs() < 2e-4, "logit of {id}: {got} and {expected}");
        }
    }
}
