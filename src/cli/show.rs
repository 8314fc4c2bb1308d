//! `inknib show picture.png`: how a picture was made.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::common::Ui;
use crate::diffusion::image::{INKNIB_CHUNK, PARAMETERS_CHUNK, chunk, read_png};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  inknib show boat.png
  inknib --json show boat.png | jq .inknib.seed";

/// Flags of `inknib show`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A PNG file made by `inknib generate`, or by another program that writes a `parameters` chunk
    pub picture: PathBuf,
}

/// Prints size, the `parameters` text and the JSON chunk that reproduces the run.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
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
