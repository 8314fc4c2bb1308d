//! `inknib perplexity`: how well a language model predicts a text, and what its weights cost.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::common::{Family, GpuArgs, ModelArgs, ModelFolder, Ui, table};
use super::json;
use super::language::{KvChoice, LoadedNet, load_net};
use super::recover::on_device;
use crate::gpu::{self, Gpu};
use crate::probe::perplexity::{Against, Perplexity, Windows, read_text, score, windows};
use crate::probe::scorer::Scorer;
use crate::text::tokenizer::Tokenizer;
use crate::{Error, Result};

const EXAMPLES: &str = "\
By default the text is cut into documents at <|endoftext|>, and every token of each counts; --chunk N cuts
it into windows of N tokens and counts the second half of each, as llama.cpp does.

Examples:
  inknib perplexity -m models/demo-chat -f book.txt
  inknib perplexity -m models/demo-chat -f book.txt --weights int4-g32-cubic --kl-divergence
  inknib perplexity -m tinyllama/ -f wiki.test.raw --chunk 512 --chunks 20
  inknib perplexity -m tinyllama-int4/ --base tinyllama/ -f wiki.test.raw --chunk 512 --json";

/// Flags of `inknib perplexity`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The text, UTF-8
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Tokens of a document that count, at most [default: what the model was trained for, at most 4096]
    #[arg(
        short = 'c',
        long,
        visible_alias = "ctx-size",
        value_name = "N",
        conflicts_with = "chunk"
    )]
    pub context: Option<usize>,
    /// Cut into windows of N tokens and count the second half of each (llama.cpp's definition)
    #[arg(long, value_name = "N")]
    pub chunk: Option<usize>,
    /// Stop after so many documents or windows
    #[arg(long, visible_alias = "documents", value_name = "N")]
    pub chunks: Option<usize>,
    /// How keys and values are cached
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    pub kv: KvChoice,
    /// Compare every token's distribution with that of the same model with fp16 weights and a float cache
    #[arg(long)]
    pub kl_divergence: bool,
    /// Compare with the fp16 weights of this model instead (the one that was quantized)
    #[arg(long, value_name = "PATH")]
    pub base: Option<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub gpu: GpuArgs,
}

/// Documents without `-c`, at most.
const DEFAULT_CONTEXT: usize = 4096;

/// Measures and prints.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    let text = read_text(&args.file)?;
    let folder = args.model.folder(Some("demo-chat"))?.expect(Family::Llm)?;
    let base_path = match (&args.base, args.kl_divergence) {
        (Some(base), _) => Some(ModelFolder::find(base)?.expect(Family::Llm)?.path),
        (None, true) => Some(folder.path.clone()),
        (None, false) => None,
    };
    on_device(&args.gpu, ui, |gpu| measure(args, &text, (&folder, base_path.as_deref()), gpu, ui))
}

fn measure(
    args: &Args,
    text: &str,
    (folder, base_path): (&ModelFolder, Option<&Path>),
    gpu: &Gpu,
    ui: &Ui,
) -> Result<()> {
    let tokenizer = Tokenizer::load(&folder.path)?;
    let weights = args.model.weights_for(&folder.path);
    let model = load_net(gpu, &folder.path, weights, ui)?;
    let how = cut(args, model.net.config().max_position_embeddings())?;
    let windows = windows(&tokenizer, text, how, args.chunks)?;
    check_ids(&windows, &model, &folder.path)?;
    let base = base_path.map(|path| base(gpu, path, &model, ui)).transpose()?;

    let start = Instant::now();
    let longest = windows.iter().map(|w| w.ids.len()).max().unwrap_or(0);
    let place = (longest, args.model.act(gpu)?, args.model.kernels(gpu));
    let kv = args.kv.resolve(place.1)?;
    let mut scorer = Scorer::with_kv(gpu, &model.net, place, kv)?;
    let mut base_scorer = base.as_ref().map(|b| Scorer::new(gpu, &b.net, place)).transpose()?;
    let bar = ui.bar("perplexity", windows.len() as u64);
    let totals = score(&mut scorer, base_scorer.as_mut(), &windows, &mut |done, _, so_far| {
        bar.at(done as u64);
        bar.say(if done == 0 { String::new() } else { format!("{so_far:.4}") });
    })?;
    drop(bar);
    let base_name = base_path.map_or(String::new(), |p| format!("{} (fp16)", p.display()));
    let result = totals.finish(windows.len(), &base_name)?;
    let seconds = start.elapsed().as_secs_f64();
    if ui.json() {
        return ui.answer(&describe(gpu, args, &model, &result, how, seconds));
    }
    show(&model, &result, how, seconds, ui)
}

fn cut(args: &Args, longest: usize) -> Result<Windows> {
    let asked = args.chunk.or(args.context).unwrap_or(longest.min(DEFAULT_CONTEXT));
    if asked < 2 || asked > longest {
        return Err(Error::Usage(format!(
            "{asked} tokens: this model was trained for 2 to {longest}; give --chunk or -c in that range"
        )));
    }
    Ok(match args.chunk {
        Some(size) => Windows::Chunks { size },
        None => Windows::Documents { context: asked },
    })
}

fn check_ids(
    windows: &[crate::probe::perplexity::Window],
    model: &LoadedNet,
    path: &Path,
) -> Result<()> {
    let vocab = model.net.config().vocab_size();
    match windows.iter().flat_map(|w| &w.ids).find(|id| **id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::Model(format!(
            "{}: the tokenizer gave token {id}, the model's embedding has {vocab}; they do not belong \
             together",
            path.display()
        ))),
    }
}

fn base(gpu: &Gpu, path: &Path, model: &LoadedNet, ui: &Ui) -> Result<LoadedNet> {
    let base = load_net(gpu, path, "fp16", ui)?;
    let (ours, theirs) = (model.net.config().vocab_size(), base.net.config().vocab_size());
    match ours == theirs {
        true => Ok(base),
        false => Err(Error::Usage(format!(
            "{}: its vocabulary has {theirs} entries, the model's {ours}; a base is the same model \
             before it was quantized",
            path.display()
        ))),
    }
}

fn definition(how: Windows) -> String {
    match how {
        Windows::Documents { context } => {
            format!("documents of at most {context} tokens, every token")
        }
        Windows::Chunks { size } => format!("windows of {size} tokens, the second half of each"),
    }
}

fn describe(
    gpu: &Gpu,
    args: &Args,
    model: &LoadedNet,
    result: &Perplexity,
    how: Windows,
    seconds: f64,
) -> Value {
    let mut answer = json!(result);
    let more = json!({
        "definition": definition(how),
        "kv": format!("{:?}", args.kv).to_lowercase(),
        "file": args.file,
        "adapter": gpu.adapter().name,
        "driver": gpu.adapter().driver,
        "weights": json::weights(
            &model.weights, model.report.bits_per_weight(), model.report.resident_bytes()),
        "kernels": format!("{:?}", args.model.kernels(gpu)).to_lowercase(),
        "seconds": { "load": json::round(model.seconds, 4), "score": json::round(seconds, 4) },
    });
    if let (Value::Object(answer), Value::Object(more)) = (&mut answer, more) {
        answer.extend(more);
    }
    answer
}

fn show(model: &LoadedNet, p: &Perplexity, how: Windows, seconds: f64, ui: &Ui) -> Result<()> {
    ui.line(&format!("perplexity {:.4} ± {:.4}", p.perplexity, p.stderr))?;
    ui.line(&format!(
        "  {} tokens scored in {} windows: {}",
        p.tokens,
        p.windows,
        definition(how)
    ))?;
    ui.line(&format!(
        "  {} weights at {:.2} bits, {} resident; {:.1} s, {:.0} tokens/s",
        model.weights,
        model.report.bits_per_weight(),
        gpu::mib(model.report.resident_bytes()),
        seconds,
        p.tokens as f64 / seconds.max(1e-9)
    ))?;
    match &p.against {
        Some(against) => show_against(against, ui),
        None => Ok(()),
    }
}

fn show_against(a: &Against, ui: &Ui) -> Result<()> {
    let mut rows = table(&[&format!("against {}", a.base), "", "±"]);
    let mut row = |name: &str, value: String, error: Option<String>| {
        rows.add_row([name.to_string(), value, error.unwrap_or_default()]);
    };
    let fixed = |v: f64| format!("{v:.6}");
    let share = |v: f64| format!("{:.2} %", 100.0 * v);
    row(
        "perplexity of the base",
        format!("{:.4}", a.perplexity_base),
        Some(format!("{:.4}", a.perplexity_base_stderr)),
    );
    row("perplexity ratio", fixed(a.perplexity_ratio), Some(fixed(a.perplexity_ratio_stderr)));
    row("KL divergence, mean (nats)", fixed(a.kl.mean), Some(fixed(a.kl.stderr)));
    row("  median", fixed(a.kl.median), None);
    row("  90 %", fixed(a.kl.p90), None);
    row("  99 %", fixed(a.kl.p99), None);
    row("  99.9 %", fixed(a.kl.p999), None);
    row("  largest", fixed(a.kl.max), None);
    row("same likeliest token", share(a.same_top), Some(share(a.same_top_stderr)));
    row("Δp of the right token, mean", share(a.delta_p.mean), Some(share(a.delta_p.stderr)));
    row("  root mean square", share(a.delta_p.rms), None);
    row("  1 % … 99 %", format!("{} … {}", share(a.delta_p.p1), share(a.delta_p.p99)), None);
    ui.line(&rows.to_string())
}
