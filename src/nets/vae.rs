//! AutoencoderKL (Rombach et al. 2022): what its halves have in common, and the decoder, latents to pictures.
//! Names as in diffusers' `autoencoder_kl.py` and `vae.py`.

use super::pixel_attention::PixelAttention;
use super::resnet::ResnetBlock;
pub use super::vae_config::VaeConfig;
pub use super::vae_encoder::{Posterior, VaeEncoder};
use crate::Result;
use crate::graph::Var;
use crate::nn::{Bias, Conv2d, GroupNorm, Linear, Loader};
use crate::ops::conv2d::Conv;
use crate::ops::pointwise::silu;

/// diffusers gives the autoencoder's norms this ε in code, not in the configuration.
pub(super) const EPS: f64 = 1e-6;

/// The smallest pictures of a half: a resnet, attention, a resnet.
pub(super) struct MidBlock {
    before: ResnetBlock,
    attention: Option<PixelAttention>,
    after: ResnetBlock,
    path: String,
}

impl MidBlock {
    pub(super) fn load(ld: &Loader<'_>, channels: usize, c: &VaeConfig) -> Result<MidBlock> {
        let groups = c.norm_num_groups;
        let resnet =
            |i: usize| ResnetBlock::load(&ld.pp("resnets").pp(i), channels, channels, groups, EPS);
        let attention = || PixelAttention::load(&ld.pp("attentions.0"), channels, 1, groups, EPS);
        Ok(MidBlock {
            before: resnet(0)?,
            attention: c.mid_block_add_attention.then(attention).transpose()?,
            after: resnet(1)?,
            path: ld.path().to_string(),
        })
    }

    pub(super) fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let x = self.before.forward(x, None);
        let x = self.attention.as_ref().map_or(x, |attention| attention.forward(x));
        self.after.forward(x, None).tap(self.path.as_str())
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
    mid_block: MidBlock,
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
        let block = |(i, cout): (usize, &usize)| {
            let (cin, up) = (widths[i.saturating_sub(1)], i + 1 < widths.len());
            UpBlock::load(&decoder.pp("up_blocks").pp(i), cin, *cout, up, c)
        };
        let quant = || ld.linear("post_quant_conv", latents, latents, Bias::Yes);
        Ok(VaeDecoder {
            post_quant_conv: c.use_post_quant_conv.then(quant).transpose()?,
            conv_in: decoder.conv("conv_in", latents, first, 3, Conv::default())?,
            mid_block: MidBlock::load(&decoder.pp("mid_block"), first, c)?,
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
        let x = self.mid_block.forward(self.conv_in.forward(z).tap("decoder.conv_in"));
        let x = self.up_blocks.iter().fold(x, |x, block| block.forward(x));
        self.conv_out.forward(silu(self.conv_norm_out.forward(x)))
    }
}
