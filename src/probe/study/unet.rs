//! The laboratory for text-to-image models: runs of the 16-bit UNet, and other weights on their latents.

use std::path::PathBuf;
use std::rc::Rc;

use super::imitate::imitated;
use super::weights::Weights;
use super::{
    Experiment, unet_formats, unet_methods, unet_noise, unet_places, unet_remedies, unet_runs,
    unet_values,
};
use crate::diffusion::text_to_image::{Request, TextToImage};
use crate::gpu::{Elem, Gpu, interrupted};
use crate::graph::Kernels;
use crate::probe::compare::{Limits, OnStage};
use crate::probe::compare_image::{ImageBaseline, ImageOptions, ImageReport};
use crate::probe::compare_runs::{Keep, Runs, Trajectory};
use crate::probe::sweep_image::spread;
use crate::quant::metrics::{nmse, psnr, rel_l2, ssim};
use crate::quant::{AUTO, Recipe, Statistics};
use crate::weights::{ImageModel, Part, WeightStore};
use crate::{Error, Result};

/// Prompts that are painted when nobody gives others; calibration has not seen them.
pub const PROMPTS: [&str; 8] = [
    "a red boat on a calm sea at sunset, snowy mountains behind",
    "a large green balloon over a green field on the right, by day",
    "a small yellow house in the desert at night, the moon on the left",
    "a white tent on the grass in a storm",
    "a blue lighthouse on the sea in the middle, under a blue sky, some clouds",
    "a pink tree in a green meadow on the left and an orange house on the right at sunset",
    "a purple boat on blue water on the right side, under a night sky",
    "a big orange tree on the sand on a sunny day, the sun on the right",
];

/// Evaluations of each run at which weights are judged teacher-forced, spread over the schedule.
const JUDGED: usize = 5;
/// Runs that experiments with many whole pictures take.
const FEW: usize = 2;

/// What is studied.
#[derive(Clone, Debug)]
pub struct UnetOptions {
    pub folder: PathBuf,
    pub act: Elem,
    /// The pairs of runs; all have the same steps and guidance.
    pub requests: Vec<Request>,
    /// A folder for what calibration has summed up and for weights on their way.
    pub scratch: PathBuf,
}

/// The experiments in the order in which they are run.
pub fn unet_experiments() -> Vec<Experiment<UnetLab>> {
    vec![
        Experiment { name: "runs", claims: &["U1", "U9", "U12"], run: unet_runs::runs },
        Experiment { name: "injection", claims: &["U2", "U10"], run: unet_runs::injection },
        Experiment { name: "noise", claims: &["U3"], run: unet_noise::noise },
        Experiment { name: "places", claims: &["U4", "U6"], run: unet_places::places },
        Experiment {
            name: "activations",
            claims: &["U5", "U7", "U8"],
            run: unet_values::activations,
        },
        Experiment { name: "formats", claims: &["U11", "U14", "U15"], run: unet_formats::formats },
        Experiment { name: "guidance", claims: &["U13"], run: unet_noise::guidance },
        Experiment { name: "correction", claims: &["U16"], run: unet_remedies::correction },
        Experiment { name: "some steps", claims: &["U17"], run: unet_remedies::some_steps },
        Experiment { name: "low rank", claims: &["U18"], run: unet_remedies::branch },
        Experiment { name: "methods", claims: &["M"], run: unet_methods::methods },
    ]
}

/// What some weights do to ε on the latents of the 16-bit runs.
pub(super) struct Judged {
    /// Of the UNet, everything counted.
    pub bits: f64,
    /// ‖a−b‖² / ‖b‖² of ε, mean over runs and the steps looked at.
    pub noise: f64,
}

impl Judged {
    pub fn db(&self) -> f64 {
        -10.0 * self.noise.log10()
    }
}

/// What became of whole pictures.
pub(super) struct Painted {
    /// Relative error of the final latents.
    pub latents: f64,
    pub psnr: f64,
    pub ssim: f64,
}

/// Nets and runs that experiments share.
pub struct UnetLab {
    pub(super) gpu: Gpu,
    pub(super) options: UnetOptions,
    net: Option<TextToImage>,
    runs: Option<Rc<Vec<Trajectory>>>,
    report: Option<Rc<ImageReport>>,
    pub(super) statistics: Option<Rc<Statistics>>,
}

impl UnetLab {
    /// An empty laboratory: what an experiment needs is made when it asks for it.
    pub fn new(gpu: Gpu, options: UnetOptions) -> UnetLab {
        UnetLab { gpu, options, net: None, runs: None, report: None, statistics: None }
    }

    pub(super) fn image_options(&self) -> ImageOptions {
        ImageOptions {
            folder: self.options.folder.clone(),
            original: None,
            weights: "int4".into(),
            unet: None,
            kernels: Kernels::Fast,
            baseline: Kernels::Fast,
            act: self.options.act,
            floor: true,
            layers_at: None,
            inject: false,
            previews: FEW,
        }
    }

    /// The first few requests.
    pub(super) fn few(&self) -> &[Request] {
        &self.options.requests[..self.options.requests.len().min(FEW)]
    }

    pub(super) fn store(&self) -> Result<WeightStore> {
        ImageModel::open(&self.options.folder)?.store(Part::Unet)
    }

    /// int4 against fp16 in all pairs.
    pub(super) fn report(&mut self, on_stage: &mut OnStage<'_>) -> Result<Rc<ImageReport>> {
        if let Some(report) = &self.report {
            return Ok(report.clone());
        }
        let options = self.image_options();
        let limits: Limits = options.limits()?;
        let base = ImageBaseline::record(&self.gpu, &options, &self.options.requests, on_stage)?;
        let report = Rc::new(base.compare(&self.gpu, &options, limits, on_stage)?);
        self.runs = Some(Rc::new(base.into_runs()));
        self.report = Some(report.clone());
        Ok(report)
    }

    /// The model with 16-bit weights.
    pub(super) fn net(&mut self, on_stage: &mut OnStage<'_>) -> Result<&mut TextToImage> {
        if self.net.is_none() {
            let options = self.image_options();
            let mut runs = Runs { gpu: &self.gpu, options: &options, on_stage };
            self.net = Some(runs.load_original("fp16", Kernels::Fast)?);
        }
        self.net.as_mut().ok_or_else(|| Error::Runtime("the model was not loaded".into()))
    }

    /// The 16-bit runs of all requests.
    pub(super) fn runs(&mut self, on_stage: &mut OnStage<'_>) -> Result<Rc<Vec<Trajectory>>> {
        if self.runs.is_none() {
            let requests = self.options.requests.clone();
            let runs = self.record(&requests, &fp16()?, "fp16", on_stage)?;
            self.runs = Some(Rc::new(runs));
        }
        self.runs.clone().ok_or_else(|| Error::Runtime("no run was recorded".into()))
    }

    /// Gives the net other weights; their bits.
    pub(super) fn set(&mut self, weights: &Weights<'_>, on_stage: &mut OnStage<'_>) -> Result<f64> {
        let own = self.store()?;
        let net = self.net(on_stage)?;
        match weights {
            Weights::Recipe(recipe) => {
                let report = net.set_unet_from(Rc::new(own), recipe.clone())?;
                Ok(report.bits_per_weight())
            }
            Weights::Packed(store) => {
                let recipe = Recipe::from_argument(AUTO, "unet")?;
                Ok(net.set_unet_from(store.clone(), recipe)?.bits_per_weight())
            }
            Weights::Change(recipe, change) => {
                let (store, bits) = imitated(&own, recipe, change)?;
                net.set_unet_from(Rc::new(store), Recipe::builtin("fp32", "unet")?)?;
                Ok(bits)
            }
        }
    }

    /// ε of other weights on the latents of the 16-bit runs.
    pub(super) fn judge(
        &mut self,
        name: &str,
        weights: &Weights<'_>,
        on_stage: &mut OnStage<'_>,
    ) -> Result<Judged> {
        let runs = self.runs(on_stage)?;
        let bits = self.set(weights, on_stage)?;
        let requests = self.options.requests.clone();
        let net = self.net(on_stage)?;
        let count = runs.first().map_or(0, |run| run.eps.len());
        let wanted: Vec<usize> = spread(JUDGED, count);
        let mut by_step = vec![0.0; wanted.len()];
        for (i, (request, base)) in requests.iter().zip(runs.iter()).enumerate() {
            on_stage(name, i, requests.len());
            let mut run = net.prepare(request)?;
            for (noise, &step) in by_step.iter_mut().zip(&wanted) {
                interrupted()?;
                run.set_latents(&base.latents[step])?;
                run.step(step)?;
                *noise += nmse(&run.eps()?, &base.eps[step]) / requests.len() as f64;
            }
        }
        let noise = by_step.iter().sum::<f64>() / by_step.len().max(1) as f64;
        Ok(Judged { bits, noise })
    }

    /// Whole runs with other weights.
    pub(super) fn record(
        &mut self,
        requests: &[Request],
        weights: &Weights<'_>,
        name: &str,
        on_stage: &mut OnStage<'_>,
    ) -> Result<Vec<Trajectory>> {
        self.set(weights, on_stage)?;
        self.again(requests, name, on_stage)
    }

    /// Whole runs with the weights that were set last.
    pub(super) fn again(
        &mut self,
        requests: &[Request],
        name: &str,
        on_stage: &mut OnStage<'_>,
    ) -> Result<Vec<Trajectory>> {
        let options = self.image_options();
        self.net(on_stage)?;
        let Some(net) = &self.net else { return Ok(vec![]) };
        let mut work = Runs { gpu: &self.gpu, options: &options, on_stage };
        let each = requests.iter().enumerate();
        each.map(|(i, r)| work.record(net, r, (name, (i, requests.len())), Keep::default()))
            .collect()
    }
}

/// The 16-bit UNet's weights.
pub(super) fn fp16() -> Result<Weights<'static>> {
    named("fp16")
}

/// What a user may write for a UNet's weights.
pub(super) fn named(argument: &str) -> Result<Weights<'static>> {
    Weights::named(argument, "unet")
}

/// Pictures against those of the 16-bit runs, means over the pairs.
pub(super) fn painted(variants: &[Trajectory], base: &[Trajectory]) -> Result<Painted> {
    let n = variants.len().min(base.len()).max(1) as f64;
    let mut sum = Painted { latents: 0.0, psnr: 0.0, ssim: 0.0 };
    for (a, b) in variants.iter().zip(base) {
        if let (Some(x), Some(y)) = (a.latents.last(), b.latents.last()) {
            sum.latents += rel_l2(x, y) / n;
        }
        let (x, y) = (a.image.to_f32(), b.image.to_f32());
        // Equal pictures have no finite PSNR; 100 dB is beyond what 8 bits can show.
        sum.psnr += psnr(&x, &y).min(100.0) / n;
        sum.ssim += ssim(&x, &y, b.image.width, b.image.height, 3)? / n;
    }
    Ok(sum)
}
