//! Which of a device's kernels are fastest on it: one choice after another is measured on shapes of real models, each with
//! those before it as they were decided.

use serde::Serialize;

use super::bench_ops::{OpMeasured, OpsAsked, OpsBench};
use super::ceilings::Ceilings;
use crate::Result;
use crate::gpu::{Caps, Elem, Gpu, Tuning};
use crate::graph::PlanOptions;

type Turn = Box<dyn Fn(Tuning) -> Tuning>;

/// One thing to decide.
pub struct Choice {
    pub name: &'static str,
    /// The ops that depend on it, and what their cases have in their description.
    ops: &'static [&'static str],
    spec: &'static str,
    /// Words for each way, and the tuning with it.
    ways: Vec<(String, Turn)>,
}

/// How fast a way is.
#[derive(Clone, Debug, Serialize)]
pub struct Way {
    pub name: String,
    /// The geometric mean of each case's time over what it takes by default: below 1 is faster.
    pub of_default: f64,
    pub cases: Vec<(String, f64)>,
}

/// What was decided of one choice.
#[derive(Clone, Debug, Serialize)]
pub struct Decided {
    pub choice: &'static str,
    /// The default first.
    pub ways: Vec<Way>,
    /// The one taken.
    pub taken: usize,
}

/// A way has to be this much faster than the default to be taken: runs of one kernel differ by about as much on a quiet device.
const GAIN: f64 = 0.97;

/// The choices that this device has, each with its default first.
pub fn choices(caps: &Caps) -> Vec<Choice> {
    let mut all = Vec::new();
    if caps.software {
        if caps.subgroups && caps.subgroup_min == 8 && caps.subgroup_max == 8 {
            all.push(Choice {
                name: "eight lanes",
                ops: &["matmul", "conv2d", "attention"],
                spec: "",
                ways: vec![
                    way("values handed around", |t| Tuning { eight_lanes: true, ..t }),
                    way("each lane by itself", |t| Tuning { eight_lanes: false, ..t }),
                ],
            });
        }
        all.push(attention_lanes([0, 16, 32], 8));
        return all;
    }
    if caps.coop_edge > 0 {
        all.push(Choice {
            name: "attention of many queries",
            ops: &["attention"],
            spec: "self",
            ways: vec![
                way("matrices", |t| Tuning { attention_matrices: true, ..t }),
                way("no matrices", |t| Tuning { attention_matrices: false, ..t }),
            ],
        });
        all.push(Choice {
            name: "products of matrices",
            ops: &["matmul", "conv2d"],
            spec: "int4",
            ways: vec![
                way("large tiles from 128 on", |t| tiles(t, 128)),
                way("large tiles from 32 on", |t| tiles(t, 32)),
                way("large tiles from 512 on", |t| tiles(t, 512)),
                way("small tiles", |t| tiles(t, u32::MAX)),
                way("no matrices", |t| Tuning { matrices: false, ..t }),
            ],
        });
    }
    all.push(Choice {
        name: "sums in parts",
        ops: &["matmul", "conv2d"],
        spec: "int4",
        ways: vec![
            way("below 128 tiles", |t| Tuning { split_tiles: 128, ..t }),
            way("below 32 tiles", |t| Tuning { split_tiles: 32, ..t }),
            way("never", |t| Tuning { split_tiles: 0, ..t }),
        ],
    });
    all.push(Choice {
        name: "lanes of a product with a vector",
        ops: &["matmul"],
        spec: "gemv",
        ways: vec![
            way("32768 busy", |t| Tuning { busy_lanes: 32_768, ..t }),
            way("8192 busy", |t| Tuning { busy_lanes: 8192, ..t }),
            way("131072 busy", |t| Tuning { busy_lanes: 131_072, ..t }),
        ],
    });
    all.push(attention_lanes([0, 64, 256], 128));
    all
}

/// `rule` is what the first of them, 0, stands for.
fn attention_lanes(each: [u32; 3], rule: u32) -> Choice {
    let lanes = |lanes: u32| {
        let words = format!("{} lanes", if lanes == 0 { rule } else { lanes });
        way(words, move |t| Tuning { attention_lanes: lanes, ..t })
    };
    Choice {
        name: "attention of one token",
        ops: &["attention"],
        spec: "decode",
        ways: each.map(lanes).into(),
    }
}

fn way(name: impl Into<String>, turn: impl Fn(Tuning) -> Tuning + 'static) -> (String, Turn) {
    (name.into(), Box::new(turn))
}

fn tiles(tuning: Tuning, wide_tiles: u32) -> Tuning {
    Tuning { matrices: true, wide_tiles, ..tuning }
}

/// Told what is measured next.
pub type OnWay<'a> = dyn FnMut(&str, &str) + 'a;

/// Decides every choice. `open` gives the device with a tuning.
///
/// # Errors
/// As opening and running do; `Interrupted` on Ctrl-C.
pub fn tune(
    open: &dyn Fn(Tuning) -> Result<Gpu>,
    act: Elem,
    quick: bool,
    on_way: &mut OnWay<'_>,
) -> Result<(Tuning, Vec<Decided>)> {
    let mut tuning = Tuning::default();
    let gpu = open(tuning)?;
    let ceilings = Ceilings::measure(&gpu)?;
    let mut decided = Vec::new();
    for choice in choices(gpu.caps()) {
        let mut ways: Vec<Way> = Vec::new();
        for (name, with) in &choice.ways {
            on_way(choice.name, name);
            let gpu = open(with(tuning))?;
            let options = PlanOptions::default();
            let bench = OpsBench { gpu: &gpu, ceilings, act, options: &options };
            let ops = choice.ops.iter().map(|op| op.to_string()).collect();
            let asked = OpsAsked { ops, spec: Some(choice.spec.into()), quick };
            let rows = bench.measure(&asked, &mut |_, _, _| {})?;
            ways.push(measured(name, &rows, ways.first()));
        }
        let best =
            (1..ways.len()).min_by(|a, b| ways[*a].of_default.total_cmp(&ways[*b].of_default));
        let taken = best.filter(|best| ways[*best].of_default < GAIN).unwrap_or(0);
        tuning = choice.ways[taken].1(tuning);
        decided.push(Decided { choice: choice.name, ways, taken });
    }
    Ok((tuning, decided))
}

fn measured(name: &str, rows: &[OpMeasured], default: Option<&Way>) -> Way {
    let case = |r: &OpMeasured| (format!("{} {} {}", r.op, r.spec, r.shape), r.ms);
    let cases: Vec<(String, f64)> = rows.iter().map(case).collect();
    let of_default = default.map_or(1.0, |default| ratio(&cases, &default.cases));
    Way { name: name.into(), of_default, cases }
}

/// The geometric mean of what corresponding cases take, one over the other.
fn ratio(cases: &[(String, f64)], over: &[(String, f64)]) -> f64 {
    let logs = cases.iter().zip(over).map(|((_, a), (_, b))| (a / b).ln());
    (logs.sum::<f64>() / cases.len().max(1) as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_as_fast_and_twice_as_slow_is_as_fast() {
        let of = |times: [f64; 2]| times.map(|ms| (String::new(), ms)).to_vec();
        assert!((ratio(&of([1.0, 4.0]), &of([2.0, 2.0])) - 1.0).abs() < 1e-12);
        assert!((ratio(&of([1.0, 1.0]), &of([2.0, 2.0])) - 0.5).abs() < 1e-12);
        assert_eq!(ratio(&[], &[]), 1.0);
    }
}
