//! What the commands for language models share: loading one, with progress.

use std::path::Path;
use std::time::Instant;

use super::common::Ui;
use clap::ValueEnum;

use crate::gpu::{Elem, Gpu};
use crate::nets::language::{Language, LanguageConfig};
use crate::nn::{KvFormat, LoadReport, LoadedTensor, Loader};
use crate::quant::Recipe;
use crate::weights::WeightStore;
use crate::{Error, Result};

/// `--kv`
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvChoice {
    /// As activations are stored
    #[default]
    Auto,
    F32,
    F16,
    /// Eight bits, with a scale for each head of a token
    Int8,
}

impl KvChoice {
    /// The format of the cache of a model whose activations are stored as `act`.
    ///
    /// # Errors
    /// `Usage` for floats of another type than the activations'.
    pub fn resolve(self, act: Elem) -> Result<KvFormat> {
        match self {
            KvChoice::Int8 => Ok(KvFormat::Int8),
            KvChoice::F16 if act != Elem::F16 => Err(refuse("f16")),
            KvChoice::F32 if act != Elem::F32 => Err(refuse("f32")),
            _ => Ok(act.into()),
        }
    }
}

fn refuse(name: &str) -> Error {
    Error::Usage(format!(
        "--kv {name}: floats are cached as activations are stored; give --activations {name} as well, \
         or --kv int8"
    ))
}

/// A language model on the GPU with what it took.
pub struct LoadedNet {
    pub net: Language,
    pub report: LoadReport,
    /// What was asked for.
    pub weights: String,
    pub seconds: f64,
}

/// Loads the language model at `path`. `weights` is what [`Recipe::from_argument`] takes.
pub fn load_net(gpu: &Gpu, path: &Path, weights: &str, ui: &Ui) -> Result<LoadedNet> {
    let start = Instant::now();
    let config = LanguageConfig::read(path)?;
    let (store, recipe) = (WeightStore::open(path)?, Recipe::from_argument(weights, "llm")?);
    let bar = ui.bar("loading", 0);
    let progress = |t: &LoadedTensor| bar.say(&t.path);
    let loader = Loader::with_progress(gpu, &store, &recipe, Some(&progress));
    let net = Language::load(&loader, &config)?;
    let report = loader.report();
    let (weights, seconds) = (weights.to_string(), start.elapsed().as_secs_f64());
    Ok(LoadedNet { net, report, weights, seconds })
}
