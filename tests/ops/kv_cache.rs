use inknib::gpu::Elem;
use inknib::graph::Graph;
use inknib::graph::{Kernels, Plan, PlanOptions};
use inknib::ops::kv_cache::{kv_write, oracle, oracle_q8, q8_heads, q8_words};

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

/// The cache's words after x was written at `start` into a cache of ones.
fn write_q8(kernels: Kernels, act: Elem, x: &[f32], sizes: [usize; 4], start: u32) -> Vec<u32> {
    let gpu = gpu().unwrap();
    let [context, s, heads, d] = sizes;
    let words = context * q8_words(heads, d);
    let buffer = gpu.upload("cache", &vec![1u8; words * 4]).unwrap();
    let graph = Graph::new(act);
    let cache = graph.external(&buffer, [1, context, q8_words(heads, d)], Elem::U32);
    let x = graph.literal([1, s, heads * d], x.to_vec());
    graph.output("cache", kv_write(cache, x, position(gpu, &graph, start)));
    let plan = Plan::new(gpu, &graph, &PlanOptions { kernels, ..Default::default() }).unwrap();
    plan.run().unwrap();
    plan.read_u32("cache").unwrap()
}

#[test]
fn eight_bits_and_a_scale_for_each_head() {
    let Some(gpu) = gpu() else { return };
    assert_eq!((q8_words(4, 64), q8_heads(68, 256), q8_heads(64, 256)), (68, Some(4), None));
    for act in acts(gpu) {
        for sizes in [[16, 1, 4, 64], [9, 3, 2, 8], [8, 5, 1, 132], [40, 33, 3, 20]] {
            let [context, s, heads, d] = sizes;
            let mut x = randn(3, s * heads * d);
            x[..d].fill(0.0); // a head of zeros has no largest value to divide by
            let x = stored(act, &x);
            let want = oracle_q8(&x, heads, d);
            for (kernels, start) in
                [Kernels::Reference, Kernels::Fast, Kernels::Hardware].into_iter().zip([0, 2, 5])
            {
                let got = write_q8(kernels, act, &x, sizes, start);
                let at = |place: usize| {
                    let words = &got[place * d / 4..][..d / 4];
                    let scale = f32::from_bits(got[context * heads * d / 4 + place]);
                    (bytemuck::cast_slice::<u32, i8>(words).to_vec(), scale)
                };
                for place in 0..context * heads {
                    let (row, first) = (place / heads, start as usize);
                    let (codes, scale) = at(place);
                    if !(first..first + s).contains(&row) {
                        assert!(codes.iter().all(|c| *c == 1), "row {row} was not to change");
                        continue;
                    }
                    let (want, want_scale) = &want[(row - first) * heads + place % heads];
                    // Division may be a unit off, which moves a value that lies between two codes.
                    assert!((scale - want_scale).abs() <= 1e-6 * want_scale, "{kernels:?} {scale}");
                    let far = codes.iter().zip(want).map(|(a, b)| (a - b).abs()).max().unwrap();
                    let off = codes.iter().zip(want).filter(|(a, b)| a != b).count();
                    assert!(
                        far <= 1 && off * 50 <= d,
                        "{kernels:?} {act:?} {sizes:?}: {off} of {d}"
                    );
                }
            }
        }
    }
}
