//! `config.json` of a UNet2DConditionModel, and the blocks that follow from it.

use std::path::Path;

use serde::Deserialize;

use super::config::{self, Rule, wrong};
use super::unet_layout::{Depths, PerLevel};
use crate::{Error, Result};

/// Which of diffusers' classes a configuration belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Class {
    /// UNet2DConditionModel
    #[default]
    Condition,
    /// ControlNetModel, which has no way up.
    ControlNet,
    /// UNet2DModel, which has no prompt: channels of a head (`None` for one head of all channels), and
    /// groups of the norm in the middle's attention, if there is one.
    Unconditional { head_channels: Option<usize>, mid_groups: Option<usize> },
}

/// `config.json` of a UNet2DConditionModel. Absent fields have diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
pub struct UnetConfig {
    #[serde(default = "defaults::four")]
    pub in_channels: usize,
    #[serde(default = "defaults::four")]
    pub out_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub(super) down_block_types: Vec<String>,
    /// None in a ControlNet.
    #[serde(default)]
    pub(super) up_block_types: Vec<String>,
    /// `null`: nothing between the way down and the way up.
    #[serde(default = "defaults::mid")]
    pub(super) mid_block_type: Option<String>,
    #[serde(default = "defaults::layers")]
    pub(super) layers_per_block: PerLevel,
    /// The number of heads, not their size: the field kept its wrong name for the sake of old files
    /// (diffusers issue 2011). `num_attention_heads` was meant to take its place and never did; where
    /// a file has it, it counts.
    #[serde(default = "defaults::heads")]
    pub(super) attention_head_dim: PerLevel,
    #[serde(default)]
    pub(super) num_attention_heads: Option<PerLevel>,
    #[serde(default = "defaults::one")]
    pub(super) transformer_layers_per_block: Depths,
    /// The same for the way up, from below, where it is not the way down turned round.
    #[serde(default)]
    pub(super) reverse_transformer_layers_per_block: Option<Vec<PerLevel>>,
    /// Channels of the text encoder's output.
    #[serde(default = "defaults::cross")]
    pub cross_attention_dim: usize,
    #[serde(default)]
    pub use_linear_projection: bool,
    #[serde(default = "defaults::groups")]
    pub norm_num_groups: usize,
    #[serde(default = "defaults::eps")]
    pub norm_eps: f64,
    /// Zeros around a picture that is halved: 1 on every side, or 0, which stands for one after the
    /// last row and column.
    #[serde(default = "defaults::padding")]
    pub(super) downsample_padding: usize,
    #[serde(default = "defaults::yes")]
    pub flip_sin_to_cos: bool,
    #[serde(default)]
    pub freq_shift: f64,
    /// Numbers of the embedding of the guidance scale that the model was distilled with (LCM).
    #[serde(default)]
    pub time_cond_proj_dim: Option<usize>,
    #[serde(default)]
    pub(super) addition_embed_type: Option<String>,
    #[serde(default)]
    pub(super) addition_time_embed_dim: Option<usize>,
    #[serde(default)]
    pub(super) projection_class_embeddings_input_dim: Option<usize>,
    #[serde(default)]
    pub(super) sample_size: Option<PerLevel>,
    #[serde(skip)]
    pub(super) class: Class,
}

/// What SDXL adds to the time embedding: pooled text, and sizes as sinusoids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextTime {
    /// Channels of the sinusoids of each of `time_ids`.
    pub time_channels: usize,
    /// Channels of the pooled text and of all sinusoids together.
    pub channels: usize,
}

mod defaults {
    use super::{Depths, PerLevel};
    pub fn four() -> usize {
        4
    }
    pub fn mid() -> Option<String> {
        Some("UNetMidBlock2DCrossAttn".into())
    }
    pub fn layers() -> PerLevel {
        PerLevel::All(2)
    }
    pub fn one() -> Depths {
        Depths::All(1)
    }
    pub fn heads() -> PerLevel {
        PerLevel::All(8)
    }
    pub fn cross() -> usize {
        1280
    }
    pub fn groups() -> usize {
        32
    }
    pub fn eps() -> f64 {
        1e-5
    }
    pub fn padding() -> usize {
        1
    }
    pub fn yes() -> bool {
        true
    }
}

/// Fields that change the architecture, with the values that are built here.
const RULES: [Rule; 26] = [
    ("_class_name", "\"UNet2DConditionModel\""),
    ("act_fn", "\"silu\""),
    ("addition_embed_type", "null|\"text_time\""),
    ("attention_type", "\"default\""),
    ("center_input_sample", "false"),
    ("class_embed_type", "null"),
    ("class_embeddings_concat", "false"),
    ("conv_in_kernel", "3"),
    ("conv_out_kernel", "3"),
    ("cross_attention_norm", "null"),
    ("downsample_padding", "1|0"),
    ("dual_cross_attention", "false"),
    ("encoder_hid_dim", "null"),
    ("encoder_hid_dim_type", "null"),
    ("mid_block_only_cross_attention", "null|false"),
    ("mid_block_scale_factor", "1|1.0"),
    ("mid_block_type", "\"UNetMidBlock2DCrossAttn\"|\"UNetMidBlock2D\"|null"),
    ("num_class_embeds", "null"),
    ("only_cross_attention", "false"),
    ("resnet_out_scale_factor", "1.0|1"),
    ("resnet_skip_time_act", "false"),
    ("resnet_time_scale_shift", "\"default\""),
    ("time_embedding_act_fn", "null"),
    ("time_embedding_dim", "null"),
    ("time_embedding_type", "\"positional\""),
    ("timestep_post_act", "null"),
];

impl UnetConfig {
    /// Reads `config.json` of a UNet's folder (or a file of that form).
    ///
    /// # Errors
    /// `Model` naming the field and its value where the architecture is not one that is built here.
    pub fn read(path: impl AsRef<Path>) -> Result<UnetConfig> {
        let (source, fields) = config::fields(path.as_ref())?;
        UnetConfig::from_value(&fields, &source)
    }
    /// As [`UnetConfig::read`], from what the file holds; `source` is its name in messages.
    pub fn from_value(fields: &serde_json::Value, source: &Path) -> Result<UnetConfig> {
        UnetConfig::parse(fields, source, "the UNet", &RULES, Class::Condition)
    }

    /// Reads a configuration of `class`, whose fields are held against `rules`.
    pub(super) fn parse(
        fields: &serde_json::Value,
        source: &Path,
        net: &str,
        rules: &[Rule],
        class: Class,
    ) -> Result<UnetConfig> {
        let config: UnetConfig = config::parse(fields, source, net, rules)?;
        UnetConfig { class, ..config }.checked(source)
    }

    /// This configuration if it makes a net.
    pub(super) fn checked(self, source: &Path) -> Result<UnetConfig> {
        self.blocks().map_err(|why| wrong(source, why))?;
        self.text_time().map_err(|why| wrong(source, why))?;
        Ok(self)
    }

    /// Whether there is a prompt: not in a UNet2DModel.
    pub fn takes_prompt(&self) -> bool {
        !matches!(self.class, Class::Unconditional { .. })
    }

    /// Height and width of the latents that it was trained on, where the file says.
    pub fn sample_size(&self) -> Option<(usize, usize)> {
        let sides = self.sample_size.as_ref()?.expand(2).ok()?;
        Some((sides[0], sides[1]))
    }

    /// Channels of the time embedding.
    pub(super) fn time_channels(&self) -> usize {
        self.block_out_channels[0] * 4
    }

    /// What the pooled text and the sizes must be; `None` where the model takes neither.
    pub(super) fn text_time(&self) -> Result<Option<TextTime>, String> {
        if self.addition_embed_type.is_none() {
            return Ok(None);
        }
        let needed = |field: &str, n: Option<usize>| {
            n.filter(|n| *n > 0)
                .ok_or(format!("`addition_embed_type` is \"text_time\" and needs `{field}`"))
        };
        Ok(Some(TextTime {
            time_channels: needed("addition_time_embed_dim", self.addition_time_embed_dim)?,
            channels: needed(
                "projection_class_embeddings_input_dim",
                self.projection_class_embeddings_input_dim,
            )?,
        }))
    }

    /// Whether the time embedding takes pooled text and sizes as well (SDXL), and in which form.
    pub fn added(&self) -> Option<TextTime> {
        self.text_time().ok().flatten()
    }

    /// The latent's height and width must be multiples of this: each level but the last halves them.
    pub fn multiple(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// An error with the next sizes that fit, where a latent of this size has no way through the U.
    pub fn check_size(&self, height: usize, width: usize) -> Result<()> {
        let n = self.multiple();
        if height > 0 && width > 0 && height.is_multiple_of(n) && width.is_multiple_of(n) {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "a latent of {height}x{width} does not halve evenly on its way down; this UNet takes \
             multiples of {n}, for instance {}x{}",
            height.next_multiple_of(n).max(n),
            width.next_multiple_of(n).max(n)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(extra: &str) -> Result<UnetConfig> {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "{{\"block_out_channels\": [32, 64], \"norm_num_groups\": 8, \
             \"down_block_types\": [\"CrossAttnDownBlock2D\", \"DownBlock2D\"], \
             \"up_block_types\": [\"UpBlock2D\", \"CrossAttnUpBlock2D\"]{extra}}}"
        );
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        UnetConfig::read(folder.path())
    }

    #[test]
    fn refusals_name_field_and_value() {
        let refused = |extra: &str| read(extra).unwrap_err().to_string();
        let e = refused(", \"addition_embed_type\": \"image\"");
        assert!(e.contains("`addition_embed_type` is \"image\"") && e.contains("text_time"), "{e}");
        let e = refused(", \"addition_embed_type\": \"text_time\", \"addition_time_embed_dim\": 8");
        assert!(e.contains("needs `projection_class_embeddings_input_dim`"), "{e}");
        let e = refused(", \"resnet_time_scale_shift\": \"scale_shift\"");
        assert!(e.contains("`resnet_time_scale_shift` is"), "{e}");
        let e = refused(", \"attention_head_dim\": [2]");
        assert!(e.contains("1 entries for 2 levels"), "{e}");
        assert!(refused(", \"attention_head_dim\": 7").contains("7 heads"));
    }

    #[test]
    fn odd_sizes_are_refused_with_the_next_that_fits() {
        let config = read("").unwrap();
        assert!(config.check_size(8, 6).is_ok());
        let e = config.check_size(7, 6).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("8x6"), "{e}");
    }
}
