//! `inknib compare`: what the weights and the kernels change.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use super::common::{Family, GpuArgs, ModelArgs, ModelFolder, Ui, table};
use super::generate::writable;
use super::progress::Bar;
use crate::diffusion::image::INKNIB_CHUNK;
use crate::diffusion::sampler::Sampler;
use crate::diffusion::text_to_image::Request;
use crate::gpu::Gpu;
use crate::graph::Kernels;
use crate::probe::compare::{Check, LayerError, Limits, judge};
use crate::probe::compare_image::{ImageOptions, ImageReport, compare_image};
use crate::probe::compare_text::{Passage, TextOptions, TextReport, compare_text};
use crate::{Error, Result};

const EXAMPLES: &str = "\
The baseline has fp16 weights and reference kernels. `quantization` compares weights under the
reference kernels, `kernel` compares kernels on the same weights, `floor` compares fp16 with fp32.

Examples:
  inknib compare -m models/demo-scenes -p \"a red boat on a calm sea at sunset\" -s 7 -o compare.png
  inknib compare -m models/demo-scenes --weights int8 --steps 25 --layers all
  inknib compare -m models/demo-chat -p \"What is 7 plus 5?\" -p \"Tell me a short story about a fox.\"
  inknib compare -m models/demo-chat -f book.txt --weights int8 --max-kl 0.001 --json";

/// What is painted without `-p`.
const PROMPT: &str = "a red boat on a calm sea at sunset, snowy mountains behind";
/// Fewer than `generate` takes: errors show as well, in less than half the time.
const STEPS: usize = 10;
const GUIDANCE: f64 = 4.0;
const SEED: u64 = 7;
/// Layers that are listed without `--layers`.
const WORST: usize = 12;
/// What is asked without `-p`: short facts, where one wrong token is an error, and open texts, where
/// small errors add up.
const QUESTIONS: [&str; 6] = [
    "Hello! Who are you?",
    "What is 7 plus 5?",
    "What is the opposite of hot?",
    "Which day comes after Monday?",
    "Count from 1 to 10.",
    "Tell me a short story about a fox.",
];
const TOKENS: usize = 96;
const WINDOWS: usize = 4;

/// Flags of `inknib compare`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to paint, or a question (may be repeated) [default: a prompt of demo-scenes, six questions]
    #[arg(short, long)]
    pub prompt: Vec<String>,
    /// How many layers to list, worst first: a number or all [default: 12]
    #[arg(long, value_name = "N|all", value_parser = parse_layers)]
    pub layers: Option<usize>,
    /// Leave out fp16 against fp32 weights, which loads the model once more
    #[arg(long)]
    pub no_floor: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub gpu: GpuArgs,
    #[command(flatten)]
    pub picture: PictureArgs,
    #[command(flatten)]
    pub text: TextArgs,
    #[command(flatten)]
    pub tolerance: ToleranceArgs,
}

/// Flags for text-to-image models.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Pictures")]
pub struct PictureArgs {
    /// What not to paint
    #[arg(short, long)]
    pub negative_prompt: Option<String>,
    /// Width in pixels [default: the model's own]
    #[arg(short = 'W', long)]
    pub width: Option<usize>,
    /// Height in pixels [default: the model's own]
    #[arg(short = 'H', long)]
    pub height: Option<usize>,
    /// Steps of the sampler [default: 10]
    #[arg(long, visible_alias = "num-inference-steps")]
    pub steps: Option<usize>,
    /// Guidance; 1 turns it off and halves the work [default: 4]
    #[arg(long, visible_alias = "guidance-scale")]
    pub cfg_scale: Option<f64>,
    /// Seed of the noise [default: 7]
    #[arg(short, long)]
    pub seed: Option<u64>,
    /// As for `generate` [default: the model's own]
    #[arg(long, visible_alias = "sampler", value_name = "NAME")]
    pub sampling_method: Option<String>,
    /// Write a PNG: the baseline, the variant, and 8 times their difference
    #[arg(short, long)]
    pub output: Option<PathBuf>,
}

/// Flags for language models.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Text")]
pub struct TextArgs {
    /// Score the second half of each window of 512 tokens of this text instead of answers
    #[arg(short, long, value_name = "TEXT", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Windows of the text that are scored [default: 4]
    #[arg(long, value_name = "N", requires = "file")]
    pub windows: Option<usize>,
    /// Most tokens of an answer [default: 96]
    #[arg(long, visible_alias = "max-new-tokens", value_name = "N")]
    pub max_tokens: Option<usize>,
}

/// What may differ; the defaults depend on the weights.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Tolerances (beyond one: exit code 7)")]
pub struct ToleranceArgs {
    /// Smallest PSNR of the picture [default: 20 for int4, 30 for int8, 45 for fp16 and fp32]
    #[arg(long, value_name = "DB")]
    pub min_psnr: Option<f64>,
    /// Largest mean relative L2 error of eps, teacher-forced [default: 0.25, 0.05, twice the kernels']
    #[arg(long, value_name = "ERROR")]
    pub max_eps_error: Option<f64>,
    /// Largest mean KL divergence in nats [default: 0.05 for int4, 0.005 for int8, 0.001]
    #[arg(long, value_name = "NATS")]
    pub max_kl: Option<f64>,
    /// Smallest share of tokens whose likeliest is the same, 0 to 1 [default: 0.95, 0.97, 0.99]
    #[arg(long, value_name = "SHARE")]
    pub min_same_top: Option<f64>,
    /// Largest relative L2 error of fast against reference kernels [default: 1e-5; 2e-3 with f16
    /// activations]
    #[arg(long, value_name = "ERROR")]
    pub max_kernel_error: Option<f64>,
}

impl ToleranceArgs {
    fn over(&self, mut limits: Limits) -> Limits {
        let wishes = [
            (self.min_psnr, &mut limits.min_psnr),
            (self.max_eps_error, &mut limits.max_eps),
            (self.max_kl, &mut limits.max_kl),
            (self.min_same_top, &mut limits.min_same_top),
            (self.max_kernel_error, &mut limits.max_kernel_error),
        ];
        for (wish, limit) in wishes {
            *limit = wish.unwrap_or(*limit);
        }
        limits
    }
}

fn parse_layers(text: &str) -> std::result::Result<usize, String> {
    match text {
        "all" => Ok(usize::MAX),
        _ => text.parse().map_err(|_| format!("`{text}` is neither a number nor `all`")),
    }
}

impl PictureArgs {
    /// The first flag that was given, for a model that has no use for it.
    fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--negative-prompt", self.negative_prompt.is_some()),
            ("--width", self.width.is_some()),
            ("--height", self.height.is_some()),
            ("--steps", self.steps.is_some()),
            ("--cfg-scale", self.cfg_scale.is_some()),
            ("--seed", self.seed.is_some()),
            ("--sampling-method", self.sampling_method.is_some()),
            ("--output", self.output.is_some()),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    fn request(&self, prompts: &[String]) -> Result<Request> {
        let steps = self.steps.unwrap_or(STEPS);
        if steps == 0 {
            return Err(Error::Usage("--steps 0 paints nothing; 10 show what differs".into()));
        }
        let guidance = self.cfg_scale.unwrap_or(GUIDANCE);
        if !guidance.is_finite() || guidance < 0.0 {
            return Err(Error::Usage(format!("--cfg-scale {guidance}: give 1 to 15")));
        }
        let prompt = match prompts {
            [] => PROMPT.to_string(),
            [one] => one.clone(),
            _ => return Err(Error::Usage("one picture is compared; give one -p".into())),
        };
        let (sampler, spacing) = match &self.sampling_method {
            Some(name) => {
                let (sampler, spacing) = Sampler::parse_with_spacing(name)?;
                (Some(sampler), spacing)
            }
            None => (None, None),
        };
        Ok(Request {
            prompt,
            negative: self.negative_prompt.clone().unwrap_or_default(),
            width: self.width,
            height: self.height,
            steps,
            guidance,
            seed: self.seed.unwrap_or(SEED),
            sampler,
            spacing,
            ..Request::default()
        })
    }
}

impl TextArgs {
    fn given(&self) -> Option<&'static str> {
        let flags = [("--file", self.file.is_some()), ("--max-tokens", self.max_tokens.is_some())];
        flags.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    fn passage(&self, prompts: &[String]) -> Result<Passage> {
        if let Some(file) = &self.file {
            let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
            return Ok(Passage::Text { text, windows: self.windows.unwrap_or(WINDOWS) });
        }
        let questions = match prompts {
            [] => QUESTIONS.map(str::to_string).to_vec(),
            _ => prompts.to_vec(),
        };
        Ok(Passage::Questions { questions, most: self.max_tokens.unwrap_or(TOKENS).max(1) })
    }
}

/// Compares and judges.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    let folder = args.model.folder(Some("demo-scenes"))?;
    let (stray, kind) = match folder.family {
        Family::TextToImage => (args.text.given(), "a text-to-image model"),
        Family::Llm => (args.picture.given(), "a language model"),
    };
    if let Some(flag) = stray {
        return Err(Error::Usage(format!(
            "{flag} means nothing to {}: {kind}",
            folder.path.display()
        )));
    }
    match folder.family {
        Family::TextToImage => pictures(args, &folder, ui),
        Family::Llm => texts(args, &folder, ui),
    }
}

/// Shows one bar per stage.
struct Stages<'a> {
    ui: &'a Ui,
    label: String,
    bar: Option<Bar>,
}

impl<'a> Stages<'a> {
    fn new(ui: &'a Ui) -> Stages<'a> {
        Stages { ui, label: String::new(), bar: None }
    }
    fn show(&mut self, label: &str, done: usize, total: usize) {
        if self.label != label {
            // The old bar must have gone before the new one is drawn.
            self.bar = None;
            self.bar = Some(self.ui.bar(label, total as u64));
            self.label = label.to_string();
        }
        if let Some(bar) = &self.bar {
            bar.at(done as u64);
        }
    }
}

/// The fields that both families' answers begin with.
fn head(args: &Args, gpu: &Gpu, folder: &ModelFolder, report: &impl Serialize) -> Result<Value> {
    let mut answer = json!({
        "adapter": gpu.adapter().name,
        "driver": gpu.adapter().driver,
        "model": folder.path,
        "baseline": { "weights": "fp16", "kernels": "reference" },
        "variant": {
            "weights": args.model.weights_for(&folder.path),
            "kernels": kernels(args.model.kernels()),
        },
        "activations": args.model.act(gpu)?.wgsl(),
        "peak_gpu_bytes": gpu.ledger().peak(),
    });
    let report = serde_json::to_value(report)
        .map_err(|e| Error::Runtime(format!("the report cannot be written as JSON: {e}")))?;
    if let (Some(answer), Value::Object(report)) = (answer.as_object_mut(), report) {
        answer.extend(report);
    }
    Ok(answer)
}

fn pictures(args: &Args, folder: &ModelFolder, ui: &Ui) -> Result<()> {
    let request = args.picture.request(&args.prompt)?;
    if let Some(output) = &args.picture.output {
        writable(output)?;
    }
    let gpu = args.gpu.open()?;
    let options = ImageOptions {
        folder: folder.path.clone(),
        weights: args.model.weights_for(&folder.path).to_string(),
        kernels: args.model.kernels(),
        act: args.model.act(&gpu)?,
        floor: !args.no_floor,
        layers_at: None,
    };
    let limits = args.tolerance.over(options.limits()?);
    let mut stages = Stages::new(ui);
    let report = compare_image(&gpu, &options, &request, limits, &mut |label, done, total| {
        stages.show(label, done, total);
    })?;
    drop(stages);
    let mut answer = head(args, &gpu, folder, &report)?;
    answer["request"] = json!({
        "prompt": request.prompt,
        "negative_prompt": request.negative,
        "steps": request.steps,
        "cfg_scale": request.guidance,
        "seed": request.seed,
    });
    if let Some(output) = &args.picture.output {
        let chunk = (INKNIB_CHUNK.to_string(), answer.to_string());
        report.side_by_side()?.write_png(output, &[chunk])?;
    }
    if ui.json() {
        ui.answer(&answer)?;
    } else {
        title(args, &gpu, folder, report.bits_per_weight, ui)?;
        layer_table(&report.layers, args.layers, &format!("step {}", report.layers_at_step), ui)?;
        picture_tables(&report, args, ui)?;
        check_table(&report.checks, ui)?;
    }
    judge(&report.checks)
}

fn texts(args: &Args, folder: &ModelFolder, ui: &Ui) -> Result<()> {
    let passage = args.text.passage(&args.prompt)?;
    let gpu = args.gpu.open()?;
    let options = TextOptions {
        folder: folder.path.clone(),
        weights: args.model.weights_for(&folder.path).to_string(),
        kernels: args.model.kernels(),
        act: args.model.act(&gpu)?,
        floor: !args.no_floor,
        passage,
    };
    let limits = args.tolerance.over(options.limits()?);
    let mut stages = Stages::new(ui);
    let report = compare_text(&gpu, &options, limits, &mut |label, done, total| {
        stages.show(label, done, total);
    })?;
    drop(stages);
    if ui.json() {
        ui.answer(&head(args, &gpu, folder, &report)?)?;
    } else {
        title(args, &gpu, folder, report.bits_per_weight, ui)?;
        layer_table(&report.layers, args.layers, "the first tokens", ui)?;
        text_tables(&report, ui)?;
        check_table(&report.checks, ui)?;
    }
    judge(&report.checks)
}

fn kernels(which: Kernels) -> &'static str {
    match which {
        Kernels::Reference => "reference",
        Kernels::Fast | Kernels::Hardware => "fast",
    }
}

fn title(args: &Args, gpu: &Gpu, folder: &ModelFolder, bits: f64, ui: &Ui) -> Result<()> {
    ui.line(&format!(
        "{}: {} weights at {bits:.2} bits under {} kernels against fp16 under reference kernels\n\
         {} ({}), {} activations",
        folder.path.display(),
        args.model.weights_for(&folder.path),
        kernels(args.model.kernels()),
        gpu.adapter().name,
        gpu.adapter().driver,
        args.model.act(gpu)?.wgsl(),
    ))
}

/// The worst layers first, as many as asked for.
fn layer_table(layers: &[LayerError], most: Option<usize>, place: &str, ui: &Ui) -> Result<()> {
    let mut worst: Vec<&LayerError> = layers.iter().collect();
    worst.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
    worst.truncate(most.unwrap_or(WORST));
    let mut table = table(&["layer", "SQNR dB", "cosine"]);
    for layer in &worst {
        let (sqnr, cosine) = (format!("{:.1}", layer.sqnr_db), format!("{:.5}", layer.cosine));
        table.add_row([layer.name.clone(), sqnr, cosine]);
    }
    ui.line(&format!("\nLayers at {place}, worst {} of {}\n{table}", worst.len(), layers.len()))
}

fn picture_tables(report: &ImageReport, args: &Args, ui: &Ui) -> Result<()> {
    let headings =
        ["step", "sigma", "forced", "free", "latents", "guided", "quantization", "kernel", "floor"];
    let mut steps = table(&headings);
    let e = |v: f64| format!("{v:.2e}");
    for s in &report.steps {
        steps.add_row([
            s.step.to_string(),
            format!("{:.3}", s.sigma),
            e(s.eps_rel_l2_teacher_forced),
            e(s.eps_rel_l2_free_running),
            e(s.latent_rel_l2),
            e(s.guided_rel_l2),
            e(s.quantization_rel_l2),
            e(s.kernel_rel_l2),
            s.floor_rel_l2.map_or("-".into(), e),
        ]);
    }
    ui.line(&format!("\nRelative L2 error of eps (and of the latents) by step\n{steps}"))?;
    let s = &report.summary;
    ui.line(&format!(
        "\nmean over the steps: quantization {:.2e}, kernel {:.2e} ({:.0} times less), free-running {:.2e}\n\
         picture: PSNR {:.2} dB, SSIM {:.4}",
        s.quantization.mean,
        s.kernel.mean,
        s.quantization.mean / s.kernel.mean.max(f64::MIN_POSITIVE),
        s.free_running.mean,
        report.image.psnr_db,
        report.image.ssim,
    ))?;
    let Some(output) = &args.picture.output else { return Ok(()) };
    let what = "the baseline, the variant, and 8 times their difference";
    ui.line(&format!("{}: {what}", output.display()))
}

fn text_tables(report: &TextReport, ui: &Ui) -> Result<()> {
    let mut passages = table(&["passage", "tokens", "mean KL", "same top", "parts at"]);
    for (i, p) in report.passages.iter().enumerate() {
        let name = if p.question.is_empty() { format!("window {i}") } else { p.question.clone() };
        let parts = match (p.first_divergence, &p.parted) {
            (Some(at), Some([base, variant])) => format!("{at}: {base:?} → {variant:?}"),
            _ => "never".into(),
        };
        let (kl, same) = (format!("{:.2e}", p.kl_mean), format!("{:.1} %", 100.0 * p.same_top));
        passages.add_row([name, p.tokens.to_string(), kl, same, parts]);
    }
    let e = &report.llm;
    ui.line(&format!(
        "\nTokens that the baseline chose (or the text's), scored by both\n{passages}"
    ))?;
    ui.line(&format!(
        "\n{} tokens: KL mean {:.2e}, p99 {:.2e}, max {:.2e}; same top {:.2} %; perplexity {:.4} → {:.4} \
         (x {:.4})\nlogits, relative L2: quantization {:.2e}, kernel {:.2e} ({:.0} times less)",
        e.tokens,
        e.kl_mean,
        e.kl_p99,
        e.kl_max,
        100.0 * e.same_top,
        e.ppl_base,
        e.ppl,
        e.ppl_ratio,
        e.quantization_rel_l2,
        e.kernel_rel_l2,
        e.quantization_rel_l2 / e.kernel_rel_l2.max(f64::MIN_POSITIVE),
    ))?;
    match &e.floor {
        Some(f) => ui.line(&format!(
            "floor, fp16 against fp32: KL mean {:.2e}, same top {:.2} %, logits {:.2e}",
            f.kl_mean,
            100.0 * f.same_top,
            f.logits_rel_l2
        )),
        None => Ok(()),
    }
}

fn check_table(checks: &[Check], ui: &Ui) -> Result<()> {
    let mut table = table(&["figure", "value", "tolerated", ""]);
    for check in checks {
        table.add_row([
            check.name.to_string(),
            short(check.value),
            format!("{} {}", if check.at_most { "≤" } else { "≥" }, short(check.limit)),
            if check.passed { "ok" } else { "FAILED" }.to_string(),
        ]);
    }
    ui.line(&format!("\n{table}"))
}

/// Small numbers with an exponent, others with four digits behind the point.
fn short(value: f64) -> String {
    let small = value != 0.0 && value.abs() < 1e-2;
    if small { format!("{value:.2e}") } else { format!("{value:.4}") }
}
