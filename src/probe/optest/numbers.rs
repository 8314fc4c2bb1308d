//! Numbers that are hard to compute with. What a driver may do with them (flush denormals) changes nothing that is
//! checked here; what it may not (an overflow inside of a sum, a NaN that reaches other values or none) does.

use super::problem::{Level, Prepared, Problem, Set, Site, normal, packed};
use crate::Result;
use crate::gpu::Elem;
use crate::ops::attention::{self, Attention, Mask, attention};
use crate::ops::conv2d::{self, Conv, conv2d};
use crate::ops::finite::count_nonfinite;
use crate::ops::matmul::{self, linear};
use crate::ops::norm::{self, layer_norm, rms_norm};
use crate::ops::pointwise::{Act, activate, geglu};
use crate::ops::softmax::{self, softmax};
use crate::quant::{Layout, Packed};

const LEVEL: (Set, Level) = (Set::Numbers, Level::Quick);
const SIZE: [usize; 3] = [9, 40, 136];

pub fn add(all: &mut Vec<Problem>) {
    for spec in ["fp32", "fp16", "int8-g64", "int4-g64-cubic", "int4-g32-uniform-absmax"] {
        for (m, n, k) in [(1, 40, 136), (9, 40, 136)] {
            product(all, "large range", spec, [m, n, k], ranged);
            product(all, "denormals", spec, [m, n, k], denormal);
            product(all, "near the largest f16", spec, [m, n, k], near_limit);
        }
    }
    norms(all);
    elements(all);
    not_finite(all);
}

/// Ten powers of ten, four in f16.
fn ranged(site: &Site<'_>, n: usize) -> Vec<f32> {
    let power = if site.act == Elem::F16 { 2.0 } else { 5.0 };
    let exponents = normal(31, n);
    let value = |(v, e): (f32, f32)| v * 10f32.powf((e / 2.0).clamp(-1.0, 1.0) * power);
    site.stored(normal(30, n).into_iter().zip(exponents).map(value).collect())
}

/// Every second number is a denormal of the type.
fn denormal(site: &Site<'_>, n: usize) -> Vec<f32> {
    let small = if site.act == Elem::F16 { 1e-6 } else { 1e-39 };
    let value = |(i, v): (usize, f32)| if i % 2 == 0 { v } else { v * small };
    site.stored(normal(32, n).into_iter().enumerate().map(value).collect())
}

/// Up to 65,000 either way: squares and sums of them do not fit f16.
fn near_limit(site: &Site<'_>, n: usize) -> Vec<f32> {
    let value = |v: f32| (v * 30_000.0).clamp(-65_000.0, 65_000.0);
    site.stored(normal(33, n).into_iter().map(value).collect())
}

/// A product of x by a weight whose entries are small enough for the result to fit f16.
fn product(
    all: &mut Vec<Problem>,
    what: &str,
    spec: &'static str,
    [m, n, k]: [usize; 3],
    x: fn(&Site<'_>, usize) -> Vec<f32>,
) {
    let name = format!("{spec}, {what}");
    all.push(Problem::new("matmul", name, format!("{m}x{n}x{k}"), LEVEL, move |site| {
        let values: Vec<f32> = normal(34, n * k).into_iter().map(|v| v * 0.01).collect();
        let packed = Packed::pack(&values, Layout::linear(n, k), &spec.parse()?, None)?;
        let x = x(site, m * k);
        let want = site.want(|| matmul::oracle(&x, &packed.decode(), None, None, Act::None, k));
        let weight = site.upload(&packed)?;
        Ok(Prepared::new(want, move |g| linear(g.literal([m, k], x.clone()), &weight, None)))
    }));
}

fn norms(all: &mut Vec<Problem>) {
    type Draw = fn(&Site<'_>, usize) -> Vec<f32>;
    let draws: [(&str, Draw); 3] =
        [("large range", ranged), ("denormals", denormal), ("near the largest f16", near_limit)];
    for (what, draw) in draws {
        let (rows, c) = (5, 320);
        let shape = format!("{rows}x{c}");
        all.push(Problem::new(
            "norm",
            format!("layer, {what}"),
            shape.clone(),
            LEVEL,
            move |site| {
                let (gamma, beta, x) = (normal(1, c), normal(2, c), draw(site, rows * c));
                let want = site.want(|| norm::oracle(&x, &gamma, Some(&beta), 1, 1, 1e-5));
                let (gamma, beta) = (site.vector(&gamma)?, site.vector(&beta)?);
                Ok(Prepared::new(want, move |g| {
                    layer_norm(g.literal([rows, c], x.clone()), &gamma, &beta, 1e-5)
                }))
            },
        ));
        all.push(Problem::new("norm", format!("RMS, {what}"), shape.clone(), LEVEL, move |site| {
            let (gamma, x) = (normal(1, c), draw(site, rows * c));
            let want = site.want(|| norm::oracle(&x, &gamma, None, 1, 1, 1e-6));
            let gamma = site.vector(&gamma)?;
            Ok(Prepared::new(want, move |g| {
                rms_norm(g.literal([rows, c], x.clone()), &gamma, 1e-6)
            }))
        }));
        all.push(Problem::new("softmax", what, shape, LEVEL, move |site| {
            let x = draw(site, rows * c);
            let want = site.want(|| softmax::oracle(&x, c));
            Ok(Prepared::new(want, move |g| softmax(g.literal([rows, c], x.clone()))))
        }));
    }
    for sq in [1, 13] {
        let (sk, heads, d) = (50, 2, 40);
        let shape = format!("1x{sq}x{sk}, {heads}/{heads} heads of {d}");
        all.push(Problem::new("attention", "scores beyond f16", shape, LEVEL, move |site| {
            // 40 products of 100 · 100 come to 65,536 times a few.
            let large = |seed, n| -> Vec<f32> {
                site.stored(normal(seed, n).into_iter().map(|v| v * 100.0).collect())
            };
            let (q, k) = (large(1, sq * heads * d), large(2, sk * heads * d));
            let v = site.data(3, sk * heads * d);
            let scale = 1.0 / (d as f32).sqrt();
            let case = attention::Case {
                batch: 1,
                sq,
                sk,
                heads,
                kv_heads: heads,
                d,
                scale,
                start: None,
                window: None,
                cap: None,
            };
            let want = site.want(|| attention::oracle(&q, &k, &v, case));
            let prepared = Prepared::new(want, move |g| {
                let [k, v] = [&k, &v].map(|x| g.literal([1, sk, heads * d], x.clone()));
                let q = g.literal([1, sq, heads * d], q.clone());
                let how = Attention { heads, kv_heads: heads, scale, cap: None, mask: Mask::None };
                attention(q, k, v, how)
            });
            // A score of 2¹⁷ has an ulp of 2⁻⁶ in f32: exp of the difference of two is wrong by a hundredth.
            Ok(prepared.slack(1e4))
        }));
    }
}

fn elements(all: &mut Vec<Problem>) {
    let acts = [
        (Act::Silu, "silu"),
        (Act::Gelu, "gelu"),
        (Act::QuickGelu, "quickgelu"),
        (Act::GeluTanh, "gelu tanh"),
    ];
    for (act, name) in acts {
        // exp(−x) of the ends overflows and has to come out as 0 or x.
        let x =
            [0.0, -0.0, 1e-6, -1e-6, 3.0, -3.0, 88.0, -88.0, 104.0, -104.0, 65_000.0, -65_000.0];
        let name = format!("{name}, large range");
        all.push(
            Problem::new("pointwise", name, "12", LEVEL, move |site| {
                let x = site.stored(x.to_vec());
                // Each value by itself: beside 65,000 nothing else would count.
                let want = site.want(|| {
                    x.iter()
                        .map(|v| act.oracle(f64::from(*v)) / (1.0 + f64::from(v.abs())))
                        .collect()
                });
                Ok(Prepared::new(want, move |g| {
                    let over = x.iter().map(|v| 1.0 / (1.0 + v.abs())).collect();
                    activate(g.literal([12], x.clone()), act) * g.literal_f32([12], over)
                }))
            })
            .f32_only(),
        );
    }
    all.push(Problem::new("pointwise", "geglu, near the largest f16", "9x80", LEVEL, |site| {
        let x: Vec<f32> =
            normal(35, 9 * 80).into_iter().map(|v| (v * 100.0).clamp(-250.0, 250.0)).collect();
        let x = site.stored(x);
        let want = site.want(|| {
            let halves = x.chunks_exact(80).flat_map(|row| (0..40).map(|i| (row[i], row[40 + i])));
            halves.map(|(v, g)| f64::from(v) * Act::Gelu.oracle(f64::from(g))).collect()
        });
        Ok(Prepared::new(want, move |g| geglu(g.literal([9, 80], x.clone()))))
    }));
    all.push(Problem::new("pointwise", "add, near the largest f16", "9x80", LEVEL, |site| {
        let x: Vec<f32> = near_limit(site, 9 * 80).iter().map(|v| v / 2.0).collect();
        let x = site.stored(x);
        let want = site.want(|| x.iter().map(|v| 2.0 * f64::from(*v)).collect());
        Ok(Prepared::new(want, move |g| {
            g.literal([9, 80], x.clone()) + g.literal([9, 80], x.clone())
        }))
    }));
}

/// A weight that is NaN in one place and infinite in another: what does not read them is right, the rest not finite, and the
/// count says how much.
fn damaged(spec: &str, rows: usize, taps: usize, channels: usize) -> Result<(Packed, Vec<f32>)> {
    let layout = Layout { rows, taps, channels };
    let mut packed = packed(36, layout, spec)?;
    let (mut values, mut words) = (packed.decode(), packed.words.to_vec());
    let nan_at = 3 * taps * channels + channels / 2;
    let inf_at = (rows - 2) * taps * channels + 1;
    for (at, bad) in [(nan_at, f32::NAN), (inf_at, f32::INFINITY)] {
        values[at] = bad;
        let (row, tap, channel) = (at / (taps * channels), at / channels % taps, at % channels);
        let first = row * layout.row_stride() + tap * layout.tap_stride() + channel;
        let word = &mut words[first / packed.format.per_word()];
        *word = match packed.format.per_word() {
            1 => bad.to_bits(),
            _ => {
                let shift = first % 2 * 16;
                let half = u32::from(half::f16::from_f32(bad).to_bits());
                *word & !(0xffff << shift) | half << shift
            }
        };
    }
    packed.words = words.into();
    Ok((packed, values))
}

fn not_finite(all: &mut Vec<Problem>) {
    let [_, n, k] = SIZE;
    for spec in ["fp32", "fp16"] {
        for m in [1, 9] {
            let shape = format!("{m}x{n}x{k}");
            let name = format!("{spec} with NaN and infinity");
            all.push(Problem::new("matmul", name.clone(), shape.clone(), LEVEL, move |site| {
                let (packed, values) = damaged(spec, n, 1, k)?;
                let x = site.data(37, m * k);
                let want = site.want(|| matmul::oracle(&x, &values, None, None, Act::None, k));
                let weight = site.upload(&packed)?;
                Ok(Prepared::new(want, move |g| {
                    linear(g.literal([m, k], x.clone()), &weight, None)
                }))
            }));
            let name = format!("of a product by {name}");
            all.push(Problem::new("finite", name, shape, LEVEL, move |site| {
                let (packed, _) = damaged(spec, n, 1, k)?;
                let x = site.data(37, m * k);
                // Two columns of the result.
                let want = site.want(|| vec![2.0 * m as f64]);
                let weight = site.upload(&packed)?;
                let prepared = Prepared::new(want, move |g| {
                    count_nonfinite(linear(g.literal([m, k], x.clone()), &weight, None))
                });
                Ok(prepared.exact())
            }));
        }
        let name = format!("{spec}, 3x3 with NaN and infinity");
        all.push(Problem::new("conv2d", name, "1x6x5x24 to 16", LEVEL, move |site| {
            let (packed, mut values) = damaged(spec, 16, 9, 24)?;
            let size = [1, 6, 5, 24];
            let x = site.data(38, size.iter().product());
            // At the border the first tap is not read: there both 0 and what a product with 0 gives are right, so the
            // middle of the picture is looked at.
            let inner: Vec<usize> = (0..6 * 5 * 16)
                .filter(|i| (1..5).contains(&(i / 80)) && (1..4).contains(&(i / 16 % 5)))
                .collect();
            let want = site.want(|| {
                let y = conv2d::oracle(&x, size, &values, 3, Conv::default());
                inner.iter().map(|i| y[*i]).collect()
            });
            values.clear();
            let weight = site.upload(&packed)?;
            let prepared = Prepared::new(want, move |g| {
                conv2d(g.literal(size, x.clone()), &weight, None, Conv::default())
            });
            Ok(prepared.at(inner))
        }));
    }
    all.push(Problem::new("norm", "RMS, a NaN in one row", "5x320", LEVEL, |site| {
        let (gamma, mut x) = (normal(1, 320), site.data(39, 5 * 320));
        x[2 * 320 + 7] = f32::NAN;
        let want = site.want(|| norm::oracle(&x, &gamma, None, 1, 1, 1e-6));
        let gamma = site.vector(&gamma)?;
        Ok(Prepared::new(want, move |g| rms_norm(g.literal([5, 320], x.clone()), &gamma, 1e-6)))
    }));
    all.push(Problem::new("softmax", "a NaN in one row", "5x77", LEVEL, |site| {
        let mut x = site.data(40, 5 * 77);
        x[2 * 77 + 7] = f32::NAN;
        let want = site.want(|| {
            let y = softmax::oracle(&x, 77).into_iter().enumerate();
            y.map(|(i, v)| if i / 77 == 2 { f64::NAN } else { v }).collect()
        });
        Ok(Prepared::new(want, move |g| softmax(g.literal([5, 77], x.clone()))))
    }));
}
