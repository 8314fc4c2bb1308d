//! Language models of every family against transformers, and decoding through the KV cache.

use inknib::gpu::{Elem, Gpu};
use inknib::graph::{Graph, Kernels, Plan, PlanOptions};
use inknib::nets::language::{Language, LanguageConfig};
use inknib::nn::Loader;
use inknib::probe::verify::{golden, verify, verify_as};
use inknib::quant::{QuantSpec, Recipe};
use inknib::tensor::Tensor;
use inknib::weights::WeightStore;
use serde_json::{Value, json};

use crate::{BOTH, check, expect, folder, gpu, nmse};

/// Every golden folder and its family.
const CASES: [(&str, &str); 18] = [
    ("llama", "llama"),
    ("llama_tied", "llama"),
    ("llama3rope", "llama"),
    ("mistral", "mistral"),
    ("qwen2", "qwen2"),
    ("qwen2_yarn", "qwen2"),
    ("qwen3", "qwen3"),
    ("smollm3", "smollm3"),
    ("olmo2", "olmo2"),
    ("phi", "phi"),
    ("phi3", "phi3"),
    ("phi3_long", "phi3"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3"),
    ("gemma3_vision", "gemma3"),
    ("gpt2", "gpt2"),
    ("gpt2_bare", "gpt2"),
];

/// Limits are those of `verify` with their reasons: on logits of standard deviation 0.3 no value is off by
/// more than 1e-4 in fp32 and 1e-2 in fp16. These logits are two to three times as large and keep to them
/// all the same.
#[test]
fn every_family_gives_the_logits_of_transformers() {
    let Some(gpu) = gpu() else { return };
    for (case, family) in CASES {
        let outputs = if family == "llama" { 2 } else { 1 };
        check(case, outputs, &[]);
        let report = verify(folder(case), "fp32", Kernels::Fast, gpu).unwrap();
        assert_eq!(report.family, family, "{case}");
        assert!(report.outputs.iter().all(|c| c.max_abs <= 1e-4), "{report:#?}");
    }
}

/// The kernels as a real GPU gets them: windows, caps, partial and long rotary positions among them.
#[test]
fn kernels_for_hardware_give_the_same() {
    let Some(gpu) = gpu() else { return };
    for case in ["mistral", "gemma2", "gemma3", "phi", "phi3_long", "gpt2"] {
        let report = verify(folder(case), "fp32", Kernels::Hardware, gpu).unwrap();
        expect(&report, Kernels::Hardware, &[]);
    }
}

/// f16 weights and f16 activations, within `verify`'s limit for fp16: every store rounds by 2⁻¹¹, some
/// tens of them on the way to logits add up to about a hundredth of their standard deviation.
#[test]
fn f16_activations_stay_within_the_limit_of_f16() {
    let Some(gpu) = gpu().filter(|gpu| gpu.caps().f16) else {
        println!("skipped: this device stores no f16");
        return;
    };
    for (case, _) in CASES {
        for kernels in BOTH {
            let report = verify_as(folder(case), "fp16", kernels, Elem::F16, gpu).unwrap();
            expect(&report, kernels, &[]);
            assert!(report.outputs.iter().all(|c| c.max_abs <= 1e-2), "{report:#?}");
        }
    }
}

/// What the configuration says of each family's peculiarities reaches the logits: with another value they
/// are beyond the limit.
#[test]
fn every_detail_shows() {
    let Some(gpu) = gpu() else { return };
    let changed = |case: &str, field: &str, value: Value| {
        let copy = tempfile::tempdir().unwrap();
        for name in ["model.safetensors", "golden.safetensors"] {
            std::fs::copy(folder(case).join(name), copy.path().join(name)).unwrap();
        }
        let text = std::fs::read_to_string(folder(case).join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        // A dotted path leads into the tables of rotary positions.
        let (mut at, mut rest) = (&mut config, field);
        while let Some((table, inner)) = rest.split_once('.') {
            (at, rest) = (&mut at[table], inner);
        }
        assert_ne!(at[rest], value, "{case} {field} is that already");
        at[rest] = value;
        std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
        let report = verify(copy.path(), "fp16", Kernels::Fast, gpu).unwrap();
        assert!(report.unsupported.is_none(), "{report:#?}");
        assert!(!report.passed, "{case}: {field} does not show: {report:#?}");
    };
    let full = ["full_attention", "full_attention", "full_attention"];
    for (case, field, value) in [
        ("llama3rope", "rope_scaling.factor", json!(1.0)),
        ("mistral", "sliding_window", json!(9)),
        ("mistral", "sliding_window", json!(7)),
        ("mistral", "sliding_window", Value::Null),
        ("qwen2_yarn", "rope_scaling.factor", json!(1.0)),
        ("qwen2_yarn", "rope_scaling.attention_factor", json!(1.0)),
        ("qwen2_yarn", "max_window_layers", json!(2)),
        ("qwen2_yarn", "use_sliding_window", json!(false)),
        ("qwen3", "rope_parameters.rope_theta", json!(1e6)),
        ("smollm3", "no_rope_layers", json!([1, 1, 1])),
        ("phi", "rope_parameters.partial_rotary_factor", json!(0.8)),
        ("phi3", "sliding_window", json!(15)),
        ("phi3_long", "original_max_position_embeddings", json!(44)),
        ("phi3_long", "rope_scaling.attention_factor", json!(1.0)),
        ("gemma2", "attn_logit_softcapping", Value::Null),
        ("gemma2", "final_logit_softcapping", Value::Null),
        ("gemma2", "query_pre_attn_scalar", json!(16)),
        ("gemma2", "layer_types", json!(["full_attention", "sliding_attention"])),
        ("gemma3", "layer_types", json!(full)),
        ("gemma3", "rope_parameters.sliding_attention.rope_theta", json!(1e6)),
        ("gemma3", "rope_parameters.full_attention.factor", json!(1.0)),
        ("gemma3_vision", "text_config.sliding_window_pattern", json!(3)),
        ("gemma3_vision", "text_config.rope_local_base_freq", json!(1e6)),
        ("gpt2_bare", "scale_attn_by_inverse_layer_idx", json!(false)),
    ] {
        changed(case, field, value);
    }
}

fn ids_of(case: &str) -> Vec<u32> {
    let golden = golden(&folder(case)).unwrap();
    let ids = &golden.iter().find(|(name, _)| name == "input_ids").unwrap().1;
    ids.to_i64().iter().map(|id| *id as u32).collect()
}

/// Runs `pieces` of a text one after the other through one cache; the logits after each token.
fn decode(gpu: &Gpu, llama: &Language, ids: &[u32], pieces: &[usize]) -> Vec<f32> {
    decode_by(gpu, llama, ids, pieces, Kernels::Fast).0
}

/// The same by some kernels, and the launches of the last piece.
fn decode_by(
    gpu: &Gpu,
    llama: &Language,
    ids: &[u32],
    pieces: &[usize],
    kernels: Kernels,
) -> (Vec<f32>, usize) {
    // Room for more than the text: rows that were never written must not count.
    let cache = llama.config().kv_cache(gpu, ids.len() + 7, Elem::F32).unwrap();
    let (mut at, mut logits, mut launches) = (0, Vec::new(), 0);
    for n in pieces {
        let graph = Graph::new(Elem::F32);
        let input = graph.input("ids", [1, *n], Elem::U32);
        let start = graph.input("start", [1], Elem::U32);
        graph.output("logits", llama.logits_all(input, start, &cache));
        let options = PlanOptions { kernels, poison: true, ..Default::default() };
        let plan = Plan::new(gpu, &graph, &options).unwrap();
        launches = plan.launches().len();
        plan.set_u32("ids", &ids[at..at + n]).unwrap();
        plan.set_u32("start", &[at as u32]).unwrap();
        plan.run().unwrap();
        logits.extend(plan.read("logits").unwrap());
        at += n;
    }
    assert_eq!(at, ids.len());
    (logits, launches)
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    nmse(&Tensor::f32(&[a.len()], a.to_vec()), &Tensor::f32(&[b.len()], b.to_vec())).sqrt()
}

/// The same sums in another order (other kernels serve one row): a few 1e-7 per layer.
const SAME: f64 = 1e-5;

#[test]
fn token_by_token_is_the_full_pass() {
    let Some(gpu) = gpu() else { return };
    for (case, _) in CASES {
        let dir = folder(case);
        let (config, store) =
            (LanguageConfig::read(&dir).unwrap(), WeightStore::open(&dir).unwrap());
        for recipe in [Recipe::uniform(QuantSpec::F32), Recipe::builtin("int4", "llm").unwrap()] {
            let llama = Language::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
            let ids = ids_of(case);
            let full = decode(gpu, &llama, &ids, &[ids.len()]);
            let single = decode(gpu, &llama, &ids, &vec![1; ids.len()]);
            let chunks = decode(gpu, &llama, &ids, &[13, 5, ids.len() - 18]);
            let mixed = decode(gpu, &llama, &ids, &[9, 1, 1, ids.len() - 11]);
            for (name, other) in [("single", single), ("odd chunks", chunks), ("mixed", mixed)] {
                let e = relative(&other, &full);
                println!("{case} {} {name}: {e:.1e}", recipe.name);
                assert!(e <= SAME, "{case} {} {name}: {e:.2e}", recipe.name);
            }
        }
    }
}

/// What a real GPU gets for one token and for a few: norms folded, products joined, caches written on the way.
#[test]
fn few_tokens_by_kernels_for_hardware_are_the_full_pass() {
    let Some(gpu) = gpu() else { return };
    for (case, _) in CASES {
        let dir = folder(case);
        let (config, store) =
            (LanguageConfig::read(&dir).unwrap(), WeightStore::open(&dir).unwrap());
        for recipe in [Recipe::uniform(QuantSpec::F32), Recipe::builtin("int4", "llm").unwrap()] {
            let net = Language::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
            let ids = ids_of(case);
            let full = decode(gpu, &net, &ids, &[ids.len()]);
            let pieces = [ids.len() - 9, 3, 4, 1, 1];
            let (few, launches) = decode_by(gpu, &net, &ids, &pieces, Kernels::Hardware);
            let e = relative(&few, &full);
            println!("{case} {}: {e:.1e}, {launches} launches a token", recipe.name);
            assert!(e <= SAME, "{case} {}: {e:.2e}", recipe.name);
            let (whole, at_once) = decode_by(gpu, &net, &ids, &[ids.len()], Kernels::Hardware);
            let e = relative(&whole, &full);
            println!("{case} {}: {e:.1e}, {at_once} launches a prompt", recipe.name);
            assert!(e <= SAME, "{case} {} at once: {e:.2e}", recipe.name);
            // Two layers, the embedding, the logits and what the last norm takes.
            // Many rows take norms and the rotation as launches of their own.
            let (each, of_prompt) = match case {
                "llama" | "mistral" | "qwen2" | "phi3" | "smollm3" => (5, 8),
                "qwen3" => (6, 10),
                "gemma2" | "gemma3" => (8, 12),
                _ => continue,
            };
            let layers = net.config().layers();
            assert!(launches <= layers * each + 4, "{case} {}: {launches}", recipe.name);
            assert!(at_once <= layers * of_prompt + 4, "{case} {}: {at_once}", recipe.name);
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

#[test]
fn reports_count_everything_resident() {
    let Some(gpu) = gpu() else { return };
    let told = std::cell::Cell::new(0);
    let progress = |_: &_| told.set(told.get() + 1);
    let bits = |case: &str, name: &str| {
        let (config, store) =
            (LanguageConfig::read(folder(case)).unwrap(), WeightStore::open(folder(case)).unwrap());
        let recipe = Recipe::builtin(name, "llm").unwrap();
        let loader = Loader::with_progress(gpu, &store, &recipe, Some(&progress));
        Language::load(&loader, &config).unwrap();
        let report = loader.report();
        assert_eq!(report.tensors.len(), told.replace(0));
        // The checkpoint has these and no other tensors; the whole of it is resident, and what was taken
        // apart is counted once.
        let elements: usize =
            store.names().map(|name| store.shape(name).unwrap().iter().product::<usize>()).sum();
        assert_eq!(report.elements(), elements as u64, "{case}");
        report.bits_per_weight()
    };
    for case in ["llama", "phi3", "gpt2"] {
        let bits = ["fp32", "fp16", "int4"].map(|name| bits(case, name));
        assert!((bits[0] - 32.0).abs() < 0.1, "{case} {bits:?}");
        // Norms and biases stay at 32 bits; the rows are short, so scales and padding weigh more than in a
        // real model.
        assert!(bits[1] > 16.0 && bits[1] < 17.0, "{case} {bits:?}");
        assert!(bits[2] > 4.25 && bits[2] < 9.0, "{case} {bits:?}");
    }
}

fn model(path: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(path)
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

/// A table of 152,064 tokens in f32 is more than one binding holds; the same numbers in f16 are one window.
#[test]
fn a_vocabulary_larger_than_one_binding() {
    let Some(gpu) = gpu() else { return };
    let (vocab, width) = (152_064usize, 224usize);
    if gpu.caps().max_binding_bytes >= (vocab * width * 4) as u64 {
        println!("skipped: this device binds {} bytes", gpu.caps().max_binding_bytes);
        return;
    }
    let config = json!({"model_type": "qwen2", "vocab_size": vocab, "hidden_size": width,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 7, "num_key_value_heads": 1,
        "tie_word_embeddings": true});
    let config = LanguageConfig::from_json(&config, "made up".as_ref()).unwrap();
    let mut seed = 1u32;
    let mut tensor = |name: &str, shape: &[usize]| {
        let value = |_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Eleven bits, exact in f16.
            half::f16::from_f32((seed >> 21) as f32 / 2048.0 - 0.5)
        };
        let data = (0..shape.iter().product()).map(value).collect();
        let data = inknib::tensor::Data::F16(data);
        (name.to_string(), Tensor { shape: shape.to_vec(), data })
    };
    let (l, kv) = ("model.layers.0", width / 7);
    let tensors = [
        tensor("model.embed_tokens.weight", &[vocab, width]),
        tensor("model.norm.weight", &[width]),
        tensor(&format!("{l}.input_layernorm.weight"), &[width]),
        tensor(&format!("{l}.post_attention_layernorm.weight"), &[width]),
        tensor(&format!("{l}.self_attn.q_proj.weight"), &[width, width]),
        tensor(&format!("{l}.self_attn.q_proj.bias"), &[width]),
        tensor(&format!("{l}.self_attn.k_proj.weight"), &[kv, width]),
        tensor(&format!("{l}.self_attn.k_proj.bias"), &[kv]),
        tensor(&format!("{l}.self_attn.v_proj.weight"), &[kv, width]),
        tensor(&format!("{l}.self_attn.v_proj.bias"), &[kv]),
        tensor(&format!("{l}.self_attn.o_proj.weight"), &[width, width]),
        tensor(&format!("{l}.mlp.gate_proj.weight"), &[32, width]),
        tensor(&format!("{l}.mlp.up_proj.weight"), &[32, width]),
        tensor(&format!("{l}.mlp.down_proj.weight"), &[width, 32]),
    ];
    let store = WeightStore::from_tensors(&tensors).unwrap();
    // The first and last rows, and some in either window.
    let ids = [0, 5, 70_000, 149_795, 149_797, vocab as u32 - 1];
    let logits = [QuantSpec::F32, QuantSpec::F16].map(|spec| {
        let recipe = Recipe::uniform(spec);
        let net = Language::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
        decode(gpu, &net, &ids, &[ids.len()])
    });
    let e = relative(&logits[0], &logits[1]);
    assert!(e <= SAME, "{e:.2e}");
}
