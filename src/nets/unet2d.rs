//! UNet2DModel, the unconditional denoiser of DDPM (Ho et al. 2020): the blocks of a UNet with attention of
//! pixels in place of transformers, and no prompt. Names as in diffusers' `unet_2d.py`.

use std::path::Path;

use serde::Deserialize;

use super::config::{self, Rule};
use super::unet::Unet;
use super::unet_config::{Class, UnetConfig};
use crate::graph::Var;
use crate::nn::Loader;
use crate::{Error, Result};

/// `config.json` of a UNet2DModel. Absent fields have diffusers' defaults.
#[derive(Clone, Debug)]
pub struct Unet2dConfig {
    /// The same net as a UNet without cross attention: what [`UnetTime`](super::unet::UnetTime) loads.
    pub unet: UnetConfig,
}

/// Fields that change the architecture, with the values that are built here.
const RULES: [Rule; 13] = [
    ("_class_name", "\"UNet2DModel\""),
    ("act_fn", "\"silu\""),
    ("center_input_sample", "false"),
    ("class_embed_type", "null"),
    ("downsample_padding", "1|0"),
    ("downsample_type", "\"conv\""),
    ("mid_block_scale_factor", "1|1.0"),
    ("mid_block_type", "\"UNetMidBlock2D\"|null"),
    ("num_class_embeds", "null"),
    ("resnet_time_scale_shift", "\"default\""),
    ("time_embedding_dim", "null"),
    ("time_embedding_type", "\"positional\""),
    ("upsample_type", "\"conv\""),
];

/// Fields whose meaning or default is not that of a UNet2DConditionModel.
#[derive(Deserialize)]
struct Own {
    #[serde(default = "defaults::three")]
    in_channels: usize,
    #[serde(default = "defaults::three")]
    out_channels: usize,
    /// Channels of a head; `null` for one head of all channels. Here the field means what it says.
    #[serde(default = "defaults::head")]
    attention_head_dim: Option<usize>,
    #[serde(default)]
    attn_norm_num_groups: Option<usize>,
    #[serde(default = "defaults::yes")]
    add_attention: bool,
}

mod defaults {
    pub fn three() -> usize {
        3
    }
    pub fn head() -> Option<usize> {
        Some(8)
    }
    pub fn yes() -> bool {
        true
    }
}

impl Unet2dConfig {
    /// Reads `config.json` of a UNet's folder (or a file of that form).
    ///
    /// # Errors
    /// `Model` naming the field and its value where the architecture is not one that is built here.
    pub fn read(path: impl AsRef<Path>) -> Result<Unet2dConfig> {
        let (source, fields) = config::fields(path.as_ref())?;
        Unet2dConfig::from_value(&fields, &source)
    }
    /// As [`Unet2dConfig::read`], from what the file holds; `source` is its name in messages.
    pub fn from_value(fields: &serde_json::Value, source: &Path) -> Result<Unet2dConfig> {
        let unreadable = |e| Error::Model(format!("{}: {e}", source.display()));
        let own = Own::deserialize(fields).map_err(unreadable)?;
        let mut fields = fields.clone();
        if let Some(object) = fields.as_object_mut() {
            object.remove("attention_head_dim");
        }
        let unet: UnetConfig = config::parse(&fields, source, "the UNet", &RULES)?;
        let groups = own.attn_norm_num_groups.unwrap_or(unet.norm_num_groups);
        let class = Class::Unconditional {
            head_channels: own.attention_head_dim,
            mid_groups: own.add_attention.then_some(groups),
        };
        let (in_channels, out_channels) = (own.in_channels, own.out_channels);
        let unet = UnetConfig { in_channels, out_channels, class, ..unet };
        Ok(Unet2dConfig { unet: unet.checked(source)? })
    }
}

/// The UNet on the GPU, without what [`UnetTime`](super::unet::UnetTime) holds.
pub struct Unet2d {
    net: Unet,
}

impl Unet2d {
    /// Loads every tensor that is used in each step; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, config: &Unet2dConfig) -> Result<Unet2d> {
        Ok(Unet2d { net: Unet::load(ld, &config.unet)? })
    }

    /// One prediction: pictures `x [B, H, W, in_channels]` at step `row` (u32 `[B]`) of the tables that
    /// [`UnetTime::table`](super::unet::UnetTime::table) made, → noise `[B, H, W, out_channels]`.
    #[track_caller]
    pub fn forward<'g>(&self, x: Var<'g>, time: &[Var<'g>], row: Var<'g>) -> Var<'g> {
        self.net.forward(x, time, row, &[])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::unet_layout::{Attend, Block};
    use super::*;

    fn blocks(extra: serde_json::Value) -> Result<Vec<Block>> {
        let mut fields = json!({
            "block_out_channels": [32, 64],
            "norm_num_groups": 8,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        });
        fields.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let config = Unet2dConfig::from_value(&fields, Path::new("config.json"))?;
        assert_eq!(config.unet.in_channels, 3);
        Ok(config.unet.blocks().unwrap().all().cloned().collect())
    }

    #[test]
    fn attention_head_dim_is_the_size_of_a_head() {
        let all = blocks(json!({"attn_norm_num_groups": 4})).unwrap();
        let pixels = |heads, groups| Attend::Pixels { heads, groups };
        assert_eq!(all[0].attentions, []);
        assert_eq!(all[1].attentions, [pixels(8, 8); 2]);
        assert_eq!(all[2].attentions, [pixels(8, 4)]);
        assert_eq!(all[3].attentions, [pixels(8, 8); 3]);
        let one = blocks(json!({"attention_head_dim": null})).unwrap();
        assert_eq!(one[2].attentions, [pixels(1, 8)]);
        let none = blocks(json!({"add_attention": false})).unwrap();
        assert!(none[2].attentions.is_empty() && none[2].resnets.len() == 2);
    }

    #[test]
    fn refusals_name_field_and_value() {
        let refused = |extra| blocks(extra).unwrap_err().to_string();
        let e = refused(json!({"attention_head_dim": 24}));
        assert!(e.contains("64 channels do not divide into heads of 24"), "{e}");
        let e = refused(json!({"time_embedding_type": "fourier"}));
        assert!(e.contains("`time_embedding_type` is \"fourier\""), "{e}");
        let e = refused(json!({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}));
        assert!(e.contains("SkipDownBlock2D; supported are AttnDownBlock2D"), "{e}");
        let e = refused(json!({"attn_norm_num_groups": 7}));
        assert!(e.contains("7 groups"), "{e}");
    }
}
