//! How well a language model predicts a text, and how far its distributions are from those of a base
//! model on the same tokens. Definitions: the default scores whole documents; with [`Windows::Chunks`]
//! windows, scores, standard errors, KL divergence and Δp are those of llama.cpp's
//! `tools/perplexity/perplexity.cpp`.

use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use super::scorer::{Scorer, argmax};
use crate::quant::metrics::{kl_divergence_of, log_softmax};
use crate::text::tokenizer::Tokenizer;
use crate::{Error, Result};

/// How the text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// Documents between `<|endoftext|>` marks, trimmed, those under 50 characters left out; BOS and the
    /// document, cut to `context` tokens; every token after the first is scored.
    Documents { context: usize },
    /// Windows of so many tokens, the first replaced by BOS where the tokenizer adds one, of which the
    /// second half is scored.
    Chunks { size: usize },
}

/// What separates documents.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Documents with fewer characters are left out.
const LEAST_CHARACTERS: usize = 50;

/// Tokens, of which those from `first` on are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    pub ids: Vec<u32>,
    /// The first token that is scored, at least 1.
    pub first: usize,
}

/// Cuts a text. `most`: windows at most.
///
/// # Errors
/// `Usage` when nothing is left to score.
pub fn windows(
    tokenizer: &Tokenizer,
    text: &str,
    how: Windows,
    most: Option<usize>,
) -> Result<Vec<Window>> {
    let all = match how {
        Windows::Documents { context } => documents(tokenizer, text, context)?,
        Windows::Chunks { size } => chunks(tokenizer, text, size)?,
    };
    let all: Vec<Window> = all.into_iter().take(most.unwrap_or(usize::MAX)).collect();
    if all.is_empty() {
        return Err(Error::Usage(match how {
            Windows::Documents { .. } => format!(
                "the text has no document of {LEAST_CHARACTERS} characters or more between \
                 {END_OF_TEXT} marks; give a longer text"
            ),
            Windows::Chunks { size } => {
                format!(
                    "the text has fewer than {size} tokens; give a longer one or a smaller --chunk"
                )
            }
        }));
    }
    Ok(all)
}

fn documents(tokenizer: &Tokenizer, text: &str, context: usize) -> Result<Vec<Window>> {
    let bos = tokenizer.special_id("bos_token");
    let documents = text.split(END_OF_TEXT).map(str::trim);
    let long = documents.filter(|d| d.chars().count() >= LEAST_CHARACTERS);
    let cut = |document: &str| -> Result<Window> {
        let mut ids: Vec<u32> = bos.into_iter().collect();
        ids.extend(tokenizer.encode(document, false)?);
        ids.truncate(context);
        Ok(Window { ids, first: 1 })
    };
    let windows = long.map(cut).collect::<Result<Vec<_>>>()?;
    Ok(windows.into_iter().filter(|w| w.ids.len() > w.first).collect())
}

fn chunks(tokenizer: &Tokenizer, text: &str, size: usize) -> Result<Vec<Window>> {
    if size < 4 {
        return Err(Error::Usage(format!(
            "--chunk {size}: half of a chunk is scored; give 4 or more"
        )));
    }
    let ids = tokenizer.encode(text, true)?;
    let bos = tokenizer.special_id("bos_token").filter(|bos| ids.first() == Some(bos));
    let cut = |ids: &[u32]| {
        let mut ids = ids.to_vec();
        ids[0] = bos.unwrap_or(ids[0]);
        // The logits of position size/2 are the first to count; they score the token after it.
        Window { ids, first: size / 2 + 1 }
    };
    Ok(ids.chunks_exact(size).map(cut).collect())
}

/// A mean and its standard error.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Mean {
    pub mean: f64,
    pub stderr: f64,
}

impl Mean {
    /// √(variance / (n − 1)) is the standard error, as llama.cpp's `mean_and_uncertainty` has it.
    fn of(values: impl ExactSizeIterator<Item = f64> + Clone) -> Mean {
        let n = values.len();
        if n == 0 {
            return Mean::default();
        }
        let mean = values.clone().sum::<f64>() / n as f64;
        // Deviations from the mean, not squares: small differences of large numbers would be lost.
        let variance = values.map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
        let stderr = if n > 1 { (variance / (n - 1) as f64).sqrt() } else { 0.0 };
        Mean { mean, stderr }
    }
}

/// The Kullback-Leibler divergence of the model from the base, nats per token.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Divergence {
    pub mean: f64,
    pub stderr: f64,
    pub median: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// What the model gives the right token more or less than the base does, as probabilities (0 to 1).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DeltaP {
    pub mean: f64,
    pub stderr: f64,
    pub rms: f64,
    pub p1: f64,
    pub median: f64,
    pub p99: f64,
}

/// The model against a base on the same tokens.
#[derive(Clone, Debug, Serialize)]
pub struct Against {
    pub base: String,
    pub perplexity_base: f64,
    pub perplexity_base_stderr: f64,
    /// exp of the mean difference of the negative log-likelihoods; its error knows that both were
    /// measured on the same tokens.
    pub perplexity_ratio: f64,
    pub perplexity_ratio_stderr: f64,
    pub kl: Divergence,
    /// Share of tokens whose likeliest candidate is the base's.
    pub same_top: f64,
    pub same_top_stderr: f64,
    pub delta_p: DeltaP,
}

/// The figures of one model.
#[derive(Clone, Debug, Serialize)]
pub struct Perplexity {
    /// exp of the mean negative log-likelihood of the scored tokens.
    pub perplexity: f64,
    pub stderr: f64,
    /// Tokens scored.
    pub tokens: usize,
    /// Documents or chunks.
    pub windows: usize,
    #[serde(flatten)]
    pub against: Option<Against>,
}

/// Scores of one token.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    nll: f64,
    base: f64,
    kl: f64,
    same: bool,
}

/// Scores as they come in.
#[derive(Default)]
pub struct Totals {
    scores: Vec<Score>,
    based: bool,
}

impl Totals {
    /// The perplexity so far.
    pub fn perplexity(&self) -> f64 {
        Mean::of(self.scores.iter().map(|s| s.nll)).mean.exp()
    }

    /// Scores tokens under the model, and under the base if there is one; both logits are
    /// `[targets, vocab]`.
    fn add(&mut self, targets: &[u32], ours: &[f32], base: Option<&[f32]>, vocab: usize) {
        let score = |(i, target): (usize, &u32)| -> Score {
            let row = |all: &[f32]| i * vocab..((i + 1) * vocab).min(all.len());
            let q = log_softmax(&ours[row(ours)]);
            let of =
                |logs: &[f64]| logs.get(*target as usize).copied().unwrap_or(f64::NEG_INFINITY);
            let nll = -of(&q);
            let Some(base) = base else { return Score { nll, ..Default::default() } };
            let p = log_softmax(&base[row(base)]);
            let kl = kl_divergence_of(&p, &q);
            let same = argmax(&ours[row(ours)]) == argmax(&base[row(base)]);
            Score { nll, base: -of(&p), kl, same }
        };
        self.scores.par_extend(targets.par_iter().enumerate().map(score));
    }

    /// The figures over so many windows.
    ///
    /// # Errors
    /// `Runtime` when the model's numbers are not finite.
    pub fn finish(self, windows: usize, base: &str) -> Result<Perplexity> {
        let nll = Mean::of(self.scores.iter().map(|s| s.nll));
        if !nll.mean.is_finite() {
            return Err(Error::Runtime(
                "the model's logits are not finite; try --activations f32 or --weights fp16, and \
                 `inknib doctor` to test the device"
                    .into(),
            ));
        }
        let perplexity = nll.mean.exp();
        Ok(Perplexity {
            perplexity,
            stderr: perplexity * nll.stderr,
            tokens: self.scores.len(),
            windows,
            against: self.based.then(|| self.against(base)),
        })
    }

    fn against(&self, base: &str) -> Against {
        let all = &self.scores;
        let sorted = |value: fn(&Score) -> f64| {
            let mut values: Vec<f64> = all.iter().map(value).collect();
            // NaN comes last and so is the largest.
            values.sort_by(f64::total_cmp);
            values
        };
        let nll_base = Mean::of(all.iter().map(|s| s.base));
        let ratio = Mean::of(all.iter().map(|s| s.nll - s.base));
        let kl = Mean::of(all.iter().map(|s| s.kl));
        let kls = sorted(|s| s.kl);
        let delta = |s: &Score| (-s.nll).exp() - (-s.base).exp();
        let (dp, dps) = (Mean::of(all.iter().map(delta)), sorted(delta));
        let n = all.len().max(1) as f64;
        let same_top = all.iter().filter(|s| s.same).count() as f64 / n;
        let perplexity_base = nll_base.mean.exp();
        Against {
            base: base.to_string(),
            perplexity_base,
            perplexity_base_stderr: perplexity_base * nll_base.stderr,
            perplexity_ratio: ratio.mean.exp(),
            perplexity_ratio_stderr: ratio.mean.exp() * ratio.stderr,
            kl: Divergence {
                mean: kl.mean,
                stderr: kl.stderr,
                median: percentile(&kls, 0.5),
                p90: percentile(&kls, 0.9),
                p99: percentile(&kls, 0.99),
                p999: percentile(&kls, 0.999),
                max: percentile(&kls, 1.0),
            },
            same_top,
            same_top_stderr: (same_top * (1.0 - same_top) / (n - 1.0).max(1.0)).sqrt(),
            delta_p: DeltaP {
                mean: dp.mean,
                stderr: dp.stderr,
                rms: (all.iter().map(|s| delta(s).powi(2)).sum::<f64>() / n).sqrt(),
                p1: percentile(&dps, 0.01),
                median: percentile(&dps, 0.5),
                p99: percentile(&dps, 0.99),
            },
        }
    }
}

/// Linear between neighbours, as llama.cpp's `percentile`. 0 of nothing.
fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = fraction.clamp(0.0, 1.0) * last as f64;
    let (low, part) = (place.floor() as usize, place.fract());
    (1.0 - part) * sorted[low] + part * sorted[(low + 1).min(last)]
}

/// What happens on the way: windows done, windows in all, the perplexity so far.
pub type OnWindow<'a> = dyn FnMut(usize, usize, f64) + 'a;

/// Scores every window. `base`: a scorer of the same vocabulary.
///
/// # Errors
/// As running does; `Interrupted` on Ctrl-C.
pub fn score(
    model: &mut Scorer<'_>,
    mut base: Option<&mut Scorer<'_>>,
    windows: &[Window],
    on_window: &mut OnWindow<'_>,
) -> Result<Totals> {
    let vocab = model.vocab();
    let step = base.as_ref().map_or(model.chunk(), |base| base.chunk().min(model.chunk()));
    let mut totals = Totals { based: base.is_some(), scores: Vec::new() };
    for (done, window) in windows.iter().enumerate() {
        on_window(done, windows.len(), totals.perplexity());
        let ids = &window.ids[..window.ids.len() - 1];
        // Part by part: the logits of a long window under a large vocabulary are gigabytes.
        for at in (0..ids.len()).step_by(step) {
            let part = &ids[at..ids.len().min(at + step)];
            let from = (window.first - 1).saturating_sub(at).min(part.len());
            let ours = model.logits(part, at, from)?;
            let theirs = base.as_deref_mut().map(|b| b.logits(part, at, from)).transpose()?;
            let targets = &window.ids[at + from + 1..at + part.len() + 1];
            totals.add(targets, &ours, theirs.as_deref(), vocab);
        }
    }
    Ok(totals)
}

/// Reads a file of UTF-8 text.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        Error::Usage(format!(
            "{}: not UTF-8 text (byte {} of the file); convert it first",
            path.display(),
            e.utf8_error().valid_up_to()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(rows: &[(f64, f64, f64, bool)]) -> Totals {
        let scores =
            rows.iter().map(|&(nll, base, kl, same)| Score { nll, base, kl, same }).collect();
        Totals { scores, based: true }
    }

    #[test]
    fn figures_by_hand() {
        let all = totals(&[(1.0, 1.0, 0.0, true), (3.0, 2.0, 0.4, false), (2.0, 3.0, 0.2, true)]);
        let p = all.finish(1, "base").unwrap();
        // Mean 2, variance 2/3, error √(2/3/2).
        assert!((p.perplexity - 2f64.exp()).abs() < 1e-12);
        assert!((p.stderr - 2f64.exp() * (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
        let a = p.against.unwrap();
        assert!((a.perplexity_ratio - 1.0).abs() < 1e-12);
        assert!((a.perplexity_ratio_stderr - (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((a.kl.mean - 0.2).abs() < 1e-12 && (a.kl.median - 0.2).abs() < 1e-12);
        assert!((a.kl.p90 - 0.36).abs() < 1e-12 && a.kl.max == 0.4);
        assert!((a.same_top - 2.0 / 3.0).abs() < 1e-12);
        assert!((a.same_top_stderr - (2.0f64 / 9.0 / 2.0).sqrt()).abs() < 1e-12);
        let d = [(-3f64).exp() - (-2f64).exp(), (-2f64).exp() - (-3f64).exp()];
        assert!((a.delta_p.mean - (d[0] + d[1]) / 3.0).abs() < 1e-12);
        assert!((a.delta_p.rms - ((d[0] * d[0] + d[1] * d[1]) / 3.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn numbers_that_are_none_are_an_error() {
        assert!(totals(&[(f64::NAN, 0.0, 0.0, true)]).finish(1, "base").is_err());
        assert!(totals(&[(f64::INFINITY, 0.0, 0.0, true)]).finish(1, "base").is_err());
    }
}
