//! `inknib quantize -m MODEL -o OUT`: a model folder whose weights are quantized.
//!
//! Weight files are made one by one, each complete when it appears. What is done is kept in a small
//! file in OUT, so that the same command goes on where it stopped. The file that makes OUT a model
//! folder (model_index.json or config.json) is copied last, so nothing ever loads half a model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::common::{Family, GpuArgs, ModelFolder, Ui, table};
use super::json::round;
use super::progress::Bar;
use super::quantize_calibrate::{FormChoice, Known, MethodArgs};
use super::quantize_state::{
    CALIBRATION, Net, PARTIAL, Partial, Tensor, finished, prepare, remember,
};
use super::recover::once_more;
use crate::files::write_whole;
use crate::gpu::{interrupted, mib};
use crate::quant::Recipe;
use crate::weights::{
    ImageModel, Part, Quantize, QuantizedReport, WeightStore, quantize_with, read_json,
};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  inknib quantize -m models/demo-scenes -o scenes-int4
  inknib quantize -m models/demo-chat -o chat-g32 --weights int4-g32-cubic
  inknib quantize -m SD15 -o SD15-mine --weights my-recipe.toml --json
  inknib quantize -m models/demo-scenes -o scenes-gptq --method gptq --bits 4.6
  inknib quantize -m models/demo-chat -o chat-gptq --method gptq --calibration book.txt

The folder OUT is used like the original: `inknib generate -m scenes-int4 …`. A run that was stopped
goes on when the same command is given again. What is done of a file waits on OUT's disk until
the file is written, so the disk needs room for it twice.";

/// Flags of `inknib quantize`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model folder, or single-file checkpoint (.safetensors), with the original weights
    #[arg(short, long, value_name = "PATH")]
    pub model: PathBuf,
    /// The folder to write; it must be empty or not exist
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// int4, int4-quality, int8, fp16, a format such as int4-g32-uniform, or a recipe file (*.toml)
    #[arg(long, value_name = "FORMAT", default_value = "int4")]
    pub weights: String,
    /// Write into a folder that is not empty
    #[arg(long)]
    pub force: bool,
    /// How many tensors the table shows, those with most noise first
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub top: usize,
    /// inknib, or compressed-tensors for transformers and vLLM (language models with int4-g64-uniform weights)
    #[arg(long, value_enum, value_name = "FORM", default_value_t)]
    pub form: FormChoice,
    #[command(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    pub gpu: GpuArgs,
}

/// Quantizes every net of the model.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    let start = Instant::now();
    let model = ModelFolder::find(&args.model)?;
    let gguf = model.path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if model.path.is_file() && gguf {
        return Err(Error::Model(format!(
            "{}: a GGUF file, which runs as it is; to quantize the model otherwise, start from the \
             file or folder it was made from",
            model.path.display()
        )));
    }
    let nets = nets(&model)?;
    let recipe = |part: &Source| Recipe::from_argument(&args.weights, part.recipe);
    let recipes: Vec<Recipe> = nets.iter().map(recipe).collect::<Result<_>>()?;
    let mut partial = prepare(args, &model)?;
    let total: usize = nets.iter().map(|net| net.store.names().count()).sum();
    let bar = ui.bar("quantize", total as u64);
    let mut done = 0;
    // All plans before the first file: a budget or a calibration that cannot be leaves nothing half-written.
    let plans =
        nets.iter().zip(recipes).map(|(source, recipe)| match source.made(args, &partial) {
            true => Ok(None),
            false => bar.hide_while(|| plan(args, &model, source, recipe, ui)).map(Some),
        });
    let plans: Vec<Option<Plan>> = plans.collect::<Result<_>>()?;
    for (source, plan) in nets.iter().zip(plans) {
        let Source { net, store, .. } = source;
        let file = source.file();
        if let Some((recipe, known)) = plan {
            partial.nets.retain(|n| n.net != *net);
            let how = Quantize {
                recipe: &recipe,
                method: args.method.method.into(),
                statistics: known.as_ref().map(|k| (&k.statistics, k.data.as_str())),
                form: args.form.of(&model)?,
            };
            let made = one_net(args, &file, net, &how, store, &bar, done)?;
            partial.nets.push(made);
            remember(&args.output, &partial)?;
        } else {
            ui.note(&format!("{}: finished before", file.display()));
        }
        done += store.names().count() as u64;
        bar.at(done);
    }
    let quantization = partial.nets.iter().find_map(|net| net.quantization_config.as_ref());
    copy_the_rest(&model, &args.output, quantization)?;
    // It is there only where something was calibrated.
    let _ = std::fs::remove_file(args.output.join(CALIBRATION));
    let partial_file = args.output.join(PARTIAL);
    std::fs::remove_file(&partial_file).map_err(|e| Error::io(&partial_file, e))?;
    drop(bar);
    answer(args, ui, &partial.nets, start.elapsed().as_secs_f64())
}

/// The recipe of a net, and what calibration knows of it.
type Plan = (Recipe, Option<Known>);

/// The recipe of a net within the budget, and what calibration knows of it: of the net that is run often.
fn plan(
    args: &Args,
    model: &ModelFolder,
    source: &Source,
    recipe: Recipe,
    ui: &Ui,
) -> Result<Plan> {
    if !["unet", "llm"].contains(&source.recipe) {
        return Ok((recipe, None));
    }
    let (method, state) = (&args.method, args.output.join(CALIBRATION));
    let known = once_more(ui, |_| {
        method.calibrate(model, &source.store, &recipe, (&args.gpu, &state), ui)
    })?;
    Ok((method.budget(&source.store, recipe, known.as_ref())?, known))
}

/// A net to quantize.
struct Source {
    /// Its folder in OUT; empty for the folder itself.
    folder: &'static str,
    /// What it is called in answers.
    net: &'static str,
    /// What recipes call it.
    recipe: &'static str,
    store: WeightStore,
}

impl Source {
    /// The file it becomes, in OUT.
    fn file(&self) -> PathBuf {
        Path::new(self.folder).join(weight_file(self.net))
    }
    /// Whether an earlier run of the same command made it.
    fn made(&self, args: &Args, partial: &Partial) -> bool {
        let same = |n: &&Net| n.net == self.net && n.file == self.file();
        partial.nets.iter().find(same).is_some_and(|n| finished(args, n, &self.store))
    }
}

fn nets(model: &ModelFolder) -> Result<Vec<Source>> {
    if model.family == Family::Llm {
        let store = WeightStore::open(&model.path)?;
        return Ok(vec![Source { folder: "", net: "llm", recipe: "llm", store }]);
    }
    let image = ImageModel::open(&model.path)?;
    let source = |part: Part| {
        let (folder, recipe) = (part.folder(), part.recipe());
        Ok(Source { folder, net: folder, recipe, store: image.store(part)? })
    };
    image.parts().map(source).collect()
}

/// Under which of the Hub's names the weights of a net are written.
fn weight_file(net: &str) -> &'static str {
    match net {
        "unet" | "vae" => "diffusion_pytorch_model.safetensors",
        _ => "model.safetensors",
    }
}

fn one_net(
    args: &Args,
    file: &Path,
    net: &str,
    how: &Quantize<'_>,
    store: &WeightStore,
    bar: &Bar,
    done: u64,
) -> Result<Net> {
    let target = args.output.join(file);
    let folder = target.parent().unwrap_or(&args.output);
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let report = quantize_with(store, how, &target, |tensor, index, _| {
        bar.at(done + index as u64);
        bar.say(tensor.name.clone());
        interrupted()
    })?;
    Ok(summary(net, file, store.sha256(), report))
}

fn summary(net: &str, file: &Path, source_sha256: String, report: QuantizedReport) -> Net {
    let tensors: Vec<Tensor> = report
        .tensors
        .into_iter()
        .map(|t| Tensor {
            net: net.to_string(),
            name: t.name,
            bits: t.bits,
            group: t.group,
            c: t.c,
            sqnr_db: t.sqnr_db,
            output_sqnr_db: t.output_sqnr_db,
            weights: t.weights as u64,
        })
        .collect();
    Net {
        net: net.to_string(),
        file: file.to_path_buf(),
        source_sha256,
        weights: tensors.iter().map(|t| t.weights).sum(),
        bits_per_weight: report.bits_per_weight,
        bytes: report.bytes,
        sqnr_db: report.sqnr_db,
        signal: report.signal,
        quantization_config: report.quantization_config,
        tensors,
    }
}

/// What a single file's folder would hold beside weights. Its tokenizers are CLIP's, which need no
/// files; the file that makes it a model comes last.
fn write_configs(model: &Path, out: &Path) -> Result<()> {
    let image = ImageModel::open(model)?;
    let write = |name: &Path, text: &str| {
        let path = out.join(name);
        let folder = path.parent().unwrap_or(out);
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        write_whole(&path, text.as_bytes())
    };
    for part in image.parts() {
        let config = image.config(part)?.0;
        write(&Path::new(part.folder()).join("config.json"), &format!("{config:#}\n"))?;
    }
    write(Path::new("scheduler/scheduler_config.json"), &image.scheduler()?.0)?;
    write(Path::new("model_index.json"), &format!("{:#}\n", image.index()))
}

/// Copies what is not weights: configurations, tokenizers, licences. Of a language model the folder
/// itself, of a pipeline its subfolders too; the file that makes it a model comes last, with `quantization_config` if
/// there is one.
fn copy_the_rest(
    model: &ModelFolder,
    out: &Path,
    quantization_config: Option<&serde_json::Value>,
) -> Result<()> {
    if model.path.is_file() {
        return write_configs(&model.path, out);
    }
    let last = match model.family {
        Family::TextToImage => "model_index.json",
        Family::Llm => "config.json",
    };
    let mut folders = vec![PathBuf::new()];
    if model.family == Family::TextToImage {
        folders.extend(entries(&model.path)?.into_iter().filter(|n| model.path.join(n).is_dir()));
    }
    for folder in folders {
        let from = model.path.join(&folder);
        for name in entries(&from)? {
            let first = !(folder.as_os_str().is_empty() && name.as_os_str() == last);
            if from.join(&name).is_file() && is_kept(&name) && first {
                let to = out.join(&folder);
                std::fs::create_dir_all(&to).map_err(|e| Error::io(&to, e))?;
                copy(&from.join(&name), &to.join(&name))?;
            }
        }
    }
    let Some(quantization) = quantization_config else {
        return copy(&model.path.join(last), &out.join(last));
    };
    let mut config: serde_json::Value = read_json(&model.path, last)?;
    config["quantization_config"] = quantization.clone();
    write_whole(out.join(last), format!("{config:#}\n").as_bytes())
}

/// Names in a folder, in order, hidden ones left out.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(|e| Error::io(folder, e))?
        .filter_map(|entry| entry.ok().map(|e| PathBuf::from(e.file_name())))
        .filter(|name| !name.to_string_lossy().starts_with('.'))
        .collect();
    names.sort();
    Ok(names)
}

fn is_kept(name: &Path) -> bool {
    let name = name.to_string_lossy().to_ascii_lowercase();
    let text = [".json", ".txt", ".model", ".jinja", ".md"].iter().any(|e| name.ends_with(e));
    (text || name.starts_with("licen")) && !name.contains(".safetensors.index")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    write_whole(to, &std::fs::read(from).map_err(|e| Error::io(from, e))?)
}

/// SQNR over the packed weights of all nets.
fn joined_sqnr(nets: &[Net]) -> Option<f64> {
    let lossy = nets.iter().filter_map(|n| n.sqnr_db.map(|db| (n.signal, db)));
    let (signal, noise) = lossy
        .fold((0.0, 0.0), |(s, n), (signal, db)| (s + signal, n + signal / 10f64.powf(db / 10.0)));
    (noise > 0.0).then(|| 10.0 * (signal / noise).log10())
}

/// The group size that most packed weights have.
fn usual_group(nets: &[Net]) -> Option<u32> {
    let mut weights = std::collections::BTreeMap::new();
    for tensor in nets.iter().flat_map(|n| &n.tensors) {
        if let Some(group) = tensor.group {
            *weights.entry(group).or_insert(0) += tensor.weights;
        }
    }
    weights.into_iter().max_by_key(|(_, n)| *n).map(|(group, _)| group)
}

fn answer(args: &Args, ui: &Ui, nets: &[Net], seconds: f64) -> Result<()> {
    let bytes: u64 = nets.iter().map(|n| n.bytes).sum();
    let weights: u64 = nets.iter().map(|n| n.weights).sum();
    let bits = 8.0 * bytes as f64 / weights.max(1) as f64;
    let sqnr = joined_sqnr(nets);
    if ui.json() {
        return ui.answer(&json!({
            "output": args.output,
            "scheme": args.weights,
            "group": usual_group(nets),
            "bits_per_weight": round(bits, 4),
            "bytes": bytes,
            "sqnr_db": sqnr.map(|db| round(db, 3)),
            "seconds": round(seconds, 3),
            "nets": nets.iter().map(|n| json!({
                "net": n.net,
                "file": n.file,
                "weights": n.weights,
                "bits_per_weight": round(n.bits_per_weight, 4),
                "bytes": n.bytes,
                "sqnr_db": n.sqnr_db.map(|db| round(db, 3)),
            })).collect::<Vec<_>>(),
            "tensors": nets.iter().flat_map(|n| &n.tensors).collect::<Vec<_>>(),
        }));
    }
    noisiest(args, ui, nets)?;
    let mut sums = table(&["net", "weights", "bits/weight", "size", "SQNR"]);
    let row = |name: &str, weights: u64, bits: f64, bytes: u64, db: Option<f64>| {
        [name.to_string(), weights.to_string(), format!("{bits:.3}"), mib(bytes), decibel(db)]
    };
    for n in nets {
        sums.add_row(row(&n.net, n.weights, n.bits_per_weight, n.bytes, n.sqnr_db));
    }
    if nets.len() > 1 {
        sums.add_row(row("all", weights, bits, bytes, sqnr));
    }
    ui.line(&sums.to_string())?;
    ui.line(&format!("{} written in {seconds:.1} s", args.output.display()))
}

fn noisiest(args: &Args, ui: &Ui, nets: &[Net]) -> Result<()> {
    let mut packed: Vec<&Tensor> =
        nets.iter().flat_map(|n| &n.tensors).filter(|t| t.sqnr_db.is_some()).collect();
    packed.sort_by(|a, b| {
        let db = |t: &Tensor| t.sqnr_db.unwrap_or(f64::INFINITY);
        db(a).total_cmp(&db(b))
    });
    if packed.is_empty() || args.top == 0 {
        return Ok(());
    }
    let mut shown = table(&["tensor", "bits", "group", "c", "SQNR"]);
    for t in packed.iter().take(args.top) {
        shown.add_row([
            format!("{}: {}", t.net, t.name),
            format!("{:.3}", t.bits),
            t.group.map_or(String::new(), |g| g.to_string()),
            t.c.map_or(String::new(), |c| format!("{c:.4}")),
            decibel(t.sqnr_db),
        ]);
    }
    ui.line(&shown.to_string())?;
    let hidden = packed.len().saturating_sub(args.top);
    match hidden {
        0 => Ok(()),
        n => ui.line(&format!("… and {n} packed tensors with less noise (--top, or --json)\n")),
    }
}

fn decibel(db: Option<f64>) -> String {
    db.map_or("exact".to_string(), |db| format!("{db:.2} dB"))
}
