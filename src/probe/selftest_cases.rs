//! The cases of [`super::selftest`]: one small problem per family of kernels and weight format. Sizes
//! are those of a real layer's smallest corner, odd where kernels have edges.

use super::selftest::{Bench, Feed};
use crate::Result;
use crate::diffusion::sampler::{State, StepCoefficients, apply};
use crate::gpu::Elem;
use crate::graph::Vector;
use crate::ops::attention::{self, Attention, Mask, attention};
use crate::ops::channels::{self, add_channels};
use crate::ops::concat::cat;
use crate::ops::conv2d::{self, Conv, conv2d};
use crate::ops::embed::{self, embed};
use crate::ops::guidance::{self, Answer};
use crate::ops::kv_cache::{self, kv_write, q8_words};
use crate::ops::matmul::{self, linear};
use crate::ops::norm::{self, group_norm, layer_norm, rms_norm};
use crate::ops::pointwise::{Act, activate, gated, geglu};
use crate::ops::rope::{self, Rotary, rope};
use crate::ops::sampler::{COEFFICIENTS, MEMORY, predict_value, step};
use crate::ops::softmax::{self, softmax};
use crate::ops::timestep::{self, timestep_embedding};
use crate::ops::topk::{self, argmax};
use crate::quant::{Layout, QuantSpec};

/// Every case, those of most use first.
pub(super) fn all(bench: &mut Bench<'_>) -> Result<()> {
    matmul_cases(bench)?;
    conv_cases(bench)?;
    attention_cases(bench)?;
    norm_cases(bench)?;
    cache_cases(bench)?;
    pointwise_cases(bench)?;
    lookup_cases(bench)?;
    sampler_case(bench)
}

const FORMATS: [QuantSpec; 4] = [QuantSpec::F32, QuantSpec::F16, QuantSpec::INT8, QuantSpec::INT4];

fn matmul_cases(bench: &mut Bench<'_>) -> Result<()> {
    let (n, k) = (72, 192);
    // 13 rows go through tiles, one row through lanes that share a row.
    for (m, formats) in [(13, &FORMATS[..]), (1, &FORMATS[3..])] {
        for spec in formats {
            let (weight, w) = bench.weight(1, Layout::linear(n, k), *spec)?;
            let (bias, b) = bench.vector(2, n)?;
            let x = bench.data(3, m * k);
            let want = matmul::oracle(&x, &w, Some(&b), None, Act::Silu, k);
            let what = format!("{spec}, {m} x {n} x {k}");
            bench.check("matmul", what, &[], &want, |g| {
                let y = linear(g.literal([m, k], x.clone()), &weight, Some(&bias));
                activate(y, Act::Silu)
            })?;
        }
    }
    Ok(())
}

fn conv_cases(bench: &mut Bench<'_>) -> Result<()> {
    let (h, w, c, rows) = (6, 5, 64, 24);
    let halving = Conv { stride: 2, ..Conv::default() };
    let doubling = Conv { upsample: true, ..Conv::default() };
    let cases = [
        (QuantSpec::F16, Conv::default(), "same size"),
        (QuantSpec::INT4, Conv::default(), "same size"),
        (QuantSpec::INT4, halving, "stride 2"),
        (QuantSpec::INT4, doubling, "upsampled"),
    ];
    for (spec, conv, form) in cases {
        let (weight, values) = bench.weight(4, Layout { rows, taps: 9, channels: c }, spec)?;
        let x = bench.data(5, h * w * c);
        let want = conv2d::oracle(&x, [1, h, w, c], &values, 3, conv);
        bench.check("conv2d", format!("{spec}, 3x3, {form}"), &[], &want, |g| {
            conv2d(g.literal([1, h, w, c], x.clone()), &weight, None, conv)
        })?;
    }
    // Two inputs read as one without a copy, as after a skip connection of a UNet.
    let (ca, cb) = (40, 24);
    let (weight, values) =
        bench.weight(6, Layout { rows, taps: 9, channels: ca + cb }, QuantSpec::INT4)?;
    let (a, b) = (bench.data(7, h * w * ca), bench.data(8, h * w * cb));
    let joined: Vec<f32> = a
        .chunks_exact(ca)
        .zip(b.chunks_exact(cb))
        .flat_map(|(a, b)| a.iter().chain(b).copied())
        .collect();
    let want = conv2d::oracle(&joined, [1, h, w, ca + cb], &values, 3, Conv::default());
    bench.check("conv2d", "int4, two inputs", &[], &want, |g| {
        let (a, b) = (g.literal([1, h, w, ca], a.clone()), g.literal([1, h, w, cb], b.clone()));
        conv2d(cat(a, b), &weight, None, Conv::default())
    })?;
    let joined: Vec<f64> = joined.into_iter().map(f64::from).collect();
    bench.check("concat", "two inputs", &[], &joined, |g| {
        cat(g.literal([1, h, w, ca], a.clone()), g.literal([1, h, w, cb], b.clone()))
    })?;
    let (x, table) = (bench.data(9, 2 * h * c), bench.data(10, 3 * c));
    let want = channels::oracle(&x, &table, &[2, 0], c);
    bench.check("add_channels", "two items", &[Feed::U32("row", &[2, 0])], &want, |g| {
        let row = g.input("row", [2], Elem::U32);
        add_channels(g.literal([2, h, c], x.clone()), g.literal([3, c], table.clone()), row)
    })
}

fn attention_cases(bench: &mut Bench<'_>) -> Result<()> {
    let d = 40;
    let scale = 1.0 / (d as f32).sqrt();
    let case = |[heads, kv_heads, sq, sk]: [usize; 4], start, window, cap| {
        let batch = 1;
        attention::Case { batch, sq, sk, heads, kv_heads, d, scale, start, window, cap }
    };
    let forms = [
        ("self, 2 heads", case([2, 2, 33, 33], None, None, None)),
        ("cross, 77 keys", case([2, 2, 9, 77], None, None, None)),
        ("causal, grouped", case([4, 2, 13, 13], Some(0), None, None)),
        ("one query over a cache", case([4, 2, 1, 48], Some(20), None, None)),
        ("one query, window, soft cap", case([4, 2, 1, 48], Some(20), Some(9), Some(1.5))),
        ("13 queries, window, soft cap", case([4, 2, 13, 48], Some(20), Some(9), Some(1.5))),
    ];
    for (what, case) in forms {
        let attention::Case { sq, sk, heads, kv_heads, start, window, cap, .. } = case;
        let q = bench.data(20, sq * heads * d);
        let (k, v) = (bench.data(21, sk * kv_heads * d), bench.data(22, sk * kv_heads * d));
        let want = attention::oracle(&q, &k, &v, case);
        let position = start.map_or(0, |s| s as u32);
        let cached = position > 0;
        let feed = [position];
        let feeds = [Feed::U32("start", &feed)];
        let feeds = if cached { &feeds[..] } else { &[] };
        bench.check("attention", what, feeds, &want, |g| {
            let mask = match start {
                None => Mask::None,
                Some(_) if cached => {
                    Mask::Cached { start: g.input("start", [1], Elem::U32), window }
                }
                Some(_) => Mask::Causal,
            };
            let q = g.literal([1, sq, heads * d], q.clone());
            let k = g.literal([1, sk, kv_heads * d], k.clone());
            let v = g.literal([1, sk, kv_heads * d], v.clone());
            attention(q, k, v, Attention { heads, kv_heads, scale, cap, mask })
        })?;
    }
    let x = bench.data(23, 7 * 77);
    bench.check("softmax", "7 rows of 77", &[], &softmax::oracle(&x, 77), |g| {
        softmax(g.literal([7, 77], x.clone()))
    })
}

fn norm_cases(bench: &mut Bench<'_>) -> Result<()> {
    let (h, w, c) = (6, 5, 64);
    let (gamma, g_values) = bench.vector(24, c)?;
    let (beta, b_values) = bench.vector(25, c)?;
    let x = bench.data(26, h * w * c);
    let want = norm::oracle(&x, &g_values, Some(&b_values), h * w, 8, 1e-5);
    bench.check("norm", "group norm", &[], &want, |g| {
        group_norm(g.literal([1, h, w, c], x.clone()), &gamma, &beta, 8, 1e-5)
    })?;
    let silu: Vec<f64> = want.iter().map(|v| Act::Silu.oracle(*v)).collect();
    bench.check("norm", "group norm, SiLU", &[], &silu, |g| {
        let x = g.literal([1, h, w, c], x.clone());
        activate(group_norm(x, &gamma, &beta, 8, 1e-5), Act::Silu)
    })?;
    let want = norm::oracle(&x, &g_values, Some(&b_values), 1, 1, 1e-5);
    bench.check("norm", "layer norm", &[], &want, |g| {
        layer_norm(g.literal([1, h * w, c], x.clone()), &gamma, &beta, 1e-5)
    })?;
    let want = norm::oracle(&x, &g_values, None, 1, 1, 1e-6);
    bench.check("norm", "RMS norm", &[], &want, |g| {
        rms_norm(g.literal([1, h * w, c], x.clone()), &gamma, 1e-6)
    })
}

fn cache_cases(bench: &mut Bench<'_>) -> Result<()> {
    let (heads, half, rows, context) = (2, 16, 3, 8);
    let c = heads * 2 * half;
    let inv_freq: Vec<f32> = (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect();
    let inv_freq_on_gpu = Vector::upload(bench.gpu, "self-test", &inv_freq)?;
    let rotary = Rotary { inv_freq: inv_freq_on_gpu, scale: 1.0 };
    let (x, cache) = (bench.data(27, rows * c), bench.data(28, context * c));
    let feeds = [Feed::U32("start", &[4])];
    let want =
        rope::oracle(&x, &inv_freq, rope::Case { rows, heads, d: 2 * half, start: 4, scale: 1.0 });
    bench.check("rope", "3 rows from 4 on", &feeds, &want, |g| {
        let start = g.input("start", [1], Elem::U32);
        rope(g.literal([1, rows, c], x.clone()), start, &rotary, heads)
    })?;
    let want = kv_cache::oracle(&cache, &x, 1, c, 4);
    bench.check("kv_cache", "3 rows from 4 on", &feeds, &want, |g| {
        let start = g.input("start", [1], Elem::U32);
        let cache = g.literal([1, context, c], cache.clone());
        kv_write(cache, g.literal([1, rows, c], x.clone()), start)
    })?;
    eight_bit_cache_case(bench)
}

/// Keys and values written to a cache of eight bits and read back by a prompt and by one token. They are
/// eight-bit codes themselves, the largest in every head, so that storing them loses nothing and no
/// rounding decides between two codes.
fn eight_bit_cache_case(bench: &mut Bench<'_>) -> Result<()> {
    let (heads, kv_heads, d, context) = (4, 2, 32, 48);
    let scale = 1.0 / (d as f32).sqrt();
    let words = q8_words(kv_heads, d);
    // NaN as scales of the rows that are never written.
    let noise = vec![u32::MAX; context * words];
    for (sq, rows) in [(13, 13), (1, 21)] {
        let start = rows - sq;
        let q = bench.data(29, sq * heads * d);
        let [k, v] = [30, 31].map(|seed| {
            let code = |v: f32| (40.0 * v).round().clamp(-127.0, 127.0) / 64.0;
            let mut x: Vec<f32> =
                bench.data(seed, rows * kv_heads * d).into_iter().map(code).collect();
            x.iter_mut().step_by(d).for_each(|first| *first = 127.0 / 64.0);
            x
        });
        let (batch, sk, window, cap) = (1, rows, None, None);
        let case = attention::Case {
            batch,
            sq,
            sk,
            heads,
            kv_heads,
            d,
            scale,
            start: Some(start),
            window,
            cap,
        };
        let want = attention::oracle(&q, &k, &v, case);
        let position = [start as u32];
        let feeds = [
            Feed::U32("start", &position),
            Feed::U32("first", &[0]),
            Feed::U32("keys", &noise),
            Feed::U32("values", &noise),
        ];
        bench.check("kv_cache", format!("eight bits, {sq} queries"), &feeds, &want, |g| {
            let first = g.input("first", [1], Elem::U32);
            let [keys, values] = [("keys", &k), ("values", &v)].map(|(name, x)| {
                let cache = g.input(name, [1, context, words], Elem::U32);
                kv_write(cache, g.literal([1, rows, kv_heads * d], x.clone()), first)
            });
            let mask = Mask::Cached { start: g.input("start", [1], Elem::U32), window };
            let q = g.literal([1, sq, heads * d], q.clone());
            attention(q, keys, values, Attention { heads, kv_heads, scale, cap, mask })
        })?;
    }
    Ok(())
}

fn pointwise_cases(bench: &mut Bench<'_>) -> Result<()> {
    let n = 1000;
    let (a, b) = (bench.data(11, n), bench.data(12, n));
    for act in [Act::Silu, Act::Gelu, Act::QuickGelu, Act::GeluTanh] {
        let want: Vec<f64> =
            a.iter().zip(&b).map(|(a, b)| act.oracle(f64::from(*a)) * f64::from(*b)).collect();
        bench.check("pointwise", format!("{act:?} gate"), &[], &want, |g| {
            gated(g.literal([n], a.clone()), g.literal([n], b.clone()), act)
        })?;
    }
    let sum: Vec<f64> =
        a.iter().zip(&b).map(|(a, b)| 0.5 * f64::from(*a) + f64::from(*b)).collect();
    bench.check("pointwise", "scale and add", &[], &sum, |g| {
        0.5 * g.literal([n], a.clone()) + g.literal([n], b.clone())
    })?;
    let halves: Vec<f64> = a
        .chunks_exact(20)
        .flat_map(|row| (0..10).map(|i| (row[i], row[10 + i])))
        .map(|(value, gate)| f64::from(value) * Act::Gelu.oracle(f64::from(gate)))
        .collect();
    bench.check("pointwise", "GEGLU", &[], &halves, |g| geglu(g.literal([n / 20, 20], a.clone())))
}

fn lookup_cases(bench: &mut Bench<'_>) -> Result<()> {
    let (rows, c) = (50, 72);
    for spec in [QuantSpec::F16, QuantSpec::INT8] {
        let (weight, values) = bench.weight(13, Layout::linear(rows, c), spec)?;
        let ids = [49, 0, 7, 7];
        let want = embed::oracle(&ids, &values, c);
        bench.check("embed", spec.to_string(), &[Feed::U32("ids", &ids)], &want, |g| {
            embed(g.input("ids", [1, 4], Elem::U32), &weight)
        })?;
    }
    let t = [0.0, 1.0, 981.0];
    let want = timestep::oracle(&t, 64, true, 0.0);
    bench.check("timestep", "three of 64", &[Feed::F32("t", &t)], &want, |g| {
        timestep_embedding(g.input("t", [3], Elem::F32), 64, true, 0.0)
    })?;
    let logits = bench.data(14, 9000);
    let best = topk::oracle(&logits, 1).unwrap_or_default();
    let want: Vec<f64> = best.iter().map(|(_, id)| f64::from(*id)).collect();
    bench.check("argmax", "9000 logits", &[Feed::F32("x", &logits)], &want, |g| {
        argmax(g.input("x", [1, 9000], Elem::F32))
    })
}

/// A step in the middle of a schedule, with guidance, that reads everything that a run keeps.
fn sampler_case(bench: &mut Bench<'_>) -> Result<()> {
    let row = StepCoefficients {
        timestep: 500.0,
        input_scale: 0.5,
        value: [1.25, -0.75],
        clip: f32::MAX,
        next: [0.5, 0.75, -0.25, 0.125, -0.5, 0.25, 0.0, 0.0],
        keep: [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        push: 1.0,
        x0: [1.25, -0.75],
        sigma: 1.5,
        start: [1.0, 1.5],
        step: 3,
        steps_done: 4,
    };
    let (guidance, n) = (4.0, 64);
    let shape = [1, 4, 4, 4];
    let (x, out) = (bench.data(15, n), bench.data(16, 2 * n));
    let memory = bench.data(17, MEMORY * n);
    let joined: Vec<f32> = (0..n).map(|i| out[i] + guidance * (out[n + i] - out[i])).collect();
    let part = |k: usize| memory[k * n..(k + 1) * n].to_vec();
    let state = State { x: x.clone(), history: [0, 1, 2].map(part), saved: part(MEMORY - 1) };
    let want: Vec<f64> =
        apply(&row, &state, &joined, None)?.0.x.into_iter().map(f64::from).collect();
    let coef = row.with_guidance(guidance, 0.0);
    let feeds = [Feed::F32("coef", &coef), Feed::F32("x", &x), Feed::F32("memory", &memory)];
    bench.check("sampler", "a step with history", &feeds, &want, |g| {
        let coef = g.input("coef", [COEFFICIENTS], Elem::F32);
        let x = g.input("x", shape, Elem::F32);
        let memory = g.input("memory", [MEMORY, 4, 4, 4], Elem::F32);
        let value = predict_value(x, g.literal([2, 4, 4, 4], out.clone()), coef);
        step(x, value, memory, x, coef)
    })?;
    let (u, c) = out.split_at(n);
    let factor = guidance::oracle(u, c, n, guidance, 0.7)[0] / f64::from(joined[0]);
    let want: Vec<f64> = joined
        .iter()
        .zip(&x)
        .map(|(g, x)| f64::from(row.value[0] * x) + f64::from(row.value[1] * g) * factor)
        .collect();
    let coef = row.with_guidance(guidance, 0.7);
    let feeds = [Feed::F32("coef", &coef), Feed::F32("x", &x)];
    bench.check("guidance", "rescale 0.7", &feeds, &want, |g| {
        let coef = g.input("coef", [COEFFICIENTS], Elem::F32);
        let answer = Answer::from(g.literal([2, 4, 4, 4], out.clone())).rescaled(1, coef);
        predict_value(g.input("x", shape, Elem::F32), answer, coef)
    })
}
