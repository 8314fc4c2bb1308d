//! A block of a UNet on the GPU.

use std::ops::Range;

use super::pixel_attention::PixelAttention;
use super::resnet::{ResnetBlock, Time};
use super::transformer::Transformer;
use super::unet_config::UnetConfig;
use super::unet_layout::{Attend, Block};
use crate::Result;
use crate::graph::Var;
use crate::nn::{Conv2d, Loader};
use crate::ops::concat::cat;
use crate::ops::conv2d::{Conv, Pad};

/// What stands behind a resnet.
enum Attention {
    /// With the numbers of its cross attentions among the whole net's.
    Transformer(Transformer, Range<usize>),
    Pixels(PixelAttention),
}

impl Attention {
    /// `next` is the number of the next cross attention.
    fn load(
        ld: &Loader<'_>,
        channels: usize,
        c: &UnetConfig,
        attend: Attend,
        next: &mut usize,
    ) -> Result<Attention> {
        match attend {
            Attend::Transformer { heads, depth } => {
                let first = std::mem::replace(next, *next + depth);
                let net = Transformer::load(ld, channels, c.norm_num_groups, (heads, depth))?;
                Ok(Attention::Transformer(net, first..*next))
            }
            Attend::Pixels { heads, groups } => {
                let net = PixelAttention::load(ld, channels, heads, groups, c.norm_eps)?;
                Ok(Attention::Pixels(net))
            }
        }
    }
}

/// Any block of the U: resnets, an attention behind each where it has them, and a change of size.
pub(super) struct UBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Attention>,
    resample: Option<Conv2d>,
    /// Path of the convolution that changes the size, for its tap.
    resample_path: String,
    path: String,
    /// Number of its first resnet among the whole net's.
    first: usize,
}

/// What is the same for the whole net during a step.
pub(super) struct Step<'g, 'a> {
    pub time: &'a [Var<'g>],
    pub row: Var<'g>,
    pub kv: &'a [(Var<'g>, Var<'g>)],
}

impl Step<'_, '_> {
    /// What is wrong where a net needs other numbers of tables and of pairs of keys and values.
    pub(super) fn check(&self, net: &str, (tables, pairs): (usize, usize)) -> Result<(), String> {
        if (self.time.len(), self.kv.len()) == (tables, pairs) {
            return Ok(());
        }
        Err(format!(
            "{} time tables and {} pairs of keys and values, this {net} takes {tables} and {pairs}",
            self.time.len(),
            self.kv.len()
        ))
    }
}

/// Loads the blocks of a net in the order they run.
pub(super) struct BlockLoader<'a> {
    pub root: &'a Loader<'a>,
    pub config: &'a UnetConfig,
    /// Numbers of the next resnet and of the next cross attention; in the end how many there are.
    pub next: (usize, usize),
}

impl BlockLoader<'_> {
    /// A block of the way down or of the middle.
    pub(super) fn down(&mut self, block: &Block) -> Result<UBlock> {
        let pad = if self.config.downsample_padding == 0 { Pad::End } else { Pad::Same };
        self.load(block, "downsamplers.0", Conv { stride: 2, pad, ..Conv::default() })
    }
    /// A block of the way up.
    pub(super) fn up(&mut self, block: &Block) -> Result<UBlock> {
        self.load(block, "upsamplers.0", Conv { upsample: true, ..Conv::default() })
    }

    fn load(&mut self, block: &Block, name: &str, conv: Conv) -> Result<UBlock> {
        let (ld, channels, c) = (self.root.pp(&block.path), block.channels, self.config);
        let resnet = |(i, cin): (usize, &usize)| {
            let ld = ld.pp("resnets").pp(i);
            ResnetBlock::load(&ld, *cin, channels, c.norm_num_groups, c.norm_eps)
        };
        let (first, next) = (self.next.0, &mut self.next.1);
        self.next.0 += block.resnets.len();
        let attention = |(i, attend): (usize, &Attend)| {
            Attention::load(&ld.pp("attentions").pp(i), channels, c, *attend, next)
        };
        let resample = || ld.conv(&format!("{name}.conv"), channels, channels, 3, conv);
        Ok(UBlock {
            resnets: block.resnets.iter().enumerate().map(resnet).collect::<Result<_>>()?,
            attentions: block
                .attentions
                .iter()
                .enumerate()
                .map(attention)
                .collect::<Result<_>>()?,
            resample: block.resample.then(resample).transpose()?,
            resample_path: format!("{}.{name}", block.path),
            path: block.path.clone(),
            first,
        })
    }
}

impl UBlock {
    fn resnet<'g>(&self, i: usize, x: Var<'g>, step: &Step<'g, '_>) -> Var<'g> {
        let time = Time { table: step.time[self.first + i], row: step.row };
        self.resnets[i].forward(x, Some(time))
    }

    /// The attention behind resnet `i`, if this block has one there.
    fn attend<'g>(&self, i: usize, x: Var<'g>, step: &Step<'g, '_>) -> Var<'g> {
        match self.attentions.get(i) {
            Some(Attention::Transformer(net, pairs)) => net.forward(x, &step.kv[pairs.clone()]),
            Some(Attention::Pixels(net)) => net.forward(x),
            None => x,
        }
    }

    fn resample<'g>(&self, x: Var<'g>) -> Option<Var<'g>> {
        let conv = self.resample.as_ref()?;
        Some(conv.forward(x).tap(self.resample_path.as_str()))
    }

    /// The way down; pushes what the way up will read.
    pub(super) fn down<'g>(
        &self,
        mut x: Var<'g>,
        step: &Step<'g, '_>,
        skips: &mut Vec<Var<'g>>,
    ) -> Var<'g> {
        for i in 0..self.resnets.len() {
            x = self.attend(i, self.resnet(i, x, step), step);
            skips.push(x);
        }
        if let Some(half) = self.resample(x) {
            skips.push(half);
            x = half;
        }
        x.tap(self.path.as_str())
    }

    /// The middle: attention between the resnets.
    pub(super) fn middle<'g>(&self, mut x: Var<'g>, step: &Step<'g, '_>) -> Var<'g> {
        for i in 0..self.resnets.len() {
            x = self.attend(i, self.resnet(i, x, step), step);
        }
        x.tap(self.path.as_str())
    }

    /// The way up; pops what the way down has pushed.
    pub(super) fn up<'g>(
        &self,
        mut x: Var<'g>,
        step: &Step<'g, '_>,
        skips: &mut Vec<Var<'g>>,
    ) -> Var<'g> {
        for i in 0..self.resnets.len() {
            let skip = skips.pop().unwrap_or(x);
            x = self.attend(i, self.resnet(i, cat(x, skip), step), step);
        }
        self.resample(x).unwrap_or(x).tap(self.path.as_str())
    }
}
