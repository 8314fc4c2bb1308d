use inknib::gpu::{Elem, Gpu};
use inknib::graph::{Graph, Kernels, Plan, PlanOptions, Vector, Weight};
use inknib::ops::kv_cache::kv_write;
use inknib::ops::matmul::joint::BUFFERS;
use inknib::ops::matmul::{linear, oracle};
use inknib::ops::pointwise::{Act, gated};
use inknib::quant::{Layout, Packed, QuantSpec};

use crate::harness::*;
use crate::rope::position;

const SPECS: [&str; 7] = [
    "int4-g32-uniform",
    "int4-g32-cubic-mse",
    MIXED,
    "int4-g64-cubic-mse",
    "int8-g64",
    "f16",
    "f32",
];
/// The first weight has even levels, the others cubic ones: a search may find that best.
const MIXED: &str = "int4-g32, levels mixed";
const ALL: [Kernels; 3] = [Kernels::Reference, Kernels::Fast, Kernels::Hardware];

/// Weights of one x side by side. Each is spread differently, so that the levels of cubic ones are.
fn beside(gpu: &Gpu, spec: &str, rows: &[usize], k: usize) -> (Vec<Packed>, Vec<Weight>) {
    let pack = |(i, rows): (usize, &usize)| {
        let spec = match (spec, i) {
            (MIXED, 0) => "int4-g32-uniform",
            (MIXED, _) => "int4-g32-cubic-mse",
            _ => spec,
        };
        let spec: QuantSpec = spec.parse().unwrap();
        let w: Vec<f32> =
            randn(60 + i as u64, rows * k).iter().map(|v| v * v.abs().powi(2 * i as i32)).collect();
        Packed::pack(&w, Layout::linear(*rows, k), &spec, None).unwrap()
    };
    let packed: Vec<Packed> = rows.iter().enumerate().map(pack).collect();
    assert!(spec != MIXED || packed[0].format.cubic() == 0.0 && packed[1].format.cubic() > 0.0);
    let parts: Vec<(&str, &Packed)> = packed.iter().map(|p| ("w", p)).collect();
    let weights = Weight::upload_beside(gpu, &parts).unwrap().expect("one form");
    (packed, weights)
}

fn plan(gpu: &Gpu, graph: &Graph, kernels: Kernels) -> Plan {
    let options = PlanOptions { kernels, poison: true, guards: true, ..Default::default() };
    let plan = Plan::new(gpu, graph, &options).unwrap();
    plan.run().unwrap();
    assert!(plan.guards_intact().unwrap(), "{kernels:?} wrote behind a value");
    plan
}

/// Queries, keys and values of many tokens, the values straight into their cache: one launch of a real GPU's kernels where nothing
/// lies between the weights.
#[test]
fn three_products_of_many_rows_are_one_launch() {
    let Some(gpu) = gpu() else { return };
    for (i, spec) in SPECS.into_iter().enumerate() {
        let bias = i % 2 == 1;
        for (m, rows, k, [one, launches]) in [
            // The second weight begins within a tile, and so does the third.
            (5, [96, 64, 32], 128, [0, 1]),
            (70, [128, 128, 40], 172, [1, 1]),
            (130, [320, 320, 320], 320, [1, 1]),
            // Sums in two parts.
            (16, [128, 128, 64], 1090, [1, 2]),
            // Of most formats something lies between.
            (33, [33, 7, 12], 64, [0, 1]),
            // Few rows go by pieces.
            (3, [128, 128, 40], 172, [1, 1]),
        ] {
            let (packed, weights) = beside(gpu, spec, &rows, k);
            let several = Weight::several(&weights.iter().collect::<Vec<_>>()).is_some();
            assert!(several || one == 0, "{spec} {rows:?} of {k}");
            let launches = if several { launches } else { 3 };
            let biases: Vec<Vec<f32>> = (0..3).map(|i| randn(70 + i as u64, rows[i])).collect();
            let vectors: Vec<Vector> =
                biases.iter().map(|b| Vector::upload(gpu, "bias", b).unwrap()).collect();
            for act in acts(gpu) {
                let x = stored(act, &randn(81, m * k));
                let want = |i: usize| {
                    let bias = bias.then_some(&biases[i][..]);
                    oracle(&x, &packed[i].decode(), bias, None, Act::None, k)
                };
                let context = m + 5;
                for kernels in ALL {
                    let cache =
                        vec![0u8; context * rows[2] * usize::try_from(act.bytes()).unwrap()];
                    let cache = gpu.upload("cache", &cache).unwrap();
                    let graph = Graph::new(act);
                    let x = graph.literal([1, m, k], x.clone());
                    let y = |i: usize| linear(x, &weights[i], bias.then_some(&vectors[i]));
                    graph.output("q", y(0));
                    graph.output("k", y(1));
                    let cache = graph.external(&cache, [1, context, rows[2]], act);
                    graph.output("v", kv_write(cache, y(2), position(gpu, &graph, 2)));
                    let plan = plan(gpu, &graph, kernels);
                    let at = format!("{kernels:?} {act:?} {spec} {m} rows by {rows:?} of {k}");
                    let v = plan.read("v").unwrap();
                    let (before, rest) = v.split_at(2 * rows[2]);
                    let (new, after) = rest.split_at(m * rows[2]);
                    assert!(before.iter().chain(after).all(|v| *v == 0.0), "{at}: others changed");
                    for (i, got) in [plan.read("q").unwrap(), plan.read("k").unwrap(), new.to_vec()]
                        .iter()
                        .enumerate()
                    {
                        let e = nmse(got, &want(i));
                        assert!(e <= tolerance(act), "{i}, {at}: {e:.2e}");
                    }
                    if kernels == Kernels::Hardware && gpu.caps().max_storage_buffers >= BUFFERS {
                        assert_eq!(plan.launches().len(), launches, "{at}");
                    }
                }
            }
        }
    }
}

/// Rows that do not fit their cache are dropped, wherever they would begin.
#[test]
fn values_of_many_rows_beyond_the_cache_are_dropped() {
    let Some(gpu) = gpu() else { return };
    let (rows, k, context) = ([64, 64, 64], 128, 9);
    let (packed, weights) = beside(gpu, "int8-g64", &rows, k);
    let x = randn(81, 7 * k);
    let want = oracle(&x, &packed[2].decode(), None, None, Act::None, k);
    for (at, kept) in [(4, 5), (9, 0), (u32::MAX - 2, 0)] {
        let cache = gpu.upload("cache", &vec![0u8; context * rows[2] * 4]).unwrap();
        let graph = Graph::new(Elem::F32);
        let x = graph.literal([1, 7, k], x.clone());
        graph.output("q", linear(x, &weights[0], None));
        graph.output("k", linear(x, &weights[1], None));
        let cache = graph.external(&cache, [1, context, rows[2]], Elem::F32);
        graph.output("v", kv_write(cache, linear(x, &weights[2], None), position(gpu, &graph, at)));
        let v = plan(gpu, &graph, Kernels::Hardware).read("v").unwrap();
        let (before, new) = v.split_at((context - kept) * rows[2]);
        assert!(before.iter().all(|v| *v == 0.0), "from {at} on");
        let e = nmse(new, &want[..kept * rows[2]]);
        assert!(kept == 0 || e <= tolerance(Elem::F32), "from {at} on: {e:.2e}");
    }
}

/// What an MLP begins with, of many tokens and without biases: one launch of a real GPU's kernels where whole tiles have both halves.
#[test]
fn a_gated_unit_of_many_rows_is_one_launch() {
    let Some(gpu) = gpu() else { return };
    for (i, spec) in SPECS.into_iter().enumerate() {
        let act_fn = [Act::Silu, Act::GeluTanh][i % 2];
        for (m, n, k, bias, launches) in [
            (5, 64, 128, false, 1),
            (70, 128, 172, false, 1),
            (130, 320, 320, false, 1),
            (17, 1024, 64, false, 1),
            (33, 80, 64, false, 2),
            (33, 128, 64, true, 2),
            (2, 128, 172, true, 1),
        ] {
            let (packed, weights) = beside(gpu, spec, &[n, n], k);
            let biases: Vec<Vec<f32>> = (0..2).map(|i| randn(70 + i as u64, n)).collect();
            let vectors: Vec<Vector> =
                biases.iter().map(|b| Vector::upload(gpu, "bias", b).unwrap()).collect();
            for act in acts(gpu) {
                let x = stored(act, &randn(81, m * k));
                let side = |i: usize, f| {
                    let bias = bias.then_some(&biases[i][..]);
                    oracle(&x, &packed[i].decode(), bias, None, f, k)
                };
                let both = side(0, act_fn).into_iter().zip(side(1, Act::None));
                let want: Vec<f64> = both.map(|(gate, up)| gate * up).collect();
                for kernels in ALL {
                    let graph = Graph::new(act);
                    let x = graph.literal([1, m, k], x.clone());
                    let y = |i: usize| linear(x, &weights[i], bias.then_some(&vectors[i]));
                    graph.output("y", gated(y(0), y(1), act_fn));
                    let plan = plan(gpu, &graph, kernels);
                    let at = format!("{kernels:?} {act:?} {spec} {m} rows by {n} of {k}");
                    let e = nmse(&plan.read("y").unwrap(), &want);
                    // In f16 one half is rounded before the result is.
                    assert!(e <= 2.0 * tolerance(act), "{at}: {e:.2e}");
                    if kernels == Kernels::Hardware {
                        assert_eq!(plan.launches().len(), launches, "{at}");
                    }
                }
            }
        }
    }
}
