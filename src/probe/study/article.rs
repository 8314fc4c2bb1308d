//! The page of a study.

use super::{Block, Outcome, Section, Study};
use crate::probe::page::Page;

/// The article: what is asked, the verdicts in a table, a section for each claim, how it was measured.
pub fn study_page(study: &Study) -> String {
    let setup = &study.setup;
    let unet = setup.net == "unet";
    let mut page = Page::new(match unet {
        true => "Why four bits hurt a UNet, and how much of the folklore is true",
        false => "What four bits do to a language model, and how much of the folklore is true",
    });
    page.lead(&format!(
        "Every claim below was made an experiment and run on {}, whole and on one machine. Each ends in a number \
         and a verdict. The same command repeats all of it on another model or another GPU: inknib study {} -m MODEL -o DIR.",
        setup.model, setup.net
    ));
    primer(&mut page, unet);
    let sections = study.sections();
    summary(&mut page, &sections);
    sections.iter().for_each(|section| show(&mut page, section));
    method(&mut page, study);
    page.finish()
}

/// What a newcomer has to know.
fn primer(page: &mut Page, unet: bool) {
    page.heading("The question");
    page.paragraph(
        "A trained network is mostly a list of numbers, its weights. In 16 bits each they fill gigabytes; in 4 bits, a \
         quarter of that. Four bits have sixteen values, so each weight moves to the nearest one, and 32 or 64 \
         neighbours share a scale that stretches those sixteen values to their size. Bits per weight are counted with \
         those scales and with every layer that stays in 16 bits: a format of 4.25 bits that leaves a tenth of the net \
         alone is one of 5.4.",
    );
    page.paragraph(match unet {
        true => {
            "A diffusion model paints by asking the same net, a UNet, many times: here is a noisy picture, which part \
             of it is noise (ε)? A sampler takes a little of that noise away and asks again. So a wrong answer becomes \
             part of the next question, and the answer is not a choice among words, where near misses do not count, but \
             a picture's worth of numbers. That is why four bits are said to be worse for pictures than for text. \
             SQNR in dB says how large an error is: 20 dB is an error of a tenth of the signal, 40 dB of a hundredth. \
             Teacher-forced means that the quantized net is asked about the picture of the 16-bit one, so that the error \
             of one answer is seen alone; free-running means that it goes its own way."
        }
        false => {
            "A language model gives a probability to every word that could come next. What four bits change is measured \
             by the Kullback-Leibler divergence (KLD, in nats) between the probabilities of the quantized net and \
             those of the 16-bit net at the same place, 0 if they agree, and by how often both hold the same word for \
             the likeliest (same top). Greedy decoding \
             always takes the likeliest word. Teacher-forced means that both nets read the same text, that of the 16-bit net, so \
             that they are asked the same. Models read and write tokens, which are words or parts of words; where this page says \
             word, a token is meant."
        }
    });
}

/// Verdicts at a glance.
fn summary(page: &mut Page, sections: &[&Section]) {
    page.heading("The verdicts");
    let row = |s: &&Section| {
        format!(
            "<tr><td><a href=\"#{id}\">{id}</a></td><td>{}</td><td>{}</td><td class=\"{}\">{}</td></tr>\n",
            escape(&s.claim),
            escape(&s.finding),
            class(s.outcome),
            s.outcome.words(),
            id = escape(&s.id),
        )
    };
    let rows: String = sections.iter().map(row).collect();
    page.html(&format!(
        "<div class=\"wide\"><table><thead><tr><th></th><th>what is said</th><th>what we found</th><th>verdict</th></tr>\
         </thead><tbody>\n{rows}</tbody></table></div>\n"
    ));
}

fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Holds => "pass",
        Outcome::DoesNotHold => "fail",
        Outcome::UnderConditions | Outcome::NotTested => "soft",
    }
}

fn show(page: &mut Page, section: &Section) {
    page.html(&format!(
        "<h2 id=\"{id}\">{id}. {}</h2>\n<dl class=\"claim\"><dt>Said</dt><dd>{}</dd><dt>Done</dt><dd>{}</dd>\
         <dt>Found</dt><dd>{} <b class=\"{}\">{}.</b></dd></dl>\n",
        escape(&section.title),
        escape(&section.claim),
        escape(&section.experiment),
        escape(&section.finding),
        class(section.outcome),
        capital(section.outcome.words()),
        id = escape(&section.id),
    ));
    for block in &section.body {
        match block {
            Block::Paragraph(words) => page.paragraph(words),
            Block::Figure { title, svg, caption } => page.figure(title, svg, caption),
            Block::Table { headings, rows } => {
                let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
                page.table(&headings, rows.iter().cloned());
            }
            Block::Html(html) => page.html(html),
        }
    }
}

fn method(page: &mut Page, study: &Study) {
    page.heading("How it was measured");
    let rows = study.setup.conditions.iter().map(|(name, value)| vec![name.clone(), value.clone()]);
    let of = |name: &str, value: String| vec![name.to_string(), value];
    let seconds: f64 = study.seconds.values().sum();
    let rows = rows.chain([
        of("SHA-256 of the weights", study.setup.sha256.clone()),
        of("time of all experiments", duration(seconds)),
    ]);
    page.table(&["", ""], rows);
    page.paragraph(match study.setup.net == "unet" {
        true => {
            "Baseline and variant share prompts, seeds, sampler and kernels; only the weights differ. Formats that no kernel \
             reads (per tensor, per channel, 2 to 8 bits, outlier columns) are imitated: weights are rounded as the format \
             says and computed with in 32 bits. study.json beside this page holds every number of it."
        }
        false => {
            "Baseline and variant read the same tokens under the same kernels; only the weights differ. \
             Tokens are not independent of each other, so that standard errors are too small rather than too large. Formats \
             that no kernel reads (per tensor, per channel, 2 to 8 bits, outlier columns) are imitated: weights are rounded \
             as the format says and computed with in 32 bits. study.json beside this page holds every number of it."
        }
    });
}

fn duration(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.0} s") } else { format!("{:.0} min", seconds / 60.0) }
}

fn escape(text: &str) -> String {
    crate::probe::plot::escape(text)
}

fn capital(words: &str) -> String {
    let mut chars = words.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().collect::<String>() + chars.as_str())
}
