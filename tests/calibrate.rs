//! Calibration and what is done with it: sums of what layers are given, GPTQ, corrected biases, folded scales, and a
//! calibration that goes on where it stopped.
#![allow(clippy::unwrap_used)] // a call that fails is a failed test

#[path = "common/device.rs"]
mod device;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use inknib::gpu::Elem;
use inknib::graph::{Graph, Plan, PlanOptions, Weight};
use inknib::ops::concat::cat;
use inknib::ops::conv2d::{Conv, conv2d};
use inknib::ops::embed::embed;
use inknib::ops::gram::{Walk, columns, oracle};
use inknib::ops::matmul::linear;
use inknib::ops::moments;
use inknib::ops::pointwise::silu;
use inknib::probe::calibrate::{Options, Read, calibrate_text};
use inknib::probe::observe::Observer;
use inknib::quant::{GramBlock, LayerStatistics, Layout, Packed, QuantSpec, Recipe, Statistics};
use inknib::tensor::{Data, Tensor};
use inknib::weights::{Form, Method, Quantize, QuantizedReport, WeightStore, quantize_with};

/// Noise in -1..1.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Relative L2 error.
fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let e: f64 = got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    (e / want.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

#[test]
fn the_observer_sums_what_layers_are_given() {
    let Some(gpu) = device::gpu() else { return };
    let weight = |name: &str, layout: Layout| {
        let packed = Packed::pack(&noise(layout.len(), 9), layout, &QuantSpec::INT4, None).unwrap();
        Weight::upload(gpu, name, &packed).unwrap()
    };
    let conv = weight("conv.weight", Layout { rows: 16, taps: 9, channels: 24 });
    // A part of a joined tensor, and a layer that nobody asked for.
    let qkv = weight("qkv.weight[0..16]", Layout::linear(16, 16));
    let other = weight("other.weight", Layout::linear(8, 16));
    // A table of tokens that is the output layer, too.
    let tied = weight("tied.weight", Layout::linear(8, 16));
    let names = ["conv.weight", "qkv.weight", "tied.weight"].map(String::from);
    let observer = Arc::new(Observer::new(gpu, names, true));
    let (a, b) = (noise(2 * 5 * 4 * 8, 1), noise(2 * 5 * 4 * 16, 2));
    let graph = Graph::new(Elem::F32);
    let x = cat(graph.literal([2, 5, 4, 8], a.clone()), graph.literal([2, 5, 4, 16], b.clone()));
    // Without an observer, the activation would be the convolution's own.
    let h = silu(conv2d(x, &conv, None, Conv::default()));
    graph.output("h", h);
    graph.output("y", linear(linear(h, &qkv, None), &other, None));
    let tokens = embed(graph.input("ids", [1, 2], Elem::U32), &tied);
    graph.output("tokens", tokens);
    graph.output("logits", linear(tokens, &tied, None));
    let options = PlanOptions { observe: Some(observer.clone()), ..Default::default() };
    let plan = Plan::new(gpu, &graph, &options).unwrap();
    plan.set_u32("ids", &[3, 5]).unwrap();
    (0..3).for_each(|_| plan.run().unwrap());

    let seen = observer.statistics().unwrap();
    let names = ["conv.weight", "qkv.weight", "tied.weight"];
    assert_eq!(seen.layers.keys().collect::<Vec<_>>(), names);
    let joined: Vec<f32> =
        a.chunks(8).zip(b.chunks(16)).flat_map(|(a, b)| [a, b].concat()).collect();
    let [h, tokens] = ["h", "tokens"].map(|name| plan.read(name).unwrap());
    for (name, x, shape, walk) in [
        ("conv.weight", &joined, [2, 5, 4, 24], Walk { side: 3, conv: Conv::default() }),
        ("qkv.weight", &h, [1, 1, 40, 16], Walk::LINEAR),
        ("tied.weight", &tokens, [1, 1, 2, 16], Walk::LINEAR),
    ] {
        let (layer, rows) = (&seen.layers[name], columns(x, shape, walk));
        let k = rows[0].len();
        assert_eq!(layer.rows, 3.0 * rows.len() as f64, "{name}");
        let three = |values: Vec<f64>| values.into_iter().map(|v| 3.0 * v).collect::<Vec<f64>>();
        let want = three(moments::oracle(&rows));
        // f32 sums of up to 120 products: 1e-6 is some ten ulps.
        assert!(
            error(&layer.sum, &want[..k]) < 1e-5 && error(&layer.square, &want[k..2 * k]) < 1e-6
        );
        let [GramBlock { first: 0, width, values }] = &layer.gram[..] else { panic!("{name}") };
        let mut want = three(oracle(&rows, 0, k));
        if name == "tied.weight" {
            let mean = want.iter().step_by(k + 1).sum::<f64>() / k as f64;
            want.iter_mut().step_by(k + 1).for_each(|v| *v += mean);
        }
        assert!(*width == k && error(values, &want) < 1e-6, "{name}");
    }
}

/// X of correlated columns with means, as statistics.
fn statistics(k: usize, scale: impl Fn(usize) -> f32) -> LayerStatistics {
    let row = |seed: u64| -> Vec<f32> {
        let mut last = 0.0;
        let step = |(i, v): (usize, f32)| {
            last = 0.9 * last + v + 0.3;
            scale(i) * last
        };
        noise(k, seed).into_iter().enumerate().map(step).collect()
    };
    let rows: Vec<Vec<f32>> = (0..4 * k as u64).map(|i| row(100 + i)).collect();
    let sum = |f: &dyn Fn(&[f32]) -> f32| rows.iter().map(|row| f(row)).sum::<f32>();
    let values = (0..k * k).map(|at| sum(&|row| row[at / k] * row[at % k])).collect();
    LayerStatistics {
        rows: rows.len() as f64,
        sum: (0..k).map(|i| sum(&|row| row[i])).collect(),
        square: (0..k).map(|i| sum(&|row| row[i] * row[i])).collect(),
        gram: vec![GramBlock { first: 0, width: k, values }],
    }
}

fn quantized(
    store: &WeightStore,
    method: Method,
    statistics: Option<&Statistics>,
) -> (WeightStore, QuantizedReport) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let recipe = Recipe::builtin("int4", "unet").unwrap();
    let how = Quantize {
        recipe: &recipe,
        method,
        statistics: statistics.map(|all| (all, "noise")),
        form: Form::Own,
    };
    let report = quantize_with(store, &how, &path, |_, _, _| Ok(())).unwrap();
    // Mapped, it outlives its folder.
    (WeightStore::open(&path).unwrap(), report)
}

#[test]
fn methods_lessen_the_error_of_outputs() {
    let (n, k) = (48, 128);
    let f16 = |values: Vec<f32>| Data::F16(values.into_iter().map(half::f16::from_f32).collect());
    let w = noise(n * k, 3);
    let store = WeightStore::from_tensors(&[
        ("a.weight".into(), Tensor::new(&[n, k], f16(w.clone()))),
        ("a.bias".into(), Tensor::new(&[n], f16(vec![0.25; n]))),
    ])
    .unwrap();
    // One input in sixteen is loud.
    let layer = statistics(k, |i| if i % 16 == 3 { 4.0 } else { 1.0 });
    let all = Statistics { layers: [("a.weight".to_string(), layer.clone())].into() };
    let w = store.values("a.weight").unwrap();
    let mut db = BTreeMap::new();
    for method in [Method::Mse, Method::Imatrix, Method::Gptq] {
        let (made, report) = quantized(&store, method, Some(&all));
        let decoded = made.values("a.weight").unwrap();
        let (mut signal, mut noise) = (0.0, 0.0);
        for (w, q) in w.chunks(k).zip(decoded.chunks(k)) {
            let e: Vec<f32> = w.iter().zip(q).map(|(w, q)| q - w).collect();
            (signal, noise) = (signal + layer.power(w), noise + layer.power(&e));
        }
        let measured = 10.0 * f64::log10(signal / noise);
        let tensor = report.tensors.iter().find(|t| t.name == "a.weight").unwrap();
        assert!((tensor.output_sqnr_db.unwrap() - measured).abs() < 0.01, "{method:?}");
        let header = made.quantized().unwrap().calibration.clone().unwrap();
        assert_eq!((header.method.as_str(), header.data.as_str()), (method.name(), "noise"));
        assert_eq!(header.output_sqnr_db["a.weight"], tensor.output_sqnr_db.unwrap());
        db.insert(method.name(), measured);
        // The bias holds what the weights changed on average.
        let (bias, mean) = (made.vector("a.bias", n).unwrap(), layer.mean());
        for ((w, q), bias) in w.chunks(k).zip(decoded.chunks(k)).zip(bias) {
            let shift: f64 =
                w.iter().zip(q).zip(&mean).map(|((w, q), m)| f64::from(q - w) * m).sum();
            // Stored in f16: half an ulp is at most 2⁻¹¹ of the value.
            let close = f64::from(bias.abs()) / 1024.0 + 1e-5;
            assert!((f64::from(bias) + shift - 0.25).abs() < close, "{method:?} {bias} {shift}");
        }
    }
    assert!(db["imatrix"] > db["mse"] + 0.5 && db["gptq"] > db["imatrix"] + 3.0, "{db:?}");
    let (made, report) = quantized(&store, Method::Mse, None);
    assert!(made.quantized().unwrap().calibration.is_none());
    assert!(report.tensors.iter().all(|t| t.output_sqnr_db.is_none()));
    assert_eq!(made.vector("a.bias", n).unwrap(), vec![0.25; n]);
}

#[test]
fn awq_moves_scales_into_the_norm() {
    let k = 64;
    let place = "layers.0";
    let names = ["q_proj", "k_proj", "v_proj"].map(|n| format!("{place}.self_attn.{n}.weight"));
    let norm = format!("{place}.input_layernorm.weight");
    let tensors: Vec<(String, Tensor)> = names
        .iter()
        .enumerate()
        .map(|(i, name)| (name.clone(), Tensor::f32(&[32, k], noise(32 * k, 20 + i as u64))))
        .chain([(norm.clone(), Tensor::f32(&[k], vec![2.0; k]))])
        .collect();
    let store = WeightStore::from_tensors(&tensors).unwrap();
    let layer = statistics(k, |i| if i % 16 == 3 { 20.0 } else { 1.0 });
    let layers = names.iter().map(|name| (name.clone(), layer.clone())).collect();
    let all = Statistics { layers };
    let (made, report) = quantized(&store, Method::Awq, Some(&all));
    let gamma = made.vector(&norm, k).unwrap();
    assert!(gamma[3] < gamma[4], "loud channels are divided: {} {}", gamma[3], gamma[4]);
    // What norm and layer make together is the original but for the noise, of which there is less than without.
    let (_, plain) = quantized(&store, Method::Imatrix, Some(&all));
    for name in &names {
        let (w, q) = (store.values(name).unwrap(), made.values(name).unwrap());
        let product: Vec<f32> = q.iter().enumerate().map(|(i, q)| q * gamma[i % k] / 2.0).collect();
        let want: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
        // 4-bit weights of even density have about 20 dB.
        assert!(error(&product, &want) < 0.15, "{name}: {}", error(&product, &want));
        let db = |report: &QuantizedReport| {
            report.tensors.iter().find(|t| t.name == *name).unwrap().output_sqnr_db.unwrap()
        };
        assert!(db(&report) > db(&plain) - 0.2, "{name}: {} {}", db(&report), db(&plain));
    }
}

#[test]
fn a_calibration_goes_on_where_it_stopped() {
    let Some(gpu) = device::gpu() else { return };
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-chat");
    let folder = tempfile::tempdir().unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight".to_string();
    let run = |state: Option<PathBuf>, questions: usize| {
        let options = Options {
            model: model.clone(),
            layers: vec![(name.clone(), Layout::linear(256, 256))],
            gram: true,
            act: Elem::F32,
            state,
            memory: 1 << 20,
        };
        let questions = ["Hello!", "What is 2 plus 3?"][..questions].iter();
        let read =
            Read::Answers { questions: questions.map(ToString::to_string).collect(), most: 8 };
        let mut stages = vec![];
        let made = calibrate_text(gpu, &options, &read, &mut |stage, done, _| {
            stages.push((stage.to_string(), done));
        });
        (made, stages)
    };
    let state = folder.path().join("state.safetensors");
    let (whole, stages) = run(Some(state.clone()), 2);
    let whole = whole.unwrap();
    assert!(stages.contains(&("reading".to_string(), 1)));
    let layer = &whole.layers[&name];
    assert!(layer.rows > 20.0 && layer.gram[0].width == 256);
    // What is complete is not run again, and another calibration does not take it.
    let (again, stages) = run(Some(state.clone()), 2);
    assert!(
        again.unwrap() == whole && !stages.iter().any(|(stage, _)| stage == "reading"),
        "{stages:?}"
    );
    // Neither that of another calibration nor a file of something else is taken or written over.
    let refused = |path: &Path, questions: usize, code: u8, word: &str| {
        let before = std::fs::read(path).unwrap();
        let error = run(Some(path.to_path_buf()), questions).0.unwrap_err();
        assert!(error.exit_code() == code && error.to_string().contains(word), "{error}");
        assert!(std::fs::read(path).unwrap() == before, "{word}");
    };
    refused(&state, 1, 2, "another calibration");
    let weights = folder.path().join("model.safetensors");
    std::fs::copy(model.join("model.safetensors"), &weights).unwrap();
    refused(&weights, 2, 4, "no file of calibration statistics");
    std::fs::write(&weights, "garbage").unwrap();
    refused(&weights, 2, 4, "safetensors");
    let (one, _) = run(None, 1);
    assert!(one.unwrap().layers[&name].rows < layer.rows);
}

#[test]
fn compressed_tensors_hold_the_same_codes() {
    let (n, k) = (24, 96);
    let f16 = |values: Vec<f32>| Data::F16(values.into_iter().map(half::f16::from_f32).collect());
    // Denser near zero, so that cubic levels are worth their while.
    let dense = noise(n * k, 3).into_iter().map(|v| v * v * v).collect();
    let store = WeightStore::from_tensors(&[
        ("model.a.q_proj.weight".into(), Tensor::new(&[n, k], f16(dense))),
        ("model.embed_tokens.weight".into(), Tensor::new(&[n, k], f16(noise(n * k, 4)))),
        ("model.norm.weight".into(), Tensor::new(&[k], f16(vec![1.0; k]))),
    ])
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |weights: &str| {
        let recipe = Recipe::from_argument(weights, "llm").unwrap();
        let (method, statistics, form) = (Method::Mse, None, Form::CompressedTensors);
        let how = Quantize { recipe: &recipe, method, statistics, form };
        let path = folder.path().join("model.safetensors");
        quantize_with(&store, &how, path, |_, _, _| Ok(()))
    };
    let report = write("int4-g32-uniform").unwrap();
    let config = serde_json::json!({ "quantization_config": report.quantization_config.unwrap() });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let made = WeightStore::open(folder.path()).unwrap();
    let spec: QuantSpec = "int4-g32-uniform".parse().unwrap();
    let packed = |store: &WeightStore| store.pack("model.a.q_proj.weight", &[n, k], &spec).unwrap();
    assert_eq!(packed(&made).decode(), packed(&store).decode());
    assert_eq!(made.vector("model.norm.weight", k).unwrap(), vec![1.0; k]);
    let ignored = &config["quantization_config"]["ignore"];
    assert_eq!(*ignored, serde_json::json!(["model.embed_tokens", "lm_head"]));
    assert!(write("int4-g32-cubic").unwrap_err().to_string().contains("int4-g64-uniform"));
    assert!(write("fp16").is_err());
}
