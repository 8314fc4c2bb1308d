//! UNet2DConditionModel, the denoiser of Stable Diffusion 1.x, 2.x and XL (Rombach et al. 2022, Podell et
//! al. 2023). Names as in diffusers' `unet_2d_condition.py`.

use super::unet_block::{BlockLoader, Step, UBlock};
pub use super::unet_config::{TextTime, UnetConfig};
use super::unet_hoisted::blocks;
pub use super::unet_hoisted::{TimeConditions, UnetContext, UnetTime, guidance_embedding};
use crate::Result;
use crate::graph::Var;
use crate::nn::{Conv2d, GroupNorm, Loader};
use crate::ops::conv2d::Conv;
use crate::ops::pointwise::silu;

/// What a ControlNet adds to a UNet of the same shape.
#[derive(Clone)]
pub struct Residuals<'g> {
    /// One for each skip connection, in the order they are made: the first belongs to `conv_in`.
    pub down: Vec<Var<'g>>,
    /// For the output of the middle.
    pub mid: Var<'g>,
}

/// The UNet on the GPU, without what [`UnetTime`] and [`UnetContext`] hold.
pub struct Unet {
    conv_in: Conv2d,
    down_blocks: Vec<UBlock>,
    mid_block: Option<UBlock>,
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
        let (c, same) = (config, Conv::default());
        let (blocks, first) = (blocks(c)?, c.block_out_channels[0]);
        let conv_in = ld.conv("conv_in", c.in_channels, first, 3, same)?;
        let mut loader = BlockLoader { root: ld, config, next: (0, 0) };
        Ok(Unet {
            conv_in,
            down_blocks: blocks.down.iter().map(|b| loader.down(b)).collect::<Result<_>>()?,
            mid_block: blocks.mid.iter().map(|b| loader.down(b)).next().transpose()?,
            up_blocks: blocks.up.iter().map(|b| loader.up(b)).collect::<Result<_>>()?,
            conv_norm_out: ld.group_norm("conv_norm_out", c.norm_num_groups, first, c.norm_eps)?,
            conv_out: ld.conv("conv_out", first, c.out_channels, 3, same)?,
            config: config.clone(),
            needs: loader.next,
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
        self.controlled(x, time, row, kv, &[])
    }

    /// As [`Unet::forward`] with what any number of ControlNets add to the skip connections and to the
    /// middle.
    #[track_caller]
    pub fn controlled<'g>(
        &self,
        x: Var<'g>,
        time: &[Var<'g>],
        row: Var<'g>,
        kv: &[(Var<'g>, Var<'g>)],
        controls: &[Residuals<'g>],
    ) -> Var<'g> {
        let step = Step { time, row, kv };
        let fits = self.config.check_size(x.dim(1), x.dim(2)).map_err(|error| error.to_string());
        if let Err(why) = fits.and_then(|()| step.check("UNet", self.needs)) {
            return x.graph().invalid(why);
        }
        let x = self.conv_in.forward(x).tap("conv_in");
        let mut skips = vec![x];
        let mut x = self.down_blocks.iter().fold(x, |x, block| block.down(x, &step, &mut skips));
        if let Some(block) = &self.mid_block {
            x = block.middle(x, &step);
        }
        for control in controls {
            if control.down.len() != skips.len() {
                let (ours, theirs) = (skips.len(), control.down.len());
                return x.graph().invalid(format!(
                    "a ControlNet with {theirs} residuals for a UNet with {ours} skip connections; it \
                     belongs to another model"
                ));
            }
            skips
                .iter_mut()
                .zip(&control.down)
                .for_each(|(skip, residual)| *skip = *skip + *residual);
            x = x + control.mid;
        }
        let x = self.up_blocks.iter().fold(x, |x, block| block.up(x, &step, &mut skips));
        self.conv_out.forward(silu(self.conv_norm_out.forward(x)))
    }
}
