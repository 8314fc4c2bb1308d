//! `inknib bench`: speed and memory of a model; of a language model in llama-bench's table form.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::bench_files::Files;
use super::bench_ops::{ceilings, in_words};
use super::common::{Family, GpuArgs, ModelArgs, ModelFolder, Ui, table};
use super::json;
use super::language::{KvChoice, LoadedNet, load_net};
use super::recover::on_device;
use crate::gpu::{self, Gpu};
use crate::graph::PlanOptions;
use crate::nets::language::LanguageConfig;
use crate::probe::bench::{Measured, Memory, Test, measure};
use crate::probe::bench_formats::format_costs;
use crate::probe::ceilings::Ceilings;
use crate::text::decoder::Decoder;
use crate::{Error, Result};

const EXAMPLES: &str = "\
pp: tokens of a prompt per second; tg: tokens generated per second; @ d: with so many tokens in the cache.
unet: seconds of one UNet step; vae: seconds to decode; b2: with guidance.
--ops: every op on shapes of real models, against copy bandwidth and FMA rate measured here (a roofline).
--compare marks what differs from a saved report by more than both runs scatter.

Examples:
  inknib bench -m models/demo-chat -p 128 -n 64
  inknib bench -m tinyllama/ -p 512 -n 64 -d 0,4096
  inknib bench -m tinyllama/ --weights fp16 -r 5 --json
  inknib bench -m stable-diffusion-v1-5/ --size 256,512 --weights int4,int8,fp16
  inknib bench -m stable-diffusion-v1-5/ --decode 1024 --vram-budget 2G
  inknib bench --formats
  inknib bench --ops -o ops.json -o ops.html -o roofline.svg
  inknib bench --op matmul,conv2d --quick --compare ops.json
  inknib bench -m models/demo-chat -r 5 -o before.json";

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
    /// Measure instead every op on shapes of real models; no model
    #[arg(long, conflicts_with = "formats")]
    pub ops: bool,
    /// Of --ops these alone, several with commas: matmul, conv2d, attention, norm, ...
    #[arg(long, value_name = "NAME", value_delimiter = ',', conflicts_with = "formats")]
    pub op: Vec<String>,
    /// Of --ops a few small cases with few samples
    #[arg(long)]
    pub quick: bool,
    /// Write the report as .json, .csv, .md or .html, or the roofline of ops as .svg; may be given several times
    #[arg(short, long, value_name = "FILE", conflicts_with = "formats")]
    pub output: Vec<PathBuf>,
    /// Mark what is faster or slower than in this report (-o FILE.json, --json) by more than the noise of both
    #[arg(long, value_name = "FILE", conflicts_with = "formats")]
    pub compare: Option<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub gpu: GpuArgs,
}

impl Args {
    /// Whether ops are measured and no model.
    pub(super) fn ops(&self) -> bool {
        self.ops || !self.op.is_empty()
    }
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

/// Measures what was asked for: formats, ops, or a model.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    if args.formats {
        return formats(args, ui);
    }
    let files = Files::of(args)?;
    if args.ops() {
        return super::bench_ops::run(args, &files, ui);
    }
    if args.quick {
        return Err(Error::Usage(
            "--quick is of --ops; for models give smaller -p, -n or --size".into(),
        ));
    }
    let folder = args.model.folder(Some("demo-chat"))?;
    match folder.family {
        Family::TextToImage => super::bench_image::run(args, &folder, &files, ui),
        Family::Llm => language(args, &folder, &files, ui),
    }
}

/// Every test of a language model.
fn language(args: &Args, folder: &ModelFolder, files: &Files, ui: &Ui) -> Result<()> {
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
    let ceilings = ceilings(args, ui)?;
    on_device(&args.gpu, ui, |gpu| {
        let what = Session { args, path: &folder.path, files, ceilings: &ceilings };
        what.run((&tests, context), gpu, ui)
    })
}

/// A language model, and what all its tests share.
struct Session<'a> {
    args: &'a Args,
    path: &'a Path,
    files: &'a Files,
    ceilings: &'a Ceilings,
}

impl Session<'_> {
    /// Runs the tests, the longest of which needs that context.
    fn run(&self, (tests, context): (&[Test], usize), gpu: &Gpu, ui: &Ui) -> Result<()> {
        let Session { args, path, files, ceilings } = self;
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
            rows.push(measure(gpu, &mut decoder, *test, args.repetitions as usize, ceilings)?);
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
            ceilings: **ceilings,
        };
        let mut report = describe(gpu, &model, &rows);
        files.finish(&mut report, ui)?;
        if ui.json() {
            return ui.answer(&report);
        }
        show(gpu, &model, &rows, ui)?;
        files.show_comparison(&report, ui)
    }
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
    ceilings: Ceilings,
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
        "ceilings": model.ceilings,
        "load_seconds": json::round(model.load_seconds, 3),
        "compile_seconds": json::round(gpu.compile_cost().1, 3),
        "models": models,
    })
}

fn show(gpu: &Gpu, model: &Model, rows: &[Measured], ui: &Ui) -> Result<()> {
    let mut out =
        table(&["model", "size", "params", "backend", "test", "t/s", "GB/s", "of ceiling"]);
    for row in rows {
        out.add_row([
            model.name.clone(),
            gpu::mib(model.memory.weights),
            format!("{:.2} M", model.parameters as f64 / 1e6),
            gpu.adapter().backend.clone(),
            row.test.clone(),
            format!("{:.2} ± {:.2}", row.tokens_per_second, row.stddev),
            row.gb_per_second.map_or(String::new(), |v| format!("{v:.2}")),
            format!("{:.0} %", 100.0 * row.fraction_of_ceiling),
        ]);
    }
    ui.line(&out.to_string())?;
    let m = &model.memory;
    let most = |of: fn(&Measured) -> f64| {
        let generating = rows.iter().filter(|r| r.of.generated_tokens > 0);
        generating.map(of).fold(0.0, f64::max)
    };
    let submissions = most(|r| r.submissions_per_token);
    let (dispatches, host) = (most(|r| r.dispatches_per_token), 100.0 * most(|r| r.host_share));
    ui.line(&format!("{} ({})", gpu.adapter().name, gpu.adapter().driver))?;
    ui.line(&in_words(&model.ceilings))?;
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
        "a token reads {} of weights, {:.2} x what is resident; {submissions:.2} submissions \
         and {dispatches:.0} dispatches a token, the host works {host:.1} % of the time; load {:.1} s, {} kernels compiled in {:.1} s",
        gpu::mib(m.weights_read_per_token),
        m.weights_read_per_token as f64 / m.weights.max(1) as f64,
        model.load_seconds,
        gpu.compile_cost().0,
        gpu.compile_cost().1
    ))
}
