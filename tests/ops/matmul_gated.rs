use inknib::graph::{Graph, Kernels, Plan, PlanOptions, Vector, Weight};
use inknib::ops::matmul::{linear, linear_rounded, oracle};
use inknib::ops::norm::{oracle as norm_oracle, rms_norm};
use inknib::ops::pointwise::{Act, gated};
use inknib::quant::{Layout, Packed, QuantSpec};

use crate::harness::*;
use crate::matmul::rounded_norm;

/// What an MLP begins with, behind a norm: one launch on a real GPU where the weights lie side by side, two of few rows where they
/// do not, and the same numbers everywhere.
#[test]
fn both_products_of_a_gated_unit_are_one_launch() {
    let Some(gpu) = gpu() else { return };
    for (spec, bias, act_fn) in [
        ("int4-g32-uniform", false, Act::Silu),
        ("int4-g64-cubic-mse", true, Act::GeluTanh),
        ("int8-g64", true, Act::Silu),
        ("f16", false, Act::Gelu),
        ("f32", true, Act::Silu),
    ] {
        let spec: QuantSpec = spec.parse().unwrap();
        for (m, n, k) in [(1, 64, 128), (3, 33, 172), (4, 7, 1090), (1, 1, 64), (6, 8, 64)] {
            let packed: Vec<Packed> = (0..2)
                .map(|i| {
                    let w = randn(60 + i, n * k);
                    Packed::pack(&w, Layout::linear(n, k), &spec, None).unwrap()
                })
                .collect();
            let parts: Vec<(&str, &Packed)> = packed.iter().map(|p| ("w", p)).collect();
            let beside = Weight::upload_beside(gpu, &parts).unwrap().expect("one form");
            let apart: Vec<Weight> =
                packed.iter().map(|p| Weight::upload(gpu, "w", p).unwrap()).collect();
            let biases: Vec<Vec<f32>> = (0..2).map(|i| randn(70 + i, n)).collect();
            let vectors: Vec<Vector> =
                biases.iter().map(|b| Vector::upload(gpu, "bias", b).unwrap()).collect();
            let gamma = randn(80, k);
            let scale = Vector::upload(gpu, "gamma", &gamma).unwrap();
            for act in acts(gpu) {
                let x = stored(act, &randn(81, m * k));
                let normed: Vec<f32> =
                    norm_oracle(&x, &gamma, None, 1, 1, 1e-3).iter().map(|v| *v as f32).collect();
                let side = |i: usize, f| {
                    let bias = bias.then_some(&biases[i][..]);
                    oracle(&normed, &packed[i].decode(), bias, None, f, k)
                };
                let (gate, up) = (side(0, act_fn), side(1, Act::None));
                let want: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g * u).collect();
                for (weights, launches) in [(&beside, 1), (&apart, 2)] {
                    for kernels in [Kernels::Reference, Kernels::Fast, Kernels::Hardware] {
                        let graph = Graph::new(act);
                        let x = rms_norm(graph.literal([1, m, k], x.clone()), &scale, 1e-3);
                        let y = |i: usize| linear(x, &weights[i], bias.then_some(&vectors[i]));
                        graph.output("y", gated(y(0), y(1), act_fn));
                        let options = PlanOptions { kernels, poison: true, ..Default::default() };
                        let plan = Plan::new(gpu, &graph, &options).unwrap();
                        plan.run().unwrap();
                        let at = format!("{kernels:?} {act:?} {spec} {m} rows by {n} of {k}");
                        let e = nmse(&plan.read("y").unwrap(), &want);
                        // In f16 the norm, one half and the result are rounded where they are stored.
                        assert!(e <= 3.0 * tolerance(act), "{at}: {e:.2e}");
                        if kernels == Kernels::Hardware && m <= 4 {
                            assert_eq!(plan.launches().len(), launches, "{at}");
                        }
                    }
                }
            }
        }
    }
}

/// The same of x in eight bits: one launch that rounds it behind its norm, and one for both products.
#[test]
fn a_gated_unit_of_a_rounded_x_is_two_launches() {
    let Some(gpu) = gpu() else { return };
    for spec in ["int4-g32-uniform", "int8-g64"] {
        let spec: QuantSpec = spec.parse().unwrap();
        for (m, n, k) in [(1, 64, 128), (3, 33, 172), (4, 7, 1090)] {
            let packed = [0, 1].map(|i| {
                let w = randn(90 + i, n * k);
                Packed::pack(&w, Layout::linear(n, k), &spec, None).unwrap()
            });
            let parts = packed.each_ref().map(|p| ("w", p));
            let weights = Weight::upload_beside(gpu, &parts).unwrap().unwrap();
            let gamma = randn(93, k);
            let scale = Vector::upload(gpu, "gamma", &gamma).unwrap();
            for act in acts(gpu) {
                let x = stored(act, &randn(94, m * k));
                let normed = rounded_norm(gpu, &x, &gamma, 1e-3);
                let graph = Graph::new(act);
                let x = rms_norm(graph.literal([1, m, k], x), &scale, 1e-3);
                let y = |i: usize| linear_rounded(x, &weights[i], None);
                graph.output("y", gated(y(0), y(1), Act::Silu));
                let kernels = Kernels::Hardware;
                let options = PlanOptions { kernels, poison: true, ..Default::default() };
                let plan = Plan::new(gpu, &graph, &options).unwrap();
                plan.run().unwrap();
                let side = |i: usize, f| oracle(&normed, &packed[i].decode(), None, None, f, k);
                let (gate, up) = (side(0, Act::Silu), side(1, Act::None));
                let want: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g * u).collect();
                let e = nmse(&plan.read("y").unwrap(), &want);
                assert!(e <= tolerance(act), "{act:?} {spec} {m} rows by {n} of {k}: {e:.2e}");
                assert_eq!(plan.launches().len(), 2);
            }
        }
    }
}
