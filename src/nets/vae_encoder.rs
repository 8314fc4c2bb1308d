//! The encoder of AutoencoderKL: pictures to latents.

use super::resnet::ResnetBlock;
use super::vae::{EPS, MidBlock};
use super::vae_config::VaeConfig;
use crate::graph::Var;
use crate::nn::{Bias, Conv2d, GroupNorm, Linear, Loader};
use crate::ops::conv2d::{Conv, Pad};
use crate::ops::pointwise::silu;
use crate::{Error, Result};

/// DownEncoderBlock2D: resnets, then half the size.
struct DownBlock {
    resnets: Vec<ResnetBlock>,
    downsampler: Option<Conv2d>,
    path: String,
}

impl DownBlock {
    fn load(
        ld: &Loader<'_>,
        cin: usize,
        cout: usize,
        down: bool,
        c: &VaeConfig,
    ) -> Result<DownBlock> {
        let resnet = |i: usize| {
            let cin = if i == 0 { cin } else { cout };
            ResnetBlock::load(&ld.pp("resnets").pp(i), cin, cout, c.norm_num_groups, EPS)
        };
        let half = Conv { stride: 2, pad: Pad::End, ..Conv::default() };
        let downsampler = || ld.conv("downsamplers.0.conv", cout, cout, 3, half);
        Ok(DownBlock {
            resnets: (0..c.layers_per_block).map(resnet).collect::<Result<_>>()?,
            downsampler: down.then(downsampler).transpose()?,
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let x = self.resnets.iter().fold(x, |x, resnet| resnet.forward(x, None));
        let x = self.downsampler.as_ref().map_or(x, |down| down.forward(x));
        x.tap(self.path.as_str())
    }
}

/// The encoder on the GPU.
pub struct VaeEncoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    quant_conv: Option<Linear>,
}

impl VaeEncoder {
    /// Loads the encoder's tensors; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, c: &VaeConfig) -> Result<VaeEncoder> {
        let (moments, groups, encoder) =
            (2 * c.latent_channels, c.norm_num_groups, ld.pp("encoder"));
        let widths = &c.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let block = |(i, cout): (usize, &usize)| {
            let (cin, down) = (widths[i.saturating_sub(1)], i + 1 < widths.len());
            DownBlock::load(&encoder.pp("down_blocks").pp(i), cin, *cout, down, c)
        };
        let quant = || ld.linear("quant_conv", moments, moments, Bias::Yes);
        Ok(VaeEncoder {
            conv_in: encoder.conv("conv_in", c.in_channels, first, 3, Conv::default())?,
            down_blocks: widths.iter().enumerate().map(block).collect::<Result<_>>()?,
            mid_block: MidBlock::load(&encoder.pp("mid_block"), last, c)?,
            conv_norm_out: encoder.group_norm("conv_norm_out", groups, last, EPS)?,
            conv_out: encoder.conv("conv_out", last, moments, 3, Conv::default())?,
            quant_conv: c.use_quant_conv.then(quant).transpose()?,
        })
    }

    /// Picture `[B, H, W, 3]` in −1..1 → moments `[B, h, w, 2·4]`: the mean of each number of the latent,
    /// then the logarithms of their variances. [`Posterior`] takes them apart.
    #[track_caller]
    pub fn forward<'g>(&self, image: Var<'g>) -> Var<'g> {
        let x = self.conv_in.forward(image).tap("encoder.conv_in");
        let x = self.down_blocks.iter().fold(x, |x, block| block.forward(x));
        let x = self.mid_block.forward(x);
        let moments = self.conv_out.forward(silu(self.conv_norm_out.forward(x)));
        self.quant_conv.as_ref().map_or(moments, |conv| conv.forward(moments))
    }
}

/// The latents that a picture may stand for: a normal distribution for each number (Kingma and Welling
/// 2013). Not scaled; see [`VaeConfig::scaled`].
#[derive(Clone, Debug, PartialEq)]
pub struct Posterior {
    /// `[B, h, w, C]`
    pub shape: [usize; 4],
    /// The likeliest latent.
    pub mean: Vec<f32>,
    /// Logarithm of the variance, from −30 to 20 as in diffusers.
    pub logvar: Vec<f32>,
}

impl Posterior {
    /// From what the encoder has computed, `[B, h, w, 2C]`.
    ///
    /// # Errors
    /// `Usage` where the shape has an odd number of channels or another number of values.
    pub fn new([b, h, w, c2]: [usize; 4], moments: &[f32]) -> Result<Posterior> {
        let shape = [b, h, w, c2 / 2];
        if c2 % 2 != 0 || c2 == 0 || moments.len() != b * h * w * c2 {
            return Err(Error::Usage(format!(
                "{} moments of shape [{b}, {h}, {w}, {c2}]: a mean and a variance are needed for each number \
                 of the latent",
                moments.len()
            )));
        }
        let pixels = || moments.chunks_exact(c2);
        Ok(Posterior {
            shape,
            mean: pixels().flat_map(|m| &m[..c2 / 2]).copied().collect(),
            logvar: pixels().flat_map(|m| &m[c2 / 2..]).map(|v| v.clamp(-30.0, 20.0)).collect(),
        })
    }

    /// One latent of the distribution: `mean + exp(logvar / 2) · noise`, noise `[B, h, w, C]` standard
    /// normal.
    ///
    /// # Errors
    /// `Usage` for another number of values.
    pub fn sample(&self, noise: &[f32]) -> Result<Vec<f32>> {
        if noise.len() != self.mean.len() {
            let (got, shape) = (noise.len(), self.shape);
            return Err(Error::Usage(format!("{got} numbers of noise for latents {shape:?}")));
        }
        let one = |((m, l), n): ((&f32, &f32), &f32)| m + (0.5 * l).exp() * n;
        Ok(self.mean.iter().zip(&self.logvar).zip(noise).map(one).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_the_mean_and_so_many_deviations() {
        // Two pixels of two channels; variances 1, 4, and one beyond each end.
        let ln4 = 4f32.ln();
        let moments = [1.0, 2.0, 0.0, ln4, 3.0, 4.0, -1e3, 1e3];
        let p = Posterior::new([1, 1, 2, 4], &moments).unwrap();
        assert_eq!((p.shape, &p.mean[..]), ([1, 1, 2, 2], &[1.0, 2.0, 3.0, 4.0][..]));
        assert_eq!(p.logvar, [0.0, ln4, -30.0, 20.0]);
        let z = p.sample(&[1.0, -0.5, 1.0, 0.0]).unwrap();
        assert_eq!(&z[..2], [2.0, 1.0]);
        assert!((z[2] - 3.0).abs() < 1e-6 && z[3] == 4.0, "{z:?}");
        assert!(p.sample(&[0.0]).is_err());
        assert!(Posterior::new([1, 1, 1, 3], &[0.0; 3]).is_err());
        assert!(Posterior::new([1, 1, 1, 4], &[0.0; 3]).is_err());
    }
}
