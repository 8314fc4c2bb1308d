//! Group, layer and RMS norms, over one input and over two that are read where they lie.

use super::problem::{Level, Prepared, Problem, Set, Site};
use crate::Result;
use crate::ops::concat::{self, cat};
use crate::ops::norm::{group_norm, layer_norm, oracle, rms_norm};
use crate::ops::pointwise::{Act, silu};

/// f32: x − mean cancels a digit, since the mean is twice the deviation.
const SLACK: f64 = 10.0;

/// Normal numbers around an offset: a variance computed as E[x²] − E[x]² would lose digits.
fn shifted(site: &Site<'_>, seed: u64, n: usize) -> Vec<f32> {
    site.stored(site.data(seed, n).into_iter().map(|v| 1.5 * v + 3.0).collect())
}

pub fn add(all: &mut Vec<Problem>) {
    let rows = [
        (30, 64, (Set::Small, Level::Smoke)),
        (1, 4, (Set::Ragged, Level::Quick)),
        (3, 5, (Set::Ragged, Level::Quick)),
        (70, 64, (Set::Edges, Level::Usual)),
        (2, 4096, (Set::Llama, Level::Usual)),
        (1, 576, (Set::Llama, Level::Quick)),
        (128, 2048, (Set::Llama, Level::Usual)),
        (1, 5000, (Set::Ragged, Level::Usual)),
        (19, 896, (Set::Qwen, Level::Usual)),
        (4096, 320, (Set::Sd15, Level::Usual)),
        (1024, 1280, (Set::Sdxl, Level::Full)),
    ];
    for (rows, c, level) in rows {
        let shape = format!("{rows}x{c}");
        all.push(Problem::new("norm", "layer", shape.clone(), level, move |site| {
            let (gamma, beta, x) = (site.data(1, c), site.data(2, c), shifted(site, 3, rows * c));
            let want = site.want(|| oracle(&x, &gamma, Some(&beta), 1, 1, 1e-5));
            let (gamma, beta) = (site.vector(&gamma)?, site.vector(&beta)?);
            let prepared = Prepared::new(want, move |g| {
                layer_norm(g.literal([1, rows, c], x.clone()), &gamma, &beta, 1e-5)
            });
            Ok(prepared.slack(SLACK))
        }));
        all.push(added(rows, c, shape.clone(), level));
        all.push(Problem::new("norm", "RMS", shape, level, move |site| {
            let (gamma, x) = (site.data(1, c), shifted(site, 3, rows * c));
            let want = site.want(|| oracle(&x, &gamma, None, 1, 1, 1e-6));
            let gamma = site.vector(&gamma)?;
            Ok(Prepared::new(want, move |g| {
                rms_norm(g.literal([1, rows, c], x.clone()), &gamma, 1e-6)
            }))
        }));
    }
    groups(all);
}

/// What a layer adds to its input behind a norm (Gemma 2, OLMo 2).
fn added(rows: usize, c: usize, shape: String, level: (Set, Level)) -> Problem {
    Problem::new("norm", "RMS added", shape, level, move |site| {
        let (gamma, x, r) =
            (site.data(1, c), shifted(site, 3, rows * c), shifted(site, 5, rows * c));
        let want = site.want(|| {
            let y = oracle(&x, &gamma, None, 1, 1, 1e-6);
            y.iter().zip(&r).map(|(y, r)| y + f64::from(*r)).collect()
        });
        let gamma = site.vector(&gamma)?;
        Ok(Prepared::new(want, move |g| {
            let x = g.literal([1, rows, c], x.clone());
            g.literal([1, rows, c], r.clone()) + rms_norm(x, &gamma, 1e-6)
        }))
    })
}

fn groups(all: &mut Vec<Problem>) {
    let sizes = [
        ([1, 6, 5], [64, 0], 8, (Set::Small, Level::Smoke)),
        ([1, 1, 1], [8, 0], 2, (Set::Ragged, Level::Quick)),
        ([2, 3, 5], [20, 0], 2, (Set::Ragged, Level::Quick)),
        ([2, 9, 7], [12, 0], 3, (Set::Ragged, Level::Quick)),
        ([1, 4, 4], [6, 0], 3, (Set::Ragged, Level::Quick)),
        // A group that straddles the seam, and parts that are no vectors of four.
        ([2, 5, 7], [20, 12], 4, (Set::Ragged, Level::Quick)),
        ([2, 5, 7], [5, 7], 3, (Set::Ragged, Level::Quick)),
        ([2, 5, 7], [64, 32], 8, (Set::Ragged, Level::Quick)),
        ([1, 16, 16], [320, 0], 32, (Set::Sd15, Level::Usual)),
        ([2, 64, 64], [320, 0], 32, (Set::Sd15, Level::Usual)),
        ([2, 16, 16], [1280, 640], 32, (Set::Sd15, Level::Usual)),
        ([1, 128, 128], [320, 0], 32, (Set::Sdxl, Level::Full)),
        // More positions than one invocation goes through: the decoder of a picture of 512 pixels.
        ([1, 512, 512], [8, 0], 2, (Set::Edges, Level::Full)),
    ];
    for (size, channels, count, level) in sizes {
        for then in [false, true] {
            all.push(group(size, channels, count, then, level));
        }
    }
}

fn group(
    [b, h, w]: [usize; 3],
    [ca, cb]: [usize; 2],
    groups: usize,
    then: bool,
    level: (Set, Level),
) -> Problem {
    let c = ca + cb;
    let parts = if cb > 0 { format!("{ca}+{cb}") } else { ca.to_string() };
    let spec = format!("{groups} groups{}", if then { " silu" } else { "" });
    Problem::new("norm", spec, format!("{b}x{h}x{w}x{parts}"), level, move |site| {
        let pixels = h * w;
        let (gamma, beta) = (site.data(1, c), site.data(2, c));
        let (x, x2) = (shifted(site, 3, b * pixels * ca), shifted(site, 4, b * pixels * cb));
        let want = site.want(|| {
            let joined = match cb {
                0 => x.clone(),
                _ => concat::oracle(&x, &x2, ca, cb).into_iter().map(|v| v as f32).collect(),
            };
            let y = oracle(&joined, &gamma, Some(&beta), pixels, groups, 1e-5);
            match then {
                true => y.into_iter().map(|v| Act::Silu.oracle(v)).collect(),
                false => y,
            }
        });
        let (gamma, beta) = (site.vector(&gamma)?, site.vector(&beta)?);
        let build: Result<Prepared> = Ok(Prepared::new(want, move |g| {
            let mut y = g.literal([b, h, w, ca], x.clone());
            if cb > 0 {
                y = cat(y, g.literal([b, h, w, cb], x2.clone()));
            }
            y = group_norm(y, &gamma, &beta, groups, 1e-5);
            if then { silu(y) } else { y }
        }));
        build.map(|prepared| prepared.slack(SLACK))
    })
}
