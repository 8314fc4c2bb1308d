//! The runs that comparisons of text-to-image models are made of: on their own latents, on another run's
//! latents, and with every layer tapped.

use super::compare::OnStage;
use super::compare_image::ImageOptions;
use super::compare_steps::guide;
use crate::diffusion::image::Image;
use crate::diffusion::preview::Projection;
use crate::diffusion::sampler::StepCoefficients;
use crate::diffusion::text_to_image::{LoadOptions, Request, Run, RunState, TextToImage};
use crate::gpu::{Gpu, interrupted};
use crate::graph::{Kernels, PlanOptions};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Tapped values by name.
pub(super) type Taps = Vec<(String, Tensor)>;

/// A run with everything that it passed through.
pub(super) struct Trajectory {
    /// `[evaluations + 1]`: the latents before each evaluation, and the last ones.
    pub latents: Vec<Vec<f32>>,
    /// With what the sampler remembers, where it was asked for.
    pub states: Vec<RunState>,
    /// `[evaluations]`
    pub eps: Vec<Vec<f32>>,
    pub rows: Vec<StepCoefficients>,
    /// Of the latents, `[1, h, w, c]`.
    pub shape: [usize; 4],
    pub image: Image,
    pub not_finite: usize,
    /// What each evaluation takes the finished picture to be, where it was asked for.
    pub previews: Vec<Image>,
}

/// What is to be kept of a run.
#[derive(Clone, Copy, Default)]
pub(super) struct Keep {
    pub states: bool,
    pub previews: bool,
}

/// Predictions for another run's latents, and where they led.
pub(super) struct Forced {
    pub eps: Vec<Vec<f32>>,
    /// After each evaluation, where it was asked for.
    pub states: Vec<RunState>,
}

/// Loads nets and runs them.
pub(super) struct Runs<'a, 'b> {
    pub gpu: &'a Gpu,
    pub options: &'a ImageOptions,
    pub on_stage: &'a mut OnStage<'b>,
}

/// Which of how many pairs, for progress.
pub(super) type Turn = (usize, usize);

/// Pictures with more pixels are previewed by a linear map of the latents.
const DECODED_PIXELS: usize = 256 * 256;

pub(super) fn plan(kernels: Kernels, taps: bool) -> PlanOptions {
    PlanOptions { kernels, taps, ..Default::default() }
}

impl Runs<'_, '_> {
    /// The baseline's weights, of the model that it has.
    pub fn load_original(&mut self, weights: &str, kernels: Kernels) -> Result<TextToImage> {
        let folder = self.options.original.as_ref().unwrap_or(&self.options.folder).clone();
        self.load(&folder, weights, kernels)
    }

    pub fn load(
        &mut self,
        folder: &std::path::Path,
        weights: &str,
        kernels: Kernels,
    ) -> Result<TextToImage> {
        (self.on_stage)(&format!("loading {weights}"), 0, 0);
        let (plan, act) = (plan(kernels, false), self.options.act);
        let options = LoadOptions { weights: weights.to_string(), act, plan, ..Default::default() };
        TextToImage::load(self.gpu, folder, options, &|_| ())
    }

    fn steps(
        &mut self,
        run: &mut Run,
        (stage, (turn, turns)): (&str, Turn),
        each: &mut dyn FnMut(&mut Run, usize) -> Result<()>,
    ) -> Result<()> {
        let count = run.steps();
        for i in 0..count {
            (self.on_stage)(stage, turn * count + i, turns * count);
            interrupted()?;
            each(run, i)?;
        }
        Ok(())
    }

    /// A whole run on its own latents, and its picture.
    pub fn record(
        &mut self,
        net: &TextToImage,
        request: &Request,
        (stage, turn): (&str, Turn),
        keep: Keep,
    ) -> Result<Trajectory> {
        let mut run = net.prepare(request)?;
        let (mut latents, mut eps, mut states) = (Vec::new(), Vec::new(), Vec::new());
        let mut note = |run: &Run, latents: &mut Vec<Vec<f32>>| -> Result<()> {
            latents.push(run.latents()?);
            if keep.states {
                states.push(run.state()?);
            }
            Ok(())
        };
        note(&run, &mut latents)?;
        self.steps(&mut run, (stage, turn), &mut |run, i| {
            run.step(i)?;
            eps.push(run.eps()?);
            note(run, &mut latents)
        })?;
        let rows = run.table().to_vec();
        let decoded = net.decode(run.latent(), run.shape())?;
        let image = decoded.images.into_iter().next().ok_or_else(no_picture)?;
        let shape = run.shape();
        let not_finite = decoded.not_finite;
        let previews = Vec::new();
        let mut done =
            Trajectory { latents, states, eps, rows, shape, image, not_finite, previews };
        if keep.previews {
            done.previews = self.previews(net, &done, request)?;
        }
        Ok(done)
    }

    /// The clean picture that each evaluation points at, x0 = a·x + b·ε, decoded where that is quick.
    fn previews(&self, net: &TextToImage, run: &Trajectory, of: &Request) -> Result<Vec<Image>> {
        let [_, h, w, c] = run.shape;
        let small = run.image.width * run.image.height <= DECODED_PIXELS;
        let projection = match small {
            true => None,
            false => Some(Projection::of(net.vae(), self.gpu, &PlanOptions::default())?),
        };
        let steps = run.rows.iter().zip(&run.latents).zip(&run.eps);
        steps
            .map(|((row, x), eps)| {
                let guided = guide(eps, of.guidance as f32, eps.len() > x.len());
                let [a, b] = row.x0;
                let clean: Vec<f32> = x.iter().zip(&guided).map(|(x, e)| a * x + b * e).collect();
                if let Some(projection) = &projection {
                    return projection.picture(&clean, [h, w, c]);
                }
                let buffer = self.gpu.upload("preview", bytemuck::cast_slice(&clean))?;
                let decoded = net.decode(&buffer, run.shape)?;
                decoded.images.into_iter().next().ok_or_else(no_picture)
            })
            .collect()
    }

    /// The predictions for another run's latents. States are kept where that run has them.
    pub fn forced(
        &mut self,
        net: &mut TextToImage,
        kernels: Kernels,
        (request, base): (&Request, &Trajectory),
        at: (&str, Turn),
    ) -> Result<Forced> {
        net.set_plan(plan(kernels, false));
        let mut run = net.prepare(request)?;
        let (mut eps, mut states) = (Vec::new(), Vec::new());
        self.steps(&mut run, at, &mut |run, i| {
            match base.states.get(i) {
                Some(state) => run.set_state(state)?,
                None => run.set_latents(&base.latents[i])?,
            }
            run.step(i)?;
            eps.push(run.eps()?);
            if !base.states.is_empty() {
                states.push(run.state()?);
            }
            Ok(())
        })?;
        Ok(Forced { eps, states })
    }

    /// Every tapped value of the UNet at one step, for another run's latents.
    pub fn taps(
        &mut self,
        net: &mut TextToImage,
        kernels: Kernels,
        (request, base): (&Request, &Trajectory),
        at: usize,
    ) -> Result<Taps> {
        (self.on_stage)("layers", 0, 0);
        net.set_plan(plan(kernels, true));
        let mut run = net.prepare(request)?;
        run.set_latents(&base.latents[at])?;
        run.step(at)?;
        run.plan().taps()
    }
}

fn no_picture() -> Error {
    Error::Runtime("no picture was decoded".into())
}
