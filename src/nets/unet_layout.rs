//! The blocks that a UNet's configuration asks for, in the order they run, as diffusers'
//! `unet_2d_condition.py`, `controlnet.py` and `unet_2d.py` build them.

use serde::Deserialize;

use super::unet_config::{Class, UnetConfig};

/// A number, or one per level.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum PerLevel {
    All(usize),
    Each(Vec<usize>),
}

/// More resnets or transformer blocks than this in a row are a mistake in the file.
const MOST_LAYERS: usize = 256;

impl PerLevel {
    /// The number of each level; `Err` is the length of a list for other levels.
    pub(super) fn expand(&self, levels: usize) -> Result<Vec<usize>, usize> {
        match self {
            PerLevel::All(n) => Ok(vec![*n; levels]),
            PerLevel::Each(list) if list.len() == levels => Ok(list.clone()),
            PerLevel::Each(list) => Err(list.len()),
        }
    }
    /// The first of a list.
    fn first(&self) -> PerLevel {
        match self {
            PerLevel::All(n) => PerLevel::All(*n),
            PerLevel::Each(list) => PerLevel::All(list.first().copied().unwrap_or(0)),
        }
    }
}

/// Transformer blocks in each transformer: a number, or one per level, or per level one for each
/// transformer (SSD-1B).
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Depths {
    All(usize),
    Each(Vec<PerLevel>),
}

impl Depths {
    fn expand(&self, levels: usize) -> Result<Vec<PerLevel>, usize> {
        match self {
            Depths::All(n) => Ok(vec![PerLevel::All(*n); levels]),
            Depths::Each(list) if list.len() == levels => Ok(list.clone()),
            Depths::Each(list) => Err(list.len()),
        }
    }
}

/// The attention behind a resnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attend {
    /// Transformer2DModel with so many transformer blocks.
    Transformer { heads: usize, depth: usize },
    /// Every pixel to every pixel, with the groups of its norm.
    Pixels { heads: usize, groups: usize },
}

impl Attend {
    /// Transformer blocks, each with a cross attention.
    pub(super) fn depth(self) -> usize {
        match self {
            Attend::Transformer { depth, .. } => depth,
            Attend::Pixels { .. } => 0,
        }
    }
}

/// One block of the U: what diffusers calls CrossAttnDownBlock2D, UpBlock2D and so on.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// `down_blocks.0`
    pub path: String,
    /// Input channels of each resnet; on the way up those of `cat(h, skip)`.
    pub resnets: Vec<usize>,
    pub channels: usize,
    /// Behind the resnets: one each or none, but one less in the middle.
    pub attentions: Vec<Attend>,
    /// Ends with a change of size.
    pub resample: bool,
}

/// All blocks in the order they run. `Unet`, `UnetTime` and `UnetContext` walk the same lists, so
/// that number i means the same resnet and the same attention to each of them.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    pub down: Vec<Block>,
    pub mid: Option<Block>,
    /// None in a ControlNet.
    pub up: Vec<Block>,
}

impl Blocks {
    pub(super) fn all(&self) -> impl Iterator<Item = &Block> {
        self.down.iter().chain(&self.mid).chain(&self.up)
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
            block.attentions.iter().enumerate().flat_map(move |(a, attend)| {
                let path =
                    move |t| format!("{}.attentions.{a}.transformer_blocks.{t}.attn2", block.path);
                (0..attend.depth()).map(move |t| (path(t), block.channels))
            })
        })
    }
    /// Channels of every skip connection, in the order they are made.
    pub(super) fn skips(&self) -> Vec<usize> {
        let first = self.down.first().and_then(|block| block.resnets.first()).copied();
        let of_block = |block: &Block| {
            let count = block.resnets.len() + usize::from(block.resample);
            vec![block.channels; count]
        };
        first.into_iter().chain(self.down.iter().flat_map(of_block)).collect()
    }
}

/// Channels and resnets of each level, from the top down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Levels<'a> {
    pub widths: &'a [usize],
    pub resnets: &'a [usize],
}

impl Levels<'_> {
    /// The way down; `attend(block, resnets)` is what stands behind the resnets of a block.
    pub(super) fn down(
        &self,
        attend: impl Fn(usize, usize) -> Result<Vec<Attend>, String>,
    ) -> Result<Vec<Block>, String> {
        let widths = self.widths;
        let block = |i: usize| {
            let mut resnets = vec![widths[i]; self.resnets[i]];
            if let Some(first) = resnets.first_mut() {
                *first = widths[i.saturating_sub(1)];
            }
            Ok(Block {
                path: format!("down_blocks.{i}"),
                attentions: attend(i, resnets.len())?,
                resnets,
                channels: widths[i],
                resample: i + 1 < widths.len(),
            })
        };
        (0..widths.len()).map(block).collect()
    }

    /// The middle.
    pub(super) fn mid(&self, resnets: usize, attentions: Vec<Attend>) -> Block {
        let channels = self.widths[self.widths.len() - 1];
        let (path, resnets) = ("mid_block".into(), vec![channels; resnets]);
        Block { path, resnets, channels, attentions, resample: false }
    }

    /// The way up; `attend(block, resnets)` as on the way down, with blocks counted from below.
    pub(super) fn up(
        &self,
        attend: impl Fn(usize, usize) -> Result<Vec<Attend>, String>,
    ) -> Result<Vec<Block>, String> {
        let widths = self.widths;
        let last = widths.len() - 1;
        let block = |i: usize| {
            let level = last - i;
            // A level has one resnet more on the way up: its last skip is what came into the level.
            let count = self.resnets[level] + 1;
            let resnet = |j: usize| {
                let from = if j == 0 { widths[(level + 1).min(last)] } else { widths[level] };
                let deepest = j + 1 == count;
                let skip = if deepest { widths[level.saturating_sub(1)] } else { widths[level] };
                from + skip
            };
            Ok(Block {
                path: format!("up_blocks.{i}"),
                attentions: attend(i, count)?,
                resnets: (0..count).map(resnet).collect(),
                channels: widths[level],
                resample: level > 0,
            })
        };
        (0..widths.len()).map(block).collect()
    }
}

impl UnetConfig {
    /// The blocks, as `unet_2d_condition.py` builds them.
    pub(super) fn blocks(&self) -> Result<Blocks, String> {
        let levels = self.levels()?;
        let expand = |list: &PerLevel, field: &str| {
            list.expand(levels)
                .map_err(|n| format!("`{field}` has {n} entries for {levels} levels"))
        };
        let heads = self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim);
        let heads = expand(heads, "attention_head_dim")?;
        let layers = expand(&self.layers_per_block, "layers_per_block")?;
        if let Some(n) = layers.iter().find(|n| **n == 0 || **n > MOST_LAYERS) {
            return Err(format!("`layers_per_block` is {n}; from 1 to {MOST_LAYERS} make a UNet"));
        }
        let [down_depths, up_depths] = self.depths(levels)?;
        let net = Levels { widths: &self.block_out_channels, resnets: &layers };
        let last = levels - 1;
        let down = net.down(|i, count| {
            self.behind("down_block_types", &self.down_block_types[i], count, |n| {
                self.attentions(i, heads[i], &down_depths[i], n)
            })
        })?;
        let middle = || self.attentions(last, heads[last], &down_depths[last].first(), 1);
        let mid = match (self.class, self.mid_block_type.as_deref()) {
            (_, None) => None,
            (Class::Unconditional { mid_groups: Some(groups), .. }, _) => {
                Some(net.mid(2, self.with_groups(middle()?, groups)?))
            }
            (Class::Unconditional { mid_groups: None, .. }, _) => Some(net.mid(2, Vec::new())),
            (_, Some("UNetMidBlock2D")) => Some(net.mid(1, Vec::new())),
            (_, Some(_)) => Some(net.mid(2, middle()?)),
        };
        if self.class == Class::ControlNet {
            return Ok(Blocks { down, mid, up: Vec::new() });
        }
        let up = net.up(|i, count| {
            let level = last - i;
            self.behind("up_block_types", &self.up_block_types[i], count, |n| {
                self.attentions(level, heads[level], &up_depths[i], n)
            })
        })?;
        Ok(Blocks { down, mid, up })
    }

    /// The number of levels, if all lists agree on it and their widths divide into groups.
    fn levels(&self) -> Result<usize, String> {
        let (levels, groups) = (self.block_out_channels.len(), self.norm_num_groups);
        let ups = match self.class {
            Class::ControlNet => levels,
            _ => self.up_block_types.len(),
        };
        if levels == 0 || levels > 16 || levels != self.down_block_types.len() || levels != ups {
            return Err(format!(
                "`block_out_channels` has {levels} levels, `down_block_types` {}, `up_block_types` {ups}",
                self.down_block_types.len(),
            ));
        }
        let bad = |c: &&usize| **c == 0 || groups == 0 || !c.is_multiple_of(groups);
        match self.block_out_channels.iter().find(bad) {
            Some(channels) => Err(format!(
                "{channels} channels do not divide into {groups} groups (`norm_num_groups`)"
            )),
            None => Ok(levels),
        }
    }

    /// Transformer blocks of each block, on the way down and on the way up, in the order they run.
    fn depths(&self, levels: usize) -> Result<[Vec<PerLevel>; 2], String> {
        let field = "transformer_layers_per_block";
        let wrong =
            |field: &str, n: usize| format!("`{field}` has {n} entries for {levels} levels");
        let down = self.transformer_layers_per_block.expand(levels).map_err(|n| wrong(field, n))?;
        let up = match &self.reverse_transformer_layers_per_block {
            Some(list) if list.len() == levels => list.clone(),
            Some(list) => return Err(wrong(&format!("reverse_{field}"), list.len())),
            None if down.iter().any(|d| matches!(d, PerLevel::Each(_)))
                && self.class != Class::ControlNet =>
            {
                return Err(format!(
                    "`{field}` has a list for a level, which needs `reverse_{field}` for the way up"
                ));
            }
            None => down.iter().rev().cloned().collect(),
        };
        Ok([down, up])
    }

    /// What stands behind the `count` resnets of a block of the type `kind`, which the list `field` names.
    fn behind(
        &self,
        field: &str,
        kind: &str,
        count: usize,
        attentions: impl FnOnce(usize) -> Result<Vec<Attend>, String>,
    ) -> Result<Vec<Attend>, String> {
        let side = if field.starts_with("down") { "Down" } else { "Up" };
        // An older spelling of the same blocks.
        let name = kind.strip_prefix("UNetRes").unwrap_or(kind);
        let family = name.strip_suffix("Block2D").and_then(|name| name.strip_suffix(side));
        let supported = match self.class {
            Class::Unconditional { .. } => "Attn",
            _ => "CrossAttn",
        };
        match family {
            Some("") => Ok(Vec::new()),
            Some(family) if family == supported => attentions(count),
            _ => Err(format!(
                "`{field}` names {kind}; supported are {supported}{side}Block2D and {side}Block2D"
            )),
        }
    }

    /// `count` attentions of a level: transformers, or in an unconditional UNet attention of pixels.
    fn attentions(
        &self,
        level: usize,
        heads: usize,
        depths: &PerLevel,
        count: usize,
    ) -> Result<Vec<Attend>, String> {
        let (channels, groups) = (self.block_out_channels[level], self.norm_num_groups);
        if let Class::Unconditional { head_channels, .. } = self.class {
            let size = head_channels.unwrap_or(channels);
            return match size > 0 && channels.is_multiple_of(size) {
                true => Ok(vec![Attend::Pixels { heads: channels / size, groups }; count]),
                false => Err(format!(
                    "{channels} channels do not divide into heads of {size} (`attention_head_dim`)"
                )),
            };
        }
        if heads == 0 || !channels.is_multiple_of(heads) {
            return Err(format!(
                "{channels} channels do not divide into {heads} heads (`attention_head_dim`)"
            ));
        }
        let depths = depths.expand(count).map_err(|n| {
            format!("`transformer_layers_per_block` has {n} entries for {count} transformers")
        })?;
        match depths.iter().find(|depth| **depth > MOST_LAYERS) {
            Some(n) => Err(format!("`transformer_layers_per_block` is {n}, at most {MOST_LAYERS}")),
            None => {
                Ok(depths.into_iter().map(|depth| Attend::Transformer { heads, depth }).collect())
            }
        }
    }

    /// The middle's attention, whose norm may have groups of its own.
    fn with_groups(&self, mut attentions: Vec<Attend>, n: usize) -> Result<Vec<Attend>, String> {
        let channels = self.block_out_channels[self.block_out_channels.len() - 1];
        if n == 0 || !channels.is_multiple_of(n) {
            return Err(format!(
                "{channels} channels do not divide into {n} groups (`attn_norm_num_groups`)"
            ));
        }
        for attend in &mut attentions {
            if let Attend::Pixels { groups, .. } = attend {
                *groups = n;
            }
        }
        Ok(attentions)
    }
}

#[cfg(test)]
mod tests {
    use super::super::unet_config::tests::read;
    use super::*;

    fn blocks(extra: &str) -> Blocks {
        read(extra).unwrap().blocks().unwrap()
    }

    #[test]
    fn blocks_are_diffusers() {
        let blocks = blocks(", \"attention_head_dim\": [2, 4]");
        let inputs: Vec<_> = blocks.all().map(|b| b.resnets.clone()).collect();
        let up = [vec![128, 128, 96], vec![96, 64, 64]];
        assert_eq!(
            inputs,
            [vec![32, 32], vec![32, 64], vec![64, 64], up[0].clone(), up[1].clone()]
        );
        let cross: Vec<_> = blocks.cross_attentions().collect();
        assert_eq!(cross.len(), 6);
        assert_eq!(cross[2].0, "mid_block.attentions.0.transformer_blocks.0.attn2");
        assert_eq!(
            blocks.mid.as_ref().unwrap().attentions,
            [Attend::Transformer { heads: 4, depth: 1 }]
        );
        assert_eq!(blocks.resnets().count(), 12);
        assert_eq!(blocks.skips(), [32, 32, 32, 32, 64, 64]);
    }

    #[test]
    fn depths_may_differ_on_the_way_up_and_within_a_level() {
        let depths = |extra: &str| -> Vec<Vec<usize>> {
            let of_block = |b: &Block| b.attentions.iter().map(|a| a.depth()).collect();
            blocks(extra).all().map(of_block).collect()
        };
        let each = ", \"transformer_layers_per_block\": [2, 3]";
        assert_eq!(depths(each), [vec![2, 2], vec![], vec![3], vec![], vec![2; 3]]);
        let up = ", \"reverse_transformer_layers_per_block\": [1, [4, 5, 6]]";
        let nested = ", \"transformer_layers_per_block\": [[1, 2], 3]";
        let found = depths(&format!("{nested}{up}"));
        assert_eq!(found, [vec![1, 2], vec![], vec![3], vec![], vec![4, 5, 6]]);
        let e = read(nested).unwrap_err().to_string();
        assert!(e.contains("needs `reverse_transformer_layers_per_block`"), "{e}");
    }

    #[test]
    fn the_middle_may_be_small_or_absent() {
        let mid = |kind: &str| blocks(&format!(", \"mid_block_type\": {kind}")).mid;
        let small = mid("\"UNetMidBlock2D\"").unwrap();
        assert!(small.resnets == [64] && small.attentions.is_empty());
        assert!(mid("null").is_none());
    }

    #[test]
    fn absurd_numbers_are_refused() {
        let refused = |extra: &str| read(extra).unwrap_err().to_string();
        assert!(refused(", \"layers_per_block\": 1000000000000").contains("from 1 to 256"));
        let depth = ", \"transformer_layers_per_block\": 1000000000000";
        assert!(refused(depth).contains("at most 256"));
    }
}
