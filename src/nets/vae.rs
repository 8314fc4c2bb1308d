//! The decoder of AutoencoderKL (Rombach et al. 2022): latents to pictures. Names as in diffusers'
//! `autoencoder_kl.py` and `vae.py`.

use std::path::Path;

use serde::Deserialize;

use super::config::{self, wrong};
use super::resnet::ResnetBlock;
use crate::Result;
use crate::graph::Var;
use crate::nn::{Bias, Conv2d, GroupNorm, Linear, Loader};
use crate::ops::attention::{Attention, Mask, attention};
use crate::ops::conv2d::Conv;
use crate::ops::pointwise::silu;

/// `config.json` of an AutoencoderKL. Absent fields have diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
pub struct VaeConfig {
    #[serde(default = "defaults::latents")]
    pub latent_channels: usize,
    #[serde(default = "defaults::colours")]
    pub out_channels: usize,
    pub block_out_channels: Vec<usize>,
    #[serde(default = "defaults::layers")]
    layers_per_block: usize,
    #[serde(default = "defaults::groups")]
    norm_num_groups: usize,
    up_block_types: Vec<String>,
    #[serde(default = "defaults::yes")]
    mid_block_add_attention: bool,
    #[serde(default = "defaults::yes")]
    use_post_quant_conv: bool,
    /// A latent is divided by this before it is decoded; the caller does it.
    #[serde(default = "defaults::scaling")]
    pub scaling_factor: f64,
    /// Added after the division; the caller does it.
    #[serde(default)]
    pub shift_factor: Option<f64>,
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

/// diffusers gives the autoencoder's norms this ε in code, not in the configuration.
const EPS: f64 = 1e-6;

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
        let config: VaeConfig = config::parse(fields, path, "the VAE decoder", &rules)?;
        let (widths, groups) = (&config.block_out_channels, config.norm_num_groups);
        if let Some(other) = config.up_block_types.iter().find(|t| *t != "UpDecoderBlock2D") {
            let why = format!("`up_block_types` names {other}; supported is UpDecoderBlock2D");
            return Err(wrong(path, why));
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
}

/// Attention of every pixel to every pixel, one head as wide as the stream.
struct AttentionBlock {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    how: Attention<'static>,
    path: String,
}

impl AttentionBlock {
    /// Files written before diffusers 0.12 say query, key, value and proj_attn.
    fn load(ld: &Loader<'_>, channels: usize, groups: usize) -> Result<AttentionBlock> {
        let names = match ld.contains("query.weight") {
            true => ["query", "key", "value", "proj_attn"],
            false => ["to_q", "to_k", "to_v", "to_out.0"],
        };
        let [to_q, to_k, to_v, to_out] =
            names.map(|name| ld.linear(name, channels, channels, Bias::Yes));
        let scale = 1.0 / (channels as f32).sqrt();
        Ok(AttentionBlock {
            group_norm: ld.group_norm("group_norm", groups, channels, EPS)?,
            to_q: to_q?,
            to_k: to_k?,
            to_v: to_v?,
            to_out: to_out?,
            how: Attention { heads: 1, kv_heads: 1, scale, cap: None, mask: Mask::None },
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let tokens = [x.dim(0), x.dim(1) * x.dim(2), x.dim(3)];
        let h = self.group_norm.forward(x).reshape(tokens);
        let (q, k, v) = (self.to_q.forward(h), self.to_k.forward(h), self.to_v.forward(h));
        let h = attention(q, k, v, self.how).reshape(x.shape());
        (x + self.to_out.forward(h)).tap(self.path.as_str())
    }
}

struct UpBlock {
    resnets: Vec<ResnetBlock>,
    /// Nearest neighbour to twice the size, fused into the convolution after it.
    upsampler: Option<Conv2d>,
    path: String,
}

impl UpBlock {
    fn load(ld: &Loader<'_>, cin: usize, cout: usize, up: bool, c: &VaeConfig) -> Result<UpBlock> {
        let resnet = |i: usize| {
            let cin = if i == 0 { cin } else { cout };
            ResnetBlock::load(&ld.pp("resnets").pp(i), cin, cout, c.norm_num_groups, EPS)
        };
        let twice = Conv { upsample: true, ..Conv::default() };
        let upsampler = || ld.conv("upsamplers.0.conv", cout, cout, 3, twice);
        Ok(UpBlock {
            resnets: (0..c.layers_per_block + 1).map(resnet).collect::<Result<_>>()?,
            upsampler: up.then(upsampler).transpose()?,
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let x = self.resnets.iter().fold(x, |x, resnet| resnet.forward(x, None));
        let x = self.upsampler.as_ref().map_or(x, |up| up.forward(x));
        x.tap(self.path.as_str())
    }
}

/// The decoder on the GPU.
pub struct VaeDecoder {
    post_quant_conv: Option<Linear>,
    conv_in: Conv2d,
    mid_before: ResnetBlock,
    mid_attention: Option<AttentionBlock>,
    mid_after: ResnetBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl VaeDecoder {
    /// Loads the decoder's tensors; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, c: &VaeConfig) -> Result<VaeDecoder> {
        let (latents, groups, decoder) = (c.latent_channels, c.norm_num_groups, ld.pp("decoder"));
        let widths: Vec<usize> = c.block_out_channels.iter().rev().copied().collect();
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let mid = decoder.pp("mid_block");
        let resnet =
            |i: usize| ResnetBlock::load(&mid.pp("resnets").pp(i), first, first, groups, EPS);
        let attention = || AttentionBlock::load(&mid.pp("attentions.0"), first, groups);
        let block = |(i, cout): (usize, &usize)| {
            let (cin, up) = (widths[i.saturating_sub(1)], i + 1 < widths.len());
            UpBlock::load(&decoder.pp("up_blocks").pp(i), cin, *cout, up, c)
        };
        let quant = || ld.linear("post_quant_conv", latents, latents, Bias::Yes);
        Ok(VaeDecoder {
            post_quant_conv: c.use_post_quant_conv.then(quant).transpose()?,
            conv_in: decoder.conv("conv_in", latents, first, 3, Conv::default())?,
            mid_before: resnet(0)?,
            mid_attention: c.mid_block_add_attention.then(attention).transpose()?,
            mid_after: resnet(1)?,
            up_blocks: widths.iter().enumerate().map(block).collect::<Result<_>>()?,
            conv_norm_out: decoder.group_norm("conv_norm_out", groups, last, EPS)?,
            conv_out: decoder.conv("conv_out", last, c.out_channels, 3, Conv::default())?,
        })
    }

    /// Latents `[B, h, w, 4]`, already divided by the scaling factor, → picture `[B, H, W, 3]` in
    /// about −1..1.
    #[track_caller]
    pub fn forward<'g>(&self, z: Var<'g>) -> Var<'g> {
        let z = self.post_quant_conv.as_ref().map_or(z, |conv| conv.forward(z));
        let x = self.mid_before.forward(self.conv_in.forward(z).tap("decoder.conv_in"), None);
        let x = self.mid_attention.as_ref().map_or(x, |attention| attention.forward(x));
        let x = self.mid_after.forward(x, None).tap("decoder.mid_block");
        let x = self.up_blocks.iter().fold(x, |x, block| block.forward(x));
        self.conv_out.forward(silu(self.conv_norm_out.forward(x)))
    }
}
