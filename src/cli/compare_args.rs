//! Flags of `inknib compare`.

use std::path::PathBuf;

use super::common::{GpuArgs, KernelChoice, ModelArgs};
use crate::diffusion::sampler::Sampler;
use crate::diffusion::text_to_image::Request;
use crate::probe::compare::Limits;
use crate::probe::compare_text::Passage;
use crate::quant::{AUTO, QuantSpec};
use crate::{Error, Result};

const EXAMPLES: &str = "\
The baseline has fp16 weights and reference kernels. `quantization` compares weights under the
reference kernels, `kernel` compares kernels on the same weights, `floor` compares fp16 with fp32.

Examples:
  inknib compare -m models/demo-scenes -p \"a red boat on a calm sea at sunset\" -s 7 -o compare.png
  inknib compare -m models/demo-scenes --weights int8 --steps 25 --layers all
  inknib compare -m models/demo-chat -p \"What is 7 plus 5?\" -p \"Tell me a short story about a fox.\"
  inknib compare -m models/demo-chat -f book.txt --weights int8 --max-kl 0.001 --json
  inknib compare -m models/demo-scenes --seeds 4 --inject --baseline-kernels fast
  inknib compare -m models/demo-scenes --sweep layers.json --sweep-formats int4,int8
  inknib compare -m models/demo-scenes --seeds 4 --inject --html report.html --json > int4.json
  inknib compare int4.json int8.json";

/// What is painted without `-p`.
const PROMPT: &str = "a red boat on a calm sea at sunset, snowy mountains behind";
/// Fewer than `generate` takes: errors show as well, in less than half the time.
const STEPS: usize = 10;
const GUIDANCE: f64 = 4.0;
const SEED: u64 = 7;
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
/// Most pairs of runs.
const PAIRS: usize = 4096;

/// Flags of `inknib compare`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Two reports that --json printed, to hold against each other instead of running anything
    #[arg(value_name = "REPORT", num_args = 0..=2)]
    pub reports: Vec<PathBuf>,
    /// What to paint, or a question (may be repeated) [default: a prompt of demo-scenes, six questions]
    #[arg(short, long)]
    pub prompt: Vec<String>,
    /// How many layers to list, worst first: a number or all [default: 12]
    #[arg(long, value_name = "N|all", value_parser = parse_layers)]
    pub layers: Option<usize>,
    /// Leave out fp16 against fp32 weights, which loads the model once more
    #[arg(long)]
    pub no_floor: bool,
    /// The model that -m was quantized from: its weights are the baseline [default: -m itself]
    #[arg(long, value_name = "PATH")]
    pub original: Option<PathBuf>,
    /// Which shaders compute the baseline; fast ones save time, and kernel error is then not measured
    #[arg(long, value_enum, value_name = "WHICH", default_value = "reference")]
    pub baseline_kernels: KernelChoice,
    /// Write the report as one HTML page with plots and pictures
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    pub sweep: SweepArgs,
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

/// Flags of a sweep.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Sweep")]
pub struct SweepArgs {
    /// Put one layer at a time into a low-bit format and rank them; FILE (JSON) is written as it goes, and
    /// an interrupted sweep goes on from it
    #[arg(long, value_name = "FILE")]
    pub sweep: Option<PathBuf>,
    /// Formats that each layer is measured in, with commas [default: --weights, else int4]
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "sweep")]
    pub sweep_formats: Vec<QuantSpec>,
    /// Steps of a picture at which a layer is judged [default: 3]
    #[arg(long, value_name = "N", requires = "sweep")]
    pub sweep_steps: Option<usize>,
}

impl SweepArgs {
    /// The formats, where `weights` is what `--weights` says.
    pub(super) fn formats(&self, weights: &str) -> Result<Vec<QuantSpec>> {
        if !self.sweep_formats.is_empty() {
            return Ok(self.sweep_formats.clone());
        }
        match weights.parse() {
            _ if weights == AUTO => Ok(vec![QuantSpec::INT4]),
            Ok(format) => Ok(vec![format]),
            Err(_) => Err(Error::Usage(format!(
                "a sweep needs number formats, not the recipe `{weights}`; give --sweep-formats int4,int8"
            ))),
        }
    }
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
    /// Paint every prompt with so many seeds, from --seed on [default: 1]
    #[arg(long, value_name = "N")]
    pub seeds: Option<usize>,
    /// Also let the weights under test predict at one step alone, each in turn
    #[arg(long)]
    pub inject: bool,
    /// As for `generate` [default: the model's own]
    #[arg(long, visible_alias = "sampler", value_name = "NAME")]
    pub sampling_method: Option<String>,
    /// Write a PNG: the baseline, the variant, and 8 times their difference, a row for each pair
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
    pub(super) fn over(&self, mut limits: Limits) -> Limits {
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
    pub(super) fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--negative-prompt", self.negative_prompt.is_some()),
            ("--width", self.width.is_some()),
            ("--height", self.height.is_some()),
            ("--steps", self.steps.is_some()),
            ("--cfg-scale", self.cfg_scale.is_some()),
            ("--seed", self.seed.is_some()),
            ("--seeds", self.seeds.is_some()),
            ("--inject", self.inject),
            ("--sampling-method", self.sampling_method.is_some()),
            ("--output", self.output.is_some()),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    /// One request for each prompt and seed: the seeds of one prompt follow each other.
    pub(super) fn requests(&self, prompts: &[String]) -> Result<Vec<Request>> {
        let steps = self.steps.unwrap_or(STEPS);
        if steps == 0 {
            return Err(Error::Usage("--steps 0 paints nothing; 10 show what differs".into()));
        }
        let guidance = self.cfg_scale.unwrap_or(GUIDANCE);
        if !guidance.is_finite() || guidance < 0.0 {
            return Err(Error::Usage(format!("--cfg-scale {guidance}: give 1 to 15")));
        }
        let prompts = match prompts {
            [] => vec![PROMPT.to_string()],
            _ => prompts.to_vec(),
        };
        let seeds = self.seeds.unwrap_or(1);
        if seeds == 0 || seeds * prompts.len() > PAIRS {
            let most = PAIRS / prompts.len();
            return Err(Error::Usage(format!("--seeds {seeds}: give 1 to {most}")));
        }
        let (sampler, spacing) = match &self.sampling_method {
            Some(name) => {
                let (sampler, spacing) = Sampler::parse_with_spacing(name)?;
                (Some(sampler), spacing)
            }
            None => (None, None),
        };
        let request = |prompt: &String, seed: u64| Request {
            prompt: prompt.clone(),
            negative: self.negative_prompt.clone().unwrap_or_default(),
            width: self.width,
            height: self.height,
            steps,
            guidance,
            seed,
            sampler,
            spacing,
            ..Request::default()
        };
        let first = self.seed.unwrap_or(SEED);
        let seeds = first..first.saturating_add(seeds as u64);
        Ok(prompts.iter().flat_map(|p| seeds.clone().map(|s| request(p, s))).collect())
    }
}

impl TextArgs {
    pub(super) fn given(&self) -> Option<&'static str> {
        let flags = [("--file", self.file.is_some()), ("--max-tokens", self.max_tokens.is_some())];
        flags.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    pub(super) fn passage(&self, prompts: &[String]) -> Result<Passage> {
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
