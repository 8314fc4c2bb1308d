//! UNet2DConditionModel, the denoiser of Stable Diffusion 1.x and 2.x (Rombach et al. 2022). Names
//! as in diffusers' `unet_2d_condition.py`, `transformer_2d.py` and `attention.py`.

use super::resnet::{ResnetBlock, Time};
pub use super::unet_config::UnetConfig;
use super::unet_config::{Block, Transformers};
use super::unet_hoisted::blocks;
pub use super::unet_hoisted::{UnetContext, UnetTime};
use crate::Result;
use crate::graph::Var;
use crate::nn::{Bias, Conv2d, GroupNorm, LayerNorm, Linear, Loader};
use crate::ops::attention::{Attention, Mask, attention};
use crate::ops::concat::cat;
use crate::ops::conv2d::Conv;
use crate::ops::pointwise::{geglu, silu};

/// Transformer2DModel gives its group norm this ε in code; `norm_eps` is the resnets'.
const TRANSFORMER_EPS: f64 = 1e-6;
/// The ε of its layer norms, torch's default.
const LAYER_EPS: f64 = 1e-5;

struct SelfAttention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    how: Attention<'static>,
    path: String,
}

/// Queries from the picture; keys and values come from [`UnetContext`].
struct CrossAttention {
    to_q: Linear,
    to_out: Linear,
    how: Attention<'static>,
    path: String,
}

fn heads(channels: usize, heads: usize) -> Attention<'static> {
    let scale = 1.0 / ((channels / heads) as f32).sqrt();
    Attention { heads, kv_heads: heads, scale, cap: None, mask: Mask::None }
}

impl SelfAttention {
    fn load(ld: &Loader<'_>, c: usize, how: Attention<'static>) -> Result<SelfAttention> {
        Ok(SelfAttention {
            to_q: ld.linear("to_q", c, c, Bias::No)?,
            to_k: ld.linear("to_k", c, c, Bias::No)?,
            to_v: ld.linear("to_v", c, c, Bias::No)?,
            to_out: ld.linear("to_out.0", c, c, Bias::Yes)?,
            how,
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let (q, k, v) = (self.to_q.forward(x), self.to_k.forward(x), self.to_v.forward(x));
        self.to_out.forward(attention(q, k, v, self.how)).tap(self.path.as_str())
    }
}

impl CrossAttention {
    fn load(ld: &Loader<'_>, c: usize, how: Attention<'static>) -> Result<CrossAttention> {
        let (to_q, to_out) =
            (ld.linear("to_q", c, c, Bias::No)?, ld.linear("to_out.0", c, c, Bias::Yes)?);
        Ok(CrossAttention { to_q, to_out, how, path: ld.path().to_string() })
    }

    fn forward<'g>(&self, x: Var<'g>, (k, v): (Var<'g>, Var<'g>)) -> Var<'g> {
        let q = self.to_q.forward(x);
        self.to_out.forward(attention(q, k, v, self.how)).tap(self.path.as_str())
    }
}

/// BasicTransformerBlock: self attention, cross attention, GEGLU (Shazeer 2020), each after a norm.
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: SelfAttention,
    norm2: LayerNorm,
    attn2: CrossAttention,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
    path: String,
}

impl TransformerBlock {
    fn load(ld: &Loader<'_>, c: usize, n: usize) -> Result<TransformerBlock> {
        let net = ld.pp("ff.net");
        Ok(TransformerBlock {
            norm1: ld.layer_norm("norm1", c, LAYER_EPS)?,
            attn1: SelfAttention::load(&ld.pp("attn1"), c, heads(c, n))?,
            norm2: ld.layer_norm("norm2", c, LAYER_EPS)?,
            attn2: CrossAttention::load(&ld.pp("attn2"), c, heads(c, n))?,
            norm3: ld.layer_norm("norm3", c, LAYER_EPS)?,
            ff_in: net.linear("0.proj", 8 * c, c, Bias::Yes)?,
            ff_out: net.linear("2", c, 4 * c, Bias::Yes)?,
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>, kv: (Var<'g>, Var<'g>)) -> Var<'g> {
        let x = x + self.attn1.forward(self.norm1.forward(x));
        let x = x + self.attn2.forward(self.norm2.forward(x), kv);
        let h = geglu(self.ff_in.forward(self.norm3.forward(x)));
        (x + self.ff_out.forward(h)).tap(self.path.as_str())
    }
}

/// Transformer2DModel: pixels as tokens. `proj_in` and `proj_out` are 1×1 convolutions or linear
/// layers (`use_linear_projection`), which are the same on this layout.
struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Linear,
    path: String,
}

impl Transformer {
    fn load(ld: &Loader<'_>, c: usize, groups: usize, t: Transformers) -> Result<Transformer> {
        let block = |i| TransformerBlock::load(&ld.pp("transformer_blocks").pp(i), c, t.heads);
        Ok(Transformer {
            norm: ld.group_norm("norm", groups, c, TRANSFORMER_EPS)?,
            proj_in: ld.linear("proj_in", c, c, Bias::Yes)?,
            transformer_blocks: (0..t.depth).map(block).collect::<Result<_>>()?,
            proj_out: ld.linear("proj_out", c, c, Bias::Yes)?,
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>, kv: &[(Var<'g>, Var<'g>)]) -> Var<'g> {
        let tokens = [x.dim(0), x.dim(1) * x.dim(2), x.dim(3)];
        let h = self.proj_in.forward(self.norm.forward(x)).reshape(tokens);
        let blocks = self.transformer_blocks.iter().zip(kv);
        let h = blocks.fold(h, |h, (block, kv)| block.forward(h, *kv)).reshape(x.shape());
        (x + self.proj_out.forward(h)).tap(self.path.as_str())
    }
}

/// Any block of the U: resnets, a transformer behind each where it has them, and a change of size.
struct UBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer>,
    resample: Option<Conv2d>,
    /// Path of the convolution that changes the size, for its tap.
    resample_path: String,
    path: String,
    /// Number of its first resnet and of its first cross attention among the whole UNet's.
    first: (usize, usize),
}

/// What is the same for the whole UNet during a step.
struct Step<'g, 'a> {
    time: &'a [Var<'g>],
    row: Var<'g>,
    kv: &'a [(Var<'g>, Var<'g>)],
}

impl UBlock {
    fn load(
        root: &Loader<'_>,
        block: &Block,
        c: &UnetConfig,
        next: &mut (usize, usize),
        resample: (&str, Conv),
    ) -> Result<UBlock> {
        let (ld, channels, groups) = (root.pp(&block.path), block.channels, c.norm_num_groups);
        let resnet = |(i, cin): (usize, &usize)| {
            ResnetBlock::load(&ld.pp("resnets").pp(i), *cin, channels, groups, c.norm_eps)
        };
        let transformer = |i, t| Transformer::load(&ld.pp("attentions").pp(i), channels, groups, t);
        let (name, conv) = resample;
        let conv = || ld.conv(&format!("{name}.conv"), channels, channels, 3, conv);
        let attentions = block.transformers.into_iter();
        let attentions = attentions.flat_map(|t| (0..block.attentions).map(move |i| (i, t)));
        let first = *next;
        next.0 += block.resnets.len();
        next.1 += block.attentions * block.transformers.map_or(0, |t| t.depth);
        Ok(UBlock {
            resnets: block.resnets.iter().enumerate().map(resnet).collect::<Result<_>>()?,
            attentions: attentions.map(|(i, t)| transformer(i, t)).collect::<Result<_>>()?,
            resample: block.resample.then(conv).transpose()?,
            resample_path: format!("{}.{name}", block.path),
            path: block.path.clone(),
            first,
        })
    }

    fn resnet<'g>(&self, i: usize, x: Var<'g>, step: &Step<'g, '_>) -> Var<'g> {
        let time = Time { table: step.time[self.first.0 + i], row: step.row };
        self.resnets[i].forward(x, Some(time))
    }

    /// The transformer behind resnet `i`, if this block has one there.
    fn attend<'g>(&self, i: usize, x: Var<'g>, step: &Step<'g, '_>) -> Var<'g> {
        let Some(transformer) = self.attentions.get(i) else { return x };
        let depth = transformer.transformer_blocks.len();
        transformer.forward(x, &step.kv[self.first.1 + i * depth..][..depth])
    }

    fn resample<'g>(&self, x: Var<'g>) -> Option<Var<'g>> {
        let conv = self.resample.as_ref()?;
        Some(conv.forward(x).tap(self.resample_path.as_str()))
    }

    fn down<'g>(&self, mut x: Var<'g>, step: &Step<'g, '_>, skips: &mut Vec<Var<'g>>) -> Var<'g> {
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

    fn middle<'g>(&self, x: Var<'g>, step: &Step<'g, '_>) -> Var<'g> {
        let x = self.attend(0, self.resnet(0, x, step), step);
        self.resnet(1, x, step).tap(self.path.as_str())
    }

    fn up<'g>(&self, mut x: Var<'g>, step: &Step<'g, '_>, skips: &mut Vec<Var<'g>>) -> Var<'g> {
        for i in 0..self.resnets.len() {
            let skip = skips.pop().unwrap_or(x);
            x = self.attend(i, self.resnet(i, cat(x, skip), step), step);
        }
        self.resample(x).unwrap_or(x).tap(self.path.as_str())
    }
}

/// The UNet on the GPU, without what [`UnetTime`] and [`UnetContext`] hold.
pub struct Unet {
    conv_in: Conv2d,
    down_blocks: Vec<UBlock>,
    mid_block: UBlock,
    up_blocks: Vec<UBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UnetConfig,
    /// Tables and pairs of keys and values that a step needs.
    needs: (usize, usize),
}

impl Unet {
    /// Loads every tensor that is used in each step; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, config: &UnetConfig) -> Result<Unet> {
        let c = config;
        let (blocks, first, same) = (blocks(c)?, c.block_out_channels[0], Conv::default());
        let half = ("downsamplers.0", Conv { stride: 2, ..same });
        let twice = ("upsamplers.0", Conv { upsample: true, ..same });
        let conv_in = ld.conv("conv_in", c.in_channels, first, 3, same)?;
        let mut next = (0, 0);
        let mut load = |block: &Block, resample| UBlock::load(ld, block, c, &mut next, resample);
        let down_blocks = blocks.down.iter().map(|b| load(b, half)).collect::<Result<_>>()?;
        let mid_block = load(&blocks.mid, half)?;
        let up_blocks = blocks.up.iter().map(|b| load(b, twice)).collect::<Result<_>>()?;
        Ok(Unet {
            conv_in,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out: ld.group_norm("conv_norm_out", c.norm_num_groups, first, c.norm_eps)?,
            conv_out: ld.conv("conv_out", first, c.out_channels, 3, same)?,
            config: config.clone(),
            needs: next,
        })
    }
    /// The configuration it was built from.
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// One prediction: latents `x [B, h, w, in_channels]` at step `row` (u32 `[B]`) of the tables that
    /// [`UnetTime::table`] made, with the prompts' keys and values from
    /// [`UnetContext::keys_values`], → `[B, h, w, out_channels]`: noise, or velocity if the model was
    /// trained so.
    #[track_caller]
    pub fn forward<'g>(
        &self,
        x: Var<'g>,
        time: &[Var<'g>],
        row: Var<'g>,
        kv: &[(Var<'g>, Var<'g>)],
    ) -> Var<'g> {
        if let Err(error) = self.config.check_size(x.dim(1), x.dim(2)) {
            return x.graph().invalid(error.to_string());
        }
        if (time.len(), kv.len()) != self.needs {
            let (tables, pairs) = self.needs;
            return x.graph().invalid(format!(
                "{} time tables and {} pairs of keys and values, this UNet takes {tables} and {pairs}",
                time.len(),
                kv.len()
            ));
        }
        let step = Step { time, row, kv };
        let x = self.conv_in.forward(x).tap("conv_in");
        let mut skips = vec![x];
        let x = self.down_blocks.iter().fold(x, |x, block| block.down(x, &step, &mut skips));
        let x = self.mid_block.middle(x, &step);
        let x = self.up_blocks.iter().fold(x, |x, block| block.up(x, &step, &mut skips));
        self.conv_out.forward(silu(self.conv_norm_out.forward(x)))
    }
}
