//! What kind of text-to-image model a configuration is.

use std::fmt;

use serde_json::{Value, json};

use super::image_file::ImageFile;
use super::image_names::names;
use super::image_shapes::{Shapes, published};
use crate::Result;

/// A family of models that share text encoders and sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageFamily {
    /// CLIP-L, 768 channels of context.
    #[default]
    Sd1,
    /// OpenCLIP-H, 1024 channels of context, linear projections.
    Sd2,
    /// CLIP-L and OpenCLIP-G, 2048 channels of context, pooled text and sizes beside the timestep.
    Sdxl,
    /// SDXL's second stage: OpenCLIP-G alone, an aesthetic score instead of a target size.
    SdxlRefiner,
    /// No text at all (UNet2DModel).
    Unconditional,
}

impl ImageFamily {
    /// The name people know it by.
    pub fn name(self) -> &'static str {
        match self {
            ImageFamily::Sd1 => "Stable Diffusion 1.x",
            ImageFamily::Sd2 => "Stable Diffusion 2.x",
            ImageFamily::Sdxl => "SDXL",
            ImageFamily::SdxlRefiner => "SDXL refiner",
            ImageFamily::Unconditional => "unconditional UNet",
        }
    }
}

/// What kind of model it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    pub family: ImageFamily,
    /// The UNet also takes a mask and the masked picture's latents (9 channels).
    pub inpaint: bool,
    /// The UNet takes the guidance scale as an input (latent consistency models).
    pub lcm: bool,
    /// What the UNet predicts, in diffusers' word: `epsilon`, `v_prediction` or `sample`.
    pub prediction: String,
    /// The noise schedule ends without any signal (`ztsnr` of single files).
    pub zero_snr: bool,
    /// Made for one to four steps without guidance (Turbo).
    pub turbo: bool,
    /// What the file does not say and was assumed, for a message to the user.
    pub assumed: Option<String>,
}

impl Default for Kind {
    fn default() -> Kind {
        Kind {
            family: ImageFamily::Sd1,
            inpaint: false,
            lcm: false,
            prediction: "epsilon".into(),
            zero_snr: false,
            turbo: false,
            assumed: None,
        }
    }
}

impl Kind {
    /// The kind that a UNet's `config.json` and the text of a `scheduler_config.json` make;
    /// `encoders`: whether there is a first and a second text encoder.
    pub fn of(unet: &Value, scheduler: Option<&str>, encoders: [bool; 2]) -> Kind {
        let is = |field: &str, value: &str| unet.get(field).is_some_and(|v| v == value);
        let refiner = match encoders {
            [false, false] => unet.get("cross_attention_dim").is_some_and(|n| *n == 1280),
            [first, second] => second && !first,
        };
        let family = if is("_class_name", "UNet2DModel") {
            ImageFamily::Unconditional
        } else if is("addition_embed_type", "text_time") {
            if refiner { ImageFamily::SdxlRefiner } else { ImageFamily::Sdxl }
        } else if unet.get("use_linear_projection").is_some_and(|v| *v == true) {
            ImageFamily::Sd2
        } else {
            ImageFamily::Sd1
        };
        // `-Infinity` in these files is no JSON, so the words that matter are read on their own.
        let word = |key: &str| scheduler.and_then(|text| word_after(text, key));
        Kind {
            family,
            inpaint: unet.get("in_channels").is_some_and(|n| *n == 9),
            lcm: unet.get("time_cond_proj_dim").is_some_and(Value::is_u64),
            prediction: word("\"prediction_type\"").unwrap_or("epsilon").into(),
            zero_snr: false,
            turbo: word("\"timestep_spacing\"") == Some("trailing")
                && word("\"_class_name\"") == Some("EulerAncestralDiscreteScheduler"),
            assumed: None,
        }
    }

    /// The kind of a single file whose UNet has these shapes.
    pub(super) fn of_file(file: &ImageFile, family: ImageFamily, unet: &Shapes) -> Result<Kind> {
        let name = file.path().file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let (prediction, assumed) = prediction(file, &name, family)?;
        Ok(Kind {
            family,
            inpaint: unet.get("conv_in.weight").and_then(|s| s.get(1)) == Some(&9),
            lcm: unet.contains_key("time_embedding.cond_proj.weight"),
            prediction,
            zero_snr: file.has_marker("ztsnr"),
            turbo: name.contains("turbo"),
            assumed,
        })
    }

    /// The `scheduler_config.json` that a single file of this kind would have.
    pub(super) fn schedule(&self) -> Value {
        let mut schedule = published(self.family, "scheduler");
        schedule["prediction_type"] = json!(self.prediction);
        if self.zero_snr {
            schedule["rescale_betas_zero_snr"] = json!(true);
            schedule["timestep_spacing"] = json!("trailing");
        }
        if self.lcm {
            schedule["_class_name"] = json!("LCMScheduler");
            schedule["original_inference_steps"] = json!(50);
        } else if self.turbo {
            schedule["_class_name"] = json!("EulerAncestralDiscreteScheduler");
            schedule["timestep_spacing"] = json!("trailing");
        }
        schedule
    }

    /// The height and width of the latents that files of this kind were trained on.
    pub(super) fn sample_size(&self) -> usize {
        match self.family {
            ImageFamily::Sdxl | ImageFamily::SdxlRefiner if !self.turbo => 128,
            ImageFamily::Sd2 if self.prediction == "v_prediction" => 96,
            _ => 64,
        }
    }
}

/// What a file's UNet predicts, and what was assumed where nothing says it.
///
/// In this order: the marker `v_pred` that trainers leave, `modelspec.prediction_type` and
/// `modelspec.architecture` of the metadata (Stability's ModelSpec), the number of training steps of the
/// published 2-base, words in the file's name. Only Stable Diffusion 2.x is ambiguous without them.
fn prediction(
    file: &ImageFile,
    name: &str,
    family: ImageFamily,
) -> Result<(String, Option<String>)> {
    let (v, eps) = (Ok(("v_prediction".to_string(), None)), Ok(("epsilon".to_string(), None)));
    if file.has_marker("v_pred") {
        return v;
    }
    match file.metadata("modelspec.prediction_type") {
        Some("v" | "v_prediction" | "v-prediction") => return v,
        Some("epsilon" | "eps") => return eps,
        _ => {}
    }
    match file.metadata("modelspec.architecture") {
        Some(a) if a.starts_with("stable-diffusion-v2-768-v") => return v,
        Some(a) if a.starts_with("stable-diffusion-v2-512") => return eps,
        _ => {}
    }
    if family == ImageFamily::Sd2 && file.number("global_step") == Some(875_000) {
        return eps;
    }
    let hint = &names()?.hint;
    let says = |words: &[String]| words.iter().find(|word| name.contains(word.as_str())).cloned();
    let said = |word: &str, what: &str| {
        Some(format!("the UNet predicts {what}, by `{word}` in the file's name"))
    };
    if let Some(word) = says(&hint.v_prediction) {
        return Ok(("v_prediction".into(), said(&word, "velocities (v_prediction)")));
    }
    if family != ImageFamily::Sd2 {
        return eps;
    }
    if let Some(word) = says(&hint.epsilon) {
        return Ok(("epsilon".into(), said(&word, "noise (epsilon)")));
    }
    let assumed = "nothing says what this Stable Diffusion 2.x predicts; velocities (v_prediction, as \
                   2.0 and 2.1 at 768 pixels) are assumed; a base model at 512 pixels needs epsilon";
    Ok(("v_prediction".into(), Some(assumed.into())))
}

/// The text between the next two quotes behind `key`.
fn word_after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let rest = text.split_once(key)?.1.trim_start().strip_prefix(':')?.trim_start();
    rest.strip_prefix('"')?.split('"').next()
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.family.name())?;
        if self.inpaint {
            f.write_str(", inpainting")?;
        }
        if self.lcm {
            f.write_str(", latent consistency")?;
        }
        match self.prediction.as_str() {
            "epsilon" => Ok(()),
            other => write!(f, ", {other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds_of_the_published_models() {
        let scheduler =
            "{\"lambda_min_clipped\": -Infinity, \"prediction_type\": \"v_prediction\"}";
        let kind =
            Kind::of(&json!({"use_linear_projection": true}), Some(scheduler), [true, false]);
        assert_eq!((kind.family, kind.prediction.as_str()), (ImageFamily::Sd2, "v_prediction"));
        let xl = json!({"addition_embed_type": "text_time", "use_linear_projection": true});
        assert_eq!(Kind::of(&xl, None, [true, true]).family, ImageFamily::Sdxl);
        assert_eq!(Kind::of(&xl, None, [false, true]).family, ImageFamily::SdxlRefiner);
        let kind =
            Kind::of(&json!({"in_channels": 9, "time_cond_proj_dim": 256}), None, [true, false]);
        assert!(kind.inpaint && kind.lcm && kind.family == ImageFamily::Sd1);
        assert_eq!(kind.to_string(), "Stable Diffusion 1.x, inpainting, latent consistency");
        let none = Kind::of(&json!({"_class_name": "UNet2DModel"}), None, [false; 2]);
        assert_eq!(none.family, ImageFamily::Unconditional);
    }
}
