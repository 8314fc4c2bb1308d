//! Steps of samplers, guidance, and what calibration sums up.

use super::problem::{Feed, Level, Prepared, Problem, Set, normal};
use crate::diffusion::sampler::{State, StepCoefficients, apply};
use crate::gpu::Elem;
use crate::ops::assign::assign;
use crate::ops::conv2d::{Conv, Pad};
use crate::ops::finite::count_nonfinite;
use crate::ops::gram::{self, Walk, gram};
use crate::ops::guidance::{self, Answer};
use crate::ops::moments::{self, moments};
use crate::ops::sampler::{COEFFICIENTS, MEMORY, model_input, predict_value, step};

/// Pictures, height, width, channels of the latents.
const SIZES: [([usize; 4], (Set, Level)); 4] = [
    ([1, 4, 4, 4], (Set::Small, Level::Smoke)),
    ([2, 5, 3, 3], (Set::Ragged, Level::Quick)),
    ([1, 64, 64, 4], (Set::Sd15, Level::Usual)),
    ([1, 128, 128, 4], (Set::Sdxl, Level::Usual)),
];

/// A step in the middle of a schedule that reads everything that a run keeps.
fn row() -> StepCoefficients {
    StepCoefficients {
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
    }
}

const GUIDANCE: f32 = 4.0;

pub fn add(all: &mut Vec<Problem>) {
    for (shape, level) in SIZES {
        all.extend([a_step(shape, level), rescaled(shape, level), scaled(shape, level)]);
    }
    sums(all);
    counts(all);
}

fn name([n, h, w, c]: [usize; 4]) -> String {
    format!("{n}x{h}x{w}x{c}")
}

fn a_step(shape: [usize; 4], level: (Set, Level)) -> Problem {
    let [items, h, w, c] = shape;
    let n: usize = shape.iter().product();
    Problem::new("sampler", "step with history", name(shape), level, move |site| {
        let (x, out, memory) = (normal(15, n), site.data(16, 2 * n), normal(17, MEMORY * n));
        // The answers of all pictures without a prompt lie before those with one.
        let joined: Vec<f32> = (0..n).map(|i| out[i] + GUIDANCE * (out[n + i] - out[i])).collect();
        let part = |k: usize| memory[k * n..(k + 1) * n].to_vec();
        let state = State { x: x.clone(), history: [0, 1, 2].map(part), saved: part(MEMORY - 1) };
        let want: Vec<f64> =
            apply(&row(), &state, &joined, None)?.0.x.into_iter().map(f64::from).collect();
        let want = site.want(|| want);
        let prepared = Prepared::new(want, move |g| {
            let coef = g.input("coef", [COEFFICIENTS], Elem::F32);
            let x = g.input("x", shape, Elem::F32);
            let memory = g.input("memory", [MEMORY * items, h, w, c], Elem::F32);
            let value = predict_value(x, g.literal([2 * items, h, w, c], out.clone()), coef);
            step(x, value, memory, x, coef)
        });
        Ok(prepared
            .feed(Feed::F32("coef", row().with_guidance(GUIDANCE, 0.0).to_vec()))
            .feed(Feed::F32("x", x))
            .feed(Feed::F32("memory", memory)))
    })
}

fn rescaled(shape: [usize; 4], level: (Set, Level)) -> Problem {
    let [items, h, w, c] = shape;
    let n: usize = shape.iter().product();
    Problem::new("guidance", "rescaled by 0.7", name(shape), level, move |site| {
        let (x, out) = (normal(15, n), site.data(16, 2 * n));
        let want = site.want(|| {
            let (u, p) = out.split_at(n);
            let answers = guidance::oracle(u, p, n / items, GUIDANCE, 0.7);
            let [keep, take] = row().value.map(f64::from);
            answers.iter().zip(&x).map(|(v, x)| keep * f64::from(*x) + take * v).collect()
        });
        let prepared = Prepared::new(want, move |g| {
            let coef = g.input("coef", [COEFFICIENTS], Elem::F32);
            let out = g.literal([2 * items, h, w, c], out.clone());
            let answer = Answer::from(out).rescaled(items, coef);
            predict_value(g.input("x", shape, Elem::F32), answer, coef)
        });
        Ok(prepared
            .feed(Feed::F32("coef", row().with_guidance(GUIDANCE, 0.7).to_vec()))
            .feed(Feed::F32("x", x)))
    })
}

fn scaled(shape: [usize; 4], level: (Set, Level)) -> Problem {
    let n: usize = shape.iter().product();
    Problem::new("sampler", "model input, twice", name(shape), level, move |site| {
        let x = normal(15, n);
        let once = || x.iter().map(|v| f64::from(0.5 * v));
        let want = site.want(|| once().chain(once()).collect());
        let prepared = Prepared::new(want, move |g| {
            let coef = g.input("coef", [COEFFICIENTS], Elem::F32);
            model_input(g.input("x", shape, Elem::F32), coef, 2)
        });
        Ok(prepared
            .feed(Feed::F32("coef", row().with_guidance(GUIDANCE, 0.0).to_vec()))
            .feed(Feed::F32("x", x)))
    })
}

/// XᵀX and moments of the columns that a layer reads.
fn sums(all: &mut Vec<Problem>) {
    let conv = |side, stride, upsample, pad| Walk { side, conv: Conv { stride, upsample, pad } };
    let walks = [
        ("linear", Walk::LINEAR),
        ("3x3", conv(3, 1, false, Pad::Same)),
        ("3x3 stride 2", conv(3, 2, false, Pad::End)),
        ("3x3 upsampled", conv(3, 1, true, Pad::Same)),
    ];
    for (spec, walk) in walks {
        for shape in [[2, 5, 4, 8], [1, 4, 6, 24], [1, 3, 5, 6]] {
            let level = (Set::Ragged, Level::Quick);
            let k = shape[3] * walk.side * walk.side;
            all.push(Problem::new("gram", spec, name(shape), level, move |site| {
                let x = site.data(3, shape.iter().product());
                // What lies above the diagonal is not touched: it keeps the zeros.
                let want = site.want(|| gram::oracle(&gram::columns(&x, shape, walk), 0, k));
                let prepared = Prepared::new(want, move |g| {
                    let sums = g.input("sums", [k, k], Elem::F32);
                    gram(sums, g.literal(shape, x.clone()), walk, 0, 1)
                });
                Ok(prepared.feed(Feed::F32("sums", vec![0.0; k * k])))
            }));
            all.push(Problem::new("moments", spec, name(shape), level, move |site| {
                let x = site.data(3, shape.iter().product());
                let want = site.want(|| moments::oracle(&gram::columns(&x, shape, walk)));
                let prepared = Prepared::new(want, move |g| {
                    let sums = g.input("sums", [3, k], Elem::F32);
                    moments(sums, g.literal(shape, x.clone()), walk)
                });
                Ok(prepared.feed(Feed::F32("sums", vec![0.0; 3 * k])))
            }));
        }
    }
}

/// Values that are not finite are counted, and a value is stored where another plan finds it.
fn counts(all: &mut Vec<Problem>) {
    let sizes = [
        (1000, (Set::Small, Level::Smoke)),
        (1, (Set::Ragged, Level::Quick)),
        (15, (Set::Ragged, Level::Quick)),
        (70_001, (Set::Ragged, Level::Usual)),
        (300_000, (Set::Sd15, Level::Usual)),
    ];
    for (n, level) in sizes {
        all.push(Problem::new("finite", "NaN and infinities", n.to_string(), level, move |site| {
            let largest = if site.act == Elem::F16 { 65504.0 } else { f32::MAX };
            let mut x = site.data(18, n);
            for (i, v) in [largest, -largest, 0.0, -0.0, 6e-8].into_iter().enumerate() {
                x[(i * 7) % n] = v;
            }
            for (i, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
                x.iter_mut().skip(i).step_by(97).for_each(|v| *v = bad);
            }
            let want = site.want(|| vec![x.iter().filter(|v| !v.is_finite()).count() as f64]);
            let act = site.act;
            let prepared =
                Prepared::new(want, move |g| count_nonfinite(g.input("x", [n], act))).exact();
            Ok(prepared.feed(Feed::F32("x", x)))
        }));
        all.push(Problem::new("assign", "a sum", n.to_string(), level, move |site| {
            let (x, act) = (site.data(19, n), site.act);
            // Doubling is exact.
            let want = site.want(|| x.iter().map(|v| 2.0 * f64::from(*v)).collect());
            let prepared = Prepared::new(want, move |g| {
                let sum = g.literal([n], x.clone()) + g.literal([n], x.clone());
                assign(g.input("kept", [n], act), sum)
            });
            Ok(prepared.exact().feed(Feed::F32("kept", vec![0.0; n])))
        }));
    }
}
