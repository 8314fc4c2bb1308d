//! The claim about attention: kinds of layers quantized alone, and what becomes of attention probabilities.

use super::text::{Judged, TextLab, milli};
use super::weights::{Weights, only};
use super::{Outcome, Section};
use crate::Result;
use crate::probe::compare::OnStage;
use crate::probe::compare_text::TextReport;
use crate::probe::plot::{Axis, number};
use crate::probe::plot_grid::BarList;

/// A kind of layer, by what the names of its weights hold.
struct Kind {
    name: &'static str,
    holds: &'static [&'static str],
}

const QUERIES: &str = "attention: queries and keys";
const VALUES: &str = "attention: values and output";

/// Llama and its relatives; Phi and GPT-2, of which the latter joins what others have apart.
const KINDS: [Kind; 6] = [
    Kind { name: QUERIES, holds: &[".q_proj.", ".k_proj."] },
    Kind { name: VALUES, holds: &[".v_proj.", ".o_proj.", ".self_attn.dense.", ".attn.c_proj."] },
    Kind { name: "attention: all of one matrix", holds: &[".qkv_proj.", ".c_attn."] },
    Kind {
        name: "feed-forward: gate and up",
        holds: &[".gate_proj.", ".up_proj.", ".gate_up_proj.", ".fc1.", ".c_fc."],
    },
    Kind { name: "feed-forward: down", holds: &[".down_proj.", ".fc2.", ".mlp.c_proj."] },
    Kind { name: "embeddings and head", holds: &["embed_tokens.", "lm_head.", "wte."] },
];

/// A kind and what its quantization alone does.
struct Alone {
    name: &'static str,
    weights: u64,
    judged: Judged,
}

impl Alone {
    /// Divergence for each million of weights.
    fn each_million(&self) -> f64 {
        self.judged.kl() / (self.weights as f64 / 1e6)
    }
    /// Cells of the table; `sum` is what all kinds cost.
    fn row(&self, sum: f64) -> Vec<String> {
        vec![
            self.name.to_string(),
            number(self.weights as f64 / 1e6),
            milli(self.judged.kl()),
            number(100.0 * self.judged.error.same_top),
            number(100.0 * self.judged.kl() / sum),
            number(1e3 * self.each_million()),
        ]
    }
}

/// L3: kinds of layers alone in int4.
pub(super) fn places(lab: &mut TextLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let store = lab.store()?;
    let mut kinds = Vec::new();
    for kind in &KINDS {
        let (recipe, weights) =
            only(&store, "llm", |name| kind.holds.iter().any(|part| name.contains(part)))?;
        if weights > 0 {
            let judged = lab.judge(kind.name, &Weights::Recipe(recipe), on_stage)?;
            kinds.push(Alone { name: kind.name, weights, judged });
        }
    }
    let report = lab.report(on_stage)?;
    Ok(vec![attention(&kinds, &report)])
}

fn by_kind(ranked: &[&Alone]) -> BarList {
    let rows = ranked.iter().map(|a| (a.name.to_string(), 1e3 * a.each_million()));
    BarList::new(Axis::linear("mean KLD for a million weights, 10⁻³ nats"), rows)
}

fn by_layer(report: &TextReport) -> BarList {
    let heads = report.attention.iter().map(|a| (a.name.clone(), 1e3 * a.kl_mean));
    BarList::new(Axis::linear("mean KLD, 10⁻³ nats"), heads)
}

/// In words: what a weight of queries and keys costs, of values and output, and of the others, and what it does to attention.
fn costs([ratio, to_others, kl, flips]: [f64; 4], [place, kinds]: [usize; 2]) -> String {
    format!(
        "A weight of queries and keys costs {} times what one of values and output does, {} times the mean of the other kinds \
         (place {place} of {kinds}). Attention probabilities diverge by {} nats on average; {} % of the queries look at another \
         token first.",
        number(ratio),
        number(to_others),
        number(kl),
        number(100.0 * flips),
    )
}

fn attention(kinds: &[Alone], report: &TextReport) -> Section {
    let mut ranked: Vec<&Alone> = kinds.iter().collect();
    ranked.sort_by(|a, b| b.each_million().total_cmp(&a.each_million()));
    let place = 1 + ranked.iter().position(|a| a.name == QUERIES).unwrap_or(ranked.len());
    let of =
        |name: &str| kinds.iter().find(|a| a.name == name).map_or(f64::NAN, Alone::each_million);
    let ratio = of(QUERIES) / of(VALUES);
    let others = ranked.iter().filter(|a| a.name != QUERIES);
    let mean = others.clone().map(|a| a.each_million()).sum::<f64>() / others.count().max(1) as f64;
    let to_others = of(QUERIES) / mean;
    let count = report.attention.len().max(1) as f64;
    let average = |f: &dyn Fn(&crate::probe::attention_kl::AttentionError) -> f64| {
        report.attention.iter().map(f).sum::<f64>() / count
    };
    let (kl, flips) = (average(&|a| a.kl_mean), average(&|a| a.top_flips));
    let entropy = average(&|a| a.entropy);
    let sum: f64 = kinds.iter().map(|a| a.judged.kl()).sum();
    let outcome = match (ratio.is_finite(), ratio < 0.5 && to_others < 0.5, ratio < 1.0) {
        (false, ..) => Outcome::NotTested,
        (_, true, _) => Outcome::Holds,
        (_, _, true) => Outcome::UnderConditions,
        _ => Outcome::DoesNotHold,
    };
    let title = "Kinds of layers alone in int4";
    let title2 = "Attention probabilities with all of the net in int4";
    Section::new(
        "L3",
        "Does attention shrug errors off?",
        "Attention compares scores with each other, so that an error common to them cancels: it is robust.",
        "Each kind of layer alone in int4, the rest in fp16; and with all of the net in int4, the attention probabilities of the \
         first tokens against those of fp16. It holds if a weight of queries and keys costs less than half of what one of values \
         and output does, and less than half of the mean over the other kinds.",
    )
    .found(
        outcome,
        match ratio.is_finite() {
            true => costs([ratio, to_others, kl, flips], [place, ranked.len()]),
            false => "This family keeps queries, keys and values in one matrix, so that they cannot be told apart.".into(),
        },
    )
    .number("rank_of_queries_and_keys", place as f64)
    .number("qk_over_vo_per_weight", ratio)
    .number("qk_over_others_per_weight", to_others)
    .number("attention_kl_nats", kl)
    .number("attention_top_flips", flips)
    .number("attention_entropy_nats", entropy)
    .number("sum_of_kinds_nats", sum)
    .number("all_in_int4_nats", report.llm.kl_mean)
    .paragraph(format!(
        "The probabilities are spread as if over {} equal tokens (entropy {} nats). Softmax cancels only what all scores of a query \
         share; errors of queries and keys differ from token to token, and where two scores are close another token comes first.",
        number(entropy.exp()),
        number(entropy),
    ))
    .paragraph(format!(
        "The kinds alone add up to {} (10⁻³ nats), embeddings in four bits included, which the recipe int4 keeps in eight; with it \
         the whole net has {}.",
        milli(sum),
        milli(report.llm.kl_mean),
    ))
    .figure(title, by_kind(&ranked).svg(title), "Teacher-forced; per million weights, so that large and small kinds compare.")
    .table(
        &["kind", "weights, 10⁶", "mean KLD, 10⁻³ nats", "same top, %", "share of all, %", "KLD for 10⁶ weights, 10⁻³ nats"],
        ranked.iter().map(|a| a.row(sum)),
    )
    .figure(title2, by_layer(report).svg(title2), "Layer by layer; errors of the layers before are in it.")
}
