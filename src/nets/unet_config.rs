//! `config.json` of a UNet2DConditionModel, and the blocks that follow from it.

use std::path::Path;

use serde::Deserialize;

use super::config::{self, Rule, wrong};
use crate::{Error, Result};

/// A number, or one per level.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum PerLevel {
    All(usize),
    Each(Vec<usize>),
}

impl PerLevel {
    fn expand(&self, levels: usize) -> Result<Vec<usize>, usize> {
        match self {
            PerLevel::All(n) => Ok(vec![*n; levels]),
            PerLevel::Each(list) if list.len() == levels => Ok(list.clone()),
            PerLevel::Each(list) => Err(list.len()),
        }
    }
}

/// `config.json` of a UNet2DConditionModel. Absent fields have diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
pub struct UnetConfig {
    #[serde(default = "defaults::four")]
    pub in_channels: usize,
    #[serde(default = "defaults::four")]
    pub out_channels: usize,
    pub block_out_channels: Vec<usize>,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    #[serde(default = "defaults::layers")]
    layers_per_block: PerLevel,
    /// The number of heads, not their size: the field kept its wrong name for the sake of old files
    /// (diffusers issue 2011). `num_attention_heads` was meant to take its place and never did; where
    /// a file has it, it counts.
    #[serde(default = "defaults::heads")]
    attention_head_dim: PerLevel,
    #[serde(default)]
    num_attention_heads: Option<PerLevel>,
    #[serde(default = "defaults::one")]
    transformer_layers_per_block: PerLevel,
    /// Channels of the text encoder's output.
    #[serde(default = "defaults::cross")]
    pub cross_attention_dim: usize,
    #[serde(default)]
    pub use_linear_projection: bool,
    #[serde(default = "defaults::groups")]
    pub norm_num_groups: usize,
    #[serde(default = "defaults::eps")]
    pub norm_eps: f64,
    #[serde(default = "defaults::yes")]
    pub flip_sin_to_cos: bool,
    #[serde(default)]
    pub freq_shift: f64,
    #[serde(default)]
    sample_size: Option<PerLevel>,
}

mod defaults {
    use super::PerLevel;
    pub fn four() -> usize {
        4
    }
    pub fn layers() -> PerLevel {
        PerLevel::All(2)
    }
    pub fn one() -> PerLevel {
        PerLevel::All(1)
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
    pub fn yes() -> bool {
        true
    }
}

/// Fields that change the architecture, with the values that are built here.
const RULES: [Rule; 29] = [
    ("_class_name", "\"UNet2DConditionModel\""),
    ("act_fn", "\"silu\""),
    ("addition_embed_type", "null"),
    ("attention_type", "\"default\""),
    ("center_input_sample", "false"),
    ("class_embed_type", "null"),
    ("class_embeddings_concat", "false"),
    ("conv_in_kernel", "3"),
    ("conv_out_kernel", "3"),
    ("cross_attention_norm", "null"),
    ("downsample_padding", "1"),
    ("dual_cross_attention", "false"),
    ("encoder_hid_dim", "null"),
    ("encoder_hid_dim_type", "null"),
    ("mid_block_only_cross_attention", "null|false"),
    ("mid_block_scale_factor", "1|1.0"),
    ("mid_block_type", "\"UNetMidBlock2DCrossAttn\""),
    ("num_class_embeds", "null"),
    ("only_cross_attention", "false"),
    ("resnet_out_scale_factor", "1.0|1"),
    ("resnet_skip_time_act", "false"),
    ("resnet_time_scale_shift", "\"default\""),
    ("reverse_transformer_layers_per_block", "null"),
    ("time_cond_proj_dim", "null"),
    ("time_embedding_act_fn", "null"),
    ("time_embedding_dim", "null"),
    ("time_embedding_type", "\"positional\""),
    ("timestep_post_act", "null"),
    ("addition_time_embed_dim", "null"),
];

/// The transformers of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transformers {
    pub heads: usize,
    /// Transformer blocks in each.
    pub depth: usize,
}

/// One block of the U: what diffusers builds as CrossAttnDownBlock2D, UpBlock2D and so on.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// `down_blocks.0`
    pub path: String,
    /// Input channels of each resnet; on the way up those of `cat(h, skip)`.
    pub resnets: Vec<usize>,
    pub channels: usize,
    pub transformers: Option<Transformers>,
    /// Transformers behind the resnets: one each, but one less in the middle.
    pub attentions: usize,
    /// Ends with a change of size.
    pub resample: bool,
}

/// All blocks in the order they run. `Unet`, `UnetTime` and `UnetContext` walk the same lists, so
/// that number i means the same resnet and the same attention to each of them.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    pub down: Vec<Block>,
    pub mid: Block,
    pub up: Vec<Block>,
}

impl Blocks {
    pub(super) fn all(&self) -> impl Iterator<Item = &Block> {
        self.down.iter().chain([&self.mid]).chain(&self.up)
    }
    /// Path and output channels of every resnet.
    pub(super) fn resnets(&self) -> impl Iterator<Item = (String, usize)> {
        self.all().flat_map(|block| {
            let path = |i| format!("{}.resnets.{i}", block.path);
            (0..block.resnets.len()).map(move |i| (path(i), block.channels))
        })
    }
    /// Path and channels of every cross attention.
    pub(super) fn cross_attentions(&self) -> impl Iterator<Item = (String, usize)> {
        self.all().flat_map(|block| {
            let depth = block.transformers.map_or(0, |t| t.depth);
            (0..block.attentions * depth).map(move |i| {
                let (a, t) = (i / depth, i % depth);
                let path = format!("{}.attentions.{a}.transformer_blocks.{t}.attn2", block.path);
                (path, block.channels)
            })
        })
    }
}

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
        let config: UnetConfig = config::parse(fields, source, "the UNet", &RULES)?;
        config.blocks().map_err(|why| wrong(source, why))?;
        Ok(config)
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

    /// The blocks, as `unet_2d_condition.py` builds them.
    pub(super) fn blocks(&self) -> Result<Blocks, String> {
        let widths = &self.block_out_channels;
        let levels = widths.len();
        if levels == 0
            || levels != self.down_block_types.len()
            || levels != self.up_block_types.len()
        {
            return Err(format!(
                "`block_out_channels` has {levels} levels, `down_block_types` {}, `up_block_types` {}",
                self.down_block_types.len(),
                self.up_block_types.len()
            ));
        }
        let expand = |list: &PerLevel, field: &str| {
            list.expand(levels)
                .map_err(|n| format!("`{field}` has {n} entries for {levels} levels"))
        };
        let heads = self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim);
        let heads = expand(heads, "attention_head_dim")?;
        let depths = expand(&self.transformer_layers_per_block, "transformer_layers_per_block")?;
        let layers = expand(&self.layers_per_block, "layers_per_block")?;
        self.check_widths(&heads)?;
        let transformers = |i: usize| Transformers { heads: heads[i], depth: depths[i] };
        let last = levels - 1;
        let down = self.down(&layers, transformers)?;
        let mid = Block {
            path: "mid_block".into(),
            resnets: vec![widths[last]; 2],
            channels: widths[last],
            transformers: Some(transformers(last)),
            attentions: 1,
            resample: false,
        };
        Ok(Blocks { down, mid, up: self.up(&layers, transformers)? })
    }

    fn check_widths(&self, heads: &[usize]) -> Result<(), String> {
        let groups = self.norm_num_groups;
        for (channels, heads) in self.block_out_channels.iter().zip(heads) {
            if *heads == 0 || !channels.is_multiple_of(*heads) {
                return Err(format!(
                    "{channels} channels do not divide into {heads} heads (`attention_head_dim`)"
                ));
            }
            if *channels == 0 || groups == 0 || !channels.is_multiple_of(groups) {
                return Err(format!(
                    "{channels} channels do not divide into {groups} groups (`norm_num_groups`)"
                ));
            }
        }
        Ok(())
    }

    fn down(
        &self,
        layers: &[usize],
        transformers: impl Fn(usize) -> Transformers,
    ) -> Result<Vec<Block>, String> {
        let widths = &self.block_out_channels;
        let block = |(i, kind): (usize, &String)| {
            let cross = match kind.as_str() {
                "CrossAttnDownBlock2D" => true,
                "DownBlock2D" => false,
                other => return Err(unknown("down_block_types", other)),
            };
            let mut resnets = vec![widths[i]; layers[i]];
            if let Some(first) = resnets.first_mut() {
                *first = widths[i.saturating_sub(1)];
            }
            Ok(Block {
                path: format!("down_blocks.{i}"),
                attentions: if cross { resnets.len() } else { 0 },
                resnets,
                channels: widths[i],
                transformers: cross.then(|| transformers(i)),
                resample: i + 1 < widths.len(),
            })
        };
        self.down_block_types.iter().enumerate().map(block).collect()
    }

    fn up(
        &self,
        layers: &[usize],
        transformers: impl Fn(usize) -> Transformers,
    ) -> Result<Vec<Block>, String> {
        let widths = &self.block_out_channels;
        let last = widths.len() - 1;
        let block = |(i, kind): (usize, &String)| {
            let cross = match kind.as_str() {
                "CrossAttnUpBlock2D" => true,
                "UpBlock2D" => false,
                other => return Err(unknown("up_block_types", other)),
            };
            let level = last - i;
            // A level has one resnet more on the way up: its last skip is what came into the level.
            let count = layers[level] + 1;
            let resnet = |j: usize| {
                let from = if j == 0 { widths[(level + 1).min(last)] } else { widths[level] };
                let deepest = j + 1 == count;
                let skip = if deepest { widths[level.saturating_sub(1)] } else { widths[level] };
                from + skip
            };
            let resnets: Vec<usize> = (0..count).map(resnet).collect();
            Ok(Block {
                path: format!("up_blocks.{i}"),
                attentions: if cross { count } else { 0 },
                resnets,
                channels: widths[level],
                transformers: cross.then(|| transformers(level)),
                resample: level > 0,
            })
        };
        self.up_block_types.iter().enumerate().map(block).collect()
    }
}

fn unknown(field: &str, kind: &str) -> String {
    format!(
        "`{field}` names {kind}; supported are CrossAttnDownBlock2D, DownBlock2D, CrossAttnUpBlock2D \
         and UpBlock2D"
    )
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
    fn blocks_are_diffusers() {
        let blocks = read(", \"attention_head_dim\": [2, 4]").unwrap().blocks().unwrap();
        let inputs: Vec<_> = blocks.all().map(|b| b.resnets.clone()).collect();
        let up = [vec![128, 128, 96], vec![96, 64, 64]];
        assert_eq!(
            inputs,
            [vec![32, 32], vec![32, 64], vec![64, 64], up[0].clone(), up[1].clone()]
        );
        let cross: Vec<_> = blocks.cross_attentions().collect();
        assert_eq!(cross.len(), 6);
        assert_eq!(cross[2].0, "mid_block.attentions.0.transformer_blocks.0.attn2");
        assert_eq!(blocks.mid.transformers.unwrap().heads, 4);
        assert_eq!(blocks.resnets().count(), 12);
    }

    #[test]
    fn refusals_name_field_and_value() {
        let refused = |extra: &str| read(extra).unwrap_err().to_string();
        let e = refused(", \"addition_embed_type\": \"text_time\"");
        assert!(e.contains("`addition_embed_type` is \"text_time\"") && e.contains("null"), "{e}");
        let e = refused(", \"time_cond_proj_dim\": 256");
        assert!(e.contains("`time_cond_proj_dim` is 256"), "{e}");
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
