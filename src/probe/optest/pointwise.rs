//! What is computed element by element, and what only moves elements.

use super::problem::{Feed, Level, Prepared, Problem, Set};
use crate::gpu::Elem;
use crate::ops::gather::{self, gather};
use crate::ops::pointwise::{Act, activate, gated, geglu, soft_cap};

const ACTS: [(Act, &str); 5] = [
    (Act::Silu, "silu"),
    (Act::Gelu, "gelu"),
    (Act::QuickGelu, "quickgelu"),
    (Act::GeluTanh, "gelu tanh"),
    (Act::Relu, "relu"),
];

/// Rows and channels.
const SIZES: [([usize; 2], (Set, Level)); 6] = [
    ([50, 20], (Set::Small, Level::Smoke)),
    ([3, 5], (Set::Ragged, Level::Quick)),
    ([65, 12], (Set::Ragged, Level::Quick)),
    ([1, 1], (Set::Ragged, Level::Usual)),
    ([128, 2048], (Set::Llama, Level::Usual)),
    ([4096, 320], (Set::Sd15, Level::Usual)),
];

pub fn add(all: &mut Vec<Problem>) {
    for (size, level) in SIZES {
        unary(all, size, level);
        binary(all, size, level);
        let [rows, c] = size;
        let shape = format!("{rows}x{}", 2 * c);
        all.push(Problem::new("pointwise", "geglu", shape, level, move |site| {
            let x = site.data(12, rows * 2 * c);
            let want = site.want(|| {
                let halves =
                    x.chunks_exact(2 * c).flat_map(|row| (0..c).map(|i| (row[i], row[c + i])));
                halves.map(|(v, g)| f64::from(v) * Act::Gelu.oracle(f64::from(g))).collect()
            });
            Ok(Prepared::new(want, move |g| geglu(g.literal([rows, 2 * c], x.clone()))))
        }));
    }
    let sizes = [
        ([7, 172], (Set::Ragged, Level::Quick)),
        ([3, 9], (Set::Ragged, Level::Quick)),
        ([128, 2048], (Set::Llama, Level::Usual)),
    ];
    for ([rows, c], level) in sizes {
        all.push(Problem::new("gather", "columns", format!("{rows}x{c}"), level, move |site| {
            let x = site.data(13, rows * c);
            // 7 divides none of the widths by chance alone: every column is named once where it does not.
            let columns: Vec<u32> = (0..c).map(|i| ((i + 1) * 7 % c) as u32).collect();
            let want = site.want(|| gather::oracle(&x, &columns));
            let prepared = Prepared::new(want, move |g| {
                let columns = g.input("columns", [c], Elem::U32);
                gather(g.literal([1, rows, c], x.clone()), columns)
            });
            Ok(prepared.exact().feed(Feed::U32("columns", columns)))
        }));
    }
}

fn unary(all: &mut Vec<Problem>, [rows, c]: [usize; 2], level: (Set, Level)) {
    let shape = format!("{rows}x{c}");
    for (act, name) in ACTS {
        all.push(Problem::new("pointwise", name, shape.clone(), level, move |site| {
            let mut x = site.stored(site.data(1, rows * c).into_iter().map(|v| v * 3.0).collect());
            if let [alone] = &mut x[..] {
                // Among others a value of GELU's far left, where 1 + erf cancels, counts little; alone it would be
                // judged by its own size.
                *alone = alone.abs();
            }
            let want = site.want(|| x.iter().map(|v| act.oracle(f64::from(*v))).collect());
            Ok(Prepared::new(want, move |g| activate(g.literal([rows, c], x.clone()), act)))
        }));
    }
    all.push(Problem::new("pointwise", "soft cap", shape, level, move |site| {
        let x = site.stored(site.data(1, rows * c).into_iter().map(|v| v * 3.0).collect());
        let cap = |v: &f32| 1.5 * (f64::from(*v) / 1.5).tanh();
        let want = site.want(|| x.iter().map(cap).collect());
        Ok(Prepared::new(want, move |g| soft_cap(g.literal([rows, c], x.clone()), 1.5)))
    }));
}

fn binary(all: &mut Vec<Problem>, [rows, c]: [usize; 2], level: (Set, Level)) {
    let shape = format!("{rows}x{c}");
    all.push(Problem::new("pointwise", "scale and add", shape.clone(), level, move |site| {
        let (a, b) = (site.data(11, rows * c), site.data(12, rows * c));
        let sum = |(a, b): (&f32, &f32)| 0.5 * f64::from(*a) + f64::from(*b);
        let want = site.want(|| a.iter().zip(&b).map(sum).collect());
        Ok(Prepared::new(want, move |g| {
            0.5 * g.literal([rows, c], a.clone()) + g.literal([rows, c], b.clone())
        }))
    }));
    all.push(Problem::new("pointwise", "times a row", shape.clone(), level, move |site| {
        let (a, row) = (site.data(11, rows * c), site.data(12, c));
        let product = |(i, a): (usize, &f32)| 2.5 * f64::from(*a) * f64::from(row[i % c]);
        let want = site.want(|| a.iter().enumerate().map(product).collect());
        Ok(Prepared::new(want, move |g| {
            2.5 * (g.literal([rows, c], a.clone()) * g.literal([c], row.clone()))
        }))
    }));
    for (act, name) in [(Act::Silu, "silu gate"), (Act::GeluTanh, "gelu tanh gate")] {
        all.push(Problem::new("pointwise", name, shape.clone(), level, move |site| {
            let (a, b) = (site.data(11, rows * c), site.data(12, rows * c));
            let gate = |(a, b): (&f32, &f32)| act.oracle(f64::from(*a)) * f64::from(*b);
            let want = site.want(|| a.iter().zip(&b).map(gate).collect());
            Ok(Prepared::new(want, move |g| {
                gated(g.literal([rows, c], a.clone()), g.literal([rows, c], b.clone()), act)
            }))
        }));
    }
}
