//! Which files hold the weights of a path: a file, a folder in one of the Hub's customary layouts,
//! or a set of shards behind an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::read_json;
use crate::{Error, Result};

/// Names tried in a folder, in this order. Full-precision files come before `fp16` variants, single
/// files before shards.
const CANDIDATES: [&str; 9] = [
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "weights.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors.index.fp16.json",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
];

/// The safetensors files behind `path`, one or several shards.
pub(super) fn weight_files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        return files_of_folder(path);
    }
    if !path.exists() {
        return Err(Error::Model(format!(
            "{}: there is no such file or folder; give a .safetensors file or a folder that holds one",
            path.display()
        )));
    }
    if is_pickle_name(path) {
        return Err(pickle_error(path));
    }
    match path.extension().is_some_and(|e| e == "json") {
        true => shards(path),
        false => Ok(vec![path.to_path_buf()]),
    }
}

fn files_of_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    for name in CANDIDATES {
        let path = folder.join(name);
        if path.is_file() {
            return if name.ends_with(".json") { shards(&path) } else { Ok(vec![path]) };
        }
    }
    let mut others: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(|e| Error::io(folder, e))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.is_file())
        .collect();
    others.sort();
    let loose: Vec<&PathBuf> =
        others.iter().filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    if let [only] = loose[..] {
        return Ok(vec![only.clone()]);
    }
    let ggufs: Vec<&PathBuf> = others.iter().filter(|p| is_gguf_name(p)).collect();
    if let (true, [only]) = (loose.is_empty(), &ggufs[..]) {
        return Ok(vec![(*only).clone()]);
    }
    let pickle = others.iter().find(|p| is_pickle_name(p));
    if let (true, Some(pickle)) = (loose.is_empty(), pickle) {
        return Err(pickle_error(pickle));
    }
    let why = match (loose.len(), folder.join("model_index.json").is_file()) {
        (0, true) => {
            "this is the root of a diffusers checkpoint: its weights lie in subfolders such as \
             unet/, vae/ and text_encoder/"
                .to_string()
        }
        (0, false) if ggufs.len() > 1 => {
            format!("{} GGUF files here; name one of them", ggufs.len())
        }
        (0, false) => {
            format!("no weights here; looked for {LOOKED}, a single *.safetensors or *.gguf")
        }
        (n, _) => {
            format!("{n} safetensors files and none of them named {LOOKED}; name one of them")
        }
    };
    Err(Error::Model(format!("{}: {why}", folder.display())))
}

/// How messages name [`CANDIDATES`].
const LOOKED: &str = "model.safetensors, diffusion_pytorch_model.safetensors, weights.safetensors, \
                      their *.index.json or *.fp16.safetensors variants";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The distinct files an index names, each of which must lie beside it.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let folder = index.parent().unwrap_or(Path::new("."));
    let name = index.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let parsed: Index = read_json(folder, name)?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(Error::Model(format!("{}: the index names no files", index.display())));
    }
    names
        .iter()
        .map(|name| {
            // An index comes with a download; it must not reach out of its own folder.
            let inside = Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
            let file = folder.join(name);
            match inside && file.is_file() {
                true => Ok(file),
                false => Err(Error::Model(format!(
                    "{}: the index names the shard `{name}`, which is not beside it ({} shards in \
                     all); the download is incomplete",
                    index.display(),
                    names.len()
                ))),
            }
        })
        .collect()
}

/// Whether the name is that of a GGUF file.
pub(super) fn is_gguf_name(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// Whether the name is one that PyTorch pickles have.
pub(super) fn is_pickle_name(path: &Path) -> bool {
    path.extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| ["bin", "ckpt", "pt", "pth"].contains(&e.to_ascii_lowercase().as_str()))
}

/// Pickles run code when they are read, so they are never opened; the message says how to convert.
pub(super) fn pickle_error(path: &Path) -> Error {
    Error::Model(format!(
        "{}: a PyTorch pickle, which can run code when it is read, so it is not opened. Take the \
         .safetensors file of the same model, or convert it where PyTorch is installed: python -c \
         \"import torch, safetensors.torch as s; d = torch.load('IN', weights_only=True, \
         map_location='cpu'); d = d.get('state_dict', d); s.save_file({{k: v.contiguous().clone() \
         for k, v in d.items() if hasattr(v, 'contiguous')}}, 'model.safetensors')\"",
        path.display()
    ))
}
