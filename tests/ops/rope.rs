use inknib::gpu::{Elem, Gpu};
use inknib::graph::{Graph, Kernels, Plan, PlanOptions, Var, Vector};
use inknib::ops::kv_cache::kv_write;
use inknib::ops::norm::{oracle as norm_oracle, rms_norm};
use inknib::ops::rope::{Case, Rotary, oracle, rope};

use crate::harness::*;

/// A position that the device holds, as plans get it.
pub fn position<'g>(gpu: &Gpu, graph: &'g Graph, start: u32) -> Var<'g> {
    graph.external(&gpu.upload("start", &start.to_le_bytes()).unwrap(), [1], Elem::U32)
}

#[test]
fn heads_turn_by_their_position() {
    let Some(gpu) = gpu() else { return };
    // Of d channels the first r turn: all, 40 % as Phi-2, and rests that are no vectors of four.
    for (b, s, heads, d, r, scale) in [
        (1, 1, 4, 64, 64, 1.0),
        (2, 5, 3, 32, 32, 1.25),
        (1, 9, 1, 10, 10, 1.0),
        (2, 3, 2, 128, 128, 1.0),
        (2, 5, 3, 80, 32, 1.0),
        (1, 4, 2, 128, 96, 1.19),
        (2, 3, 2, 19, 8, 0.5),
    ] {
        let inv_freq: Vec<f32> =
            (0..r / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / r as f32)).collect();
        let inv = Vector::upload(gpu, "inv_freq", &inv_freq).unwrap();
        let rotary = Rotary { inv_freq: inv, scale };
        for act in acts(gpu) {
            let x = stored(act, &randn(d as u64, b * s * heads * d));
            for start in [0, 77, 30_000] {
                let want = oracle(&x, &inv_freq, Case { rows: s, heads, d, start, scale });
                for kernels in BOTH {
                    let y = eval(gpu, kernels, act, |g| {
                        let x = g.literal([b, s, heads * d], x.clone());
                        rope(x, position(gpu, g, start), &rotary, heads)
                    });
                    let e = nmse(&y, &want);
                    let at = format!("{kernels:?} {act:?} {b}x{s}x{heads}x{r}/{d} from {start}");
                    assert!(e <= tolerance(act), "{at}: {e:.2e}");
                }
            }
        }
    }
}

/// Behind a norm of each head (Qwen 3, Gemma 3): one launch for few tokens on a real GPU.
#[test]
fn a_norm_of_each_head_is_computed_on_the_way() {
    let Some(gpu) = gpu() else { return };
    for (s, heads, d, r) in
        [(1, 4, 64, 64), (3, 2, 80, 32), (4, 3, 128, 128), (2, 2, 10, 10), (9, 2, 32, 32)]
    {
        let inv_freq: Vec<f32> =
            (0..r / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / r as f32)).collect();
        let inv = Vector::upload(gpu, "inv_freq", &inv_freq).unwrap();
        let rotary = Rotary { inv_freq: inv, scale: 1.0 };
        let gamma = randn(7, d);
        let scale = Vector::upload(gpu, "gamma", &gamma).unwrap();
        for act in acts(gpu) {
            let x = stored(act, &randn(d as u64, s * heads * d));
            let normed = norm_oracle(&x, &gamma, None, 1, 1, 1e-3);
            let normed: Vec<f32> = normed.iter().map(|v| *v as f32).collect();
            let want =
                oracle(&normed, &inv_freq, Case { rows: s, heads, d, start: 77, scale: 1.0 });
            for kernels in [Kernels::Reference, Kernels::Fast, Kernels::Hardware] {
                let graph = Graph::new(act);
                let g = graph.literal([1, s, heads * d], x.clone());
                let each = rms_norm(g.reshape([1, s * heads, d]), &scale, 1e-3);
                let heads_of = each.reshape([1, s, heads * d]);
                graph.output("y", rope(heads_of, position(gpu, &graph, 77), &rotary, heads));
                let options = PlanOptions { kernels, poison: true, ..Default::default() };
                let plan = Plan::new(gpu, &graph, &options).unwrap();
                plan.run().unwrap();
                let at = format!("{kernels:?} {act:?} {s}x{heads}x{r}/{d}");
                // In f16 what a norm of its own makes is rounded, too.
                let e = nmse(&plan.read("y").unwrap(), &want);
                assert!(e <= 2.0 * tolerance(act), "{at}: {e:.2e}");
                let folded = kernels == Kernels::Hardware && s <= 4 && r % 8 == 0;
                assert_eq!(plan.launches().len() == 1, folded, "{at}");
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
    rope(x, position(gpu, &graph, 0), &Rotary { inv_freq: vector, scale: 1.0 }, 3);
    let error = graph.finish().unwrap_err().to_string();
    assert!(error.contains("x [1, 2, 20] with 3 heads of 4 frequencies"), "{error}");
}

/// Keys turn and go into their cache in one launch; rows beyond its end are dropped.
#[test]
fn turned_heads_go_into_a_cache() {
    const CONTEXT: usize = 9;
    let Some(gpu) = gpu() else { return };
    for (s, heads, d, r) in [(1, 4, 64, 64), (5, 3, 32, 16), (2, 2, 19, 8)] {
        let inv_freq: Vec<f32> = (0..r / 2).map(|i| 0.5f32.powi(i)).collect();
        let inv = Vector::upload(gpu, "inv_freq", &inv_freq).unwrap();
        let (rotary, width) = (Rotary { inv_freq: inv, scale: 1.0 }, heads * d);
        for act in acts(gpu) {
            let (x, old) =
                (stored(act, &randn(1, s * width)), stored(act, &randn(2, CONTEXT * width)));
            for start in [0, 3, 7, 9] {
                let case = Case { rows: s, heads, d, start, scale: 1.0 };
                let turned = oracle(&x, &inv_freq, case);
                let mut want: Vec<f64> = old.iter().map(|v| f64::from(*v)).collect();
                for (i, v) in turned.iter().enumerate() {
                    if let Some(place) = want.get_mut(start as usize * width + i) {
                        *place = *v;
                    }
                }
                for kernels in BOTH {
                    let y =
                        cache_after(gpu, kernels, act, ([1, CONTEXT, width], &old), |g, cache| {
                            let start = position(gpu, g, start);
                            let x = g.literal([1, s, width], x.clone());
                            kv_write(cache, rope(x, start, &rotary, heads), start)
                        });
                    let e = nmse(&y, &want);
                    assert!(
                        e <= tolerance(act),
                        "{kernels:?} {act:?} {s}x{heads}x{d} {start}: {e:.2e}"
                    );
                }
            }
        }
    }
}

/// Queries, and keys on their way into a cache: one launch on a real GPU, with norms of each head and without.
#[test]
fn queries_and_keys_turn_in_one_launch() {
    const CONTEXT: usize = 9;
    let Some(gpu) = gpu() else { return };
    for (s, heads, d, r, normed) in [
        (1, [4, 2], 64, 64, false),
        (3, [3, 1], 80, 32, false),
        (2, [6, 2], 32, 32, true),
        (4, [2, 2], 48, 16, true),
        (70, [3, 2], 32, 32, false),
        (2, [2, 1], 10, 10, false),
    ] {
        let inv_freq: Vec<f32> = (0..r / 2).map(|i| 0.5f32.powi(i)).collect();
        let inv = Vector::upload(gpu, "inv_freq", &inv_freq).unwrap();
        let rotary = Rotary { inv_freq: inv, scale: 1.0 };
        let gammas = [randn(7, d), randn(8, d)];
        let scales: Vec<Vector> =
            gammas.iter().map(|g| Vector::upload(gpu, "gamma", g).unwrap()).collect();
        for (act, start) in acts(gpu).into_iter().flat_map(|act| [(act, 3), (act, 7)]) {
            let x = [0, 1].map(|i| stored(act, &randn(20 + i as u64, s * heads[i] * d)));
            let want = [0, 1].map(|i| {
                let norm = || norm_oracle(&x[i], &gammas[i], None, 1, 1, 1e-3);
                let x = match normed {
                    true => norm().into_iter().map(|v| v as f32).collect(),
                    false => x[i].clone(),
                };
                oracle(&x, &inv_freq, Case { rows: s, heads: heads[i], d, start, scale: 1.0 })
            });
            for kernels in [Kernels::Reference, Kernels::Fast, Kernels::Hardware] {
                let graph = Graph::new(act);
                let at = position(gpu, &graph, start);
                let [q, k] = [0, 1].map(|i| {
                    let (width, rows) = (heads[i] * d, s * heads[i]);
                    let x = graph.literal([1, s, width], x[i].clone());
                    let each = || rms_norm(x.reshape([1, rows, d]), &scales[i], 1e-3);
                    if normed { each().reshape([1, s, width]) } else { x }
                });
                let (q, k) = (rope(q, at, &rotary, heads[0]), rope(k, at, &rotary, heads[1]));
                let width = heads[1] * d;
                let bytes = CONTEXT * width * act.bytes() as usize;
                let cache = gpu.upload("cache", &vec![0u8; bytes]).unwrap();
                graph.output("q", q);
                let cache = graph.external(&cache, [1, CONTEXT, width], act);
                graph.output("k", kv_write(cache, k, at));
                let options = PlanOptions { kernels, poison: true, ..Default::default() };
                let plan = Plan::new(gpu, &graph, &options).unwrap();
                plan.run().unwrap();
                let case =
                    format!("{kernels:?} {act:?} {s}x{heads:?}x{r}/{d} {normed} from {start}");
                // In f16 what a norm of its own makes is rounded, too.
                let allowed = if normed { 2.0 } else { 1.0 } * tolerance(act);
                let e = nmse(&plan.read("q").unwrap(), &want[0]);
                assert!(e <= allowed, "{case}: queries {e:.2e}");
                let mut keys = vec![0.0; CONTEXT * width];
                let kept = s.min(CONTEXT - start as usize) * width;
                keys[start as usize * width..][..kept].copy_from_slice(&want[1][..kept]);
                let e = nmse(&plan.read("k").unwrap(), &keys);
                assert!(e <= allowed, "{case}: keys {e:.2e}");
                let one = kernels == Kernels::Hardware && d % 4 == 0;
                assert_eq!(plan.launches().len() == 1, one, "{case}");
            }
        }
    }
}
