//! What two language models differ by at every scored token: by position in the answer, and by how sure the
//! baseline was.

use serde::Serialize;

use super::compare::{Estimate, Squares};
use super::compare_text::{Floor, TextError};
use super::scorer::argmax;
use crate::quant::metrics::{kl_divergence_of, log_softmax};

/// One scored token.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenError {
    /// Place among the scored tokens of its sequence, from 0.
    pub position: usize,
    /// Nats, of the variant from the baseline.
    pub kl: f64,
    /// The likeliest token of the baseline and of the variant.
    pub tops: [usize; 2],
    /// Probability of the baseline's likeliest token less that of its second.
    pub margin: f64,
    /// Probability of the token that follows, the variant's less the baseline's.
    pub dp: f64,
    /// Negative log-likelihood of that token, the baseline's and the variant's.
    pub nll: [f64; 2],
}

impl TokenError {
    /// From the variant's and the baseline's logits `[vocab]` and the token that follows.
    pub(super) fn of(position: usize, ours: &[f32], base: &[f32], target: usize) -> TokenError {
        let (q, p) = (log_softmax(ours), log_softmax(base));
        let top = argmax(base);
        let others = p.iter().enumerate().filter(|(i, _)| *i != top);
        let second = others.fold(f64::NEG_INFINITY, |most, (_, p)| most.max(*p));
        let of = |log: &[f64]| log.get(target).copied().unwrap_or(0.0);
        TokenError {
            position,
            kl: kl_divergence_of(&p, &q),
            tops: [top, argmax(ours)],
            margin: p[top].exp() - second.exp(),
            dp: of(&q).exp() - of(&p).exp(),
            nll: [-of(&p), -of(&q)],
        }
    }
    /// Whether greedy decoding goes on alike.
    pub(super) fn same_top(&self) -> bool {
        self.tops[0] == self.tops[1]
    }
}

/// Tokens at like places of their sequences.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PositionError {
    /// Scored tokens `from .. to` of a sequence.
    pub from: usize,
    pub to: usize,
    pub tokens: usize,
    pub kl_mean: f64,
    pub same_top: f64,
}

/// Tokens of which the baseline was about as sure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MarginError {
    /// Probability of the likeliest less that of the second: `from ≤ margin < to` (the last bin with its end).
    pub from: f64,
    pub to: f64,
    pub tokens: usize,
    /// Tokens at which the variant finds another one likeliest.
    pub flips: usize,
}

/// Parts of the longest sequence.
const POSITIONS: usize = 16;
/// Close calls are in fine bins: flips are among them.
const MARGINS: [f64; 9] = [0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0];

/// Mean divergence along the sequences, in at most 16 parts of equal length.
pub(super) fn by_position(tokens: &[TokenError]) -> Vec<PositionError> {
    let longest = tokens.iter().map(|t| t.position + 1).max().unwrap_or(0);
    let width = longest.div_ceil(POSITIONS).max(1);
    let part = |i: usize| {
        let (from, to) = (i * width, ((i + 1) * width).min(longest));
        let here = || tokens.iter().filter(|t| (from..to).contains(&t.position));
        let count = here().count();
        let share = |sum: f64| sum / count.max(1) as f64;
        PositionError {
            from,
            to,
            tokens: count,
            kl_mean: share(here().map(|t| t.kl).sum()),
            same_top: share(here().filter(|t| t.same_top()).count() as f64),
        }
    };
    (0..longest.div_ceil(width)).map(part).collect()
}

/// Flips by the baseline's margin.
pub(super) fn by_margin(tokens: &[TokenError]) -> Vec<MarginError> {
    let bins = MARGINS.windows(2).enumerate();
    bins.map(|(i, edges)| {
        let (from, to) = (edges[0], edges[1]);
        let last = i + 2 == MARGINS.len();
        let here = || tokens.iter().filter(move |t| t.margin >= from && (t.margin < to || last));
        let flips = here().filter(|t| !t.same_top()).count();
        MarginError { from, to, tokens: here().count(), flips }
    })
    .collect()
}

/// Everything scored so far.
#[derive(Default)]
pub(super) struct Totals {
    pub tokens: Vec<TokenError>,
    pub logits: Squares,
    pub quantization: Squares,
    pub kernel: Squares,
}

impl Totals {
    /// `kernels`: whether the variant ran under the reference kernels as well.
    pub(super) fn finish(&self, floor: Option<Floor>, kernels: bool) -> TextError {
        let tokens = &self.tokens;
        let count = tokens.len();
        let mean = |f: &dyn Fn(&TokenError) -> f64| {
            tokens.iter().map(f).sum::<f64>() / count.max(1) as f64
        };
        let mut kl: Vec<f64> = tokens.iter().map(|t| t.kl).collect();
        // Ascending; NaN comes last and so is the largest.
        kl.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let i = (share * count as f64).ceil() as usize;
            kl.get(i.clamp(1, count.max(1)) - 1).copied().unwrap_or(0.0)
        };
        TextError {
            tokens: count,
            kl_mean: mean(&|t| t.kl),
            kl_se: Estimate::of(kl.iter().copied()).standard_error,
            kl_median: at(0.5),
            kl_p99: at(0.99),
            kl_max: at(1.0),
            same_top: mean(&|t| f64::from(u8::from(t.same_top()))),
            dp_mean: mean(&|t| t.dp),
            dp_rms: mean(&|t| t.dp * t.dp).sqrt(),
            ppl_base: mean(&|t| t.nll[0]).exp(),
            ppl: mean(&|t| t.nll[1]).exp(),
            ppl_ratio: mean(&|t| t.nll[1] - t.nll[0]).exp(),
            logits_rel_l2: self.logits.rel_l2(),
            quantization_rel_l2: kernels.then(|| self.quantization.rel_l2()),
            kernel_rel_l2: kernels.then(|| self.kernel.rel_l2()),
            floor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_by_hand() {
        // Probabilities 1/2, 1/4, 1/4 and 1/4, 1/2, 1/4.
        let log = |p: [f32; 3]| p.map(f32::ln);
        let (base, ours) = (log([0.5, 0.25, 0.25]), log([0.25, 0.5, 0.25]));
        let t = TokenError::of(3, &ours, &base, 1);
        // 1e-6: logarithms in f32.
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert!(near(t.kl, 0.25 * 2.0f64.ln()) && near(t.margin, 0.25) && near(t.dp, 0.25));
        assert!(near(t.nll[0], 4.0f64.ln()) && near(t.nll[1], 2.0f64.ln()));
        assert!(t.tops == [0, 1] && !t.same_top());
    }

    #[test]
    fn parts_cover_every_token() {
        let token = |position: usize, margin: f64, ours: usize| TokenError {
            position,
            kl: position as f64,
            tops: [0, ours],
            margin,
            dp: 0.0,
            nll: [0.0; 2],
        };
        let tokens: Vec<TokenError> =
            (0..40).map(|i| token(i, i as f64 / 39.0, usize::from(i == 1))).collect();
        let parts = by_position(&tokens);
        assert_eq!(parts.iter().map(|p| p.tokens).sum::<usize>(), 40);
        assert_eq!((parts[0].from, parts[0].to, parts[0].kl_mean), (0, 3, 1.0));
        assert_eq!(parts.last().map(|p| (p.from, p.to, p.same_top)), Some((39, 40, 1.0)));
        let margins = by_margin(&tokens);
        assert_eq!(margins.iter().map(|m| m.tokens).sum::<usize>(), 40);
        assert_eq!((margins[1].flips, margins.iter().map(|m| m.flips).sum::<usize>()), (1, 1));
        assert!(by_position(&[]).is_empty());
    }
}
