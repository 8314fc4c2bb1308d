//! A recipe that keeps to a number of bits per weight: formats go to the tensors where they save most noise.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use safetensors::Dtype;
use serde::Deserialize;

use super::WeightStore;
use super::calibrated::Rows;
use super::packed::layout_of;
use crate::quant::{Choice, Format, QuantSpec, Recipe, Statistics, allocate};
use crate::{Error, Result};

/// The formats that a budget chooses from.
const FORMATS: [&str; 4] = ["int4-g64", "int4-g32", "int8-g64", "fp16"];

/// How much a net's output suffers from the noise of each tensor: by what was measured, else by its kind.
#[derive(Clone, Debug, Default)]
pub struct Sensitivities(BTreeMap<String, f64>);

/// What is read of a sweep that `inknib compare --sweep` wrote.
#[derive(Deserialize)]
struct Sweep {
    layers: Vec<Swept>,
}

#[derive(Deserialize)]
struct Swept {
    layer: String,
    format: String,
    weight_sqnr_db: Option<f64>,
    noise: f64,
}

impl Sensitivities {
    /// Reads a sweep. Of a tensor in several formats the coarsest counts, which is measured best.
    ///
    /// # Errors
    /// `Usage` for a file that is none.
    pub fn read(path: &Path) -> Result<Sensitivities> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let bad = |why: String| Error::Usage(format!("{}: no sweep: {why}", path.display()));
        let sweep: Sweep = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let mut all: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for layer in sweep.layers {
            layer.format.parse::<QuantSpec>().map_err(|e| bad(e.to_string()))?;
            let Some(db) = layer.weight_sqnr_db.filter(|_| layer.noise > 0.0) else { continue };
            let found = (db, layer.noise * 10f64.powf(db / 10.0));
            let held = all.entry(layer.layer).or_insert(found);
            if found.0 < held.0 {
                *held = found;
            }
        }
        Ok(Sensitivities(all.into_iter().map(|(name, (_, factor))| (name, factor)).collect()))
    }

    /// Noise in the net's output over relative noise of the weight.
    fn of(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_else(|| by_kind(name))
    }
}

/// What a layer's kind says, where nothing was measured: the mean noise of a UNet's output with one layer in four bits,
/// from MixDQ's per-layer data of SDXL-Turbo (Zhao et al. 2024), in dB. The pattern is looked for in the tensor's name.
/// Layers of language models follow what llama.cpp's mixes of formats give more bits to.
const KINDS: [(&str, f64); 22] = [
    ("conv_out.", -23.2),
    ("conv_in.", -35.1),
    ("downsamplers.", -42.1),
    ("conv_shortcut.", -48.4),
    ("resnets.", -48.6),
    ("upsamplers.", -48.6),
    ("proj_in.", -49.5),
    ("proj_out.", -49.5),
    ("ff.net.0.", -53.5),
    ("ff.net.2.", -55.5),
    ("attn1.to_v.", -58.0),
    ("time_emb", -58.9),
    ("to_out.", -59.6),
    ("attn1.to_q.", -66.3),
    ("attn1.to_k.", -66.5),
    ("attn2.", -75.7),
    ("embed_tokens.", -42.0),
    ("lm_head.", -42.0),
    (".v_proj.", -47.0),
    ("down_proj.", -47.0),
    (".q_proj.", -55.0),
    (".k_proj.", -55.0),
];

fn by_kind(name: &str) -> f64 {
    let time = name.contains("time_emb").then_some(-58.9);
    let kind = KINDS.iter().find(|(pattern, _)| name.contains(pattern)).map(|(_, db)| *db);
    let db = time.or(kind).unwrap_or(-50.0);
    10f64.powf(db / 10.0)
}

/// Gives every tensor that the recipe packs the format that a budget of `bits` per weight allows, all tensors of the store
/// counted. Tensors that the recipe leaves in float formats stay so, but for the time layers, which are not resident and
/// count in the file all the same.
///
/// # Errors
/// `Usage` for a budget that nothing fits.
pub fn budget_recipe(
    store: &WeightStore,
    recipe: &Recipe,
    bits: f64,
    sensitivities: &Sensitivities,
    statistics: Option<&Statistics>,
) -> Result<Recipe> {
    let (mut names, mut fixed, mut weights) = (vec![], 0u64, 0u64);
    for name in store.names() {
        let shape = store.shape(name)?;
        let count = shape.iter().product::<usize>() as u64;
        weights += count;
        let matrix = layout_of(shape).filter(|l| l.row_len() >= 32 && l.rows > 1);
        match (matrix, recipe.spec_for(name)) {
            (Some(_), QuantSpec::Q4 { .. } | QuantSpec::Q8 { .. }) => names.push(name),
            (Some(_), QuantSpec::F16) if name.contains("time_emb") => names.push(name),
            // As `quantize` stores it: an F16 source is exact as it is.
            (_, QuantSpec::F32) if store.get(name)?.dtype != Dtype::F16 => fixed += 4 * count,
            _ => fixed += 2 * count,
        }
    }
    let total = (bits * weights as f64 / 8.0) as u64;
    let room = total.checked_sub(fixed).ok_or_else(|| {
        Error::Usage(format!(
            "--bits {bits}: what the recipe keeps in 16 bits takes {:.2} bits per weight alone",
            8.0 * fixed as f64 / weights.max(1) as f64
        ))
    })?;
    let choices: Vec<Vec<Choice>> = names
        .par_iter()
        .map(|name| choices(store, name, sensitivities.of(name), statistics))
        .collect::<Result<_>>()?;
    let taken = allocate(&choices, room).map_err(|least| {
        // Rounded up, so that what is asked for next time fits.
        let needed = (800.0 * (fixed + least) as f64 / weights.max(1) as f64).ceil() / 100.0;
        Error::Usage(format!(
            "--bits {bits}: the smallest formats of these tensors take {needed:.2} bits per weight together"
        ))
    })?;
    let mut recipe = recipe.clone();
    recipe.name = format!("{} at {bits} bits", recipe.name);
    for (name, choice) in names.iter().zip(taken) {
        recipe.exact.insert(name.to_string(), choice.spec);
    }
    Ok(recipe)
}

/// Size and noise of a tensor in each format.
fn choices(
    store: &WeightStore,
    name: &str,
    sensitivity: f64,
    statistics: Option<&Statistics>,
) -> Result<Vec<Choice>> {
    let rows = Rows::read(store, name, false)?
        .ok_or_else(|| Error::Runtime(format!("{name}: no matrix to be given bits")))?;
    let layer = statistics.and_then(|s| s.layers.get(name));
    let layer = layer.filter(|layer| layer.sum.len() == rows.layout.row_len());
    let choice = |spec: &str| -> Result<Choice> {
        let spec: QuantSpec = spec.parse()?;
        let bytes = match Format::of(&spec) {
            Format::F16 => 2 * rows.layout.len() as u64,
            format => format.bytes(&rows.layout) as u64,
        };
        let noise = match (spec, layer) {
            (QuantSpec::F16, _) => 0.0,
            (_, Some(layer)) => {
                let error = rows.error(&rows.pack(&spec, super::Method::Mse, None)?, layer);
                error.noise / error.signal.max(f64::MIN_POSITIVE)
            }
            (_, None) => {
                let db = rows.pack(&spec, super::Method::Mse, None)?.sqnr_db;
                10f64.powf(-db.unwrap_or(f64::INFINITY) / 10.0)
            }
        };
        Ok(Choice { spec, bytes, noise: sensitivity * noise })
    };
    FORMATS.iter().map(|spec| choice(spec)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn store() -> WeightStore {
        let noise = |n: usize| (0..n).map(|i| ((i * 7919 % 1013) as f32 - 506.0) / 506.0).collect();
        let tensor = |name: &str, shape: [usize; 2]| {
            (name.to_string(), Tensor::f32(&shape, noise(shape[0] * shape[1])))
        };
        WeightStore::from_tensors(&[
            tensor("conv_out.weight", [4, 64]),
            tensor("down_blocks.0.downsamplers.0.conv.weight", [32, 64]),
            tensor("mid_block.attn1.to_q.weight", [64, 64]),
            tensor("mid_block.resnets.0.time_emb_proj.weight", [64, 64]),
            ("a.bias".into(), Tensor::f32(&[64], vec![0.5; 64])),
        ])
        .unwrap()
    }

    #[test]
    fn bits_are_kept_and_go_to_what_is_sensitive() {
        let (store, recipe) = (store(), Recipe::builtin("int4", "unet").unwrap());
        let none = Sensitivities::default();
        let solve = |bits| budget_recipe(&store, &recipe, bits, &none, None);
        let made = solve(5.5).unwrap();
        assert_eq!(made.spec_for("conv_out.weight"), QuantSpec::F16);
        assert_eq!(made.spec_for("a.bias"), QuantSpec::F32);
        let down = made.spec_for("down_blocks.0.downsamplers.0.conv.weight");
        assert!(down == QuantSpec::INT8 || down == QuantSpec::F16, "{down}");
        assert!(made.spec_for("mid_block.attn1.to_q.weight").group().is_some());
        assert!(solve(3.0).is_err() && solve(0.1).is_err());
        // A sweep says otherwise.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sweep.json");
        let text = r#"{"layers": [{"layer": "mid_block.attn1.to_q.weight", "format": "int4-g64-cubic",
            "weight_sqnr_db": 20.0, "noise": 0.5}]}"#;
        std::fs::write(&path, text).unwrap();
        let swept = Sensitivities::read(&path).unwrap();
        let made = budget_recipe(&store, &recipe, 5.5, &swept, None).unwrap();
        assert!(made.spec_for("mid_block.attn1.to_q.weight") != QuantSpec::INT4);
        std::fs::write(&path, "[]").unwrap();
        assert_eq!(Sensitivities::read(&path).unwrap_err().exit_code(), 2);
    }
}
