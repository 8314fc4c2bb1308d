//! `inknib show picture.png`: how a picture was made; `inknib show model.gguf`: what a model file holds.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::common::Ui;
use super::show_gguf;
use crate::diffusion::image::{INKNIB_CHUNK, PARAMETERS_CHUNK, chunk, read_png};
use crate::weights::gguf_file;
use crate::{Error, Result};

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
    let own: Option<Value> = match chunk(&text, INKNIB_CHUNK) {
        None => None,
        Some(chunk) => Some(serde_json::from_str(chunk).map_err(|e| {
            Error::Usage(format!(
                "{}: its `{INKNIB_CHUNK}` chunk is no JSON ({e}); the file was changed by another \
                 program",
                args.picture.display()
            ))
        })?),
    };
    if ui.json() {
        return ui.answer(&json!({
            "image": args.picture,
            "width": image.width,
            "height": image.height,
            "parameters": parameters,
            "inknib": own,
        }));
    }
    ui.line(&format!("{}: {} x {}", args.picture.display(), image.width, image.height))?;
    match (parameters, &own) {
        (None, None) => ui.line("no generation parameters in this file")?,
        (Some(parameters), _) => ui.line(parameters)?,
        (None, Some(_)) => {}
    }
    match own {
        Some(own) => ui.line(&format!("{own:#}")),
        None => Ok(()),
    }
}
