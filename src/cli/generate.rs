//! `inknib generate`: pictures from a prompt, from pictures, inside a mask.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::common::{Family, GpuArgs, ModelArgs, Ui};
use super::generate_inputs::{Inputs, numbered};
use super::generate_report::{Made, answer, chunks, profile};
pub use super::generate_report::{show, summary};
use super::recover::on_device;
use crate::diffusion::autoencoder::Autoencoder;
use crate::diffusion::image::Image;
use crate::diffusion::measure;
use crate::diffusion::memory::MemoryPlan;
use crate::diffusion::preview::{PreviewKind, Previewer, Projection};
use crate::diffusion::prompt::PromptSyntax;
use crate::diffusion::record::Record;
use crate::diffusion::rng::RngKind;
use crate::diffusion::schedule::{PredictionType, SigmaSpacing};
use crate::diffusion::text_to_image::{LoadOptions, Picture, Previews, Request, TextToImage};
use crate::gpu::Gpu;
use crate::graph::{Launch, PlanOptions};
use crate::nn::Loader;
use crate::quant::Recipe;
use crate::weights::{ImageModel, Part, WeightStore};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  inknib generate -m models/demo-scenes -p \"a red boat on a calm sea at sunset\" -s 7 -o boat.png
  inknib generate -m sd15.safetensors -p \"(a lighthouse:1.2), storm\" --steps 20 --sampling-method dpm++2m --scheduler karras
  inknib generate -m sd15 -p \"the same at night\" -i boat.png --strength 0.6
  inknib generate -m sd15 -p \"a cat\" -i room.png --mask chair.png -b 4
  inknib generate -m sdxl -p \"a fox\" --lora ink.safetensors:0.8 --preview proj --vram-budget 6G
  inknib generate --from boat.png                  the same picture once more, bit for bit";

/// Flags of `inknib generate`. What is not given comes from `--from`, else from the defaults.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to paint; (word:1.3) weighs more, BREAK begins a new window of tokens
    #[arg(short, long)]
    pub prompt: Option<String>,
    /// What not to paint
    #[arg(short, long)]
    pub negative_prompt: Option<String>,
    /// Width in pixels [default: the model's own]
    #[arg(short = 'W', long)]
    pub width: Option<usize>,
    /// Height in pixels [default: the model's own]
    #[arg(short = 'H', long)]
    pub height: Option<usize>,
    /// Steps of the sampler [default: 25]
    #[arg(long, visible_alias = "num-inference-steps")]
    pub steps: Option<usize>,
    /// Guidance: how strongly the prompt pulls; 1 turns it off and halves the work [default: 4]
    #[arg(long, visible_alias = "guidance-scale")]
    pub cfg_scale: Option<f64>,
    /// Bring a guided answer back to the spread of the one with the prompt, 0 to 1 [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub guidance_rescale: Option<f64>,
    /// Seed of the noise: the same seed gives the same picture [default: 42]
    #[arg(short, long)]
    pub seed: Option<u64>,
    /// Whose random numbers a seed means: torch's on a cpu, or on cuda [default: cpu]
    #[arg(long, value_name = "KIND")]
    pub rng: Option<RngKind>,
    /// ddim, ddpm, euler, euler_a, heun, dpm2, dpm2_a, dpm++2s, dpm++2m, dpm++2m_sde, dpm++_sde, plms, lms,
    /// unipc, deis, lcm or tcd [default: the model's own]
    #[arg(long, visible_alias = "sampler", value_name = "NAME")]
    pub sampling_method: Option<String>,
    /// Spacing of the noise levels: discrete, karras, exponential, trailing, leading, … [default: the
    /// model's own]
    #[arg(long, value_name = "NAME")]
    pub scheduler: Option<SigmaSpacing>,
    /// What the UNet predicts, where its files do not say: epsilon, v_prediction or sample
    #[arg(long, value_name = "KIND", value_parser = parse_prediction)]
    pub prediction: Option<PredictionType>,
    /// Layers of the text encoder counted from the end: 2 leaves the last one out [default: 1]
    #[arg(long, value_name = "N")]
    pub clip_skip: Option<usize>,
    /// How prompts are read: a1111 (weights, BREAK) or plain [default: a1111]
    #[arg(long, value_name = "KIND")]
    pub prompt_syntax: Option<PromptSyntax>,
    /// The PNG to write; further pictures of a run get a number behind the name
    #[arg(short, long, default_value = "picture.png")]
    pub output: PathBuf,
    /// Pictures one after the other, each with the next seed [default: 1]
    #[arg(short, long, default_value_t = 1)]
    pub batch_count: usize,
    /// Pictures at once, from one stream of noise [default: 1]
    #[arg(long, default_value_t = 1)]
    pub batch_size: usize,
    /// Repeat the run that made this picture; other flags change what they name
    #[arg(long, value_name = "PNG")]
    pub from: Option<PathBuf>,
    #[command(flatten)]
    pub pictures: PictureArgs,
    #[command(flatten)]
    pub parts: PartArgs,
    #[command(flatten)]
    pub watch: WatchArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub gpu: GpuArgs,
}

/// Pictures that go in.
#[derive(clap::Args, Debug, Default)]
#[command(next_help_heading = "Pictures to start from")]
pub struct PictureArgs {
    /// A picture to start from (PNG or JPEG), resized to what is painted
    #[arg(short, long, value_name = "FILE")]
    pub init_img: Option<PathBuf>,
    /// Share of the steps that is done again on it, 0 to 1 [default: 0.75, with a mask 1]
    #[arg(long)]
    pub strength: Option<f64>,
    /// Paint only where this picture is white
    #[arg(long, value_name = "FILE", requires = "init_img")]
    pub mask: Option<PathBuf>,
    /// A ControlNet's folder; may be given several times
    #[arg(long, value_name = "PATH")]
    pub control_net: Vec<PathBuf>,
    /// The picture for the ControlNet of the same place
    #[arg(long, value_name = "FILE")]
    pub control_image: Vec<PathBuf>,
    /// How much of that ControlNet is wanted [default: 1]
    #[arg(long, value_name = "FACTOR")]
    pub control_strength: Vec<f64>,
}

/// Files beside the model.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Files beside the model")]
pub struct PartArgs {
    /// A LoRA and its weight; may be given several times. It stays a branch beside the weights
    #[arg(long, value_name = "FILE[:WEIGHT]")]
    pub lora: Vec<String>,
    /// Where <lora:name:weight> in a prompt is looked for
    #[arg(long, value_name = "DIR")]
    pub lora_model_dir: Option<PathBuf>,
    /// A textual inversion (.safetensors), named in prompts by its file's name, or NAME=FILE
    #[arg(long, value_name = "[NAME=]FILE")]
    pub embedding: Vec<String>,
    /// Take the VAE from this file or folder
    #[arg(long, value_name = "PATH")]
    pub vae: Option<PathBuf>,
    /// Decode with this AutoencoderTiny, and make previews with it
    #[arg(long, visible_alias = "tae", value_name = "PATH")]
    pub taesd: Option<PathBuf>,
    /// Take the (first) text encoder from this file or folder
    #[arg(long, value_name = "PATH")]
    pub clip_l: Option<PathBuf>,
    /// Take SDXL's second text encoder from this file or folder
    #[arg(long, value_name = "PATH")]
    pub clip_g: Option<PathBuf>,
    /// Decode the VAE in tiles even where memory would suffice
    #[arg(long)]
    pub vae_tiling: bool,
    /// Side of those tiles in pixels [default: 512]
    #[arg(long, value_name = "PIXELS")]
    pub vae_tile_size: Option<usize>,
}

/// Looking at the work.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Looking at the work")]
pub struct WatchArgs {
    /// Write a preview every few steps: proj (a linear map, costs nothing) or tae (needs --taesd)
    #[arg(long, value_name = "KIND", value_parser = parse_preview)]
    pub preview: Option<PreviewKind>,
    /// Steps between previews
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub preview_interval: usize,
    /// Where to write them
    #[arg(long, value_name = "PNG", default_value = "preview.png")]
    pub preview_path: PathBuf,
    /// Print the time of each kind of kernel in one step, where the GPU has timestamps
    #[arg(long)]
    pub profile: bool,
}

fn parse_prediction(text: &str) -> Result<PredictionType> {
    match text {
        "epsilon" | "eps" => Ok(PredictionType::Epsilon),
        "v_prediction" | "v" => Ok(PredictionType::VPrediction),
        "sample" => Ok(PredictionType::Sample),
        _ => Err(Error::Usage(format!("{text:?}; valid: epsilon, v_prediction, sample"))),
    }
}

fn parse_preview(text: &str) -> Result<PreviewKind> {
    match text {
        "proj" => Ok(PreviewKind::Proj),
        "tae" | "taesd" => Ok(PreviewKind::Tae),
        _ => Err(Error::Usage(format!("{text:?}; valid: proj, tae"))),
    }
}

/// Paints and says what it cost.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    let inputs = Inputs::new(args)?;
    writable(&args.output)?;
    // A lost device takes no finished pictures along.
    let mut finished = Vec::new();
    on_device(&args.gpu, ui, |gpu| paint(args, &inputs, gpu, &mut finished, ui))
}

/// A picture's file and what it was made of.
type Saved = (PathBuf, Record);

/// Paints what is not finished yet, run by run of `--batch-count`.
fn paint(
    args: &Args,
    inputs: &Inputs,
    gpu: &Gpu,
    finished: &mut Vec<Vec<Saved>>,
    ui: &Ui,
) -> Result<()> {
    let mut painter = Painter::new(gpu, inputs, ui)?;
    for number in finished.len()..args.batch_count.max(1) {
        let mut saved = Vec::new();
        let mut request = inputs.request.clone();
        request.seed = request.seed.wrapping_add(number as u64);
        let painted = painter.paint(&request, (number, args.batch_count), ui);
        let painted = match painted {
            Err(Error::Interrupted) if number > 0 => {
                ui.note(&format!(
                    "interrupted; {number} of {} pictures are kept",
                    args.batch_count
                ));
                return Err(Error::Interrupted);
            }
            other => other?,
        };
        for (place, image) in painted.picture.images.iter().enumerate() {
            if inputs.only.is_some_and(|only| only != place) {
                continue;
            }
            let index = if inputs.only.is_some() { number } else { number * request.batch + place };
            let made = Made { inputs, request: &request, painted: &painted, place };
            let path = numbered(&args.output, index);
            let record = made.record(gpu)?;
            image.write_png(&path, &chunks(&made, &record))?;
            show(&path, ui);
            saved.push((path, record));
        }
        if !ui.json() {
            ui.line(&summary(&numbered(&args.output, number * request.batch), gpu, &painted))?;
        }
        if args.watch.profile {
            profile(&painter.profile(&request)?, ui)?;
        }
        finished.push(saved);
        if number + 1 == args.batch_count.max(1) && ui.json() {
            return ui.answer(&answer(gpu, &finished.concat(), &painted, &request)?);
        }
    }
    Ok(())
}

/// Pictures with what they took.
pub struct Painted {
    pub picture: Picture,
    pub load_seconds: f64,
    pub weights: String,
    pub bits_per_weight: f64,
    pub resident_bytes: u64,
    pub streamed_bytes: u64,
    pub peak_bytes: u64,
    pub memory: MemoryPlan,
    pub model: String,
}

/// A loaded model and what watches it.
pub struct Painter<'a> {
    gpu: &'a Gpu,
    net: TextToImage,
    inputs: &'a Inputs,
    memory: MemoryPlan,
    load_seconds: f64,
    projection: Option<Projection>,
    tiny: Option<Autoencoder>,
}

impl<'a> Painter<'a> {
    /// Makes the memory plan, prints it, loads the model.
    pub fn new(gpu: &'a Gpu, inputs: &'a Inputs, ui: &Ui) -> Result<Painter<'a>> {
        let start = Instant::now();
        let act = inputs.activations.resolve(gpu)?;
        let plan = PlanOptions { kernels: inputs.kernels.on(gpu), ..Default::default() };
        let mut options = LoadOptions { act, plan, ..inputs.options.clone() };
        let budget = gpu.ledger().budget();
        let memory = measure::plan(gpu, budget, &inputs.model, &options, &inputs.request)?;
        if budget.is_some() || memory.vae_tile.is_some() {
            ui.note(&memory.to_string());
        }
        options.memory = Some(memory);
        let previews = options.previews.clone();
        let plan = options.plan.clone();
        let tiny = match &previews {
            Some(Previews::Tiny(path)) => Some(load_tiny(gpu, path)?),
            _ => None,
        };
        let bar = ui.bar("loading", 0);
        let net = TextToImage::open(gpu, inputs.model.clone(), options, &|t| bar.say(&t.path))?;
        drop(bar);
        let projection = match &previews {
            Some(Previews::Projection) => Some(Projection::of(net.vae(), gpu, &plan)?),
            _ => None,
        };
        let load_seconds = start.elapsed().as_secs_f64();
        Ok(Painter { gpu, net, inputs, memory, load_seconds, projection, tiny })
    }

    /// Paints one request, with progress and previews.
    pub fn paint(
        &mut self,
        request: &Request,
        (number, count): (usize, usize),
        ui: &Ui,
    ) -> Result<Painted> {
        let label = match count {
            0 | 1 => "painting".to_string(),
            _ => format!("painting {} of {count}", number + 1),
        };
        let bar = ui.bar(&label, request.steps as u64);
        let watch = &self.inputs.watch;
        let tile = self.memory.vae_tile;
        let previewer = match (watch.preview, &self.projection, &self.tiny) {
            (None, ..) => None,
            (Some(_), Some(projection), _) => Some(Previewer::proj(projection)),
            (Some(_), None, Some(tiny)) => Some(Previewer::tae(tiny, tile)),
            (Some(_), None, None) => Some(Previewer::tae(self.net.vae(), tile)),
        };
        let (start, mut last) = (Instant::now(), 0);
        let mut picture = self.net.generate(request, &mut |progress| {
            let rate = progress.done as f64 / start.elapsed().as_secs_f64().max(1e-9);
            bar.total(progress.steps as u64);
            bar.at(progress.done as u64);
            bar.say(format!("{rate:.2} it/s"));
            let due = progress.done >= last + watch.preview_interval.max(1);
            if let Some(previewer) = previewer.as_ref().filter(|_| due) {
                last = progress.done;
                let plan = PlanOptions::default();
                let image = previewer.picture(self.gpu, &plan, progress.run, progress.row)?;
                image.write_png(&watch.preview_path, &[])?;
            }
            Ok(())
        })?;
        drop(bar);
        if let Some(start) = &request.start
            && let Some(mask) = &start.mask
        {
            // What was not masked keeps its bytes; the VAE would change them a little.
            let put_back = |image: &Image| mask.overlay(&start.image, image);
            picture.images = picture.images.iter().map(put_back).collect::<Result<_>>()?;
        }
        picture.warnings.iter().for_each(|w| ui.note(&format!("warning: {w}")));
        let report = self.net.report();
        Ok(Painted {
            picture,
            load_seconds: self.load_seconds,
            weights: self.inputs.options.weights.clone(),
            bits_per_weight: report.bits_per_weight(),
            resident_bytes: report.resident_bytes(),
            streamed_bytes: report.streamed_bytes(),
            peak_bytes: self.gpu.ledger().peak(),
            memory: self.memory,
            model: self.net.model().describe(),
        })
    }

    /// Launches of one step and their milliseconds; empty where the GPU has no timestamps.
    pub fn profile(&self, request: &Request) -> Result<Vec<(Launch, f64)>> {
        self.net.prepare(request)?.profile()
    }
}

/// An AutoencoderTiny from a folder or file.
fn load_tiny(gpu: &Gpu, path: &Path) -> Result<Autoencoder> {
    let (store, recipe) = (WeightStore::open(path)?, Recipe::from_argument("fp16", "vae")?);
    Autoencoder::load_tiny(&Loader::new(gpu, &store, &recipe), path)
}

impl Args {
    /// Refuses flags that say something to a text encoder or a VAE, for a model that has neither.
    pub(super) fn refuse_prompted(&self, path: &Path) -> Result<()> {
        let (parts, pictures) = (&self.parts, &self.pictures);
        let flags = [
            ("--prompt", self.prompt.as_ref().is_some_and(|text| !text.is_empty())),
            (
                "--negative-prompt",
                self.negative_prompt.as_ref().is_some_and(|text| !text.is_empty()),
            ),
            ("--cfg-scale", self.cfg_scale.is_some()),
            ("--guidance-rescale", self.guidance_rescale.is_some()),
            ("--clip-skip", self.clip_skip.is_some()),
            ("--prompt-syntax", self.prompt_syntax.is_some()),
            ("--lora", !parts.lora.is_empty()),
            ("--lora-model-dir", parts.lora_model_dir.is_some()),
            ("--embedding", !parts.embedding.is_empty()),
            ("--vae", parts.vae.is_some()),
            ("--taesd", parts.taesd.is_some()),
            ("--clip-l", parts.clip_l.is_some()),
            ("--clip-g", parts.clip_g.is_some()),
            ("--vae-tiling", parts.vae_tiling || parts.vae_tile_size.is_some()),
            ("--control-net", !pictures.control_net.is_empty()),
        ];
        match flags.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(Error::Usage(format!(
                "{flag} means nothing to {}: an unconditional UNet paints without a prompt and without a VAE",
                path.display()
            ))),
            None => Ok(()),
        }
    }
}

/// The model with the parts that flags replace.
pub(super) fn assemble(mut model: ImageModel, parts: &PartArgs) -> Result<ImageModel> {
    let replaced = [
        (Part::Vae, &parts.vae),
        (Part::TextEncoder, &parts.clip_l),
        (Part::TextEncoder2, &parts.clip_g),
    ];
    for (part, path) in replaced {
        if let Some(path) = path {
            model = model.with_part(part, path)?;
        }
    }
    Ok(model)
}

/// The folder or file of the model that is painted with.
pub(super) fn model_path(model: &ModelArgs) -> Result<PathBuf> {
    Ok(model.folder(Some("demo-scenes"))?.expect(Family::TextToImage)?.path)
}

/// Refuses an output that cannot be written before any work is done.
pub fn writable(output: &Path) -> Result<()> {
    let folder = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if output.is_dir() || !folder.is_dir() {
        return Err(Error::Usage(format!(
            "-o {}: {}; give a file in an existing folder",
            output.display(),
            if output.is_dir() { "is a folder" } else { "its folder does not exist" }
        )));
    }
    Ok(())
}
