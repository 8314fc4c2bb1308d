//! What kind of text-to-image model a configuration is.

use std::fmt;

use serde_json::Value;

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
            assumed: None,
        }
    }
}

impl Kind {
    /// The kind that a UNet's `config.json` and the text of a `scheduler_config.json` make;
    /// `first_encoder`: there is a first text encoder, which the refiner lacks.
    pub fn of(unet: &Value, scheduler: Option<&str>, first_encoder: bool) -> Kind {
        let is = |field: &str, value: &str| unet.get(field).is_some_and(|v| v == value);
        let family = if is("_class_name", "UNet2DModel") {
            ImageFamily::Unconditional
        } else if is("addition_embed_type", "text_time") {
            match first_encoder {
                true => ImageFamily::Sdxl,
                false => ImageFamily::SdxlRefiner,
            }
        } else if unet.get("use_linear_projection").is_some_and(|v| *v == true) {
            ImageFamily::Sd2
        } else {
            ImageFamily::Sd1
        };
        // `-Infinity` in these files is no JSON, so the one word that matters is read on its own.
        let prediction = scheduler.and_then(|text| word_after(text, "\"prediction_type\""));
        Kind {
            family,
            inpaint: unet.get("in_channels").is_some_and(|n| *n == 9),
            lcm: unet.get("time_cond_proj_dim").is_some_and(Value::is_u64),
            prediction: prediction.unwrap_or("epsilon").into(),
            assumed: None,
        }
    }
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
        let kind = Kind::of(&json!({"use_linear_projection": true}), Some(scheduler), true);
        assert_eq!((kind.family, kind.prediction.as_str()), (ImageFamily::Sd2, "v_prediction"));
        let xl = json!({"addition_embed_type": "text_time", "use_linear_projection": true});
        assert_eq!(Kind::of(&xl, None, true).family, ImageFamily::Sdxl);
        assert_eq!(Kind::of(&xl, None, false).family, ImageFamily::SdxlRefiner);
        let kind = Kind::of(&json!({"in_channels": 9, "time_cond_proj_dim": 256}), None, true);
        assert!(kind.inpaint && kind.lcm && kind.family == ImageFamily::Sd1);
        assert_eq!(kind.to_string(), "Stable Diffusion 1.x, inpainting, latent consistency");
        let none = Kind::of(&json!({"_class_name": "UNet2DModel"}), None, false);
        assert_eq!(none.family, ImageFamily::Unconditional);
    }
}
