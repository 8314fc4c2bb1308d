//! What `inknib quantize` remembers in OUT between runs, and when it may write there.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::common::ModelFolder;
use super::quantize::Args;
use crate::files::write_whole;
use crate::weights::WeightStore;
use crate::{Error, Result};

/// What is remembered between runs, in OUT.
pub(super) const PARTIAL: &str = "inknib-quantize.partial.json";
/// What calibration has summed up so far, in OUT.
pub(super) const CALIBRATION: &str = "inknib-calibration.partial.safetensors";

#[derive(Serialize, Deserialize)]
pub(super) struct Partial {
    pub model: PathBuf,
    pub recipe: String,
    pub nets: Vec<Net>,
}

/// One weight file.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Net {
    pub net: String,
    pub file: PathBuf,
    pub source_sha256: String,
    pub weights: u64,
    pub bits_per_weight: f64,
    pub bytes: u64,
    pub sqnr_db: Option<f64>,
    /// Sum of the squares of the packed weights.
    pub signal: f64,
    pub tensors: Vec<Tensor>,
    /// What `config.json` says of a file in another form.
    #[serde(default)]
    pub quantization_config: Option<serde_json::Value>,
}

/// One tensor, as `--json` prints it.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Tensor {
    pub net: String,
    pub name: String,
    pub bits: f64,
    pub group: Option<u32>,
    pub c: Option<f32>,
    pub sqnr_db: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_sqnr_db: Option<f64>,
    pub weights: u64,
}

/// Makes OUT, or goes on with one that the same command left.
pub(super) fn prepare(args: &Args, model: &ModelFolder) -> Result<Partial> {
    let out = &args.output;
    let real = |path: &Path| std::fs::canonicalize(path).map_err(|e| Error::io(path, e));
    let recipe = match args.weights.ends_with(".toml") {
        true => std::fs::read_to_string(&args.weights).map_err(|e| Error::io(&args.weights, e))?,
        false => args.weights.clone(),
    };
    let recipe = format!("{recipe} {}", args.method.settings());
    let fresh = Partial { model: real(&model.path)?, recipe, nets: Vec::new() };
    let created = !out.exists();
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let inside = real(out)?.starts_with(&fresh.model);
    if inside {
        if created {
            // It was made a moment ago and holds nothing.
            let _ = std::fs::remove_dir(out);
        }
        return Err(Error::Usage(format!(
            "{}: lies in the model folder itself; write the quantized model somewhere else",
            out.display()
        )));
    }
    let before: Option<Partial> = std::fs::read_to_string(out.join(PARTIAL))
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok());
    if let Some(before) = before.filter(|b| b.model == fresh.model && b.recipe == fresh.recipe) {
        return Ok(before);
    }
    // What is remembered of another command is nothing to lose as long as no weights were written.
    let ours =
        |entry: &std::fs::DirEntry| [PARTIAL, CALIBRATION].iter().any(|n| entry.file_name() == **n);
    let mut entries = std::fs::read_dir(out).map_err(|e| Error::io(out, e))?;
    let empty = entries.all(|entry| entry.is_ok_and(|entry| ours(&entry)));
    if !empty && !args.force {
        return Err(Error::Usage(format!(
            "{}: the folder is not empty; name another one, or write into it with --force",
            out.display()
        )));
    }
    // While weights are replaced it is no model, and sums of another command are of no use.
    for name in ["model_index.json", "config.json", CALIBRATION].map(|n| out.join(n)) {
        if name.is_file() {
            std::fs::remove_file(&name).map_err(|e| Error::io(&name, e))?;
        }
    }
    remember(out, &fresh)?;
    Ok(fresh)
}

/// Whether an earlier run made this file from these weights.
pub(super) fn finished(args: &Args, net: &Net, store: &WeightStore) -> bool {
    let made = WeightStore::open(args.output.join(&net.file));
    if net.quantization_config.is_some() {
        return made.is_ok() && store.sha256() == net.source_sha256;
    }
    made.is_ok_and(|m| m.quantized().is_some_and(|h| h.source_sha256 == net.source_sha256))
        && store.sha256() == net.source_sha256
}

pub(super) fn remember(out: &Path, partial: &Partial) -> Result<()> {
    let text = serde_json::to_string(partial)
        .map_err(|e| Error::Runtime(format!("the state of the run cannot be written: {e}")))?;
    write_whole(out.join(PARTIAL), text.as_bytes())
}
