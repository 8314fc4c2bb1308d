use inknib::gpu::Elem;
use inknib::graph::{Graph, Plan, PlanOptions, Weight};
use inknib::ops::conv2d::{Conv, conv2d};
use inknib::ops::embed::embed;
use inknib::ops::gather::{gather, oracle};
use inknib::ops::matmul::{linear, oracle as product};
use inknib::ops::pointwise::Act;
use inknib::quant::Layout;

use crate::harness::*;

/// A permutation of 0..c without a short cycle.
fn shuffled(c: usize) -> Vec<u32> {
    let step = (c / 2 + 1..)
        .find(|s| (2..=*s).all(|d| !(c.is_multiple_of(d) && s.is_multiple_of(d))))
        .unwrap();
    (0..c).map(|i| ((i + 1) * step % c) as u32).collect()
}

#[test]
fn every_channel_comes_from_its_column() {
    let Some(gpu) = gpu() else { return };
    for act in acts(gpu) {
        for (rows, c) in [(1, 8), (7, 172), (3, 9), (2, 1)] {
            let x = stored(act, &randn(1, rows * c));
            let columns = shuffled(c);
            let want = oracle(&x, &columns);
            for kernels in BOTH {
                let graph = Graph::new(act);
                let y = gather(
                    graph.literal([1, rows, c], x.clone()),
                    graph.input("columns", [c], Elem::U32),
                );
                graph.output("y", y);
                let options = PlanOptions { kernels, poison: true, ..Default::default() };
                let plan = Plan::new(gpu, &graph, &options).unwrap();
                plan.set_u32("columns", &columns).unwrap();
                plan.run().unwrap();
                let y: Vec<f64> = plan.read("y").unwrap().into_iter().map(f64::from).collect();
                assert_eq!(y, want, "{kernels:?} {act:?} {rows}x{c}: a copy is exact");
                // A number beyond the channels is the last one.
                plan.set_u32("columns", &vec![u32::MAX; c]).unwrap();
                plan.run().unwrap();
                let y = plan.read("y").unwrap();
                assert!((0..rows * c).all(|i| y[i] == x[i / c * c + c - 1]), "{kernels:?} {act:?}");
            }
        }
    }
}

#[test]
fn a_weight_with_reordered_channels_is_multiplied_in_its_order() {
    let Some(gpu) = gpu() else { return };
    let (m, n, k) = (5, 24, 72);
    for (name, packed) in foreign(Layout::linear(n, k), 40) {
        let packed = packed.with_columns(&shuffled(k)).unwrap();
        // Windows keep the order too.
        let weight = Weight::upload_windowed(gpu, "w", &packed, 10 * 4 * packed.row_words() as u64);
        let weight = weight.unwrap();
        for act in acts(gpu) {
            let x = stored(act, &randn(41, m * k));
            let want = product(&x, &packed.decode(), None, None, Act::None, k);
            for kernels in BOTH {
                let y = eval(gpu, kernels, act, |g| {
                    linear(g.literal([m, k], x.clone()), &weight, None)
                });
                let e = nmse(&y, &want);
                assert!(e <= tolerance(act), "{kernels:?} {act:?} {name}: {e:.2e}");
            }
        }
    }
}

#[test]
fn shape_errors_say_what_is_wrong() {
    let message = |x: &[usize], columns: &[usize], elem: Elem| {
        let graph = Graph::new(Elem::F32);
        gather(graph.input("x", x, Elem::F32), graph.input("columns", columns, elem));
        graph.finish().unwrap_err().to_string()
    };
    assert!(message(&[2, 8], &[7], Elem::U32).contains("gather: x [2, 8] with columns [7]"));
    assert!(message(&[2, 8], &[8], Elem::F32).contains("of F32; it takes u32"));
    // Ops that cannot reorder what they read say so rather than compute something else.
    let Some(gpu) = gpu() else { return };
    let (_, packed) = foreign(Layout::linear(8, 8), 1).swap_remove(0);
    let weight = packed.with_columns(&shuffled(8)).unwrap();
    let weight = Weight::upload(gpu, "w", &weight).unwrap();
    let graph = Graph::new(Elem::F32);
    embed(graph.input("ids", [1, 2], Elem::U32), &weight);
    assert!(graph.finish().unwrap_err().to_string().contains("reordered"));
    let graph = Graph::new(Elem::F32);
    let conv = Conv { stride: 2, ..Default::default() };
    conv2d(graph.input("x", [1, 4, 4, 8], Elem::F32), &weight, None, conv);
    assert!(graph.finish().unwrap_err().to_string().contains("reordered"));
}
