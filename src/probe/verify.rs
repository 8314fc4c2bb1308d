//! A net against golden tensors: a folder with a configuration, weights, and what diffusers or
//! transformers computed from them (tests/golden/README.md). Every output and every tapped value is
//! compared; what the folder holds and nobody compared is listed, so that nothing passes unseen.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::evaluate::{evaluate, recipe};
use crate::gpu::{Elem, Gpu};
use crate::graph::Kernels;
use crate::nets::language::{FAMILIES, LanguageConfig};
use crate::tensor::Tensor;
use crate::weights::{Dtype, WeightStore, read_json, read_tensors};
use crate::{Error, Result};

/// One output or tapped value.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    pub name: String,
    /// ‖ours − golden‖ / ‖golden‖; `null` in JSON where a value is not finite.
    pub rel_l2: f64,
    pub max_abs: f64,
    /// Largest `max_abs` that passes, where that is what decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_abs_limit: Option<f64>,
}

impl Compared {
    /// Whether it is near enough; `rel_l2` may be `limit` where no other limit is set.
    pub fn passes(&self, limit: f64) -> bool {
        self.max_abs_limit.map_or(self.rel_l2 <= limit, |most| self.max_abs <= most)
    }
}

/// What `inknib verify` reports.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// The folder's name.
    pub case: String,
    /// `unet`, `unet2d`, `controlnet`, `vae`, `taesd`, `clip_text` or a language model's family; another
    /// where it is not supported.
    pub family: String,
    pub weights: String,
    /// Largest `rel_l2` that passes, where no `max_abs_limit` decides.
    pub limit: f64,
    pub outputs: Vec<Compared>,
    /// Golden tensors that are not inputs and that this program does not compute.
    pub not_compared: Vec<String>,
    /// What the reader should know about the folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Why nothing was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<String>,
    pub passed: bool,
}

/// The architectures that can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Unet,
    /// Without a prompt.
    Unet2d,
    ControlNet,
    Vae,
    Taesd,
    ClipText,
    /// Any of [`FAMILIES`].
    Language,
}

impl Family {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Family::Unet => "unet",
            Family::Unet2d => "unet2d",
            Family::ControlNet => "controlnet",
            Family::Vae => "vae",
            Family::Taesd => "taesd",
            Family::ClipText => "clip_text",
            Family::Language => "language model",
        }
    }
    /// The name of its table in recipes.
    pub fn recipe(self) -> &'static str {
        match self {
            Family::Unet | Family::Unet2d | Family::ControlNet => "unet",
            Family::Vae | Family::Taesd => "vae",
            Family::ClipText => "text_encoder",
            Family::Language => "llm",
        }
    }

    /// The family of a configuration: by the class it names, or else by fields that only this class
    /// has. `Err` names what it is instead.
    pub fn detect(config: &Value) -> Result<Family, String> {
        let named = |field: &str| config.get(field).and_then(Value::as_str);
        if let Some(name) = named("_class_name").or(named("model_type")) {
            return match name {
                "UNet2DConditionModel" => Ok(Family::Unet),
                "UNet2DModel" => Ok(Family::Unet2d),
                "ControlNetModel" => Ok(Family::ControlNet),
                "AutoencoderKL" => Ok(Family::Vae),
                "AutoencoderTiny" => Ok(Family::Taesd),
                "clip_text_model" => Ok(Family::ClipText),
                name if FAMILIES.contains(&name) => Ok(Family::Language),
                other => Err(other.to_string()),
            };
        }
        let has = |field: &str| config.get(field).is_some();
        let by_field = [
            ("controlnet_conditioning_channel_order", Ok(Family::ControlNet)),
            ("cross_attention_dim", Ok(Family::Unet)),
            ("encoder_block_out_channels", Ok(Family::Taesd)),
            ("latent_channels", Ok(Family::Vae)),
            ("down_block_types", Ok(Family::Unet2d)),
            ("projection_dim", Ok(Family::ClipText)),
        ];
        let found = by_field.into_iter().find(|(field, _)| has(field));
        found.map_or(Err("unknown"), |(_, family)| family).map_err(str::to_string)
    }
}

/// Largest relative error that passes.
///
/// fp32: sums of a few thousand products in another order err by about 1e-7 each; some tens of layers
/// with norms between them carry that to about 1e-6. fp16: each weight is off by up to 2⁻¹¹ (3e-4 in
/// the mean), which the layers add up. Fewer bits change what the net computes, on nets with random
/// weights by tens of per cent: there the limit only tells a working decoder from a broken one (two
/// unrelated results differ by 1.4), and quality is what `compare` and `study` measure.
fn limit(weights: &str) -> f64 {
    match weights {
        "fp32" => 2e-5,
        "fp16" => 2e-3,
        _ => 0.7,
    }
}

/// Largest error of one value of a language model, whose golden value is `golden`; `None` where only the
/// relative error counts.
///
/// On logits of standard deviation 0.3 it is 1e-4 in fp32 and 1e-2 in fp16. Larger logits may err by as
/// much more: the errors come from sums whose rounding grows with what is summed.
fn max_abs_limit(weights: &str, golden: &Tensor) -> Option<f64> {
    let limit = match weights {
        "fp32" => 1e-4,
        "fp16" => 1e-2,
        _ => return None,
    };
    let values = golden.to_f32();
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
    let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count;
    Some(limit * (variance.sqrt() / 0.3).max(1.0))
}

/// Runs the net of a golden folder and compares. `weights` is what [`crate::quant::Recipe`] takes:
/// fp32, fp16, int8, int4, a number format or a recipe file. Activations are f32.
///
/// # Errors
/// A file that is missing or damaged. An architecture that is not supported is no error but a report
/// that says so and has not passed.
pub fn verify(
    dir: impl AsRef<Path>,
    weights: &str,
    kernels: Kernels,
    gpu: &Gpu,
) -> Result<VerifyReport> {
    verify_as(dir, weights, kernels, Elem::F32, gpu)
}

/// As [`verify`], with activations stored as `act`.
pub fn verify_as(
    dir: impl AsRef<Path>,
    weights: &str,
    kernels: Kernels,
    act: Elem,
    gpu: &Gpu,
) -> Result<VerifyReport> {
    let dir = dir.as_ref();
    let config: Value = read_json(dir, "config.json")?;
    let full = std::fs::canonicalize(dir).map_err(|e| Error::io(dir, e))?;
    let mut report = VerifyReport {
        case: full.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        family: String::new(),
        weights: weights.to_string(),
        limit: limit(weights),
        outputs: Vec::new(),
        not_compared: Vec::new(),
        note: None,
        unsupported: None,
        passed: false,
    };
    let family = match Family::detect(&config) {
        Ok(family) => family,
        Err(other) => {
            report.unsupported = Some(format!(
                "{other} is not supported; supported are UNet2DConditionModel, UNet2DModel, \
                 ControlNetModel, AutoencoderKL, AutoencoderTiny, CLIPTextModel and the language models {}",
                FAMILIES.join(", ")
            ));
            report.family = other;
            return Ok(report);
        }
    };
    report.family = match LanguageConfig::from_json(&config, &dir.join("config.json")) {
        Ok(language) if family == Family::Language => language.family().to_string(),
        _ => family.name().to_string(),
    };
    if let Err(Error::Model(why)) = family.check(dir) {
        report.unsupported = Some(why);
        return Ok(report);
    }
    let golden = golden(dir)?;
    let recipe = recipe(weights, family)?;
    let ours = evaluate(dir, &golden, &recipe, kernels, act, gpu)?;
    for (name, golden) in &golden {
        match ours.iter().find(|(n, _)| n == name) {
            Some((_, ours)) => {
                let mut compared = compare(name, ours, golden)?;
                if family == Family::Language {
                    compared.max_abs_limit = max_abs_limit(weights, golden);
                }
                report.outputs.push(compared);
            }
            None if !INPUTS.contains(&name.as_str()) => report.not_compared.push(name.clone()),
            None => {}
        }
    }
    if weights == "fp32" && was_rounded(dir, &golden)? {
        report.limit = limit("fp16");
        report.note = Some(
            "the folder's weights were rounded to f16 after its golden tensors were computed, so \
             fp32 cannot come nearer to them than fp16"
                .into(),
        );
    }
    let good = |c: &Compared| c.passes(report.limit);
    report.passed = !report.outputs.is_empty() && report.outputs.iter().all(good);
    Ok(report)
}

const INPUTS: [&str; 13] = [
    "sample",
    "timestep",
    "timestep_cond",
    "guidance_scale",
    "cond",
    "conditioning_scale",
    "text_embeds",
    "time_ids",
    "encoder_hidden_states",
    "z",
    "z_tiled",
    "image",
    "input_ids",
];

/// Scripts that also run a net in halves (`out_f16`) round its weights in place, and when they save
/// them afterwards, `out` belongs to weights that no file holds any more. Seen by f32 weights every one
/// of which is an f16: by chance that happens once in 8,192 for each.
fn was_rounded(dir: &Path, golden: &[(String, Tensor)]) -> Result<bool> {
    if !golden.iter().any(|(name, _)| name == "out_f16") {
        return Ok(false);
    }
    let store = WeightStore::open(dir)?;
    let mut plain = false;
    if store.quantized().is_some() || store.quantized_elsewhere().is_some() {
        return Ok(false);
    }
    for name in store.names() {
        let view = store.get(name)?;
        if view.dtype == Dtype::F32 {
            plain = true;
            if view.to_f32()?.iter().any(|v| half::f16::from_f32(*v).to_f32() != *v) {
                return Ok(false);
            }
        }
    }
    Ok(plain)
}

/// The golden tensors of a folder.
pub fn golden(dir: &Path) -> Result<Vec<(String, Tensor)>> {
    let names = ["io.safetensors", "golden.safetensors"];
    match names.iter().map(|name| dir.join(name)).find(|path| path.is_file()) {
        Some(path) => read_tensors(path),
        None => Err(Error::Model(format!(
            "{}: neither io.safetensors nor golden.safetensors here; a golden folder holds one, as \
             tools/golden_nets.py writes them",
            dir.display()
        ))),
    }
}

fn compare(name: &str, ours: &Tensor, golden: &Tensor) -> Result<Compared> {
    let (a, b) = (ours.to_f32(), golden.to_f32());
    if a.len() != b.len() {
        return Err(Error::Model(format!(
            "golden tensor `{name}` has shape {:?}, the net gives {:?}; weights and golden tensors \
             belong to different runs",
            golden.shape, ours.shape
        )));
    }
    let (mut error, mut power, mut max_abs) = (0.0f64, 0.0f64, 0.0f64);
    for (a, b) in a.iter().zip(&b) {
        let d = f64::from(*a) - f64::from(*b);
        error += d * d;
        power += f64::from(*b).powi(2);
        max_abs = if d.is_finite() { max_abs.max(d.abs()) } else { f64::INFINITY };
    }
    let rel_l2 = (error / power.max(f64::MIN_POSITIVE)).sqrt();
    let rel_l2 = if rel_l2.is_finite() { rel_l2 } else { f64::INFINITY };
    Ok(Compared { name: name.to_string(), rel_l2, max_abs, max_abs_limit: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_no_number_never_passes() {
        let golden = Tensor::f32(&[2], vec![1.0, 1.0]);
        let c = compare("x", &Tensor::f32(&[2], vec![1.0, f32::NAN]), &golden).unwrap();
        assert!(c.rel_l2.is_infinite() && c.max_abs.is_infinite());
        let c = compare("x", &Tensor::f32(&[2], vec![1.0, 1.5]), &golden).unwrap();
        assert!((c.rel_l2 - 0.125f64.sqrt()).abs() < 1e-12 && c.max_abs == 0.5);
        assert!(compare("x", &Tensor::zeros(&[3]), &golden).is_err());
    }

    #[test]
    fn logits_may_err_by_as_much_as_they_are_large() {
        let logits = |size: f32| Tensor::f32(&[4], vec![size, -size, size, -size]);
        assert_eq!(max_abs_limit("fp32", &logits(0.1)), Some(1e-4));
        let limit = max_abs_limit("fp16", &logits(0.6)).unwrap();
        assert!((limit - 2e-2).abs() < 1e-6, "{limit}");
        assert_eq!(max_abs_limit("int4", &logits(0.6)), None);
    }

    #[test]
    fn families_without_a_class_name_are_told_by_their_fields() {
        let detect = |text: &str| Family::detect(&serde_json::from_str(text).unwrap());
        assert_eq!(detect("{\"cross_attention_dim\": 8}"), Ok(Family::Unet));
        assert_eq!(detect("{\"latent_channels\": 4}"), Ok(Family::Vae));
        assert_eq!(detect("{\"down_block_types\": []}"), Ok(Family::Unet2d));
        assert_eq!(detect("{\"model_type\": \"mamba\"}"), Err("mamba".into()));
        assert_eq!(detect("{}"), Err("unknown".into()));
    }
}
