//! `inknib generate`: a picture from a prompt.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::common::{Family, GpuArgs, ModelArgs, Ui};
use super::json;
use crate::diffusion::image::{INKNIB_CHUNK, PARAMETERS_CHUNK};
use crate::diffusion::infotext::Infotext;
use crate::diffusion::sampler::Sampler;
use crate::diffusion::schedule::SigmaSpacing;
use crate::diffusion::text_to_image::{LoadOptions, Picture, Request, TextToImage};
use crate::gpu::Gpu;
use crate::graph::{Launch, PlanOptions};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  inknib generate -m models/demo-scenes -p \"a red boat on a calm sea at sunset\" -s 7 -o boat.png
  inknib generate -m stable-diffusion-v1-5 -p \"a lighthouse\" --steps 20 --sampling-method dpm++2m --scheduler karras
  inknib generate -p \"a green tree\" --weights fp16 --kernels reference --json";

/// Flags of `inknib generate`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to paint
    #[arg(short, long)]
    pub prompt: String,
    /// What not to paint
    #[arg(short, long, default_value = "")]
    pub negative_prompt: String,
    /// Width in pixels [default: the model's own]
    #[arg(short = 'W', long)]
    pub width: Option<usize>,
    /// Height in pixels [default: the model's own]
    #[arg(short = 'H', long)]
    pub height: Option<usize>,
    /// Steps of the sampler
    #[arg(long, visible_alias = "num-inference-steps", default_value_t = 25)]
    pub steps: usize,
    /// Guidance: how strongly the prompt pulls; 1 turns it off and halves the work
    #[arg(long, visible_alias = "guidance-scale", default_value_t = 4.0)]
    pub cfg_scale: f64,
    /// Seed of the noise: the same seed gives the same picture
    #[arg(short, long, default_value_t = 42)]
    pub seed: u64,
    /// ddim, ddpm, euler, euler_a, dpm++2m, dpm++2m_sde or lcm [default: the model's own]
    #[arg(long, visible_alias = "sampler", value_name = "NAME")]
    pub sampling_method: Option<String>,
    /// Spacing of the noise levels: discrete, karras or exponential [default: the model's own]
    #[arg(long, value_name = "NAME")]
    pub scheduler: Option<SigmaSpacing>,
    /// The PNG to write
    #[arg(short, long, default_value = "picture.png")]
    pub output: PathBuf,
    /// Print the time of each kind of kernel in one step, where the GPU has timestamps
    #[arg(long)]
    pub profile: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub gpu: GpuArgs,
}

impl Args {
    /// The request as the library takes it.
    fn request(&self) -> Result<Request> {
        if self.steps == 0 {
            return Err(Error::Usage("--steps 0 paints nothing; 20 to 30 are usual".into()));
        }
        if !self.cfg_scale.is_finite() || self.cfg_scale < 0.0 {
            return Err(Error::Usage(format!("--cfg-scale {}: give 1 to 15", self.cfg_scale)));
        }
        let (sampler, spacing) = match &self.sampling_method {
            Some(name) => {
                let (sampler, spacing) = Sampler::parse_with_spacing(name)?;
                (Some(sampler), spacing)
            }
            None => (None, None),
        };
        Ok(Request {
            prompt: self.prompt.clone(),
            negative: self.negative_prompt.clone(),
            width: self.width,
            height: self.height,
            steps: self.steps,
            guidance: self.cfg_scale,
            seed: self.seed,
            sampler,
            spacing: self.scheduler.or(spacing),
        })
    }
}

/// Paints one picture and says what it cost.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    let request = args.request()?;
    writable(&args.output)?;
    let folder = args.model.folder(Some("demo-scenes"))?.expect(Family::TextToImage)?;
    let gpu = args.gpu.open()?;
    let painted = paint(&gpu, &folder.path, &args.model, &request, args.profile, ui)?;
    if args.profile {
        profile(&painted.profile, ui)?;
    }
    let info = describe(&gpu, &folder.path, args, &painted);
    let text = parameters(&folder.path, &request, &painted);
    let chunks =
        [(PARAMETERS_CHUNK.to_string(), text), (INKNIB_CHUNK.to_string(), info.to_string())];
    painted.picture.image.write_png(&args.output, &chunks)?;
    if ui.json() {
        return ui.answer(&info);
    }
    show(&args.output, ui);
    ui.line(&summary(&args.output, &gpu, &painted))
}

/// A picture with what it took.
pub struct Painted {
    pub picture: Picture,
    pub load_seconds: f64,
    pub weights: String,
    pub bits_per_weight: f64,
    pub resident_bytes: u64,
    pub peak_bytes: u64,
    /// Launches of one step and their milliseconds; empty where the GPU has no timestamps.
    pub profile: Vec<(Launch, f64)>,
}

/// Loads the model and paints, with progress.
pub fn paint(
    gpu: &Gpu,
    folder: &Path,
    model: &ModelArgs,
    request: &Request,
    profiled: bool,
    ui: &Ui,
) -> Result<Painted> {
    let start = Instant::now();
    let options = LoadOptions {
        weights: model.weights_for(folder).to_string(),
        act: model.act(gpu)?,
        plan: PlanOptions { kernels: model.kernels(), ..Default::default() },
    };
    let bar = ui.bar("loading", 0);
    let net = TextToImage::load(gpu, folder, options, &|t| bar.say(&t.path))?;
    drop(bar);
    let load_seconds = start.elapsed().as_secs_f64();
    let bar = ui.bar("painting", request.steps as u64);
    let picture = net.generate(request, &mut |done, _| bar.at(done as u64))?;
    drop(bar);
    let profile = if profiled { net.prepare(request)?.profile()? } else { Vec::new() };
    picture.warnings.iter().for_each(|w| ui.note(&format!("warning: {w}")));
    Ok(Painted {
        picture,
        load_seconds,
        weights: model.weights_for(folder).to_string(),
        bits_per_weight: net.report().bits_per_weight(),
        resident_bytes: net.report().resident_bytes(),
        peak_bytes: gpu.ledger().peak(),
        profile,
    })
}

/// Milliseconds of one step by kind of kernel, slowest first.
fn profile(launches: &[(Launch, f64)], ui: &Ui) -> Result<()> {
    let mut kinds: Vec<(&str, usize, f64, u64)> = Vec::new();
    for (launch, ms) in launches {
        match kinds.iter_mut().find(|k| k.0 == launch.kernel) {
            Some(kind) => *kind = (kind.0, kind.1 + 1, kind.2 + ms, kind.3 + launch.flops),
            None => kinds.push((&launch.kernel, 1, *ms, launch.flops)),
        }
    }
    kinds.sort_by(|a, b| b.2.total_cmp(&a.2));
    let mut table = super::common::table(&["kernel", "launches", "ms", "GFLOP/s"]);
    for (kernel, count, ms, flops) in kinds {
        let rate = flops as f64 / ms.max(1e-6) * 1e-6;
        table.add_row([
            kernel.to_string(),
            count.to_string(),
            format!("{ms:.2}"),
            format!("{rate:.1}"),
        ]);
    }
    ui.line(&table.to_string())
}

/// The picture in the terminal, if a person looks at one.
pub fn show(path: &Path, ui: &Ui) {
    if ui.shows_pictures() {
        let config =
            viuer::Config { absolute_offset: false, width: Some(64), ..Default::default() };
        if let Ok(picture) = image::open(path) {
            // A terminal that cannot show pictures still has the file's name.
            let _ = viuer::print(&picture, &config);
        }
    }
}

/// One line for people.
pub fn summary(output: &Path, gpu: &Gpu, painted: &Painted) -> String {
    let (image, seconds) = (&painted.picture.image, &painted.picture.seconds);
    format!(
        "{}: {} x {}, {} steps of {}\n  {} ({}), {} weights at {:.2} bits, {} resident\n  \
         load {:.1} s, encode {:.1} s, denoise {:.1} s, decode {:.1} s",
        output.display(),
        image.width,
        image.height,
        painted.picture.steps,
        painted.picture.sampler.label(),
        gpu.adapter().name,
        gpu.adapter().driver,
        painted.weights,
        painted.bits_per_weight,
        crate::gpu::mib(painted.resident_bytes),
        painted.load_seconds,
        seconds.encode,
        seconds.denoise,
        seconds.decode,
    )
}

/// AUTOMATIC1111's text.
fn parameters(folder: &Path, request: &Request, painted: &Painted) -> String {
    let image = &painted.picture.image;
    let mut text = Infotext::new(request.prompt.clone(), request.negative.clone())
        .with("Steps", request.steps)
        .with("Sampler", painted.picture.sampler.label());
    if let Some(spacing) = request.spacing {
        text = text.with("Schedule type", spacing.label());
    }
    let model = folder.file_name().map(|n| n.to_string_lossy().to_string()).unwrap_or_default();
    text.with("CFG scale", request.guidance)
        .with("Seed", request.seed)
        .with("Size", format!("{}x{}", image.width, image.height))
        .with("Model", model)
        .with("Version", format!("inknib {}", env!("CARGO_PKG_VERSION")))
        .to_string()
}

/// The JSON answer, which is also the chunk that reproduces the run.
fn describe(gpu: &Gpu, folder: &Path, args: &Args, painted: &Painted) -> Value {
    let (image, seconds) = (&painted.picture.image, &painted.picture.seconds);
    let s = |v: f64| json::round(v, 3);
    json!({
        "image": args.output,
        "model": folder,
        "prompt": args.prompt,
        "negative_prompt": args.negative_prompt,
        "seed": args.seed,
        "steps": args.steps,
        "cfg_scale": args.cfg_scale,
        "sampler": painted.picture.sampler.name(),
        "scheduler": args.scheduler.map(|s| s.label()),
        "width": image.width,
        "height": image.height,
        "adapter": gpu.adapter().name,
        "driver": gpu.adapter().driver,
        "weights": json::weights(&painted.weights, painted.bits_per_weight, painted.resident_bytes),
        "kernels": format!("{:?}", args.model.kernels()).to_lowercase(),
        "peak_gpu_bytes": painted.peak_bytes,
        "compile_seconds": s(gpu.compile_cost().1),
        "kernels_compiled": gpu.compile_cost().0,
        "seconds": {
            "load": s(painted.load_seconds),
            "encode": s(seconds.encode),
            "denoise": s(seconds.denoise),
            "decode": s(seconds.decode),
        },
        "seconds_per_step": s(seconds.denoise / args.steps as f64),
    })
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
