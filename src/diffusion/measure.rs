//! What a run will take, found on nets without weights before anything is loaded.

use super::autoencoder::Autoencoder;
use super::conditioning::{KeysValues, Stored, TextEncoder, encoders};
use super::memory::Needs;
use super::prompt::Prompt;
use super::request::Request;
use super::run::{Inpaint, Known, Parts, Pass, Passes, State};
use super::size::size;
use super::text_to_image::{LoadOptions, groups, guided, part, unet_config, with_adapters};
use crate::gpu::{Buffer, Gpu, mib};
use crate::graph::{Graph, Plan, Residence};
use crate::nets::controlnet::{ControlNet, ControlNetConfig};
use crate::nets::unet::{Unet, UnetConfig, UnetContext, UnetTime};
use crate::nn::{LoadReport, Loader};
use crate::ops::sampler::MEMORY;
use crate::quant::Recipe;
use crate::weights::{ImageModel, Part, WeightStore};
use crate::{Error, Result};

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
    let pixels = Autoencoder::pixels(model, &config)?;
    let mut needs = Needs::default();
    let (store, recipe) = part(model, Part::Unet, &options.weights)?;
    let outline = || with_adapters(Loader::outline(gpu, &store, &recipe), Part::Unet, options);
    let loader = outline()?;
    let unet = Unet::load(&loader, &config)?;
    count(&mut needs, &loader.report());
    let mut tokens = 0;
    for which in encoders(model) {
        let (store, recipe) = part(model, which, &options.weights)?;
        let loader = with_adapters(Loader::outline(gpu, &store, &recipe), which, options)?;
        let encoder = TextEncoder::load(&loader, model, which, &options.embeddings)?;
        count(&mut needs, &loader.report());
        let prompts = [&request.negative, &request.prompt];
        let prompts = prompts.map(|text| Prompt::parse(text, request.syntax));
        let prompts = prompts.into_iter().collect::<Result<Vec<_>>>()?;
        tokens = tokens.max(encoder.tokens(&prompts)?);
    }
    for path in &options.controls {
        let (config, store) = (ControlNetConfig::read(path)?, WeightStore::open(path)?);
        let recipe = Recipe::from_argument(&options.weights, "unet")?;
        let loader = Loader::outline(gpu, &store, &recipe);
        ControlNet::load(&loader, &config)?;
        needs.fixed += loader.report().resident_bytes() + outlined(&loader.report());
    }
    let vae = match pixels {
        Some(vae) => vae,
        None => {
            let (store, recipe) = part(model, Part::Vae, &options.weights)?;
            let loader = Loader::outline(gpu, &store, &recipe);
            let vae = Autoencoder::load(&loader, model)?;
            needs.fixed += loader.report().resident_bytes() + outlined(&loader.report());
            vae
        }
    };
    let (width, height) = size(request, &config, vae.scale())?;
    let shape = [request.batch, height / vae.scale(), width / vae.scale(), vae.latent_channels()];
    let hoisted = Hoisted::new(gpu, options, &config, &outline, (request, tokens))?;
    needs.fixed += hoisted.bytes;
    let latents: usize = shape.iter().product();
    needs.fixed += (latents * 4 * (MEMORY + 4)) as u64;
    let step = |passes: Passes| -> Result<u64> {
        let footprint = hoisted.step(gpu, options, &unet, request, shape, passes)?;
        // Hoisted weights are there before the step's activations are.
        Ok(footprint.max(hoisted.weights))
    };
    needs.step_joined = step(Passes::Joined)?;
    needs.step_apart = match hoisted.items {
        1 => needs.step_joined,
        _ => step(Passes::Apart)?,
    };
    decode(&mut needs, gpu, options, &vae, shape)?;
    Ok(needs)
}

/// Bytes of matrices of which a report has only outlines.
fn outlined(report: &LoadReport) -> u64 {
    let outlines = report.tensors.iter().filter(|t| t.residence == Residence::Outline);
    outlines.map(|t| t.bytes).sum()
}

fn count(needs: &mut Needs, report: &LoadReport) {
    needs.matrices += outlined(report);
    needs.fixed += report.resident_bytes();
    // A window of a streamed weight is no larger than that.
    let largest = report.tensors.iter().filter(|t| t.residence == Residence::Outline);
    let largest = largest.map(|t| t.bytes.min(16 << 20)).max().unwrap_or(0);
    needs.largest = needs.largest.max(largest.next_multiple_of(256) + 512);
}

fn decode(
    needs: &mut Needs,
    gpu: &Gpu,
    options: &LoadOptions,
    vae: &Autoencoder,
    [_, h, w, c]: [usize; 4],
) -> Result<()> {
    if vae.is_pixels() {
        return Ok(());
    }
    let binding = gpu.caps().max_binding_bytes;
    // A tile that takes no more than a step costs no memory at all.
    needs.tile = match options.tile {
        Some(side) => side,
        None => vae.tile_side(gpu, &options.plan, [1, h, w, c], needs.step_joined)?,
    };
    let (side, scale) = (needs.tile, vae.scale());
    let tiled = vae.footprint(gpu, &options.plan, [1, h.min(side), w.min(side), c])?;
    needs.decode_tiled = tiled.bytes();
    if options.tile.is_some() && tiled.largest > binding {
        let fits = vae.tile_side(gpu, &options.plan, [1, h, w, c], needs.step_joined)? * scale;
        return Err(Error::Usage(format!(
            "tiles of {} pixels need a buffer of {}, this adapter binds {}; --vae-tile-size {fits} would do",
            side * scale,
            mib(tiled.largest),
            mib(binding)
        )));
    }
    // What no binding can hold, or no safe loop can do, is decoded in tiles whatever the budget.
    let whole = vae.footprint(gpu, &options.plan, [1, h, w, c]);
    let whole = whole.ok().filter(|whole| whole.largest <= binding);
    needs.decode = whole.map_or(u64::MAX >> 1, |whole| whole.bytes());
    Ok(())
}

/// Shapes of what is computed once.
struct Hoisted {
    tables: Vec<Stored>,
    /// Of one prompt and picture.
    keys_values: Vec<[Vec<usize>; 2]>,
    items: usize,
    /// Bytes of tables, keys and values.
    bytes: u64,
    /// Bytes of the weights that compute them, of the larger of the two nets.
    weights: u64,
    nothing: Buffer,
}

impl Hoisted {
    fn new<'a>(
        gpu: &Gpu,
        options: &LoadOptions,
        config: &UnetConfig,
        outline: &dyn Fn() -> Result<Loader<'a>>,
        (request, tokens): (&Request, usize),
    ) -> Result<Hoisted> {
        let items = if guided(request, config) { 2 } else { 1 };
        let graph = Graph::new(options.act);
        let (time_loader, context_loader) = (outline()?, outline()?);
        let time = UnetTime::load(&time_loader, config)?;
        let context = UnetContext::load(&context_loader, config)?;
        // Some samplers evaluate the network twice a step.
        let steps = 2 * request.steps;
        let rows = if config.added().is_some() { steps * items } else { steps };
        let nothing = gpu.buffer("nothing", 16)?;
        let table = |channels| Stored::new(nothing.clone(), [rows, channels]);
        let tables: Vec<Stored> = time.widths().map(table).collect();
        let prompt = graph.input("c", [1, tokens.max(1), config.cross_attention_dim], options.act);
        let pairs = context.keys_values(prompt);
        graph.finish()?;
        let shape = |v: &crate::graph::Var<'_>| v.shape().dims().to_vec();
        let keys_values: Vec<_> = pairs.iter().map(|(k, v)| [shape(k), shape(v)]).collect();
        let elem = options.act.bytes();
        let numbers: usize =
            keys_values.iter().flatten().map(|s| s.iter().product::<usize>()).sum();
        let pairs = numbers * items * request.batch;
        let rows: usize = tables.iter().map(|t| t.len()).sum();
        let bytes = (pairs + rows) as u64 * elem;
        let weights = outlined(&time_loader.report()).max(outlined(&context_loader.report()));
        Ok(Hoisted { tables, keys_values, items, bytes, weights, nothing })
    }

    /// Bytes of activations of a step.
    fn step(
        &self,
        gpu: &Gpu,
        options: &LoadOptions,
        unet: &Unet,
        request: &Request,
        shape: [usize; 4],
        passes: Passes,
    ) -> Result<u64> {
        let stored = |shape: &[usize], batch: usize| {
            let shape: Vec<usize> = [&[batch], &shape[1..]].concat();
            Stored::new(self.nothing.clone(), shape.as_slice())
        };
        let passes = groups(self.items, passes).into_iter().map(|items| {
            let batch = items.len() * shape[0];
            let pair = |[k, v]: &[Vec<usize>; 2]| [stored(k, batch), stored(v, batch)];
            let keys_values: KeysValues = self.keys_values.iter().map(pair).collect();
            Pass { keys_values, items: vec![0; batch] }
        });
        let passes: Vec<Pass> = passes.collect();
        let parts = Parts {
            gpu,
            act: options.act,
            options: &options.plan,
            unet,
            tables: &self.tables,
            passes: &passes,
            rescale: request.guidance_rescale > 0.0 && self.items == 2,
            shape,
            controls: &[],
        };
        let masked = request.start.as_ref().is_some_and(|start| start.mask.is_some());
        let nine = unet.config().in_channels != shape[3];
        let inpaint = match (masked, nine) {
            (_, true) => Inpaint::Channels(Vec::new()),
            (true, false) => Inpaint::Blend(Known::default()),
            (false, false) => Inpaint::No,
        };
        let graph = Graph::new(options.act);
        let state = State { latent: &self.nothing, memory: &self.nothing };
        parts.record(&graph, &state, &inpaint)?;
        Ok(Plan::footprint(gpu, &graph, &options.plan)?.bytes())
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
) -> Result<super::memory::MemoryPlan> {
    let needs = needs(gpu, model, options, request)?;
    let tiles = options.tile.is_some() || needs.decode > u64::MAX >> 2;
    let mut plan = super::memory::MemoryPlan::new(budget, needs, tiles)?;
    if let Some(passes) = options.passes {
        plan.passes = passes;
    }
    if plan.needs.decode > u64::MAX >> 2 && plan.vae_tile.is_none() {
        return Err(Error::Runtime("a picture too large for one piece without tiles".into()));
    }
    Ok(plan)
}
