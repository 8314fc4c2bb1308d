//! `inknib bench`: speed and memory of a model; of a language model in llama-bench's table form.

use std::path::Path;

use serde_json::{Value, json};

use super::common::{Family, GpuArgs, ModelArgs, Ui, table};
use super::json;
use super::language::{KvChoice, LoadedNet, load_net};
use super::recover::on_device;
use crate::gpu::{self, Gpu};
use crate::graph::PlanOptions;
use crate::nets::language::LanguageConfig;
use crate::probe::bench::{Measured, Memory, Test, measure};
use crate::probe::bench_formats::format_costs;
use crate::text::decoder::Decoder;
use crate::{Error, Result};

const EXAMPLES: &str = "\
pp: tokens of a prompt per second; tg: tokens generated per second; @ d: with so many tokens in the cache.
unet: seconds of one UNet step; vae: seconds to decode; b2: with guidance.

Examples:
  inknib bench -m models/demo-chat -p 128 -n 64
  inknib bench -m tinyllama/ -p 512 -n 64 -d 0,4096
  inknib bench -m tinyllama/ --weights fp16 -r 5 --json
  inknib bench -m stable-diffusion-v1-5/ --size 256,512 --weights int4,int8,fp16
  inknib bench -m stable-diffusion-v1-5/ --decode 1024 --vram-budget 2G
  inknib bench --formats";

/// Flags of `inknib bench`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Tokens of the prompt, several with commas; 0 leaves this test out [default: 512, or what the model takes]
    #[arg(short = 'p', long, value_name = "N", value_delimiter = ',')]
    pub n_prompt: Option<Vec<usize>>,
    /// Tokens to generate, several with commas; 0 leaves this test out [default: 64, or what the model takes]
    #[arg(short = 'n', long, value_name = "N", value_delimiter = ',')]
    pub n_gen: Option<Vec<usize>>,
    /// Tokens in the cache before each test, several with commas
    #[arg(short = 'd', long, value_name = "N", value_delimiter = ',', default_value = "0")]
    pub n_depth: Vec<usize>,
    /// How keys and values are cached
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    pub kv: KvChoice,
    /// Sides of square pictures, several with commas [default: what the model was trained at]
    #[arg(long, value_name = "PIXELS", value_delimiter = ',')]
    pub size: Option<Vec<usize>>,
    /// Sides of square pictures of which the VAE's decoding alone is measured, several with commas; in tiles
    /// where --vram-budget asks for them
    #[arg(long, value_name = "PIXELS", value_delimiter = ',')]
    pub decode: Option<Vec<usize>>,
    /// Pictures in one UNet step, several with commas; guidance takes two
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2")]
    pub batch: Vec<usize>,
    /// Leave the VAE out
    #[arg(long)]
    pub no_vae: bool,
    /// Runs that count, after one that does not
    #[arg(short, long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    pub repetitions: u32,
    /// Measure instead what decoding cubic and asymmetric 4-bit weights costs beside plain symmetric ones; no model
    #[arg(long)]
    pub formats: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub gpu: GpuArgs,
}

impl Args {
    /// The tests of a model that takes `longest` tokens.
    fn tests(&self, longest: usize) -> Vec<Test> {
        let mut tests = Vec::new();
        let deepest = self.n_depth.iter().copied().max().unwrap_or(0);
        // Two tokens more than the test's own have to fit.
        let room = longest.saturating_sub(deepest + 2).max(1);
        let sizes = |asked: &Option<Vec<usize>>, usual: usize| {
            asked.clone().unwrap_or_else(|| vec![usual.min(room)])
        };
        let (prompts, counts) = (sizes(&self.n_prompt, 512), sizes(&self.n_gen, 64));
        for &depth in &self.n_depth {
            let (prompts, counts) = (prompts.iter(), counts.iter());
            tests.extend(prompts.filter(|n| **n > 0).map(|&prompt_tokens| Test {
                prompt_tokens,
                generated_tokens: 0,
                depth,
            }));
            tests.extend(counts.filter(|n| **n > 0).map(|&generated_tokens| Test {
                prompt_tokens: 0,
                generated_tokens,
                depth,
            }));
        }
        tests
    }
}

/// Measures every test; a row appears as soon as it is known.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    if args.formats {
        return formats(args, ui);
    }
    let folder = args.model.folder(Some("demo-chat"))?;
    if folder.family == Family::TextToImage {
        return super::bench_image::run(args, &folder, ui);
    }
    let longest = LanguageConfig::read(&folder.path)?.max_position_embeddings();
    let tests = args.tests(longest);
    let context = tests.iter().map(Test::context).max().unwrap_or(0);
    if context == 0 {
        return Err(Error::Usage("nothing to measure: give -p or -n above 0".into()));
    }
    if context > longest {
        return Err(Error::Usage(format!(
            "the tests need a context of {context} tokens, this model was trained for {longest}; give \
             smaller -p, -n or -d"
        )));
    }
    on_device(&args.gpu, ui, |gpu| language(args, &folder.path, (&tests, context), gpu, ui))
}

/// Runs the tests of a language model, the longest of which needs that context.
fn language(
    args: &Args,
    path: &Path,
    (tests, context): (&[Test], usize),
    gpu: &Gpu,
    ui: &Ui,
) -> Result<()> {
    let weights = args.model.weights_for(path);
    let LoadedNet { net, report, seconds, .. } = load_net(gpu, path, weights, ui)?;
    let family = net.config().family();
    let options = PlanOptions { kernels: args.model.kernels(gpu), ..Default::default() };
    let act = args.model.act(gpu)?;
    let kv = (context, args.kv.resolve(act)?);
    let mut decoder = Decoder::with_kv(gpu, net, kv, act, options)?;
    let bar = ui.bar("bench", tests.len() as u64);
    let mut rows = Vec::new();
    for (done, test) in tests.iter().enumerate() {
        bar.at(done as u64);
        bar.say(test.name());
        rows.push(measure(gpu, &mut decoder, *test, args.repetitions as usize)?);
    }
    drop(bar);
    let memory = Memory {
        weights: report.resident_bytes(),
        cache: decoder.cache_bytes(),
        activations: decoder.activation_bytes(),
        peak: gpu.ledger().peak(),
        weights_read_per_token: decoder.weight_bytes_per_token(),
    };
    let name = path.file_name().map_or(family.into(), |n| n.to_string_lossy().into_owned());
    let model = Model {
        name: format!("{name} {weights}"),
        family,
        weights: json::weights(weights, report.bits_per_weight(), report.resident_bytes()),
        bits: report.bits_per_weight(),
        parameters: report.elements(),
        load_seconds: seconds,
        memory,
    };
    if ui.json() {
        return ui.answer(&describe(gpu, &model, &rows));
    }
    show(gpu, &model, &rows, ui)
}

/// What the forms of 4-bit weights cost.
fn formats(args: &Args, ui: &Ui) -> Result<()> {
    on_device(&args.gpu, ui, |gpu| format_table(args, gpu, ui))
}

fn format_table(args: &Args, gpu: &Gpu, ui: &Ui) -> Result<()> {
    /// Times that all forms take turns, for each of `--repetitions`.
    const TURNS: usize = 7;
    let options = PlanOptions { kernels: args.model.kernels(gpu), ..Default::default() };
    let spinner = ui.bar("formats", 0);
    let samples = TURNS * args.repetitions as usize;
    let costs = format_costs(gpu, args.model.act(gpu)?, &options, samples)?;
    drop(spinner);
    if ui.json() {
        return ui.answer(&json!({
            "adapter": gpu.adapter().name,
            "driver": gpu.adapter().driver,
            "formats": costs,
        }));
    }
    let mut out = table(&["op", "x, w", "format", "ms", "over plain"]);
    for cost in &costs {
        let [m, n, k] = cost.shape;
        out.add_row([
            cost.op.to_string(),
            format!("{m}x{k}, {n}x{k}"),
            cost.format.clone(),
            format!("{:.3}", cost.ms),
            format!("{:+.1} %", 100.0 * cost.over_plain),
        ]);
    }
    ui.line(&out.to_string())?;
    ui.line(&format!("{} ({})", gpu.adapter().name, gpu.adapter().driver))
}

struct Model {
    name: String,
    family: &'static str,
    weights: Value,
    bits: f64,
    parameters: u64,
    load_seconds: f64,
    memory: Memory,
}

fn describe(gpu: &Gpu, model: &Model, rows: &[Measured]) -> Value {
    let entry = |row: &Measured| {
        let mut entry = json!({
            "model": model.name,
            "family": model.family,
            "weights": model.weights,
            "parameters": model.parameters,
            "memory": model.memory,
        });
        if let (Value::Object(entry), Value::Object(row)) = (&mut entry, json!(row)) {
            entry.extend(row);
        }
        entry
    };
    let models: Vec<Value> = rows.iter().map(entry).collect();
    json!({
        "adapter": gpu.adapter().name,
        "driver": gpu.adapter().driver,
        "backend": gpu.adapter().backend,
        "load_seconds": json::round(model.load_seconds, 3),
        "compile_seconds": json::round(gpu.compile_cost().1, 3),
        "models": models,
    })
}

fn show(gpu: &Gpu, model: &Model, rows: &[Measured], ui: &Ui) -> Result<()> {
    let mut out = table(&["model", "size", "params", "backend", "test", "t/s", "GB/s"]);
    for row in rows {
        out.add_row([
            model.name.clone(),
            gpu::mib(model.memory.weights),
            format!("{:.2} M", model.parameters as f64 / 1e6),
            gpu.adapter().backend.clone(),
            row.test.clone(),
            format!("{:.2} ± {:.2}", row.tokens_per_second, row.stddev),
            row.gb_per_second.map_or(String::new(), |v| format!("{v:.2}")),
        ]);
    }
    ui.line(&out.to_string())?;
    let m = &model.memory;
    let per_token = rows.iter().filter(|r| r.of.generated_tokens > 0);
    let submissions = per_token.map(|r| r.submissions_per_token).fold(0.0, f64::max);
    ui.line(&format!("{} ({})", gpu.adapter().name, gpu.adapter().driver))?;
    ui.line(&format!(
        "resident {}: weights {} ({:.2} bits each), cache {}, activations {}; peak {}",
        gpu::mib(m.weights + m.cache + m.activations),
        gpu::mib(m.weights),
        model.bits,
        gpu::mib(m.cache),
        gpu::mib(m.activations),
        gpu::mib(m.peak)
    ))?;
    ui.line(&format!(
        "a token reads {} of weights, {:.2} x what is resident; {submissions:.2} submissions a token; \
         load {:.1} s, {} kernels compiled in {:.1} s",
        gpu::mib(m.weights_read_per_token),
        m.weights_read_per_token as f64 / m.weights.max(1) as f64,
        model.load_seconds,
        gpu.compile_cost().0,
        gpu.compile_cost().1
    ))
}
