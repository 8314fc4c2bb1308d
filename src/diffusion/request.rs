//! What is to be painted, and what a finished picture tells of itself.

use std::path::Path;

use super::image::Image;
use super::image_input::Mask;
use super::prompt::PromptSyntax;
use super::rng::RngKind;
use super::sampler::{Sampler, StepCoefficients, first_step};
use super::schedule::{PredictionType, ScheduleConfig, SigmaSpacing, TimestepSpacing};
use crate::nets::unet::UnetConfig;
use crate::{Error, Result};

/// What is to be painted and how. The default is a square of noise: give a prompt.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: String,
    pub negative: String,
    pub syntax: PromptSyntax,
    /// None: the size that the model was trained at, or that of the picture to start from.
    pub width: Option<usize>,
    pub height: Option<usize>,
    pub steps: usize,
    /// Guidance scale; 1 turns guidance off and halves the work. Without effect on a model without a
    /// prompt.
    pub guidance: f64,
    /// How far a guided answer is brought back to the spread of the one with the prompt (arXiv
    /// 2305.08891, φ): 0 not at all, 1 wholly.
    pub guidance_rescale: f64,
    pub seed: u64,
    pub rng: RngKind,
    /// Pictures at once, from one stream of noise as in diffusers.
    pub batch: usize,
    /// None: the model's own.
    pub sampler: Option<Sampler>,
    pub spacing: Option<SigmaSpacing>,
    /// Which training steps are visited; None: the model's own.
    pub timesteps: Option<TimestepSpacing>,
    /// What the UNet predicts, where its files do not say; None: as they say.
    pub prediction: Option<PredictionType>,
    /// Last layers of the text encoder that are left out; "CLIP skip" of other programs less one.
    pub clip_skip: usize,
    /// A picture to start from.
    pub start: Option<Start>,
    /// A picture for each of the model's ControlNets.
    pub controls: Vec<Control>,
}

impl Default for Request {
    fn default() -> Request {
        Request {
            prompt: String::new(),
            negative: String::new(),
            syntax: PromptSyntax::default(),
            width: None,
            height: None,
            steps: 25,
            guidance: 4.0,
            guidance_rescale: 0.0,
            seed: 42,
            rng: RngKind::default(),
            batch: 1,
            sampler: None,
            spacing: None,
            timesteps: None,
            prediction: None,
            clip_skip: 0,
            start: None,
            controls: Vec::new(),
        }
    }
}

/// Image to image and inpainting.
#[derive(Clone, Debug)]
pub struct Start {
    /// Of the size that is to be painted.
    pub image: Image,
    /// Share of the steps that is done again, 0 to 1.
    pub strength: f64,
    /// Where to paint; without one everywhere.
    pub mask: Option<Mask>,
}

/// What one ControlNet looks at.
#[derive(Clone, Debug)]
pub struct Control {
    /// Of the size that is to be painted.
    pub image: Image,
    /// Factor of what the ControlNet adds.
    pub scale: f64,
}

impl Request {
    /// Refuses what says something to a text encoder, for the model at `path`, which has none.
    pub fn check_unprompted(&self, path: &Path) -> Result<()> {
        let given = [
            ("a prompt", !self.prompt.is_empty()),
            ("a negative prompt", !self.negative.is_empty()),
            ("CLIP skip", self.clip_skip > 0),
            ("guidance rescale", self.guidance_rescale > 0.0),
            ("a ControlNet", !self.controls.is_empty()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((what, _)) => Err(Error::Usage(format!(
                "{}: an unconditional UNet, which nothing steers; leave out {what}",
                path.display()
            ))),
            None => Ok(()),
        }
    }

    /// Refuses numbers that mean nothing, with what would do.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Usage(what));
        if self.steps == 0 {
            return refuse("0 steps paint nothing; 20 to 30 are usual".into());
        }
        if self.batch == 0 || self.batch > 64 {
            return refuse(format!("{} pictures at once; give 1 to 64", self.batch));
        }
        if !self.guidance.is_finite() || self.guidance < 0.0 {
            return refuse(format!("a guidance scale of {}; give 1 to 15", self.guidance));
        }
        if !(0.0..=1.0).contains(&self.guidance_rescale) {
            return refuse(format!("a guidance rescale of {}; give 0 to 1", self.guidance_rescale));
        }
        match &self.start {
            Some(start) if !(0.0..=1.0).contains(&start.strength) || start.strength == 0.0 => {
                refuse(format!(
                    "a strength of {}: give 0 (keep) to 1 (paint anew), 0 excluded",
                    start.strength
                ))
            }
            _ => Ok(()),
        }
    }

    /// The sampler, and the model's own schedule with what the request changes.
    pub(super) fn schedule(&self, own: &ScheduleConfig) -> Result<(Sampler, ScheduleConfig)> {
        let mut schedule = own.clone();
        if let Some(prediction) = self.prediction {
            schedule.prediction_type = prediction;
        }
        let sampler = match self.sampler {
            Some(sampler) => sampler,
            None => Sampler::of_config(&schedule)?,
        };
        // Who asks for PLMS means it without the Runge-Kutta steps of PNDM, unless the file wants them.
        if sampler == Sampler::Plms && schedule.class_name.as_deref() != Some("PNDMScheduler") {
            schedule.skip_prk_steps = Some(true);
        }
        if let Some(spacing) = self.spacing {
            sampler.check_spacing(spacing)?;
            schedule = schedule.with_sigma_spacing(spacing);
        }
        if let Some(timesteps) = self.timesteps {
            schedule.timestep_spacing = Some(timesteps);
        }
        Ok((sampler, schedule))
    }

    /// The rows of the schedule that are done; all but those that a picture to start from saves.
    pub(super) fn table(
        &self,
        sampler: Sampler,
        schedule: &ScheduleConfig,
    ) -> Result<Vec<StepCoefficients>> {
        let strength = self.start.as_ref().map_or(1.0, |start| start.strength);
        let first = first_step(self.steps, strength)?;
        if first >= self.steps {
            return Err(Error::Usage(format!(
                "a strength of {strength} leaves none of {} steps to do; give more of either",
                self.steps
            )));
        }
        sampler.table_from(schedule, self.steps, first)
    }

    /// Whether the UNet is asked with and without the prompt. A model that was distilled with the scale as
    /// an input is asked once.
    pub(super) fn guided(&self, config: &UnetConfig) -> bool {
        self.guidance != 1.0 && config.time_cond_proj_dim.is_none() && config.takes_prompt()
    }
}

/// What a finished run tells of itself.
#[derive(Debug)]
pub struct Picture {
    pub images: Vec<Image>,
    /// `[batch, height/8, width/8, channels]`, before the VAE.
    pub latents: Vec<f32>,
    pub seconds: Seconds,
    pub sampler: Sampler,
    /// Steps that were done; fewer than asked for where a run starts from a picture.
    pub steps: usize,
    /// Evaluations of the UNet, each of the whole batch.
    pub evaluations: usize,
    pub warnings: Vec<String>,
}

/// Wall seconds by stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seconds {
    pub encode: f64,
    pub denoise: f64,
    pub decode: f64,
}
