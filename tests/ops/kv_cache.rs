use inknib::graph::Graph;
use inknib::ops::kv_cache::{kv_write, oracle};

use crate::harness::*;
use crate::rope::position;

#[test]
fn rows_land_at_their_position_and_nothing_else_changes() {
    let Some(gpu) = gpu() else { return };
    for act in acts(gpu) {
        for (b, context, s, c) in [(1, 16, 1, 64), (2, 9, 4, 20), (3, 7, 3, 5)] {
            let old = stored(act, &randn(1, b * context * c));
            let new = stored(act, &randn(2, b * s * c));
            // The last writes beyond the context, where rows are dropped; u32::MAX would wrap around.
            for start in [0, 2, context as u32 - 1, context as u32, u32::MAX] {
                let want: Vec<f32> = oracle(&old, &new, b, c, start as usize)
                    .into_iter()
                    .map(|v| v as f32)
                    .collect();
                for kernels in BOTH {
                    let y = eval(gpu, kernels, act, |g| {
                        let cache = g.literal([b, context, c], old.clone());
                        let x = g.literal([b, s, c], new.clone());
                        kv_write(cache, x, position(gpu, g, start))
                    });
                    assert_eq!(y, want, "{kernels:?} {act:?} {b}x{context}x{s}x{c} at {start}");
                }
            }
        }
    }
}

#[test]
fn a_row_of_another_width_is_refused() {
    let Some(gpu) = gpu() else { return };
    let graph = Graph::new(inknib::gpu::Elem::F32);
    let cache = graph.literal([1, 4, 8], vec![0.0; 32]);
    kv_write(cache, graph.literal([1, 1, 9], vec![0.0; 9]), position(gpu, &graph, 0));
    let error = graph.finish().unwrap_err().to_string();
    assert!(error.contains("x [1, 1, 9]") && error.contains("[1, 4, 8]"), "{error}");
}
