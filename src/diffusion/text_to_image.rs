//! Text to image: prompt → CLIP → cross-attention keys and values (once per prompt), timesteps → tables
//! (once per schedule), UNet steps without a read-back between them, VAE.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::autoencoder::{Autoencoder, Decoded, PictureEncoder};
use super::begin::Beginning;
use super::conditioning::{TextEncoder, encoders};
use super::conditions::{Conditioner, Conditions, Key, LastConditions};
use super::control::Controls;
use super::hoisted::About;
pub use super::load_options::{LoadOptions, Previews};
use super::load_options::{part, schedule, unet_config, with_adapters};
pub use super::request::{Control, Picture, Request, Seconds, Start};
use super::rng::Rng;
use super::run::{Begin, Parts};
pub use super::run::{Passes, Run, RunState};
use super::sampler::StepCoefficients;
use super::schedule::ScheduleConfig;
use super::sizes::{default_size, size};
pub use super::sizes::{size_step, trained_size};
use super::variant::Variant;
use crate::Result;
use crate::gpu::{Buffer, Gpu, interrupted};
use crate::graph::PlanOptions;
use crate::nets::unet::{Unet, UnetConfig};
use crate::nn::{LoadReport, LoadedTensor, Loader};
use crate::weights::{ImageModel, Part};

/// A Stable-Diffusion-shaped model: text encoders, UNet, VAE, schedule; or an unconditional UNet and its
/// schedule, whose latents are pixels.
pub struct TextToImage {
    pub(super) gpu: Gpu,
    pub(super) model: ImageModel,
    pub(super) options: LoadOptions,
    schedule: ScheduleConfig,
    encoders: Vec<TextEncoder>,
    pub(super) config: UnetConfig,
    pub(super) unet: Unet,
    vae: Autoencoder,
    controls: Controls,
    report: LoadReport,
    pub(super) conditions: LastConditions,
    /// The UNet's weights where they are not those of the options.
    pub(super) variant: Option<Variant>,
}

/// Told of each tensor once it is on the GPU.
pub type OnTensor<'a> = dyn Fn(&LoadedTensor) + 'a;
/// Called after each evaluation of the UNet.
pub type OnStep<'a> = dyn FnMut(&Progress<'_>) -> Result<()> + 'a;

/// How far a run is.
pub struct Progress<'a> {
    /// Steps that are complete, and how many there are.
    pub done: usize,
    pub steps: usize,
    /// The run, to look at.
    pub run: &'a Run,
    pub row: &'a StepCoefficients,
}

impl TextToImage {
    /// As [`TextToImage::open`] for the model at `path`.
    pub fn load(
        gpu: &Gpu,
        path: &Path,
        options: LoadOptions,
        on_tensor: &OnTensor<'_>,
    ) -> Result<TextToImage> {
        TextToImage::open(gpu, ImageModel::open(path)?, options, on_tensor)
    }

    /// Loads a model; what depends only on the schedule or the prompt stays on disk until a run.
    ///
    /// # Errors
    /// `Model` for a missing or malformed file, `OutOfMemory` beyond the budget.
    pub fn open(
        gpu: &Gpu,
        model: ImageModel,
        options: LoadOptions,
        on_tensor: &OnTensor<'_>,
    ) -> Result<TextToImage> {
        let schedule = schedule(&model)?;
        let config = unet_config(&model)?;
        let mut opening = Opening {
            gpu,
            model: &model,
            options: &options,
            on_tensor,
            room: options.memory.and_then(|memory| memory.resident),
            report: LoadReport::default(),
        };
        // What every step reads comes first and stays, if not all can.
        let unet = opening.load(Part::Unet, true, |ld| Unet::load(ld, &config))?;
        let controls = opening.controls(&config)?;
        let texts = encoders(&model).map(|which| {
            let added = &options.embeddings;
            opening.load(which, true, |ld| TextEncoder::load(ld, &model, which, added))
        });
        let encoders = texts.collect::<Result<_>>()?;
        let vae = match Autoencoder::pixels(&model, &config)? {
            Some(pixels) => pixels,
            None => opening.load(Part::Vae, false, |ld| Autoencoder::load(ld, &model))?,
        };
        let report = opening.report;
        let (gpu, conditions) = (gpu.clone(), LastConditions::default());
        Ok(TextToImage {
            gpu,
            model,
            options,
            schedule,
            encoders,
            config,
            unet,
            vae,
            controls,
            report,
            conditions,
            variant: None,
        })
    }

    /// What is resident, and what is streamed.
    pub fn report(&self) -> &LoadReport {
        &self.report
    }
    pub fn model(&self) -> &ImageModel {
        &self.model
    }
    /// Later runs are planned so; what is resident stays.
    pub fn set_plan(&mut self, options: PlanOptions) {
        self.options.plan = options;
        self.conditions.clear();
    }
    /// Height and width in pixels that the model was trained at.
    pub fn default_size(&self) -> (usize, usize) {
        default_size(&self.config, self.vae.scale())
    }
    pub fn vae(&self) -> &Autoencoder {
        &self.vae
    }

    /// Everything of a request that comes before the first step. What does not depend on the seed is taken
    /// over from the last request, where that asked for the same.
    ///
    /// # Errors
    /// `Usage` for sizes and step counts that cannot be served.
    pub fn prepare(&self, request: &Request) -> Result<Run> {
        request.check()?;
        if !self.config.takes_prompt() {
            request.check_unprompted(self.model.path())?;
        }
        let (width, height) = size(request, &self.config, self.vae.scale())?;
        let guided = request.guided(&self.config);
        let options = self.options.plan_options();
        let (sampler, schedule) = request.schedule(&self.schedule)?;
        let table = request.table(sampler, &schedule)?;
        let conditions = self.conditions(request, guided, &table, [height, width])?;
        let controls = self.controls.parts(request, &conditions.controls);

        let factor = self.vae.scale();
        let channels = self.vae.latent_channels();
        let shape = [request.batch, height / factor, width / factor, channels];
        let mut rng = Rng::new(request.rng, request.seed);
        let beginning = Beginning {
            gpu: &self.gpu,
            plan: &options,
            shape,
            scale: factor,
            family: self.model.kind().family,
            channels: self.config.in_channels,
            first: &table[0],
            sigma: sampler.init_noise_sigma(&schedule, request.steps)?,
            tile: self.options.memory.and_then(|memory| memory.vae_tile),
        };
        let (latents, inpaint) = beginning.latents(request, &mut rng, || self.encoder())?;
        let parts = Parts {
            gpu: &self.gpu,
            act: self.options.act,
            options: &options,
            unet: &self.unet,
            tables: &conditions.tables,
            passes: &conditions.passes,
            rescale: request.guidance_rescale > 0.0 && guided,
            shape,
            controls: &controls,
        };
        Run::new(
            &parts,
            Begin {
                table,
                rng,
                latents,
                guidance: [request.guidance as f32, request.guidance_rescale as f32],
                rows: conditions.rows as u32,
                inpaint,
                sampler,
                warnings: conditions.warnings.clone(),
            },
        )
    }

    fn conditions(
        &self,
        request: &Request,
        guided: bool,
        table: &[StepCoefficients],
        size: [usize; 2],
    ) -> Result<Arc<Conditions>> {
        self.conditions.get(Key::new(request, guided, table, size), || {
            let family = self.model.kind().family;
            let about = About { guidance: request.guidance as f32, family, size };
            let conditioner = Conditioner {
                gpu: &self.gpu,
                model: &self.model,
                options: &self.options,
                plan: &self.options.plan_options(),
                config: &self.config,
                encoders: &self.encoders,
                controls: &self.controls,
                variant: self.variant.as_ref(),
            };
            conditioner.compute(request, guided, table, &about)
        })
    }

    /// The encoder of the VAE, which is on the GPU only as long as it is used.
    fn encoder(&self) -> Result<PictureEncoder> {
        if self.vae.is_pixels() {
            return Ok(PictureEncoder::pixels(self.vae.latent_channels()));
        }
        let (store, recipe) = part(&self.model, Part::Vae, &self.options.weights)?;
        PictureEncoder::load(&Loader::new(&self.gpu, &store, &recipe), &self.model)
    }

    /// Latents `[n, h, w, c]` in a buffer → pictures. Also returns how many of their values were not
    /// finite.
    pub fn decode(&self, latent: &Buffer, shape: [usize; 4]) -> Result<Decoded> {
        let tile = self.options.memory.and_then(|memory| memory.vae_tile);
        self.vae.decode(&self.gpu, &self.options.plan_options(), latent, shape, tile)
    }

    /// Paints.
    pub fn generate(&self, request: &Request, on_step: &mut OnStep<'_>) -> Result<Picture> {
        let start = Instant::now();
        let mut run = self.prepare(request)?;
        self.gpu.wait()?;
        let mut seconds = Seconds { encode: start.elapsed().as_secs_f64(), ..Default::default() };
        let start = Instant::now();
        let steps = run.table().last().map_or(0, |row| row.steps_done as usize);
        for i in 0..run.steps() {
            interrupted()?;
            run.step(i)?;
            let row = run.table()[i];
            let done = row.steps_done as usize;
            on_step(&Progress { done, steps, run: &run, row: &row })?;
        }
        let latents = run.latents()?;
        seconds.denoise = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let (shape, sampler, evaluations) = (run.shape(), run.sampler(), run.steps());
        let (latent, mut warnings) = (run.latent().clone(), std::mem::take(&mut run.warnings));
        // The activations of a step and of the decoder are never needed at once.
        drop(run);
        let Decoded { images, not_finite } = self.decode(&latent, shape)?;
        seconds.decode = start.elapsed().as_secs_f64();
        if not_finite > 0 {
            warnings.push(format!(
                "{not_finite} values of the picture are not finite; try --activations f32, and `inknib \
                 doctor` to test the device"
            ));
        }
        Ok(Picture { images, latents, seconds, sampler, steps, evaluations, warnings })
    }
}

/// Loads the parts of a model one after the other.
struct Opening<'a> {
    gpu: &'a Gpu,
    model: &'a ImageModel,
    options: &'a LoadOptions,
    on_tensor: &'a OnTensor<'a>,
    /// Bytes of matrices that may still become resident, where not all may.
    room: Option<u64>,
    report: LoadReport,
}

impl Opening<'_> {
    /// `streams`: what finds no room stays on the host.
    fn load<T>(
        &mut self,
        which: Part,
        streams: bool,
        net: impl FnOnce(&Loader<'_>) -> Result<T>,
    ) -> Result<T> {
        let (store, recipe) = part(self.model, which, &self.options.weights)?;
        let loader = Loader::with_progress(self.gpu, &store, &recipe, Some(self.on_tensor));
        let loader = with_adapters(loader, which, self.options)?;
        if let Some(room) = self.room.filter(|_| streams) {
            loader.limit_resident(room);
        }
        let net = net(&loader)?;
        let loaded = loader.report();
        if streams {
            self.room = self.room.map(|room| room.saturating_sub(loaded.resident_bytes()));
        }
        self.report.merge(loaded);
        Ok(net)
    }

    fn controls(&mut self, config: &UnetConfig) -> Result<Controls> {
        let LoadOptions { controls, weights, .. } = self.options;
        let room = &mut self.room;
        let controls = Controls::load(self.gpu, controls, weights, config, room, self.on_tensor)?;
        self.report.merge(controls.report());
        Ok(controls)
    }
}
