//! Logits to the next token.
//!
//! Stages run in llama.cpp's default order (common/sampling.cpp): logit bias, penalties, top-k, typical,
//! top-p, min-p, transformers' cutoffs, temperature, draw. So the nuclei are cut on the model's own distribution and
//! temperature only reshapes what is left; transformers scales by temperature first.
//!
//! With l the logits of the candidates left and p = softmax(l):
//!
//! | stage | keeps or changes |
//! |---|---|
//! | bias | l_i += b_i; b = −∞ forbids a token |
//! | repetition (Keskar et al. 2019, CTRL, section 4.1) | l_i /= r where l_i > 0, l_i *= r otherwise, for tokens seen |
//! | frequency, presence (OpenAI) | l_i −= count_i · f + \[count_i > 0\] · q |
//! | top-k | the k largest l |
//! | typical (Meister et al. 2022) | smallest set by \|−ln p_i − H\|, H = −Σ p ln p, whose mass exceeds t |
//! | top-p (Holtzman et al. 2019) | smallest set of the largest p whose mass reaches t |
//! | min-p (Nguyen et al. 2024) | p_i ≥ m · max p |
//! | epsilon, eta (Hewitt et al. 2022) | p_i ≥ ε; p_i ≥ min(η, √η · exp(−H)) |
//! | temperature | l_i / T; T = 0 takes the largest l, the lowest id where two are equal |
//!
//! Every stage leaves at least one candidate.

use std::collections::{HashMap, HashSet, VecDeque};

use super::candidates::{Candidate, cutoff, keep_largest, min_p, softmax, top_p, typical};
use crate::{Error, Result};

/// Settings of a [`Sampler`]. The default changes nothing but draws at temperature 1.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits before the draw; 0 is greedy.
    pub temperature: f32,
    /// Candidates kept; 0 is all.
    pub top_k: usize,
    /// Mass of the nucleus, (0, 1]; 1 is off.
    pub top_p: f32,
    /// Share of the best probability, [0, 1]; 0 is off.
    pub min_p: f32,
    /// Mass of the typical set, (0, 1]; 1 is off.
    pub typical_p: f32,
    /// Above 1 discourages tokens already seen; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from every token already seen; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted for each time a token was seen; 0 is off.
    pub frequency_penalty: f32,
    /// Tokens that the three penalties look back on; `usize::MAX` is all of them.
    pub penalty_last_n: usize,
    /// Added to the logits of these ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// None of `end_tokens` is chosen before so many tokens.
    pub min_tokens: usize,
    /// What ends a text, for `min_tokens`.
    pub end_tokens: Vec<u32>,
    /// No sequence of so many tokens comes twice, the prompt's included; 0 is off.
    pub no_repeat_ngram: usize,
    /// Sequences whose last token is not chosen after those before it.
    pub bad_words: Vec<Vec<u32>>,
    /// Not chosen as the first token.
    pub begin_suppress: Vec<u32>,
    /// Least probability; 0 is off (Hewitt et al. 2022, epsilon sampling).
    pub epsilon_cutoff: f32,
    /// Least probability min(η, √η · exp(−H)), H the entropy; 0 is off (the same paper, eta sampling).
    pub eta_cutoff: f32,
    /// Start of the random sequence.
    pub seed: u64,
    /// How many of the likeliest tokens to report beside the chosen one.
    pub top_logprobs: usize,
}

impl Default for SamplerOptions {
    fn default() -> SamplerOptions {
        SamplerOptions {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_last_n: 64, // llama.cpp's default
            logit_bias: Vec::new(),
            min_tokens: 0,
            end_tokens: Vec::new(),
            no_repeat_ngram: 0,
            bad_words: Vec::new(),
            begin_suppress: Vec::new(),
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            seed: 0,
            top_logprobs: 0,
        }
    }
}

impl SamplerOptions {
    /// Greedy: always the likeliest token.
    pub fn greedy() -> SamplerOptions {
        SamplerOptions { temperature: 0.0, ..SamplerOptions::default() }
    }

    /// True when the choice is the largest raw logit, so that an argmax on the GPU will do.
    pub fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && self.needs_only_the_best()
    }

    /// True when the likeliest candidates are enough: nothing moves the logits and no probability is
    /// reported.
    pub fn needs_only_the_best(&self) -> bool {
        !self.has_penalty()
            && self.logit_bias.is_empty()
            && self.top_logprobs == 0
            && self.min_tokens == 0
            && !self.has_bans()
    }

    /// Whether what came before forbids tokens.
    fn has_bans(&self) -> bool {
        self.no_repeat_ngram > 0 || !self.bad_words.is_empty() || !self.begin_suppress.is_empty()
    }

    fn has_penalty(&self) -> bool {
        self.penalty_last_n > 0
            && (self.repetition_penalty != 1.0
                || self.presence_penalty != 0.0
                || self.frequency_penalty != 0.0)
    }

    /// Names the first setting that is out of range.
    pub fn check(&self) -> Result<()> {
        let wrong = |name: &str, value: f32, range: &str| {
            Err(Error::Usage(format!("{name} is {value}; it must be {range}")))
        };
        for (name, value) in [
            ("temperature", self.temperature),
            ("presence penalty", self.presence_penalty),
            ("frequency penalty", self.frequency_penalty),
        ] {
            if !value.is_finite() {
                return wrong(name, value, "a finite number");
            }
        }
        if self.temperature < 0.0 {
            return wrong("temperature", self.temperature, "0 (greedy) or more");
        }
        for (name, value) in [("top-p", self.top_p), ("typical-p", self.typical_p)] {
            if !(value > 0.0 && value <= 1.0) {
                return wrong(name, value, "above 0 and at most 1 (1 turns it off)");
            }
        }
        for (name, value) in [
            ("min-p", self.min_p),
            ("epsilon_cutoff", self.epsilon_cutoff),
            ("eta_cutoff", self.eta_cutoff),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return wrong(name, value, "from 0 (off) to 1");
            }
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return wrong(
                "repetition penalty",
                self.repetition_penalty,
                "above 0 (1 turns it off)",
            );
        }
        match self.logit_bias.iter().find(|(_, b)| b.is_nan() || *b == f32::INFINITY) {
            Some((id, b)) => {
                wrong(&format!("logit bias of token {id}"), *b, "a number or minus infinity")
            }
            None => Ok(()),
        }
    }
}

/// What the model put out for one position.
#[derive(Debug, Clone, Copy)]
pub enum Logits<'a> {
    /// One value per id of the vocabulary.
    Full(&'a [f32]),
    /// The likeliest tokens (id, logit), largest first, as a top-k kernel returns them; tokens outside
    /// of the list cannot be chosen. `log_sum_exp` is ln Σ e^l over the whole vocabulary where the
    /// kernel knows it; without it log-probabilities are relative to the list.
    Top { candidates: &'a [(u32, f32)], log_sum_exp: Option<f32> },
}

/// A chosen token. Log-probabilities are the model's own, before any stage, as OpenAI reports them.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    pub token: u32,
    /// ln p of the token.
    pub logprob: f32,
    /// The likeliest tokens and their ln p, largest first; as many as `top_logprobs` asks.
    pub top: Vec<(u32, f32)>,
}

/// Chooses tokens; remembers what it saw for the penalties, and its place in the random sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplerOptions,
    random: Pcg32,
    seen: VecDeque<u32>,
    counts: HashMap<u32, u32>,
    /// Tokens chosen so far.
    chosen: usize,
    /// All tokens so far, where they may forbid others.
    history: Vec<u32>,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence.
    pub fn new(options: SamplerOptions) -> Result<Sampler> {
        options.check()?;
        let random = Pcg32::new(options.seed);
        Ok(Sampler {
            options,
            random,
            seen: VecDeque::new(),
            counts: HashMap::new(),
            chosen: 0,
            history: Vec::new(),
        })
    }

    /// The settings in use.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Forgets what it saw and starts the random sequence again.
    pub fn reset(&mut self) {
        self.random = Pcg32::new(self.options.seed);
        self.seen.clear();
        self.counts.clear();
        self.chosen = 0;
        self.history.clear();
    }

    /// Remembers a token for the penalties. [`sample`](Sampler::sample) does it for what it chooses;
    /// call it for the prompt's tokens, which count too.
    pub fn accept(&mut self, token: u32) {
        if self.options.has_bans() {
            self.history.push(token);
        }
        if !self.options.has_penalty() {
            return;
        }
        self.seen.push_back(token);
        *self.counts.entry(token).or_default() += 1;
        while self.seen.len() > self.options.penalty_last_n {
            let Some(old) = self.seen.pop_front() else { break };
            if let Some(count) = self.counts.get_mut(&old) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&old);
                }
            }
        }
    }

    /// Chooses the next token and remembers it. Fails where a logit is NaN or infinite, because the
    /// text after it would be noise.
    pub fn sample(&mut self, logits: Logits<'_>) -> Result<Chosen> {
        check_finite(logits)?;
        let raw: Vec<Candidate> = match logits {
            Logits::Full(all) => {
                all.iter().enumerate().map(|(i, l)| Candidate { id: i as u32, logit: *l }).collect()
            }
            Logits::Top { candidates, .. } => {
                candidates.iter().map(|(id, l)| Candidate { id: *id, logit: *l }).collect()
            }
        };
        let token = self.choose(raw.clone())?;
        let logprobs = Logprobs::new(&raw, logits);
        let logprob = raw.iter().find(|c| c.id == token).map_or(f32::NAN, |c| logprobs.of(c.logit));
        let mut top = raw;
        keep_largest(&mut top, self.options.top_logprobs);
        let top = top.iter().map(|c| (c.id, logprobs.of(c.logit))).collect();
        self.accept(token);
        self.chosen += 1;
        Ok(Chosen { token, logprob, top })
    }

    fn choose(&mut self, mut left: Vec<Candidate>) -> Result<u32> {
        let options = &self.options;
        self.penalize(&mut left);
        let early = self.chosen < options.min_tokens;
        let ends = |id| early && options.end_tokens.contains(&id);
        let banned = self.banned();
        left.retain(|c| c.logit > f32::NEG_INFINITY && !ends(c.id) && !banned.contains(&c.id));
        if left.is_empty() {
            return Err(Error::Usage(
                "the logit bias forbids every candidate; allow at least one token".to_string(),
            ));
        }
        if options.temperature == 0.0 {
            keep_largest(&mut left, 1);
            return Ok(left[0].id);
        }
        let k = if options.top_k == 0 { left.len() } else { options.top_k };
        keep_largest(&mut left, k);
        typical(&mut left, options.typical_p);
        top_p(&mut left, options.top_p);
        min_p(&mut left, options.min_p);
        cutoff(&mut left, options.epsilon_cutoff, options.eta_cutoff);
        let weights = softmax(&left, options.temperature);
        Ok(left[draw(&weights, self.random.unit())].id)
    }

    /// Tokens that what came before forbids (transformers' `NoRepeatNGramLogitsProcessor`,
    /// `NoBadWordsLogitsProcessor`, `SuppressTokensAtBeginLogitsProcessor`).
    fn banned(&self) -> HashSet<u32> {
        let (options, history) = (&self.options, &self.history);
        let mut banned = HashSet::new();
        if self.chosen == 0 {
            banned.extend(&options.begin_suppress);
        }
        let n = options.no_repeat_ngram;
        if n > 0 && history.len() >= n {
            let last = &history[history.len() - (n - 1)..];
            let again = history.windows(n).filter(|seen| seen[..n - 1] == *last);
            banned.extend(again.map(|seen| seen[n - 1]));
        }
        for word in &options.bad_words {
            if let Some((last, before)) = word.split_last()
                && history.ends_with(before)
            {
                banned.insert(*last);
            }
        }
        banned
    }

    fn penalize(&self, left: &mut [Candidate]) {
        let options = &self.options;
        if options.logit_bias.is_empty() && self.counts.is_empty() {
            return;
        }
        let mut bias: HashMap<u32, f32> = HashMap::new();
        for (id, b) in &options.logit_bias {
            *bias.entry(*id).or_default() += b;
        }
        for c in left {
            c.logit += bias.get(&c.id).copied().unwrap_or(0.0);
            let Some(&count) = self.counts.get(&c.id) else { continue };
            let r = options.repetition_penalty;
            c.logit = if c.logit > 0.0 { c.logit / r } else { c.logit * r };
            c.logit -= count as f32 * options.frequency_penalty + options.presence_penalty;
        }
    }
}

/// ln softmax of raw logits.
struct Logprobs {
    log_sum_exp: f64,
}

impl Logprobs {
    fn new(raw: &[Candidate], logits: Logits<'_>) -> Logprobs {
        if let Logits::Top { log_sum_exp: Some(known), .. } = logits {
            return Logprobs { log_sum_exp: f64::from(known) };
        }
        let max = raw.iter().map(|c| f64::from(c.logit)).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = raw.iter().map(|c| (f64::from(c.logit) - max).exp()).sum();
        Logprobs { log_sum_exp: max + sum.ln() }
    }

    fn of(&self, logit: f32) -> f32 {
        (f64::from(logit) - self.log_sum_exp) as f32
    }
}

fn check_finite(logits: Logits<'_>) -> Result<()> {
    let values: Vec<(usize, f32)> = match logits {
        Logits::Full(all) => {
            all.iter().copied().enumerate().filter(|(_, l)| !l.is_finite()).collect()
        }
        Logits::Top { candidates, .. } => candidates
            .iter()
            .map(|(id, l)| (*id as usize, *l))
            .filter(|(_, l)| !l.is_finite())
            .collect(),
    };
    let total = match logits {
        Logits::Full(all) => all.len(),
        Logits::Top { candidates, .. } => candidates.len(),
    };
    if total == 0 {
        return Err(Error::Runtime("no logits to choose a token from".to_string()));
    }
    match values.first() {
        None => Ok(()),
        Some((id, value)) => Err(Error::Runtime(format!(
            "the model produced logits that are not finite: {} of {total}, the first {value} at token \
             {id}. Its weights or an overflow in a layer are the cause, not the sampling; \
             `inknib compare` names the layer",
            values.len()
        ))),
    }
}

/// Index of the candidate whose slice of [0, 1) holds `u`.
fn draw(weights: &[f64], u: f64) -> usize {
    let mut sum = 0.0;
    let hit = weights.iter().position(|w| {
        sum += w;
        u < sum
    });
    // Rounding can leave the sum a hair below 1; the last slice takes the rest.
    hit.unwrap_or(weights.len().saturating_sub(1))
}

/// PCG-XSH-RR 64/32 (O'Neill 2014, www.pcg-random.org): integer arithmetic only, so a seed gives the
/// same sequence on every platform. Only the last bit of `exp` may differ between platforms, which
/// decides a draw about once in 10¹⁵.
#[derive(Debug, Clone)]
struct Pcg32 {
    state: u64,
}

impl Pcg32 {
    const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
    /// Stream 54, that of the reference demo.
    const INCREMENT: u64 = (54 << 1) | 1;

    fn new(seed: u64) -> Pcg32 {
        let mut random = Pcg32 { state: 0 };
        random.next();
        random.state = random.state.wrapping_add(seed);
        random.next();
        random
    }

    fn next(&mut self) -> u32 {
        let old = self.state;
        self.state = old.wrapping_mul(Self::MULTIPLIER).wrapping_add(Self::INCREMENT);
        let xored = (((old >> 18) ^ old) >> 27) as u32;
        xored.rotate_right((old >> 59) as u32)
    }

    /// Uniform in [0, 1), 53 bits.
    fn unit(&mut self) -> f64 {
        let high = u64::from(self.next()) >> 5;
        let low = u64::from(self.next()) >> 6;
        ((high << 26) | low) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
