//! A language model under a sweep: the logits of the fp16 model's own answers, or of a text.

use serde_json::json;

use super::compare::OnStage;
use super::compare_text::{Sequence, TextBaseline, TextOptions, score};
use super::compare_tokens::TokenError;
use super::scorer::Scorer;
use super::sweep::{Measured, Sweep, SweepOptions, Swept, sweep};
use crate::Result;
use crate::gpu::{Elem, Gpu};
use crate::graph::Kernels;
use crate::nets::language::{Language, LanguageConfig};
use crate::nn::{Loader, WeightCache};
use crate::quant::{Recipe, metrics::nmse};
use crate::weights::WeightStore;

struct LanguageSweep<'a> {
    gpu: &'a Gpu,
    store: WeightStore,
    config: &'a LanguageConfig,
    cache: WeightCache,
    sequences: &'a [Sequence],
    logits: &'a [Vec<f32>],
    context: usize,
    act: Elem,
}

/// Sweeps over a language model's layers: fp16 answers (or a text is given), and each layer's format is
/// judged by the logits of those tokens. `text` says what is scored; its variant does not matter. Kernels
/// are the fast ones throughout.
///
/// # Errors
/// As loading and running do; `Usage` for a file of another sweep; `Interrupted` on Ctrl-C.
pub fn sweep_text(
    gpu: &Gpu,
    options: &SweepOptions,
    text: &TextOptions,
    on_stage: &mut OnStage<'_>,
) -> Result<Sweep> {
    let text = TextOptions { baseline: Kernels::Fast, floor: false, ..text.clone() };
    let base = TextBaseline::record(gpu, &text, on_stage)?;
    let store = WeightStore::open(&options.folder)?;
    let ids: Vec<_> = base.sequences().iter().map(|s| (&s.ids, s.from)).collect();
    let setup = json!({
        "net": "llm",
        "model": store.sha256(),
        "activations": options.act.wgsl(),
        "formats": options.formats,
        "tokens": ids,
    });
    let (config, cache) = (base.config(), WeightCache::default());
    on_stage("loading fp16", 0, 0);
    let recipe = Recipe::builtin("fp16", "llm")?;
    Language::load(&Loader::new(gpu, &store, &recipe).filling(&cache), config)?;
    let mut swept = LanguageSweep {
        gpu,
        store,
        config,
        cache,
        sequences: base.sequences(),
        logits: base.logits(),
        context: base.context(),
        act: options.act,
    };
    sweep(&mut swept, &options.file, (setup, &options.formats), on_stage)
}

impl Swept for LanguageSweep<'_> {
    fn cache(&self) -> &WeightCache {
        &self.cache
    }
    fn family(&self) -> &'static str {
        "llm"
    }
    fn measure(&mut self, layer: &str, recipe: Recipe) -> Result<Measured> {
        let loader = Loader::new(self.gpu, &self.store, &recipe).sharing(&self.cache);
        let net = Language::load(&loader, self.config)?;
        let tensor = loader.report().tensors.into_iter().find(|tensor| tensor.path == layer);
        let mut scorer = Scorer::new(self.gpu, &net, (self.context, self.act, Kernels::Fast))?;
        let (vocab, mut at, mut tokens) = (self.config.vocab_size(), Vec::new(), Vec::new());
        for (sequence, base) in self.sequences.iter().zip(self.logits) {
            let ours = score(&mut scorer, sequence)?;
            at.push(nmse(&ours, base));
            let rows = ours.chunks(vocab).zip(base.chunks(vocab)).zip(sequence.targets());
            tokens.extend(rows.map(|((a, b), target)| TokenError::of(0, a, b, *target as usize)));
        }
        let mean = |f: &dyn Fn(&TokenError) -> f64| {
            tokens.iter().map(f).sum::<f64>() / tokens.len().max(1) as f64
        };
        let kl_mean = Some(mean(&|t| t.kl));
        let same_top = Some(mean(&|t| f64::from(u8::from(t.same_top()))));
        Ok(Measured { at, kl_mean, same_top, tensor })
    }
}
