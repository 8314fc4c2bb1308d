//! The UNet under a sweep: ε on the latents of the fp16 run, at a few steps of its schedule.

use std::rc::Rc;

use serde_json::json;

use super::compare::OnStage;
use super::compare_runs::plan;
use super::sweep::{Measured, Sweep, SweepOptions, Swept, sweep};
use crate::diffusion::text_to_image::{LoadOptions, Request, TextToImage};
use crate::gpu::{Gpu, interrupted};
use crate::graph::Kernels;
use crate::nn::WeightCache;
use crate::quant::{Recipe, metrics::nmse};
use crate::weights::{ImageModel, Part};
use crate::{Error, Result};

/// A prompt of the sweep with what fp16 gave at the steps that are looked at.
struct Reference {
    request: Request,
    /// Evaluation, latents before it, and ε.
    at: Vec<(usize, Vec<f32>, Vec<f32>)>,
}

struct UnetSweep {
    net: TextToImage,
    cache: Rc<WeightCache>,
    references: Vec<Reference>,
}

/// `count` evaluations of `of`, spread evenly, none at the very ends.
pub(super) fn spread(count: usize, of: usize) -> Vec<usize> {
    let count = count.clamp(1, of.max(1));
    (0..count).map(|i| (2 * i + 1) * of / (2 * count)).collect()
}

/// Sweeps over a UNet's layers: fp16 runs of `requests` are recorded, and each layer's format is judged by
/// ε at `steps_at` steps of them. Kernels are the fast ones throughout.
///
/// # Errors
/// As loading and running do; `Usage` for a file of another sweep; `Interrupted` on Ctrl-C.
pub fn sweep_image(
    gpu: &Gpu,
    options: &SweepOptions,
    (requests, steps_at): (&[Request], usize),
    on_stage: &mut OnStage<'_>,
) -> Result<Sweep> {
    let Some(first) = requests.first() else {
        return Err(Error::Usage("nothing to sweep with: no prompt".into()));
    };
    let model = ImageModel::open(&options.folder)?;
    let setup = json!({
        "net": "unet",
        "model": model.store(Part::Unet)?.sha256(),
        "activations": options.act.wgsl(),
        "formats": options.formats,
        "prompts": requests.iter().map(|r| &r.prompt).collect::<Vec<_>>(),
        "negative_prompt": first.negative,
        "seeds": requests.iter().map(|r| r.seed).collect::<Vec<_>>(),
        "size": [first.width, first.height],
        "steps": first.steps,
        "evaluated": spread(steps_at, first.steps),
        "cfg_scale": first.guidance,
    });
    on_stage("loading fp16", 0, 0);
    let load = LoadOptions {
        weights: "fp16".into(),
        act: options.act,
        plan: plan(Kernels::Fast, false),
        ..Default::default()
    };
    let mut net = TextToImage::open(gpu, model, load, &|_| ())?;
    let cache = net.cache_unet(Recipe::builtin("fp16", "unet")?)?;
    let mut references = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let mut run = net.prepare(request)?;
        let count = run.steps();
        let (wanted, mut at) = (spread(steps_at, count), Vec::new());
        for step in 0..count {
            on_stage("fp16", i * count + step, requests.len() * count);
            interrupted()?;
            let before = wanted.contains(&step).then(|| run.latents()).transpose()?;
            run.step(step)?;
            if let Some(latents) = before {
                at.push((step, latents, run.eps()?));
            }
        }
        references.push(Reference { request: request.clone(), at });
    }
    let mut swept = UnetSweep { net, cache, references };
    sweep(&mut swept, &options.file, (setup, &options.formats), on_stage)
}

impl Swept for UnetSweep {
    fn cache(&self) -> &WeightCache {
        &self.cache
    }
    fn family(&self) -> &'static str {
        "unet"
    }
    fn measure(&mut self, layer: &str, recipe: Recipe) -> Result<Measured> {
        let report = self.net.set_unet(recipe, &self.cache)?;
        let tensor = report.tensors.into_iter().find(|tensor| tensor.path == layer);
        let mut measured = Measured { tensor, ..Default::default() };
        for reference in &self.references {
            let mut run = self.net.prepare(&reference.request)?;
            for (step, latents, eps) in &reference.at {
                interrupted()?;
                run.set_latents(latents)?;
                run.step(*step)?;
                measured.at.push(nmse(&run.eps()?, eps));
            }
        }
        Ok(measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_spread() {
        assert_eq!(spread(3, 10), [1, 5, 8]);
        assert_eq!(spread(1, 10), [5]);
        assert_eq!(spread(9, 3), [0, 1, 2]);
        assert_eq!(spread(2, 1), [0]);
    }
}
