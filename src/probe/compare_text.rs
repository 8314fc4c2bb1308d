//! A language model compared: the baseline answers greedily (or a text is given), and every model
//! scores the same tokens (teacher-forced), as llama.cpp's `perplexity --kl-divergence` does.
//! Only one set of weights is resident at a time.

use std::path::PathBuf;

use serde::Serialize;

use super::compare::{Check, Coarseness, LayerError, Limits, OnStage, Squares, Verdict, layers};
use super::scorer::{CHUNK, Scorer, argmax};
use crate::gpu::{Elem, Gpu};
use crate::graph::Kernels;
use crate::nets::language::{Language, LanguageConfig};
use crate::nn::{LoadReport, Loader};
use crate::quant::Recipe;
use crate::quant::metrics::{kl_divergence, log_softmax};
use crate::text::template::{Message, RenderOptions, Template};
use crate::text::tokenizer::Tokenizer;
use crate::weights::WeightStore;
use crate::{Error, Result};

/// What is compared with what.
#[derive(Clone, Debug)]
pub struct TextOptions {
    pub folder: PathBuf,
    /// The variant's weights; the baseline's are fp16.
    pub weights: String,
    /// The variant's kernels; the baseline's are the reference.
    pub kernels: Kernels,
    /// How both store activations.
    pub act: Elem,
    /// Measure fp16 against fp32 weights as well, which loads the model once more.
    pub floor: bool,
    pub passage: Passage,
}

/// The tokens that are scored.
#[derive(Clone, Debug)]
pub enum Passage {
    /// The baseline's greedy answers, at most so many tokens each.
    Questions { questions: Vec<String>, most: usize },
    /// The second half of each of the first windows of a text, as llama.cpp scores.
    Text { text: String, windows: usize },
}

/// One answer or window.
#[derive(Clone, Debug, Serialize)]
pub struct Scored {
    /// The question; empty for a window of text.
    pub question: String,
    /// The baseline's answer, or the scored text.
    pub text: String,
    pub tokens: usize,
    pub kl_mean: f64,
    /// Share of positions whose likeliest token is the baseline's.
    pub same_top: f64,
    /// The first scored position at which greedy decoding would go another way, counted from 0.
    pub first_divergence: Option<usize>,
    /// The baseline's and the variant's likeliest token there.
    pub parted: Option<[String; 2]>,
}

/// Error sizes of logits: ‖a−b‖ / ‖b‖ over all scored positions and the vocabulary.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Floor {
    pub kl_mean: f64,
    pub same_top: f64,
    pub logits_rel_l2: f64,
}

/// The figures over all scored tokens.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TextError {
    pub tokens: usize,
    /// Nats, of the variant from the baseline.
    pub kl_mean: f64,
    pub kl_p99: f64,
    pub kl_max: f64,
    /// Share (0 to 1) of positions whose likeliest token is the baseline's.
    pub same_top: f64,
    /// Perplexity of the scored tokens; of the baseline's own answers it is low.
    pub ppl_base: f64,
    pub ppl: f64,
    /// exp of the mean difference of the negative log-likelihoods.
    pub ppl_ratio: f64,
    /// Weights and kernels together.
    pub logits_rel_l2: f64,
    /// The variant's weights against fp16, both under the reference kernels.
    pub quantization_rel_l2: f64,
    /// The variant's kernels against the reference on the variant's weights.
    pub kernel_rel_l2: f64,
    /// fp16 against fp32 weights under the fast kernels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<Floor>,
}

/// The whole comparison.
#[derive(Clone, Debug, Serialize)]
pub struct TextReport {
    pub layers: Vec<LayerError>,
    pub llm: TextError,
    pub passages: Vec<Scored>,
    pub bits_per_weight: f64,
    pub resident_bytes: u64,
    pub limits: Limits,
    pub checks: Vec<Check>,
    pub verdict: Verdict,
}

impl TextOptions {
    /// What is expected of these weights.
    pub fn limits(&self) -> Result<Limits> {
        Ok(Limits::of(Coarseness::of(&self.weights, "llm")?, self.act))
    }
}

/// llama.cpp's default window.
const WINDOW: usize = 512;

/// Tokens of which the last ones are scored.
struct Sequence {
    question: String,
    ids: Vec<u32>,
    /// The logits of this position and those after it are scored, each by the token that follows it.
    from: usize,
}

impl Sequence {
    fn targets(&self) -> &[u32] {
        &self.ids[self.from + 1..]
    }
}

/// The logits `[scored, vocab]` of a sequence.
fn score(scorer: &mut Scorer<'_>, sequence: &Sequence) -> Result<Vec<f32>> {
    scorer.logits(&sequence.ids[..sequence.ids.len() - 1], 0, sequence.from)
}

struct Work<'a, 'b> {
    gpu: &'a Gpu,
    options: &'a TextOptions,
    config: LanguageConfig,
    tokenizer: Tokenizer,
    on_stage: &'a mut OnStage<'b>,
}

/// Compares. `limits`: what may differ.
///
/// # Errors
/// As loading and running do; figures over their limits are no error here but in
/// [`super::compare::judge`].
pub fn compare_text(
    gpu: &Gpu,
    options: &TextOptions,
    limits: Limits,
    on_stage: &mut OnStage<'_>,
) -> Result<TextReport> {
    let config = LanguageConfig::read(&options.folder)?;
    let tokenizer = Tokenizer::load(&options.folder)?;
    let mut work = Work { gpu, options, config, tokenizer, on_stage };
    let (mut sequences, context) = work.passages()?;

    let (net, _) = work.load("fp16")?;
    let mut scorer = Scorer::new(gpu, &net, (context, options.act, Kernels::Reference))?;
    work.answer(&mut scorer, &mut sequences)?;
    let base = work.score_all(&mut scorer, &sequences, "baseline")?;
    let base_taps = scorer.taps(&sequences[0].ids)?;
    drop(scorer);
    let floor = if options.floor {
        let mut scorer = Scorer::new(gpu, &net, (context, options.act, Kernels::Fast))?;
        Some(work.score_all(&mut scorer, &sequences, "fp16 weights, fast kernels")?)
    } else {
        None
    };
    drop(net);
    let floor = floor.map(|fp16| work.floor(&fp16, &sequences, context)).transpose()?;

    let (net, resident) = work.load(&options.weights)?;
    let mut fast = Scorer::new(gpu, &net, (context, options.act, options.kernels))?;
    let mut reference = Scorer::new(gpu, &net, (context, options.act, Kernels::Reference))?;
    let layers = layers(&fast.taps(&sequences[0].ids)?, &base_taps)?;
    let (mut totals, mut passages) = (Totals::default(), Vec::new());
    for (i, (sequence, base)) in sequences.iter().zip(&base).enumerate() {
        (work.on_stage)(&format!("{}, both kernels", options.weights), i, sequences.len());
        let judged = [score(&mut fast, sequence)?, score(&mut reference, sequence)?];
        passages.push(work.passage(sequence, base, &judged, &mut totals)?);
    }
    let llm = totals.finish(floor);
    let checks = checks(&llm, &limits);
    Ok(TextReport {
        layers,
        llm,
        passages,
        bits_per_weight: resident.bits_per_weight(),
        resident_bytes: resident.resident_bytes(),
        limits,
        verdict: Verdict::of(&checks),
        checks,
    })
}

fn checks(llm: &TextError, limits: &Limits) -> Vec<Check> {
    // One token of a short answer is a large share, and a tie proves nothing: below 1 the limit always
    // lets one differ.
    let one = 1.0 - 1.0 / llm.tokens.max(1) as f64;
    let limit = limits.min_same_top;
    let same_top = if limit < 1.0 { limit.min(one) } else { limit };
    let kernel = (llm.kernel_rel_l2, limits.max_kernel_error);
    vec![
        Check::at_most("kernel error (logits, rel. L2)", kernel.0, kernel.1),
        Check::at_most("mean KL divergence (nats)", llm.kl_mean, limits.max_kl),
        Check::at_least("same likeliest token (share)", llm.same_top, same_top),
    ]
}

impl Work<'_, '_> {
    fn load(&mut self, weights: &str) -> Result<(Language, LoadReport)> {
        (self.on_stage)(&format!("loading {weights}"), 0, 0);
        let folder = &self.options.folder;
        let (store, recipe) = (WeightStore::open(folder)?, Recipe::from_argument(weights, "llm")?);
        let loader = Loader::new(self.gpu, &store, &recipe);
        let net = Language::load(&loader, &self.config)?;
        let report = loader.report();
        Ok((net, report))
    }

    /// Prompts without their answers, or windows of the text; and the context that holds them.
    fn passages(&self) -> Result<(Vec<Sequence>, usize)> {
        let longest = self.config.max_position_embeddings();
        let (sequences, more) = match &self.options.passage {
            Passage::Questions { questions, most } => (self.prompts(questions)?, *most),
            Passage::Text { text, windows } => (self.windows(text, *windows, longest)?, 0),
        };
        let most = sequences.iter().map(|s| s.ids.len()).max().unwrap_or(0);
        if most == 0 || (more > 0 && most >= longest) {
            return Err(Error::Usage(format!(
                "a question has {most} tokens, the model was trained for {longest}; give 1 to {}",
                longest.saturating_sub(1)
            )));
        }
        // Whole chunks, so that padding stays inside the cache where the model allows it.
        Ok((sequences, (most + more).next_multiple_of(CHUNK).min(longest)))
    }

    fn prompts(&self, questions: &[String]) -> Result<Vec<Sequence>> {
        let template = Template::load(&self.options.folder)?;
        let prompt = |question: &String| {
            let messages = [Message::user(question)];
            let text = template.render(&messages, &RenderOptions::default())?;
            let ids = self.tokenizer.encode(&text, false)?;
            let from = ids.len().saturating_sub(1);
            Ok(Sequence { question: question.clone(), ids, from })
        };
        questions.iter().map(prompt).collect()
    }

    fn windows(&self, text: &str, most: usize, longest: usize) -> Result<Vec<Sequence>> {
        let ids = self.tokenizer.encode(text, true)?;
        let window = WINDOW.min(longest);
        let cut = |ids: &[u32]| {
            let from = ids.len() / 2 - 1;
            Sequence { question: String::new(), ids: ids.to_vec(), from }
        };
        // Fewer tokens say nothing.
        let long = |ids: &&[u32]| ids.len() >= 8;
        let whole: Vec<Sequence> =
            ids.chunks(window).filter(long).take(most.max(1)).map(cut).collect();
        if whole.is_empty() {
            let count = ids.len();
            return Err(Error::Usage(format!("the text has {count} tokens; 8 are the least")));
        }
        Ok(whole)
    }

    /// Lets the baseline answer the questions.
    fn answer(&mut self, scorer: &mut Scorer<'_>, sequences: &mut [Sequence]) -> Result<()> {
        let Passage::Questions { most, .. } = &self.options.passage else { return Ok(()) };
        let (stops, count) = (self.tokenizer.end_of_turn_ids(), sequences.len());
        for (i, sequence) in sequences.iter_mut().enumerate() {
            (self.on_stage)("the baseline answers", i, count);
            let answer = scorer.greedy(&sequence.ids, *most, &stops)?;
            sequence.ids.extend(answer);
        }
        Ok(())
    }

    fn score_all(
        &mut self,
        scorer: &mut Scorer<'_>,
        sequences: &[Sequence],
        stage: &str,
    ) -> Result<Vec<Vec<f32>>> {
        let each = sequences.iter().enumerate();
        each.map(|(i, sequence)| {
            (self.on_stage)(stage, i, sequences.len());
            score(scorer, sequence)
        })
        .collect()
    }

    /// fp16 against fp32 weights under the fast kernels.
    fn floor(&mut self, fp16: &[Vec<f32>], all: &[Sequence], context: usize) -> Result<Floor> {
        let (net, _) = self.load("fp32")?;
        let mut scorer = Scorer::new(self.gpu, &net, (context, self.options.act, Kernels::Fast))?;
        let fp32 = self.score_all(&mut scorer, all, "fp32 weights, fast kernels")?;
        let vocab = self.config.vocab_size();
        let (mut error, mut kl, mut same, mut count) = (Squares::default(), 0.0, 0usize, 0usize);
        for (a, b) in fp16.iter().zip(&fp32) {
            error.add(a, b);
            for (a, b) in a.chunks(vocab).zip(b.chunks(vocab)) {
                kl += kl_divergence(b, a);
                same += usize::from(argmax(a) == argmax(b));
                count += 1;
            }
        }
        let share = |v: f64| v / count.max(1) as f64;
        Ok(Floor {
            kl_mean: share(kl),
            same_top: share(same as f64),
            logits_rel_l2: error.rel_l2(),
        })
    }

    /// Judges one sequence; `judged` is what the variant's and the reference kernels gave.
    fn passage(
        &self,
        sequence: &Sequence,
        base: &[f32],
        [fast, reference]: &[Vec<f32>; 2],
        totals: &mut Totals,
    ) -> Result<Scored> {
        let vocab = self.config.vocab_size();
        totals.logits.add(fast, base);
        totals.quantization.add(reference, base);
        totals.kernel.add(fast, reference);
        let (before, same_before) = (totals.kl.len(), totals.same);
        let (mut first, mut parted) = (None, None);
        let rows = fast.chunks(vocab).zip(base.chunks(vocab)).zip(sequence.targets());
        for (i, ((a, b), target)) in rows.enumerate() {
            totals.kl.push(kl_divergence(b, a));
            let (ours, theirs) = (argmax(a), argmax(b));
            totals.same += usize::from(ours == theirs);
            if ours != theirs && first.is_none() {
                first = Some(i);
                let word = |id: usize| self.tokenizer.decode(&[id as u32], false);
                parted = Some([word(theirs)?, word(ours)?]);
            }
            let nll = |logits| -log_softmax(logits).get(*target as usize).copied().unwrap_or(0.0);
            totals.nll_base += nll(b);
            totals.nll += nll(a);
        }
        let kl = &totals.kl[before..];
        let share = |v: f64| v / kl.len().max(1) as f64;
        Ok(Scored {
            question: sequence.question.clone(),
            text: self.tokenizer.decode(sequence.targets(), true)?,
            tokens: kl.len(),
            kl_mean: share(kl.iter().sum()),
            same_top: share((totals.same - same_before) as f64),
            first_divergence: first,
            parted,
        })
    }
}

#[derive(Default)]
struct Totals {
    kl: Vec<f64>,
    same: usize,
    nll: f64,
    nll_base: f64,
    logits: Squares,
    quantization: Squares,
    kernel: Squares,
}

impl Totals {
    fn finish(mut self, floor: Option<Floor>) -> TextError {
        let count = self.kl.len();
        let share = |v: f64| v / count.max(1) as f64;
        let kl_mean = share(self.kl.iter().sum());
        // Ascending; NaN comes last and so is the largest.
        self.kl.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let i = (share * count as f64).ceil() as usize;
            self.kl.get(i.clamp(1, count.max(1)) - 1).copied().unwrap_or(0.0)
        };
        TextError {
            tokens: count,
            kl_mean,
            kl_p99: at(0.99),
            kl_max: at(1.0),
            same_top: share(self.same as f64),
            ppl_base: share(self.nll_base).exp(),
            ppl: share(self.nll).exp(),
            ppl_ratio: share(self.nll - self.nll_base).exp(),
            logits_rel_l2: self.logits.rel_l2(),
            quantization_rel_l2: self.quantization.rel_l2(),
            kernel_rel_l2: self.kernel.rel_l2(),
            floor,
        }
    }
}
