//! A text-to-image model compared: the baseline's latents are kept, and the variant predicts both from
//! them (teacher-forced: the error of one evaluation) and from its own (free-running: what becomes of
//! it). Only one set of weights is resident at a time.

use std::path::PathBuf;

use serde::Serialize;

use super::compare::{Check, Coarseness, LayerError, Limits, OnStage, Spread, Verdict, layers};
use crate::diffusion::image::Image;
use crate::diffusion::text_to_image::{LoadOptions, Request, Run, TextToImage};
use crate::gpu::{Elem, Gpu, interrupted};
use crate::graph::{Kernels, PlanOptions};
use crate::quant::metrics::{psnr, rel_l2, ssim};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// What is compared with what.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    pub folder: PathBuf,
    /// The variant's weights; the baseline's are fp16.
    pub weights: String,
    /// The variant's kernels; the baseline's are the reference.
    pub kernels: Kernels,
    /// How both store activations.
    pub act: Elem,
    /// Measure fp16 against fp32 weights as well, which loads the model once more.
    pub floor: bool,
    /// Step at which the layers are tapped; `None` is the middle.
    pub layers_at: Option<usize>,
}

/// Errors at one step. All are relative L2 errors ‖a−b‖ / ‖b‖ of the UNet's output
/// `[batch, h, w, c]` but for the latents. `null` in JSON is a value that is not finite.
#[derive(Clone, Debug, Serialize)]
pub struct StepError {
    pub step: usize,
    /// Noise level √((1−ᾱ)/ᾱ) before the step.
    pub sigma: f64,
    /// The variant on the baseline's latents: weights and kernels together.
    pub eps_rel_l2_teacher_forced: f64,
    /// The variant on its own latents.
    pub eps_rel_l2_free_running: f64,
    /// The variant's own latents after the step.
    pub latent_rel_l2: f64,
    /// Teacher-forced, after guidance: u + g·(c−u).
    pub guided_rel_l2: f64,
    /// The variant's weights against fp16, both under the reference kernels, teacher-forced.
    pub quantization_rel_l2: f64,
    /// The variant's kernels against the reference on the variant's weights, teacher-forced.
    pub kernel_rel_l2: f64,
    /// fp16 against fp32 weights under the fast kernels, teacher-forced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_rel_l2: Option<f64>,
}

/// The finished pictures.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ImageError {
    /// Of 8-bit RGB; infinite (`null` in JSON) if the pictures are equal.
    pub psnr_db: f64,
    pub ssim: f64,
    /// Values of the baseline's and the variant's picture that were not finite.
    pub not_finite: [usize; 2],
}

/// The figures of [`StepError`] over all steps.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ImageSummary {
    pub teacher_forced: Spread,
    pub free_running: Spread,
    pub quantization: Spread,
    pub kernel: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<Spread>,
}

/// The whole comparison.
#[derive(Clone, Debug, Serialize)]
pub struct ImageReport {
    pub layers: Vec<LayerError>,
    pub layers_at_step: usize,
    pub steps: Vec<StepError>,
    pub image: ImageError,
    pub summary: ImageSummary,
    pub bits_per_weight: f64,
    pub resident_bytes: u64,
    pub limits: Limits,
    pub checks: Vec<Check>,
    pub verdict: Verdict,
    /// The baseline's picture, the variant's.
    #[serde(skip)]
    pub pictures: [Image; 2],
}

/// A run with everything that it passed through.
struct Trajectory {
    /// `[steps + 1]`: the latents before each step, and the last ones.
    latents: Vec<Vec<f32>>,
    /// `[steps]`
    eps: Vec<Vec<f32>>,
    sigmas: Vec<f64>,
    image: Image,
    not_finite: usize,
}

type Taps = Vec<(String, Tensor)>;

/// What is measured on the variant's weights.
struct Variant {
    free: Trajectory,
    /// On the baseline's latents: under the variant's kernels and under the reference.
    forced: Vec<Vec<f32>>,
    reference: Vec<Vec<f32>>,
    taps: Taps,
    bits_per_weight: f64,
    resident_bytes: u64,
}

/// Compares. `limits`: what may differ.
///
/// # Errors
/// As loading and running do; figures over their limits are no error here but in [`super::compare::judge`].
pub fn compare_image(
    gpu: &Gpu,
    options: &ImageOptions,
    request: &Request,
    limits: Limits,
    on_stage: &mut OnStage<'_>,
) -> Result<ImageReport> {
    let mut work = Work { gpu, options, request, on_stage };
    if options.layers_at.is_some_and(|i| i >= request.steps) {
        return Err(Error::Usage(format!(
            "the layers cannot be read at step {} of {}; the first is 0",
            options.layers_at.unwrap_or(0),
            request.steps
        )));
    }
    let middle = options.layers_at.unwrap_or(request.steps / 2);
    let mut net = work.load("fp16", Kernels::Reference)?;
    let base = work.record(&net, "baseline")?;
    let base_taps = work.taps(&mut net, Kernels::Reference, middle, &base)?;
    let fp16 = match options.floor {
        true => Some(work.forced(&mut net, Kernels::Fast, &base, "fp16 weights, fast kernels")?),
        false => None,
    };
    drop(net);
    let floor = match fp16 {
        Some(fp16) => {
            let mut net = work.load("fp32", Kernels::Fast)?;
            let fp32 = work.forced(&mut net, Kernels::Fast, &base, "fp32 weights, fast kernels")?;
            Some(fp16.iter().zip(&fp32).map(|(a, b)| rel_l2(a, b)).collect::<Vec<_>>())
        }
        None => None,
    };
    let variant = work.variant(middle, &base)?;
    let steps = steps(&base, &variant, floor.as_deref(), request.guidance as f32);
    let layers = layers(&variant.taps, &base_taps)?;
    report(base, variant, steps, layers, (middle, limits))
}

impl ImageOptions {
    /// What is expected of these weights.
    pub fn limits(&self) -> Result<Limits> {
        Ok(Limits::of(Coarseness::of(&self.weights, "unet")?, self.act))
    }
}

struct Work<'a, 'b> {
    gpu: &'a Gpu,
    options: &'a ImageOptions,
    request: &'a Request,
    on_stage: &'a mut OnStage<'b>,
}

fn plan(kernels: Kernels, taps: bool) -> PlanOptions {
    PlanOptions { kernels, taps, ..Default::default() }
}

impl Work<'_, '_> {
    fn load(&mut self, weights: &str, kernels: Kernels) -> Result<TextToImage> {
        (self.on_stage)(&format!("loading {weights}"), 0, 0);
        let (plan, act) = (plan(kernels, false), self.options.act);
        let options = LoadOptions { weights: weights.to_string(), act, plan, ..Default::default() };
        TextToImage::load(self.gpu, &self.options.folder, options, &|_| ())
    }

    fn steps(
        &mut self,
        run: &mut Run,
        stage: &str,
        each: &mut dyn FnMut(&mut Run, usize) -> Result<()>,
    ) -> Result<()> {
        let count = run.steps();
        for i in 0..count {
            (self.on_stage)(stage, i, count);
            interrupted()?;
            each(run, i)?;
        }
        Ok(())
    }

    /// A whole run on its own latents, and its picture.
    fn record(&mut self, net: &TextToImage, stage: &str) -> Result<Trajectory> {
        (self.on_stage)(stage, 0, self.request.steps);
        let mut run = net.prepare(self.request)?;
        let (mut latents, mut eps) = (vec![run.latents()?], Vec::new());
        self.steps(&mut run, stage, &mut |run, i| {
            run.step(i)?;
            eps.push(run.eps()?);
            latents.push(run.latents()?);
            Ok(())
        })?;
        (self.on_stage)(&format!("{stage}: decoding"), 0, 0);
        let decoded = net.decode(run.latent(), run.shape())?;
        let not_finite = decoded.not_finite;
        let image = decoded.images.into_iter().next();
        let image = image.ok_or_else(|| Error::Runtime("no picture was decoded".into()))?;
        let sigmas = run.table().iter().map(|row| f64::from(row.sigma)).collect();
        Ok(Trajectory { latents, eps, sigmas, image, not_finite })
    }

    /// The predictions for the baseline's latents.
    fn forced(
        &mut self,
        net: &mut TextToImage,
        kernels: Kernels,
        base: &Trajectory,
        stage: &str,
    ) -> Result<Vec<Vec<f32>>> {
        (self.on_stage)(stage, 0, self.request.steps);
        net.set_plan(plan(kernels, false));
        let mut run = net.prepare(self.request)?;
        let mut eps = Vec::new();
        self.steps(&mut run, stage, &mut |run, i| {
            run.set_latents(&base.latents[i])?;
            run.step(i)?;
            eps.push(run.eps()?);
            Ok(())
        })?;
        Ok(eps)
    }

    /// Every tapped value of the UNet at one step, for the baseline's latents.
    fn taps(
        &mut self,
        net: &mut TextToImage,
        kernels: Kernels,
        at: usize,
        base: &Trajectory,
    ) -> Result<Taps> {
        (self.on_stage)("layers", 0, 0);
        net.set_plan(plan(kernels, true));
        let mut run = net.prepare(self.request)?;
        run.set_latents(&base.latents[at])?;
        run.step(at)?;
        run.plan().taps()
    }

    fn variant(&mut self, middle: usize, base: &Trajectory) -> Result<Variant> {
        let (weights, kernels) = (&self.options.weights, self.options.kernels);
        let mut net = self.load(weights, kernels)?;
        let (bits_per_weight, resident_bytes) =
            (net.report().bits_per_weight(), net.report().resident_bytes());
        let free = self.record(&net, &format!("{weights}, free-running"))?;
        let forced = self.forced(&mut net, kernels, base, &format!("{weights}, teacher-forced"))?;
        let taps = self.taps(&mut net, kernels, middle, base)?;
        let stage = format!("{weights}, reference kernels");
        let reference = self.forced(&mut net, Kernels::Reference, base, &stage)?;
        Ok(Variant { free, forced, reference, taps, bits_per_weight, resident_bytes })
    }
}

/// u + g·(c−u) for a batch of two; a batch of one as it is.
fn guided(eps: &[f32], guidance: f32) -> Vec<f32> {
    if guidance == 1.0 {
        return eps.to_vec();
    }
    let (u, c) = eps.split_at(eps.len() / 2);
    u.iter().zip(c).map(|(u, c)| u + guidance * (c - u)).collect()
}

fn steps(
    base: &Trajectory,
    variant: &Variant,
    floor: Option<&[f64]>,
    guidance: f32,
) -> Vec<StepError> {
    let step = |i: usize| {
        let (b, forced, reference) = (&base.eps[i], &variant.forced[i], &variant.reference[i]);
        StepError {
            step: i,
            sigma: base.sigmas[i],
            eps_rel_l2_teacher_forced: rel_l2(forced, b),
            eps_rel_l2_free_running: rel_l2(&variant.free.eps[i], b),
            latent_rel_l2: rel_l2(&variant.free.latents[i + 1], &base.latents[i + 1]),
            guided_rel_l2: rel_l2(&guided(forced, guidance), &guided(b, guidance)),
            quantization_rel_l2: rel_l2(reference, b),
            kernel_rel_l2: rel_l2(forced, reference),
            floor_rel_l2: floor.map(|f| f[i]),
        }
    };
    (0..base.eps.len()).map(step).collect()
}

fn report(
    base: Trajectory,
    variant: Variant,
    steps: Vec<StepError>,
    layers: Vec<LayerError>,
    (layers_at_step, limits): (usize, Limits),
) -> Result<ImageReport> {
    let (a, b) = (variant.free.image.to_f32(), base.image.to_f32());
    let image = ImageError {
        psnr_db: psnr(&a, &b),
        ssim: ssim(&a, &b, base.image.width, base.image.height, 3)?,
        not_finite: [base.not_finite, variant.free.not_finite],
    };
    let over = |f: &dyn Fn(&StepError) -> f64| Spread::of(steps.iter().map(f));
    let floor = steps.iter().filter_map(|s| s.floor_rel_l2).collect::<Vec<_>>();
    let summary = ImageSummary {
        teacher_forced: over(&|s| s.eps_rel_l2_teacher_forced),
        free_running: over(&|s| s.eps_rel_l2_free_running),
        quantization: over(&|s| s.quantization_rel_l2),
        kernel: over(&|s| s.kernel_rel_l2),
        floor: (!floor.is_empty()).then(|| Spread::of(floor.into_iter())),
    };
    let checks = vec![
        Check::at_most(
            "kernel error (rel. L2, mean over the steps)",
            summary.kernel.mean,
            limits.max_kernel_error,
        ),
        Check::at_most(
            "eps error (rel. L2, teacher-forced mean)",
            summary.teacher_forced.mean,
            limits.max_eps,
        ),
        Check::at_least("picture PSNR (dB)", image.psnr_db, limits.min_psnr),
    ];
    Ok(ImageReport {
        layers,
        layers_at_step,
        steps,
        image,
        summary,
        bits_per_weight: variant.bits_per_weight,
        resident_bytes: variant.resident_bytes,
        limits,
        verdict: Verdict::of(&checks),
        checks,
        pictures: [base.image, variant.free.image],
    })
}

impl ImageReport {
    /// The baseline's picture, the variant's, and 8 times their difference, side by side.
    pub fn side_by_side(&self) -> Result<Image> {
        let [a, b] = &self.pictures;
        let row = 3 * a.width;
        let mut rgb = Vec::with_capacity(3 * a.rgb.len());
        for (a, b) in a.rgb.chunks_exact(row).zip(b.rgb.chunks_exact(row)) {
            rgb.extend_from_slice(a);
            rgb.extend_from_slice(b);
            rgb.extend(a.iter().zip(b).map(|(a, b)| a.abs_diff(*b).saturating_mul(8)));
        }
        Image::new(3 * a.width, a.height, rgb)
    }
}
