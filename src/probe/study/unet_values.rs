//! Claims about the values between layers and about the shapes of weights.

use super::unet::{UnetLab, fp16, named};
use super::weights::Weights;
use super::{Outcome, Section};
use crate::Result;
use crate::graph::Kernels;
use crate::probe::compare::OnStage;
use crate::probe::compare_runs::{Runs, Taps, plan};
use crate::probe::plot::{Axis, Plot, number};
use crate::quant::metrics::{kurtosis, rel_l2, sqnr_db};
use crate::tensor::Tensor;
use crate::weights::WeightStore;

/// U5, U7, U8: from the values between layers.
pub(super) fn activations(lab: &mut UnetLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let runs = lab.runs(on_stage)?;
    let request = lab.options.requests[0].clone();
    let count = runs[0].eps.len();
    let steps = [count / 10, count / 2, count - 1 - count / 10];
    let taps = |lab: &mut UnetLab,
                weights: &Weights<'_>,
                at: usize,
                on_stage: &mut OnStage<'_>|
     -> Result<Taps> {
        lab.set(weights, on_stage)?;
        let options = lab.image_options();
        let gpu = lab.gpu.clone();
        let net = lab.net(on_stage)?;
        let mut work = Runs { gpu: &gpu, options: &options, on_stage };
        let found = work.taps(net, Kernels::Fast, (&request, &runs[0]), at)?;
        net.set_plan(plan(Kernels::Fast, false));
        Ok(found)
    };
    let mut right = Vec::new();
    for at in steps {
        right.push(taps(lab, &fp16()?, at, on_stage)?);
    }
    let wrong = taps(lab, &named("int4")?, steps[1], on_stage)?;
    let weights = groups(&lab.store()?)?;
    let sigmas = steps.map(|at| f64::from(runs[0].rows[at].sigma));
    Ok(vec![
        residuals(&right[1], &wrong),
        small_values(&right[1]),
        ranges(&right, sigmas, &weights),
    ])
}

fn find<'a>(taps: &'a Taps, name: &str) -> Option<&'a Tensor> {
    taps.iter().find(|(n, _)| n == name).map(|(_, tensor)| tensor)
}

/// What a block adds to its input: the input's tap and the output's.
fn adds(taps: &Taps) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for (name, _) in taps {
        let Some((block, rest)) = name.split_once(".attentions.").or(name.split_once(".resnets."))
        else {
            continue;
        };
        let attention = name.contains(".attentions.");
        let Ok(i) = rest.parse::<usize>() else { continue };
        let before = match (attention, i) {
            (true, i) => format!("{block}.resnets.{i}"),
            // Only a resnet that keeps its channels is x + f(x); those of the decoder read a skip besides.
            (false, i) if i > 0 && !block.starts_with("up_blocks") => {
                let attention = format!("{block}.attentions.{}", i - 1);
                let plain = format!("{block}.resnets.{}", i - 1);
                if find(taps, &attention).is_some() { attention } else { plain }
            }
            _ => continue,
        };
        let same = match (find(taps, &before), find(taps, name)) {
            (Some(a), Some(b)) => a.shape == b.shape,
            _ => false,
        };
        if same {
            pairs.push((before, name.clone()));
        }
    }
    pairs
}

struct Residual {
    name: String,
    /// ‖f(x)‖ / ‖x + f(x)‖
    ratio: f64,
    /// Relative errors of f(x) and of the sum.
    branch: f64,
    sum: f64,
}

fn residuals(right: &Taps, wrong: &Taps) -> Section {
    let minus = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f32>>();
    let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let of = |(before, after): (String, String)| -> Option<Residual> {
        let value = |taps: &Taps, name: &str| find(taps, name).map(Tensor::to_f32);
        let (x, y) = (value(right, &before)?, value(right, &after)?);
        let (xq, yq) = (value(wrong, &before)?, value(wrong, &after)?);
        let (f, fq) = (minus(&y, &x), minus(&yq, &xq));
        Some(Residual {
            ratio: norm(&f) / norm(&y),
            branch: rel_l2(&fq, &f),
            sum: rel_l2(&yq, &y),
            name: after,
        })
    };
    let found: Vec<Residual> = adds(right).into_iter().filter_map(of).collect();
    let mean =
        |of: fn(&Residual) -> f64| found.iter().map(of).sum::<f64>() / found.len().max(1) as f64;
    let (ratio, branch, sum) = (mean(|r| r.ratio), mean(|r| r.branch), mean(|r| r.sum));
    let scatter = |of: fn(&Residual) -> f64| {
        found
            .iter()
            .map(move |r| ((r.ratio, of(r)), format!("{}: {} %", r.name, number(100.0 * of(r)))))
            .collect::<Vec<_>>()
    };
    let plot = Plot::new(Axis::linear("‖f(x)‖ / ‖x + f(x)‖"), Axis::log("relative error"))
        .scatter("what the block adds, f(x)", scatter(|r| r.branch))
        .scatter("the sum, x + f(x)", scatter(|r| r.sum));
    let title = "Errors of branches and of their sums";
    let outcome = match (branch > sum, branch > 1.5 * sum && ratio < 0.7) {
        (true, true) => Outcome::UnderConditions,
        (true, false) => Outcome::UnderConditions,
        _ => Outcome::DoesNotHold,
    };
    Section::new(
        "U5",
        "Residuals: small differences, large errors?",
        "A residual branch computes a small difference, which quantization drowns.",
        "int4 and fp16 on the same latents, in the middle of the schedule: error of what each block adds, f(x), beside that of \
         the sum x + f(x).",
    )
    .found(
        outcome,
        format!(
            "Branches are {} of their sum's size on average; their relative error is {} %, that of the sum {} %: what is added \
             errs more, the sum less.",
            number(ratio),
            number(100.0 * branch),
            number(100.0 * sum),
        ),
    )
    .number("branch_over_sum_size", ratio)
    .number("branch_rel_l2", branch)
    .number("sum_rel_l2", sum)
    .paragraph(
        "The claim is half true: the smaller the branch, the larger its relative error, but by that same factor it weighs less in \
         the sum. The stream that carries x past the block protects the net rather than harming it. (The errors contain those of \
         all blocks before.)",
    )
    .figure(title, plot.svg(title), "A dot for each block; point at it for its name.")
}

/// Rounds to `bits` with one scale for each `span` values; the values and the share that became zero and was not.
fn rounded(values: &[f32], bits: u32, span: usize) -> (Vec<f32>, f64) {
    let top = ((1u32 << (bits - 1)) - 1) as f32;
    let (mut out, mut zeroed) = (Vec::with_capacity(values.len()), 0usize);
    for group in values.chunks(span) {
        let s = group.iter().fold(0f32, |m, v| m.max(v.abs())) / top;
        for &v in group {
            let q = if s > 0.0 { (v / s).round() } else { 0.0 };
            zeroed += usize::from(q == 0.0 && v != 0.0);
            out.push(q * s);
        }
    }
    (out, zeroed as f64 / values.len().max(1) as f64)
}

fn small_values(taps: &Taps) -> Section {
    let silu = |v: &[f32]| v.iter().map(|v| v / (1.0 + (-v).exp())).collect::<Vec<f32>>();
    let norms: Vec<Vec<f32>> = taps
        .iter()
        .filter(|(name, _)| {
            name.contains(".resnets.") && (name.ends_with("norm1") || name.ends_with("norm2"))
        })
        .map(|(_, tensor)| tensor.to_f32())
        .collect();
    let mut rows = Vec::new();
    let mut decisive = [f64::NAN; 2];
    for bits in [8, 4] {
        for (span, words) in [(usize::MAX, "one scale for all"), (64, "groups of 64")] {
            let (mut zeroed, mut before, mut after) = (0.0, 0.0, 0.0);
            for values in &norms {
                let (q, zero) = rounded(values, bits, span.min(values.len()));
                zeroed += zero / norms.len() as f64;
                before += sqnr_db(&q, values) / norms.len() as f64;
                after += sqnr_db(&silu(&q), &silu(values)) / norms.len() as f64;
            }
            if bits == 4 && span == usize::MAX {
                decisive = [zeroed, before - after];
            }
            rows.push(vec![
                format!("A{bits}, {words}"),
                number(100.0 * zeroed),
                number(before),
                number(after),
            ]);
        }
    }
    Section::new(
        "U7",
        "SiLU and the small values",
        "SiLU bends near zero, where quantization rounds small values away.",
        "The inputs of every SiLU of the fp16 net, in the middle of the schedule, rounded to 8 and 4 bits; weights stay as they \
         are. This is about formats that quantize activations (W4A4, W4A8); in W4A16, which this program runs, no activation is \
         rounded.",
    )
    .found(
        if decisive[0] > 0.2 { Outcome::UnderConditions } else { Outcome::DoesNotHold },
        format!(
            "In four bits with one scale {} % of the values become zero; SiLU costs another {} dB. With weights alone in four bits \
             the question does not arise.",
            number(100.0 * decisive[0]),
            number(decisive[1]),
        ),
    )
    .number("zeroed_a4_per_tensor", decisive[0])
    .number("silu_costs_db", decisive[1])
    .table(&["activations", "rounded to zero, %", "SQNR before SiLU, dB", "after SiLU, dB"], rows)
}

/// A weight's shape: kurtosis, and the mean of max/σ over its groups of 64.
struct Shape {
    name: String,
    kurtosis: f64,
    reach: f64,
    /// Share of the groups whose scale is beyond twice the tensor's median.
    spread: f64,
}

fn groups(store: &WeightStore) -> Result<Vec<Shape>> {
    let mut found = Vec::new();
    for name in store.names() {
        if store.shape(name)?.len() < 2 {
            continue;
        }
        let values = store.values(name)?;
        let (mut reach, mut most) = (0.0, Vec::new());
        for group in values.chunks(64) {
            let largest = group.iter().fold(0f32, |m, v| m.max(v.abs()));
            let size = (group.iter().map(|v| v * v).sum::<f32>() / group.len() as f32).sqrt();
            reach += f64::from(if size > 0.0 { largest / size } else { 0.0 });
            most.push(largest);
        }
        most.sort_by(f32::total_cmp);
        let median = most[most.len() / 2];
        let wide = most.iter().filter(|m| **m > 2.0 * median).count();
        found.push(Shape {
            name: name.to_string(),
            kurtosis: kurtosis(&values),
            reach: reach / most.len() as f64,
            spread: wide as f64 / most.len() as f64,
        });
    }
    Ok(found)
}

fn ranges(taps: &[Taps], sigmas: [f64; 3], weights: &[Shape]) -> Section {
    let mean = |of: &dyn Fn(&Shape) -> f64| {
        weights.iter().map(of).filter(|v| v.is_finite()).sum::<f64>() / weights.len().max(1) as f64
    };
    let (kurtosis_mean, reach, spread) =
        (mean(&|s| s.kurtosis), mean(&|s| s.reach), mean(&|s| s.spread));
    let largest = |taps: &Taps| {
        let of = |(_, tensor): &(String, Tensor)| {
            f64::from(tensor.to_f32().iter().fold(0f32, |m, v| m.max(v.abs())))
        };
        taps.iter().map(of).collect::<Vec<f64>>()
    };
    let ranges: Vec<Vec<f64>> = taps.iter().map(largest).collect();
    let change = {
        let each = ranges[0].iter().zip(&ranges[2]).filter(|(a, b)| **a > 0.0 && **b > 0.0);
        let ratios: Vec<f64> = each.map(|(a, b)| (a / b).max(b / a)).collect();
        ratios.iter().sum::<f64>() / ratios.len().max(1) as f64
    };
    let mut plot = Plot::new(
        Axis::linear("place in the net, in order of computation"),
        Axis::log("largest magnitude"),
    );
    for (range, sigma) in ranges.iter().zip(sigmas) {
        let points = range.iter().enumerate().map(|(i, v)| (i as f64, *v));
        plot = plot.line(&format!("σ {}", number(sigma)), points);
    }
    let title = "Ranges of the values between layers, at three noise levels";
    let mut worst: Vec<&Shape> = weights.iter().filter(|s| s.kurtosis.is_finite()).collect();
    worst.sort_by(|a, b| b.kurtosis.total_cmp(&a.kurtosis));
    Section::new(
        "U8",
        "Sixteen values for a wide range",
        "Four bits saturate: they cannot hold the dynamic range of weights and activations.",
        "Kurtosis of every weight, and how far the largest of 64 neighbours lies beyond their root mean square; ranges of all \
         values between layers early, midway and late in the schedule.",
    )
    .found(
        if reach > 4.0 { Outcome::Holds } else { Outcome::UnderConditions },
        format!(
            "Within a group of 64 the largest weight is {} times their root mean square (2.4 for normal weights), excess kurtosis is \
             {} on average; groups with scales of their own leave nothing to saturate. Ranges of activations change {}-fold \
             between early and late steps, which matters to formats that quantize those.",
            number(reach),
            number(kurtosis_mean),
            number(change),
        ),
    )
    .number("largest_over_rms_in_groups_of_64", reach)
    .number("mean_excess_kurtosis", kurtosis_mean)
    .number("groups_beyond_twice_the_median", spread)
    .number("activation_range_change", change)
    .figure(title, plot.svg(title), "fp16 weights, first pair.")
    .table(
        &["heaviest tails", "excess kurtosis", "largest / rms in groups of 64"],
        worst.iter().take(8).map(|s| vec![s.name.clone(), number(s.kurtosis), number(s.reach)]),
    )
}
