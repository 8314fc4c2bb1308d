//! What the pages of both families have in common.

use super::attention_kl::AttentionError;
use super::compare::{Check, LayerError, Verdict};
use super::page::Page;
use super::plot::{Axis, Plot, number};
use super::plot_grid::BarList;

/// What was compared, in words.
#[derive(Clone, Debug, Default)]
pub struct About {
    pub model: String,
    /// The variant's weights as the user wrote them.
    pub variant: String,
    pub guidance: f64,
    /// Name and value: adapter, kernels, steps.
    pub conditions: Vec<(String, String)>,
}

impl About {
    pub(super) fn title(&self) -> String {
        format!("{} against fp16: {}", self.variant, self.model)
    }

    /// `over`: of what the figures are means.
    pub(super) fn lead(&self, page: &mut Page, bits: f64, over: &str) {
        page.lead(&format!(
            "What is lost when {} keeps its weights at {} bits on average, everything resident counted? Measured on {over}, \
             with nothing but the weights to tell the runs apart.",
            self.model,
            number(bits)
        ));
    }

    pub(super) fn method(&self, page: &mut Page) {
        page.heading("How it was measured");
        page.table(
            &["", ""],
            self.conditions.iter().map(|(name, value)| vec![name.clone(), value.clone()]),
        );
        page.paragraph(
            "The floor is the same model with 32-bit instead of 16-bit weights: what lies there is rounding and no \
             quantization. Errors are relative: ‖a − b‖ / ‖b‖, b being the baseline; SQNR in dB is −20·log₁₀ of that. \
             The JSON that the same command prints with --json holds every number of this page.",
        );
    }
}

/// A sentence about the dashed line.
pub(super) fn floor_note(measured: bool) -> &'static str {
    match measured {
        true => "Dashed: the noise floor, fp16 against fp32 weights in the first pair.",
        false => "The noise floor was not measured.",
    }
}

pub(super) fn checks(page: &mut Page, checks: &[Check], verdict: Verdict) {
    let rows = checks.iter().map(|check| {
        let relation = if check.at_most { "≤" } else { "≥" };
        vec![
            check.name.to_string(),
            number(check.value),
            format!("{relation} {}", number(check.limit)),
            if check.passed { "ok".into() } else { "failed".into() },
        ]
    });
    page.table(&["tolerated", "value", "limit", ""], rows);
    let words = match verdict {
        Verdict::Pass => "Everything is within its limits.",
        Verdict::Fail => "Not everything is within its limits.",
    };
    page.paragraph(words);
}

/// Layers and attentions of the chart of the worst.
const WORST: usize = 24;

/// Where in the net the error arises.
pub(super) fn layer_charts(
    page: &mut Page,
    layers: &[LayerError],
    attention: &[AttentionError],
    place: &str,
) {
    page.heading("Layer by layer");
    page.paragraph(
        "Both nets read the same input; every value on the way through is compared. Everything before a layer is \
         quantized too, so errors gather with depth. Higher is better: 20 dB is an error of a tenth, 40 dB of a \
         hundredth.",
    );
    let depth = |of: &dyn Fn(&LayerError) -> Option<f64>| {
        let points = layers.iter().enumerate();
        points.filter_map(|(i, l)| of(l).map(|v| (i as f64, v))).collect::<Vec<_>>()
    };
    let scattered = layers
        .iter()
        .enumerate()
        .map(|(i, l)| ((i as f64, l.sqnr_db), format!("{}: {} dB", l.name, number(l.sqnr_db))));
    let plot = Plot::new(
        Axis::linear("place in the net, in order of computation"),
        Axis::linear("SQNR, dB"),
    )
    .scatter("layers", scattered)
    .floor("floor: fp32 weights", depth(&|l| l.floor_sqnr_db));
    let title = "Signal to noise along the net";
    let caption = format!(
        "At {place}; point at a dot for its name. Layers in which nothing differs are left out."
    );
    page.figure(title, &plot.svg(title), &caption);
    let mut worst: Vec<&LayerError> = layers.iter().filter(|l| l.sqnr_db.is_finite()).collect();
    worst.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
    let rows = worst.iter().take(WORST).map(|l| (l.name.clone(), l.sqnr_db));
    let title = "The layers that suffer most";
    let least = worst
        .iter()
        .filter_map(|l| l.floor_sqnr_db)
        .filter(|db| db.is_finite())
        .fold(f64::INFINITY, f64::min);
    let measured = layers.iter().any(|l| l.floor_sqnr_db.is_some());
    let floor = match (measured, least.is_finite()) {
        (true, true) => format!(" The floor is at {} dB at its lowest.", number(least)),
        (true, false) => " In the floor nothing differs.".to_string(),
        (false, _) => String::new(),
    };
    let caption =
        format!("The {} lowest of {}, at {place}.{floor}", worst.len().min(WORST), layers.len());
    page.figure(title, &BarList::new(Axis::linear("SQNR, dB"), rows).svg(title), &caption);
    if attention.is_empty() {
        return;
    }
    let mut worst: Vec<&AttentionError> = attention.iter().collect();
    worst.sort_by(|a, b| b.kl_mean.total_cmp(&a.kl_mean));
    let rows = worst.iter().take(WORST).map(|a| (a.name.clone(), a.kl_mean));
    let title = "What is attended to";
    let flips = worst.iter().map(|a| a.top_flips).fold(0.0, f64::max);
    let caption = format!(
        "Kullback-Leibler divergence of the attention probabilities from the baseline's, mean over heads and queries. At \
         most {} % of the queries of one attention look at another key first.",
        number(100.0 * flips)
    );
    page.figure(
        title,
        &BarList::new(Axis::linear("KL divergence, nats"), rows).svg(title),
        &caption,
    );
}
