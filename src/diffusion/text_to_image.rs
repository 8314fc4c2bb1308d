//! Text to image: prompt → CLIP → cross-attention keys and values (once per prompt), timesteps → tables
//! (once per schedule), UNet steps without a read-back between them, VAE.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::autoencoder::{Autoencoder, Decoded, PictureEncoder};
use super::conditioning::{About, Context, Encode, Hoisted, TextEncoder, encoders};
use super::control::{Controls, ForRun};
use super::embedding::Embedding;
use super::image::Image;
use super::memory::MemoryPlan;
pub use super::request::{Control, Picture, Request, Seconds, Start};
use super::rng::Rng;
use super::run::{Begin, Inpaint, Parts, Pass};
pub use super::run::{Passes, Run, RunState};
use super::sampler::{Sampler, StepCoefficients, first_step};
use super::schedule::ScheduleConfig;
use super::variant::Variant;
use crate::gpu::{Buffer, Elem, Gpu, interrupted};
use crate::graph::PlanOptions;
use crate::nets::unet::{Unet, UnetConfig, UnetContext, UnetTime};
use crate::nn::{LoadReport, LoadedTensor, Loader};
use crate::quant::Recipe;
use crate::weights::lora::{Adapters, LoraNet};
use crate::weights::{ImageFamily, ImageModel, Part, WeightStore};
use crate::{Error, Result};

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// A recipe's name (int4, int8, fp16, fp32) or file.
    pub weights: String,
    /// How the UNet's and the text encoder's activations are stored; the VAE's are always f32, because
    /// its range exceeds f16 in real models.
    pub act: Elem,
    pub plan: PlanOptions,
    /// How the run is made to fit; None: everything at once.
    pub memory: Option<MemoryPlan>,
    /// Vectors of textual inversion.
    pub embeddings: Vec<Embedding>,
    /// LoRAs, as branches beside the weights.
    pub adapters: Option<Arc<Adapters>>,
    /// Folders or files of ControlNets.
    pub controls: Vec<std::path::PathBuf>,
    /// Side in latents of the VAE's tiles where they are asked for, whatever the memory.
    pub tile: Option<usize>,
    /// How guidance asks, where it is not left to the memory plan.
    pub passes: Option<Passes>,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            weights: "int4".into(),
            act: Elem::F32,
            plan: PlanOptions::default(),
            memory: None,
            embeddings: Vec::new(),
            adapters: None,
            controls: Vec::new(),
            tile: None,
            passes: None,
        }
    }
}

/// A Stable-Diffusion-shaped model: text encoders, UNet, VAE, schedule.
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

/// A part's weights and the recipe for them.
pub(super) fn part(model: &ImageModel, part: Part, weights: &str) -> Result<(WeightStore, Recipe)> {
    Ok((model.store(part)?, Recipe::from_argument(weights, part.recipe())?))
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
        if model.kind().family == ImageFamily::Unconditional {
            return Err(Error::Model(format!(
                "{}: an unconditional UNet, which no prompt steers; here it can be held against diffusers with `inknib \
                 verify`, but not painted with",
                model.path().display()
            )));
        }
        let schedule = schedule(&model)?;
        let config = unet_config(&model)?;
        let mut report = LoadReport::default();
        let mut room = options.memory.and_then(|memory| memory.resident);
        let mut load =
            |which: Part, report: &mut LoadReport, streams: bool, each: &mut Each<'_>| {
                let (store, recipe) = part(&model, which, &options.weights)?;
                let loader = Loader::with_progress(gpu, &store, &recipe, Some(on_tensor));
                let loader = with_adapters(loader, which, &options)?;
                if let Some(room) = room.filter(|_| streams) {
                    loader.limit_resident(room);
                }
                each(&loader)?;
                let loaded = loader.report();
                room = room.map(|room| room.saturating_sub(loaded.resident_bytes()));
                report.merge(loaded);
                Ok::<(), Error>(())
            };
        let mut net = None;
        load(Part::Unet, &mut report, true, &mut |ld| {
            net = Some(Unet::load(ld, &config)?);
            Ok(())
        })?;
        let mut texts = Vec::new();
        for which in encoders(&model) {
            load(which, &mut report, true, &mut |ld| {
                texts.push(TextEncoder::load(ld, &model, which, &options.embeddings)?);
                Ok(())
            })?;
        }
        let mut vae = None;
        load(Part::Vae, &mut report, false, &mut |ld| {
            vae = Some(Autoencoder::load(ld, &model)?);
            Ok(())
        })?;
        let paths = &options.controls;
        let controls = Controls::load(gpu, paths, &options.weights, &config, on_tensor)?;
        report.merge(controls.report());
        let missing = || Error::Runtime("a part was not loaded".into());
        Ok(TextToImage {
            gpu: gpu.clone(),
            unet: net.ok_or_else(missing)?,
            vae: vae.ok_or_else(missing)?,
            encoders: texts,
            schedule,
            config,
            controls,
            report,
            options,
            model,
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
    }
    /// Height and width in pixels that the model was trained at.
    pub fn default_size(&self) -> (usize, usize) {
        default_size(&self.config, self.vae.scale())
    }
    pub fn vae(&self) -> &Autoencoder {
        &self.vae
    }

    fn plan_options(&self) -> PlanOptions {
        let largest = self.options.memory.map_or(0, |memory| memory.needs.largest);
        PlanOptions { stream_pool: largest, ..self.options.plan.clone() }
    }

    /// The schedule of a request: the model's own with what the request changes.
    fn schedule_for(&self, request: &Request) -> Result<(Sampler, ScheduleConfig)> {
        let mut schedule = self.schedule.clone();
        if let Some(prediction) = request.prediction {
            schedule.prediction_type = prediction;
        }
        let sampler = match request.sampler {
            Some(sampler) => sampler,
            None => Sampler::of_config(&schedule)?,
        };
        // Who asks for PLMS means it without the Runge-Kutta steps of PNDM, unless the file wants them.
        if sampler == Sampler::Plms && schedule.class_name.as_deref() != Some("PNDMScheduler") {
            schedule.skip_prk_steps = Some(true);
        }
        if let Some(spacing) = request.spacing {
            sampler.check_spacing(spacing)?;
            schedule = schedule.with_sigma_spacing(spacing);
        }
        if let Some(timesteps) = request.timesteps {
            schedule.timestep_spacing = Some(timesteps);
        }
        Ok((sampler, schedule))
    }

    /// Everything of a request that comes before the first step.
    ///
    /// # Errors
    /// `Usage` for sizes and step counts that cannot be served.
    pub fn prepare(&self, request: &Request) -> Result<Run> {
        request.check()?;
        let (width, height) = size(request, &self.config, self.vae.scale())?;
        let guided = guided(request, &self.config);
        let mut warnings = Vec::new();
        let options = self.plan_options();
        let encode = Encode {
            gpu: &self.gpu,
            act: self.options.act,
            plan: &options,
            family: self.model.kind().family,
        };
        let context =
            encode.context(&self.encoders, &self.model, request, guided, &mut warnings)?;
        let (sampler, schedule) = self.schedule_for(request)?;
        let strength = request.start.as_ref().map_or(1.0, |start| start.strength);
        let first = first_step(request.steps, strength)?;
        if first >= request.steps {
            return Err(Error::Usage(format!(
                "a strength of {strength} leaves none of {} steps to do; give more of either",
                request.steps
            )));
        }
        let table = sampler.table_from(&schedule, request.steps, first)?;
        let about = About {
            guidance: request.guidance as f32,
            family: self.model.kind().family,
            size: [height, width],
        };
        let (tables, rows, passes) = self.hoist(&context, &table, &about, request.batch)?;
        if let Some(unused) = self.options.adapters.as_ref().map(|a| a.unused())
            && let Some(first) = unused.first()
        {
            let n = unused.len();
            warnings.push(format!("{n} modules of LoRAs have no layer here, for instance {first}"));
        }
        let for_run = ForRun {
            gpu: &self.gpu,
            act: self.options.act,
            plan: &options,
            context: &context,
            table: &table,
            about: &about,
            passes: self.passes(&context),
        };
        let controls = self.controls.parts(request, &for_run)?;

        let factor = self.vae.scale();
        let channels = self.vae.latent_channels();
        let shape = [request.batch, height / factor, width / factor, channels];
        let mut rng = Rng::new(request.rng, request.seed);
        let sigma = sampler.init_noise_sigma(&schedule, request.steps)?;
        let begin = self.begin(request, shape, &table[0], sigma, &mut rng)?;
        let parts = Parts {
            gpu: &self.gpu,
            act: self.options.act,
            options: &options,
            unet: &self.unet,
            tables: &tables,
            passes: &passes,
            rescale: request.guidance_rescale > 0.0 && guided,
            shape,
            controls: &controls,
        };
        let (latents, inpaint) = begin;
        Run::new(
            &parts,
            Begin {
                table,
                rng,
                latents,
                guidance: [request.guidance as f32, request.guidance_rescale as f32],
                rows: rows as u32,
                inpaint,
                sampler,
                warnings,
            },
        )
    }

    fn passes(&self, context: &Context) -> Passes {
        match context.items {
            2 => self.options.memory.map_or(Passes::Joined, |memory| memory.passes),
            _ => Passes::Joined,
        }
    }

    /// Time tables, rows of a step in them, and the passes of a step with their keys and values.
    fn hoist(
        &self,
        context: &Context,
        table: &[StepCoefficients],
        about: &About,
        batch: usize,
    ) -> Result<(Vec<super::conditioning::Stored>, usize, Vec<Pass>)> {
        let options = self.plan_options();
        let hoisted =
            Hoisted { gpu: &self.gpu, act: self.options.act, plan: &options, config: &self.config };
        let (store, recipe) = self.unet_weights()?;
        let loader = || {
            let loader = self.sharing(Loader::new(&self.gpu, &store, &recipe));
            if self.options.memory.is_some_and(|memory| memory.resident.is_some()) {
                loader.limit_resident(0);
            }
            with_adapters(loader, Part::Unet, &self.options)
        };
        let net = UnetTime::load(&loader()?, &self.config)?;
        let (tables, rows) = hoisted.time_tables(&net, context, table, about)?;
        drop(net);
        let net = UnetContext::load(&loader()?, &self.config)?;
        let groups = groups(context.items, self.passes(context));
        let passes = groups.into_iter().map(|items| {
            let of_table = |item: usize| if rows == 1 { 0 } else { item as u32 };
            Ok(Pass {
                keys_values: hoisted.keys_values(&net, context, items.clone(), batch)?,
                items: items.flat_map(|i| std::iter::repeat_n(of_table(i), batch)).collect(),
            })
        });
        Ok((tables, rows, passes.collect::<Result<_>>()?))
    }

    /// The first latents and what inpainting needs, drawn from the generator in diffusers' order.
    fn begin(
        &self,
        request: &Request,
        shape: [usize; 4],
        first: &StepCoefficients,
        sigma: f32,
        rng: &mut Rng,
    ) -> Result<(Vec<f32>, Inpaint)> {
        let [n, h, w, c] = shape;
        let scaled = |noise: &[f32]| noise.iter().map(|v| v * sigma).collect::<Vec<f32>>();
        let nine = self.config.in_channels == c + c + 1;
        let Some(start) = &request.start else {
            if nine {
                return Err(Error::Usage(
                    "an inpainting model (9 channels) needs -i PICTURE and --mask MASK".into(),
                ));
            }
            return Ok((scaled(&rng.randn_nhwc(n, h, w, c)), Inpaint::No));
        };
        let [height, width] = [h, w].map(|side| side * self.vae.scale());
        check_size("the picture to start from", &start.image, [height, width])?;
        let (store, recipe) = part(&self.model, Part::Vae, &self.options.weights)?;
        let loader = Loader::new(&self.gpu, &store, &recipe);
        let encoder = PictureEncoder::load(&loader, &self.model)?;
        let encode = |image: &[f32], rng: &mut Rng| -> Result<Vec<f32>> {
            let options = self.plan_options();
            let tile = self.options.memory.and_then(|memory| memory.vae_tile);
            encoder.encode(&self.gpu, &options, image, [height, width], (n, rng), tile)
        };
        let whole = start.strength >= 1.0;
        // diffusers does not encode what it will not look at, and so draws no noise for it.
        let clean = match nine && whole {
            true => Vec::new(),
            false => encode(&start.image.to_vae(), rng)?,
        };
        let noise = rng.randn_nhwc(n, h, w, c);
        let masked = start.mask.is_some() || nine;
        let latents = match whole && masked {
            true => scaled(&noise),
            false => {
                let [a, b] = first.start;
                clean.iter().zip(&noise).map(|(clean, noise)| a * clean + b * noise).collect()
            }
        };
        let Some(mask) = &start.mask else {
            if nine {
                return Err(Error::Usage("an inpainting model (9 channels) needs --mask".into()));
            }
            return Ok((latents, Inpaint::No));
        };
        super::inpaint::prepare(mask, &start.image, shape, nine, (clean, noise), &mut |image| {
            encode(image, rng)
        })
        .map(|inpaint| (latents, inpaint))
    }

    /// Latents `[n, h, w, c]` in a buffer → pictures. Also returns how many of their values were not
    /// finite.
    pub fn decode(&self, latent: &Buffer, shape: [usize; 4]) -> Result<Decoded> {
        let tile = self.options.memory.and_then(|memory| memory.vae_tile);
        self.vae.decode(&self.gpu, &self.plan_options(), latent, shape, tile)
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

/// Loads one net from a loader.
type Each<'a> = dyn FnMut(&Loader<'_>) -> Result<()> + 'a;

/// The loader with the low-rank branches of a part.
pub(super) fn with_adapters<'a>(
    loader: Loader<'a>,
    part: Part,
    options: &'a LoadOptions,
) -> Result<Loader<'a>> {
    let net = match part {
        Part::Unet => LoraNet::Unet,
        Part::TextEncoder => LoraNet::TextEncoder,
        Part::TextEncoder2 => LoraNet::TextEncoder2,
        Part::Vae => return Ok(loader),
    };
    match &options.adapters {
        Some(adapters) => loader.with_adapters(adapters, net),
        None => Ok(loader),
    }
}

pub(super) fn schedule(model: &ImageModel) -> Result<ScheduleConfig> {
    let (text, source) = model.scheduler()?;
    ScheduleConfig::from_json(&text, &source.display().to_string())
}

pub(super) fn unet_config(model: &ImageModel) -> Result<UnetConfig> {
    let (fields, source) = model.config(Part::Unet)?;
    UnetConfig::from_value(&fields, &source)
}

/// Whether the UNet is asked with and without the prompt. A model that was distilled with the scale as
/// an input is asked once.
pub(super) fn guided(request: &Request, config: &UnetConfig) -> bool {
    request.guidance != 1.0 && config.time_cond_proj_dim.is_none()
}

/// Items of the context that are asked together.
pub(super) fn groups(items: usize, passes: Passes) -> Vec<std::ops::Range<usize>> {
    match passes {
        Passes::Joined => std::iter::once(0..items).collect(),
        Passes::Apart => (0..items).map(|i| i..i + 1).collect(),
    }
}

/// Height and width in pixels that a model on disk was trained at.
pub fn trained_size(model: &ImageModel) -> Result<(usize, usize)> {
    Ok(default_size(&unet_config(model)?, Autoencoder::scale_of(model)?))
}
/// Sides of the pictures of a model on disk are multiples of this.
pub fn size_step(model: &ImageModel) -> Result<usize> {
    Ok(Autoencoder::scale_of(model)? * unet_config(model)?.multiple())
}

/// Height and width in pixels that a model was trained at.
pub(super) fn default_size(config: &UnetConfig, scale: usize) -> (usize, usize) {
    let (h, w) = config.sample_size().unwrap_or((64, 64));
    (h * scale, w * scale)
}

/// Width and height of a request in pixels.
pub(super) fn size(request: &Request, config: &UnetConfig, scale: usize) -> Result<(usize, usize)> {
    let step = scale * config.multiple();
    let check = |name: &str, size: usize| {
        if size > 0 && size.is_multiple_of(step) {
            return Ok(size);
        }
        let down = (size / step).max(1) * step;
        let up = down + step;
        Err(Error::Usage(format!(
            "{name} {size}: this model paints multiples of {step}; {down} or {up} would do"
        )))
    };
    let (mut height, mut width) = default_size(config, scale);
    if let Some(start) = &request.start {
        (height, width) = (start.image.height, start.image.width);
    }
    let width = check("width", request.width.unwrap_or(width))?;
    Ok((width, check("height", request.height.unwrap_or(height))?))
}

/// Refuses a picture of another size than what is to be painted.
pub(super) fn check_size(what: &str, image: &Image, [height, width]: [usize; 2]) -> Result<()> {
    if (image.width, image.height) == (width, height) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{what} has {}x{} pixels, {width}x{height} are to be painted; resize it or give -W {} -H {}",
        image.width, image.height, image.width, image.height
    )))
}
