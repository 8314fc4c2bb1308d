//! Claims about number formats: every format on the same latents.

use super::imitate::{Change, Form, Imitation, Span};
use super::unet::{Judged, Painted, UnetLab, fp16, named, painted};
use super::weights::Weights;
use super::{Outcome, Section};
use crate::Result;
use crate::probe::compare::OnStage;
use crate::probe::plot::{Axis, Plot, number};
use crate::quant::Recipe;

/// A format and what it does.
struct Format {
    name: String,
    /// What is drawn as one line.
    kind: &'static str,
    judged: Judged,
}

/// U11, U14, U15: formats on a scale of bits.
pub(super) fn formats(lab: &mut UnetLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let statistics = lab.calibrated(false, on_stage)?;
    let recipe = Recipe::builtin("int4", "unet")?;
    let mut found = Vec::new();
    for (kind, format) in imitations() {
        let known = (format.outliers > 0.0).then_some(&*statistics);
        let weights = Weights::Change(recipe.clone(), Change::Imitation(&format, known));
        let judged = lab.judge(&format.name(), &weights, on_stage)?;
        found.push(Format { name: format.name(), kind, judged });
    }
    for name in
        ["int4-g64-uniform", "int4-g64-cubic", "int4-g32-uniform", "int4-g32-cubic", "int8-g64"]
    {
        let judged = lab.judge(name, &named(name)?, on_stage)?;
        found.push(Format { name: name.into(), kind: "inknib's", judged });
    }
    let few = lab.few().to_vec();
    lab.set(&fp16()?, on_stage)?;
    let base = lab.again(&few, "fp16", on_stage)?;
    let eight = lab.record(&few, &named("int8")?, "int8", on_stage)?;
    let eight = painted(&eight, &base)?;
    let plain = Imitation::plain(8, Span::Channel);
    let weights = Weights::Change(recipe, Change::Imitation(&plain, None));
    let channel = painted(&lab.record(&few, &weights, "int8 per channel", on_stage)?, &base)?;
    Ok(vec![eight_bits(&found, &eight, &channel), redundancy(&found), scales(&found)])
}

/// Formats of which there are no kernels, by what is drawn as one line.
pub(super) fn imitations() -> Vec<(&'static str, Imitation)> {
    let four = |span| Imitation::plain(4, span);
    let asymmetric = |span| Imitation { form: Form::Asymmetric, ..four(span) };
    let searched = |f: Imitation| Imitation { search: true, ..f };
    let spans = [Span::Tensor, Span::Channel, Span::Group(64), Span::Group(32), Span::Group(16)];
    let mut all: Vec<(&'static str, Imitation)> = Vec::new();
    all.extend(spans.map(|s| ("symmetric, largest at the end", four(s))));
    all.extend(spans.map(|s| ("symmetric, range searched", searched(four(s)))));
    all.extend(spans[1..].iter().map(|s| ("asymmetric", asymmetric(*s))));
    for outliers in [0.005, 0.02, 0.05] {
        all.push(("outlier columns in fp16", Imitation { outliers, ..four(Span::Channel) }));
    }
    all.extend(
        [2, 3, 5, 6, 8]
            .map(|bits| ("bits, g64 searched", searched(Imitation::plain(bits, Span::Group(64))))),
    );
    all.extend([8].map(|bits| ("int8", Imitation::plain(bits, Span::Channel))));
    all.push(("int8", Imitation::plain(8, Span::Tensor)));
    all
}

fn db(found: &[Format], name: &str) -> f64 {
    found.iter().find(|f| f.name == name).map_or(f64::NAN, |f| f.judged.db())
}

fn rows(found: &[Format]) -> Vec<Vec<String>> {
    let mut sorted: Vec<&Format> = found.iter().collect();
    sorted.sort_by(|a, b| a.judged.bits.total_cmp(&b.judged.bits));
    let row = |f: &&Format| vec![f.name.clone(), number(f.judged.bits), number(f.judged.db())];
    sorted.iter().map(row).collect()
}

fn eight_bits(found: &[Format], eight: &Painted, channel: &Painted) -> Section {
    let (tensor, row, group) =
        (db(found, "int8 per tensor"), db(found, "int8 per channel"), db(found, "int8-g64"));
    Section::new(
        "U11",
        "Eight bits need no rescue",
        "Even INT8 needs careful calibration and quantization-aware training.",
        "Weights rounded to the nearest of 256 values, without calibration: one scale per tensor, per channel, and per group of \
         64; activations stay as they are.",
    )
    .found(
        Outcome::of(eight.psnr < 40.0),
        format!(
            "ε keeps {} dB with one scale per tensor, {} dB per channel, {} dB in groups of 64; pictures are at {} dB PSNR \
             (groups) and {} dB (channels) of those of fp16.",
            number(tensor),
            number(row),
            number(group),
            number(eight.psnr),
            number(channel.psnr),
        ),
    )
    .number("int8_per_tensor_eps_db", tensor)
    .number("int8_per_channel_eps_db", row)
    .number("int8_g64_eps_db", group)
    .number("int8_g64_psnr_db", eight.psnr)
    .number("int8_per_channel_psnr_db", channel.psnr)
    .number("int8_g64_ssim", eight.ssim)
    .paragraph(
        "What is said of INT8 comes from the time when activations were quantized as well, which is another, harder problem.",
    )
}

fn redundancy(found: &[Format]) -> Section {
    let name = |bits: u32| format!("int{bits} g64, searched");
    let all = [2, 3, 4, 5, 6, 8];
    let points: Vec<(f64, f64)> =
        all.iter().map(|b| (f64::from(*b), db(found, &name(*b)))).collect();
    let slope = |a: u32, b: u32| (db(found, &name(b)) - db(found, &name(a))) / f64::from(b - a);
    let (low, high) = (slope(2, 4), slope(4, 8));
    let plot = Plot::new(Axis::linear("bits of a code"), Axis::linear("SQNR of ε, dB"))
        .line("g64, searched", points);
    let title = "What each bit buys";
    Section::new(
        "U14",
        "Is there no redundancy to spend?",
        "UNets are small and have little redundancy, so four bits leave nothing to spare.",
        "All large weights in 2 to 8 bits, groups of 64, scales searched for the least squared error.",
    )
    .found(
        // 6 dB a bit is what rounding itself does: then no bit is worth more than another, and no wall is met at four.
        Outcome::of(low > 9.0),
        format!(
            "Each bit buys {} dB between 2 and 4 bits and {} dB between 4 and 8; rounding alone gives 6.02. At four bits there \
             is no cliff; 2 bits leave {} dB.",
            number(low),
            number(high),
            number(db(found, &name(2))),
        ),
    )
    .number("db_per_bit_2_to_4", low)
    .number("db_per_bit_4_to_8", high)
    .number("int2_db", db(found, &name(2)))
    .figure(title, plot.svg(title), "Teacher-forced, means over the pairs and five steps.")
    .paragraph(
        "Rounding after training is what is limited here. With training, UNets of 2 bits have been reported to paint as well as \
         their originals (BitsFusion, arXiv 2406.04333); that is outside of this study.",
    )
}

fn scales(found: &[Format]) -> Section {
    let (tensor, channel, g64, g32) = (
        db(found, "int4 per tensor"),
        db(found, "int4 per channel"),
        db(found, "int4 g64"),
        db(found, "int4 g32"),
    );
    let (even, cubic) = (db(found, "int4-g64-uniform"), db(found, "int4-g64-cubic"));
    let kept = db(found, "int4 per channel, 2.0 % of columns fp16");
    let kinds = [
        "symmetric, largest at the end",
        "symmetric, range searched",
        "asymmetric",
        "outlier columns in fp16",
        "inknib's",
    ];
    let mut plot = Plot::new(
        Axis::linear("bits per weight of the UNet, everything counted"),
        Axis::linear("SQNR of ε, dB"),
    );
    for kind in kinds {
        let points = found.iter().filter(|f| f.kind == kind && f.judged.bits < 9.0).map(|f| {
            let label =
                format!("{}: {} bits, {} dB", f.name, number(f.judged.bits), number(f.judged.db()));
            ((f.judged.bits, f.judged.db()), label)
        });
        plot = plot.scatter(kind, points.collect::<Vec<_>>());
    }
    let title = "Formats by bits";
    Section::new(
        "U15",
        "Where the scales are matters most",
        "Per tensor is worse than per channel, and that worse than groups; asymmetric codes and outlier columns help.",
        "The same weights in many formats of four bits; bits per weight count scales, offsets and all layers that stay in 16 bits.",
    )
    .found(
        match (tensor < channel && channel < g64 && g64 < g32, kept > g64) {
            (true, true) => Outcome::Holds,
            (true, false) => Outcome::UnderConditions,
            _ => Outcome::DoesNotHold,
        },
        format!(
            "One scale per tensor leaves {} dB, per channel {}, groups of 64 {}, of 32 {}. Searched scales and cubic levels, at the \
             bits of groups of 64: {} dB (even levels {}). Channels with 2 % of the columns in fp16 (LLM.int8()'s idea): {} dB.",
            number(tensor),
            number(channel),
            number(g64),
            number(g32),
            number(cubic),
            number(even),
            number(kept),
        ),
    )
    .number("int4_per_tensor_db", tensor)
    .number("int4_per_channel_db", channel)
    .number("int4_g64_db", g64)
    .number("int4_g32_db", g32)
    .number("int4_g64_cubic_db", cubic)
    .number("int4_g64_uniform_db", even)
    .number("outlier_columns_db", kept)
    .figure(title, plot.svg(title), "Teacher-forced, means over the pairs and five steps; point at a dot for its name.")
    .table(&["format", "bits per weight", "SQNR of ε, dB"], rows(found))
}
