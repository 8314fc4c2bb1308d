use inknib::gpu::Elem;
use inknib::graph::{Graph, Kernels, Plan, PlanOptions, Weight};
use inknib::nn::Linear;
use inknib::ops::concat::{cat, oracle};
use inknib::ops::matmul::oracle as product;
use inknib::ops::pointwise::Act;
use inknib::quant::{Layout, Packed, QuantSpec};

use crate::harness::*;

#[test]
fn channels_of_both_in_order() {
    let Some(gpu) = gpu() else { return };
    for act in acts(gpu) {
        for (rows, ca, cb) in [(6, 4, 8), (1, 64, 32), (5, 3, 4), (7, 1, 1), (40, 12, 20)] {
            let a = stored(act, &randn(1, rows * ca));
            let b = stored(act, &randn(2, rows * cb));
            for kernels in BOTH {
                let y = eval(gpu, kernels, act, |g| {
                    cat(
                        g.literal([1, rows, 1, ca], a.clone()),
                        g.literal([1, rows, 1, cb], b.clone()),
                    )
                });
                let y: Vec<f64> = y.into_iter().map(f64::from).collect();
                assert_eq!(y, oracle(&a, &b, ca, cb), "{kernels:?} {act:?} {rows} {ca} {cb}");
            }
        }
    }
}

#[test]
fn three_pictures_in_a_chain() {
    let Some(gpu) = gpu() else { return };
    let parts: Vec<Vec<f32>> = (0..3).map(|i| randn(i, 2 * 4)).collect();
    let y = eval(gpu, BOTH[1], Elem::F32, |g| {
        let [a, b, c] = [0, 1, 2].map(|i| g.literal([2, 4], parts[i].clone()));
        cat(cat(a, b), c)
    });
    let want: Vec<f32> =
        (0..2).flat_map(|r| parts.iter().flat_map(move |p| p[4 * r..4 * r + 4].to_vec())).collect();
    assert_eq!(y, want);
}

#[test]
fn shape_errors_say_what_is_wrong() {
    let graph = Graph::new(Elem::F32);
    let a = graph.input("a", [2, 5, 4], Elem::F32);
    let y = cat(a, graph.input("b", [2, 6, 4], Elem::F32));
    graph.output("y", y);
    let error = graph.finish().unwrap_err().to_string();
    assert!(error.contains("concat: [2, 5, 4] and [2, 6, 4]"), "{error}");
    let Some(gpu) = gpu() else { return };
    assert!(Plan::new(gpu, &graph, &PlanOptions::default()).is_err());
}

/// A shortcut of one tap reads both parts where they lie: no launch copies them.
#[test]
fn a_layer_over_both_copies_nothing() {
    let Some(gpu) = gpu() else { return };
    for (ca, cb) in [(64, 32), (20, 12), (3, 5)] {
        let (pixels, n) = (35, 24);
        let [a, b, w] = [(1, ca), (2, cb), (3, 0)].map(|(seed, c)| match c {
            0 => randn(seed, n * (ca + cb)),
            c => randn(seed, pixels * c),
        });
        let packed = Packed::pack(&w, Layout::linear(n, ca + cb), &QuantSpec::F32, None).unwrap();
        let weight = Weight::upload(gpu, "w", &packed).unwrap();
        let shortcut = Linear { weight, bias: None, branch: None };
        let x: Vec<f32> = oracle(&a, &b, ca, cb).into_iter().map(|v| v as f32).collect();
        let want = product(&x, &w, None, None, Act::None, ca + cb);
        for kernels in [Kernels::Reference, Kernels::Fast, Kernels::Hardware] {
            let graph = Graph::new(Elem::F32);
            let [a, b] = [(ca, &a), (cb, &b)].map(|(c, v)| graph.literal([1, 5, 7, c], v.clone()));
            graph.output("y", shortcut.forward(cat(a, b)));
            let plan =
                Plan::new(gpu, &graph, &PlanOptions { kernels, ..Default::default() }).unwrap();
            assert!(plan.launches().iter().all(|l| l.op != "concat"), "{kernels:?} {ca}+{cb}");
            plan.run().unwrap();
            let e = nmse(&plan.read("y").unwrap(), &want);
            assert!(e <= tolerance(Elem::F32), "{kernels:?} {ca}+{cb}: {e:.2e}");
        }
    }
}
