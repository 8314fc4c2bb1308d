//! What the commands for language models share: loading one, with progress.

use std::path::Path;
use std::time::Instant;

use super::common::Ui;
use crate::Result;
use crate::gpu::Gpu;
use crate::nets::language::{Language, LanguageConfig};
use crate::nn::{LoadReport, LoadedTensor, Loader};
use crate::quant::Recipe;
use crate::weights::WeightStore;

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
