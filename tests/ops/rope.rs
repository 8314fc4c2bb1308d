use inknib::gpu::{Elem, Gpu};
use inknib::graph::{Graph, Var, Vector};
use inknib::ops::rope::{oracle, rope};

use crate::harness::*;

/// A position that the device holds, as plans get it.
pub fn position<'g>(gpu: &Gpu, graph: &'g Graph, start: u32) -> Var<'g> {
    graph.external(&gpu.upload("start", &start.to_le_bytes()).unwrap(), [1], Elem::U32)
}

#[test]
fn heads_turn_by_their_position() {
    let Some(gpu) = gpu() else { return };
    for (b, s, heads, d) in [(1, 1, 4, 64), (2, 5, 3, 32), (1, 9, 1, 10), (2, 3, 2, 128)] {
        let inv_freq: Vec<f32> =
            (0..d / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / d as f32)).collect();
        let vector = Vector::upload(gpu, "inv_freq", &inv_freq).unwrap();
        for act in acts(gpu) {
            let x = stored(act, &randn(d as u64, b * s * heads * d));
            for start in [0, 77, 30_000] {
                let want = oracle(&x, &inv_freq, s, heads, start);
                for kernels in BOTH {
                    let y = eval(gpu, kernels, act, |g| {
                        let x = g.literal([b, s, heads * d], x.clone());
                        rope(x, position(gpu, g, start), &vector, heads)
                    });
                    let e = nmse(&y, &want);
                    let at = format!("{kernels:?} {act:?} {b}x{s}x{heads}x{d} from {start}");
                    assert!(e <= tolerance(act), "{at}: {e:.2e}");
                }
            }
        }
    }
}

#[test]
fn heads_that_do_not_fit_are_refused() {
    let Some(gpu) = gpu() else { return };
    let vector = Vector::upload(gpu, "inv_freq", &[1.0; 4]).unwrap();
    let graph = Graph::new(Elem::F32);
    let x = graph.literal([1, 2, 20], vec![0.0; 40]);
    rope(x, position(gpu, &graph, 0), &vector, 2);
    let error = graph.finish().unwrap_err().to_string();
    assert!(error.contains("x [1, 2, 20] with 2 heads of 4 frequencies"), "{error}");
}
