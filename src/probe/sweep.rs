//! How much each layer suffers: one layer at a time in a low-bit format, all others in fp16. The sweep is
//! written to a JSON file after every layer and goes on from there when it is started again.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::compare::OnStage;
use crate::files::write_whole;
use crate::nn::{LoadedTensor, WeightCache};
use crate::quant::{Format, QuantSpec, Recipe};
use crate::{Error, Result};

/// Version of the file.
const VERSION: u32 = 1;

/// One layer in one format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    /// The tensor's name in the checkpoint.
    pub layer: String,
    /// As recipes write it.
    pub format: QuantSpec,
    pub elements: u64,
    /// Bytes in this format and in fp16, scales and padding counted.
    pub bytes: u64,
    pub bytes_fp16: u64,
    /// Signal to noise of the weight itself.
    pub weight_sqnr_db: Option<f64>,
    /// ‖a−b‖² / ‖b‖² of the net's output (ε, or logits), mean over what was evaluated. Errors of layers
    /// that are quantized together add up about as these do.
    pub noise: f64,
    /// −10·log10 of it.
    pub sqnr_db: Option<f64>,
    /// The noise of each evaluation: steps of a prompt follow each other; of text, its passages.
    pub at: Vec<f64>,
    /// Mean Kullback-Leibler divergence in nats; of language models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_mean: Option<f64>,
    /// Share of positions with the same likeliest token; of language models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_top: Option<f64>,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// Version of this form.
    pub sweep: u32,
    /// What was swept and how; a sweep goes on only where all of it is the same.
    pub setup: Value,
    /// Whether every layer is there.
    pub complete: bool,
    /// As they were measured.
    pub layers: Vec<Sensitivity>,
}

impl Sweep {
    /// Reads a sweep.
    ///
    /// # Errors
    /// `Io`, and `Usage` for a file that is none.
    pub fn read(path: &Path) -> Result<Sweep> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let sweep: Sweep = serde_json::from_str(&text)
            .map_err(|e| Error::Usage(format!("{}: no sweep: {e}", path.display())))?;
        match sweep.sweep {
            VERSION => Ok(sweep),
            other => Err(Error::Usage(format!(
                "{}: a sweep of version {other}, this program reads {VERSION}; sweep again into another file",
                path.display()
            ))),
        }
    }

    /// The most sensitive first, by the noise that they leave in the output.
    pub fn ranked(&self) -> Vec<&Sensitivity> {
        let mut ranked: Vec<&Sensitivity> = self.layers.iter().collect();
        ranked.sort_by(|a, b| b.noise.total_cmp(&a.noise));
        ranked
    }

    /// Replaces the file, at no moment leaving half of one.
    fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::Runtime(format!("the sweep cannot be written as JSON: {e}")))?;
        write_whole(path, text.as_bytes())
    }
}

/// The net under a sweep.
pub(super) trait Swept {
    /// The fp16 weights.
    fn cache(&self) -> &WeightCache;
    /// Which recipes are for it: `unet`, `llm`.
    fn family(&self) -> &'static str;
    /// The figures with the weights of `recipe`, in which `layer` alone is not fp16.
    fn measure(&mut self, layer: &str, recipe: Recipe) -> Result<Measured>;
}

/// What one layer did.
#[derive(Default)]
pub(super) struct Measured {
    /// ‖a−b‖² / ‖b‖² of each evaluation.
    pub at: Vec<f64>,
    pub kl_mean: Option<f64>,
    pub same_top: Option<f64>,
    /// The layer as it lay on the GPU.
    pub tensor: Option<LoadedTensor>,
}

/// Sweeps over every matrix that fp16 has at 16 bits, those aside that `file` has already.
///
/// # Errors
/// `Usage` for a file of another sweep; `Interrupted` on Ctrl-C, after which the file holds what was done.
pub(super) fn sweep(
    net: &mut dyn Swept,
    file: &Path,
    (setup, formats): (Value, &[QuantSpec]),
    on_stage: &mut OnStage<'_>,
) -> Result<Sweep> {
    let mut sweep = resume(file, setup)?;
    let done: HashSet<(String, QuantSpec)> =
        sweep.layers.iter().map(|s| (s.layer.clone(), s.format)).collect();
    let of_16_bits =
        |name: &String| net.cache().tensor(name).is_some_and(|tensor| tensor.format == Format::F16);
    let names: Vec<String> = net.cache().names().into_iter().filter(of_16_bits).collect();
    let all = names.iter().flat_map(|name| formats.iter().map(move |format| (name, *format)));
    let all: Vec<(&String, QuantSpec)> = all.collect();
    for (i, (name, format)) in all.iter().enumerate() {
        if done.contains(&((*name).clone(), *format)) {
            continue;
        }
        on_stage("one layer at a time", i, all.len());
        crate::gpu::interrupted()?;
        let measured = net.measure(name, one_layer(net.family(), name, *format)?)?;
        let fp16 = net.cache().tensor(name).map_or(0, |tensor| tensor.bytes);
        sweep.layers.push(sensitivity(name, *format, measured, fp16));
        sweep.write(file)?;
    }
    sweep.complete = true;
    sweep.write(file)?;
    Ok(sweep)
}

fn resume(file: &Path, setup: Value) -> Result<Sweep> {
    if !file.exists() {
        return Ok(Sweep { sweep: VERSION, setup, complete: false, layers: Vec::new() });
    }
    let found = Sweep::read(file)?;
    let (Value::Object(ours), Value::Object(theirs)) = (&setup, &found.setup) else {
        return Err(Error::Usage(format!("{}: a sweep without a setup", file.display())));
    };
    let mut names = ours.keys().chain(theirs.keys());
    let differs = names.find(|name| ours.get(*name) != theirs.get(*name));
    match differs {
        None => Ok(found),
        Some(name) => Err(Error::Usage(format!(
            "{}: a sweep with another `{name}`: {} there, {} here; give another file, or the same flags to go on",
            file.display(),
            theirs.get(name).unwrap_or(&Value::Null),
            ours.get(name).unwrap_or(&Value::Null),
        ))),
    }
}

/// fp16 but for one tensor.
pub fn one_layer(family: &str, name: &str, format: QuantSpec) -> Result<Recipe> {
    let mut recipe = Recipe::builtin("fp16", family)?;
    let path = toml::Value::String(globset::escape(name));
    let text = format!(
        "name = \"one layer\"\n[family.any]\ndefault = \"fp16\"\n[[family.any.rule]]\npath = {path}\nspec = \"{format}\"\n"
    );
    recipe.rules.splice(0..0, Recipe::parse("one layer", &text, "any")?.rules);
    Ok(recipe)
}

fn sensitivity(name: &str, format: QuantSpec, measured: Measured, bytes_fp16: u64) -> Sensitivity {
    let noise = measured.at.iter().sum::<f64>() / measured.at.len().max(1) as f64;
    let finite = |db: f64| db.is_finite().then_some(db);
    let tensor = measured.tensor.as_ref();
    Sensitivity {
        layer: name.to_string(),
        format,
        elements: tensor.map_or(0, |t| t.elements as u64),
        bytes: tensor.map_or(0, |t| t.bytes),
        bytes_fp16,
        weight_sqnr_db: tensor.and_then(|t| t.sqnr_db).and_then(finite),
        noise,
        sqnr_db: finite(-10.0 * noise.log10()),
        at: measured.at,
        kl_mean: measured.kl_mean,
        same_top: measured.same_top,
    }
}

/// Where and how a sweep is done, whatever the family.
#[derive(Clone, Debug)]
pub struct SweepOptions {
    pub folder: PathBuf,
    /// The file that is written.
    pub file: PathBuf,
    /// Every layer is measured in each of these.
    pub formats: Vec<QuantSpec>,
    pub act: crate::gpu::Elem,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, noise: f64) -> Sensitivity {
        let measured = Measured { at: vec![noise / 2.0, noise * 1.5], ..Default::default() };
        sensitivity(name, QuantSpec::INT4, measured, 100)
    }

    #[test]
    fn a_sweep_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sweep.json");
        let setup = serde_json::json!({ "model": "a", "steps": 10 });
        let mut sweep = resume(&file, setup.clone()).unwrap();
        assert!(sweep.layers.is_empty() && !file.exists());
        sweep.layers.extend([layer("a.weight", 1e-3), layer("b.weight", 1e-2)]);
        sweep.write(&file).unwrap();
        assert_eq!(resume(&file, setup).unwrap(), sweep);
        assert_eq!(sweep.ranked()[0].layer, "b.weight");
        // 1e-12: -10·log10 of a mean of two numbers.
        assert!((sweep.layers[0].sqnr_db.unwrap() - 30.0).abs() < 1e-12);

        let other = serde_json::json!({ "model": "a", "steps": 12 });
        let error = resume(&file, other).unwrap_err();
        assert!(error.to_string().contains("`steps`: 10 there, 12 here"), "{error}");
        std::fs::write(&file, "{}").unwrap();
        assert_eq!(Sweep::read(&file).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn only_the_named_layer_changes() {
        let recipe =
            one_layer("unet", "mid_block.resnets.0.conv1.weight", QuantSpec::INT4).unwrap();
        assert_eq!(recipe.spec_for("mid_block.resnets.0.conv1.weight"), QuantSpec::INT4);
        assert_eq!(recipe.spec_for("mid_block.resnets.0.conv2.weight"), QuantSpec::F16);
        assert_eq!(recipe.spec_for("mid_block.resnets.0.norm1.weight"), QuantSpec::F32);
    }
}
