//! Remedies that work beside the codes: a sampler that knows the error, more bits at some steps, a branch of low rank.

use std::ops::Range;

use super::imitate::Change;
use super::unet::{Judged, UnetLab, fp16, named, painted};
use super::weights::Weights;
use super::{Outcome, Section};
use crate::Result;
use crate::diffusion::text_to_image::{Request, RunState};
use crate::gpu::interrupted;
use crate::probe::compare::OnStage;
use crate::probe::compare_runs::Trajectory;
use crate::probe::compare_steps::guide;
use crate::probe::plot::{Axis, Plot, number};
use crate::quant::metrics::{psnr, regression, rel_l2};
use crate::quant::{QuantSpec, Recipe};

/// Guided answers of one step: what is right and what was given, of each run.
type Answers = Vec<[Vec<f32>; 2]>;

/// U16: what a table of a few numbers a step could take out of the error.
pub(super) fn correction(lab: &mut UnetLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let runs = lab.runs(on_stage)?;
    lab.set(&named("int4")?, on_stage)?;
    let count = runs.first().map_or(0, |run| run.eps.len());
    let mut rows = Vec::new();
    for step in (0..count).step_by(count.div_ceil(5).max(1)) {
        let answers = answers(lab, &runs, step, on_stage)?;
        let channels = runs[0].shape[3];
        rows.push((step, corrected(&answers, channels)));
    }
    Ok(vec![by_a_table(&rows, runs.len())])
}

fn answers(
    lab: &mut UnetLab,
    runs: &[Trajectory],
    step: usize,
    on_stage: &mut OnStage<'_>,
) -> Result<Answers> {
    let requests = lab.options.requests.clone();
    let net = lab.net(on_stage)?;
    let mut found = Vec::new();
    for (i, (request, base)) in requests.iter().zip(runs).enumerate() {
        on_stage("int4 on the runs of fp16", i, runs.len());
        interrupted()?;
        let mut run = net.prepare(request)?;
        run.set_latents(&base.latents[step])?;
        run.step(step)?;
        let (eps, right) = (run.eps()?, &base.eps[step]);
        let guided = right.len() > base.latents[step].len();
        let guide = |eps: &[f32]| guide(eps, request.guidance as f32, guided);
        found.push([guide(right), guide(&eps)]);
    }
    Ok(found)
}

/// Energy of the error of ε and what three corrections leave of it, each fitted to all runs but the one it is tried on: a
/// slope and an offset; an offset for each channel; the mean error at each place.
fn corrected(answers: &Answers, channels: usize) -> [f64; 4] {
    let energy = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    let mut sums = [0.0; 4];
    for (i, [right, given]) in answers.iter().enumerate() {
        let others: Vec<&[Vec<f32>; 2]> =
            answers.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, a)| a).collect();
        let error: Vec<f32> = given.iter().zip(right).map(|(g, r)| g - r).collect();
        let all =
            |of: usize| others.iter().flat_map(|a| a[of].iter().copied()).collect::<Vec<f32>>();
        let errors: Vec<f32> = all(1).iter().zip(&all(0)).map(|(g, r)| g - r).collect();
        let (k, b) = regression(&errors, &all(1));
        let line = |(e, g): (&f32, &f32)| e - (k * f64::from(*g) + b) as f32;
        let n = error.len();
        let mut by_channel = vec![0.0f64; channels];
        let mut by_place = vec![0.0f64; n];
        for (at, e) in errors.iter().enumerate() {
            by_channel[at % channels] +=
                f64::from(*e) * channels as f64 / errors.len().max(1) as f64;
            by_place[at % n] += f64::from(*e) / others.len().max(1) as f64;
        }
        let less = |of: &dyn Fn(usize) -> f64| {
            error.iter().enumerate().map(|(at, e)| e - of(at) as f32).collect::<Vec<f32>>()
        };
        sums[0] += energy(&error);
        sums[1] += energy(&error.iter().zip(given).map(line).collect::<Vec<f32>>());
        sums[2] += energy(&less(&|at| by_channel[at % channels]));
        sums[3] += energy(&less(&|at| by_place[at]));
    }
    sums
}

fn by_a_table(rows: &[(usize, [f64; 4])], runs: usize) -> Section {
    let gain = |sums: &[f64; 4], which: usize| 10.0 * (sums[0] / sums[which]).log10();
    let mean = |which: usize| {
        rows.iter().map(|(_, sums)| gain(sums, which)).sum::<f64>() / rows.len().max(1) as f64
    };
    let (line, channel, place) = (mean(1), mean(2), mean(3));
    let best = line.max(channel).max(place);
    Section::new(
        "U16",
        "Can the sampler take the error out?",
        "A table of a slope and offsets for each step, measured once, corrects the quantized net's answers (PTQD, TAC, Q-Drift).",
        format!(
            "The error of int4's guided ε on the fp16 runs; corrections are fitted at each step to all but one of the {runs} runs and \
             tried on that one."
        ),
    )
    .found(
        match runs < 4 {
            true => Outcome::NotTested,
            false => Outcome::of(best > 0.5),
        },
        format!(
            "A slope and an offset gain {} dB, an offset for each channel {} dB, the mean error at each place {} dB.",
            number(line),
            number(channel),
            number(place)
        ),
    )
    .number("slope_and_offset_db", line)
    .number("channel_offsets_db", channel)
    .number("mean_error_map_db", place)
    .paragraph(
        "A remedy that gains less than half a decibel is not kept: corrected biases inside of the net and better codes take out \
         more (see what helps), and need no table that fits one sampler and one schedule alone. A negative gain means that what \
         was learnt from other runs harms this one.",
    )
    .table(
        &["step", "slope and offset, dB", "channel offsets, dB", "mean error map, dB"],
        rows.iter().map(|(step, sums)| {
            let mut row = vec![step.to_string()];
            row.extend((1..4).map(|which| number(gain(sums, which))));
            row
        }),
    )
}

/// U17: int8 at some steps, int4 at all others.
pub(super) fn some_steps(lab: &mut UnetLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let requests = lab.few().to_vec();
    lab.set(&fp16()?, on_stage)?;
    let base = lab.again(&requests, "fp16", on_stage)?;
    let count = base.first().map_or(0, |run| run.eps.len());
    let fifth = count.div_ceil(5);
    let mut found = Vec::new();
    for (name, fine) in [
        ("none".to_string(), 0..0),
        (format!("the first {fifth}"), 0..fifth),
        (format!("{fifth} in the middle"), (count - fifth) / 2..(count + fifth) / 2),
        (format!("the last {fifth}"), count - fifth..count),
    ] {
        found.push((name, mixed(lab, (&requests, &base), fine, on_stage)?));
    }
    let all = painted(&lab.record(&requests, &named("int8")?, "int8", on_stage)?, &base)?;
    found.push(("all".to_string(), [all.latents, all.psnr]));
    Ok(vec![planes(&found, fifth)])
}

/// Error of the final latents and PSNR of runs with int8 at the steps `fine` and int4 at the others.
fn mixed(
    lab: &mut UnetLab,
    (requests, base): (&[Request], &[Trajectory]),
    fine: Range<usize>,
    on_stage: &mut OnStage<'_>,
) -> Result<[f64; 2]> {
    let count = base.first().map_or(0, |run| run.eps.len());
    let mut states: Vec<Option<RunState>> = vec![None; requests.len()];
    let mut sums = [0.0; 2];
    for part in [0..fine.start, fine.clone(), fine.end..count] {
        if part.is_empty() {
            continue;
        }
        let weights = if part == fine { "int8" } else { "int4" };
        lab.set(&named(weights)?, on_stage)?;
        let net = lab.net(on_stage)?;
        for ((request, base), state) in requests.iter().zip(base).zip(&mut states) {
            let mut run = net.prepare(request)?;
            if let Some(state) = state {
                run.set_state(state)?;
            }
            for step in part.clone() {
                on_stage("int8 at some steps", step, count);
                interrupted()?;
                run.step(step)?;
            }
            *state = Some(run.state()?);
            if part.end == count {
                let n = requests.len() as f64;
                let last = base.latents.last().map_or(&[][..], Vec::as_slice);
                sums[0] += rel_l2(&run.latents()?, last) / n;
                let decoded = net.decode(run.latent(), run.shape())?;
                let image = decoded.images.first().map(|i| psnr(&i.to_f32(), &base.image.to_f32()));
                sums[1] += image.unwrap_or(f64::NAN).min(100.0) / n;
            }
        }
    }
    Ok(sums)
}

fn planes(found: &[(String, [f64; 2])], fifth: usize) -> Section {
    let of =
        |word: &str| found.iter().find(|(n, _)| n.contains(word)).map_or([f64::NAN; 2], |f| f.1);
    let (none, first, last, all) = (of("none"), of("first"), of("last"), of("all"));
    let names = found.iter().map(|(name, _)| name.clone());
    let plot = Plot::categories("steps in int8", names, Axis::linear("error of the final latents"))
        .bars("", found.iter().map(|(_, [latents, _])| *latents));
    let title = "More bits at some steps";
    let share = |better: f64| 100.0 * (none[0] - better) / (none[0] - all[0]);
    let best = share(first[0]).max(share(last[0]));
    Section::new(
        "U17",
        "Are more bits worth it at some steps only?",
        "A second plane of four bits, used at few steps, buys most of the quality of eight bits at the speed of four.",
        format!("int8 weights at {fifth} of the steps, first, in the middle or last, and int4 weights at all others."),
    )
    .found(
        // Most of it: then a few slow steps would do.
        Outcome::of(best > 50.0),
        format!(
            "Eight bits in the first fifth take away {} % of what they take away at all steps, in the last fifth {} %; pictures: {} \
             dB with none, {} and {} dB so, {} dB with all.",
            number(share(first[0])),
            number(share(last[0])),
            number(none[1]),
            number(first[1]),
            number(last[1]),
            number(all[1]),
        ),
    )
    .number("first_fifth_share", share(first[0]) / 100.0)
    .number("last_fifth_share", share(last[0]) / 100.0)
    .number("none_psnr_db", none[1])
    .number("first_psnr_db", first[1])
    .number("last_psnr_db", last[1])
    .number("all_psnr_db", all[1])
    .paragraph(
        "Both planes lie in memory all the time, as much as int8 weights do, which have those bits at every step. What the planes \
         would save is time, and on the software adapter an int8 step takes 0.95 to 1.08 times as long as an int4 step.",
    )
    .figure(title, plot.svg(title), "Means over the pairs, relative to the final latents of fp16.")
    .table(
        &["steps in int8", "error of the final latents", "PSNR, dB"],
        found.iter().map(|(name, [e, db])| {
            vec![name.clone(), format!("{} %", number(100.0 * e)), number(*db)]
        }),
    )
}

/// U18: a branch of low rank beside each packed weight.
pub(super) fn branch(lab: &mut UnetLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let int4 = Recipe::builtin("int4", "unet")?;
    let mut found = Vec::new();
    for name in ["int4", "int4-g32-cubic", "int8"] {
        found.push((name.to_string(), lab.judge(name, &named(name)?, on_stage)?));
    }
    for rank in [4, 16] {
        let name = format!("int4 and a branch of rank {rank}");
        let change = Change::LowRank(QuantSpec::INT4, rank);
        let judged = lab.judge(&name, &Weights::Change(int4.clone(), change), on_stage)?;
        found.push((name, judged));
    }
    Ok(vec![beside(&found)])
}

fn beside(found: &[(String, Judged)]) -> Section {
    let of = |name: &str| found.iter().find(|(n, _)| n == name).map(|(_, judged)| judged);
    let value = |name: &str, f: fn(&Judged) -> f64| of(name).map_or(f64::NAN, f);
    let (plain, bits) = (value("int4", Judged::db), value("int4", |j| j.bits));
    // Decibels for each bit per weight that is spent on top of int4.
    let price = |name: &str| (value(name, Judged::db) - plain) / (value(name, |j| j.bits) - bits);
    let (groups, eight) = (price("int4-g32-cubic"), price("int8"));
    let (small, large) =
        (price("int4 and a branch of rank 4"), price("int4 and a branch of rank 16"));
    Section::new(
        "U18",
        "A branch of low rank",
        "What four bits lose is largely of low rank: a thin branch in 16 bits beside each layer brings it back (SVDQuant's idea).",
        "int4 weights, and beside each the largest 4 or 16 singular values of what it lost, in 16 bits; other ways to spend bits for \
         comparison.",
    )
    .found(
        Outcome::of(small.max(large) > groups.max(eight)),
        format!(
            "A bit per weight spent on branches buys {} dB (rank 4) and {} dB (rank 16), spent on groups of 32 it buys {} dB, on eight \
             bits {} dB.",
            number(small),
            number(large),
            number(groups),
            number(eight),
        ),
    )
    .number("db_per_bit_rank_4", small)
    .number("db_per_bit_rank_16", large)
    .number("db_per_bit_g32", groups)
    .number("db_per_bit_int8", eight)
    .paragraph(
        "Rounding errors of weights are as good as random: a branch of rank r brings back about the share r of all their \
         directions, and two factors of 16 bits are a high price for it. Published gains of such branches are in formats whose \
         activations have four bits as well, where a branch takes up outliers.",
    )
    .table(
        &["weights", "bits per weight", "SQNR of ε, dB"],
        found.iter().map(|(name, j)| vec![name.clone(), number(j.bits), number(j.db())]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_error_is_corrected_and_noise_is_not() {
        let right: Vec<Vec<f32>> = (0..5)
            .map(|i| (0..64).map(|j| ((i * 7 + j * 13) % 11) as f32 - 5.0).collect())
            .collect();
        let shifted = |by: f32| {
            right.iter().map(|r| [r.clone(), r.iter().map(|v| v + by).collect()]).collect()
        };
        let [error, line, channel, place] = corrected(&shifted(0.5), 4);
        // 1e-6: rounding of f32.
        assert!((error - 5.0 * 64.0 * 0.25).abs() < 1e-6);
        assert!(line < 1e-6 && channel < 1e-6 && place < 1e-6, "{line} {channel} {place}");
        let scaled =
            right.iter().map(|r| [r.clone(), r.iter().map(|v| 1.1 * v).collect()]).collect();
        let [error, line, ..] = corrected(&scaled, 4);
        assert!(line < 1e-6 * error, "{line} of {error}");
        // Errors of alternating signs from run to run have nothing in common.
        let signs: Answers = right
            .iter()
            .enumerate()
            .map(|(i, r)| {
                [r.clone(), r.iter().map(|v| v + if i % 2 == 0 { 0.5 } else { -0.5 }).collect()]
            })
            .collect();
        let [error, _, channel, _] = corrected(&signs, 4);
        assert!(channel >= error);
    }
}
