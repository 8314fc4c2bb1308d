//! Attention: all keys, causal, behind a cache, in a window, with capped scores and grouped queries, at the sizes of models; and
//! softmax by itself.

use super::problem::{Feed, Level, Prepared, Problem, Set, Site};
use crate::Result;
use crate::gpu::Elem;
use crate::ops::attention::{Attention, Case, Mask, attention, oracle};
use crate::ops::softmax::{self, softmax};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    All,
    Causal,
    /// The keys lie in a cache, and what was never written there is NaN.
    Cached,
}

/// Batch, queries, keys, heads, heads of keys, channels of a head.
fn case([batch, sq, sk, heads, kv_heads, d]: [usize; 6]) -> Case {
    let scale = 1.0 / (d as f32).sqrt();
    Case { batch, sq, sk, heads, kv_heads, d, scale, start: None, window: None, cap: None }
}

pub fn add(all: &mut Vec<Problem>) {
    let mut add = |kind, case, level: (Set, Level)| all.push(problem(kind, case, level));
    let smoke = (Set::Small, Level::Smoke);
    let cached = |size, start, window, cap| Case { start: Some(start), window, cap, ..case(size) };
    add(Kind::All, case([1, 33, 33, 2, 2, 40]), smoke);
    add(Kind::All, case([1, 9, 77, 2, 2, 40]), smoke);
    add(Kind::Causal, Case { start: Some(0), ..case([1, 13, 13, 4, 2, 40]) }, smoke);
    add(Kind::Cached, cached([1, 1, 48, 4, 2, 40], 20, None, None), smoke);
    add(Kind::Cached, cached([1, 1, 48, 4, 2, 40], 20, Some(9), Some(1.5)), smoke);
    add(Kind::Cached, cached([1, 13, 48, 4, 2, 40], 20, Some(9), Some(1.5)), smoke);
    // Each width of a head is a kernel of its own, and takes a third of a second to compile.
    let quick = |i: usize| (Set::Ragged, if i < 2 { Level::Quick } else { Level::Usual });
    for (i, size) in [
        [2, 64, 64, 8, 8, 32],
        [1, 70, 77, 8, 8, 40],
        [2, 33, 19, 2, 2, 64],
        [1, 9, 1, 1, 1, 8],
        [1, 40, 45, 1, 1, 160],
        [1, 17, 23, 2, 1, 80],
        [1, 5, 11, 3, 3, 10],
        [1, 7, 50, 1, 1, 96],
        [1, 1, 200, 3, 3, 128],
    ]
    .into_iter()
    .enumerate()
    {
        add(Kind::All, case(size), quick(i));
    }
    for size in [[1, 1, 1, 2, 2, 32], [2, 45, 45, 6, 3, 40], [1, 131, 131, 4, 1, 64]] {
        add(Kind::Causal, Case { start: Some(0), ..case(size) }, quick(2));
    }
    for (sq, sk, start, window) in [
        (1, 32, 0, None),
        (1, 100, 99, None),
        (3, 64, 17, None),
        (40, 96, 5, None),
        (1, 1500, 1201, None),
        (1, 64, 40, Some(1)),
        (5, 64, 0, Some(3)),
        (40, 96, 56, Some(30)),
        (70, 200, 100, Some(64)),
        (1, 1500, 1399, Some(1100)),
    ] {
        add(Kind::Cached, cached([1, sq, sk, 4, 2, 64], start, window, None), quick(0));
    }
    edges(all);
    models(all);
    softmaxes(all);
}

fn edges(all: &mut Vec<Problem>) {
    let usual = (Set::Edges, Level::Usual);
    for d in [8, 16, 32, 40, 64, 72, 80, 96, 128, 160, 256] {
        for (sq, sk) in [(1, 63), (8, 64), (9, 65), (31, 129), (64, 8)] {
            all.push(problem(Kind::All, case([1, sq, sk, 2, 1, d]), usual));
        }
    }
    // More keys than one invocation goes through, and heads of the VAE's width.
    for (kind, start, size, window) in [
        (Kind::All, None, [1, 33, 1100, 1, 1, 512], None),
        (Kind::Cached, Some(700), [1, 40, 1400, 1, 1, 256], None),
        (Kind::Cached, Some(1500), [1, 40, 1800, 1, 1, 256], Some(900)),
        (Kind::Cached, Some(1750), [1, 1, 1800, 1, 1, 512], Some(1399)),
        (Kind::Cached, Some(32_767), [1, 1, 32_768, 2, 1, 64], None),
        (Kind::Cached, Some(32_759), [1, 9, 32_768, 2, 1, 64], Some(4096)),
    ] {
        let case = Case { start, window, ..case(size) };
        all.push(problem(kind, case, (Set::Edges, Level::Full)));
    }
    for (cap, scale) in [(50.0, 0.125), (2.0, 1.0), (30.0, 40.0)] {
        let capped = Case { cap: Some(cap), scale, ..case([1, 40, 61, 2, 2, 40]) };
        all.push(problem(Kind::All, capped, usual));
    }
    // Scores of a hundred: an exponential that is not taken from the largest overflows.
    for sq in [1, 40] {
        let steep = Case { scale: 10.0, ..case([1, sq, 300, 2, 2, 40]) };
        all.push(problem(Kind::All, steep, usual));
    }
}

fn models(all: &mut Vec<Problem>) {
    let mut add = |kind, case: Case, set| {
        let work = case.batch * case.heads * case.sq * case.sk * case.d;
        let level = if work < 1 << 26 { Level::Usual } else { Level::Full };
        let problem = problem(kind, case, (set, level));
        all.push(if work > 1 << 27 { problem.heavy() } else { problem });
    };
    for size in [
        [1, 4096, 4096, 1, 1, 40],
        [1, 4096, 77, 8, 8, 40],
        [2, 1024, 1024, 2, 2, 80],
        [2, 256, 256, 8, 8, 160],
        [1, 64, 64, 8, 8, 160],
        [2, 256, 77, 8, 8, 160],
    ] {
        add(Kind::All, case(size), Set::Sd15);
    }
    for size in [[1, 1024, 1024, 4, 4, 64], [1, 4096, 77, 10, 10, 64], [1, 1024, 77, 20, 20, 64]] {
        add(Kind::All, case(size), Set::Sdxl);
    }
    for (set, heads, kv_heads, d) in [
        (Set::Llama, 9, 3, 64),
        (Set::Llama, 32, 8, 64),
        (Set::Llama, 32, 32, 128),
        (Set::Qwen, 14, 2, 64),
    ] {
        for (sq, sk, start) in [(1, 512, 300), (1, 4096, 4000), (37, 512, 100), (128, 1024, 512)] {
            let size = [1, sq, sk, heads, kv_heads, d];
            add(Kind::Cached, Case { start: Some(start), ..case(size) }, set);
        }
    }
}

fn problem(kind: Kind, case: Case, level: (Set, Level)) -> Problem {
    let Case { batch, sq, sk, heads, kv_heads, d, start, window, cap, scale } = case;
    let mut spec = match kind {
        Kind::All => "all keys".to_string(),
        Kind::Causal => "causal".to_string(),
        Kind::Cached => format!("cached from {}", start.unwrap_or(0)),
    };
    if let Some(window) = window {
        spec += &format!(", window {window}");
    }
    if let Some(cap) = cap {
        spec += &format!(", scores capped at {cap}");
    }
    if scale >= 1.0 {
        spec += &format!(", scale {scale}");
    }
    let shape = format!("{batch}x{sq}x{sk}, {heads}/{kv_heads} heads of {d}");
    Problem::new("attention", spec, shape, level, move |site| prepare(site, kind, case))
}

fn prepare(site: &Site<'_>, kind: Kind, case: Case) -> Result<Prepared> {
    let Case { batch, sq, sk, heads, kv_heads, d, scale, start, window, cap } = case;
    let q = site.data(1, batch * sq * heads * d);
    let mut k = site.data(2, batch * sk * kv_heads * d);
    let mut v = site.data(3, batch * sk * kv_heads * d);
    let first = start.unwrap_or(0);
    if kind == Kind::Cached {
        // Nothing reads what was never written, nor what lies before the first query's window.
        let row = kv_heads * d;
        let from = (first + 1) - window.unwrap_or(sk).min(first + 1);
        for j in (0..batch * sk).filter(|j| !(from..first + sq).contains(&(j % sk))) {
            k[j * row..][..row].fill(f32::NAN);
            v[j * row..][..row].fill(f32::NAN);
        }
    }
    // Each query by itself where all would take the oracle long.
    let work = batch * heads * sq * sk * d;
    let queries: Vec<usize> = match work > 1 << 25 && kind == Kind::All && batch == 1 {
        true => (0..sq).step_by(sq.div_ceil((1 << 25) / (work / sq).max(1)).max(1)).collect(),
        false => Vec::new(),
    };
    let width = heads * d;
    let want = site.want(|| match queries.is_empty() {
        true => oracle(&q, &k, &v, case),
        false => {
            let few: Vec<f32> =
                queries.iter().flat_map(|i| q[i * width..][..width].iter().copied()).collect();
            oracle(&few, &k, &v, Case { sq: queries.len(), ..case })
        }
    });
    let prepared = Prepared::new(want, move |g| {
        let mask = match kind {
            Kind::All => Mask::None,
            Kind::Causal => Mask::Causal,
            Kind::Cached => Mask::Cached { start: g.input("start", [1], Elem::U32), window },
        };
        let q = g.literal([batch, sq, heads * d], q.clone());
        let k = g.literal([batch, sk, kv_heads * d], k.clone());
        let v = g.literal([batch, sk, kv_heads * d], v.clone());
        attention(q, k, v, Attention { heads, kv_heads, scale, cap, mask })
    });
    let prepared = match kind {
        Kind::Cached => prepared.feed(Feed::U32("start", vec![first as u32])),
        _ => prepared,
    };
    let at: Vec<usize> = queries.iter().flat_map(|i| i * width..(i + 1) * width).collect();
    Ok(if at.is_empty() { prepared } else { prepared.at(at) })
}

fn softmaxes(all: &mut Vec<Problem>) {
    let sizes = [
        (7, 77, (Set::Small, Level::Smoke)),
        (1, 1, (Set::Ragged, Level::Quick)),
        (3, 5, (Set::Ragged, Level::Quick)),
        (64, 64, (Set::Edges, Level::Usual)),
        (5, 4097, (Set::Edges, Level::Usual)),
        (256, 4096, (Set::Sd15, Level::Full)),
    ];
    for (rows, c, level) in sizes {
        all.push(Problem::new("softmax", "rows", format!("{rows}x{c}"), level, move |site| {
            let x = site.data(23, rows * c);
            let want = site.want(|| softmax::oracle(&x, c));
            Ok(Prepared::new(want, move |g| softmax(g.literal([rows, c], x.clone()))))
        }));
    }
}
