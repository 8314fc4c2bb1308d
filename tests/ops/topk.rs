use inknib::gpu::Elem;
use inknib::graph::{Graph, Kernels, Plan, PlanOptions};
use inknib::ops::topk::{NOT_FINITE, argmax, oracle, top_k};

use crate::harness::*;

/// Ids of argmax, then values and ids of top-k.
fn run(kernels: Kernels, x: &[f32], k: usize) -> Option<(u32, Vec<f32>, Vec<u32>)> {
    let gpu = gpu()?;
    let graph = Graph::new(Elem::F32);
    let v = graph.input("x", [1, x.len()], Elem::F32);
    graph.output("best", argmax(v));
    graph.output("top", top_k(v, k));
    let options = PlanOptions { kernels, poison: true, ..Default::default() };
    let plan = Plan::new(gpu, &graph, &options).unwrap();
    plan.set("x", x).unwrap();
    plan.run().unwrap();
    let best = plan.read_u32("best").unwrap();
    let top = plan.read_u32("top").unwrap();
    assert_eq!((best.len(), top.len()), (1, 2 * k));
    let values = top[..k].iter().map(|b| f32::from_bits(*b)).collect();
    Some((best[0], values, top[k..].to_vec()))
}

fn check(x: &[f32], k: usize) {
    let want = oracle(x, k).unwrap();
    for kernels in BOTH {
        let Some((best, values, ids)) = run(kernels, x, k) else { return };
        let case = format!("{kernels:?} V {} k {k}", x.len());
        assert_eq!(best, want[0].1, "{case}");
        // A choice, not a computation: exact, values too.
        let (want_values, want_ids): (Vec<f32>, Vec<u32>) = want.iter().copied().unzip();
        assert_eq!(ids, want_ids, "{case}");
        assert_eq!(values, want_values, "{case}");
    }
}

#[test]
fn the_largest_come_in_order_at_every_size() {
    for (v, k) in [(1, 1), (2, 2), (63, 5), (64, 64), (255, 7), (4096, 40), (4097, 64), (9001, 33)]
    {
        check(&randn(v as u64, v), k);
    }
}

#[test]
fn a_vocabulary_of_152k_needs_several_stages() {
    let x = randn(7, 151_936);
    check(&x, 64);
    check(&x, 1);
    // All candidates in one segment, the last one.
    let rising: Vec<f32> = (0..151_936).map(|i| i as f32).collect();
    check(&rising, 64);
}

#[test]
fn among_equals_the_lower_id_is_first() {
    check(&[1.0; 9000], 64);
    let steps: Vec<f32> = randn(3, 20_000).iter().map(|v| (v * 2.0).round()).collect();
    check(&steps, 64);
    // −0 and 0 are equal; the smallest numbers keep their order (denormals too, where they are bits).
    check(&[-0.0, 0.0, -1.0, 0.0, -0.0, f32::MIN, f32::MAX, 1e-40, -1e-40, 1e-45], 10);
}

#[test]
fn a_logit_that_is_not_finite_is_reported_and_never_chosen() {
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 4095, 4096, 8999] {
            let mut x = randn(9, 9000);
            x[at] = bad;
            assert!(oracle(&x, 5).is_none());
            for kernels in BOTH {
                let Some((best, values, ids)) = run(kernels, &x, 5) else { return };
                assert_eq!(best, NOT_FINITE, "{kernels:?} {bad} at {at}");
                assert_eq!(ids, [NOT_FINITE; 5], "{kernels:?} {bad} at {at}");
                assert!(values.iter().all(|v| v.is_nan()), "{kernels:?} {values:?}");
            }
        }
    }
}

#[test]
fn what_cannot_be_chosen_is_a_shape_error() {
    for (shape, k) in [([1, 10], 11), ([1, 100], 65), ([1, 10], 0), ([2, 10], 1)] {
        let graph = Graph::new(Elem::F32);
        top_k(graph.input("x", shape, Elem::F32), k);
        let error = graph.finish().unwrap_err().to_string();
        assert!(error.contains("top_k"), "{error}");
    }
}
