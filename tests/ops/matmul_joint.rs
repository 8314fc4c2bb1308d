use inknib::gpu::Gpu;
use inknib::graph::{Graph, Kernels, Plan, PlanOptions, Vector, Weight};
use inknib::ops::kv_cache::kv_write;
use inknib::ops::matmul::joint::BUFFERS;
use inknib::ops::matmul::{linear, linear_rounded, oracle};
use inknib::ops::norm::{oracle as norm_oracle, rms_norm};
use inknib::ops::pointwise::Act;
use inknib::quant::{Layout, Packed, QuantSpec};

use crate::harness::*;
use crate::matmul::rounded_norm;
use crate::rope::position;

const CONTEXT: usize = 9;

fn run(gpu: &Gpu, graph: &Graph, kernels: Kernels) -> Plan {
    let options = PlanOptions { kernels, poison: true, ..Default::default() };
    let plan = Plan::new(gpu, graph, &options).unwrap();
    plan.run().unwrap();
    plan
}

/// Queries, keys and values of a few tokens, the values straight into their cache, behind a norm: one launch on a real GPU.
#[test]
fn three_products_of_one_x_are_one_launch() {
    let Some(gpu) = gpu() else { return };
    for (spec, bias) in [
        ("int4-g32-uniform", false),
        ("int4-g64-cubic-mse", true),
        ("int8-g64", true),
        ("f16", false),
        ("f32", true),
    ] {
        let spec: QuantSpec = spec.parse().unwrap();
        for (m, rows, k) in [
            (1, [64, 32, 32], 128),
            (3, [33, 7, 12], 172),
            (4, [9, 40, 16], 1090),
            (6, [8, 8, 8], 64),
        ] {
            let packed: Vec<Packed> = (0..3)
                .map(|i| {
                    let w = randn(60 + i as u64, rows[i] * k);
                    Packed::pack(&w, Layout::linear(rows[i], k), &spec, None).unwrap()
                })
                .collect();
            let parts: Vec<(&str, &Packed)> = packed.iter().map(|p| ("w", p)).collect();
            let weights = Weight::upload_beside(gpu, &parts).unwrap().expect("one form");
            let biases: Vec<Vec<f32>> = (0..3).map(|i| randn(70 + i as u64, rows[i])).collect();
            let vectors: Vec<Vector> =
                biases.iter().map(|b| Vector::upload(gpu, "bias", b).unwrap()).collect();
            let gamma = randn(80, k);
            let scale = Vector::upload(gpu, "gamma", &gamma).unwrap();
            for act in acts(gpu) {
                let x = stored(act, &randn(81, m * k));
                let normed: Vec<f32> =
                    norm_oracle(&x, &gamma, None, 1, 1, 1e-3).iter().map(|v| *v as f32).collect();
                let want = |i: usize| {
                    let bias = bias.then_some(&biases[i][..]);
                    oracle(&normed, &packed[i].decode(), bias, None, Act::None, k)
                };
                for kernels in [Kernels::Reference, Kernels::Fast, Kernels::Hardware] {
                    let width = CONTEXT * rows[2] * act.bytes() as usize;
                    let cache = gpu.upload("cache", &vec![0u8; width]).unwrap();
                    let graph = Graph::new(act);
                    let x = rms_norm(graph.literal([1, m, k], x.clone()), &scale, 1e-3);
                    let y = |i: usize| linear(x, &weights[i], bias.then_some(&vectors[i]));
                    graph.output("q", y(0));
                    graph.output("k", y(1));
                    let cache = graph.external(&cache, [1, CONTEXT, rows[2]], act);
                    graph.output("v", kv_write(cache, y(2), position(gpu, &graph, 2)));
                    let plan = run(gpu, &graph, kernels);
                    let at = format!("{kernels:?} {act:?} {spec} {m} rows by {rows:?} of {k}");
                    for (i, name) in ["q", "k"].into_iter().enumerate() {
                        let e = nmse(&plan.read(name).unwrap(), &want(i));
                        assert!(e <= tolerance(act), "{name}, {at}: {e:.2e}");
                    }
                    let v = plan.read("v").unwrap();
                    let (before, rest) = v.split_at(2 * rows[2]);
                    let (new, after) = rest.split_at(m * rows[2]);
                    let e = nmse(new, &want(2));
                    assert!(e <= tolerance(act), "v, {at}: {e:.2e}");
                    assert!(before.iter().chain(after).all(|v| *v == 0.0), "{at}: others changed");
                    let one = kernels == Kernels::Hardware && m <= 4;
                    if one && gpu.caps().max_storage_buffers >= BUFFERS {
                        assert_eq!(plan.launches().len(), 1, "{at}");
                    }
                }
            }
        }
    }
}

/// Weights of different forms, or with reordered channels, lie by themselves.
#[test]
fn weights_of_two_forms_are_not_put_beside_each_other() {
    let Some(gpu) = gpu() else { return };
    let pack = |spec: &str, k: usize| {
        let spec: QuantSpec = spec.parse().unwrap();
        Packed::pack(&randn(1, 8 * k), Layout::linear(8, k), &spec, None).unwrap()
    };
    let (int4, int8, other) =
        (pack("int4-g32-uniform", 64), pack("int8-g64", 64), pack("int4-g32-uniform", 96));
    for (a, b) in [(&int4, &int8), (&int4, &other)] {
        assert!(Weight::upload_beside(gpu, &[("a", a), ("b", b)]).unwrap().is_none());
    }
    assert!(Weight::upload_beside(gpu, &[("a", &int4), ("b", &int4)]).unwrap().is_some());
}

/// The same of x in eight bits: one launch that rounds it behind its norm, and one for all three products.
#[test]
fn three_products_of_one_rounded_x_are_two_launches() {
    let Some(gpu) = gpu().filter(|gpu| gpu.caps().max_storage_buffers >= BUFFERS) else { return };
    for spec in ["int4-g32-uniform", "int8-g64"] {
        let spec: QuantSpec = spec.parse().unwrap();
        for (m, rows, k) in [(1, [64, 32, 32], 128), (3, [33, 7, 12], 172), (4, [9, 40, 16], 1090)]
        {
            let packed = [0, 1, 2].map(|i| {
                let w = randn(90 + i as u64, rows[i] * k);
                Packed::pack(&w, Layout::linear(rows[i], k), &spec, None).unwrap()
            });
            let weights =
                Weight::upload_beside(gpu, &packed.each_ref().map(|p| ("w", p))).unwrap().unwrap();
            let gamma = randn(93, k);
            let scale = Vector::upload(gpu, "gamma", &gamma).unwrap();
            for act in acts(gpu) {
                let x = stored(act, &randn(94, m * k));
                let normed = rounded_norm(gpu, &x, &gamma, 1e-3);
                let graph = Graph::new(act);
                let x = rms_norm(graph.literal([1, m, k], x), &scale, 1e-3);
                for (name, weight) in ["q", "k", "v"].into_iter().zip(&weights) {
                    graph.output(name, linear_rounded(x, weight, None));
                }
                let plan = run(gpu, &graph, Kernels::Hardware);
                let at = format!("{act:?} {spec} {m} rows by {rows:?} of {k}");
                for (name, packed) in ["q", "k", "v"].into_iter().zip(&packed) {
                    let want = oracle(&normed, &packed.decode(), None, None, Act::None, k);
                    let e = nmse(&plan.read(name).unwrap(), &want);
                    assert!(e <= tolerance(act), "{name}, {at}: {e:.2e}");
                }
                assert_eq!(plan.launches().len(), 2, "{at}");
            }
        }
    }
}
