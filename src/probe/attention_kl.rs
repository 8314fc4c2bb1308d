//! Attention probabilities of two runs, computed on the host from tapped queries and keys: how much of what
//! a query looks at has changed.

use rayon::prelude::*;
use serde::Serialize;

use crate::quant::metrics::{kl_divergence_of, log_softmax};
use crate::tensor::Tensor;

/// The probabilities of one attention, over its heads and queries.
#[derive(Clone, Debug, Serialize)]
pub struct AttentionError {
    /// The path of the attention.
    pub name: String,
    /// Mean Kullback-Leibler divergence of the variant's probabilities from the baseline's, in nats.
    pub kl_mean: f64,
    /// Share of queries whose strongest key is another one.
    pub top_flips: f64,
    /// Mean entropy of the baseline's probabilities in nats: ln of the keys that a query looks at.
    pub entropy: f64,
}

/// What queries are tapped as. Their keys have `.k` instead, or `.k.causal` where a query sees those up to
/// its own token only. Both are `[B, tokens, heads, channels]`.
const QUERIES: &str = ".q";
/// Most queries of a head that are looked at, evenly spread.
const MOST: usize = 256;

/// softmax(q·k / √channels) of every attention whose queries and keys were tapped in both runs.
pub fn attention_errors(
    variant: &[(String, Tensor)],
    baseline: &[(String, Tensor)],
) -> Vec<AttentionError> {
    let find = |list: &[(String, Tensor)], name: &str| {
        list.iter().find(|(n, _)| n == name).map(|(_, tensor)| Heads::of(tensor))
    };
    let attention = |(name, tensor): &(String, Tensor)| {
        let path = name.strip_suffix(QUERIES)?;
        let keys = [format!("{path}.k"), format!("{path}.k.causal")];
        let keys = keys.iter().find(|k| baseline.iter().any(|(n, _)| n == *k))?;
        let theirs = [Heads::of(tensor)?, find(baseline, keys)??];
        let ours = [find(variant, name)??, find(variant, keys)??];
        let causal = keys.ends_with("causal");
        Some(compare(path, &ours, &theirs, causal))
    };
    baseline.iter().filter_map(attention).collect()
}

/// `[batch, tokens, heads, channels]`
struct Heads {
    values: Vec<f32>,
    shape: [usize; 4],
}

impl Heads {
    fn of(tensor: &Tensor) -> Option<Heads> {
        let shape: [usize; 4] = tensor.shape.as_slice().try_into().ok()?;
        Some(Heads { values: tensor.to_f32(), shape })
    }
    fn at(&self, batch: usize, token: usize, head: usize) -> &[f32] {
        let [_, tokens, heads, channels] = self.shape;
        &self.values[((batch * tokens + token) * heads + head) * channels..][..channels]
    }
}

/// Logarithms of the probabilities of one query. Several heads of queries may share one of keys.
fn log_probabilities(
    [q, k]: &[Heads; 2],
    (batch, head, query): (usize, usize, usize),
    causal: bool,
) -> Vec<f64> {
    let [_, _, heads, channels] = q.shape;
    let [_, tokens, kv_heads, _] = k.shape;
    let kv_head = head * kv_heads / heads;
    let seen = if causal { query + 1 } else { tokens };
    let row = q.at(batch, query, head);
    let score = |key: usize| {
        let products = row.iter().zip(k.at(batch, key, kv_head));
        products.map(|(a, b)| a * b).sum::<f32>() / (channels as f32).sqrt()
    };
    log_softmax(&(0..seen.min(tokens)).map(score).collect::<Vec<f32>>())
}

fn compare(name: &str, ours: &[Heads; 2], theirs: &[Heads; 2], causal: bool) -> AttentionError {
    let [batch, queries, heads, _] = theirs[0].shape;
    let stride = queries.div_ceil(MOST).max(1);
    let places: Vec<(usize, usize, usize)> = (0..batch)
        .flat_map(|b| (0..heads).map(move |h| (b, h)))
        .flat_map(|(b, h)| (0..queries).step_by(stride).map(move |q| (b, h, q)))
        .collect();
    let figures: Vec<[f64; 3]> = places
        .par_iter()
        .map(|place| {
            let (p, q) = (
                log_probabilities(theirs, *place, causal),
                log_probabilities(ours, *place, causal),
            );
            let entropy = -p.iter().map(|p| p.exp() * p).sum::<f64>();
            let flip = strongest(&p) != strongest(&q);
            [kl_divergence_of(&p, &q), f64::from(u8::from(flip)), entropy]
        })
        .collect();
    let mean = |i: usize| figures.iter().map(|f| f[i]).sum::<f64>() / figures.len().max(1) as f64;
    AttentionError {
        name: name.to_string(),
        kl_mean: mean(0),
        top_flips: mean(1),
        entropy: mean(2),
    }
}

fn strongest(log: &[f64]) -> Option<usize> {
    (0..log.len()).max_by(|a, b| log[*a].total_cmp(&log[*b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_by_hand() {
        // One head of four channels, one query, keys along the first two axes.
        let keys = Tensor::f32(&[1, 2, 1, 4], vec![1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        // Scores q / 2: ln 3 and 0, so that P = 3/4, 1/4; the other way round in the variant.
        let ln9 = 2.0 * 3.0f32.ln();
        let query = |a: f32, b: f32| Tensor::f32(&[1, 1, 1, 4], vec![a, b, 0.0, 0.0]);
        let taps = |q: Tensor| vec![("a.q".to_string(), q), ("a.k".to_string(), keys.clone())];
        let errors = attention_errors(&taps(query(0.0, ln9)), &taps(query(ln9, 0.0)));
        // 1e-6: scores in f32.
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert_eq!((errors.len(), errors[0].name.as_str(), errors[0].top_flips), (1, "a", 1.0));
        assert!(near(errors[0].kl_mean, 0.5 * 3.0f64.ln()), "{errors:?}");
        assert!(near(errors[0].entropy, 4.0f64.ln() - 0.75 * 3.0f64.ln()));
        let same = attention_errors(&taps(query(1.0, 2.0)), &taps(query(1.0, 2.0)));
        assert_eq!((same[0].kl_mean, same[0].top_flips), (0.0, 0.0));
    }

    #[test]
    fn a_causal_query_sees_its_past() {
        let tokens = |values: Vec<f32>| Tensor::f32(&[1, 2, 1, 1], values);
        let taps = |k: Vec<f32>| {
            let q = ("a.q".to_string(), tokens(vec![1.0, 1.0]));
            vec![q, ("a.k.causal".to_string(), tokens(k))]
        };
        // Another second key changes nothing for the first query, and halves the mean.
        let errors = attention_errors(&taps(vec![0.0, 3.0f32.ln()]), &taps(vec![0.0, 0.0]));
        let half = 0.5 * (0.5f64 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln());
        assert!((errors[0].kl_mean - half).abs() < 1e-6, "{errors:?}");
        assert!((errors[0].entropy - 0.5 * 2.0f64.ln()).abs() < 1e-6);
    }
}
