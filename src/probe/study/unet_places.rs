//! Claims about where the error arises: parts of the net quantized alone.

use super::unet::{Judged, UnetLab, fp16, painted};
use super::weights::{Weights, only};
use super::{Outcome, Section};
use crate::Result;
use crate::probe::attention_kl::AttentionError;
use crate::probe::compare::OnStage;
use crate::probe::compare_image::ImageReport;
use crate::probe::plot::{Axis, number};
use crate::probe::plot_grid::BarList;

/// A part of the net, by the names of its weights.
struct Part {
    name: &'static str,
    has: fn(&str) -> bool,
}

const REGIONS: [Part; 5] = [
    Part { name: "first and last convolution", has: |n| ends(n) },
    Part { name: "encoder (down blocks)", has: |n| n.starts_with("down_blocks.") && !time(n) },
    Part { name: "middle block", has: |n| n.starts_with("mid_block.") && !time(n) },
    Part { name: "decoder (up blocks)", has: |n| n.starts_with("up_blocks.") && !time(n) },
    Part { name: "time embedding", has: |n| time(n) },
];

const KINDS: [Part; 11] = [
    Part { name: "conv_in", has: |n| n.starts_with("conv_in.") },
    Part { name: "conv_out", has: |n| n.starts_with("conv_out.") },
    Part { name: "resnets, first convolution", has: |n| n.contains(".conv1.") },
    Part { name: "resnets, second convolution", has: |n| n.contains(".conv2.") },
    Part { name: "shortcuts of skips", has: |n| n.contains("conv_shortcut") },
    Part { name: "down- and upsamplers", has: |n| n.contains("samplers.") },
    Part {
        name: "attention: queries and keys",
        has: |n| n.contains(".to_q.") || n.contains(".to_k."),
    },
    Part {
        name: "attention: values and output",
        has: |n| n.contains(".to_v.") || n.contains(".to_out."),
    },
    Part {
        name: "projections around attention",
        has: |n| n.contains(".proj_in.") || n.contains(".proj_out."),
    },
    Part { name: "feed-forward", has: |n| n.contains(".ff.") },
    Part { name: "time embedding", has: |n| time(n) },
];

/// Layers that read a concatenation with a skip.
const CONCATENATED: Part = Part {
    name: "all that reads a skip",
    has: |n| n.starts_with("up_blocks.") && (n.contains(".conv1.") || n.contains("conv_shortcut")),
};

fn ends(name: &str) -> bool {
    name.starts_with("conv_in.") || name.starts_with("conv_out.")
}

fn time(name: &str) -> bool {
    name.contains("time_emb") || name.starts_with("add_embedding.")
}

/// A part and what its quantization alone does.
struct Alone {
    name: &'static str,
    weights: u64,
    judged: Judged,
}

impl Alone {
    /// Noise of the output for each million of weights.
    fn each_million(&self) -> f64 {
        self.judged.noise / (self.weights as f64 / 1e6)
    }
}

fn alone(lab: &mut UnetLab, parts: &[Part], on_stage: &mut OnStage<'_>) -> Result<Vec<Alone>> {
    let store = lab.store()?;
    let mut found = Vec::new();
    for part in parts {
        let (recipe, weights) = only(&store, "unet", part.has)?;
        if weights > 0 {
            let judged = lab.judge(part.name, &Weights::Recipe(recipe), on_stage)?;
            found.push(Alone { name: part.name, weights, judged });
        }
    }
    Ok(found)
}

/// U4, U6: parts of the net alone in int4.
pub(super) fn places(lab: &mut UnetLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let regions = alone(lab, &REGIONS, on_stage)?;
    let kinds = alone(lab, &KINDS, on_stage)?;
    let readers = alone(lab, &[CONCATENATED], on_stage)?;
    let base = {
        lab.set(&fp16()?, on_stage)?;
        let few = lab.few().to_vec();
        lab.again(&few, "fp16", on_stage)?
    };
    let store = lab.store()?;
    let few = lab.few().to_vec();
    let mut pictures = Vec::new();
    for part in REGIONS.iter().chain([&CONCATENATED]) {
        let (recipe, weights) = only(&store, "unet", part.has)?;
        if weights > 0 {
            let runs = lab.record(&few, &Weights::Recipe(recipe), part.name, on_stage)?;
            pictures.push((part.name, painted(&runs, &base)?));
        }
    }
    let report = lab.report(on_stage)?;
    let skip = skips(
        &regions,
        &kinds,
        &readers,
        &pictures.iter().map(|(n, p)| (*n, p.psnr)).collect::<Vec<_>>(),
    );
    Ok(vec![skip, attention(&kinds, &report)])
}

fn bars(rows: &[Alone]) -> String {
    let rows = rows.iter().map(|a| (a.name.to_string(), a.judged.db()));
    BarList::new(Axis::linear("SQNR of ε, dB (higher is better)"), rows)
        .svg("Parts of the net alone in int4")
}

fn table(rows: &[Alone]) -> Vec<Vec<String>> {
    let all: f64 = rows.iter().map(|a| a.judged.noise).sum();
    let each = rows.iter().map(|a| {
        vec![
            a.name.to_string(),
            number(a.weights as f64 / 1e6),
            number(a.judged.db()),
            number(100.0 * a.judged.noise / all),
            number(1e3 * a.each_million()),
        ]
    });
    each.collect()
}

const HEADINGS: [&str; 5] = [
    "part",
    "weights, 10⁶",
    "SQNR of ε, dB",
    "share of all noise, %",
    "noise per 10⁶ weights, 10⁻³",
];

fn skips(regions: &[Alone], kinds: &[Alone], read: &[Alone], pictures: &[(&str, f64)]) -> Section {
    let of = |list: &[Alone], word: &str| {
        list.iter()
            .find(|a| a.name.contains(word))
            .map_or((f64::NAN, f64::NAN), |a| (a.judged.noise, a.each_million()))
    };
    let all: f64 = kinds.iter().map(|a| a.judged.noise).sum();
    let share = |noise: f64| 100.0 * noise / all;
    let (shortcut, per_shortcut) = of(kinds, "shortcuts");
    let (first, per_first) = of(kinds, "first convolution");
    let (reading, _) = of(read, "skip");
    // A weight of a shortcut should then cost several times what one of another convolution does.
    let holds = per_shortcut > 3.0 * per_first;
    let title = "Halves of the net alone in int4";
    let svg = bars(regions);
    let sum: f64 = regions.iter().map(|a| a.judged.noise).sum();
    Section::new(
        "U4",
        "Do skip connections break?",
        "Skips join layers of different scales, so quantization breaks their alignment and the decoder suffers most.",
        "One part of the net at a time in int4, the rest in fp16; error of ε on the latents of the fp16 runs, and whole pictures.",
    )
    .found(
        Outcome::of(holds),
        format!(
            "The 1×1 shortcuts that read the skips make {} % of all noise, all layers that read a skip {} %. A weight of a \
             shortcut costs {} times what one of a resnet's first convolution does.",
            number(share(shortcut)),
            number(share(reading)),
            number(per_shortcut / per_first),
        ),
    )
    .number("shortcut_share", shortcut / all)
    .number("skip_readers_share", reading / all)
    .number("shortcut_over_conv1_per_weight", per_shortcut / per_first)
    .number("conv1_share", first / all)
    .number("sum_of_regions_noise", sum)
    .paragraph(
        "In this program a group of weights that share a scale never straddles the seam between the decoder's own channels and \
         the skip's, so each side has its own scales. Formats with one scale for a whole row or tensor do not have that \
         (see the formats).",
    )
    .figure(title, svg, "Teacher-forced, means over the pairs and five steps.")
    .table(&HEADINGS, table(regions))
    .table(
        &["part in int4", "PSNR of the picture, dB"],
        pictures.iter().map(|(name, psnr)| vec![(*name).to_string(), number(*psnr)]),
    )
}

fn attention(kinds: &[Alone], report: &ImageReport) -> Section {
    let mut ranked: Vec<&Alone> = kinds.iter().collect();
    ranked.sort_by(|a, b| b.each_million().total_cmp(&a.each_million()));
    let place = 1 + ranked.iter().position(|a| a.name.contains("queries")).unwrap_or(ranked.len());
    let find = |word: &str| kinds.iter().find(|a| a.name.contains(word));
    let (qk, vo) = (find("queries"), find("values"));
    let ratio = match (qk, vo) {
        (Some(a), Some(b)) => a.each_million() / b.each_million(),
        _ => f64::NAN,
    };
    let attentions: &[AttentionError] = &report.attention;
    let mean = |of: fn(&AttentionError) -> f64| {
        attentions.iter().map(of).sum::<f64>() / attentions.len().max(1) as f64
    };
    let (kl, flips, entropy) = (mean(|a| a.kl_mean), mean(|a| a.top_flips), mean(|a| a.entropy));
    let title = "Kinds of layers alone in int4";
    Section::new(
        "U6",
        "Is attention the weak spot?",
        "The softmax over query-key products is extremely sensitive, so attention suffers most from four bits.",
        "Each kind of layer alone in int4; and with all of the net in int4, the attention probabilities against those of fp16.",
    )
    .found(
        Outcome::of(place <= 2 && ratio > 1.0),
        format!(
            "By noise per weight queries and keys stand at place {place} of {}; a weight of theirs costs {} times what one of \
             values and output does. Attention probabilities diverge by {} nats on average, {} % of the queries look at another \
             place first.",
            ranked.len(),
            number(ratio),
            number(kl),
            number(100.0 * flips),
        ),
    )
    .number("rank_of_queries_and_keys", place as f64)
    .number("qk_over_vo_per_weight", ratio)
    .number("attention_kl_nats", kl)
    .number("attention_top_flips", flips)
    .number("attention_entropy_nats", entropy)
    .paragraph(format!(
        "The probabilities are spread over many places (entropy {} nats, as if over {} equal ones), so another first place \
         among near equals changes little of their mean.",
        number(entropy),
        number(entropy.exp()),
    ))
    .figure(title, bars(kinds), "Teacher-forced, means over the pairs and five steps.")
    .table(&HEADINGS, table(kinds))
}
