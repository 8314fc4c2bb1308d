//! Claims that whole paired runs decide: how errors travel from step to step, what they are made of, and which steps
//! matter.

use super::unet::{UnetLab, fp16, named};
use super::{Outcome, Section};
use crate::Result;
use crate::probe::compare::OnStage;
use crate::probe::compare_image::{ImageBaseline, ImageReport, PairPictures, difference};
use crate::probe::compare_steps::StepError;
use crate::probe::inject::Injection;
use crate::probe::page::slides;
use crate::probe::plot::{Axis, Plot, Point, number};
use crate::probe::spectrum::{BANDS, EDGES};
use crate::quant::metrics::{psnr, rel_l2};

pub(super) const STEP: &str = "step (noise at the left, picture at the right)";
const FLOOR: &str = "floor: fp32 weights";

pub(super) fn points(steps: &[StepError], of: impl Fn(&StepError) -> f64) -> Vec<Point> {
    steps.iter().map(|s| (s.step as f64, of(s))).collect()
}

fn some(steps: &[StepError], of: impl Fn(&StepError) -> Option<f64>) -> Vec<Point> {
    steps.iter().filter_map(|s| of(s).map(|v| (s.step as f64, v))).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// SQNR of a relative error.
fn db(relative: f64) -> f64 {
    -20.0 * relative.log10()
}

/// U1, U9, U12: from int4 against fp16 in all pairs.
pub(super) fn runs(lab: &mut UnetLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let report = lab.report(on_stage)?;
    let bf16 = lab.bfloat(on_stage)?;
    Ok(vec![feeds_back(&report)?, structured(&report), sixteen_bits(&report, bf16)])
}

fn feeds_back(report: &ImageReport) -> Result<Section> {
    let steps = &report.steps;
    let late = &steps[steps.len() / 2..];
    let forced = mean(late.iter().map(|s| s.eps_rel_l2_teacher_forced));
    let free = mean(late.iter().map(|s| s.eps_rel_l2_free_running));
    let (ratio, last) = (free / forced, steps.last().map_or(f64::NAN, |s| s.latent_rel_l2));
    let plot = Plot::new(Axis::linear(STEP), Axis::log("relative error"))
        .line("ε, teacher-forced", points(steps, |s| s.eps_rel_l2_teacher_forced))
        .line("ε, free-running", points(steps, |s| s.eps_rel_l2_free_running))
        .line("latents, free-running", points(steps, |s| s.latent_rel_l2))
        .floor(FLOOR, some(steps, |s| s.floor_rel_l2));
    let title = "One answer's error, and what becomes of it";
    let psnr = report.estimates.psnr_db;
    let section = Section::new(
        "U1",
        "A wrong answer is part of the next question",
        "The error that quantization makes in one step enters the input of the next.",
        format!(
            "int4 weights ({} bits per weight in the whole model, everything resident counted) paint beside fp16 weights, once \
             on the latents of the latter (teacher-forced) and once on their own (free-running).",
            number(report.bits_per_weight)
        ),
    )
    .found(
        Outcome::of(ratio > 1.1),
        format!(
            "In the second half of the schedule the error of ε is {} times as large free-running as teacher-forced ({} % \
             against {} %).",
            number(ratio),
            number(100.0 * free),
            number(100.0 * forced),
        ),
    )
    .number("free_over_forced", ratio)
    .number("latents_rel_l2", last)
    .number("psnr_db", psnr.mean)
    .number("psnr_standard_error_db", psnr.standard_error)
    .number("ssim", report.estimates.ssim.mean)
    .paragraph(format!(
        "The latents end {} % away from those of fp16, and the pictures at {} ± {} dB PSNR of each other; {}. The question that \
         matters is whether these errors only add up or make each other grow (U2).",
        number(100.0 * last),
        number(psnr.mean),
        number(psnr.standard_error),
        match report.image.floor_psnr_db {
            Some(floor) if floor.is_finite() =>
                format!("the floor, fp32 weights against fp16 weights, is at {} dB", number(floor)),
            _ => "fp32 weights paint the very pictures of fp16 weights".into(),
        },
    ))
    .figure(title, plot.svg(title), "Means over the pairs. Dashed: fp16 against fp32 weights in the first pair.");
    pictures(section, report)
}

fn pictures(mut section: Section, report: &ImageReport) -> Result<Section> {
    for (pair, PairPictures { finished, steps: [base, ours] }) in
        report.pairs.iter().zip(&report.pictures).take(2)
    {
        let mut rows = Vec::new();
        let every = base.len().div_ceil(4).max(1);
        for (a, b) in base.iter().zip(ours).step_by(every) {
            rows.push(vec![a.clone(), b.clone(), difference(a, b)?]);
        }
        let mut labels: Vec<String> =
            (0..base.len()).step_by(every).map(|i| format!("step {i}")).collect();
        rows.push(vec![
            finished[0].clone(),
            finished[1].clone(),
            difference(&finished[0], &finished[1])?,
        ]);
        labels.push("finished".into());
        section = section
            .paragraph(format!(
                "“{}”, seed {}: PSNR {} dB, SSIM {}.",
                pair.prompt,
                pair.seed,
                number(pair.psnr_db),
                number(pair.ssim)
            ))
            .html(slides(&["fp16", "int4", "difference × 8"], &rows, &labels)?);
    }
    Ok(section)
}

fn structured(report: &ImageReport) -> Section {
    let steps = &report.steps;
    let lag = mean(steps.iter().filter_map(|s| s.error_lag));
    let slope = mean(steps.iter().map(|s| s.error_slope));
    let follows = mean(steps.iter().map(|s| s.error_correlation));
    let kurtosis = mean(steps.iter().map(|s| s.error_kurtosis));
    let rho = mean(steps.iter().filter_map(|s| s.rho));
    let plot = Plot::new(Axis::linear(STEP), Axis::linear("correlation").between(-1.0, 1.0))
        .line("with the last step's error", some(steps, |s| s.error_lag))
        .line("with ε itself", points(steps, |s| s.error_correlation))
        .line("ρ: with and without the prompt", some(steps, |s| s.rho));
    let title = "What the error of ε goes along with";
    Section::new(
        "U9",
        "The error is no fresh noise",
        "Quantization noise has structure: it is not Gaussian and not independent from step to step.",
        "Teacher-forced errors of ε are correlated with each other and with ε, and their distribution is compared with a normal one.",
    )
    .found(
        Outcome::of(lag.abs() > 0.1 || kurtosis.abs() > 1.0),
        format!(
            "From one step to the next the error's correlation is {}, between the halves with and without the prompt {}; its \
             excess kurtosis is {} (0 for normal noise).",
            number(lag),
            number(rho),
            number(kurtosis)
        ),
    )
    .number("lag_correlation", lag)
    .number("rho", rho)
    .number("correlation_with_eps", follows)
    .number("slope", slope)
    .number("excess_kurtosis", kurtosis)
    .paragraph(format!(
        "The same wrong weights answer every time, so the error of two neighbouring steps is largely the same error, which a \
         long schedule does not average away. The part that follows ε itself (slope {}, correlation {}) could be divided \
         out by the sampler; it is {} % of the error's energy.",
        number(slope),
        number(follows),
        number(100.0 * follows * follows),
    ))
    .figure(title, plot.svg(title), "Teacher-forced, means over the pairs.")
}

fn sixteen_bits(report: &ImageReport, bf16: [f64; 2]) -> Section {
    let floor = report.summary.floor.map_or(f64::NAN, |f| f.mean);
    let psnr = report.image.floor_psnr_db.unwrap_or(f64::NAN);
    let int4 = report.summary.teacher_forced.mean;
    Section::new(
        "U12",
        "Sixteen bits are safe",
        "FP16 and BF16 weights change nothing that matters.",
        "fp32 weights against fp16 weights in the first pair; and the first pairs again with weights rounded to bfloat16.",
    )
    .found(
        Outcome::of(psnr > 40.0 && bf16[1] > 40.0),
        match floor > 0.0 {
            true => format!(
                "fp16 changes ε by {} % ({} dB) and the picture to {} dB PSNR; bf16 changes ε by {} % and the picture to {} dB.",
                number(100.0 * floor),
                number(db(floor)),
                number(psnr),
                number(100.0 * bf16[0]),
                number(bf16[1]),
            ),
            false => format!(
                "These weights come in 16 bits, so that fp16 loses nothing; rounded on to bf16 they change ε by {} % and the \
                 picture to {} dB PSNR.",
                number(100.0 * bf16[0]),
                number(bf16[1]),
            ),
        },
    )
    .number("fp16_eps_rel_l2", floor)
    .number("fp16_psnr_db", psnr)
    .number("bf16_eps_rel_l2", bf16[0])
    .number("bf16_psnr_db", bf16[1])
    .paragraph(format!(
        "This is the noise floor of all other figures: int4 changes ε by {} %, {} times as much as bf16 does.",
        number(100.0 * int4),
        number(int4 / bf16[0])
    ))
    .paragraph(
        "Weights alone are meant. The activations of some models do not fit into FP16 (the VAE of SDXL is known for it); this \
         program keeps those in 32 bits.",
    )
}

/// U2, U10: one step quantized at a time, and schedules of several lengths.
pub(super) fn injection(lab: &mut UnetLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let mut options = lab.image_options();
    (options.inject, options.floor, options.previews) = (true, false, 0);
    let requests = lab.few().to_vec();
    let base = ImageBaseline::record(&lab.gpu, &options, &requests, on_stage)?;
    let report = base.compare(&lab.gpu, &options, options.limits()?, on_stage)?;
    let Some(injection) = &report.injection else { return Ok(vec![]) };
    let lengths = lengths(lab, on_stage)?;
    Ok(vec![adds_up(injection, &lengths), late_steps(injection, &report.steps)])
}

/// Steps in all, error of the final latents, PSNR.
type Length = (usize, f64, f64);

fn lengths(lab: &mut UnetLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Length>> {
    let mut found = Vec::new();
    let own = lab.options.requests.first().map_or(1, |r| r.steps);
    for steps in [own.div_ceil(5), (2 * own).div_ceil(5), own, 2 * own] {
        let mut requests = lab.few().to_vec();
        requests.iter_mut().for_each(|r| r.steps = steps);
        let name = format!("{steps} steps");
        let base = lab.record(&requests, &fp16()?, &name, on_stage)?;
        let ours = lab.record(&requests, &named("int4")?, &name, on_stage)?;
        let (mut latents, mut db) = (0.0, 0.0);
        for (a, b) in ours.iter().zip(&base) {
            if let (Some(x), Some(y)) = (a.latents.last(), b.latents.last()) {
                latents += rel_l2(x, y) / base.len() as f64;
            }
            db += psnr(&a.image.to_f32(), &b.image.to_f32()) / base.len() as f64;
        }
        found.push((steps, latents, db));
    }
    Ok(found)
}

fn adds_up(injection: &Injection, lengths: &[Length]) -> Section {
    let ratio = injection.all / injection.norm_of_sum;
    let (first, last) = (lengths.first(), lengths.last());
    let growth = match (first, last) {
        (Some(a), Some(b)) => (b.1 / a.1).ln() / (b.0 as f64 / a.0 as f64).ln(),
        _ => f64::NAN,
    };
    // Growth as fast as the number of steps is what snowballing means at the least.
    let snowballs = ratio > 1.5 || growth > 1.0;
    let repaired = ratio < 0.67;
    let names = injection.steps.iter().map(|s| s.step.to_string());
    let plot = Plot::categories("the one step", names, Axis::linear("error left, ‖e‖ / ‖x‖"))
        .bars("", injection.steps.iter().map(|s| s.gain));
    let title = "What one quantized step leaves in the finished latents";
    let line = Plot::new(
        Axis::linear("steps of the schedule"),
        Axis::log("relative error of the final latents"),
    )
    .line("int4", lengths.iter().map(|(n, e, _)| (*n as f64, *e)));
    let title2 = "More steps, more error?";
    let words = match (snowballs, repaired) {
        (true, _) => "errors make others grow",
        (_, true) => "later steps repair a part of what earlier ones broke",
        _ => "errors add up, no more",
    };
    Section::new(
        "U2",
        "Do errors snowball?",
        "Over the steps the error amplifies, so that many steps make a quantized UNet unusable.",
        "int4 weights answer at one step alone, fp16 weights at all others, each step in turn; what is left at the end of all \
         these runs is added up and compared with the run in which int4 answers always. And the same pictures in fewer and in more steps.",
    )
    .found(
        Outcome::of(snowballs),
        format!(
            "All steps quantized, the latents err by {} times the vector sum of the single errors: {words}. From {} to {} steps \
             the error changes from {} % to {} %.",
            number(ratio),
            first.map_or(0, |l| l.0),
            last.map_or(0, |l| l.0),
            number(100.0 * first.map_or(f64::NAN, |l| l.1)),
            number(100.0 * last.map_or(f64::NAN, |l| l.1)),
        ),
    )
    .number("all_over_sum", ratio)
    .number("all_rel_l2", injection.all)
    .number("cosine_of_sum", injection.cosine_of_sum)
    .number("growth_exponent_over_steps", growth)
    .paragraph(format!(
        "All steps quantized: {}. The single errors added as vectors: {} (cosine with the former {}). If they all pointed the \
         same way it would be {}, if they were independent {}. Theory agrees: a deterministic sampler adds each error of ε \
         times the noise that the step takes away, and those factors sum to the noise at the start, however many steps \
         there are.",
        number(injection.all),
        number(injection.norm_of_sum),
        number(injection.cosine_of_sum),
        number(injection.sum_of_gains),
        number(injection.root_of_squares),
    ))
    .figure(title, plot.svg(title), "Relative to the final latents, means over the pairs.")
    .figure(title2, line.svg(title2), "If errors snowballed, the line would rise as steps do or faster.")
    .table(
        &["steps", "error of the final latents", "PSNR, dB"],
        lengths.iter().map(|(n, e, db)| vec![n.to_string(), number(*e), number(*db)]),
    )
}

fn band_name(band: usize) -> String {
    match band + 1 {
        BANDS => format!("{} and more", EDGES[band]),
        _ => format!("{} to {}", EDGES[band], EDGES[band + 1]),
    }
}

fn late_steps(injection: &Injection, steps: &[StepError]) -> Section {
    let n = injection.steps.len();
    let fifth = n.div_ceil(5);
    // Share of the energy in a band that the last fifth of the steps leaves.
    let share = |band: usize| {
        let energy = |s: &crate::probe::inject::Injected| s.bands[band].powi(2);
        let late: f64 = injection.steps[n - fifth..].iter().map(energy).sum();
        late / injection.steps.iter().map(energy).sum::<f64>()
    };
    let (low, high) = (share(0), share(BANDS - 1));
    let total = {
        let energy = |s: &crate::probe::inject::Injected| s.gain.powi(2);
        let late: f64 = injection.steps[n - fifth..].iter().map(energy).sum();
        late / injection.steps.iter().map(energy).sum::<f64>()
    };
    let even = fifth as f64 / n as f64;
    let outcome = match (total > even, high > even) {
        (true, _) => Outcome::Holds,
        (false, true) => Outcome::UnderConditions,
        (false, false) => Outcome::DoesNotHold,
    };
    let names = injection.steps.iter().map(|s| s.step.to_string());
    let mut plot =
        Plot::categories("the one step", names, Axis::linear("error left, ‖e‖² / ‖x‖²")).stacked();
    for band in 0..BANDS {
        plot = plot.bars(&band_name(band), injection.steps.iter().map(|s| s.bands[band].powi(2)));
    }
    let title = "Which step's error is left, by frequency";
    let line = Plot::new(Axis::linear(STEP), Axis::log("root of the mean square, in units of ε"))
        .line("error of ε, teacher-forced", points(steps, |s| s.eps_rel_l2_teacher_forced))
        .line("noise left in the latents, σ", points(steps, |s| s.sigma));
    let title2 = "The error beside the noise that is left";
    Section::new(
        "U10",
        "Do the late steps matter most?",
        "In late steps the quantization noise is larger than the noise that is left, so they decide the quality.",
        "From the same single quantized steps: how much of what is left at the end, in each band of frequency, stems from the \
         last fifth of the steps.",
    )
    .found(
        outcome,
        format!(
            "The last fifth of the steps leaves {} % of the error's energy ({} % would be its even share): {} % of that in the \
             lowest band (composition), {} % of that in the highest (texture).",
            number(100.0 * total),
            number(100.0 * even),
            number(100.0 * low),
            number(100.0 * high),
        ),
    )
    .number("late_share", total)
    .number("late_share_low_band", low)
    .number("late_share_high_band", high)
    .figure(title, plot.svg(title), "Bands of radial frequency in cycles per latent pixel, low to high.")
    .figure(title2, line.svg(title2), "Where the first line crosses the second, the net's error outweighs the noise.")
}
