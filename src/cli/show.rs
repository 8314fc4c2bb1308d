//! `inknib show picture.png`: how a picture was made; `inknib show model.gguf`: what a model file holds.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::common::Ui;
use super::show_gguf;
use crate::Result;
use crate::diffusion::image::{INKNIB_CHUNK, PARAMETERS_CHUNK, chunk, read_png};
use crate::diffusion::record::Record;
use crate::diffusion::settings::Settings;
use crate::weights::gguf_file;

const EXAMPLES: &str = "\
Examples:
  inknib show boat.png
  inknib show tinyllama-q4_0.gguf
  inknib --json show boat.png | jq .inknib.seed";

/// Flags of `inknib show`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A PNG file made by `inknib generate`, or by another program that writes a `parameters` chunk; or
    /// a GGUF file
    pub picture: PathBuf,
}

/// Prints size, the `parameters` text and the JSON chunk that reproduces the run; of a GGUF file its
/// types and what becomes of them.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    if let Some(file) = gguf_file(&args.picture)? {
        return show_gguf::run(&file, ui);
    }
    let (image, text) = read_png(&args.picture)?;
    let parameters = chunk(&text, PARAMETERS_CHUNK);
    let own = chunk(&text, INKNIB_CHUNK);
    // Shown as it stands in the file, once it is known to be one of ours.
    own.map(|chunk| Record::parse(chunk, &args.picture)).transpose()?;
    let own: Option<Value> = own.and_then(|chunk| serde_json::from_str(chunk).ok());
    let known = [PARAMETERS_CHUNK, INKNIB_CHUNK];
    let others: Vec<&(String, String)> =
        text.iter().filter(|(keyword, _)| !known.contains(&keyword.as_str())).collect();
    if ui.json() {
        let others = others.iter().map(|(keyword, text)| (keyword.clone(), json!(text)));
        return ui.answer(&json!({
            "image": args.picture,
            "width": image.width,
            "height": image.height,
            "parameters": parameters,
            "settings": parameters.map(|text| settings(&Settings::parse(text))),
            "inknib": own,
            "other": Value::Object(others.collect()),
        }));
    }
    ui.line(&format!("{}: {} x {}", args.picture.display(), image.width, image.height))?;
    match (parameters, &own) {
        (None, None) => ui.line("no generation parameters in this file")?,
        (Some(parameters), _) => ui.line(parameters)?,
        (None, Some(_)) => {}
    }
    if let Some(own) = own {
        ui.line(&format!("{own:#}"))?;
    }
    for (keyword, text) in others {
        let what = match keyword.as_str() {
            "prompt" | "workflow" => " of ComfyUI, which is not read",
            _ => "",
        };
        ui.line(&format!("also `{keyword}`{what}: {} characters", text.chars().count()))?;
    }
    Ok(())
}

/// AUTOMATIC1111's fields by name; a number is a number.
fn settings(settings: &Settings) -> Value {
    let (width, height) = settings.size.unzip();
    let named = |list: &[(String, String)]| {
        Value::Object(list.iter().map(|(key, value)| (key.clone(), json!(value))).collect())
    };
    json!({
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "steps": settings.steps,
        "sampler": settings.sampler,
        "scheduler": settings.schedule,
        "cfg_scale": settings.cfg_scale,
        "seed": settings.seed,
        "width": width,
        "height": height,
        "model": settings.model,
        "model_hash": settings.model_hash,
        "vae": settings.vae,
        "denoising_strength": settings.denoising_strength,
        "clip_skip": settings.clip_skip,
        "rng": settings.rng,
        "eta": settings.eta,
        "lora_hashes": named(&settings.lora_hashes),
        "ti_hashes": named(&settings.ti_hashes),
        "batch_size": settings.batch_size,
        "batch_pos": settings.batch_pos,
        "version": settings.version,
        "other": named(&settings.other),
    })
}
