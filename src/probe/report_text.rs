//! The page of a comparison of text.

use super::compare_text::{Scored, TextReport};
use super::page::Page;
use super::plot::{Axis, Plot, number};
use super::report::{About, checks, layer_charts};

/// Rows of the table of passages.
const PASSAGES: usize = 40;

/// The page, everything in it.
pub fn text_page(report: &TextReport, about: &About) -> String {
    let mut page = Page::new(&about.title());
    let over = match report.passages.len() {
        1 => "one passage".to_string(),
        n => format!("{n} passages"),
    };
    about.lead(&mut page, report.bits_per_weight, &over);
    in_short(&mut page, report);
    checks(&mut page, &report.checks, report.verdict);
    divergence(&mut page, report);
    flips(&mut page, report);
    layer_charts(&mut page, &report.layers, &report.attention, "the first tokens");
    passages(&mut page, report);
    about.method(&mut page);
    page.finish()
}

fn in_short(page: &mut Page, report: &TextReport) {
    let (e, floor) = (&report.llm, report.llm.floor);
    let percent = |share: f64| format!("{} %", number(100.0 * share));
    let row = |what: &str, value: String, floor: Option<String>| {
        vec![what.to_string(), value, floor.unwrap_or("–".into())]
    };
    page.table(
        &["figure", "these weights", "floor: fp32 weights"],
        [
            row("tokens scored", e.tokens.to_string(), None),
            row(
                "KL divergence, nats, mean",
                format!("{} ± {}", number(e.kl_mean), number(e.kl_se)),
                floor.map(|f| number(f.kl_mean)),
            ),
            row(
                "median, 99th percentile, largest",
                [e.kl_median, e.kl_p99, e.kl_max].map(number).join(", "),
                None,
            ),
            row("same likeliest token", percent(e.same_top), floor.map(|f| percent(f.same_top))),
            row("probability of the next token, change (RMS)", percent(e.dp_rms), None),
            row(
                "perplexity",
                format!("{:.4} → {:.4} (× {:.4})", e.ppl_base, e.ppl, e.ppl_ratio),
                None,
            ),
            row(
                "error of the logits",
                number(e.logits_rel_l2),
                floor.map(|f| number(f.logits_rel_l2)),
            ),
            row(
                "kernel error of the logits",
                e.kernel_rel_l2.map_or("not measured".into(), number),
                None,
            ),
        ],
    );
}

fn divergence(page: &mut Page, report: &TextReport) {
    page.heading("Along the text");
    page.paragraph(
        "Both sets of weights read the same tokens; at every one, the distributions of the next are compared. If \
         errors gathered in the cache of keys and values, the divergence would grow with the position.",
    );
    let longest = report.by_position.last().map_or(0, |part| part.to);
    let middle = |from: usize, to: usize| (from + to) as f64 / 2.0;
    let ends =
        report.llm.floor.iter().flat_map(|f| [(0.0, f.kl_mean), (longest as f64, f.kl_mean)]);
    let parts = report.by_position.iter();
    let plot = Plot::new(
        Axis::linear("position among the scored tokens"),
        Axis::log("mean KL divergence, nats"),
    )
    .line("these weights", parts.map(|p| (middle(p.from, p.to), p.kl_mean)))
    .floor("floor: fp32 weights", ends);
    let title = "Divergence by position";
    page.figure(title, &plot.svg(title), "Means over all passages; later positions have fewer tokens. Dashed: the mean of the floor.");

    // Greedy decoding goes another way at the first token that flips, and before it not at all.
    let passages = &report.passages;
    let alive = |at: usize| {
        let whole = |p: &&Scored| p.first_divergence.is_none_or(|first| first >= at);
        passages.iter().filter(whole).count() as f64 / passages.len().max(1) as f64
    };
    let plot = Plot::new(
        Axis::linear("tokens of the answer"),
        Axis::linear("share of passages").between(0.0, 1.0),
    )
    .line("still the same text", (0..=longest).map(|i| (i as f64, alive(i))))
    .floor(
        "floor: fp32 weights, no flip",
        [(0.0, 1.0), (longest as f64, 1.0)]
            .into_iter()
            .filter(|_| report.llm.floor.is_some_and(|f| f.same_top == 1.0)),
    );
    let title = "How long greedy answers stay the same";
    page.figure(
        title,
        &plot.svg(title),
        "Share of passages that greedy decoding would have written alike so far.",
    );
}

fn flips(page: &mut Page, report: &TextReport) {
    page.heading("Where tokens flip");
    page.paragraph(
        "The margin is the probability of the baseline's likeliest token less that of its second. A flip at a \
         small margin is a close call that rounding decides; one at a large margin is a mistake.",
    );
    let bins = &report.by_margin;
    let name = |from: f64, to: f64| format!("{}–{}", number(from), number(to));
    let names = bins.iter().map(|b| name(b.from, b.to));
    let share = |flips: usize, tokens: usize| 100.0 * flips as f64 / tokens.max(1) as f64;
    let plot = Plot::categories(
        "margin p₁ − p₂ of the baseline",
        names,
        Axis::linear("tokens that flip, %"),
    )
    .bars("", bins.iter().map(|b| share(b.flips, b.tokens)));
    let title = "Flips by margin";
    let floor = match report.llm.floor {
        Some(f) => {
            format!(" The floor flips {} % of all tokens.", number(100.0 * (1.0 - f.same_top)))
        }
        None => String::new(),
    };
    let tokens: Vec<String> = bins.iter().map(|b| b.tokens.to_string()).collect();
    let caption = format!("Tokens in each bin: {}.{floor}", tokens.join(", "));
    page.figure(title, &plot.svg(title), &caption);
}

fn passages(page: &mut Page, report: &TextReport) {
    page.heading("Passage by passage");
    let rows = report.passages.iter().take(PASSAGES).map(|p| {
        let parts = match (p.first_divergence, &p.parted) {
            (Some(at), Some([base, ours])) => format!("{at}: {base:?} → {ours:?}"),
            _ => "never".into(),
        };
        let text: String = p.text.chars().take(160).collect();
        let dots = if p.text.chars().count() > 160 { "…" } else { "" };
        vec![
            p.question.clone(),
            format!("{text}{dots}"),
            p.tokens.to_string(),
            number(p.kl_mean),
            format!("{} %", number(100.0 * p.same_top)),
            parts,
        ]
    });
    page.table(
        &["question", "the baseline's answer", "tokens", "KL", "same top", "parts at"],
        rows,
    );
}
