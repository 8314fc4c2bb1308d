//! The methods that find codes, side by side on the same tokens, and what calibration costs.

use std::time::Instant;

use super::text::{Judged, TextLab, milli};
use super::weights::{Q4_0, Weights, within};
use super::{Outcome, Section};
use crate::Result;
use crate::probe::compare::OnStage;
use crate::probe::plot::{Axis, Plot, number};
use crate::quant::{Recipe, Statistics};
use crate::weights::{Method, WeightStore};

/// How weights are made.
enum How {
    Recipe(Recipe),
    /// By a method that has seen calibration data.
    Calibrated(Recipe, Method),
    /// So too, but for the embedding.
    TableApart(Recipe, Method),
}

/// A method and what it does.
struct Made {
    name: String,
    /// Seconds for the codes and SQNR of the weights in dB, of a method that was calibrated.
    codes: Option<(f64, f64)>,
    judged: Judged,
}

/// What the budget asks for, and what the goal allows.
const BITS: f64 = 4.63;
const MOST: f64 = 4.65;
const BASELINE: &str = "Q4_0";
const PLAIN: &str = "int4";
const GPTQ: &str = "int4, GPTQ";
const AWQ: &str = "int4, AWQ";

fn budget_name(calibrated: bool) -> String {
    format!("--bits {BITS}{}", if calibrated { ", GPTQ" } else { "" })
}

/// Everything that is compared. A net of which much stays in 16 bits may not fit the budget, which is then left out.
fn plans(store: &WeightStore, statistics: &Statistics) -> Result<Vec<(String, How)>> {
    let int4 = Recipe::builtin("int4", "llm")?;
    let budget = |known| within(store, (&int4, BITS), known);
    let recipe = |words: &str| Recipe::from_argument(words, "llm").map(How::Recipe);
    let mut all = vec![
        (BASELINE.to_string(), How::Recipe(Recipe::parse("q4_0", Q4_0, "llm")?)),
        (PLAIN.into(), recipe("int4")?),
        ("int4, groups of 32".into(), recipe("int4-g32-cubic")?),
        ("int4-quality".into(), recipe("int4-quality")?),
    ];
    let plain = budget(None)?;
    all.extend(plain.clone().map(|r| (budget_name(false), How::Recipe(r))));
    let calibrated = |method| How::Calibrated(int4.clone(), method);
    all.extend([
        ("int4, imatrix".into(), calibrated(Method::Imatrix)),
        (AWQ.into(), calibrated(Method::Awq)),
        (GPTQ.into(), calibrated(Method::Gptq)),
    ]);
    let known = budget(Some(statistics))?;
    all.extend(known.map(|r| (budget_name(true), How::Calibrated(r, Method::Gptq))));
    let apart = format!("--bits {BITS}, GPTQ but for the embedding");
    all.extend(plain.map(|r| (apart, How::TableApart(r, Method::Gptq))));
    all.push(("int8".into(), recipe("int8")?));
    Ok(all)
}

/// L9, M: methods, from the plainest to the most careful.
pub(super) fn methods(lab: &mut TextLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let calibrated = lab.calibrated(on_stage)?;
    let store = lab.store()?;
    let mut found = Vec::new();
    for (name, how) in plans(&store, &calibrated.statistics)? {
        on_stage(&name, 0, 0);
        let (weights, codes) = match how {
            How::Recipe(recipe) => (Weights::Recipe(recipe), None),
            How::Calibrated(recipe, method) => {
                packed(lab, &store, (&recipe, method), &calibrated.statistics)?
            }
            How::TableApart(recipe, method) => {
                packed(lab, &store, (&recipe, method), &tables_apart(&calibrated.statistics))?
            }
        };
        let judged = lab.judge(&name, &weights, on_stage)?;
        found.push(Made { name, codes, judged });
    }
    let tokens = calibrated.statistics.layers.values().map(|l| l.rows).fold(0.0, f64::max);
    Ok(vec![training(&found, calibrated.seconds, tokens), table(&found)])
}

/// What calibration knows without the tables of tokens: one that is the head as well was seen as the head alone.
fn tables_apart(statistics: &Statistics) -> Statistics {
    let mut rest = statistics.clone();
    rest.layers.retain(|name, _| !["embed_tokens.", "wte."].iter().any(|part| name.contains(part)));
    rest
}

/// Packed weights, the seconds that they took, and their SQNR in dB.
fn packed(
    lab: &TextLab,
    store: &WeightStore,
    how: (&Recipe, Method),
    statistics: &Statistics,
) -> Result<(Weights<'static>, Option<(f64, f64)>)> {
    let start = Instant::now();
    let file = lab.options.scratch.join("study-llm.partial.safetensors");
    let (weights, report) = Weights::packed(store, how, statistics, &file)?;
    let codes = (start.elapsed().as_secs_f64(), report.sqnr_db.unwrap_or(f64::NAN));
    Ok((weights, Some(codes)))
}

fn find<'a>(found: &'a [Made], name: &str) -> Option<&'a Made> {
    found.iter().find(|m| m.name == name)
}

fn training(found: &[Made], seconds: f64, tokens: f64) -> Section {
    let kl = |name: &str| find(found, name).map_or(f64::NAN, |m| m.judged.kl());
    let codes =
        |name: &str| find(found, name).and_then(|m| m.codes).unwrap_or((f64::NAN, f64::NAN));
    let (gptq, awq, imatrix) = (codes(GPTQ), codes(AWQ), codes("int4, imatrix"));
    let (gptq_seconds, awq_seconds) = (gptq.0, awq.0);
    Section::new(
        "L9",
        "Is that training?",
        "GPTQ and AWQ are quantization-aware training.",
        "Both were run here and timed. Training changes weights by gradients of a loss, over many passes; these methods read some \
         text once, forwards, note what each layer is given, and then choose each layer's codes.",
    )
    .found(
        Outcome::DoesNotHold,
        format!(
            "No gradient was computed: the model went over {} tokens once ({} s), then GPTQ took {} s for the codes and AWQ {} s. Mean \
             KLD, 10⁻³ nats: {} without calibration, {} with AWQ, {} with GPTQ.",
            number(tokens),
            number(seconds),
            number(gptq_seconds),
            number(awq_seconds),
            milli(kl(PLAIN)),
            milli(kl(AWQ)),
            milli(kl(GPTQ)),
        ),
    )
    .number("calibration_tokens", tokens)
    .number("calibration_seconds", seconds)
    .number("gptq_seconds", gptq_seconds)
    .number("awq_seconds", awq_seconds)
    .number("int4_kl_nats", kl(PLAIN))
    .number("awq_kl_nats", kl(AWQ))
    .number("gptq_kl_nats", kl(GPTQ))
    .number("gptq_weight_sqnr_db", gptq.1)
    .number("imatrix_weight_sqnr_db", imatrix.1)
    .paragraph(format!(
        "They are quantization after training (PTQ). GPTQ's weights are even further from the original ones than those of the \
         nearest levels are: {} dB SQNR against {} dB of the method that only weighs errors by their inputs. What it keeps is \
         the output of each layer: an error in one column is taken back by the next.",
        number(gptq.1),
        number(imatrix.1),
    ))
}

fn table(found: &[Made]) -> Section {
    let base = find(found, BASELINE);
    let reached = |m: &Made, base: &Made| {
        m.judged.bits <= MOST
            && m.judged.kl() <= 0.75 * base.judged.kl()
            && m.judged.error.same_top > base.judged.error.same_top
    };
    // Named before anything was measured: the verdict does not go by whatever came out best.
    let plain = find(found, &budget_name(false)).filter(|m| m.judged.bits <= MOST);
    let words = "With --bits, formats are given out so that the sum of the noise they are expected to make is least: by the weights' \
                 own errors, or with calibration by those of the layers' outputs. But for the embedding: formats as without \
                 calibration, and the table of tokens gets the nearest levels. Where that table is the head as well, calibration has \
                 seen what the head reads, and GPTQ may spoil the rows that are looked up.";
    let (outcome, finding) = match (base, plain) {
        (Some(base), Some(plain)) => (Outcome::of(reached(plain, base)), against(plain, base)),
        _ => (Outcome::NotTested, format!("No budget came to {MOST} bits.")),
    };
    let mut plot = Plot::new(
        Axis::linear("bits per weight of the whole model, everything counted"),
        Axis::log("mean KLD, nats"),
    );
    for (kind, calibrated) in [("without calibration", false), ("with calibration", true)] {
        let points =
            found.iter().filter(|m| m.codes.is_some() == calibrated && m.judged.bits < 7.0);
        let points = points.map(|m| {
            let label = format!(
                "{}: {} bits, {} nats",
                m.name,
                number(m.judged.bits),
                number(m.judged.kl())
            );
            ((m.judged.bits, m.judged.kl()), label)
        });
        plot = plot.scatter(kind, points.collect::<Vec<_>>());
    }
    let title = "Methods by bits";
    let mut section = Section::new(
        "M",
        "What helps",
        "Four bits for a whole language model are better than llama.cpp's Q4_0 at no more than 4.65 bits, if codes and formats are \
         chosen with care.",
        "Every method on the same tokens, which calibration has not seen. Q4_0 is the baseline: even levels, groups of 32, all \
         matrices. It holds if --bits without calibration, within 4.65 bits, everything counted, has a mean KLD at least 25 % under Q4_0's \
         and more words that stay the likeliest.",
    )
    .found(outcome, finding)
    .figure(title, plot.svg(title), "Lower and further left is better; point at a dot for its name.")
    .paragraph(words)
    .table(
        &["method", "bits per weight", "mean KLD, 10⁻³ nats", "±", "same top, %", "perplexity ratio", "seconds for the codes"],
        found.iter().map(|m| {
            vec![
                m.name.clone(),
                number(m.judged.bits),
                milli(m.judged.kl()),
                milli(m.judged.error.kl_se),
                number(100.0 * m.judged.error.same_top),
                format!("{:.4}", m.judged.error.ppl_ratio),
                m.codes.map_or("–".into(), |(seconds, _)| number(seconds)),
            ]
        }),
    );
    for m in found {
        section = section
            .number(&format!("{}: bits", m.name), m.judged.bits)
            .number(&format!("{}: kl_nats", m.name), m.judged.kl())
            .number(&format!("{}: same_top", m.name), m.judged.error.same_top);
    }
    section
}

fn against(made: &Made, base: &Made) -> String {
    format!(
        "{} at {} bits: mean KLD {} (10⁻³ nats), {} % under the {} of Q4_0 at {} bits; {} % of the likeliest words stay, with Q4_0 \
         {} %.",
        made.name,
        number(made.judged.bits),
        milli(made.judged.kl()),
        number(100.0 * (1.0 - made.judged.kl() / base.judged.kl())),
        milli(base.judged.kl()),
        number(base.judged.bits),
        number(100.0 * made.judged.error.same_top),
        number(100.0 * base.judged.error.same_top),
    )
}
