//! What is one launch where weights lie side by side: queries, keys and values behind a norm, turned and into their caches, and the
//! two halves of a gated unit; for a few tokens and for a prompt.

use super::cache::frequencies;
use super::matmul::{FOREIGN, FORMATS, weight};
use super::problem::{Feed, Level, Prepared, Problem, Set, Site, normal};
use crate::graph::{Var, Vector, Weight};
use crate::ops::attention::{self, Attention, Mask, attention};
use crate::ops::kv_cache::kv_write;
use crate::ops::matmul::{linear, oracle};
use crate::ops::norm::{oracle as norm_oracle, rms_norm};
use crate::ops::pointwise::{Act, gated};
use crate::ops::rope::{self, Rotary, rope};
use crate::quant::{Layout, Packed};
use crate::{Error, Result};

const EPS: f32 = 1e-5;
/// A norm, a product, what becomes of it, and attention: each stores its result, so four roundings where an op has one.
const SLACK: f64 = 4.0;

pub fn add(all: &mut Vec<Problem>) {
    let (quick, usual) = (Level::Quick, Level::Usual);
    // Rows of x, heads of queries and of keys, channels of a head and those that turn, columns of x, rows in the caches before.
    let small = [1, 4, 2, 16, 16, 64, 5];
    let ragged = [[3, 2, 1, 40, 8, 172, 9], [4, 3, 3, 24, 16, 90, 33]];
    let many = [70, 3, 1, 64, 64, 96, 5];
    for (i, spec) in FORMATS.into_iter().chain(FOREIGN).enumerate() {
        all.push(heads(small, spec, (Set::Small, if i == 0 { quick } else { usual })));
        all.push(heads(ragged[0], spec, (Set::Ragged, if i == 4 { quick } else { usual })));
        all.push(heads(ragged[1], spec, (Set::Ragged, usual)));
        all.push(heads(many, spec, (Set::Ragged, if i == 0 { quick } else { usual })));
        for size in [[1, 33, 172], [4, 40, 200], [7, 24, 64]] {
            let level = if i == 0 && size[0] == 1 { quick } else { usual };
            all.push(halves((size, true), spec, (Set::Ragged, level)));
        }
        let level = if i == 0 { quick } else { usual };
        all.push(halves(([21, 64, 40], false), spec, (Set::Ragged, level)));
    }
    // SmolLM2-135M, Llama-3.2-1B, Phi-2's turning, and Qwen2.5-0.5B.
    let models = [
        (Set::Llama, [1, 9, 3, 64, 64, 576, 100]),
        (Set::Llama, [4, 9, 3, 64, 64, 576, 7]),
        (Set::Llama, [33, 9, 3, 64, 64, 576, 7]),
        (Set::Llama, [1, 32, 8, 64, 64, 2048, 60]),
        (Set::Llama, [2, 32, 32, 80, 32, 2560, 3]),
        (Set::Qwen, [1, 14, 2, 64, 64, 896, 200]),
        (Set::Qwen, [19, 14, 2, 64, 64, 896, 1]),
    ];
    for (set, size) in models {
        for spec in &FORMATS[..3] {
            all.push(heads(size, spec, (set, usual)));
        }
    }
    for (set, size) in [
        (Set::Llama, [1, 1536, 576]),
        (Set::Llama, [3, 1536, 576]),
        (Set::Llama, [70, 1536, 576]),
        (Set::Llama, [1, 8192, 2048]),
        (Set::Qwen, [1, 4864, 896]),
    ] {
        for spec in &FORMATS[..3] {
            all.push(halves((size, false), spec, (set, usual)));
        }
    }
}

/// Weights of one x, in memory side by side, and biases.
struct Beside {
    packed: Vec<Packed>,
    weights: Vec<Weight>,
    /// Zeros, if there are none.
    biases: Vec<Vec<f32>>,
    vectors: Option<Vec<Vector>>,
    gamma: Vec<f32>,
    scale: Vector,
}

impl Beside {
    fn new(
        site: &Site<'_>,
        spec: &str,
        (rows, k): (&[usize], usize),
        bias: bool,
    ) -> Result<Beside> {
        let numbered = || (40u64..).step_by(5).zip(rows);
        let packed: Vec<Packed> = numbered()
            .map(|(seed, rows)| weight(seed, Layout::linear(*rows, k), spec))
            .collect::<Result<_>>()?;
        let parts: Vec<(&str, &Packed)> = packed.iter().map(|part| ("op test", part)).collect();
        let weights = Weight::upload_beside(site.gpu, &parts)?
            .ok_or_else(|| Error::Runtime("weights of one form do not lie side by side".into()))?;
        let values = |(seed, rows): (u64, &usize)| match bias {
            true => normal(seed + 3, *rows),
            false => vec![0.0; *rows],
        };
        let biases: Vec<Vec<f32>> = numbered().map(values).collect();
        let vectors = biases.iter().map(|bias| site.vector(bias)).collect::<Result<_>>()?;
        let vectors = Some(vectors).filter(|_| bias);
        let gamma = normal(39, k);
        let scale = site.vector(&gamma)?;
        Ok(Beside { packed, weights, biases, vectors, gamma, scale })
    }
    /// Product number `i`.
    fn layer<'g>(&self, x: Var<'g>, i: usize) -> Var<'g> {
        linear(x, &self.weights[i], self.vectors.as_ref().map(|vectors| &vectors[i]))
    }
    /// Each product of a norm of x.
    fn want(&self, x: &[f32]) -> Vec<Vec<f32>> {
        let normed = f32s(norm_oracle(x, &self.gamma, None, 1, 1, EPS));
        let each = |(packed, bias): (&Packed, &Vec<f32>)| {
            let k = packed.layout.channels;
            f32s(oracle(&normed, &packed.decode(), Some(bias), None, Act::None, k))
        };
        self.packed.iter().zip(&self.biases).map(each).collect()
    }
}

fn f32s(values: Vec<f64>) -> Vec<f32> {
    values.into_iter().map(|v| v as f32).collect()
}

/// A layer's attention behind its norm, without the product at its end.
fn heads(size: [usize; 7], spec: &'static str, level: (Set, Level)) -> Problem {
    let [m, heads, kv, d, r, k, start] = size;
    let shape = format!("{m}x{k}, {heads}/{kv} heads of {d} from {start} on");
    let name = format!("{spec}, heads of a layer");
    Problem::new("matmul", name, shape, level, move |site| {
        let parts = Beside::new(site, spec, (&[heads * d, kv * d, kv * d], k), true)?;
        let x = site.data(38, m * k);
        let inv_freq = frequencies(r);
        let rotary = Rotary { inv_freq: site.vector(&inv_freq)?, scale: 1.19 };
        let before = [36, 37].map(|seed| site.data(seed, start * kv * d));
        // Queries and keys have a deviation near √k, so scores have one near a tenth: their relative errors in f16 are the absolute
        // ones of weights, and where both are large and alike a score is twenty times the deviation.
        let scale = 0.1 / (k as f32 * (d as f32).sqrt());
        let want = site.want(|| {
            let turned = |x: &[f32], heads| {
                let case = rope::Case { rows: m, heads, d, start: start as u32, scale: 1.19 };
                f32s(rope::oracle(x, &inv_freq, case))
            };
            let made = parts.want(&x);
            let keys = [&before[0][..], &turned(&made[1], kv)].concat();
            let values = [&before[1][..], &made[2]].concat();
            let case = attention::Case {
                batch: 1,
                sq: m,
                sk: start + m,
                heads,
                kv_heads: kv,
                d,
                scale,
                start: Some(start),
                window: None,
                cap: None,
            };
            attention::oracle(&turned(&made[0], heads), &keys, &values, case)
        });
        let context = start + m + 3;
        let feeds: [Vec<f32>; 2] = before.map(|rows| {
            // What is never written is NaN.
            let rest = vec![f32::NAN; context * kv * d - rows.len()];
            [rows, rest].concat()
        });
        let prepared = Prepared::new(want, move |g| {
            let start = g.input("start", [1], crate::gpu::Elem::U32);
            let normed = rms_norm(g.literal([1, m, k], x.clone()), &parts.scale, EPS);
            let [q, key, value] = [0, 1, 2].map(|i| parts.layer(normed, i));
            let cache = |name: &str| g.input(name, [1, context, kv * d], g.act());
            let q = rope(q, start, &rotary, heads);
            let keys = kv_write(cache("keys"), rope(key, start, &rotary, kv), start);
            let values = kv_write(cache("values"), value, start);
            let mask = Mask::Cached { start, window: None };
            attention(q, keys, values, Attention { heads, kv_heads: kv, scale, cap: None, mask })
        });
        let [keys, values] = feeds;
        Ok(prepared
            .slack(SLACK)
            .feed(Feed::U32("start", vec![start as u32]))
            .feed(Feed::F32("keys", keys))
            .feed(Feed::F32("values", values)))
    })
}

/// A gated unit behind its norm: SiLU of one product times the other.
fn halves(
    ([m, n, k], bias): ([usize; 3], bool),
    spec: &'static str,
    level: (Set, Level),
) -> Problem {
    let name = format!("{spec}, gated unit{}", if bias { ", biases" } else { "" });
    Problem::new("matmul", name, format!("{m}x{n}x{k}"), level, move |site| {
        let parts = Beside::new(site, spec, (&[n, n], k), bias)?;
        let x = site.data(38, m * k);
        let want = site.want(|| {
            let made = parts.want(&x);
            let both = made[0].iter().zip(&made[1]);
            both.map(|(gate, up)| Act::Silu.oracle(f64::from(*gate)) * f64::from(*up)).collect()
        });
        let prepared = Prepared::new(want, move |g| {
            let normed = rms_norm(g.literal([1, m, k], x.clone()), &parts.scale, EPS);
            let [gate, up] = [0, 1].map(|i| parts.layer(normed, i));
            gated(gate, up, Act::Silu)
        });
        Ok(prepared.slack(SLACK))
    })
}
