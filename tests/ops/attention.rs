use inknib::gpu::{Elem, Gpu, GpuOptions, Tuning};
use inknib::graph::{Graph, Kernels, Plan, PlanOptions};
use inknib::ops::attention::{Attention, Case, Mask, attention, oracle};
use inknib::ops::kv_cache::{kv_write, oracle_q8, q8_words};

use crate::harness::*;
use crate::rope::position;

const KERNELS: [Kernels; 3] = [Kernels::Reference, Kernels::Fast, Kernels::Hardware];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    All,
    Causal,
    Cached,
}

fn check(kind: Kind, case: Case) {
    for (gpu, kernels, acts) in every_form() {
        check_on(gpu, (kernels, &acts), kind, case);
    }
}

fn check_on(gpu: &Gpu, (kernels, acts): (&[Kernels], &[Elem]), kind: Kind, case: Case) {
    let Case { batch, sq, sk, heads, kv_heads, d, scale, start, window, cap } = case;
    for &act in acts {
        let q = stored(act, &randn(1, batch * sq * heads * d));
        let mut k = stored(act, &randn(2, batch * sk * kv_heads * d));
        let mut v = stored(act, &randn(3, batch * sk * kv_heads * d));
        if let (Kind::Cached, Some(start)) = (kind, start) {
            // What was never written to a cache is whatever was there, and nothing reads what lies
            // before the first query's window.
            let row = kv_heads * d;
            let first = (start + 1) - window.unwrap_or(sk).min(start + 1);
            let seen = first..start + sq;
            for j in (0..batch * sk).filter(|j| !seen.contains(&(j % sk))) {
                k[j * row..][..row].fill(f32::NAN);
                v[j * row..][..row].fill(f32::NAN);
            }
        }
        let want = oracle(&q, &k, &v, case);
        for &kernels in kernels {
            let y = eval(gpu, kernels, act, |g| {
                let mask = match kind {
                    Kind::All => Mask::None,
                    Kind::Causal => Mask::Causal,
                    Kind::Cached => {
                        Mask::Cached { start: position(gpu, g, start.unwrap_or(0) as u32), window }
                    }
                };
                attention(
                    g.literal([batch, sq, heads * d], q.clone()),
                    g.literal([batch, sk, kv_heads * d], k.clone()),
                    g.literal([batch, sk, kv_heads * d], v.clone()),
                    Attention { heads, kv_heads, scale, cap, mask },
                )
            });
            let e = nmse(&y, &want);
            assert!(e <= tolerance(act), "{kernels:?} {act:?} {case:?}: {e:.2e}");
        }
    }
}

fn case(batch: usize, sq: usize, sk: usize, heads: usize, kv_heads: usize, d: usize) -> Case {
    let scale = 1.0 / (d as f32).sqrt();
    Case { batch, sq, sk, heads, kv_heads, d, scale, start: None, window: None, cap: None }
}

#[test]
fn every_query_sees_every_key() {
    for c in [
        case(2, 64, 64, 8, 8, 32),
        case(1, 70, 77, 8, 8, 40), // cross attention to 77 tokens of text
        case(2, 33, 19, 2, 2, 64),
        case(1, 9, 1, 1, 1, 8),
        case(1, 40, 45, 1, 1, 160),
        case(1, 17, 23, 2, 1, 80),
        case(1, 5, 11, 3, 3, 10), // no vectors of four
    ] {
        check(Kind::All, c);
    }
}

#[test]
fn a_causal_query_sees_itself_and_what_came_before() {
    for c in [case(1, 1, 1, 2, 2, 32), case(2, 45, 45, 6, 3, 40), case(1, 131, 131, 4, 1, 64)] {
        check(Kind::Causal, Case { start: Some(0), ..c });
    }
}

#[test]
fn cached_queries_start_where_the_cache_ends_and_the_rest_is_poison() {
    for (sq, sk, start) in
        [(1, 32, 0), (1, 100, 99), (3, 64, 17), (40, 96, 5), (1, 1500, 1201), (70, 70, 0)]
    {
        check(Kind::Cached, Case { start: Some(start), ..case(1, sq, sk, 4, 2, 64) });
    }
    check(Kind::Cached, Case { start: Some(13), ..case(2, 2, 24, 8, 1, 128) });
}

#[test]
fn a_windowed_query_sees_itself_and_the_last_before_it() {
    for (sq, sk, start, window) in [
        (1, 64, 40, 1),
        (1, 64, 40, 8),
        (1, 64, 3, 8),    // fewer keys than the window
        (5, 64, 0, 3),    // queries with less than a window before them
        (40, 96, 5, 8),   // blocks of eight queries, each with its own beginning
        (40, 96, 56, 30), // the last queries at the end of the cache
        (70, 200, 100, 64),
        (70, 70, 0, 200),      // a window that is none
        (1, 1500, 1399, 1100), // more than one turn of the kernel for few queries
    ] {
        let window = Some(window);
        check(Kind::Cached, Case { start: Some(start), window, ..case(1, sq, sk, 4, 2, 64) });
    }
    let c = case(2, 3, 40, 8, 1, 128);
    check(Kind::Cached, Case { start: Some(29), window: Some(13), ..c });
}

/// The keys of a window are divided from its own beginning on, so a boundary falls elsewhere in every block of
/// queries.
#[test]
fn windows_that_are_divided() {
    for window in [900, 1399] {
        let c = case(1, 40, 1800, 1, 1, 256);
        check(Kind::Cached, Case { start: Some(1500), window: Some(window), ..c });
        let c = case(1, 1, 1800, 1, 1, 512);
        check(Kind::Cached, Case { start: Some(1750), window: Some(window), ..c });
    }
}

/// Keys before the window cost nothing: a GPU divides 32,768 keys among workgroups and joins the parts, but not 128.
#[test]
fn a_long_cache_with_a_short_window_is_one_launch() {
    let Some(gpu) = gpu() else { return };
    let launches = |window| {
        let graph = Graph::new(Elem::F32);
        let start = graph.input("start", [1], Elem::U32);
        let q = graph.input("q", [1, 1, 256], Elem::F32);
        let [k, v] = ["k", "v"].map(|name| graph.input(name, [1, 32_768, 256], Elem::F32));
        let mask = Mask::Cached { start, window };
        let how = Attention { heads: 1, kv_heads: 1, scale: 0.1, cap: None, mask };
        graph.output("y", attention(q, k, v, how));
        let options = PlanOptions { kernels: Kernels::Hardware, ..Default::default() };
        let plan = Plan::new(gpu, &graph, &options).unwrap();
        (plan.launches().len(), plan.flops())
    };
    let ((all, many), (one, few)) = (launches(None), launches(Some(128)));
    assert!(all == 2 && one == 1 && few * 100 < many, "{all} {many} {one} {few}");
}

#[test]
fn scores_are_capped() {
    for (cap, scale) in [(50.0, 0.125), (2.0, 1.0), (30.0, 40.0)] {
        let c = |c: Case| Case { cap: Some(cap), scale, ..c };
        check(Kind::All, c(case(1, 40, 61, 2, 2, 40)));
        check(Kind::Cached, Case { start: Some(900), ..c(case(1, 1, 1000, 2, 1, 64)) });
        let windowed = Case { start: Some(20), window: Some(9), ..c(case(1, 33, 64, 4, 2, 32)) };
        check(Kind::Cached, windowed);
    }
}

/// A context of 32,768: more keys than one invocation may go through.
/// `inknib tune` may have found another size of workgroup faster for one token.
#[test]
fn one_token_by_workgroups_of_any_size() {
    for attention_lanes in [1, 16, 50, 256] {
        let Ok(gpu) = Gpu::open(&GpuOptions::default()) else { return };
        let gpu = gpu.tuned(Tuning { attention_lanes, ..Tuning::default() });
        for (heads, kv_heads, d) in [(9, 3, 64), (4, 2, 10), (2, 1, 160)] {
            let c = Case { start: Some(1201), ..case(1, 1, 1500, heads, kv_heads, d) };
            check_on(&gpu, (&KERNELS[1..], &acts(&gpu)), Kind::Cached, c);
        }
    }
}

#[test]
fn long_contexts() {
    for sq in [1, 9] {
        let c = case(1, sq, 32_768, 2, 1, 64);
        check(Kind::Cached, Case { start: Some(32_768 - sq), ..c });
        check(Kind::Cached, Case { start: Some(32_700), window: Some(4096), ..c });
    }
}

#[test]
fn large_scores_do_not_overflow() {
    check(Kind::All, Case { scale: 10.0, ..case(1, 40, 61, 2, 2, 40) });
    check(Kind::All, Case { scale: 10.0, ..case(1, 1, 1300, 2, 2, 40) });
}

#[test]
fn keys_are_divided_where_one_invocation_would_loop_too_long() {
    // The decoder of a picture: one head of 512 channels.
    check(Kind::All, case(1, 33, 1100, 1, 1, 512));
    check(Kind::Cached, Case { start: Some(700), ..case(1, 40, 1400, 1, 1, 256) });
}

/// A cache of eight bits: what kv_write leaves is what attention reads, against the f64 oracle on the decoded
/// values, so that the limit is that of the kernel alone.
#[test]
fn a_cache_of_eight_bits() {
    let Some(gpu) = gpu() else { return };
    for (case, window, cap) in [
        (case(1, 1, 100, 4, 2, 64), None, None),
        (case(1, 40, 96, 4, 2, 64), None, None),
        (case(1, 1, 1500, 8, 1, 128), None, Some(20.0)),
        (case(1, 33, 64, 3, 3, 20), Some(9), None),
        (case(1, 9, 1400, 1, 1, 256), Some(700), None),
    ] {
        let Case { sq, sk, heads, kv_heads, d, scale, .. } = case;
        let start = sk - sq - 1;
        let row = kv_heads * d;
        for act in acts(gpu) {
            let q = stored(act, &randn(1, sq * heads * d));
            let [k, v] = [2, 3].map(|seed| stored(act, &randn(seed, (start + sq) * row)));
            let decoded = |x: &[f32]| -> Vec<f32> {
                let heads = oracle_q8(x, kv_heads, d);
                let values =
                    heads.iter().flat_map(|(q, s)| q.iter().map(move |q| f32::from(*q) * s));
                values.chain(vec![f32::NAN; sk * row - x.len()]).collect()
            };
            let case = Case { start: Some(start), window, cap, ..case };
            let want = oracle(&q, &decoded(&k), &decoded(&v), case);
            for kernels in KERNELS {
                let y = eval(gpu, kernels, act, |g| {
                    let cache = |x: &[f32]| {
                        let words = q8_words(kv_heads, d);
                        let noise = gpu.upload("cache", &vec![0xffu8; sk * words * 4]).unwrap();
                        let cache = g.external(&noise, [1, sk, words], Elem::U32);
                        let x = g.literal([1, start + sq, row], x.to_vec());
                        kv_write(cache, x, position(gpu, g, 0))
                    };
                    let mask = Mask::Cached { start: position(gpu, g, start as u32), window };
                    let how = Attention { heads, kv_heads, scale, cap, mask };
                    attention(g.literal([1, sq, heads * d], q.clone()), cache(&k), cache(&v), how)
                });
                let e = nmse(&y, &want);
                // A value between two codes may fall to the other one (see tests/ops/kv_cache.rs), an error of
                // a step, 1/100 of a value, in one value of fifty at most: 1e-4 / 50, of which rounding to f32
                // leaves far less. Broken scales or bytes give 1e-2 and more.
                assert!(e <= tolerance(act).max(1e-7), "{kernels:?} {act:?} {case:?}: {e:.2e}");
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let graph = Graph::new(Elem::F32);
    let q = graph.literal([1, 3, 12], vec![0.0; 36]);
    let k = graph.literal([1, 4, 12], vec![0.0; 48]);
    let how = Attention { heads: 3, kv_heads: 3, scale: 1.0, cap: None, mask: Mask::Causal };
    attention(q, k, k, how);
    let error = graph.finish().unwrap_err().to_string();
    assert!(error.contains("causal attention of q [1, 3, 12] over k [1, 4, 12]"), "{error}");
    let graph = Graph::new(Elem::F32);
    let q = graph.literal([1, 3, 12], vec![0.0; 36]);
    attention(q, q, q, Attention { kv_heads: 2, ..how });
    let error = graph.finish().unwrap_err().to_string();
    assert!(error.contains("q [1, 3, 12] in 3 heads over 2 heads of keys"), "{error}");
    let graph = Graph::new(Elem::F32);
    let q = graph.literal([1, 3, 12], vec![0.0; 36]);
    attention(q, q, q, Attention { cap: Some(0.0), ..how });
    assert!(graph.finish().unwrap_err().to_string().contains("scores up to Some(0.0)"));
}
