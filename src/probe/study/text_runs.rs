//! Claims that int4 against fp16 on the same tokens decides: how often another word wins, and how errors travel from
//! token to token.

use super::text::{TextLab, fp16, judge_tokens, milli, named};
use super::{Outcome, Section};
use crate::Result;
use crate::gpu::interrupted;
use crate::graph::Kernels;
use crate::probe::compare::OnStage;
use crate::probe::compare_text::{Scored, Sequence, TextError, TextReport};
use crate::probe::compare_tokens::{MarginError, TokenError};
use crate::probe::plot::{Axis, Plot, number};
use crate::probe::scorer::Scorer;

/// L1, L2, L7: from int4 against fp16.
pub(super) fn runs(lab: &mut TextLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let report = lab.report(on_stage)?;
    let swap = swap(lab, on_stage)?;
    let store = lab.store()?;
    let mut weights = 0;
    for name in store.names() {
        weights += store.shape(name)?.iter().product::<usize>();
    }
    let answers = lab.answers();
    Ok(vec![
        argmax(&report, answers),
        propagation(&report, &swap, answers),
        larger(&report, weights),
    ])
}

/// What the scored pieces are called.
fn pieces(answers: bool) -> &'static str {
    if answers { "answers" } else { "windows" }
}

fn percent(share: f64) -> String {
    number(100.0 * share)
}

/// Share of the pieces that go another way somewhere.
fn parted(passages: &[Scored]) -> f64 {
    let count = passages.iter().filter(|p| p.first_divergence.is_some()).count();
    count as f64 / passages.len().max(1) as f64
}

fn argmax(report: &TextReport, answers: bool) -> Section {
    let (llm, pieces) = (&report.llm, pieces(answers));
    let flips: usize = report.by_margin.iter().map(|m| m.flips).sum();
    let close = report.by_margin.iter().filter(|m| m.to <= 0.1).map(|m| m.flips).sum::<usize>();
    let among_close = close as f64 / flips.max(1) as f64;
    let clear = report.by_margin.iter().filter(|m| m.from >= 0.2);
    let clear = clear.fold((0, 0), |(n, f), m| (n + m.tokens, f + m.flips));
    let diverged = parted(&report.passages);
    // One word in a hundred, and one text in twenty: that much would still be called almost unaffected.
    let (robust, unaffected) = (llm.same_top >= 0.99, diverged <= 0.05);
    let outcome = match (robust, unaffected) {
        (true, true) => Outcome::Holds,
        (false, false) => Outcome::DoesNotHold,
        _ => Outcome::UnderConditions,
    };
    let title = "Which choices change";
    let floor = llm.floor.map_or(f64::NAN, |f| f.kl_mean);
    Section::new(
        "L1",
        "Does the likeliest word stay the likeliest?",
        "A model picks the likeliest word (argmax), which small errors do not change, so its output is almost unaffected.",
        format!(
            "int4 weights ({} bits per weight, everything counted) score the same {} tokens as fp16 weights; at each, is the \
             likeliest word the same? It holds if 99 % of the words and 95 % of whole {pieces} stay as they were.",
            number(report.bits_per_weight),
            llm.tokens
        ),
    )
    .found(
        outcome,
        what_stays(llm, pieces, flips, [among_close, diverged]),
    )
    .number("bits_per_weight", report.bits_per_weight)
    .number("tokens", llm.tokens as f64)
    .number("kl_mean_nats", llm.kl_mean)
    .number("kl_standard_error_nats", llm.kl_se)
    .number("kl_p99_nats", llm.kl_p99)
    .number("kl_max_nats", llm.kl_max)
    .number("same_top", llm.same_top)
    .number("perplexity_ratio", llm.ppl_ratio)
    .number("flips", flips as f64)
    .number("flips_among_close_calls", among_close)
    .number("flips_where_clear", clear.1 as f64 / clear.0.max(1) as f64)
    .number("diverged", diverged)
    .number("floor_kl_nats", floor)
    .paragraph(format!(
        "The claim sees one word; a text is many. If one word in a hundred changes, an answer of fifty words has two chances in \
         five to change, and what follows a changed word answers another beginning. Where the model is sure (p₁ − p₂ of 0.2 \
         and more), {} of {} tokens change. The floor, fp32 weights against fp16 weights, is a KLD of {} (10⁻³ nats){}.",
        clear.1,
        clear.0,
        milli(floor),
        if floor == 0.0 { ": these weights come in 16 bits" } else { "" },
    ))
    .figure(title, by_margin(report).svg(title), "Teacher-forced: both models read the same tokens.")
    .table(
        &["p₁ − p₂ of fp16", "tokens", "another word wins"],
        report.by_margin.iter().map(|m| vec![margin(m), m.tokens.to_string(), m.flips.to_string()]),
    )
    .table(
        &["most divergent", "tokens", "mean KLD, 10⁻³ nats", "same top, %", "first difference", "fp16 there", "int4 there"],
        worst(&report.passages).into_iter().map(row),
    )
}

/// In words: of `flips` changed words so many were close calls, and of all pieces so many go another way.
fn what_stays(
    llm: &TextError,
    pieces: &str,
    flips: usize,
    [among_close, diverged]: [f64; 2],
) -> String {
    match flips {
        0 => format!(
            "All of the {} likeliest words stay, and so do all {pieces}. Mean KLD {} (10⁻³ nats).",
            llm.tokens,
            milli(llm.kl_mean),
        ),
        _ => format!(
            "{} % of the likeliest words stay. Another wins at {flips} of {} tokens, and {} % of these were close calls \
             (p₁ − p₂ under 0.1). Yet {} % of the {pieces} go another way somewhere. Mean KLD {} (10⁻³ nats).",
            percent(llm.same_top),
            llm.tokens,
            percent(among_close),
            percent(diverged),
            milli(llm.kl_mean),
        ),
    }
}

fn margin(m: &MarginError) -> String {
    format!("{} to {}", number(m.from), number(m.to))
}

fn by_margin(report: &TextReport) -> Plot {
    let share = |m: &MarginError| match m.tokens {
        0 => f64::NAN,
        tokens => 100.0 * m.flips as f64 / tokens as f64,
    };
    Plot::categories(
        "probability of the likeliest word less that of the second, p₁ − p₂",
        report.by_margin.iter().map(margin),
        Axis::linear("another word wins, % of these tokens"),
    )
    .bars("", report.by_margin.iter().map(share))
}

/// The pieces with the largest divergence.
fn worst(passages: &[Scored]) -> Vec<&Scored> {
    const SHOWN: usize = 12;
    let mut all: Vec<&Scored> = passages.iter().collect();
    all.sort_by(|a, b| b.kl_mean.total_cmp(&a.kl_mean));
    all.truncate(SHOWN);
    all
}

/// A piece of text in the table.
fn row(p: &Scored) -> Vec<String> {
    let beginning = if p.question.is_empty() { &p.text } else { &p.question };
    let mut short: String = beginning.chars().take(40).collect();
    if short.len() < beginning.len() {
        short.push('…');
    }
    let [theirs, ours] = p.parted.clone().unwrap_or_default();
    let quoted = |w: String| if w.is_empty() { "–".into() } else { format!("“{w}”") };
    vec![
        short,
        p.tokens.to_string(),
        milli(p.kl_mean),
        percent(p.same_top),
        p.first_divergence.map_or("–".into(), |at| format!("token {}", at + 1)),
        quoted(theirs),
        quoted(ours),
    ]
}

/// Share of the pieces of which the first n tokens are alike, for n from 0 to the longest; a piece that ends before with no
/// difference counts as alike.
fn survival(firsts: &[Option<usize>], longest: usize) -> Vec<f64> {
    let alike = |n: usize| firsts.iter().filter(|first| first.is_none_or(|at| at >= n)).count();
    (0..=longest).map(|n| alike(n) as f64 / firsts.len().max(1) as f64).collect()
}

/// Mean divergence where keys and values of what was read before come from one net, and the answer from another.
struct Swap {
    tokens: usize,
    /// Nothing quantized: what a cut in the middle changes by itself.
    none: f64,
    /// The memory alone is of the quantized net.
    memory: f64,
    /// The net that goes on alone is quantized.
    pass: f64,
    both: f64,
    /// The quantized net in the first halves.
    first: f64,
}

impl Swap {
    /// Who reads the first half, who scores the second, and how far that is off.
    fn rows(&self) -> impl Iterator<Item = Vec<String>> {
        let Swap { none, pass, memory, both, .. } = *self;
        [
            ("fp16", "fp16", none),
            ("fp16", "int4", pass),
            ("int4", "fp16", memory),
            ("int4", "int4", both),
        ]
        .into_iter()
        .map(|(read, scored, kl)| vec![read.to_string(), scored.to_string(), milli(kl)])
    }
    fn in_words(&self) -> String {
        format!(
            "The two sources, memory and pass, add up to {} (10⁻³ nats) where both together are {}. Teacher-forced, int4's KLD in the second halves \
             is {} times that in the first{}. The memory hands errors on, but every word is computed from \
             the weights anew and reads the right words before it. What int4 writes by itself is no longer the same text after the \
             first word that differs; that it is a worse one does not follow.",
            milli(self.memory + self.pass),
            milli(self.both),
            number(self.both / self.first),
            // Twice over half of a text is more than chance does in a few hundred tokens.
            if self.both < 2.0 * self.first { ": the error does not run away" } else { "" },
        )
    }
}

/// int4 or fp16 reads the first half of every piece, int4 or fp16 scores the second.
fn swap(lab: &mut TextLab, on_stage: &mut OnStage<'_>) -> Result<Swap> {
    let base = lab.base(on_stage)?;
    on_stage("KV swap, loading", 0, 0);
    let (right, _) = lab.load(&fp16()?, &base)?;
    let (wrong, _) = lab.load(&named("int4")?, &base)?;
    let (act, vocab) = (lab.options.act, base.config().vocab_size());
    let mut right = Scorer::new(&lab.gpu, &right, (base.context(), act, Kernels::Fast))?;
    let memory = right.cache();
    let mut wrong = Scorer::with_cache(&lab.gpu, &wrong, (act, Kernels::Fast), memory);
    let [mut none, mut remembered, mut pass, mut both, mut first] = [const { Vec::new() }; 5];
    let all = base.sequences();
    for (i, (sequence, theirs)) in all.iter().zip(base.logits()).enumerate() {
        interrupted()?;
        on_stage("KV swap", i, all.len());
        let count = sequence.targets().len();
        // Halves: an answer of one token has none.
        let half = count / 2;
        if half == 0 {
            continue;
        }
        let read = |by: &mut Scorer<'_>| read(by, sequence, half);
        let rest = |by: &mut Scorer<'_>, into: &mut Vec<TokenError>| -> Result<()> {
            let (at, end) = (sequence.from + half, sequence.ids.len());
            let ours = by.logits(&sequence.ids[at..end - 1], at, 0)?;
            let (base, targets) = (&theirs[half * vocab..], &sequence.ids[at + 1..]);
            into.extend(judge_tokens((&ours, base), vocab, targets));
            Ok(())
        };
        read(&mut right)?;
        rest(&mut right, &mut none)?;
        read(&mut right)?;
        rest(&mut wrong, &mut pass)?;
        let ours = read(&mut wrong)?;
        first.extend(judge_tokens((&ours, theirs), vocab, &sequence.targets()[..half]));
        rest(&mut right, &mut remembered)?;
        read(&mut wrong)?;
        rest(&mut wrong, &mut both)?;
    }
    let mean = |tokens: &[TokenError]| {
        tokens.iter().map(|t| t.kl).sum::<f64>() / tokens.len().max(1) as f64
    };
    Ok(Swap {
        tokens: both.len(),
        none: mean(&none),
        memory: mean(&remembered),
        pass: mean(&pass),
        both: mean(&both),
        first: mean(&first),
    })
}

/// Reads a piece up to its middle and leaves its keys and values in the memory; the logits of the first half.
fn read(by: &mut Scorer<'_>, sequence: &Sequence, half: usize) -> Result<Vec<f32>> {
    by.logits(&sequence.ids[..sequence.from + half], 0, sequence.from)
}

/// In words: how many of the pieces go another way, and how soon.
fn parting(report: &TextReport, pieces: &str) -> String {
    let mut places: Vec<usize> =
        report.passages.iter().filter_map(|p| p.first_divergence).collect();
    places.sort_unstable();
    match places.get(places.len() / 2) {
        None => format!("With greedy decoding none of the {pieces} goes another way."),
        Some(median) => format!(
            "With greedy decoding {} % of the {pieces} go another way, half of these within {} tokens, and every word after \
             that continues another text.",
            percent(parted(&report.passages)),
            number(*median as f64 + 1.0),
        ),
    }
}

fn along(report: &TextReport) -> Plot {
    let points = report.by_position.iter().map(|p| (p.from as f64, p.kl_mean));
    Plot::new(Axis::linear("token"), Axis::log("mean KLD, nats"))
        .line("int4, teacher-forced", points)
}

fn propagation(report: &TextReport, swap: &Swap, answers: bool) -> Section {
    let pieces = pieces(answers);
    let share = swap.memory / swap.both;
    // A tenth of the error is too much to say that none is handed on, a hundredth is not.
    let outcome = match share {
        s if s > 0.1 => Outcome::DoesNotHold,
        s if s > 0.01 => Outcome::UnderConditions,
        _ => Outcome::Holds,
    };
    let firsts: Vec<Option<usize>> = report.passages.iter().map(|p| p.first_divergence).collect();
    let longest = report.passages.iter().map(|p| p.tokens).max().unwrap_or(0);
    let alive = survival(&firsts, longest);
    let title = "How long the texts stay the same";
    let words = match answers {
        true => {
            "Greedy decoding: an answer is alike up to the first token at which int4 would choose another one."
        }
        false => {
            "A window is alike up to the first token for which int4 finds another one likeliest."
        }
    };
    let plot =
        Plot::new(Axis::linear("tokens"), Axis::linear("still the same, %").between(0.0, 100.0))
            .line("int4", alive.iter().enumerate().map(|(n, s)| (n as f64, 100.0 * s)));
    let title2 = "KLD along the text";
    Section::new(
        "L2",
        "Does an error reach the next word?",
        "A language model answers in a single pass, so that errors do not propagate from one step to the next.",
        format!(
            "The first half of each of the {pieces} is read by one net, the second half scored by another over the keys and values \
             that the first left in its memory (the KV cache). If fp16 weights err over the memory of int4 weights, the error \
             came from the past. It holds if that is under 1 % of the whole error, and does not if it is over 10 %.",
        ),
    )
    .found(
        outcome,
        format!(
            "fp16 weights over the memory of int4 weights are off by a KLD of {} (10⁻³ nats), {} % of what int4 weights are over their \
             own ({}): {}. {}",
            milli(swap.memory),
            percent(share),
            milli(swap.both),
            match outcome {
                Outcome::Holds => "next to nothing comes from the past",
                _ => "errors live on in the memory",
            },
            parting(report, pieces),
        ),
    )
    .number("kl_memory_int4_pass_fp16_nats", swap.memory)
    .number("kl_memory_fp16_pass_int4_nats", swap.pass)
    .number("kl_both_int4_nats", swap.both)
    .number("kl_none_nats", swap.none)
    .number("memory_over_both", share)
    .number("second_half_over_first", swap.both / swap.first)
    .number("tokens_of_second_halves", swap.tokens as f64)
    .number("still_equal_at_the_end", alive.last().copied().unwrap_or(1.0))
    .table(
        &["first half read by", "second half scored by", "mean KLD of the second half, 10⁻³ nats"],
        swap.rows(),
    )
    .paragraph(swap.in_words())
    .figure(title, plot.svg(title), words)
    .figure(title2, along(report).svg(title2), "Means over parts of equal length. Late parts hold the long texts alone.")
}

/// L7: one model cannot say; the section says what it adds to a comparison.
fn larger(report: &TextReport, weights: usize) -> Section {
    let millions = weights as f64 / 1e6;
    Section::new(
        "L7",
        "Are larger models safer?",
        "Large models are over-parameterised and have redundancy to spare; the larger, the less four bits hurt.",
        "Not done here: it takes models of several sizes of one family. Run this study on each and hold the numbers of L1 and L7 \
         in their study.json against each other.",
    )
    .found(
        Outcome::NotTested,
        format!(
            "One model of {} million weights was measured (mean KLD {}·10⁻³ nats at {} bits), and one point makes no line.",
            number(millions),
            milli(report.llm.kl_mean),
            number(report.bits_per_weight),
        ),
    )
    .number("weights_millions", millions)
    .number("kl_mean_nats", report.llm.kl_mean)
    .number("bits_per_weight", report.bits_per_weight)
    .paragraph(
        "The models should have been trained on the same text, and on how much of it for each weight should be noted: a small \
         model that was trained for long has less redundancy than a large one that was not, so that size alone may mislead. \
         Score the same file for all of them: inknib study llm -m MODEL -f TEXT -o DIR.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survival_falls_where_texts_part() {
        // Of four, one differs at its first token, one at its third; two never do.
        let alive = survival(&[Some(0), None, Some(2), None], 4);
        assert_eq!(alive, [1.0, 0.75, 0.75, 0.5, 0.5]);
        assert_eq!(survival(&[None], 1), [1.0, 1.0]);
    }
}
