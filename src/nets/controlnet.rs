//! ControlNetModel (Zhang et al. 2023): a copy of a UNet's way down that sees a picture and adds to the
//! UNet's skip connections. Names as in diffusers' `controlnet.py`.

use std::path::Path;

use serde::Deserialize;

use super::config::{self, Rule, wrong};
use super::unet::Residuals;
use super::unet_block::{BlockLoader, Step, UBlock};
use super::unet_config::{Class, UnetConfig};
use super::unet_hoisted::blocks;
use crate::graph::Var;
use crate::nn::{Bias, Conv2d, Linear, Loader};
use crate::ops::conv2d::Conv;
use crate::ops::pointwise::silu;
use crate::{Error, Result};

/// `config.json` of a ControlNetModel. Absent fields have diffusers' defaults.
#[derive(Clone, Debug)]
pub struct ControlNetConfig {
    /// The UNet that it is the way down of: what [`UnetTime`](super::unet::UnetTime) and
    /// [`UnetContext`](super::unet::UnetContext) load from this checkpoint.
    pub unet: UnetConfig,
    /// Channels of the picture.
    pub conditioning_channels: usize,
    /// Channels on the picture's way to the size of the latents; each but the first halves it.
    embedding_channels: Vec<usize>,
}

/// Fields that change the architecture, with the values that are built here.
const RULES: [Rule; 15] = [
    ("_class_name", "\"ControlNetModel\""),
    ("act_fn", "\"silu\""),
    ("addition_embed_type", "null|\"text_time\""),
    ("class_embed_type", "null"),
    ("controlnet_conditioning_channel_order", "\"rgb\""),
    ("downsample_padding", "1|0"),
    ("encoder_hid_dim", "null"),
    ("encoder_hid_dim_type", "null"),
    ("global_pool_conditions", "false"),
    ("mid_block_scale_factor", "1|1.0"),
    ("mid_block_type", "\"UNetMidBlock2DCrossAttn\"|\"UNetMidBlock2D\""),
    ("num_class_embeds", "null"),
    ("only_cross_attention", "false"),
    ("resnet_time_scale_shift", "\"default\""),
    ("time_cond_proj_dim", "null"),
];

impl ControlNetConfig {
    /// Reads `config.json` of a ControlNet's folder (or a file of that form).
    ///
    /// # Errors
    /// `Model` naming the field and its value where the architecture is not one that is built here.
    pub fn read(path: impl AsRef<Path>) -> Result<ControlNetConfig> {
        let (source, fields) = config::fields(path.as_ref())?;
        ControlNetConfig::from_value(&fields, &source)
    }
    /// As [`ControlNetConfig::read`], from what the file holds; `source` is its name in messages.
    pub fn from_value(fields: &serde_json::Value, source: &Path) -> Result<ControlNetConfig> {
        #[derive(Deserialize)]
        struct Own {
            #[serde(default)]
            conditioning_channels: Option<usize>,
            #[serde(default)]
            conditioning_embedding_out_channels: Option<Vec<usize>>,
        }
        let unet = UnetConfig::parse(fields, source, "the ControlNet", &RULES, Class::ControlNet)?;
        let own = Own::deserialize(fields)
            .map_err(|e| Error::Model(format!("{}: {e}", source.display())))?;
        let channels = own.conditioning_embedding_out_channels;
        let embedding_channels = channels.unwrap_or_else(|| vec![16, 32, 96, 256]);
        if embedding_channels.is_empty() || embedding_channels.len() > 16 {
            let why = "`conditioning_embedding_out_channels` takes from 1 to 16 numbers";
            return Err(wrong(source, why));
        }
        let conditioning_channels = own.conditioning_channels.unwrap_or(3);
        Ok(ControlNetConfig { unet, conditioning_channels, embedding_channels })
    }

    /// Pixels of the picture for one of the latent, along each side.
    pub fn scale(&self) -> usize {
        1 << (self.embedding_channels.len() - 1)
    }
}

/// The picture on its way to the size of the latents. It is the same in every step, so this is a net of
/// its own, whose weights need not stay resident.
pub struct ControlPicture {
    conv_in: Conv2d,
    blocks: Vec<Conv2d>,
    conv_out: Conv2d,
}

impl ControlPicture {
    /// Loads `controlnet_cond_embedding`; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, config: &ControlNetConfig) -> Result<ControlPicture> {
        let (ld, channels) = (ld.pp("controlnet_cond_embedding"), &config.embedding_channels);
        let (same, half) = (Conv::default(), Conv { stride: 2, ..Conv::default() });
        let mut blocks = Vec::new();
        for (i, pair) in channels.windows(2).enumerate() {
            let at = ld.pp("blocks");
            blocks.push(at.conv(&format!("{}", 2 * i), pair[0], pair[0], 3, same)?);
            blocks.push(at.conv(&format!("{}", 2 * i + 1), pair[0], pair[1], 3, half)?);
        }
        let (last, width) = (channels[channels.len() - 1], config.unet.block_out_channels[0]);
        Ok(ControlPicture {
            conv_in: ld.conv("conv_in", config.conditioning_channels, channels[0], 3, same)?,
            blocks,
            conv_out: ld.conv("conv_out", last, width, 3, same)?,
        })
    }

    /// A picture `[B, H, W, 3]` in 0..1 → `[B, h, w, C]` with H and W [`ControlNetConfig::scale`] times
    /// h and w.
    #[track_caller]
    pub fn forward<'g>(&self, picture: Var<'g>) -> Var<'g> {
        let x = silu(self.conv_in.forward(picture));
        self.conv_out.forward(self.blocks.iter().fold(x, |x, conv| silu(conv.forward(x))))
    }
}

/// A ControlNet on the GPU, without what [`UnetTime`](super::unet::UnetTime),
/// [`UnetContext`](super::unet::UnetContext) and [`ControlPicture`] hold.
pub struct ControlNet {
    conv_in: Conv2d,
    down_blocks: Vec<UBlock>,
    mid_block: Option<UBlock>,
    /// The convolutions that were zero when training began, one for each skip connection.
    controlnet_down_blocks: Vec<Linear>,
    controlnet_mid_block: Linear,
    config: ControlNetConfig,
    /// Tables and pairs of keys and values that a step needs.
    needs: (usize, usize),
}

impl ControlNet {
    /// Loads every tensor that is used in each step; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, config: &ControlNetConfig) -> Result<ControlNet> {
        let c = &config.unet;
        let (blocks, widths) = (blocks(c)?, &c.block_out_channels);
        let conv_in = ld.conv("conv_in", c.in_channels, widths[0], 3, Conv::default())?;
        let mut loader = BlockLoader { root: ld, config: c, next: (0, 0) };
        let zero = |(i, channels): (usize, usize)| {
            let at = ld.pp("controlnet_down_blocks");
            at.linear(&i.to_string(), channels, channels, Bias::Yes)
        };
        let last = widths[widths.len() - 1];
        Ok(ControlNet {
            conv_in,
            down_blocks: blocks.down.iter().map(|b| loader.down(b)).collect::<Result<_>>()?,
            mid_block: blocks.mid.iter().map(|b| loader.down(b)).next().transpose()?,
            controlnet_down_blocks: blocks
                .skips()
                .into_iter()
                .enumerate()
                .map(zero)
                .collect::<Result<_>>()?,
            controlnet_mid_block: ld.linear("controlnet_mid_block", last, last, Bias::Yes)?,
            config: config.clone(),
            needs: loader.next,
        })
    }
    /// The configuration it was built from.
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// What it adds to a UNet that is given the same latents `x [B, h, w, in_channels]`, row and prompts:
    /// `picture` `[B or 1, h, w, C]` is [`ControlPicture`]'s, `time` and `kv` are this net's own, `scale`
    /// (`[1]`, stored as the graph's activations are) is how much of it is wanted.
    #[track_caller]
    pub fn forward<'g>(
        &self,
        x: Var<'g>,
        picture: Var<'g>,
        time: &[Var<'g>],
        row: Var<'g>,
        kv: &[(Var<'g>, Var<'g>)],
        scale: Var<'g>,
    ) -> Residuals<'g> {
        let step = Step { time, row, kv };
        if let Err(why) = self.check(x, picture, &step, scale) {
            let invalid = x.graph().invalid(why);
            let down = vec![invalid; self.controlnet_down_blocks.len()];
            return Residuals { down, mid: invalid };
        }
        let x = (self.conv_in.forward(x) + picture).tap("controlnet.conv_in");
        let mut skips = vec![x];
        let mut x = self.down_blocks.iter().fold(x, |x, block| block.down(x, &step, &mut skips));
        if let Some(block) = &self.mid_block {
            x = block.middle(x, &step);
        }
        let zeros = self.controlnet_down_blocks.iter().zip(skips);
        Residuals {
            down: zeros.map(|(zero, skip)| zero.forward(skip) * scale).collect(),
            mid: self.controlnet_mid_block.forward(x) * scale,
        }
    }

    /// What is wrong with the inputs of a step.
    fn check(
        &self,
        x: Var<'_>,
        picture: Var<'_>,
        step: &Step<'_, '_>,
        scale: Var<'_>,
    ) -> Result<(), String> {
        let unet = &self.config.unet;
        unet.check_size(x.dim(1), x.dim(2)).map_err(|error| error.to_string())?;
        step.check("ControlNet", self.needs)?;
        let wanted = [x.dim(1), x.dim(2), unet.block_out_channels[0]];
        let items = picture.dim(0);
        if picture.shape().dims().get(1..) != Some(&wanted) || (items != 1 && items != x.dim(0)) {
            let n = self.config.scale();
            return Err(format!(
                "a control picture that embeds to {:?} for latents {:?}; it takes a picture of {}x{} pixels",
                picture.shape(),
                x.shape(),
                wanted[1] * n,
                wanted[0] * n
            ));
        }
        match scale.shape().len() == 1 && scale.elem() == x.graph().act() {
            true => Ok(()),
            false => Err(format!(
                "a scale {:?} of {:?}; it takes [1] of {:?}",
                scale.shape(),
                scale.elem(),
                x.graph().act()
            )),
        }
    }
}
