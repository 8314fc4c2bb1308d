//! How fast a language model runs here and what it keeps in memory: the tests of llama.cpp's
//! `llama-bench` (prompts `pp`, generation `tg`, both also behind a filled cache).

use serde::Serialize;

use super::ceilings::Ceilings;
use crate::gpu::{Gpu, Sent};
use crate::text::decoder::{Decoder, Generated};
use crate::text::sampler::{Sampler, SamplerOptions};
use crate::{Error, Result};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Test {
    /// Tokens of a prompt, computed in chunks; 0 in a test of generation.
    pub prompt_tokens: usize,
    /// Tokens generated one by one; 0 in a test of a prompt.
    pub generated_tokens: usize,
    /// Tokens in the cache before.
    pub depth: usize,
}

impl Test {
    /// llama-bench's name: `pp512`, `tg64 @ d4096`.
    pub fn name(&self) -> String {
        let what = match self.generated_tokens {
            0 => format!("pp{}", self.prompt_tokens),
            n => format!("tg{n}"),
        };
        if self.depth == 0 { what } else { format!("{what} @ d{}", self.depth) }
    }
    /// Tokens that the cache must hold.
    pub fn context(&self) -> usize {
        // One token goes before the first that is generated, and one more ends the last interval.
        self.depth + self.prompt_tokens + self.generated_tokens + 2
    }
    fn tokens(&self) -> usize {
        self.prompt_tokens + self.generated_tokens
    }
}

/// One row of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub test: String,
    #[serde(flatten)]
    pub of: Test,
    /// Mean over the repetitions.
    pub tokens_per_second: f64,
    /// Standard deviation of the repetitions; 0 for one.
    pub stddev: f64,
    pub samples: Vec<f64>,
    /// Queue submissions per token.
    pub submissions_per_token: f64,
    /// Kernels launched per token.
    pub dispatches_per_token: f64,
    /// The share of the time that the host took to record commands and to hand them over, while the GPU worked or not.
    pub host_share: f64,
    /// Weights and cache that one token reads, times tokens per second; of generation only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gb_per_second: Option<f64>,
    /// Floating-point operations a second of a prompt, as its plans count them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gflop_s: Option<f64>,
    /// Of generation: bytes a second over those of a copy. Of a prompt: operations a second over the rate of FMA or of matrices, whichever is higher.
    pub fraction_of_ceiling: f64,
}

/// Bytes on the GPU while the model runs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    pub weights: u64,
    pub cache: u64,
    /// Of all plans together: they share it.
    pub activations: u64,
    /// Everything that was ever allocated at one time, staging included.
    pub peak: u64,
    /// Bytes of weights that one generated token reads.
    pub weights_read_per_token: u64,
}

/// Runs a test `repetitions` times after one run that does not count (shaders are compiled in it).
///
/// # Errors
/// As running does; `Interrupted` on Ctrl-C.
pub fn measure(
    gpu: &Gpu,
    decoder: &mut Decoder,
    test: Test,
    repetitions: usize,
    ceilings: &Ceilings,
) -> Result<Measured> {
    let mut samples = Vec::new();
    let (mut all, mut elapsed) = (Sent::default(), 0.0);
    for run in 0..=repetitions.max(1) {
        // The ids of all tests begin alike, so that the cache is filled to a depth only once.
        decoder.rewind(test.depth);
        let ids = random_ids(test.depth + test.prompt_tokens.max(1), decoder.vocab_size());
        if decoder.cached_tokens() < test.depth {
            generate(decoder, &ids[..test.depth], 1)?;
        }
        let most = if test.generated_tokens > 0 { test.generated_tokens + 1 } else { 1 };
        let before = gpu.sent();
        let done = generate(decoder, &ids, most)?;
        let (seconds, sent) = match test.generated_tokens {
            0 => (done.prefill_seconds, gpu.sent().since(before)),
            _ => (done.decode_seconds, done.decode_sent),
        };
        if run > 0 {
            samples.push(test.tokens() as f64 / seconds.max(1e-9));
            all += sent;
            elapsed += seconds;
        }
    }
    let tokens = (samples.len() * test.tokens()) as f64;
    let (mean, stddev) = spread(&samples);
    let row = decoder.cache_bytes() as f64 / decoder.context() as f64;
    let depth = test.depth as f64 + test.generated_tokens as f64 / 2.0;
    let read = decoder.weight_bytes_per_token() as f64 + row * depth;
    let generates = test.generated_tokens > 0;
    let gb_per_second = generates.then_some(read * mean / 1e9);
    let flops = decoder.flops_of_prompt(test.prompt_tokens);
    let gflop_s = (!generates).then_some(flops * mean / test.tokens() as f64 / 1e9);
    let of_copy = gb_per_second.map(|rate| rate / ceilings.copy_gb_s);
    let of_fma = gflop_s.map(|rate| rate / ceilings.gflop_s());
    Ok(Measured {
        test: test.name(),
        of: test,
        tokens_per_second: mean,
        stddev,
        submissions_per_token: all.submissions as f64 / tokens,
        dispatches_per_token: all.dispatches as f64 / tokens,
        host_share: all.host.as_secs_f64() / f64::max(elapsed, 1e-9),
        gb_per_second,
        gflop_s,
        fraction_of_ceiling: of_copy.or(of_fma).unwrap_or(0.0),
        samples,
    })
}

/// Mean and standard deviation; the latter is 0 for one sample.
pub(super) fn spread(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let variance = samples.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, variance.sqrt())
}

fn generate(decoder: &mut Decoder, prompt: &[u32], most: usize) -> Result<Generated> {
    let options = SamplerOptions { temperature: 0.0, ..Default::default() };
    let mut sampler = Sampler::new(options)?;
    let done = decoder.generate(prompt, most, &mut sampler, &mut |_| Ok(true))?;
    if done.interrupted {
        return Err(Error::Interrupted);
    }
    Ok(done)
}

/// The same tokens in every run, spread over the vocabulary (Knuth's multiplicative hash).
fn random_ids(count: usize, vocab: usize) -> Vec<u32> {
    let hash = |i: usize| (i as u32 + 1).wrapping_mul(2_654_435_761);
    let id = |i: usize| (u64::from(hash(i)) * vocab as u64) >> 32;
    (0..count).map(|i| id(i) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_are_llama_bench_s() {
        let pp = Test { prompt_tokens: 512, generated_tokens: 0, depth: 0 };
        let tg = Test { prompt_tokens: 0, generated_tokens: 64, depth: 4096 };
        assert_eq!((pp.name().as_str(), tg.name().as_str()), ("pp512", "tg64 @ d4096"));
        assert_eq!((pp.context(), tg.context()), (514, 4162));
    }

    #[test]
    fn ids_lie_in_the_vocabulary() {
        let ids = random_ids(1000, 320);
        assert!(ids.iter().all(|id| *id < 320) && ids.iter().any(|id| *id > 300));
        assert!(random_ids(3, 1) == [0, 0, 0]);
    }
}
