//! Text to image: prompt → CLIP → cross-attention keys and values (once per prompt), timesteps → tables
//! (once per schedule), UNet steps without a read-back between them, VAE.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::image::Image;
use super::rng::{Rng, RngKind};
use super::sampler::{COEFFICIENTS, Sampler, StepCoefficients};
use super::schedule::{ScheduleConfig, SigmaSpacing};
use crate::gpu::{Buffer, Elem, Gpu};
use crate::graph::{Graph, Launch, Plan, PlanOptions, Shape, Var};
use crate::nets::clip::{ClipText, ClipTextConfig};
use crate::nets::unet::{TimeConditions, Unet, UnetConfig, UnetContext, UnetTime};
use crate::nets::vae::{VaeConfig, VaeDecoder};
use crate::nn::{LoadReport, LoadedTensor, Loader};
use crate::ops::assign::assign;
use crate::ops::sampler::{MEMORY, model_input, predict_value, remember, step};
use crate::quant::Recipe;
use crate::text::tokenizer::ClipTokenizer;
use crate::weights::WeightStore;
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
}

/// What is to be painted and how.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: String,
    pub negative: String,
    /// None: the size that the model was trained at.
    pub width: Option<usize>,
    pub height: Option<usize>,
    pub steps: usize,
    /// Guidance scale; 1 turns guidance off and halves the work.
    pub guidance: f64,
    pub seed: u64,
    /// None: the model's own.
    pub sampler: Option<Sampler>,
    pub spacing: Option<SigmaSpacing>,
}

/// What a finished picture tells of itself.
#[derive(Debug)]
pub struct Picture {
    pub image: Image,
    /// `[height/8, width/8, channels]`, before the VAE.
    pub latents: Vec<f32>,
    pub seconds: Seconds,
    pub sampler: Sampler,
    pub steps: usize,
    pub warnings: Vec<String>,
}

/// Wall seconds by stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seconds {
    pub encode: f64,
    pub denoise: f64,
    pub decode: f64,
}

/// A Stable-Diffusion-shaped model: text encoder, UNet, VAE decoder, schedule.
pub struct TextToImage {
    gpu: Gpu,
    folder: PathBuf,
    options: LoadOptions,
    tokenizer: ClipTokenizer,
    schedule: ScheduleConfig,
    text: ClipText,
    config: UnetConfig,
    unet: Unet,
    vae: VaeDecoder,
    vae_config: VaeConfig,
    report: LoadReport,
}

/// Told of each tensor once it is on the GPU.
pub type OnTensor<'a> = dyn Fn(&LoadedTensor) + 'a;
/// Called after each step: steps done, steps in all.
pub type OnStep<'a> = dyn FnMut(usize, usize) + 'a;

impl TextToImage {
    /// Loads a diffusers folder; what depends only on the schedule or the prompt stays on disk until a run.
    ///
    /// # Errors
    /// `Model` for a missing or malformed file, `OutOfMemory` beyond the budget.
    pub fn load(
        gpu: &Gpu,
        folder: &Path,
        options: LoadOptions,
        on_tensor: &OnTensor<'_>,
    ) -> Result<TextToImage> {
        let tokenizer = ClipTokenizer::load(folder.join("tokenizer"))?;
        let schedule = ScheduleConfig::read(folder.join("scheduler/scheduler_config.json"))?;
        let vae_config = VaeConfig::read(folder.join("vae"))?;
        let mut report = LoadReport::default();

        let (store, recipe) = part(folder, "text_encoder", &options.weights)?;
        let loader = Loader::with_progress(gpu, &store, &recipe, Some(on_tensor));
        let text = ClipText::load(
            &loader,
            &ClipTextConfig::read(folder.join("text_encoder/config.json"))?,
        )?;
        report.merge(loader.report());

        let (store, recipe) = part(folder, "unet", &options.weights)?;
        let loader = Loader::with_progress(gpu, &store, &recipe, Some(on_tensor));
        let config = UnetConfig::read(folder.join("unet/config.json"))?;
        let unet = Unet::load(&loader, &config)?;
        report.merge(loader.report());

        let (store, recipe) = part(folder, "vae", &options.weights)?;
        let loader = Loader::with_progress(gpu, &store, &recipe, Some(on_tensor));
        let vae = VaeDecoder::load(&loader, &vae_config)?;
        report.merge(loader.report());

        let (gpu, folder) = (gpu.clone(), folder.to_path_buf());
        Ok(TextToImage {
            gpu,
            folder,
            options,
            tokenizer,
            schedule,
            text,
            config,
            unet,
            vae,
            vae_config,
            report,
        })
    }

    /// What is resident.
    pub fn report(&self) -> &LoadReport {
        &self.report
    }
    /// Later runs are planned so; what is resident stays.
    pub fn set_plan(&mut self, options: PlanOptions) {
        self.options.plan = options;
    }
    /// Height and width in pixels that the model was trained at.
    pub fn default_size(&self) -> (usize, usize) {
        let (h, w) = self.config.sample_size().unwrap_or((64, 64));
        (h * self.vae_config.scale(), w * self.vae_config.scale())
    }

    /// Everything of a request that comes before the first step.
    ///
    /// # Errors
    /// `Usage` for sizes and step counts that cannot be served.
    pub fn prepare(&self, request: &Request) -> Result<Run> {
        let (width, height) = self.size(request)?;
        let factor = self.vae_config.scale();
        let (w, h, c) = (width / factor, height / factor, self.config.in_channels);
        let sampler = match request.sampler {
            Some(sampler) => sampler,
            None => Sampler::of_config(&self.schedule)?,
        };
        let schedule = match request.spacing {
            Some(spacing) => {
                sampler.check_spacing(spacing)?;
                self.schedule.clone().with_sigma_spacing(spacing)
            }
            None => self.schedule.clone(),
        };
        let table = sampler.table(&schedule, request.steps)?;
        let batch = if request.guidance == 1.0 { 1 } else { 2 };
        let mut warnings = Vec::new();
        let context = self.encode(request, batch, &mut warnings)?;
        let keys_values = self.keys_values(&context, batch)?;
        let tables = self.time_tables(&table)?;

        let mut rng = Rng::new(RngKind::Cpu, request.seed);
        let sigma = sampler.init_noise_sigma(&schedule, request.steps)?;
        let start: Vec<f32> = rng.randn_nhwc(1, h, w, c).iter().map(|v| v * sigma).collect();
        let latent = self.gpu.upload("latents", bytemuck::cast_slice(&start))?;
        let memory =
            self.gpu.upload("sampler", bytemuck::cast_slice(&vec![0f32; MEMORY * start.len()]))?;
        let shape = [1, h, w, c];
        let plan = self.step_plan(shape, batch, &latent, &memory, &tables, &keys_values)?;
        let guidance = request.guidance as f32;
        Ok(Run {
            gpu: self.gpu.clone(),
            plan,
            table,
            rng,
            latent,
            guidance,
            batch,
            shape,
            sampler,
            warnings,
        })
    }

    /// Width and height of a request in pixels.
    fn size(&self, request: &Request) -> Result<(usize, usize)> {
        let step = self.vae_config.scale() * self.config.multiple();
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
        let (height, width) = self.default_size();
        let width = check("width", request.width.unwrap_or(width))?;
        Ok((width, check("height", request.height.unwrap_or(height))?))
    }

    /// The prompt's (and before it the negative prompt's) last hidden states, `[batch, tokens, channels]`.
    fn encode(
        &self,
        request: &Request,
        batch: usize,
        warnings: &mut Vec<String>,
    ) -> Result<Buffer> {
        let length = self.tokenizer.length();
        let mut ids = Vec::new();
        for text in [&request.negative, &request.prompt].into_iter().skip(2 - batch) {
            let padded = self.tokenizer.encode_padded(text, length)?;
            if padded.dropped > 0 {
                warnings.push(format!(
                    "the prompt is {} tokens too long for this model; not used: \"{}\"",
                    padded.dropped, padded.dropped_text
                ));
            }
            ids.extend(padded.ids);
        }
        let graph = Graph::new(self.options.act);
        graph.output("context", self.text.forward(graph.input("ids", [batch, length], Elem::U32)));
        let plan = Plan::new(&self.gpu, &graph, &self.options.plan)?;
        plan.set_u32("ids", &ids)?;
        plan.run()?;
        Ok(plan.buffer("context")?.clone())
    }

    /// Keys and values of every cross attention: they depend only on the prompt, so their weights are
    /// loaded, used and dropped.
    fn keys_values(&self, context: &Buffer, batch: usize) -> Result<Vec<[Stored; 2]>> {
        let (store, recipe) = part(&self.folder, "unet", &self.options.weights)?;
        let net = UnetContext::load(&Loader::new(&self.gpu, &store, &recipe), &self.config)?;
        let graph = Graph::new(self.options.act);
        let shape = [batch, self.tokenizer.length(), self.config.cross_attention_dim];
        let pairs = net.keys_values(graph.external(context, shape, self.options.act));
        for (i, (k, v)) in pairs.iter().enumerate() {
            graph.output(&format!("k{i}"), *k);
            graph.output(&format!("v{i}"), *v);
        }
        let plan = Plan::new(&self.gpu, &graph, &self.options.plan)?;
        plan.run()?;
        let stored = |name: String, var: &Var<'_>| -> Result<Stored> {
            Ok(Stored { buffer: plan.buffer(&name)?.clone(), shape: var.shape() })
        };
        let pairs = pairs.iter().enumerate();
        pairs
            .map(|(i, (k, v))| Ok([stored(format!("k{i}"), k)?, stored(format!("v{i}"), v)?]))
            .collect()
    }

    /// Every resnet's share of the time embedding for every step of the schedule.
    fn time_tables(&self, table: &[StepCoefficients]) -> Result<Vec<Stored>> {
        let (store, recipe) = part(&self.folder, "unet", &self.options.weights)?;
        let net = UnetTime::load(&Loader::new(&self.gpu, &store, &recipe), &self.config)?;
        let graph = Graph::new(self.options.act);
        let timesteps = graph.input("timesteps", [table.len()], Elem::F32);
        let vars = net.table(timesteps, &TimeConditions::default());
        for (i, var) in vars.iter().enumerate() {
            graph.output(&format!("t{i}"), *var);
        }
        let plan = Plan::new(&self.gpu, &graph, &self.options.plan)?;
        plan.set("timesteps", &table.iter().map(|s| s.timestep).collect::<Vec<_>>())?;
        plan.run()?;
        let vars = vars.iter().enumerate();
        vars.map(|(i, var)| {
            Ok(Stored { buffer: plan.buffer(&format!("t{i}"))?.clone(), shape: var.shape() })
        })
        .collect()
    }

    /// One step: scale, UNet, guidance, sampler, all on the GPU; the latents stay there.
    fn step_plan(
        &self,
        shape: [usize; 4],
        batch: usize,
        latent: &Buffer,
        memory: &Buffer,
        tables: &[Stored],
        keys_values: &[[Stored; 2]],
    ) -> Result<Plan> {
        let act = self.options.act;
        let graph = Graph::new(act);
        let x = graph.external(latent, shape, Elem::F32);
        let [n, h, w, c] = shape;
        let memory = graph.external(memory, [MEMORY * n, h, w, c], Elem::F32);
        let noise = graph.input("noise", shape, Elem::F32);
        let coefficients = graph.input("coefficients", [COEFFICIENTS], Elem::F32);
        let row = graph.input("row", [batch], Elem::U32);
        let tables: Vec<Var<'_>> = tables.iter().map(|t| t.var(&graph, act)).collect();
        let pairs: Vec<(Var<'_>, Var<'_>)> =
            keys_values.iter().map(|[k, v]| (k.var(&graph, act), v.var(&graph, act))).collect();

        let input = model_input(x, coefficients, batch);
        let eps = self.unet.forward(input, &tables, row, &pairs).tap("eps");
        let value = predict_value(x, eps, coefficients);
        let next = step(x, value, memory, noise, coefficients);
        graph.output("eps", eps);
        graph.output("memory", remember(memory, x, value, coefficients));
        graph.output("next", assign(x, next));
        Plan::new(&self.gpu, &graph, &self.options.plan)
    }

    /// Latents `[1, h, w, c]` in a buffer → picture. Also returns how many of its values were not finite.
    pub fn decode(&self, latent: &Buffer, shape: [usize; 4]) -> Result<(Image, usize)> {
        let graph = Graph::new(Elem::F32);
        let z = graph.external(latent, shape, Elem::F32);
        let mut z = (1.0 / self.vae_config.scaling_factor) as f32 * z;
        if let Some(shift) = self.vae_config.shift_factor {
            z = z + graph.literal([shape[3]], vec![shift as f32; shape[3]]);
        }
        let image = self.vae.forward(z);
        graph.output("image", image);
        let plan = Plan::new(&self.gpu, &graph, &self.options.plan)?;
        plan.run()?;
        let size = image.shape();
        Image::from_vae(&plan.read("image")?, size.dims()[2], size.dims()[1])
    }

    /// Paints.
    pub fn generate(&self, request: &Request, on_step: &mut OnStep<'_>) -> Result<Picture> {
        let start = Instant::now();
        let mut run = self.prepare(request)?;
        self.gpu.wait()?;
        let mut seconds = Seconds { encode: start.elapsed().as_secs_f64(), ..Default::default() };
        let start = Instant::now();
        let steps = run.table.last().map_or(0, |row| row.steps_done as usize);
        for i in 0..run.steps() {
            run.step(i)?;
            on_step(run.table[i].steps_done as usize, steps);
        }
        let latents = run.latents()?;
        seconds.denoise = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let (image, bad) = self.decode(&run.latent, run.shape)?;
        seconds.decode = start.elapsed().as_secs_f64();
        let mut warnings = std::mem::take(&mut run.warnings);
        if bad > 0 {
            warnings.push(format!(
                "{bad} values of the picture are not finite; try --activations f32, and `inknib doctor` to \
                 test the device"
            ));
        }
        Ok(Picture { image, latents, seconds, sampler: run.sampler, steps, warnings })
    }
}

/// A value that one plan leaves for another.
#[derive(Clone, Debug)]
struct Stored {
    buffer: Buffer,
    shape: Shape,
}

impl Stored {
    fn var<'g>(&self, graph: &'g Graph, elem: Elem) -> Var<'g> {
        graph.external(&self.buffer, self.shape, elem)
    }
}

/// A request on its way: the step plan and its state on the GPU.
pub struct Run {
    gpu: Gpu,
    plan: Plan,
    table: Vec<StepCoefficients>,
    rng: Rng,
    latent: Buffer,
    guidance: f32,
    batch: usize,
    shape: [usize; 4],
    sampler: Sampler,
    warnings: Vec<String>,
}

impl Run {
    /// Evaluations of the network; a step of some samplers takes two.
    pub fn steps(&self) -> usize {
        self.table.len()
    }
    /// The schedule's coefficients.
    pub fn table(&self) -> &[StepCoefficients] {
        &self.table
    }
    /// `[1, height/8, width/8, channels]`
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }
    /// Where the latents are.
    pub fn latent(&self) -> &Buffer {
        &self.latent
    }
    /// The plan of one step.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Submits step `i`: one submission, no wait.
    pub fn step(&mut self, i: usize) -> Result<()> {
        let row = self.table[i];
        self.plan.set("coefficients", &row.with_guidance(self.guidance, 0.0))?;
        self.plan.set_u32("row", &vec![i as u32; self.batch])?;
        if row.needs_noise() {
            let [n, h, w, c] = self.shape;
            self.plan.set("noise", &self.rng.randn_nhwc(n, h, w, c))?;
        }
        self.plan.run()
    }

    /// Milliseconds of each launch of a step (run once to warm up); empty without timestamps.
    pub fn profile(&mut self) -> Result<Vec<(Launch, f64)>> {
        self.step(0)?;
        Ok(self.plan.profile()?.unwrap_or_default())
    }

    /// Reads the latents, NHWC.
    pub fn latents(&self) -> Result<Vec<f32>> {
        let count: usize = self.shape.iter().product();
        Ok(bytemuck::pod_collect_to_vec(&self.gpu.read(&self.latent, 0, count as u64 * 4)?))
    }
    /// Replaces the latents.
    pub fn set_latents(&self, values: &[f32]) -> Result<()> {
        self.gpu.write(&self.latent, 0, bytemuck::cast_slice(values))
    }
    /// The UNet's output at the last step, `[batch, h, w, c]`: unconditional first under guidance.
    pub fn eps(&self) -> Result<Vec<f32>> {
        self.plan.read("eps")
    }
}

fn part(folder: &Path, name: &str, weights: &str) -> Result<(WeightStore, Recipe)> {
    Ok((WeightStore::open(folder.join(name))?, Recipe::from_argument(weights, name)?))
}
