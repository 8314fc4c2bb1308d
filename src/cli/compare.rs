//! `inknib compare`: what the weights and the kernels change.

use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::common::{Family, ModelFolder, Ui};
pub use super::compare_args::Args;
use super::compare_tables::{
    attention_table, check_table, layer_table, picture_tables, report_tables, sweep_table,
    text_tables,
};
use super::generate::writable;
use super::progress::Stages;
use super::recover::on_device;
use crate::diffusion::image::INKNIB_CHUNK;
use crate::diffusion::text_to_image::Request;
use crate::files::write_whole;
use crate::gpu::Gpu;
use crate::graph::Kernels;
use crate::probe::compare::judge;
use crate::probe::compare_image::{ImageOptions, compare_image};
use crate::probe::compare_reports::{read_report, two_reports};
use crate::probe::compare_text::{TextOptions, compare_text};
use crate::probe::report::About;
use crate::probe::report_image::image_page;
use crate::probe::report_text::text_page;
use crate::probe::sweep::SweepOptions;
use crate::probe::sweep_image::sweep_image;
use crate::probe::sweep_text::sweep_text;
use crate::{Error, Result};

/// Pairs of which a page shows every step.
const PREVIEWS: usize = 4;
/// Steps at which a layer of a sweep is judged.
const SWEEP_STEPS: usize = 3;

/// Compares and judges.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    match args.reports.as_slice() {
        [] => {}
        [a, b] => return reports(args, [a, b], ui),
        [one, ..] => {
            return Err(Error::Usage(format!(
                "{}: give two reports to compare, or none and a model with -m",
                one.display()
            )));
        }
    }
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
    match (&args.sweep.sweep, folder.family) {
        (Some(file), _) => sweep(args, &folder, file, ui),
        (None, Family::TextToImage) => pictures(args, &folder, ui),
        (None, Family::Llm) => texts(args, &folder, ui),
    }
}

/// Two saved reports.
fn reports(args: &Args, [a, b]: [&Path; 2], ui: &Ui) -> Result<()> {
    let members = args.layers == Some(usize::MAX);
    let two = two_reports(&read_report(a)?, &read_report(b)?, members);
    match ui.json() {
        true => ui.answer(&two),
        false => report_tables(&two, [a, b], ui),
    }
}

/// One layer at a time.
fn sweep(args: &Args, folder: &ModelFolder, file: &Path, ui: &Ui) -> Result<()> {
    let formats = args.sweep.formats(&args.model.weights)?;
    writable(file)?;
    let sweep = on_device(&args.gpu, ui, |gpu| {
        let act = args.model.act(gpu)?;
        let options = SweepOptions {
            folder: folder.path.clone(),
            file: file.to_path_buf(),
            formats: formats.clone(),
            act,
        };
        let mut stages = Stages::new(ui);
        let mut show = |label: &str, done: usize, total: usize| stages.show(label, done, total);
        match folder.family {
            Family::TextToImage => {
                let requests = args.picture.requests(&args.prompt)?;
                let steps = args.sweep.sweep_steps.unwrap_or(SWEEP_STEPS);
                sweep_image(gpu, &options, (&requests, steps), &mut show)
            }
            Family::Llm => sweep_text(gpu, &options, &text_options(args, folder, gpu)?, &mut show),
        }
    })?;
    if ui.json() {
        return ui.answer(&sweep);
    }
    sweep_table(&sweep, args.layers, ui)?;
    ui.line(&format!("{}: every layer", file.display()))
}

/// The fields that both families' answers begin with.
fn head(args: &Args, gpu: &Gpu, folder: &ModelFolder, report: &impl Serialize) -> Result<Value> {
    let mut answer = json!({
        "adapter": gpu.adapter().name,
        "driver": gpu.adapter().driver,
        "model": folder.path,
        "baseline": { "weights": "fp16", "kernels": kernels(args.baseline_kernels.into()) },
        "variant": {
            "weights": args.model.weights_for(&folder.path),
            "kernels": kernels(args.model.kernels(gpu)),
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
    let requests = args.picture.requests(&args.prompt)?;
    for file in args.picture.output.iter().chain(&args.html) {
        writable(file)?;
    }
    on_device(&args.gpu, ui, |gpu| two_pictures(args, folder, &requests, gpu, ui))
}

fn two_pictures(
    args: &Args,
    folder: &ModelFolder,
    requests: &[Request],
    gpu: &Gpu,
    ui: &Ui,
) -> Result<()> {
    let options = ImageOptions {
        folder: folder.path.clone(),
        original: args.original.clone(),
        weights: args.model.weights_for(&folder.path).to_string(),
        unet: None,
        kernels: args.model.kernels(gpu),
        baseline: args.baseline_kernels.into(),
        act: args.model.act(gpu)?,
        floor: !args.no_floor,
        layers_at: None,
        inject: args.picture.inject,
        previews: if args.html.is_some() { PREVIEWS } else { 0 },
    };
    let limits = args.tolerance.over(options.limits()?);
    let mut stages = Stages::new(ui);
    let report = compare_image(gpu, &options, requests, limits, &mut |label, done, total| {
        stages.show(label, done, total);
    })?;
    drop(stages);
    let mut answer = head(args, gpu, folder, &report)?;
    let request = &requests[0];
    answer["request"] = json!({
        "prompt": request.prompt,
        "negative_prompt": request.negative,
        "steps": request.steps,
        "cfg_scale": request.guidance,
        "seed": request.seed,
    });
    if let Some(file) = &args.html {
        let mut about = about(args, gpu, folder)?;
        about.guidance = request.guidance;
        let of = |name: &str, value: String| (name.to_string(), value);
        about.conditions.extend([
            of("pairs", format!("{} (prompts and seeds)", requests.len())),
            of("steps", request.steps.to_string()),
            of("guidance", request.guidance.to_string()),
        ]);
        write_whole(file, image_page(&report, &about)?.as_bytes())?;
    }
    if let Some(output) = &args.picture.output {
        let chunk = (INKNIB_CHUNK.to_string(), answer.to_string());
        report.side_by_side()?.write_png(output, &[chunk])?;
    }
    if ui.json() {
        ui.answer(&answer)?;
    } else {
        title(args, gpu, folder, report.bits_per_weight, ui)?;
        layer_table(&report.layers, args.layers, &format!("step {}", report.layers_at_step), ui)?;
        attention_table(&report.attention, ui)?;
        picture_tables(&report, ui)?;
        if let Some(output) = &args.picture.output {
            let what = "the baseline, the variant, and 8 times their difference";
            ui.line(&format!("{}: {what}", output.display()))?;
        }
        check_table(&report.checks, ui)?;
    }
    judge(&report.checks)
}

/// What the page says of the comparison.
fn about(args: &Args, gpu: &Gpu, folder: &ModelFolder) -> Result<About> {
    let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).display().to_string();
    let condition = |name: &str, value: String| (name.to_string(), value);
    let adapter = gpu.adapter();
    let baseline = args.original.as_deref().unwrap_or(&folder.path);
    Ok(About {
        model: name(&folder.path),
        variant: args.model.weights_for(&folder.path).to_string(),
        guidance: 1.0,
        conditions: vec![
            condition(
                "baseline",
                format!(
                    "{}, fp16, {} kernels",
                    name(baseline),
                    kernels(args.baseline_kernels.into())
                ),
            ),
            condition(
                "kernels of the weights under test",
                kernels(args.model.kernels(gpu)).to_string(),
            ),
            condition("activations", args.model.act(gpu)?.wgsl().to_string()),
            condition("adapter", format!("{} ({})", adapter.name, adapter.driver)),
        ],
    })
}

fn text_options(args: &Args, folder: &ModelFolder, gpu: &Gpu) -> Result<TextOptions> {
    Ok(TextOptions {
        folder: folder.path.clone(),
        original: args.original.clone(),
        weights: args.model.weights_for(&folder.path).to_string(),
        recipe: None,
        kernels: args.model.kernels(gpu),
        baseline: args.baseline_kernels.into(),
        act: args.model.act(gpu)?,
        floor: !args.no_floor,
        passage: args.text.passage(&args.prompt)?,
    })
}

fn texts(args: &Args, folder: &ModelFolder, ui: &Ui) -> Result<()> {
    if let Some(file) = &args.html {
        writable(file)?;
    }
    on_device(&args.gpu, ui, |gpu| two_texts(args, folder, gpu, ui))
}

fn two_texts(args: &Args, folder: &ModelFolder, gpu: &Gpu, ui: &Ui) -> Result<()> {
    let options = text_options(args, folder, gpu)?;
    let limits = args.tolerance.over(options.limits()?);
    let mut stages = Stages::new(ui);
    let report = compare_text(gpu, &options, limits, &mut |label, done, total| {
        stages.show(label, done, total);
    })?;
    drop(stages);
    if let Some(file) = &args.html {
        write_whole(file, text_page(&report, &about(args, gpu, folder)?).as_bytes())?;
    }
    if ui.json() {
        ui.answer(&head(args, gpu, folder, &report)?)?;
    } else {
        title(args, gpu, folder, report.bits_per_weight, ui)?;
        layer_table(&report.layers, args.layers, "the first tokens", ui)?;
        attention_table(&report.attention, ui)?;
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
        "{}: {} weights at {bits:.2} bits under {} kernels against fp16 under {} kernels\n\
         {} ({}), {} activations",
        folder.path.display(),
        args.model.weights_for(&folder.path),
        kernels(args.model.kernels(gpu)),
        kernels(args.baseline_kernels.into()),
        gpu.adapter().name,
        gpu.adapter().driver,
        args.model.act(gpu)?.wgsl(),
    ))
}
