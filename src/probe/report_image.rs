//! The page of a comparison of pictures.

use super::compare::Estimate;
use super::compare_image::{ImageReport, PairPictures, difference};
use super::compare_steps::StepError;
use super::inject::Injection;
use super::page::Page;
use super::plot::{Axis, Plot, Point, number};
use super::plot_grid::HeatMap;
use super::report::{About, checks, floor_note, layer_charts};
use super::spectrum::{BANDS, EDGES};
use crate::Result;

/// Rows of the table of pairs.
const PAIRS: usize = 40;

/// The page, everything in it.
///
/// # Errors
/// Where a picture cannot be encoded.
pub fn image_page(report: &ImageReport, about: &About) -> Result<String> {
    let mut page = Page::new(&about.title());
    let over = match report.pairs.len() {
        1 => "one pair of runs".to_string(),
        n => format!("{n} pairs of runs"),
    };
    about.lead(&mut page, report.bits_per_weight, &over);
    in_short(&mut page, report);
    checks(&mut page, &report.checks, report.verdict);
    pictures(&mut page, report, about)?;
    over_steps(&mut page, report);
    made_of(&mut page, report, about.guidance);
    if let Some(injection) = &report.injection {
        injected(&mut page, injection);
    }
    let place = format!("step {}", report.layers_at_step);
    layer_charts(&mut page, &report.layers, &report.attention, &place);
    pairs(&mut page, report);
    about.method(&mut page);
    Ok(page.finish())
}

/// `35.1 ± 0.4`
fn estimate(e: Estimate) -> String {
    match e.standard_error.is_finite() {
        true => format!("{} ± {}", number(e.mean), number(e.standard_error)),
        false => number(e.mean),
    }
}

fn in_short(page: &mut Page, report: &ImageReport) {
    let (e, s) = (&report.estimates, &report.summary);
    let floor = |value: Option<f64>| value.map_or("–".to_string(), number);
    let last = report.steps.last();
    let row = |what: &str, value: String, floor: String| vec![what.to_string(), value, floor];
    page.table(
        &["figure", "these weights", "floor: fp32 weights"],
        [
            row(
                "error of ε, teacher-forced, mean over the steps",
                estimate(e.eps_rel_l2),
                floor(s.floor.map(|f| f.mean)),
            ),
            row("error of ε, free-running", number(s.free_running.mean), "–".into()),
            row(
                "error of the final latents",
                estimate(e.latent_rel_l2),
                floor(last.and_then(|s| s.floor_latent_rel_l2)),
            ),
            row("PSNR of the picture, dB", estimate(e.psnr_db), floor(report.image.floor_psnr_db)),
            row("SSIM", estimate(e.ssim), "–".into()),
            row("MS-SSIM", estimate(e.ms_ssim), "–".into()),
            row(
                "kernel error of ε",
                s.kernel.map_or("not measured".into(), |k| number(k.mean)),
                "–".into(),
            ),
        ],
    );
}

fn pictures(page: &mut Page, report: &ImageReport, about: &About) -> Result<()> {
    page.heading("The pictures");
    page.paragraph(
        "The same prompt, the same noise, the same sampler; only the weights differ. The slider goes through \
         what each step takes the finished picture to be: the clean picture that the prediction points at. The \
         third column is the difference of the two, eight times as strong.",
    );
    let names = ["fp16", about.variant.as_str(), "difference × 8"];
    for (pair, PairPictures { finished, steps: [base, ours] }) in
        report.pairs.iter().zip(&report.pictures)
    {
        let row = |a: &_, b: &_| -> Result<Vec<_>> {
            Ok(vec![Clone::clone(a), Clone::clone(b), difference(a, b)?])
        };
        let mut rows = base.iter().zip(ours).map(|(a, b)| row(a, b)).collect::<Result<Vec<_>>>()?;
        let mut labels: Vec<String> = report
            .steps
            .iter()
            .take(rows.len())
            .map(|s| format!("step {}, σ {}", s.step, number(s.sigma)))
            .collect();
        rows.push(row(&finished[0], &finished[1])?);
        labels.push("finished".into());
        let (psnr, ssim) = (number(pair.psnr_db), number(pair.ssim));
        page.paragraph(&format!(
            "“{}”, seed {}: PSNR {psnr} dB, SSIM {ssim}.",
            pair.prompt, pair.seed
        ));
        page.slides(&names, &rows, &labels)?;
    }
    Ok(())
}

fn points(steps: &[StepError], of: impl Fn(&StepError) -> f64) -> Vec<Point> {
    steps.iter().map(|s| (s.step as f64, of(s))).collect()
}

/// Points where there is a value.
fn some(steps: &[StepError], of: impl Fn(&StepError) -> Option<f64>) -> Vec<Point> {
    steps.iter().filter_map(|s| of(s).map(|value| (s.step as f64, value))).collect()
}

const STEP: &str = "step (noise at the left, picture at the right)";
const FLOOR: &str = "floor: fp32 weights";

fn over_steps(page: &mut Page, report: &ImageReport) {
    let steps = &report.steps;
    page.heading("Step by step");
    page.paragraph(
        "A UNet is asked once a step for ε, the noise in its input. Teacher-forced, both sets of weights see \
         the baseline's latents: the error of one evaluation and nothing else. Free-running, the quantized \
         weights see their own latents, so that earlier errors come back as input. If the second line \
         lies far above the first, errors feed on themselves; if it does not, they only add up.",
    );
    let spread = |of: &dyn Fn(&StepError) -> [f64; 2]| {
        let ends = |s: &StepError| {
            let [mean, se] = of(s);
            (s.step as f64, [(mean - se).max(mean / 10.0), mean + se])
        };
        steps.iter().map(ends).collect::<Vec<_>>()
    };
    let plot = Plot::new(Axis::linear(STEP), Axis::log("relative error of ε"))
        .band(spread(&|s| [s.eps_rel_l2_teacher_forced, s.over_pairs.eps_rel_l2_teacher_forced]))
        .line("teacher-forced", points(steps, |s| s.eps_rel_l2_teacher_forced))
        .band(spread(&|s| [s.eps_rel_l2_free_running, s.over_pairs.eps_rel_l2_free_running]))
        .line("free-running", points(steps, |s| s.eps_rel_l2_free_running))
        .line("after guidance", points(steps, |s| s.guided_rel_l2))
        .floor(FLOOR, some(steps, |s| s.floor_rel_l2));
    let title = "Error of the prediction";
    let caption = format!(
        "‖ε − ε₁₆‖ / ‖ε₁₆‖ at every step, mean over the pairs; shaded: one standard error. {}",
        floor_note(steps.iter().any(|s| s.floor_rel_l2.is_some()))
    );
    page.figure(title, &plot.svg(title), &caption);
    let plot = Plot::new(Axis::linear(STEP), Axis::log("relative error of the latents"))
        .band(spread(&|s| [s.latent_rel_l2, s.over_pairs.latent_rel_l2]))
        .line("free-running", points(steps, |s| s.latent_rel_l2))
        .floor("floor: fp32 weights, fast kernels", some(steps, |s| s.floor_latent_rel_l2));
    let title = "Error of the latents";
    let caption = "How far the quantized run has left the baseline's path after each step.";
    page.figure(title, &plot.svg(title), caption);
}

fn band_name(band: usize) -> String {
    match band + 1 {
        BANDS => format!("{} and more", EDGES[band]),
        _ => format!("{} to {}", EDGES[band], EDGES[band + 1]),
    }
}

fn made_of(page: &mut Page, report: &ImageReport, guidance: f64) {
    let steps = &report.steps;
    page.heading("What the error is made of");
    page.paragraph(
        "If quantization were fresh noise at every step, the error would be uncorrelated with everything and a \
         long schedule would average it away. It is made by the same wrong weights at every step, so it \
         need not be.",
    );
    let plot = Plot::new(Axis::linear(STEP), Axis::linear("correlation").between(-1.0, 1.0))
        .line("with the last step's error", some(steps, |s| s.error_lag))
        .line("with ε itself", points(steps, |s| s.error_correlation))
        .line("ρ: with and without the prompt", some(steps, |s| s.rho));
    let title = "Correlations of the error";
    let caption = "Teacher-forced. An error that follows ε can be divided out (its slope is in the JSON); one that \
                   stays the same from step to step adds up in full. Rounding noise of the floor is uncorrelated: 0.";
    page.figure(title, &plot.svg(title), caption);
    if let Some(mean) = mean(steps.iter().filter_map(|s| s.rho)) {
        let factor = |rho: f64| {
            let (g, h) = (guidance, guidance - 1.0);
            (g * g + h * h - 2.0 * rho * g * h).sqrt()
        };
        page.paragraph(&format!(
            "Guidance {} weighs two predictions against each other, ε = ε₀ + g·(ε₁ − ε₀), and with them \
             their errors. Independent errors would grow {}-fold; with the measured ρ of {} they grow {}-fold.",
            number(guidance),
            number(factor(0.0)),
            number(mean),
            number(factor(mean)),
        ));
    }
    let mut plot = Plot::new(Axis::linear(STEP), Axis::log("relative error in the band"));
    for band in 0..BANDS {
        plot = plot.line(&band_name(band), points(steps, |s| s.bands[band]));
    }
    let plot = plot.floor(FLOOR, some(steps, |s| s.floor_rel_l2));
    let title = "Error of ε by frequency";
    let caption = "Bands of radial frequency in cycles per latent pixel, low (composition) to high (texture); each \
                   relative to ε in the same band. The floor is that of all bands together.";
    page.figure(title, &plot.svg(title), caption);
    let rows =
        (0..BANDS).map(|b| (band_name(b), steps.iter().map(|s| s.latent_bands[b]).collect()));
    let columns = steps.iter().map(|s| s.step.to_string());
    let title = "Error of the latents by frequency and step";
    let map = HeatMap::new(Axis::log("relative error; columns are steps"), columns, rows);
    let caption = "Free-running. A row that darkens to the right keeps its errors; one that stays pale forgets them.";
    page.figure(title, &map.svg(title), caption);
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn injected(page: &mut Page, injection: &Injection) {
    page.heading("Which steps matter");
    page.paragraph(
        "Here the quantized weights predict at one step alone and the baseline at all others; what is left of \
         that one error in the final latents says how much the step matters.",
    );
    let names = injection.steps.iter().map(|s| s.step.to_string());
    let mut plot =
        Plot::categories("the one step", names, Axis::linear("error left, ‖e‖² / ‖x‖²")).stacked();
    for band in 0..BANDS {
        let values = injection.steps.iter().map(|s| s.bands[band] * s.bands[band]);
        plot = plot.bars(&band_name(band), values);
    }
    let title = "Error left at the end by the step that made it";
    let caption = "Energy by band of frequency, low to high: early steps decide where things are, late ones how \
                   they look in detail. The floor is too small to be drawn.";
    page.figure(title, &plot.svg(title), caption);
    page.paragraph(&format!(
        "All steps quantized: {}. Added up as vectors, the single errors come to {} (cosine with the former {}); if \
         they pointed the same way they would come to {}, if they were independent to {}. {}",
        number(injection.all),
        number(injection.norm_of_sum),
        number(injection.cosine_of_sum),
        number(injection.sum_of_gains),
        number(injection.root_of_squares),
        match injection.all / injection.norm_of_sum {
            ratio if ratio > 1.5 => "Together they are much more than their sum: errors make others grow.",
            ratio if ratio < 0.67 => "Together they are much less than their sum: later steps repair earlier ones.",
            _ => "Together they are about their sum: errors add up and do not snowball.",
        },
    ));
}

fn pairs(page: &mut Page, report: &ImageReport) {
    if report.pairs.len() < 2 {
        return;
    }
    page.heading("Pair by pair");
    let sorted = {
        let mut psnr: Vec<f64> =
            report.pairs.iter().map(|p| p.psnr_db).filter(|v| v.is_finite()).collect();
        psnr.sort_by(f64::total_cmp);
        psnr
    };
    // Fewer make no histogram.
    let many = sorted.len() >= 8;
    if let (Some(least), Some(most), true) = (sorted.first(), sorted.last(), many) {
        let width = ((most - least) / 10.0).max(0.1);
        let bin = |i: usize| {
            let edges = [least + width * i as f64, least + width * (i + 1) as f64];
            let last = i == 9;
            let inside = |v: &&f64| **v >= edges[0] && (**v < edges[1] || last);
            (edges, sorted.iter().filter(inside).count() as f64)
        };
        let plot = Plot::new(Axis::linear("PSNR, dB"), Axis::linear("pairs"))
            .histogram("", (0..10).map(bin));
        let title = "PSNR of the pairs";
        let floor = report.image.floor_psnr_db.map_or(String::new(), |db| {
            format!(" The floor, fp32 weights, is at {} dB.", number(db))
        });
        page.figure(
            title,
            &plot.svg(title),
            &format!("How much pictures differ among themselves.{floor}"),
        );
    }
    let rows = report.pairs.iter().take(PAIRS).map(|p| {
        let mut row = vec![p.prompt.clone(), p.seed.to_string()];
        row.extend([p.eps_rel_l2, p.latent_rel_l2, p.psnr_db, p.ssim, p.ms_ssim].map(number));
        row
    });
    page.table(&["prompt", "seed", "ε", "latents", "PSNR", "SSIM", "MS-SSIM"], rows);
}
