//! Queries and keys that turn in the launch of their products.

use inknib::gpu::{Elem, Gpu};
use inknib::graph::{Graph, Kernels, Plan, PlanOptions, Vector, Weight};
use inknib::ops::kv_cache::kv_write;
use inknib::ops::matmul::joint::BUFFERS;
use inknib::ops::matmul::{linear, oracle};
use inknib::ops::norm::{oracle as norm_oracle, rms_norm};
use inknib::ops::pointwise::Act;
use inknib::ops::rope::{self, Rotary, rope};
use inknib::quant::{Layout, Packed};

use crate::harness::*;
use crate::rope::position;

const CONTEXT: usize = 13;
const START: u32 = 5;
const SCALE: f32 = 1.19;

/// Rows of x, heads of queries and of keys, channels of a head and those that turn, columns of x.
type Size = [usize; 6];

struct Layer {
    size: Size,
    packed: Vec<Packed>,
    biases: Option<Vec<Vec<f32>>>,
    gamma: Vec<f32>,
    inv_freq: Vec<f32>,
}

impl Layer {
    fn new(size: Size, spec: &str, bias: bool) -> Layer {
        let [_, heads, kv, d, r, k] = size;
        let widths = [heads * d, kv * d, kv * d];
        let pack = |(i, rows): (usize, &usize)| {
            let w = randn(60 + i as u64, rows * k);
            Packed::pack(&w, Layout::linear(*rows, k), &spec.parse().unwrap(), None).unwrap()
        };
        let biases = || (0..3).map(|i| randn(70 + i as u64, widths[i])).collect();
        Layer {
            size,
            packed: widths.iter().enumerate().map(pack).collect(),
            biases: bias.then(biases),
            gamma: randn(80, k),
            inv_freq: (0..r / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / r as f32)).collect(),
        }
    }

    /// Queries, keys and values of x.
    fn want(&self, x: &[f32]) -> [Vec<f64>; 3] {
        let [rows, heads, kv, d, _, k] = self.size;
        let normed = norm_oracle(x, &self.gamma, None, 1, 1, 1e-3);
        let normed: Vec<f32> = normed.iter().map(|v| *v as f32).collect();
        [0, 1, 2].map(|i| {
            let bias = self.biases.as_ref().map(|biases| &biases[i][..]);
            let y = oracle(&normed, &self.packed[i].decode(), bias, None, Act::None, k);
            let case = |heads| rope::Case { rows, heads, d, start: START, scale: SCALE };
            let turned: Vec<f32> = y.iter().map(|v| *v as f32).collect();
            match i {
                0 => rope::oracle(&turned, &self.inv_freq, case(heads)),
                1 => rope::oracle(&turned, &self.inv_freq, case(kv)),
                _ => y,
            }
        })
    }

    /// The same by a device, keys and values as their caches are afterwards, and the number of launches.
    fn run(&self, gpu: &Gpu, x: &[f32], how: (Elem, Kernels, bool)) -> ([Vec<f32>; 3], usize) {
        let [rows, heads, kv, d, _, k] = self.size;
        let (act, kernels, beside) = how;
        let parts: Vec<(&str, &Packed)> = self.packed.iter().map(|p| ("w", p)).collect();
        let weights = match beside {
            true => Weight::upload_beside(gpu, &parts).unwrap().expect("one form"),
            false => parts.iter().map(|(n, p)| Weight::upload(gpu, n, p).unwrap()).collect(),
        };
        let vector = |v: &Vec<f32>| Vector::upload(gpu, "vector", v).unwrap();
        let rotary = Rotary { inv_freq: vector(&self.inv_freq), scale: SCALE };
        let graph = Graph::new(act);
        let normed = rms_norm(graph.literal([1, rows, k], x.to_vec()), &vector(&self.gamma), 1e-3);
        let start = position(gpu, &graph, START);
        let y = |i: usize| {
            let bias = self.biases.as_ref().map(|biases| vector(&biases[i]));
            linear(normed, &weights[i], bias.as_ref())
        };
        let cache = || {
            let bytes = vec![0u8; CONTEXT * kv * d * act.bytes() as usize];
            graph.external(&gpu.upload("cache", &bytes).unwrap(), [1, CONTEXT, kv * d], act)
        };
        graph.output("q", rope(y(0), start, &rotary, heads));
        graph.output("k", kv_write(cache(), rope(y(1), start, &rotary, kv), start));
        graph.output("v", kv_write(cache(), y(2), start));
        let options = PlanOptions { kernels, poison: true, ..Default::default() };
        let plan = Plan::new(gpu, &graph, &options).unwrap();
        plan.run().unwrap();
        (["q", "k", "v"].map(|name| plan.read(name).unwrap()), plan.launches().len())
    }
}

#[test]
fn queries_and_keys_turn_in_the_launch_of_their_products() {
    let Some(gpu) = gpu() else { return };
    for (spec, bias) in [
        ("int4-g32-uniform", false),
        ("int4-g64-cubic-mse", true),
        ("int8-g64", true),
        ("f16", false),
    ] {
        for size in [
            [1, 4, 2, 32, 32, 128],
            // Few channels of many turn, more than a group of lanes has rows, and rows of x that are no whole eights.
            [3, 2, 1, 40, 8, 172],
            [4, 3, 3, 24, 16, 90],
            // Many heads, and more rows than these kernels take.
            [4, 9, 3, 64, 64, 576],
            [6, 2, 1, 16, 16, 64],
        ] {
            let layer = Layer::new(size, spec, bias);
            let [rows, _, kv, d, ..] = size;
            for act in acts(gpu) {
                let x = stored(act, &randn(81, rows * size[5]));
                let want = layer.want(&x);
                for kernels in [Kernels::Reference, Kernels::Fast, Kernels::Hardware] {
                    for beside in [true, false] {
                        let (got, launches) = layer.run(gpu, &x, (act, kernels, beside));
                        let at = format!("{kernels:?} {act:?} {spec} {size:?} {beside}");
                        let from = START as usize * kv * d;
                        let written = from..from + rows * kv * d;
                        let new = [&got[0][..], &got[1][written.clone()], &got[2][written.clone()]];
                        for (i, name) in ["q", "k", "v"].into_iter().enumerate() {
                            let e = nmse(new[i], &want[i]);
                            // In f16 a product of its own is rounded before it turns.
                            assert!(e <= 2.0 * tolerance(act), "{name}, {at}: {e:.2e}");
                        }
                        for cache in &got[1..] {
                            let mut rest = cache[..from].iter().chain(&cache[written.end..]);
                            assert!(rest.all(|v| *v == 0.0), "{at}: other rows changed");
                        }
                        let one = kernels == Kernels::Hardware && rows <= 4 && beside;
                        if one && gpu.caps().max_storage_buffers >= BUFFERS {
                            assert_eq!(launches, 1, "{at}");
                        }
                    }
                }
            }
        }
    }
}

/// What the launch knows one of: positions that differ, and a product before the heads that ends within a group of lanes, are
/// computed one by one.
#[test]
fn products_that_share_less_are_right_as_well() {
    let Some(gpu) = gpu() else { return };
    let (k, d, act) = (64, 16, Elem::F32);
    let inv_freq: Vec<f32> = (0..d / 2).map(|i| 0.5 / (i + 1) as f32).collect();
    let rotary =
        Rotary { inv_freq: Vector::upload(gpu, "inv_freq", &inv_freq).unwrap(), scale: 1.0 };
    let x = randn(1, k);
    for (first, starts) in [(33, [5, 5]), (32, [5, 7])] {
        let packed = [first, 2 * d, d].map(|rows| {
            let w = randn(rows as u64, rows * k);
            Packed::pack(&w, Layout::linear(rows, k), &"int8-g64".parse().unwrap(), None).unwrap()
        });
        let parts = packed.each_ref().map(|p| ("w", p));
        let weights = Weight::upload_beside(gpu, &parts).unwrap().expect("one form");
        let graph = Graph::new(act);
        let input = graph.literal([1, 1, k], x.clone());
        // Positions that are the same are one value of the graph.
        let at = position(gpu, &graph, starts[0]);
        let other = if starts[0] == starts[1] { at } else { position(gpu, &graph, starts[1]) };
        graph.output("v", linear(input, &weights[0], None));
        graph.output("q", rope(linear(input, &weights[1], None), at, &rotary, 2));
        graph.output("k", rope(linear(input, &weights[2], None), other, &rotary, 1));
        let options =
            PlanOptions { kernels: Kernels::Hardware, poison: true, ..Default::default() };
        let plan = Plan::new(gpu, &graph, &options).unwrap();
        plan.run().unwrap();
        for (i, (name, heads)) in [("v", 0), ("q", 2), ("k", 1)].into_iter().enumerate() {
            let mut want = oracle(&x, &packed[i].decode(), None, None, Act::None, k);
            if heads > 0 {
                let y: Vec<f32> = want.iter().map(|v| *v as f32).collect();
                let case = rope::Case { rows: 1, heads, d, start: starts[i - 1], scale: 1.0 };
                want = rope::oracle(&y, &inv_freq, case);
            }
            let e = nmse(&plan.read(name).unwrap(), &want);
            assert!(e <= tolerance(act), "{name}, {first} rows, {starts:?}: {e:.2e}");
        }
        assert!(plan.launches().len() > 1);
    }
}
