//! Claims about number formats of language models: every format on the same tokens, and scales for channels of very
//! different ranges.

use super::imitate::{Change, Imitation, Span};
use super::text::{Judged, TextLab, matrix, milli, named};
use super::unet_formats::imitations;
use super::weights::Weights;
use super::{Outcome, Section};
use crate::Result;
use crate::diffusion::rng::{Rng, RngKind};
use crate::probe::compare::OnStage;
use crate::probe::plot::{Axis, Plot, number};
use crate::quant::metrics::sqnr_db;
use crate::quant::{Layout, Recipe};
use crate::weights::WeightStore;

/// A format and what it does.
struct Format {
    name: String,
    /// What is drawn as one line.
    kind: &'static str,
    judged: Judged,
}

/// L5: formats on a scale of bits.
pub(super) fn formats(lab: &mut TextLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let calibrated = lab.calibrated(on_stage)?;
    let recipe = Recipe::builtin("int4", "llm")?;
    let mut found = Vec::new();
    for (kind, format) in imitations() {
        let known = (format.outliers > 0.0).then_some(&calibrated.statistics);
        let weights = Weights::Change(recipe.clone(), Change::Imitation(&format, known));
        let judged = lab.judge(&format.name(), &weights, on_stage)?;
        found.push(Format { name: format.name(), kind, judged });
    }
    for name in
        ["int4-g64-uniform", "int4-g64-cubic", "int4-g32-uniform", "int4-g32-cubic", "int8-g64"]
    {
        let judged = lab.judge(name, &named(name)?, on_stage)?;
        found.push(Format { name: name.into(), kind: OWN, judged });
    }
    Ok(vec![scales(&found)])
}

const OWN: &str = "inknib's";

fn kl(found: &[Format], name: &str) -> f64 {
    found.iter().find(|f| f.name == name).map_or(f64::NAN, |f| f.judged.kl())
}

fn pareto(found: &[Format]) -> String {
    let kinds = [
        "symmetric, largest at the end",
        "symmetric, range searched",
        "asymmetric",
        "outlier columns in fp16",
        OWN,
    ];
    let mut plot = Plot::new(
        Axis::linear("bits per weight of the whole model, everything counted"),
        Axis::log("mean KLD, nats"),
    );
    for kind in kinds {
        let points = found.iter().filter(|f| f.kind == kind && f.judged.bits < 7.0).map(|f| {
            let label = format!(
                "{}: {} bits, {} nats",
                f.name,
                number(f.judged.bits),
                number(f.judged.kl())
            );
            ((f.judged.bits, f.judged.kl()), label)
        });
        plot = plot.scatter(kind, points.collect::<Vec<_>>());
    }
    plot.svg("Formats by bits")
}

fn by_bits(found: &[Format]) -> String {
    let points = [2u32, 3, 4, 5, 6, 8]
        .map(|bits| (f64::from(bits), kl(found, &format!("int{bits} g64, searched"))));
    Plot::new(Axis::linear("bits of a code"), Axis::log("mean KLD, nats"))
        .line("g64, searched", points)
        .svg("What each bit buys")
}

const OUTLIERS: &str = "int4 per channel, 2.0 % of columns fp16";
/// What the section's numbers are called, and of which format each is.
const NUMBERS: [(&str, &str); 13] = [
    ("int4_per_tensor_kl_nats", "int4 per tensor"),
    ("int4_per_channel_kl_nats", "int4 per channel"),
    ("int4_g64_kl_nats", "int4 g64"),
    ("int4_g32_kl_nats", "int4 g32"),
    ("int4_g64_asymmetric_kl_nats", "int4 g64, asymmetric"),
    ("int4_g64_cubic_kl_nats", "int4-g64-cubic"),
    ("int4_g64_uniform_kl_nats", "int4-g64-uniform"),
    ("outlier_columns_kl_nats", OUTLIERS),
    ("int8_per_tensor_kl_nats", "int8 per tensor"),
    ("int8_per_channel_kl_nats", "int8 per channel"),
    ("int8_g64_kl_nats", "int8-g64"),
    ("int2_kl_nats", "int2 g64, searched"),
    ("int3_kl_nats", "int3 g64, searched"),
];

fn scales(found: &[Format]) -> Section {
    let of = |name: &str| kl(found, name);
    let (tensor, channel) = (of("int4 per tensor"), of("int4 per channel"));
    let (g64, g32) = (of("int4 g64"), of("int4 g32"));
    let (even, cubic) = (of("int4-g64-uniform"), of("int4-g64-cubic"));
    // 4.5 bits each.
    let asymmetric = of("int4 g64, asymmetric");
    let kept = of(OUTLIERS);
    let ordered = tensor > channel && channel > g64 && g64 > g32;
    let outcome = match (ordered, asymmetric < g32, cubic < even) {
        (true, true, true) => Outcome::Holds,
        (false, false, false) => Outcome::DoesNotHold,
        _ => Outcome::UnderConditions,
    };
    let mut sorted: Vec<&Format> = found.iter().collect();
    sorted.sort_by(|a, b| a.judged.bits.total_cmp(&b.judged.bits));
    Section::new(
        "L5",
        "Where the scales are matters most",
        "One scale per tensor is worse than one per channel, and that worse than groups; asymmetric codes and uneven levels help \
         further.",
        "Every matrix of the model in many formats, embeddings with them, on the same tokens; bits per weight count scales, \
         offsets and all that stays in 16 bits. It holds if the order is as is said, asymmetric codes in groups of 64 beat \
         symmetric ones in groups of 32 (4.5 bits both), and cubic levels beat even ones.",
    )
    .found(
        outcome,
        format!(
            "Mean KLD, 10⁻³ nats: one scale per tensor {}, per channel {}, groups of 64 {}, of 32 {}; asymmetric in groups of 64 {}. \
             Cubic levels {} against {} of even ones, with searched scales and the embedding in int8.",
            milli(tensor),
            milli(channel),
            milli(g64),
            milli(g32),
            milli(asymmetric),
            milli(cubic),
            milli(even),
        ),
    )
    .numbers(NUMBERS.map(|(name, format)| (name, of(format))))
    .paragraph(format!(
        "Outlier columns (LLM.int8()'s idea): with one scale per channel and the 2 % of the columns with the largest inputs in fp16 \
         the KLD is {}, without them {} (10⁻³ nats). Eight bits need no care: {} per tensor, {} per channel, {} in groups of 64.",
        milli(kept),
        milli(channel),
        milli(of("int8 per tensor")),
        milli(of("int8 per channel")),
        milli(of("int8-g64")),
    ))
    .paragraph(
        "Neighbours in the table are often closer to each other than their standard errors (±). All formats met the same tokens, \
         so that their differences are known better than that, but not every step of the order is certain.",
    )
    .figure("Formats by bits", pareto(found), "Lower and further left is better; point at a dot for its name.")
    .figure("What each bit buys", by_bits(found), "Each bit halves the step, which is a quarter of the error's energy.")
    .table(
        &["format", "bits per weight", "mean KLD, 10⁻³ nats", "±", "same top, %"],
        sorted.iter().map(|f| {
            vec![
                f.name.clone(),
                number(f.judged.bits),
                milli(f.judged.kl()),
                milli(f.judged.error.kl_se),
                number(100.0 * f.judged.error.same_top),
            ]
        }),
    )
}

/// Ranges of the channels of the example.
const RANGES: [f32; 2] = [0.25, 8.0];
/// Rows and columns of the example.
const SIDE: usize = 256;

/// SQNR in dB of the values with the small and with the large range, in a matrix whose rows (else columns) have these
/// ranges in turn.
fn example(span: Span, by_row: bool) -> [f64; 2] {
    let normal = Rng::new(RngKind::Cpu, 5).randn(SIDE * SIDE);
    let of = |at: usize| if by_row { at / SIDE % 2 } else { at % SIDE % 2 };
    // Cut at three standard deviations, which the range stands for.
    let value = |(at, v): (usize, &f32)| v.clamp(-3.0, 3.0) / 3.0 * RANGES[of(at)];
    let values: Vec<f32> = normal.iter().enumerate().map(value).collect();
    let rounded = Imitation::plain(4, span).round(&values, Layout::linear(SIDE, SIDE), None);
    [0, 1].map(|which| {
        let pick = |from: &[f32]| -> Vec<f32> {
            from.iter().enumerate().filter(|(at, _)| of(*at) == which).map(|(_, v)| *v).collect()
        };
        // Without the sign of a zero.
        sqnr_db(&pick(&rounded), &pick(&values)) + 0.0
    })
}

/// The range of the widest row over that of the narrowest, of the weights of a model: median and largest.
fn row_ranges(store: &WeightStore) -> Result<[f64; 2]> {
    let mut ratios = Vec::new();
    for name in store.names() {
        let Some((values, [_, columns])) = matrix(store, name)? else { continue };
        let reach = |row: &[f32]| row.iter().fold(0f32, |m, v| m.max(v.abs()));
        let ranges = values.chunks_exact(columns.max(1)).map(reach).filter(|r| *r > 0.0);
        let (low, high) = ranges.fold((f32::INFINITY, 0f32), |(a, b), r| (a.min(r), b.max(r)));
        if high > 0.0 {
            ratios.push(f64::from(high / low));
        }
    }
    ratios.sort_by(f64::total_cmp);
    let at = |i: usize| ratios.get(i).copied().unwrap_or(f64::NAN);
    Ok([at(ratios.len() / 2), at(ratios.len().saturating_sub(1))])
}

/// L6: an example on paper, and how far the model is from it.
pub(super) fn ranges(lab: &mut TextLab, _: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let spans = [
        (Span::Tensor, "one for all"),
        (Span::Channel, "one for each row"),
        (Span::Group(64), "one for each 64 of a row"),
    ];
    let rows = spans.map(|(span, name)| (name, example(span, true), example(span, false)));
    let [median, largest] = row_ranges(&lab.store()?)?;
    let (ruined, saved, mixed) = (rows[0].1[0], rows[1].1[0], rows[2].2[0]);
    let cells = |(name, by_row, by_column): &(&str, [f64; 2], [f64; 2])| {
        let values = by_row.iter().chain(by_column).map(|db| number(*db));
        [name.to_string()].into_iter().chain(values).collect::<Vec<String>>()
    };
    Ok(vec![
        Section::new(
            "L6",
            "Small channels under a large scale",
            "One scale for channels of very different ranges (±0.25 and ±8) ruins the small ones.",
            "A matrix of normal numbers, of which every second row, or every second column, has a range of ±0.25 and the others of \
             ±8, in four bits. It holds if the small rows keep less than 3 dB under one scale and more than 15 dB under their own.",
        )
        .found(
            match (ruined < 3.0, saved > 15.0) {
                (true, true) => Outcome::Holds,
                (false, false) => Outcome::DoesNotHold,
                _ => Outcome::UnderConditions,
            },
            format!(
                "Under one scale the small rows keep {} dB: all of them become zero. With a scale for each row they keep {} dB. \
                 Where the small channels are columns, which share the scales of rows and groups with large ones, no scale of this \
                 kind saves them ({} dB in groups of 64).",
                number(ruined),
                number(saved),
                number(mixed),
            ),
        )
        .number("small_rows_per_tensor_db", ruined)
        .number("small_rows_per_row_db", saved)
        .number("small_columns_in_groups_db", mixed)
        .number("median_range_of_rows", median)
        .number("largest_range_of_rows", largest)
        .paragraph(format!(
            "In this model the widest row of a matrix reaches {} times as far as the narrowest (median over its matrices; {} at the \
             most), not 32 times as in the example. Small columns do no harm by themselves: they matter where their inputs \
             are large, which is when AWQ scales them up before rounding (M).",
            number(median),
            number(largest),
        ))
        .table(
            &["scale", "small rows, dB", "large rows, dB", "small columns, dB", "large columns, dB"],
            rows.iter().map(cells),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_rows_vanish_and_come_back() {
        // A step of 8/7 is beyond all of ±0.25, so that zeros are left: 0 dB.
        assert_eq!(example(Span::Tensor, true)[0], 0.0);
        // Rows of 256 normal numbers in 15 levels: 17 dB, as in imitate.rs, and alike for both ranges.
        let [small, large] = example(Span::Channel, true);
        assert!((small - large).abs() < 1.0 && small > 15.0, "{small} {large}");
        assert_eq!(example(Span::Group(64), false)[0], 0.0);
    }
}
