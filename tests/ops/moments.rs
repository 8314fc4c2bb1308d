use inknib::gpu::Elem;
use inknib::graph::Graph;
use inknib::ops::gram::{Walk, columns};
use inknib::ops::moments::{moments, oracle};

use crate::gram::{accumulate, walks};
use crate::harness::*;

#[test]
fn moments_add_up() {
    let Some(gpu) = gpu() else { return };
    for act in acts(gpu) {
        for walk in walks() {
            for shape in [[2, 5, 4, 8], [1, 4, 6, 24], [1, 3, 5, 6]] {
                let x = stored(act, &randn(3, shape.iter().product()));
                let rows = columns(&x, shape, walk);
                let want: Vec<f64> = oracle(&rows).iter().map(|v| 2.0 * v).collect();
                for kernels in BOTH {
                    let got = accumulate(
                        gpu,
                        (act, kernels, 2),
                        (&x, shape),
                        [3, rows[0].len()],
                        |s, x| moments(s, x, walk),
                    );
                    // Sums are f32 whatever the activations; counts are exact.
                    let e = nmse(&got, &want);
                    assert!(e <= 1e-10, "{kernels:?} {act:?} {walk:?} {shape:?}: {e:.2e}");
                    let counts = got[2 * rows[0].len()..].iter();
                    assert!(counts.into_iter().all(|n| *n == 2.0 * rows.len() as f32));
                }
            }
        }
    }
}

#[test]
fn shape_errors_say_what_is_wrong() {
    let graph = Graph::new(Elem::F32);
    let x = graph.input("x", [2, 8], Elem::F32);
    moments(graph.input("s", [3, 7], Elem::F32), x, Walk::LINEAR);
    assert!(graph.finish().unwrap_err().to_string().contains("moments: s [3, 7]"));
}
