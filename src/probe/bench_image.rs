//! How fast an image model runs here and what it keeps in memory: one UNet step and one VAE decode at
//! given sizes, beside the fastest plain matrix product of the same kernels.

use std::time::Instant;

use serde::Serialize;

use super::bench::spread;
use crate::diffusion::rng::{Rng, RngKind};
use crate::diffusion::tiling::{Coder, Pixels};
use crate::gpu::{Elem, Gpu};
use crate::graph::{Graph, Plan, PlanOptions, Shape, Weight};
use crate::nets::clip::{ClipText, ClipTextConfig};
use crate::nets::unet::{TimeConditions, Unet, UnetConfig, UnetContext, UnetTime};
use crate::nets::vae::{VaeConfig, VaeDecoder};
use crate::nn::{LoadReport, LoadedTensor, Loader};
use crate::ops::matmul::linear;
use crate::quant::{Layout, Packed, QuantSpec, Recipe};
use crate::weights::{ImageModel, Part};
use crate::{Error, Result};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ImageTest {
    pub what: What,
    /// Pixels of the picture.
    pub width: usize,
    pub height: usize,
    /// Pictures at once; guidance doubles it.
    pub batch: usize,
}

/// The net of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// One prediction of the UNet, time embedding and prompt computed before.
    Unet,
    /// From latents to pixels, in tiles where memory or the device asks for them.
    Vae,
}

impl ImageTest {
    /// `unet 512x512 b2`, `vae 512x512`
    pub fn name(&self) -> String {
        let net = if self.what == What::Unet { "unet" } else { "vae" };
        let batch = if self.batch == 1 { String::new() } else { format!(" b{}", self.batch) };
        format!("{net} {}x{}{batch}", self.width, self.height)
    }
}

/// One row of the table.
#[derive(Clone, Debug, Serialize)]
pub struct ImageMeasured {
    pub test: String,
    #[serde(flatten)]
    pub of: ImageTest,
    /// Mean over the repetitions; of the whole decode for the VAE.
    pub seconds_per_step: f64,
    /// Standard deviation of the repetitions; 0 for one.
    pub stddev: f64,
    pub samples: Vec<f64>,
    /// Floating-point operations, in 10⁹.
    pub gflop: f64,
    pub gflop_s: f64,
    /// `gflop_s` over that of [`gemm_ceiling`].
    pub fraction_of_ceiling: f64,
    /// `gflop_s` over the rate of multiplications and additions alone.
    pub fraction_of_fma: f64,
    /// Side in pixels of the tiles that the VAE works in, where it does.
    pub tile: Option<usize>,
    /// Bytes of activations that the plan takes.
    pub activations: u64,
    /// Queue submissions of one run.
    pub submissions: u64,
    /// Seconds to plan, kernels compiled included.
    pub plan_seconds: f64,
}

/// What a net takes and how long it took to load (and quantize).
#[derive(Clone, Debug, Serialize)]
pub struct LoadedPart {
    pub part: &'static str,
    pub parameters: u64,
    pub resident_bytes: u64,
    pub bits_per_weight: f64,
    pub seconds: f64,
}

/// The nets of an image model on the GPU.
pub struct ImageNets {
    pub parts: Vec<LoadedPart>,
    unet: Unet,
    vae: VaeDecoder,
    vae_config: VaeConfig,
    /// Resident for the load's time and bytes alone.
    _text: Vec<ClipText>,
    /// Channels of each resnet's row of the time tables.
    times: Vec<usize>,
    /// Channels of each cross attention's keys and values.
    contexts: Vec<usize>,
}

/// Tokens of a prompt.
const TOKENS: usize = 77;

impl ImageNets {
    /// Loads all parts as `weights` (a recipe's name or file) says, as generation does: what depends on
    /// the timestep or the prompt alone is not resident.
    ///
    /// # Errors
    /// As loading does.
    pub fn load(
        gpu: &Gpu,
        model: &ImageModel,
        weights: &str,
        on_tensor: &dyn Fn(&LoadedTensor),
    ) -> Result<ImageNets> {
        let (mut text, mut parts) = (Vec::new(), Vec::new());
        for part in [Part::TextEncoder, Part::TextEncoder2] {
            if model.has(part) {
                text.push(load(gpu, model, part, weights, on_tensor, &mut parts, |ld| {
                    let (value, source) = model.config(part)?;
                    ClipText::load(ld, &ClipTextConfig::from_value(&value, &source)?)
                })?);
            }
        }
        let (value, source) = model.config(Part::Unet)?;
        let config = UnetConfig::from_value(&value, &source)?;
        let unet = load(gpu, model, Part::Unet, weights, on_tensor, &mut parts, |ld| {
            Unet::load(ld, &config)
        })?;
        let (value, source) = model.config(Part::Vae)?;
        let vae_config = VaeConfig::from_value(&value, &source)?;
        let vae = load(gpu, model, Part::Vae, weights, on_tensor, &mut parts, |ld| {
            VaeDecoder::load(ld, &vae_config)
        })?;
        let (times, contexts) = hoisted(gpu, model, &config)?;
        Ok(ImageNets { parts, unet, vae, vae_config, _text: text, times, contexts })
    }

    /// An error for a size that the nets cannot serve.
    pub fn check(&self, test: ImageTest) -> Result<()> {
        let multiple = self.vae_config.scale() * self.unet.config().multiple();
        let fits = |side: usize| side > 0 && side.is_multiple_of(multiple);
        match fits(test.width) && fits(test.height) && test.batch > 0 {
            true => Ok(()),
            false => Err(Error::Usage(format!(
                "{}: this model paints multiples of {multiple} pixels, one picture or more",
                test.name()
            ))),
        }
    }

    /// Side of the pictures that the model was trained on.
    pub fn usual_size(&self) -> usize {
        self.unet.config().sample_size().map_or(64, |(h, _)| h) * self.vae_config.scale()
    }

    /// A plan of one UNet step on random inputs.
    fn plan(&self, gpu: &Gpu, test: ImageTest, act: Elem, options: &PlanOptions) -> Result<Plan> {
        let [_, h, w] = self.latents(test);
        let graph = Graph::new(act);
        let x = graph.input("x", [test.batch, h, w, self.unet.config().in_channels], act);
        let input = |name: String, shape: Shape| graph.input(&name, shape, act);
        let times = self.times.iter().enumerate();
        let times: Vec<_> =
            times.map(|(i, c)| input(format!("t{i}"), Shape::new(&[1, *c]))).collect();
        let row = graph.input("row", [test.batch], Elem::U32);
        let contexts = self.contexts.iter().enumerate();
        let pairs: Vec<_> = contexts
            .map(|(i, c)| {
                let shape = Shape::new(&[test.batch, TOKENS, *c]);
                (input(format!("k{i}"), shape), input(format!("v{i}"), shape))
            })
            .collect();
        graph.output("out", self.unet.forward(x, &times, row, &pairs));
        let plan = Plan::new(gpu, &graph, options)?;
        let mut rng = Rng::new(RngKind::Cpu, 7);
        let mut fill = |name: &str| -> Result<()> {
            let values = rng.randn(plan.shape(name)?.len());
            plan.set(name, &values)
        };
        fill("x")?;
        (0..self.times.len()).try_for_each(|i| fill(&format!("t{i}")))?;
        for i in 0..self.contexts.len() {
            fill(&format!("k{i}"))?;
            fill(&format!("v{i}"))?;
        }
        plan.set_u32("row", &vec![0; test.batch])?;
        Ok(plan)
    }

    /// Pictures, and height and width of their latents.
    fn latents(&self, test: ImageTest) -> [usize; 3] {
        let factor = self.vae_config.scale();
        [test.batch, test.height / factor, test.width / factor]
    }
}

/// Loads one part and notes what it takes.
fn load<T>(
    gpu: &Gpu,
    model: &ImageModel,
    part: Part,
    weights: &str,
    on_tensor: &dyn Fn(&LoadedTensor),
    parts: &mut Vec<LoadedPart>,
    make: impl FnOnce(&Loader<'_>) -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    let (store, recipe) = (model.store(part)?, Recipe::from_argument(weights, part.recipe())?);
    let loader = Loader::with_progress(gpu, &store, &recipe, Some(on_tensor));
    let net = make(&loader)?;
    gpu.submit(&[])?;
    gpu.wait()?;
    let report: LoadReport = loader.report();
    parts.push(LoadedPart {
        part: part.folder(),
        parameters: report.elements(),
        resident_bytes: report.resident_bytes(),
        bits_per_weight: report.bits_per_weight(),
        seconds: start.elapsed().as_secs_f64(),
    });
    Ok(net)
}

/// Channels of the time tables and of the cross attentions, from outlines of the nets that make them.
fn hoisted(gpu: &Gpu, model: &ImageModel, config: &UnetConfig) -> Result<(Vec<usize>, Vec<usize>)> {
    let (store, recipe) = (model.store(Part::Unet)?, Recipe::from_argument("fp16", "unet")?);
    let outline = Loader::outline(gpu, &store, &recipe);
    let graph = Graph::new(Elem::F32);
    let input = |name: &str, channels: usize| graph.input(name, [1, channels], Elem::F32);
    /// Original size, crop and target size of SDXL.
    const SIZES: usize = 6;
    let added = config.added();
    let conditions = TimeConditions {
        timestep_cond: config.time_cond_proj_dim.map(|dim| input("guidance", dim)),
        text_embeds: added.map(|added| {
            input("pooled", added.channels.saturating_sub(SIZES * added.time_channels))
        }),
        time_ids: added.map(|_| input("sizes", SIZES)),
    };
    let times = UnetTime::load(&outline, config)?;
    let times = times.table(graph.input("timesteps", [1], Elem::F32), &conditions);
    let context = graph.input("context", [1, TOKENS, config.cross_attention_dim], Elem::F32);
    let pairs = UnetContext::load(&outline, config)?.keys_values(context);
    graph.finish()?;
    let times = times.iter().map(|table| table.shape().last()).collect();
    Ok((times, pairs.iter().map(|(k, _)| k.shape().last()).collect()))
}

/// How tests are run.
pub struct ImageBench<'a> {
    pub gpu: &'a Gpu,
    pub nets: &'a ImageNets,
    /// What [`gemm_ceiling`] found.
    pub ceiling: f64,
    /// GFLOP/s of multiplications and additions ([`Ceilings`](super::ceilings::Ceilings)).
    pub fma: f64,
    pub act: Elem,
    pub options: &'a PlanOptions,
    pub repetitions: usize,
}

/// Told of each tile of a VAE that is finished, and how many there are.
pub type OnTile<'a> = dyn FnMut(usize, usize) + 'a;

/// What a test does and takes, besides time.
struct Work {
    flops: u64,
    activations: u64,
    tile: Option<usize>,
}

impl ImageBench<'_> {
    /// Runs a test `repetitions` times after one run that does not count, unless that one is so long (five
    /// seconds) that it may as well. Planning the VAE belongs to its runs, as it does when a picture is made.
    ///
    /// # Errors
    /// `Usage` for a size that the nets cannot serve; as running does; `Interrupted` on Ctrl-C.
    pub fn measure(&self, test: ImageTest, on_tile: &mut OnTile<'_>) -> Result<ImageMeasured> {
        let Self { gpu, nets, .. } = *self;
        nets.check(test)?;
        match test.what {
            What::Unet => {
                let start = Instant::now();
                let plan = nets.plan(gpu, test, self.act, self.options)?;
                gpu.wait()?;
                let planned = start.elapsed().as_secs_f64();
                let (flops, activations) = (plan.flops(), plan.activation_bytes());
                let work = Work { flops, activations, tile: None };
                self.repeat(test, work, planned, &mut || run(gpu, &plan))
            }
            What::Vae => {
                // The VAE's activations are f32 in every pipeline: real models exceed f16 there.
                let mut coder = Coder::decoder(gpu, nets.vae_config.scale(), &nets.vae);
                coder.plan = self.options.clone();
                let ([n, h, w], c) = (nets.latents(test), nets.vae_config.latent_channels);
                let shape = [n, h, w, c];
                let tile = coder.tiles_for(shape, gpu.ledger().free())?;
                let whole = || coder.footprint(shape);
                let footprint =
                    tile.map_or_else(whole, |side| coder.tiled_footprint(shape, side))?;
                let values = Rng::new(RngKind::Cpu, 7).randn(shape.iter().product());
                let latents = Pixels { shape, values };
                let work = Work {
                    flops: footprint.flops,
                    activations: footprint.activations,
                    tile: tile.map(|side| side * nets.vae_config.scale()),
                };
                self.repeat(test, work, 0.0, &mut || {
                    let start = Instant::now();
                    coder.run(&latents, tile, on_tile)?;
                    Ok(start.elapsed().as_secs_f64())
                })
            }
        }
    }

    fn repeat(
        &self,
        test: ImageTest,
        work: Work,
        plan_seconds: f64,
        run: &mut dyn FnMut() -> Result<f64>,
    ) -> Result<ImageMeasured> {
        const LONG: f64 = 5.0;
        let before = self.gpu.sent();
        let mut samples = vec![run()?];
        let submissions = self.gpu.sent().since(before).submissions;
        if samples[0] < LONG {
            samples.clear();
            for _ in 0..self.repetitions.max(1) {
                samples.push(run()?);
            }
        }
        let (mean, stddev) = spread(&samples);
        let gflop = work.flops as f64 / 1e9;
        let gflop_s = gflop / mean.max(1e-9);
        Ok(ImageMeasured {
            test: test.name(),
            of: test,
            seconds_per_step: mean,
            stddev,
            samples,
            gflop,
            gflop_s,
            fraction_of_ceiling: gflop_s / self.ceiling.max(1e-9),
            fraction_of_fma: gflop_s / self.fma.max(1e-9),
            tile: work.tile,
            activations: work.activations,
            submissions,
            plan_seconds,
        })
    }
}

/// The most memory that this process had on the host, in bytes, where the system says so (Linux).
pub fn host_peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn run(gpu: &Gpu, plan: &Plan) -> Result<f64> {
    let start = Instant::now();
    plan.run()?;
    gpu.wait()?;
    Ok(start.elapsed().as_secs_f64())
}

/// GFLOP/s of the fastest of a few products of f32 matrices with weights of f32, f16 or INT4, by the kernel that
/// linear layers run on: what a step could reach here if it were nothing but such products.
///
/// # Errors
/// As planning and running do.
pub fn gemm_ceiling(gpu: &Gpu, options: &PlanOptions) -> Result<f64> {
    /// Rows of x, rows of w, and their length: the products of a UNet at 64, 32 and 16 pixels a side.
    const SHAPES: [[usize; 3]; 3] = [[4096, 320, 320], [1024, 640, 640], [1024, 1280, 1280]];
    let mut rng = Rng::new(RngKind::Cpu, 3);
    let mut best = 0.0f64;
    for [m, n, k] in SHAPES {
        let layout = Layout::linear(n, k);
        let values = rng.randn(layout.len());
        for spec in [QuantSpec::F32, QuantSpec::F16, QuantSpec::INT4] {
            let packed = Packed::pack(&values, layout, &spec, None)?;
            let weight = Weight::upload(gpu, "ceiling", &packed)?;
            let graph = Graph::new(Elem::F32);
            graph.output("y", linear(graph.input("x", [1, m, k], Elem::F32), &weight, None));
            let plan = Plan::new(gpu, &graph, options)?;
            plan.set("x", &rng.randn(m * k))?;
            run(gpu, &plan)?;
            for _ in 0..3 {
                best = best.max(plan.flops() as f64 / 1e9 / run(gpu, &plan)?.max(1e-9));
            }
        }
    }
    Ok(best)
}
