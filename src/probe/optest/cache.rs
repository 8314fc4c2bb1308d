//! Positions and the cache of keys and values: rope, writing rows, and eight bits.

use super::problem::{Feed, Level, Prepared, Problem, Set, Site};
use crate::Result;
use crate::gpu::Elem;
use crate::ops::attention::{self, Attention, Mask, attention};
use crate::ops::concat::cat;
use crate::ops::kv_cache::{self, kv_write, q8_words};
use crate::ops::rope::{self, Rotary, rope};

pub fn add(all: &mut Vec<Problem>) {
    // Batch, rows, heads, channels, those that turn, where it begins.
    let turns = [
        ([1, 3, 2, 32, 32, 4], (Set::Small, Level::Smoke)),
        ([2, 5, 3, 32, 32, 77], (Set::Ragged, Level::Quick)),
        ([1, 9, 1, 10, 10, 0], (Set::Ragged, Level::Quick)),
        // Some channels of a head alone turn: 40 % as in Phi-2, and rests that are no vectors of four.
        ([2, 5, 3, 80, 32, 30_000], (Set::Ragged, Level::Quick)),
        ([2, 3, 2, 19, 8, 77], (Set::Ragged, Level::Quick)),
        ([1, 1, 9, 64, 64, 1000], (Set::Llama, Level::Usual)),
        ([1, 128, 32, 128, 128, 0], (Set::Llama, Level::Usual)),
        ([1, 1, 14, 64, 64, 30_000], (Set::Qwen, Level::Usual)),
    ];
    for (size, level) in turns {
        all.push(turn(size, level));
    }
    // Rows, heads of queries and of keys, channels, those that turn, where it begins.
    let pairs = [
        ([3, 2, 1, 32, 32, 4], (Set::Small, Level::Smoke)),
        ([5, 3, 2, 80, 32, 30_000], (Set::Ragged, Level::Quick)),
        ([2, 2, 1, 10, 10, 7], (Set::Ragged, Level::Quick)),
        ([1, 9, 3, 64, 64, 1000], (Set::Llama, Level::Usual)),
        ([128, 32, 8, 128, 128, 0], (Set::Llama, Level::Usual)),
    ];
    for (size, level) in pairs {
        all.push(turn_two(size, level));
    }
    // Batch, rows in the cache, rows written, channels, where.
    let writes = [
        ([1, 8, 3, 64, 4], (Set::Small, Level::Smoke)),
        ([2, 9, 3, 5, 1], (Set::Ragged, Level::Quick)),
        ([1, 16, 16, 20, 0], (Set::Ragged, Level::Quick)),
        ([3, 7, 1, 33, 6], (Set::Ragged, Level::Quick)),
        ([1, 512, 1, 192, 300], (Set::Llama, Level::Usual)),
        ([1, 1024, 128, 1024, 512], (Set::Llama, Level::Usual)),
        ([1, 4096, 1, 128, 4095], (Set::Qwen, Level::Usual)),
    ];
    for ([b, context, rows, c, start], level) in writes {
        let shape = format!("{b}x{rows}x{c} into {context} from {start} on");
        all.push(Problem::new("kv_cache", "rows", shape, level, move |site| {
            let (x, cache) = (site.data(27, b * rows * c), site.data(28, b * context * c));
            let want = site.want(|| kv_cache::oracle(&cache, &x, b, c, start));
            let prepared = Prepared::new(want, move |g| {
                let start = g.input("start", [1], Elem::U32);
                let cache = g.literal([b, context, c], cache.clone());
                kv_write(cache, g.literal([b, rows, c], x.clone()), start)
            });
            Ok(prepared.exact().feed(Feed::U32("start", vec![start as u32])))
        }));
    }
    let eight = [
        ([13, 13, 48, 4, 2, 32], (Set::Small, Level::Smoke)),
        ([1, 21, 48, 4, 2, 32], (Set::Small, Level::Smoke)),
        ([1, 300, 512, 9, 3, 64], (Set::Llama, Level::Quick)),
        ([37, 137, 512, 32, 8, 64], (Set::Llama, Level::Usual)),
        ([5, 33, 40, 3, 1, 20], (Set::Ragged, Level::Quick)),
        ([1, 1000, 1024, 14, 2, 64], (Set::Qwen, Level::Usual)),
        ([1, 700, 1024, 4, 4, 128], (Set::Edges, Level::Usual)),
    ];
    for (size, level) in eight {
        let [sq, rows, context, heads, kv_heads, d] = size;
        let shape = format!("{sq}x{rows} of {context}, {heads}/{kv_heads} heads of {d}");
        all.push(Problem::new("kv_cache", "eight bits, read", shape, level, move |site| {
            eight_bits(site, size)
        }));
    }
}

/// How fast the pairs of r channels turn, in radians per position (RoFormer).
pub(super) fn frequencies(r: usize) -> Vec<f32> {
    (0..r / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / r as f32)).collect()
}

fn turn([b, s, heads, d, r, start]: [usize; 6], level: (Set, Level)) -> Problem {
    let shape = format!("{b}x{s}, {heads} heads of {d} from {start} on");
    let spec = if r == d { "all channels".to_string() } else { format!("{r} channels") };
    Problem::new("rope", spec, shape, level, move |site| {
        let x = site.data(29, b * s * heads * d);
        let inv_freq = frequencies(r);
        let (start, scale) = (start as u32, 1.19);
        let case = rope::Case { rows: s, heads, d, start, scale };
        let want = site.want(|| rope::oracle(&x, &inv_freq, case));
        let rotary = Rotary { inv_freq: site.vector(&inv_freq)?, scale };
        let prepared = Prepared::new(want, move |g| {
            let start = g.input("start", [1], Elem::U32);
            rope(g.literal([b, s, heads * d], x.clone()), start, &rotary, heads)
        });
        Ok(prepared.feed(Feed::U32("start", vec![start])))
    })
}

/// Queries and keys of a layer, turned in one launch where there is a kernel for that, then laid side by side.
fn turn_two([s, heads, kv_heads, d, r, start]: [usize; 6], level: (Set, Level)) -> Problem {
    let shape = format!("{s}, {heads}+{kv_heads} heads of {d} from {start} on");
    Problem::new("rope", format!("two, {r} channels"), shape, level, move |site| {
        let (q, k) = (site.data(29, s * heads * d), site.data(30, s * kv_heads * d));
        let inv_freq = frequencies(r);
        let (start, scale) = (start as u32, 1.0);
        let turned = |x: &[f32], heads| {
            rope::oracle(x, &inv_freq, rope::Case { rows: s, heads, d, start, scale })
        };
        let want = site.want(|| {
            let (q, k) = (turned(&q, heads), turned(&k, kv_heads));
            let rows = q.chunks_exact(heads * d).zip(k.chunks_exact(kv_heads * d));
            rows.flat_map(|(q, k)| [q, k].concat()).collect()
        });
        let rotary = Rotary { inv_freq: site.vector(&inv_freq)?, scale };
        let prepared = Prepared::new(want, move |g| {
            let start = g.input("start", [1], Elem::U32);
            let q = rope(g.literal([1, s, heads * d], q.clone()), start, &rotary, heads);
            cat(q, rope(g.literal([1, s, kv_heads * d], k.clone()), start, &rotary, kv_heads))
        });
        Ok(prepared.feed(Feed::U32("start", vec![start])))
    })
}

/// Keys and values written to a cache of eight bits and read back. They are eight-bit codes themselves, the largest in
/// every head, so that storing them loses nothing and no rounding decides between two codes.
fn eight_bits(site: &Site<'_>, size: [usize; 6]) -> Result<Prepared> {
    let [sq, rows, context, heads, kv_heads, d] = size;
    let scale = 1.0 / (d as f32).sqrt();
    let start = rows - sq;
    let q = site.data(29, sq * heads * d);
    let [k, v] = [30, 31].map(|seed| {
        let code = |v: f32| (40.0 * v).round().clamp(-127.0, 127.0) / 64.0;
        let mut x: Vec<f32> = site.data(seed, rows * kv_heads * d).into_iter().map(code).collect();
        x.iter_mut().step_by(d).for_each(|first| *first = 127.0 / 64.0);
        x
    });
    let (window, cap) = (None, None);
    let (batch, sk, first) = (1, rows, Some(start));
    let case =
        attention::Case { batch, sq, sk, heads, kv_heads, d, scale, start: first, window, cap };
    let want = site.want(|| attention::oracle(&q, &k, &v, case));
    let words = q8_words(kv_heads, d);
    let prepared = Prepared::new(want, move |g| {
        let first = g.input("first", [1], Elem::U32);
        let [keys, values] = [("keys", &k), ("values", &v)].map(|(name, x)| {
            let cache = g.input(name, [1, context, words], Elem::U32);
            kv_write(cache, g.literal([1, rows, kv_heads * d], x.clone()), first)
        });
        let mask = Mask::Cached { start: g.input("start", [1], Elem::U32), window };
        let q = g.literal([1, sq, heads * d], q.clone());
        attention(q, keys, values, Attention { heads, kv_heads, scale, cap, mask })
    });
    // NaN as scales of the rows that are never written.
    let noise = vec![u32::MAX; context * words];
    Ok(prepared
        .feed(Feed::U32("start", vec![start as u32]))
        .feed(Feed::U32("first", vec![0]))
        .feed(Feed::U32("keys", noise.clone()))
        .feed(Feed::U32("values", noise)))
}
