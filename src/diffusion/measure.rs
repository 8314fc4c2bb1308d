//! What a run will take, found on nets without weights before anything is loaded.

use std::path::Path;

use super::autoencoder::{Autoencoder, PictureEncoder};
use super::conditioning::{Encode, TextEncoder, encoders};
use super::control::{self, ControlPart, ControlStored, record_picture};
use super::hoisted::{About, Hoisted, KeysValues, Stored};
use super::load_options::{LoadOptions, Previews, part, schedule, unet_config, with_adapters};
use super::memory::{MemoryPlan, Needs};
use super::preview::Projection;
use super::request::Request;
use super::run::{Inpaint, Known, Parts, Pass, Passes, State, groups};
use super::sizes::size;
use crate::gpu::{Gpu, mib};
use crate::graph::{Footprint, Graph, Plan, PlanOptions, Residence};
use crate::nets::controlnet::ControlNet;
use crate::nets::unet::{Unet, UnetConfig, UnetContext, UnetTime};
use crate::nn::{LoadReport, Loader};
use crate::ops::sampler::MEMORY;
use crate::quant::Recipe;
use crate::weights::{ImageModel, Part, WeightStore};
use crate::{Error, Result};

/// More than any budget, and room to add to it.
const NEVER: u64 = u64::MAX >> 2;

/// What `request` needs of `model` on this device.
///
/// # Errors
/// As loading has them, but for the values of weights.
pub fn needs(
    gpu: &Gpu,
    model: &ImageModel,
    options: &LoadOptions,
    request: &Request,
) -> Result<Needs> {
    let config = unet_config(model)?;
    let items = if request.guided(&config) { 2 } else { 1 };
    let (vae, vae_report) = outline_vae(gpu, model, &config, options)?;
    let (width, height) = size(request, &config, vae.scale())?;
    let (sampler, own) = request.schedule(&schedule(model)?)?;
    let family = model.kind().family;
    let mut all = Measure {
        gpu,
        options,
        request,
        about: About { guidance: request.guidance as f32, family, size: [height, width] },
        items,
        evaluations: request.table(sampler, &own)?.len(),
        tokens: 0,
        needs: Needs::default(),
        before: Before::default(),
    };
    all.stays(&vae_report);
    all.texts(model)?;
    let (store, recipe) = part(model, Part::Unet, &options.weights)?;
    let outline = || with_adapters(Loader::outline(gpu, &store, &recipe), Part::Unet, options);
    let loader = outline()?;
    let unet = Unet::load(&loader, &config)?;
    all.streams(&loader.report());
    let hoisted = all.hoist(&outline, &config)?;
    let controls = options.controls.iter().map(|path| all.control(path, &config));
    let controls: Vec<(ControlNet, Conditioned)> = controls.collect::<Result<_>>()?;

    let shape = [request.batch, height / vae.scale(), width / vae.scale(), vae.latent_channels()];
    // The latents, what a sampler remembers, and a copy for the host to read.
    all.needs.fixed += (shape.iter().product::<usize>() * 4 * (MEMORY + 2)) as u64;
    let joined = all.step(&unet, &hoisted, &controls, shape, Passes::Joined)?;
    let apart = match items {
        1 => joined,
        _ => all.step(&unet, &hoisted, &controls, shape, Passes::Apart)?,
    };
    let binding = gpu.caps().max_binding_bytes;
    if apart.largest > binding {
        return Err(Error::OutOfMemory(format!(
            "a step at {width}x{height} needs {} of one value at once, this adapter binds at most {}; take a smaller \
             picture or batch, or --activations f16 where the adapter has it",
            mib(apart.largest),
            mib(binding)
        )));
    }
    all.needs.step_joined = if joined.largest > binding { NEVER } else { joined.bytes() };
    all.needs.step_apart = apart.bytes();
    all.decode(&vae, shape)?;
    all.preview(&vae, shape)?;
    if request.start.is_some() && !vae.is_pixels() {
        let (store, recipe) = part(model, Part::Vae, &options.weights)?;
        let loader = Loader::outline(gpu, &store, &recipe);
        all.encode(&PictureEncoder::load(&loader, model)?, &loader.report())?;
    }
    Ok(all.finish())
}

/// The decoder of a model's VAE without its weights, and what they would take.
fn outline_vae(
    gpu: &Gpu,
    model: &ImageModel,
    config: &UnetConfig,
    options: &LoadOptions,
) -> Result<(Autoencoder, LoadReport)> {
    if let Some(pixels) = Autoencoder::pixels(model, config)? {
        return Ok((pixels, LoadReport::default()));
    }
    let (store, recipe) = part(model, Part::Vae, &options.weights)?;
    let loader = Loader::outline(gpu, &store, &recipe);
    Ok((Autoencoder::load(&loader, model)?, loader.report()))
}

/// Bytes of matrices of which a report has only outlines.
fn outlined(report: &LoadReport) -> u64 {
    let outlines = report.tensors.iter().filter(|t| t.residence == Residence::Outline);
    outlines.map(|t| t.bytes).sum()
}

/// Windows in which a matrix is streamed have so many bytes of codes at most.
const WINDOW: u64 = 16 << 20;

/// Bytes that buffers take beyond what is in them: a matrix has one of 32 bytes for each window, and all are
/// rounded up to 16.
fn rounding(report: &LoadReport) -> u64 {
    report.tensors.iter().map(|tensor| 64 * (1 + tensor.bytes / WINDOW)).sum()
}

/// What stays of a net whose matrices do not.
fn vectors(report: &LoadReport) -> u64 {
    report.resident_bytes() + rounding(report)
}

/// What is taken before the first step, one thing after another.
#[derive(Default)]
struct Before {
    /// Tables, keys and values, which stay.
    kept: u64,
    /// The most at once with all weights on the GPU, and with matrices streamed.
    most: u64,
    streamed: u64,
}

/// What a net reads that was computed once for its steps: measured, without memory.
struct Conditioned {
    tables: Vec<Stored>,
    /// Of a pass for all prompts, and of one for one prompt.
    joined: KeysValues,
    apart: KeysValues,
    /// A ControlNet's picture.
    picture: Option<Stored>,
}

impl Conditioned {
    fn keys_values(&self, passes: Passes) -> &KeysValues {
        if passes == Passes::Joined { &self.joined } else { &self.apart }
    }
}

/// A walk through a run.
struct Measure<'a> {
    gpu: &'a Gpu,
    options: &'a LoadOptions,
    request: &'a Request,
    about: About,
    /// Prompts: 2 under guidance.
    items: usize,
    /// Rows of the sampler's table.
    evaluations: usize,
    tokens: usize,
    needs: Needs,
    before: Before,
}

impl Measure<'_> {
    /// A net that stays on the GPU.
    fn stays(&mut self, report: &LoadReport) {
        self.needs.fixed += outlined(report) + vectors(report);
    }

    /// A net whose matrices stay if they find room.
    fn streams(&mut self, report: &LoadReport) {
        self.needs.matrices += outlined(report);
        self.needs.fixed += vectors(report);
        self.window(report);
    }

    /// A pool for streaming takes the largest window, whose scales come on top of its codes: an eighth, or a
    /// quarter with offsets.
    fn window(&mut self, report: &LoadReport) {
        let outlines = report.tensors.iter().filter(|t| t.residence == Residence::Outline);
        let largest = outlines.map(|t| t.bytes.min(WINDOW + WINDOW / 4)).max().unwrap_or(0);
        self.needs.largest = self.needs.largest.max(largest.next_multiple_of(256) + 512);
    }

    /// A net that is on the GPU only to compute something before the steps.
    fn passes_by(&mut self, report: &LoadReport, taken: u64) {
        self.window(report);
        let before = &mut self.before;
        let streamed = before.kept + vectors(report) + taken;
        before.streamed = before.streamed.max(streamed);
        before.most = before.most.max(streamed + outlined(report));
    }

    fn finish(mut self) -> Needs {
        self.needs.fixed += self.before.kept;
        self.needs.prepare = self.before.most.saturating_sub(self.before.kept);
        self.needs.prepare_streamed = self.before.streamed.saturating_sub(self.before.kept);
        self.needs
    }

    fn texts(&mut self, model: &ImageModel) -> Result<()> {
        let options = self.options;
        let (act, plan, family) = (options.act, &options.plan, self.about.family);
        let encode = Encode { gpu: self.gpu, act, plan, family };
        for which in encoders(model) {
            let (store, recipe) = part(model, which, &options.weights)?;
            let loader = Loader::outline(self.gpu, &store, &recipe);
            let loader = with_adapters(loader, which, options)?;
            let encoder = TextEncoder::load(&loader, model, which, &options.embeddings)?;
            self.streams(&loader.report());
            self.needs.fixed += encoder.added_bytes();
            let (taken, tokens) = encode.measure(&encoder, self.request, self.items == 2)?;
            self.passes_by(&LoadReport::default(), taken);
            self.tokens = self.tokens.max(tokens);
        }
        Ok(())
    }

    /// Tables, keys and values of a UNet or ControlNet.
    fn hoist<'l>(
        &mut self,
        outline: &dyn Fn() -> Result<Loader<'l>>,
        config: &UnetConfig,
    ) -> Result<Conditioned> {
        let (items, copies) = (self.items, self.request.batch);
        let plan = &self.options.plan;
        let hoisted = Hoisted { gpu: self.gpu, act: self.options.act, plan, config };
        let loader = outline()?;
        let net = UnetTime::load(&loader, config)?;
        let tables = hoisted.measure_tables(&net, items, self.evaluations, &self.about)?;
        self.passes_by(&loader.report(), tables.taken);
        self.before.kept += tables.kept;
        let loader = outline()?;
        let net = UnetContext::load(&loader, config)?;
        let joined = hoisted.measure_keys_values(&net, self.tokens, items, copies)?;
        let apart = hoisted.measure_keys_values(&net, self.tokens, 1, copies)?;
        // Two passes are computed one after the other, and both are kept.
        let kept = joined.kept.max(apart.kept * items as u64);
        self.passes_by(&loader.report(), joined.taken.max(kept - apart.kept + apart.taken));
        self.before.kept += kept;
        let (joined, apart) = (joined.values, apart.values);
        Ok(Conditioned { tables: tables.values, joined, apart, picture: None })
    }

    fn control(&mut self, path: &Path, unet: &UnetConfig) -> Result<(ControlNet, Conditioned)> {
        let (config, store) = control::open(path, unet)?;
        let recipe = control::recipe(&self.options.weights)?;
        let gpu = self.gpu;
        let outline = || Ok(Loader::outline(gpu, &store, &recipe));
        let loader = outline()?;
        let net = ControlNet::load(&loader, &config)?;
        self.streams(&loader.report());
        let hoisted = self.hoist(&outline, &config.unet)?;
        let (loader, graph) = (outline()?, Graph::new(self.options.act));
        let picture = record_picture(&graph, &loader, &config, self.about.size)?;
        let footprint = Plan::footprint(self.gpu, &graph, &self.options.plan)?;
        self.passes_by(&loader.report(), footprint.bytes());
        self.before.kept += footprint.outputs;
        let picture = Stored::new(self.gpu.buffer("nothing", 16)?, picture.shape());
        Ok((net, Conditioned { picture: Some(picture), ..hoisted }))
    }

    /// Bytes of a step beside weights, tables, keys and values.
    fn step(
        &self,
        unet: &Unet,
        hoisted: &Conditioned,
        controls: &[(ControlNet, Conditioned)],
        shape: [usize; 4],
        passes: Passes,
    ) -> Result<Footprint> {
        let (options, request) = (self.options, self.request);
        let groups = groups(self.items, passes);
        let pass = |items: &std::ops::Range<usize>| Pass {
            keys_values: hoisted.keys_values(passes).clone(),
            items: vec![0; items.len() * shape[0]],
        };
        let all: Vec<Pass> = groups.iter().map(pass).collect();
        let stored = |(_, of): &(ControlNet, Conditioned)| {
            let keys_values = vec![of.keys_values(passes).clone(); groups.len()];
            Some(ControlStored {
                picture: of.picture.clone()?,
                tables: of.tables.clone(),
                keys_values,
            })
        };
        let stored: Vec<ControlStored> = controls.iter().filter_map(stored).collect();
        let pairs = controls.iter().zip(&stored);
        let controls = pairs.map(|((net, _), stored)| ControlPart { net, stored, scale: 1.0 });
        let parts = Parts {
            gpu: self.gpu,
            act: options.act,
            options: &options.plan,
            unet,
            tables: &hoisted.tables,
            passes: &all,
            rescale: request.guidance_rescale > 0.0 && self.items == 2,
            shape,
            controls: &controls.collect::<Vec<_>>(),
        };
        let masked = request.start.as_ref().is_some_and(|start| start.mask.is_some());
        let nine = unet.config().in_channels != shape[3];
        let inpaint = match (masked, nine) {
            (_, true) => Inpaint::Channels(Vec::new()),
            (true, false) => Inpaint::Blend(Known::default()),
            (false, false) => Inpaint::No,
        };
        let graph = Graph::new(options.act);
        let nothing = self.gpu.buffer("nothing", 16)?;
        parts.record(&graph, &State { latent: &nothing, memory: &nothing }, &inpaint)?;
        // Whether weights will be streamed is decided by what is measured here.
        let streamed = PlanOptions { apart: true, ..options.plan.clone() };
        let resident = Plan::footprint(self.gpu, &graph, &options.plan)?;
        let streamed = Plan::footprint(self.gpu, &graph, &streamed)?;
        Ok(if streamed.bytes() > resident.bytes() { streamed } else { resident })
    }

    fn decode(&mut self, vae: &Autoencoder, [_, h, w, c]: [usize; 4]) -> Result<()> {
        if vae.is_pixels() {
            return Ok(());
        }
        let (gpu, options, want) = (self.gpu, self.options, self.needs.step_joined);
        let (binding, shape) = (gpu.caps().max_binding_bytes, [1, h, w, c]);
        // A tile that takes no more than a step costs no memory at all.
        let side = match options.tile {
            Some(side) => side,
            None => vae.tile_side(gpu, &options.plan, shape, want)?,
        };
        let tiled = vae.tiled_footprint(gpu, &options.plan, shape, side)?;
        (self.needs.tile, self.needs.decode_tiled) = (side, tiled.bytes());
        if options.tile.is_some() && tiled.largest > binding {
            let fits = vae.tile_side(gpu, &options.plan, shape, want)? * vae.scale();
            return Err(Error::Usage(format!(
                "tiles of {} pixels need a buffer of {}, this adapter binds {}; --vae-tile-size {fits} would do",
                side * vae.scale(),
                mib(tiled.largest),
                mib(binding)
            )));
        }
        // What no binding can hold, or no safe loop can do, is decoded in tiles whatever the budget.
        let whole = vae.footprint(gpu, &options.plan, shape);
        let whole = whole.ok().filter(|whole| whole.largest <= binding);
        self.needs.decode = whole.map_or(NEVER, |whole| whole.bytes());
        Ok(())
    }

    /// Previews of one picture beside a step.
    fn preview(&mut self, vae: &Autoencoder, [_, h, w, c]: [usize; 4]) -> Result<()> {
        let (gpu, plan) = (self.gpu, &self.options.plan);
        let (loaded, store, recipe);
        let tiny = match &self.options.previews {
            None => return Ok(()),
            Some(Previews::Projection) => {
                // Before anything else is done, when the weights are all that is there.
                let fit = vae.footprint(gpu, plan, Projection::fit_shape(c))?.bytes();
                self.passes_by(&LoadReport::default(), fit);
                return Ok(());
            }
            Some(Previews::Own) => vae,
            Some(Previews::Tiny(path)) => {
                (store, recipe) = (WeightStore::open(path)?, Recipe::from_argument("fp16", "vae")?);
                let loader = Loader::outline(gpu, &store, &recipe);
                loaded = Autoencoder::load_tiny(&loader, path)?;
                self.stays(&loader.report());
                &loaded
            }
        };
        self.needs.preview = tiny.footprint(gpu, plan, [1, h, w, c])?.bytes();
        let tiled = tiny.tiled_footprint(gpu, plan, [1, h, w, c], self.needs.tile)?;
        self.needs.preview_tiled = tiled.bytes();
        Ok(())
    }

    /// A picture to start from, in the tiles that it will be decoded in.
    fn encode(&mut self, encoder: &PictureEncoder, report: &LoadReport) -> Result<()> {
        let (gpu, plan, size) = (self.gpu, &self.options.plan, self.about.size);
        let weights = outlined(report) + vectors(report);
        let whole = encoder.footprint(gpu, plan, size, None);
        let whole = whole.ok().filter(|whole| whole.largest <= gpu.caps().max_binding_bytes);
        self.needs.encode = whole.map_or(NEVER, |whole| weights + whole.bytes());
        let tiled = encoder.footprint(gpu, plan, size, Some(self.needs.tile))?;
        self.needs.encode_tiled = weights + tiled.bytes();
        Ok(())
    }
}

/// The memory plan of a request, made before anything is loaded.
///
/// # Errors
/// `OutOfMemory` where the budget is too small for every way to save.
pub fn plan(
    gpu: &Gpu,
    budget: Option<u64>,
    model: &ImageModel,
    options: &LoadOptions,
    request: &Request,
) -> Result<MemoryPlan> {
    let needs = needs(gpu, model, options, request)?;
    let tiles = options.tile.is_some() || needs.decode >= NEVER || needs.encode >= NEVER;
    let plan = MemoryPlan::new(budget, needs, tiles)?;
    Ok(options.passes.map_or(plan, |passes| plan.with_passes(passes)))
}
