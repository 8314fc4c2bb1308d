//! The configuration of AutoencoderKL.

use std::path::Path;

use serde::Deserialize;

use super::config::{self, wrong};
use crate::Result;

/// `config.json` of an AutoencoderKL. Absent fields have diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
pub struct VaeConfig {
    #[serde(default = "defaults::latents")]
    pub latent_channels: usize,
    #[serde(default = "defaults::colours")]
    pub in_channels: usize,
    #[serde(default = "defaults::colours")]
    pub out_channels: usize,
    pub block_out_channels: Vec<usize>,
    #[serde(default = "defaults::layers")]
    pub(super) layers_per_block: usize,
    #[serde(default = "defaults::groups")]
    pub(super) norm_num_groups: usize,
    /// Files with the decoder alone may leave it out.
    #[serde(default)]
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    #[serde(default = "defaults::yes")]
    pub(super) mid_block_add_attention: bool,
    #[serde(default = "defaults::yes")]
    pub(super) use_quant_conv: bool,
    #[serde(default = "defaults::yes")]
    pub(super) use_post_quant_conv: bool,
    /// A latent is divided by this before it is decoded; the caller does it.
    #[serde(default = "defaults::scaling")]
    pub scaling_factor: f64,
    /// Added after the division; the caller does it.
    #[serde(default)]
    pub shift_factor: Option<f64>,
    #[serde(default)]
    sample_size: Option<Size>,
}

/// Pixels: of a square, or height and width.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Square(usize),
    Pair([usize; 2]),
}

mod defaults {
    pub fn latents() -> usize {
        4
    }
    pub fn colours() -> usize {
        3
    }
    pub fn layers() -> usize {
        1
    }
    pub fn groups() -> usize {
        32
    }
    pub fn scaling() -> f64 {
        0.18215
    }
    pub fn yes() -> bool {
        true
    }
}

impl VaeConfig {
    /// Reads `config.json` of a VAE's folder (or a file of that form).
    ///
    /// # Errors
    /// `Model` for blocks, activations or latent statistics that are not supported.
    pub fn read(path: impl AsRef<Path>) -> Result<VaeConfig> {
        let (source, fields) = config::fields(path.as_ref())?;
        VaeConfig::from_value(&fields, &source)
    }
    /// As [`VaeConfig::read`], from what the file holds; `source` is its name in messages.
    pub fn from_value(fields: &serde_json::Value, path: &Path) -> Result<VaeConfig> {
        let rules = [
            ("_class_name", "\"AutoencoderKL\""),
            ("act_fn", "\"silu\""),
            ("latents_mean", "null"),
            ("latents_std", "null"),
        ];
        let config: VaeConfig = config::parse(fields, path, "the VAE", &rules)?;
        let (widths, groups) = (&config.block_out_channels, config.norm_num_groups);
        for (field, types, only) in [
            ("down_block_types", &config.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", &config.up_block_types, "UpDecoderBlock2D"),
        ] {
            if let Some(other) = types.iter().find(|t| *t != only) {
                return Err(wrong(path, format!("`{field}` names {other}; supported is {only}")));
            }
        }
        if widths.is_empty() || widths.len() != config.up_block_types.len() {
            let why = format!("{} widths for {} blocks", widths.len(), config.up_block_types.len());
            return Err(wrong(path, why));
        }
        match widths.iter().find(|c| groups == 0 || !c.is_multiple_of(groups)) {
            Some(c) => Err(wrong(path, format!("{c} channels do not divide into {groups} groups"))),
            None => Ok(config),
        }
    }
    /// Pixels of the picture for one of the latent, along each side.
    pub fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
    /// Side, in pixels of the latent, of the tiles that diffusers would take.
    pub fn tile_side(&self) -> usize {
        let side = match self.sample_size {
            Some(Size::Square(side) | Size::Pair([side, _])) => side,
            None => 32,
        };
        side / self.scale()
    }
    /// What a sampler works on, of a latent as the encoder gives it: `(z − shift) · scaling factor`.
    pub fn scaled(&self, z: &[f32]) -> Vec<f32> {
        let (factor, shift) = (self.scaling_factor, self.shift_factor.unwrap_or(0.0));
        z.iter().map(|v| ((f64::from(*v) - shift) * factor) as f32).collect()
    }
    /// What the decoder takes, of a latent that a sampler has finished: `z / scaling factor + shift`.
    pub fn unscaled(&self, z: &[f32]) -> Vec<f32> {
        let (factor, shift) = (self.scaling_factor, self.shift_factor.unwrap_or(0.0));
        z.iter().map(|v| (f64::from(*v) / factor + shift) as f32).collect()
    }
}
