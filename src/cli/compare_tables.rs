//! What `inknib compare` prints.

use std::path::Path;

use super::common::{Ui, table};
use crate::Result;
use crate::probe::attention_kl::AttentionError;
use crate::probe::compare::{Check, Estimate, LayerError};
use crate::probe::compare_image::ImageReport;
use crate::probe::compare_reports::TwoReports;
use crate::probe::compare_text::TextReport;
use crate::probe::inject::Injection;
use crate::probe::sweep::Sweep;

/// Layers that are listed without `--layers`.
const WORST: usize = 12;
/// Rows of a sweep without `--layers`.
const SWEPT: usize = 30;

/// The worst layers first, as many as asked for.
pub(super) fn layer_table(
    layers: &[LayerError],
    most: Option<usize>,
    place: &str,
    ui: &Ui,
) -> Result<()> {
    let mut worst: Vec<&LayerError> = layers.iter().collect();
    worst.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
    worst.truncate(most.unwrap_or(WORST));
    let mut table = table(&["layer", "SQNR dB", "cosine"]);
    for layer in &worst {
        let (sqnr, cosine) = (format!("{:.1}", layer.sqnr_db), format!("{:.5}", layer.cosine));
        table.add_row([layer.name.clone(), sqnr, cosine]);
    }
    ui.line(&format!("\nLayers at {place}, worst {} of {}\n{table}", worst.len(), layers.len()))
}

pub(super) fn picture_tables(report: &ImageReport, ui: &Ui) -> Result<()> {
    let headings =
        ["step", "sigma", "forced", "free", "latents", "guided", "quantization", "kernel", "floor"];
    let mut steps = table(&headings);
    let e = |v: f64| format!("{v:.2e}");
    let some = |v: Option<f64>| v.map_or("-".into(), e);
    for s in &report.steps {
        steps.add_row([
            s.step.to_string(),
            format!("{:.3}", s.sigma),
            e(s.eps_rel_l2_teacher_forced),
            e(s.eps_rel_l2_free_running),
            e(s.latent_rel_l2),
            e(s.guided_rel_l2),
            some(s.quantization_rel_l2),
            some(s.kernel_rel_l2),
            some(s.floor_rel_l2),
        ]);
    }
    ui.line(&format!("\nRelative L2 error of eps (and of the latents) by step\n{steps}"))?;
    error_table(report, ui)?;
    if let Some(injection) = &report.injection {
        injection_table(injection, ui)?;
    }
    summary(report, ui)
}

/// How the error is made.
fn error_table(report: &ImageReport, ui: &Ui) -> Result<()> {
    let headings = ["step", "rho", "slope k", "corr. with eps", "with last", "kurtosis", "by band"];
    let mut steps = table(&headings);
    let f = |v: f64| if v.is_finite() { format!("{v:.3}") } else { "-".into() };
    let some = |v: Option<f64>| v.map_or("-".into(), f);
    for s in &report.steps {
        let bands: Vec<String> = s.bands.iter().map(|b| format!("{b:.3}")).collect();
        steps.add_row([
            s.step.to_string(),
            some(s.rho),
            f(s.error_slope),
            f(s.error_correlation),
            some(s.error_lag),
            f(s.error_kurtosis),
            bands.join(" "),
        ]);
    }
    ui.line(&format!(
        "\nThe error of eps, teacher-forced: correlation of its two halves under guidance (rho), with eps and with \
         the step before, and its size by frequency, low to high\n{steps}"
    ))
}

fn injection_table(injection: &Injection, ui: &Ui) -> Result<()> {
    let mut steps = table(&["only step", "sigma", "left at the end", "by band"]);
    for s in &injection.steps {
        let bands: Vec<String> = s.bands.iter().map(|b| format!("{b:.1e}")).collect();
        let (sigma, gain) = (format!("{:.3}", s.sigma), format!("{:.2e}", s.gain));
        steps.add_row([s.step.to_string(), sigma, gain, bands.join(" ")]);
    }
    ui.line(&format!(
        "\nError of the final latents where one step alone has these weights\n{steps}\n\
         all steps {:.2e}; sum of the single errors {:.2e} (cosine {:.3}); sum of their sizes {:.2e}, root of \
         squares {:.2e}",
        injection.all,
        injection.norm_of_sum,
        injection.cosine_of_sum,
        injection.sum_of_gains,
        injection.root_of_squares,
    ))
}

fn summary(report: &ImageReport, ui: &Ui) -> Result<()> {
    let s = &report.summary;
    let free = s.free_running.mean;
    ui.line(&match (s.quantization, s.kernel) {
        (Some(quantization), Some(kernel)) => format!(
            "\nmean over the steps: quantization {:.2e}, kernel {:.2e} ({:.0} times less), free-running {free:.2e}",
            quantization.mean,
            kernel.mean,
            quantization.mean / kernel.mean.max(f64::MIN_POSITIVE),
        ),
        _ => format!(
            "\nmean over the steps: teacher-forced {:.2e}, free-running {free:.2e}",
            s.teacher_forced.mean
        ),
    })?;
    let e = &report.estimates;
    ui.line(&format!(
        "picture{}: PSNR {} dB, SSIM {}, MS-SSIM {}",
        if report.pairs.len() == 1 { "" } else { "s, mean ± standard error" },
        with_error(e.psnr_db, 2),
        with_error(e.ssim, 4),
        with_error(e.ms_ssim, 4),
    ))
}

/// `35.10 ± 0.42`; the mean alone for one sample.
fn with_error(e: Estimate, digits: usize) -> String {
    match e.standard_error.is_finite() {
        true => format!("{:.digits$} ± {:.digits$}", e.mean, e.standard_error),
        false => format!("{:.digits$}", e.mean),
    }
}

pub(super) fn text_tables(report: &TextReport, ui: &Ui) -> Result<()> {
    let mut passages = table(&["passage", "tokens", "mean KL", "same top", "parts at"]);
    for (i, p) in report.passages.iter().enumerate() {
        let name = if p.question.is_empty() { format!("window {i}") } else { p.question.clone() };
        let parts = match (p.first_divergence, &p.parted) {
            (Some(at), Some([base, variant])) => format!("{at}: {base:?} → {variant:?}"),
            _ => "never".into(),
        };
        let (kl, same) = (format!("{:.2e}", p.kl_mean), format!("{:.1} %", 100.0 * p.same_top));
        passages.add_row([name, p.tokens.to_string(), kl, same, parts]);
    }
    ui.line(&format!(
        "\nTokens that the baseline chose (or the text's), scored by both\n{passages}"
    ))?;
    flips(report, ui)?;
    let e = &report.llm;
    ui.line(&format!(
        "\n{} tokens: KL mean {:.2e} ± {:.1e}, median {:.2e}, p99 {:.2e}, max {:.2e}; same top {:.2} %\n\
         probability of the next token: mean {:+.2} %, RMS {:.2} %; perplexity {:.4} → {:.4} (x {:.4})",
        e.tokens,
        e.kl_mean,
        e.kl_se,
        e.kl_median,
        e.kl_p99,
        e.kl_max,
        100.0 * e.same_top,
        100.0 * e.dp_mean,
        100.0 * e.dp_rms,
        e.ppl_base,
        e.ppl,
        e.ppl_ratio,
    ))?;
    ui.line(&match (e.quantization_rel_l2, e.kernel_rel_l2) {
        (Some(quantization), Some(kernel)) => format!(
            "logits, relative L2: quantization {quantization:.2e}, kernel {kernel:.2e} ({:.0} times less)",
            quantization / kernel.max(f64::MIN_POSITIVE),
        ),
        _ => format!("logits, relative L2: {:.2e}", e.logits_rel_l2),
    })?;
    match &e.floor {
        Some(f) => ui.line(&format!(
            "floor, fp16 against fp32: KL mean {:.2e}, same top {:.2} %, logits {:.2e}",
            f.kl_mean,
            100.0 * f.same_top,
            f.logits_rel_l2
        )),
        None => Ok(()),
    }
}

/// Flips by the margin between the baseline's two likeliest tokens.
fn flips(report: &TextReport, ui: &Ui) -> Result<()> {
    let mut margins = table(&["p1 - p2", "tokens", "flips"]);
    for bin in report.by_margin.iter().filter(|bin| bin.tokens > 0) {
        let range = format!("{} to {}", bin.from, bin.to);
        let share = 100.0 * bin.flips as f64 / bin.tokens as f64;
        margins.add_row([range, bin.tokens.to_string(), format!("{} ({share:.1} %)", bin.flips)]);
    }
    ui.line(&format!("\nTokens that flip, by how sure the baseline was\n{margins}"))
}

/// What is attended to, worst first.
pub(super) fn attention_table(errors: &[AttentionError], ui: &Ui) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    let mut worst: Vec<&AttentionError> = errors.iter().collect();
    worst.sort_by(|a, b| b.kl_mean.total_cmp(&a.kl_mean));
    let mut rows = table(&["attention", "KL, nats", "strongest key differs", "entropy, nats"]);
    for a in worst.iter().take(WORST) {
        let (kl, flips) = (format!("{:.2e}", a.kl_mean), format!("{:.2} %", 100.0 * a.top_flips));
        rows.add_row([a.name.clone(), kl, flips, format!("{:.2}", a.entropy)]);
    }
    let shown = worst.len().min(WORST);
    ui.line(&format!("\nAttention probabilities, worst {shown} of {}\n{rows}", errors.len()))
}

/// The layers of a sweep, the most sensitive first.
pub(super) fn sweep_table(sweep: &Sweep, most: Option<usize>, ui: &Ui) -> Result<()> {
    let ranked = sweep.ranked();
    let text = ranked.iter().any(|layer| layer.kl_mean.is_some());
    let mut headings = vec!["layer", "format", "weights", "weight dB", "output dB"];
    headings.extend(text.then_some("KL, nats"));
    let mut rows = table(&headings);
    let db = |db: Option<f64>| db.map_or("-".to_string(), |db| format!("{db:.1}"));
    let shown = most.unwrap_or(SWEPT).min(ranked.len());
    for layer in &ranked[..shown] {
        let mut row = vec![
            layer.layer.clone(),
            layer.format.to_string(),
            layer.elements.to_string(),
            db(layer.weight_sqnr_db),
            db(layer.sqnr_db),
        ];
        row.extend(layer.kl_mean.map(|kl| format!("{kl:.2e}")));
        rows.add_row(row);
    }
    let total: f64 = ranked.iter().map(|layer| layer.noise).sum();
    let formats: std::collections::HashSet<_> = ranked.iter().map(|layer| layer.format).collect();
    let sum = match formats.len() {
        1 => format!("\nall layers together, if errors add up: {:.1} dB", -10.0 * total.log10()),
        _ => String::new(),
    };
    ui.line(&format!(
        "One layer at a time, the most sensitive {shown} of {}\n{rows}{sum}",
        ranked.len()
    ))
}

/// Two saved reports side by side.
pub(super) fn report_tables(two: &TwoReports, [a, b]: [&Path; 2], ui: &Ui) -> Result<()> {
    let (a, b) = (a.display().to_string(), b.display().to_string());
    let mut rows = table(&["", &a, &b]);
    for d in &two.differences {
        rows.add_row([d.name.clone(), d.a.to_string(), d.b.to_string()]);
    }
    if !two.differences.is_empty() {
        ui.line(&format!("{rows}\n"))?;
    }
    let mut rows = table(&["figure", &a, &b, "ratio"]);
    let some = |value: Option<f64>| value.map_or("-".to_string(), short);
    for f in two.figures.iter().filter(|f| f.a.is_some() || f.b.is_some()) {
        rows.add_row([f.name.clone(), some(f.a), some(f.b), some(f.ratio)]);
    }
    ui.line(&format!("{rows}"))
}

pub(super) fn check_table(checks: &[Check], ui: &Ui) -> Result<()> {
    let mut table = table(&["figure", "value", "tolerated", ""]);
    for check in checks {
        table.add_row([
            check.name.to_string(),
            short(check.value),
            format!("{} {}", if check.at_most { "≤" } else { "≥" }, short(check.limit)),
            if check.passed { "ok" } else { "FAILED" }.to_string(),
        ]);
    }
    ui.line(&format!("\n{table}"))
}

/// Small numbers with an exponent, others with four digits behind the point.
fn short(value: f64) -> String {
    let small = value != 0.0 && value.abs() < 1e-2;
    if small { format!("{value:.2e}") } else { format!("{value:.4}") }
}
