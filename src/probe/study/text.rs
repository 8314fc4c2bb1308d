//! The laboratory for language models: tokens that the 16-bit weights have scored, and other weights on the same tokens.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use super::imitate::imitated;
use super::weights::Weights;
use super::{Experiment, text_formats, text_methods, text_places, text_runs, text_values};
use crate::gpu::{Elem, Gpu, interrupted};
use crate::graph::Kernels;
use crate::nets::language::Language;
use crate::nn::Loader;
use crate::probe::calibrate::{Options, Read, calibrate_text, layers};
use crate::probe::compare::OnStage;
use crate::probe::compare_text::{
    Passage, TextBaseline, TextError, TextOptions, TextReport, score,
};
use crate::probe::compare_tokens::{TokenError, Totals};
use crate::probe::plot::number;
use crate::probe::scorer::Scorer;
use crate::quant::{AUTO, Recipe, Statistics};
use crate::weights::{WeightStore, transpose, transposes};
use crate::{Error, Result};

/// What is asked when nobody gives a text: of the kinds that the demo model was trained on, but none of these very words.
/// Calibration has not seen them.
pub const ASKED: [&str; 24] = [
    "Tell me about yourself.",
    "What is 9 plus 12?",
    "Subtract 7 from 19.",
    "How much is 8 times 5?",
    "Can you count from 4 to 13?",
    "List the months of the year.",
    "What day comes after Monday?",
    "Which word is the opposite of sharp?",
    "What do you call a baby horse?",
    "What sound does a mouse make?",
    "Which colour is a polar bear?",
    "What is the last letter of mermaid?",
    "How do you spell goose?",
    "Sort the numbers 79, 95 and 28.",
    "Say this: The pear of Joao is purple.",
    "Alba has a green lemon and Max has a purple umbrella. What colour is the umbrella?",
    "The jar is in the box. The mirror is in the kitchen. Where is the jar?",
    "Hans has 7 kites and gets 9 more. How many kites does Hans have now?",
    "Make up a story about a giraffe and a cake.",
    "Tell me a short story about a camel and a violin.",
    "Tell me a story about a wizard in a castle.",
    "Write a short story about a duck who finds a map.",
    "Give me a picture prompt for an orange lighthouse.",
    "Draw a pink house at sunset.",
];

/// What is studied.
#[derive(Clone, Debug)]
pub struct LlmOptions {
    pub folder: PathBuf,
    pub act: Elem,
    /// The tokens that are scored.
    pub passage: Passage,
    /// What calibration reads; other tokens.
    pub calibration: Read,
    /// A folder for weights on their way.
    pub scratch: PathBuf,
}

/// The experiments in the order in which they are run.
pub fn text_experiments() -> Vec<Experiment<TextLab>> {
    vec![
        Experiment { name: "runs", claims: &["L1", "L2", "L7"], run: text_runs::runs },
        Experiment { name: "places", claims: &["L3"], run: text_places::places },
        Experiment { name: "values", claims: &["L4", "L8"], run: text_values::values },
        Experiment { name: "formats", claims: &["L5"], run: text_formats::formats },
        Experiment { name: "ranges", claims: &["L6"], run: text_formats::ranges },
        Experiment { name: "methods", claims: &["L9", "M"], run: text_methods::methods },
    ]
}

/// What some weights do to the scored tokens.
pub(super) struct Judged {
    /// Of the whole model, everything counted.
    pub bits: f64,
    pub error: TextError,
}

impl Judged {
    /// Mean divergence in nats.
    pub fn kl(&self) -> f64 {
        self.error.kl_mean
    }
}

/// What calibration knows, and the seconds that it took.
pub(super) struct Calibrated {
    pub statistics: Statistics,
    pub seconds: f64,
}

/// Tokens and results that experiments share.
pub struct TextLab {
    pub(super) gpu: Gpu,
    pub(super) options: LlmOptions,
    base: Option<Rc<TextBaseline>>,
    report: Option<Rc<TextReport>>,
    calibrated: Option<Rc<Calibrated>>,
}

impl TextLab {
    /// An empty laboratory: what an experiment needs is made when it asks for it.
    pub fn new(gpu: Gpu, options: LlmOptions) -> TextLab {
        TextLab { gpu, options, base: None, report: None, calibrated: None }
    }

    /// Whether the scored tokens are the model's own answers; else they are a text's.
    pub(super) fn answers(&self) -> bool {
        matches!(self.options.passage, Passage::Questions { .. })
    }

    pub(super) fn store(&self) -> Result<WeightStore> {
        WeightStore::open(&self.options.folder)
    }

    fn text_options(&self) -> TextOptions {
        TextOptions {
            folder: self.options.folder.clone(),
            original: None,
            weights: "int4".into(),
            recipe: None,
            kernels: Kernels::Fast,
            baseline: Kernels::Fast,
            act: self.options.act,
            floor: true,
            passage: self.options.passage.clone(),
        }
    }

    /// The tokens, and what the 16-bit weights gave for them.
    pub(super) fn base(&mut self, on_stage: &mut OnStage<'_>) -> Result<Rc<TextBaseline>> {
        if self.base.is_none() {
            let base = TextBaseline::record(&self.gpu, &self.text_options(), on_stage)?;
            self.base = Some(Rc::new(base));
        }
        self.base.clone().ok_or_else(|| Error::Runtime("no token was scored".into()))
    }

    /// int4 against fp16 in full.
    pub(super) fn report(&mut self, on_stage: &mut OnStage<'_>) -> Result<Rc<TextReport>> {
        if let Some(report) = &self.report {
            return Ok(report.clone());
        }
        let options = self.text_options();
        let base = self.base(on_stage)?;
        let report = Rc::new(base.compare(&self.gpu, &options, options.limits()?, on_stage)?);
        self.report = Some(report.clone());
        Ok(report)
    }

    /// The model with other weights, and its bits per weight.
    pub(super) fn load(
        &self,
        weights: &Weights<'_>,
        base: &TextBaseline,
    ) -> Result<(Language, f64)> {
        let load = |store: &WeightStore, recipe: &Recipe| -> Result<(Language, f64)> {
            let loader = Loader::new(&self.gpu, store, recipe);
            let net = Language::load(&loader, base.config())?;
            Ok((net, loader.report().bits_per_weight()))
        };
        match weights {
            Weights::Recipe(recipe) => load(&self.store()?, recipe),
            Weights::Packed(store) => load(store, &Recipe::from_argument(AUTO, "llm")?),
            Weights::Change(recipe, change) => {
                let (store, bits) = imitated(&self.store()?, recipe, change)?;
                let (net, _) = load(&store, &Recipe::builtin("fp32", "llm")?)?;
                Ok((net, bits))
            }
        }
    }

    /// Other weights on the tokens of the 16-bit ones.
    pub(super) fn judge(
        &mut self,
        name: &str,
        weights: &Weights<'_>,
        on_stage: &mut OnStage<'_>,
    ) -> Result<Judged> {
        let base = self.base(on_stage)?;
        on_stage(name, 0, base.sequences().len());
        let (net, bits) = self.load(weights, &base)?;
        let how = (base.context(), self.options.act, Kernels::Fast);
        let mut scorer = Scorer::new(&self.gpu, &net, how)?;
        let (vocab, mut totals) = (base.config().vocab_size(), Totals::default());
        for (i, (sequence, theirs)) in base.sequences().iter().zip(base.logits()).enumerate() {
            interrupted()?;
            on_stage(name, i, base.sequences().len());
            let ours = score(&mut scorer, sequence)?;
            totals.logits.add(&ours, theirs);
            totals.tokens.extend(judge_tokens((&ours, theirs), vocab, sequence.targets()));
        }
        Ok(Judged { bits, error: totals.finish(None, false) })
    }

    /// What calibration knows of the layers, XᵀX with it.
    pub(super) fn calibrated(&mut self, on_stage: &mut OnStage<'_>) -> Result<Rc<Calibrated>> {
        /// Sums on the GPU at once.
        const MEMORY: u64 = 1 << 30;
        if let Some(known) = &self.calibrated {
            return Ok(known.clone());
        }
        let recipe = Recipe::builtin("int4", "llm")?;
        let options = Options {
            model: self.options.folder.clone(),
            layers: layers(&self.store()?, &recipe)?,
            gram: true,
            act: Elem::F32,
            // Kept nowhere: its seconds are a finding, and would be wrong of one that went on from a file.
            state: None,
            memory: MEMORY,
        };
        let mut stage = |label: &str, done: usize, total: usize| {
            on_stage(&format!("calibration, {label}"), done, total);
        };
        let start = Instant::now();
        let read = &self.options.calibration;
        let statistics = calibrate_text(&self.gpu, &options, read, &mut stage)?;
        let seconds = start.elapsed().as_secs_f64();
        let known = Rc::new(Calibrated { statistics, seconds });
        self.calibrated = Some(known.clone());
        Ok(known)
    }
}

/// Logits `[targets, vocab]` of a variant and of the baseline, token by token.
pub(super) fn judge_tokens(
    (ours, base): (&[f32], &[f32]),
    vocab: usize,
    targets: &[u32],
) -> Vec<TokenError> {
    let rows = ours.chunks(vocab).zip(base.chunks(vocab)).zip(targets).enumerate();
    rows.map(|(i, ((a, b), target))| TokenError::of(i, a, b, *target as usize)).collect()
}

/// A matrix as its layer multiplies with it, rows and columns; `None` for other tensors.
pub(super) fn matrix(store: &WeightStore, name: &str) -> Result<Option<(Vec<f32>, [usize; 2])>> {
    Ok(match *store.shape(name)? {
        [k, n] if transposes(store)(name) => Some((transpose(&store.values(name)?, k, n), [n, k])),
        [n, k] => Some((store.values(name)?, [n, k])),
        _ => None,
    })
}

/// A divergence in thousandths of a nat, as tables and findings have it.
pub(super) fn milli(kl: f64) -> String {
    number(1e3 * kl)
}

/// 16-bit weights.
pub(super) fn fp16() -> Result<Weights<'static>> {
    named("fp16")
}

/// What a user may write for weights.
pub(super) fn named(argument: &str) -> Result<Weights<'static>> {
    Weights::named(argument, "llm")
}
