//! Rows of tables, embeddings of time steps, and the choice of the largest logits.

use super::matmul::{FOREIGN, FORMATS, weight};
use super::problem::{Feed, Level, Prepared, Problem, Set, normal};
use crate::gpu::Elem;
use crate::graph::Weight;
use crate::ops::embed::{self, embed, embed_range, take_row};
use crate::ops::timestep::{self, timestep_embedding};
use crate::ops::topk::{self, argmax, top_k};
use crate::quant::Layout;

pub fn add(all: &mut Vec<Problem>) {
    for spec in ["fp16", "int8-g64"] {
        all.push(table(spec, [50, 72], 0, (Set::Small, Level::Smoke)));
    }
    for spec in FORMATS.into_iter().chain(FOREIGN) {
        all.push(table(spec, [37, 128], 0, (Set::Ragged, Level::Quick)));
        all.push(table(spec, [37, 20], 9, (Set::Ragged, Level::Usual)));
    }
    all.push(table(FORMATS[0], [32_000, 576], 0, (Set::Llama, Level::Usual)));
    all.push(table("fp16", [151_936, 896], 0, (Set::Qwen, Level::Full)));
    ranges(all);
    times(all);
    choices(all);
}

/// Every fourth row, some twice, and ids that no table holds, in windows of so many rows.
fn table(spec: &'static str, [rows, c]: [usize; 2], window: usize, level: (Set, Level)) -> Problem {
    let windows = if window > 0 { format!(" in windows of {window}") } else { String::new() };
    Problem::new("embed", spec, format!("{rows}x{c}{windows}"), level, move |site| {
        let packed = weight(13, Layout::linear(rows, c), spec)?;
        let limit = match window {
            0 => site.gpu.caps().max_binding_bytes,
            rows => packed.row_words() as u64 * 4 * rows as u64,
        };
        let weight = Weight::upload_windowed(site.gpu, "op test", &packed, limit)?;
        let step = 4.max(rows / 64);
        let mut ids: Vec<u32> = (0..rows as u32).rev().step_by(step).chain([3, 3, 0]).collect();
        ids.extend([rows as u32, u32::MAX, 1 << 31]);
        let count = ids.len();
        let want = site.want(|| {
            let row = |id: &u32| match (*id as usize) < rows {
                true => (0..c).map(|i| f64::from(packed.decode_at(*id as usize, 0, i))).collect(),
                false => vec![0.0; c],
            };
            ids.iter().flat_map(row).collect()
        });
        let prepared =
            Prepared::new(want, move |g| embed(g.input("ids", [1, count], Elem::U32), &weight));
        Ok(prepared.feed(Feed::U32("ids", ids)))
    })
}

fn ranges(all: &mut Vec<Problem>) {
    for (c, start, count) in [(64, 0, 20), (12, 5, 1), (64, 13, 9)] {
        let shape = format!("{count} of 20x{c} from {start} on");
        let level = (Set::Ragged, Level::Quick);
        all.push(Problem::new("embed", "fp16 range", shape, level, move |site| {
            let packed = weight(13, Layout::linear(20, c), "fp16")?;
            let ids: Vec<u32> = (start..start + count).collect();
            let want = site.want(|| embed::oracle(&ids, &packed.decode(), c));
            // Windows of seven rows.
            let weight = Weight::upload_windowed(site.gpu, "op test", &packed, 14 * c as u64)?;
            let prepared = Prepared::new(want, move |g| {
                embed_range(g.input("start", [1], Elem::U32), count as usize, &weight)
            });
            Ok(prepared.feed(Feed::U32("start", vec![start])))
        }));
    }
    for c in [64, 7] {
        let (b, s) = (3, 11);
        let (shape, level) = (format!("{b}x{s}x{c}"), (Set::Ragged, Level::Quick));
        all.push(Problem::new("embed", "one row of each item", shape, level, move |site| {
            let x = site.data(2, b * s * c);
            // The last row does not exist.
            let rows = vec![10, 0, s as u32];
            let want = site.want(|| {
                let at = |i: usize| (rows[i / c] < s as u32).then(|| rows[i / c] as usize);
                let value = |i: usize| at(i).map_or(0.0, |row| x[(i / c * s + row) * c + i % c]);
                (0..b * c).map(|i| f64::from(value(i))).collect()
            });
            let prepared = Prepared::new(want, move |g| {
                take_row(g.literal([b, s, c], x.clone()), g.input("row", [b], Elem::U32))
            });
            Ok(prepared.exact().feed(Feed::U32("row", rows)))
        }));
    }
}

fn times(all: &mut Vec<Problem>) {
    let sizes = [
        (vec![0.0, 1.0, 981.0], 64, true, 0.0, (Set::Small, Level::Smoke)),
        (vec![0.25, 499.87, 999.0, 8.0e6], 33, false, 1.0, (Set::Ragged, Level::Quick)),
        (
            (0..50).map(|t| t as f32 * 20.0 + 1.0).collect(),
            320,
            true,
            0.0,
            (Set::Sd15, Level::Usual),
        ),
        (vec![1024.0, 1024.0, 0.0, 0.0, 512.0, 768.0], 256, true, 0.0, (Set::Sdxl, Level::Usual)),
    ];
    for (t, dim, flip, shift, level) in sizes {
        let spec = if flip { "cosines first" } else { "sines first" };
        let shape = format!("{} of {dim}", t.len());
        all.push(Problem::new("timestep", spec, shape, level, move |site| {
            let want = site.want(|| timestep::oracle(&t, dim, flip, shift));
            let count = t.len();
            let prepared = Prepared::new(want, move |g| {
                timestep_embedding(g.input("t", [count], Elem::F32), dim, flip, shift)
            });
            Ok(prepared.feed(Feed::F32("t", t.clone())))
        }));
    }
}

fn choices(all: &mut Vec<Problem>) {
    let sizes = [
        (9000, (Set::Small, Level::Smoke)),
        (1, (Set::Ragged, Level::Quick)),
        (63, (Set::Ragged, Level::Quick)),
        (4096, (Set::Edges, Level::Quick)),
        (4097, (Set::Edges, Level::Quick)),
        (32_000, (Set::Llama, Level::Usual)),
        (151_936, (Set::Qwen, Level::Usual)),
    ];
    for (n, level) in sizes {
        let logits = move || normal(14, n);
        let best = move |k: usize| topk::oracle(&logits(), k).unwrap_or_default();
        let one = Problem::new("topk", "the largest", n.to_string(), level, move |site| {
            let want = site.want(|| best(1).iter().map(|(_, id)| f64::from(*id)).collect());
            let prepared = Prepared::new(want, move |g| argmax(g.input("x", [1, n], Elem::F32)));
            Ok(prepared.exact().feed(Feed::F32("x", logits())))
        });
        all.push(one.f32_only());
        let k = n.min(40);
        let many =
            Problem::new("topk", format!("the {k} largest"), n.to_string(), level, move |site| {
                // Their values lie before their numbers.
                let want = site.want(|| best(k).iter().map(|(_, id)| f64::from(*id)).collect());
                let prepared =
                    Prepared::new(want, move |g| top_k(g.input("x", [1, n], Elem::F32), k));
                let prepared = prepared.at((k..2 * k).collect());
                Ok(prepared.exact().feed(Feed::F32("x", logits())))
            });
        all.push(many.f32_only());
    }
}
