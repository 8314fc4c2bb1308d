//! A text-to-image model compared in pairs of runs that share prompt, seed and sampler: the baseline's
//! latents are kept, and the variant predicts both from them (teacher-forced: the error of one evaluation)
//! and from its own (free-running: what becomes of it). Only one set of weights is resident at a time.

use std::path::PathBuf;
use std::rc::Rc;

use serde::Serialize;

use super::attention_kl::{AttentionError, attention_errors};
use super::compare::{
    Check, Coarseness, Estimate, LayerError, Limits, OnStage, Spread, Verdict, layers, with_floor,
};
use super::compare_runs::{Forced, Keep, Runs, Taps, Trajectory};
use super::compare_steps::{StepError, StepRuns, mean_of_steps};
use super::inject::{self, Injection};
use crate::diffusion::image::Image;
use crate::diffusion::text_to_image::Request;
use crate::gpu::{Elem, Gpu};
use crate::graph::Kernels;
use crate::quant::Recipe;
use crate::quant::metrics::{ms_ssim, psnr, rel_l2, ssim};
use crate::{Error, Result};

/// What is compared with what.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// The variant's model.
    pub folder: PathBuf,
    /// The baseline's model where `folder` was quantized from it; else the same.
    pub original: Option<PathBuf>,
    /// The variant's weights; the baseline's are fp16.
    pub weights: String,
    /// The variant's UNet where it has a recipe of its own. Bits and bytes are then counted of it alone.
    pub unet: Option<Recipe>,
    /// The variant's kernels.
    pub kernels: Kernels,
    /// The baseline's kernels. With any but the reference, what the weights and what the kernels change is
    /// not told apart; kernel errors are some 10⁻⁶.
    pub baseline: Kernels,
    /// How both store activations.
    pub act: Elem,
    /// Measure fp16 against fp32 weights in the first pair as well, which loads the model once more.
    pub floor: bool,
    /// Step at which the layers are tapped in the first pair; `None` is the middle.
    pub layers_at: Option<usize>,
    /// Let the variant predict at one step alone as well, each in turn.
    pub inject: bool,
    /// Pairs, from the first on, of which every step's picture is made.
    pub previews: usize,
}

/// The finished pictures, means over the pairs. A mean of dB is a mean of dB, not of errors.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ImageError {
    /// Of 8-bit RGB; infinite (`null` in JSON) if two pictures are equal.
    pub psnr_db: f64,
    pub ssim: f64,
    pub ms_ssim: f64,
    /// Values of the baselines' and the variants' pictures that were not finite.
    pub not_finite: [usize; 2],
    /// PSNR of the picture of fp32 weights under the fast kernels; of the first pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_psnr_db: Option<f64>,
}

/// One pair of runs.
#[derive(Clone, Debug, Serialize)]
pub struct PairError {
    pub prompt: String,
    pub seed: u64,
    /// Relative error of ε, teacher-forced, mean over the steps.
    pub eps_rel_l2: f64,
    /// Relative error of the final latents.
    pub latent_rel_l2: f64,
    pub psnr_db: f64,
    pub ssim: f64,
    pub ms_ssim: f64,
}

/// Means over the pairs with their standard errors.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Estimates {
    pub eps_rel_l2: Estimate,
    pub latent_rel_l2: Estimate,
    pub psnr_db: Estimate,
    pub ssim: Estimate,
    pub ms_ssim: Estimate,
}

/// The figures of [`StepError`] over all steps.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ImageSummary {
    pub teacher_forced: Spread,
    pub free_running: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<Spread>,
}

/// Pictures of a pair.
#[derive(Clone, Debug)]
pub struct PairPictures {
    /// The baseline's, the variant's.
    pub finished: [Image; 2],
    /// What each step took the finished picture to be, of both; empty unless asked for.
    pub steps: [Vec<Image>; 2],
}

/// The whole comparison.
#[derive(Clone, Debug, Serialize)]
pub struct ImageReport {
    pub layers: Vec<LayerError>,
    /// Attention probabilities, where the layers were tapped.
    pub attention: Vec<AttentionError>,
    pub layers_at_step: usize,
    pub steps: Vec<StepError>,
    pub image: ImageError,
    pub summary: ImageSummary,
    pub estimates: Estimates,
    pub pairs: Vec<PairError>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub injection: Option<Injection>,
    pub bits_per_weight: f64,
    pub resident_bytes: u64,
    pub limits: Limits,
    pub checks: Vec<Check>,
    pub verdict: Verdict,
    /// Of the first pairs.
    #[serde(skip)]
    pub pictures: Vec<PairPictures>,
}

/// Pairs whose pictures a report holds at most.
const PICTURES: usize = 8;

/// The runs of the baseline, to hold any number of variants against.
pub struct ImageBaseline {
    requests: Vec<Request>,
    runs: Vec<Trajectory>,
    taps: Taps,
    layers_at: usize,
    /// Of each step: error of ε, and of the own latents of fp32 weights after it.
    floor: Option<Floor>,
}

struct Floor {
    layers: Vec<LayerError>,
    steps: Vec<[f64; 2]>,
    psnr_db: f64,
}

/// What is measured on the variant's weights in one pair.
struct Variant {
    free: Trajectory,
    forced: Forced,
    reference: Option<Forced>,
}

/// Records the baseline and holds the variant against it. The requests are the pairs; they have the same
/// steps. `limits`: what may differ.
///
/// # Errors
/// As loading and running do; figures over their limits are no error here but in [`super::compare::judge`].
pub fn compare_image(
    gpu: &Gpu,
    options: &ImageOptions,
    requests: &[Request],
    limits: Limits,
    on_stage: &mut OnStage<'_>,
) -> Result<ImageReport> {
    ImageBaseline::record(gpu, options, requests, on_stage)?.compare(gpu, options, limits, on_stage)
}

impl ImageBaseline {
    /// Runs fp16 weights for every request.
    ///
    /// # Errors
    /// `Usage` for requests of different lengths, and for injections under a sampler that draws noise.
    pub fn record(
        gpu: &Gpu,
        options: &ImageOptions,
        requests: &[Request],
        on_stage: &mut OnStage<'_>,
    ) -> Result<ImageBaseline> {
        let layers_at = check(options, requests)?;
        let mut work = Runs { gpu, options, on_stage };
        let mut net = work.load_original("fp16", options.baseline)?;
        let mut runs = Vec::new();
        for (i, request) in requests.iter().enumerate() {
            let keep = Keep { states: options.inject, previews: i < options.previews };
            let run = work.record(&net, request, ("baseline", (i, requests.len())), keep)?;
            if options.inject {
                inject::check(&run)?;
            }
            runs.push(run);
        }
        let first = (&requests[0], &runs[0]);
        let taps = work.taps(&mut net, options.baseline, first, layers_at)?;
        let floor = if options.floor {
            let at = ("fp16 weights, fast kernels", (0, 1));
            let fp16 = work.forced(&mut net, Kernels::Fast, first, at)?;
            drop(net);
            Some(work.floor(&fp16, first, (&taps, layers_at))?)
        } else {
            None
        };
        let requests = requests.to_vec();
        Ok(ImageBaseline { requests, runs, taps, layers_at, floor })
    }

    /// The baseline's runs alone.
    pub(super) fn into_runs(self) -> Vec<Trajectory> {
        self.runs
    }

    /// Holds a variant against the baseline. Of `options`, what concerns the baseline must be as it was.
    ///
    /// # Errors
    /// As [`compare_image`].
    pub fn compare(
        &self,
        gpu: &Gpu,
        options: &ImageOptions,
        limits: Limits,
        on_stage: &mut OnStage<'_>,
    ) -> Result<ImageReport> {
        let mut work = Runs { gpu, options, on_stage };
        let (weights, kernels) = (&options.weights, options.kernels);
        let mut net = work.load(&options.folder, weights, kernels)?;
        let unet = options.unet.clone().map(|recipe| net.set_unet(recipe, &Rc::default()));
        let unet = unet.transpose()?;
        let report = unet.as_ref().unwrap_or(net.report());
        let resident = (report.bits_per_weight(), report.resident_bytes());
        let taps =
            work.taps(&mut net, kernels, (&self.requests[0], &self.runs[0]), self.layers_at)?;
        let mut layers = layers(&taps, &self.taps)?;
        with_floor(&mut layers, self.floor.as_ref().map_or(&[], |floor| &floor.layers));
        let errors = (layers, attention_errors(&taps, &self.taps));
        drop(taps);
        let mut variants = Vec::new();
        for (i, (request, base)) in self.requests.iter().zip(&self.runs).enumerate() {
            let (turn, pair) = ((i, self.runs.len()), (request, base));
            net.set_plan(super::compare_runs::plan(kernels, false));
            let keep = Keep { states: false, previews: i < options.previews };
            let stage = format!("{weights}, free-running");
            let free = work.record(&net, request, (&stage, turn), keep)?;
            let stage = format!("{weights}, teacher-forced");
            let forced = work.forced(&mut net, kernels, pair, (&stage, turn))?;
            let stage = format!("{weights}, reference kernels");
            let reference = (options.baseline == Kernels::Reference)
                .then(|| work.forced(&mut net, Kernels::Reference, pair, (&stage, turn)))
                .transpose()?;
            variants.push(Variant { free, forced, reference });
        }
        drop(net);
        let injection = match options.inject {
            true => self.inject(&mut work, &variants)?,
            false => None,
        };
        let mut report = self.report(&variants, errors, limits)?;
        report.injection = injection;
        (report.bits_per_weight, report.resident_bytes) = resident;
        Ok(report)
    }

    fn inject(&self, work: &mut Runs<'_, '_>, variants: &[Variant]) -> Result<Option<Injection>> {
        // The reference kernels would take many times as long for a difference of 10⁻⁶.
        let net = work.load_original("fp16", Kernels::Fast)?;
        let mut errors = Vec::new();
        let pairs = self.requests.iter().zip(&self.runs).zip(variants);
        for (i, ((request, base), variant)) in pairs.enumerate() {
            let free = variant.free.latents.last().map_or(&[][..], Vec::as_slice);
            let turn = (i, variants.len());
            errors.push(work.inject(&net, (request, base), (&variant.forced, free), turn)?);
        }
        Ok(Injection::of(&errors))
    }

    /// The errors of every step of one pair.
    fn steps(&self, pair: usize, variant: &Variant) -> Vec<StepError> {
        let (base, guidance) = (&self.runs[pair], self.requests[pair].guidance as f32);
        let floor = self.floor.as_ref().filter(|_| pair == 0);
        let step = |i: usize| {
            let runs = StepRuns {
                step: i,
                sigma: f64::from(base.rows[i].sigma),
                shape: base.shape,
                guidance,
                guided: base.eps[i].len() > base.latents[i].len(),
                base: [&base.eps[i], &base.latents[i + 1]],
                free: [&variant.free.eps[i], &variant.free.latents[i + 1]],
                forced: &variant.forced.eps[i],
                reference: variant.reference.as_ref().map(|r| r.eps[i].as_slice()),
                before: (i > 0).then(|| [&base.eps[i - 1][..], &variant.forced.eps[i - 1][..]]),
                floor: floor.map(|floor| floor.steps[i]),
            };
            runs.measure()
        };
        (0..base.eps.len()).map(step).collect()
    }

    fn report(
        &self,
        variants: &[Variant],
        (layers, attention): (Vec<LayerError>, Vec<AttentionError>),
        limits: Limits,
    ) -> Result<ImageReport> {
        let (mut all, mut pairs, mut pictures) = (Vec::new(), Vec::new(), Vec::new());
        let mut not_finite = [0, 0];
        for (i, variant) in variants.iter().enumerate() {
            let (base, request) = (&self.runs[i], &self.requests[i]);
            let steps = self.steps(i, variant);
            pairs.push(pair(request, &steps, [&base.image, &variant.free.image])?);
            all.push(steps);
            not_finite[0] += base.not_finite;
            not_finite[1] += variant.free.not_finite;
            if i < PICTURES {
                pictures.push(PairPictures {
                    finished: [base.image.clone(), variant.free.image.clone()],
                    steps: [base.previews.clone(), variant.free.previews.clone()],
                });
            }
        }
        let count = all.first().map_or(0, Vec::len);
        let of_step = |i: usize| all.iter().map(|steps| &steps[i]).collect::<Vec<_>>();
        let steps: Vec<_> = (0..count).filter_map(|i| mean_of_steps(&of_step(i))).collect();
        let estimates = Estimates::of(&pairs);
        let image = ImageError {
            psnr_db: estimates.psnr_db.mean,
            ssim: estimates.ssim.mean,
            ms_ssim: estimates.ms_ssim.mean,
            not_finite,
            floor_psnr_db: self.floor.as_ref().map(|floor| floor.psnr_db),
        };
        let summary = ImageSummary::of(&steps);
        let checks = checks(&summary, &image, &limits);
        Ok(ImageReport {
            layers,
            attention,
            layers_at_step: self.layers_at,
            steps,
            image,
            summary,
            estimates,
            pairs,
            injection: None,
            bits_per_weight: f64::NAN,
            resident_bytes: 0,
            limits,
            verdict: Verdict::of(&checks),
            checks,
            pictures,
        })
    }
}

/// The step whose layers are read, or why nothing can be compared.
fn check(options: &ImageOptions, requests: &[Request]) -> Result<usize> {
    let Some(first) = requests.first() else {
        return Err(Error::Usage("nothing to compare: no prompt".into()));
    };
    if requests.iter().any(|r| r.steps != first.steps) {
        return Err(Error::Usage("all pairs of a comparison have the same number of steps".into()));
    }
    if options.layers_at.is_some_and(|i| i >= first.steps) {
        return Err(Error::Usage(format!(
            "the layers cannot be read at step {} of {}; the first is 0",
            options.layers_at.unwrap_or(0),
            first.steps
        )));
    }
    Ok(options.layers_at.unwrap_or(first.steps / 2))
}

impl Runs<'_, '_> {
    /// fp16 against fp32 weights under the fast kernels; `fp16` is what the former predicted. `taps` are the
    /// baseline's layers at a step.
    fn floor(
        &mut self,
        fp16: &Forced,
        pair: (&Request, &Trajectory),
        (taps, layers_at): (&Taps, usize),
    ) -> Result<Floor> {
        let (request, base) = pair;
        let stage = ("fp32 weights, fast kernels", (0, 1));
        let mut net = self.load_original("fp32", Kernels::Fast)?;
        let fp32 = self.forced(&mut net, Kernels::Fast, pair, stage)?;
        let free = self.record(&net, request, stage, Keep::default())?;
        let layers = layers(&self.taps(&mut net, Kernels::Fast, pair, layers_at)?, taps)?;
        let step = |i: usize| {
            let latents = rel_l2(&free.latents[i + 1], &base.latents[i + 1]);
            [rel_l2(&fp16.eps[i], &fp32.eps[i]), latents]
        };
        Ok(Floor {
            layers,
            steps: (0..base.eps.len()).map(step).collect(),
            psnr_db: psnr(&free.image.to_f32(), &base.image.to_f32()),
        })
    }
}

/// A pair's figures; pictures are the baseline's and the variant's.
fn pair(request: &Request, steps: &[StepError], [base, variant]: [&Image; 2]) -> Result<PairError> {
    let (a, b) = (variant.to_f32(), base.to_f32());
    let (width, height) = (base.width, base.height);
    let eps = Spread::of(steps.iter().map(|s| s.eps_rel_l2_teacher_forced));
    Ok(PairError {
        prompt: request.prompt.clone(),
        seed: request.seed,
        eps_rel_l2: eps.mean,
        latent_rel_l2: steps.last().map_or(f64::NAN, |s| s.latent_rel_l2),
        psnr_db: psnr(&a, &b),
        ssim: ssim(&a, &b, width, height, 3)?,
        ms_ssim: ms_ssim(&a, &b, width, height, 3)?,
    })
}

impl Estimates {
    fn of(pairs: &[PairError]) -> Estimates {
        let of = |f: &dyn Fn(&PairError) -> f64| Estimate::of(pairs.iter().map(f));
        Estimates {
            eps_rel_l2: of(&|p| p.eps_rel_l2),
            latent_rel_l2: of(&|p| p.latent_rel_l2),
            psnr_db: of(&|p| p.psnr_db),
            ssim: of(&|p| p.ssim),
            ms_ssim: of(&|p| p.ms_ssim),
        }
    }
}

impl ImageSummary {
    fn of(steps: &[StepError]) -> ImageSummary {
        let over = |f: &dyn Fn(&StepError) -> f64| Spread::of(steps.iter().map(f));
        let some = |f: &dyn Fn(&StepError) -> Option<f64>| {
            let values: Vec<f64> = steps.iter().filter_map(f).collect();
            (!values.is_empty()).then(|| Spread::of(values.into_iter()))
        };
        ImageSummary {
            teacher_forced: over(&|s| s.eps_rel_l2_teacher_forced),
            free_running: over(&|s| s.eps_rel_l2_free_running),
            quantization: some(&|s| s.quantization_rel_l2),
            kernel: some(&|s| s.kernel_rel_l2),
            floor: some(&|s| s.floor_rel_l2),
        }
    }
}

fn checks(summary: &ImageSummary, image: &ImageError, limits: &Limits) -> Vec<Check> {
    let name = "kernel error (rel. L2, mean over the steps)";
    let kernel = summary.kernel.map(|k| Check::at_most(name, k.mean, limits.max_kernel_error));
    let rest = [
        Check::at_most(
            "eps error (rel. L2, teacher-forced mean)",
            summary.teacher_forced.mean,
            limits.max_eps,
        ),
        Check::at_least("picture PSNR (dB)", image.psnr_db, limits.min_psnr),
    ];
    kernel.into_iter().chain(rest).collect()
}

impl ImageOptions {
    /// What is expected of these weights.
    pub fn limits(&self) -> Result<Limits> {
        Ok(Limits::of(Coarseness::of(&self.weights, "unet")?, self.act))
    }
}

impl ImageReport {
    /// A row for each pair: the baseline's picture, the variant's, and 8 times their difference.
    pub fn side_by_side(&self) -> Result<Image> {
        let (mut rgb, mut width, mut height) = (Vec::new(), 0, 0);
        for PairPictures { finished: [a, b], .. } in &self.pictures {
            let difference = difference(a, b)?;
            let row = 3 * a.width;
            let rows = a.rgb.chunks(row).zip(b.rgb.chunks(row)).zip(difference.rgb.chunks(row));
            rows.for_each(|((a, b), c)| rgb.extend([a, b, c].into_iter().flatten()));
            (width, height) = (row, height + a.height);
        }
        Image::new(width, height, rgb)
    }
}

/// 8 times the difference of two pictures of one size.
pub(super) fn difference(a: &Image, b: &Image) -> Result<Image> {
    let values = a.rgb.iter().zip(&b.rgb).map(|(a, b)| a.abs_diff(*b).saturating_mul(8));
    Image::new(a.width, a.height, values.collect())
}
