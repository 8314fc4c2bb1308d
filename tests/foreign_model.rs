//! Whole nets in the formats of other programs, through the path that every checkpoint takes. Their
//! weights are those of tests/golden, quantized here; the packing itself is held against those
//! programs in tests/foreign.rs.

#[path = "common/device.rs"]
mod device;
#[path = "foreign_model/families.rs"]
mod families;
#[path = "foreign_model/pack.rs"]
mod pack;
#[path = "foreign_model/stored.rs"]
mod stored;

use std::ops::Range;
use std::path::{Path, PathBuf};

use device::gpu;
use inknib::gpu::{Elem, Gpu};
use inknib::graph::Kernels;
use inknib::probe::evaluate;
use inknib::quant::{Recipe, metrics};
use inknib::tensor::{Data, Tensor};
use inknib::weights::{WeightStore, has_quantization_config, read_tensors};
use pack::{Part, Quantized, Scheme, awq, compressed, gptq, part, turn};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

/// The tensors of a golden folder; all are F16.
fn tensors(case: &str) -> Vec<(String, Tensor)> {
    read_tensors(golden(case).join("model.safetensors")).unwrap()
}

fn write_weights(file: &Path, parts: &[Part]) {
    let views = parts.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The configuration of a golden folder, with one for quantized weights.
fn write_config(folder: &Path, case: &str, quantization: Option<&Value>) {
    let config = std::fs::read_to_string(golden(case).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    if let Some(quantization) = quantization {
        config["quantization_config"] = quantization.clone();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn write(folder: &Path, case: &str, parts: &[Part], quantization: Option<&Value>) {
    write_weights(&folder.join("model.safetensors"), parts);
    write_config(folder, case, quantization);
}

/// The logits of the checkpoint in a folder for the ids of a golden one. "auto" is what a user has who
/// says nothing about weights.
fn logits(gpu: &Gpu, case: &str, folder: &Path, weights: &str, kernels: Kernels) -> Vec<f32> {
    let recipe = Recipe::from_argument(weights, "llm").unwrap();
    let ids = read_tensors(golden(case).join("golden.safetensors")).unwrap();
    let values = evaluate(folder, &ids, &recipe, kernels, Elem::F32, gpu).unwrap();
    values.into_iter().find(|(name, _)| name == "logits").unwrap().1.to_f32()
}

/// What the programs quantize: the matrices of attention and of the feed-forward unit. Embeddings,
/// norms and biases stay floats, and so does the head unless it is asked for.
const MATRICES: [&str; 6] = ["_proj", "dense", "fc1", "fc2", "c_attn", "c_fc"];

/// A golden folder with its matrices packed, the same with the decoded weights as F32, and how many
/// matrices there were. GPT-2's `Conv1D` `[K, N]` is packed as the linear layer `[N, K]` that it stands
/// for: `pack` of AutoGPTQ's and GPTQModel's layers starts with its transpose.
fn packed_and_plain(
    case: &str,
    with_head: bool,
    scheme: Scheme,
    parts: impl Fn(&Quantized) -> Vec<Part>,
) -> (Vec<Part>, Vec<Part>, usize) {
    let (mut packed, mut plain, mut layers) = (vec![], vec![], 0);
    for (name, tensor) in tensors(case) {
        let Tensor { shape, data: Data::F16(halves) } = &tensor else { unreachable!() };
        let layer = name.strip_suffix(".weight");
        let chosen = |layer: &&str| {
            with_head && *layer == "lm_head" || MATRICES.iter().any(|end| layer.ends_with(end))
        };
        let Some(layer) = layer.filter(chosen) else {
            let same = part(&name, Dtype::F16, shape, halves);
            packed.push(same.clone());
            plain.push(same);
            continue;
        };
        let conv1d = case.starts_with("gpt2");
        let values = tensor.to_f32();
        let (n, k, values) = match conv1d {
            true => (shape[1], shape[0], turn(&values, shape[1])),
            false => (shape[0], shape[1], values),
        };
        let quantized = Quantized::new(&values, n, k, scheme);
        let named = |(part, ty, shape, bytes): Part| (format!("{layer}.{part}"), ty, shape, bytes);
        packed.extend(parts(&quantized).into_iter().map(named));
        let decoded = quantized.decode();
        let decoded = if conv1d { turn(&decoded, k) } else { decoded };
        plain.push(part(&name, Dtype::F32, shape, &decoded));
        layers += 1;
    }
    (packed, plain, layers)
}

/// A net of so many matrices: where it lies, and by how much quantization may change its logits.
struct Net {
    case: &'static str,
    /// The output layer is packed, too.
    with_head: bool,
    layers: usize,
    loss: Range<f64>,
}

/// The packed net gives the logits of the net that was decoded beforehand.
fn check(
    name: &str,
    net: &Net,
    scheme: Scheme,
    config: &Value,
    parts: impl Fn(&Quantized) -> Vec<Part>,
) {
    let Some(gpu) = gpu() else { return };
    let case = net.case;
    let (packed, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (packed_parts, plain_parts, layers) = packed_and_plain(case, net.with_head, scheme, parts);
    assert_eq!(layers, net.layers, "{case} {name}");
    write(packed.path(), case, &packed_parts, Some(config));
    write(plain.path(), case, &plain_parts, None);
    assert!(has_quantization_config(packed.path()) && !has_quantization_config(plain.path()));
    let store = WeightStore::open(packed.path()).unwrap();
    assert!(store.quantized_elsewhere().is_some(), "{case} {name}");
    let want = logits(gpu, case, plain.path(), "fp32", Kernels::Reference);
    for kernels in [Kernels::Fast, Kernels::Hardware, Kernels::Reference] {
        let got = logits(gpu, case, packed.path(), "auto", kernels);
        let error = metrics::nmse(&got, &want).sqrt();
        println!("{case} {name} {kernels:?}: {error:.2e}");
        // The weights are the same numbers; their products are summed in another order. The limit is
        // that of nets in f32 against transformers.
        assert!(error < 2e-5, "{case} {name} {kernels:?}: {error:.2e}");
    }
    // That the weights count at all: int4 must be seen against the original ones.
    let original = logits(gpu, case, &golden(case), "fp32", Kernels::Reference);
    let loss = metrics::nmse(&want, &original).sqrt();
    println!("{case} {name}: quantization error {loss:.2e}");
    assert!(net.loss.contains(&loss), "{case} {name}: quantization error {loss:.2e}");
}

const LLAMA: Net = Net { case: "llama", with_head: false, layers: 14, loss: 0.05..0.5 };
const PLAIN: Scheme = Scheme { bits: 4, group: 32, symmetric: false, scattered: false };

#[test]
fn gptq_with_act_order() {
    let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true});
    let scheme = Scheme { scattered: true, ..PLAIN };
    check("gptq v1 desc_act", &LLAMA, scheme, &config, |q| gptq(q, 1));
}

#[test]
fn gptq_v2_in_eight_bits() {
    let config = json!({"quant_method": "gptq", "bits": 8, "group_size": 16, "sym": true,
                        "checkpoint_format": "gptq_v2"});
    let scheme = Scheme { bits: 8, group: 16, symmetric: true, scattered: false };
    let net = Net { loss: 0.0005..0.05, ..LLAMA };
    check("gptq v2 int8", &net, scheme, &config, |q| gptq(q, 0));
}

#[test]
fn awq_gemm() {
    let config = json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"});
    check("awq", &LLAMA, PLAIN, &config, awq);
}

fn compressed_config(group: Option<usize>, symmetric: bool) -> Value {
    let weights =
        json!({"num_bits": 4, "type": "int", "group_size": group, "symmetric": symmetric});
    json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
           "config_groups": {"group_0": {"weights": weights}}, "ignore": ["lm_head"]})
}

#[test]
fn compressed_tensors_in_groups() {
    check("ct g32", &LLAMA, PLAIN, &compressed_config(Some(32), false), |q| {
        compressed(q, true, false)
    });
    let scheme = Scheme { symmetric: true, ..PLAIN };
    check("ct g32 sym", &LLAMA, scheme, &compressed_config(Some(32), true), |q| {
        compressed(q, false, false)
    });
    let scheme = Scheme { scattered: true, ..PLAIN };
    check("ct actorder", &LLAMA, scheme, &compressed_config(Some(32), false), |q| {
        compressed(q, true, true)
    });
}

#[test]
fn compressed_tensors_in_channels() {
    let scheme = Scheme { group: 0, ..PLAIN };
    check("ct channel", &LLAMA, scheme, &compressed_config(None, false), |q| {
        compressed(q, true, false)
    });
}
