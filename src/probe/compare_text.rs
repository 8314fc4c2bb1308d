//! A language model compared: the baseline answers greedily (or a text is given), and every model
//! scores the same tokens (teacher-forced), as llama.cpp's `perplexity --kl-divergence` does.
//! Only one set of weights is resident at a time.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::attention_kl::{AttentionError, attention_errors};
use super::compare::{
    Check, Coarseness, LayerError, Limits, OnStage, Squares, Verdict, layers, with_floor,
};
use super::compare_tokens::{
    MarginError, PositionError, TokenError, Totals, by_margin, by_position,
};
use super::scorer::{CHUNK, Scorer, argmax};
use crate::gpu::{Elem, Gpu};
use crate::graph::Kernels;
use crate::nets::language::{Language, LanguageConfig};
use crate::nn::{LoadReport, Loader};
use crate::quant::Recipe;
use crate::quant::metrics::kl_divergence;
use crate::tensor::Tensor;
use crate::text::template::{Message, RenderOptions, Template};
use crate::text::tokenizer::Tokenizer;
use crate::weights::WeightStore;
use crate::{Error, Result};

/// What is compared with what.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// The variant's model.
    pub folder: PathBuf,
    /// The baseline's model where `folder` was quantized from it; else the same.
    pub original: Option<PathBuf>,
    /// The variant's weights; the baseline's are fp16.
    pub weights: String,
    /// The variant's recipe in the place of what `weights` means.
    pub recipe: Option<Recipe>,
    /// The variant's kernels.
    pub kernels: Kernels,
    /// The baseline's kernels. With any but the reference, what the weights and what the kernels change is
    /// not told apart; kernel errors are some 10⁻⁶.
    pub baseline: Kernels,
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
    /// Standard error of the mean, as if tokens were independent.
    pub kl_se: f64,
    pub kl_median: f64,
    pub kl_p99: f64,
    pub kl_max: f64,
    /// Share (0 to 1) of positions whose likeliest token is the baseline's.
    pub same_top: f64,
    /// Probability of the token that follows, the variant's less the baseline's: mean and root of the mean
    /// square.
    pub dp_mean: f64,
    pub dp_rms: f64,
    /// Perplexity of the scored tokens; of the baseline's own answers it is low.
    pub ppl_base: f64,
    pub ppl: f64,
    /// exp of the mean difference of the negative log-likelihoods.
    pub ppl_ratio: f64,
    /// Weights and kernels together.
    pub logits_rel_l2: f64,
    /// The variant's weights against fp16, both under the reference kernels. Absent where the baseline has
    /// the fast ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization_rel_l2: Option<f64>,
    /// The variant's kernels against the reference on the variant's weights. Absent as above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_rel_l2: Option<f64>,
    /// fp16 against fp32 weights under the fast kernels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<Floor>,
}

/// The whole comparison.
#[derive(Clone, Debug, Serialize)]
pub struct TextReport {
    pub layers: Vec<LayerError>,
    /// Attention probabilities of the first sequence's first tokens.
    pub attention: Vec<AttentionError>,
    pub llm: TextError,
    pub by_position: Vec<PositionError>,
    pub by_margin: Vec<MarginError>,
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
pub(super) struct Sequence {
    question: String,
    pub ids: Vec<u32>,
    /// The logits of this position and those after it are scored, each by the token that follows it.
    pub from: usize,
}

impl Sequence {
    pub(super) fn targets(&self) -> &[u32] {
        &self.ids[self.from + 1..]
    }
}

/// The logits `[scored, vocab]` of a sequence.
pub(super) fn score(scorer: &mut Scorer<'_>, sequence: &Sequence) -> Result<Vec<f32>> {
    scorer.logits(&sequence.ids[..sequence.ids.len() - 1], 0, sequence.from)
}

struct Work<'a, 'b> {
    gpu: &'a Gpu,
    options: &'a TextOptions,
    config: &'a LanguageConfig,
    tokenizer: &'a Tokenizer,
    on_stage: &'a mut OnStage<'b>,
}

/// The scored tokens and what the baseline gave for them, to hold any number of variants against.
pub struct TextBaseline {
    config: LanguageConfig,
    tokenizer: Tokenizer,
    sequences: Vec<Sequence>,
    /// Tokens that a cache must hold.
    context: usize,
    logits: Vec<Vec<f32>>,
    taps: Vec<(String, Tensor)>,
    floor: Option<(Floor, Vec<LayerError>)>,
}

/// Records the baseline and holds the variant against it. `limits`: what may differ.
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
    TextBaseline::record(gpu, options, on_stage)?.compare(gpu, options, limits, on_stage)
}

impl TextBaseline {
    /// Lets fp16 weights answer (or takes the text) and scores it with them.
    ///
    /// # Errors
    /// As loading and running do; `Usage` for questions and texts that do not fit.
    pub fn record(
        gpu: &Gpu,
        options: &TextOptions,
        on_stage: &mut OnStage<'_>,
    ) -> Result<TextBaseline> {
        let original = options.original.as_ref().unwrap_or(&options.folder);
        let config = LanguageConfig::read(original)?;
        let tokenizer = Tokenizer::load(original)?;
        let mut work = Work { gpu, options, config: &config, tokenizer: &tokenizer, on_stage };
        let (mut sequences, context) = work.passages()?;
        let (net, _) = work.load(original, &Recipe::builtin("fp16", "llm")?)?;
        let mut scorer = Scorer::new(gpu, &net, (context, options.act, options.baseline))?;
        work.answer(&mut scorer, &mut sequences)?;
        let logits = work.score_all(&mut scorer, &sequences, "baseline")?;
        let taps = scorer.taps(&sequences[0].ids)?;
        drop(scorer);
        let fp16 = if options.floor {
            let mut scorer = Scorer::new(gpu, &net, (context, options.act, Kernels::Fast))?;
            Some(work.score_all(&mut scorer, &sequences, "fp16 weights, fast kernels")?)
        } else {
            None
        };
        drop(net);
        let floor = fp16.map(|fp16| work.floor(&fp16, (&sequences, &taps), context)).transpose()?;
        Ok(TextBaseline { config, tokenizer, sequences, context, logits, taps, floor })
    }

    pub(super) fn config(&self) -> &LanguageConfig {
        &self.config
    }
    pub(super) fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }
    pub(super) fn context(&self) -> usize {
        self.context
    }
    /// `[sequences][scored · vocab]`
    pub(super) fn logits(&self) -> &[Vec<f32>] {
        &self.logits
    }

    /// Holds a variant against the baseline. Of `options`, what concerns the baseline must be as it was.
    ///
    /// # Errors
    /// As [`compare_text`].
    pub fn compare(
        &self,
        gpu: &Gpu,
        options: &TextOptions,
        limits: Limits,
        on_stage: &mut OnStage<'_>,
    ) -> Result<TextReport> {
        let (config, tokenizer) = (&self.config, &self.tokenizer);
        let mut work = Work { gpu, options, config, tokenizer, on_stage };
        let recipe = match &options.recipe {
            Some(recipe) => recipe.clone(),
            None => Recipe::from_argument(&options.weights, "llm")?,
        };
        let (net, resident) = work.load(&options.folder, &recipe)?;
        let scorer = |kernels| Scorer::new(gpu, &net, (self.context, options.act, kernels));
        let mut fast = scorer(options.kernels)?;
        let mut reference = match options.baseline {
            Kernels::Reference => Some(scorer(Kernels::Reference)?),
            _ => None,
        };
        let taps = fast.taps(&self.sequences[0].ids)?;
        let mut layers = layers(&taps, &self.taps)?;
        with_floor(&mut layers, self.floor.as_ref().map_or(&[], |(_, layers)| layers));
        let attention = attention_errors(&taps, &self.taps);
        let (mut totals, mut passages) = (Totals::default(), Vec::new());
        for (i, (sequence, base)) in self.sequences.iter().zip(&self.logits).enumerate() {
            (work.on_stage)(&options.weights, i, self.sequences.len());
            let ours = score(&mut fast, sequence)?;
            let reference = reference.as_mut().map(|r| score(r, sequence)).transpose()?;
            totals.logits.add(&ours, base);
            if let Some(reference) = &reference {
                totals.quantization.add(reference, base);
                totals.kernel.add(&ours, reference);
            }
            passages.push(work.passage(sequence, base, &ours, &mut totals.tokens)?);
        }
        let llm = totals.finish(self.floor.as_ref().map(|(floor, _)| *floor), reference.is_some());
        let checks = checks(&llm, &limits);
        Ok(TextReport {
            layers,
            attention,
            by_position: by_position(&totals.tokens),
            by_margin: by_margin(&totals.tokens),
            llm,
            passages,
            bits_per_weight: resident.bits_per_weight(),
            resident_bytes: resident.resident_bytes(),
            limits,
            verdict: Verdict::of(&checks),
            checks,
        })
    }
}

fn checks(llm: &TextError, limits: &Limits) -> Vec<Check> {
    // One token of a short answer is a large share, and a tie proves nothing: below 1 the limit always
    // lets one differ.
    let one = 1.0 - 1.0 / llm.tokens.max(1) as f64;
    let limit = limits.min_same_top;
    let same_top = if limit < 1.0 { limit.min(one) } else { limit };
    let name = "kernel error (logits, rel. L2)";
    let kernel = llm.kernel_rel_l2.map(|k| Check::at_most(name, k, limits.max_kernel_error));
    let rest = [
        Check::at_most("mean KL divergence (nats)", llm.kl_mean, limits.max_kl),
        Check::at_least("same likeliest token (share)", llm.same_top, same_top),
    ];
    kernel.into_iter().chain(rest).collect()
}

impl Work<'_, '_> {
    fn load(&mut self, folder: &Path, recipe: &Recipe) -> Result<(Language, LoadReport)> {
        (self.on_stage)(&format!("loading {}", recipe.name), 0, 0);
        let store = WeightStore::open(folder)?;
        let loader = Loader::new(self.gpu, &store, recipe);
        let net = Language::load(&loader, self.config)?;
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

    /// fp16 against fp32 weights under the fast kernels: logits, and the layers against the baseline's.
    fn floor(
        &mut self,
        fp16: &[Vec<f32>],
        (all, taps): (&[Sequence], &[(String, Tensor)]),
        context: usize,
    ) -> Result<(Floor, Vec<LayerError>)> {
        let original = self.options.original.as_ref().unwrap_or(&self.options.folder);
        let (net, _) = self.load(original, &Recipe::builtin("fp32", "llm")?)?;
        let mut scorer = Scorer::new(self.gpu, &net, (context, self.options.act, Kernels::Fast))?;
        let fp32 = self.score_all(&mut scorer, all, "fp32 weights, fast kernels")?;
        let layers = layers(&scorer.taps(&all[0].ids)?, taps)?;
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
        let (kl_mean, same_top) = (share(kl), share(same as f64));
        Ok((Floor { kl_mean, same_top, logits_rel_l2: error.rel_l2() }, layers))
    }

    /// Judges one sequence by the variant's logits.
    fn passage(
        &self,
        sequence: &Sequence,
        base: &[f32],
        ours: &[f32],
        tokens: &mut Vec<TokenError>,
    ) -> Result<Scored> {
        let vocab = self.config.vocab_size();
        let rows = ours.chunks(vocab).zip(base.chunks(vocab)).zip(sequence.targets());
        let judged: Vec<TokenError> = rows
            .enumerate()
            .map(|(i, ((a, b), target))| TokenError::of(i, a, b, *target as usize))
            .collect();
        let first = judged.iter().position(|token| !token.same_top());
        let word = |id: usize| self.tokenizer.decode(&[id as u32], false);
        let parted = first.map(|i| -> Result<[String; 2]> {
            let [theirs, ours] = judged[i].tops;
            Ok([word(theirs)?, word(ours)?])
        });
        let share = |v: f64| v / judged.len().max(1) as f64;
        let scored = Scored {
            question: sequence.question.clone(),
            text: self.tokenizer.decode(sequence.targets(), true)?,
            tokens: judged.len(),
            kl_mean: share(judged.iter().map(|t| t.kl).sum()),
            same_top: share(judged.iter().filter(|t| t.same_top()).count() as f64),
            first_divergence: first,
            parted: parted.transpose()?,
        };
        tokens.extend(judged);
        Ok(scored)
    }
}
