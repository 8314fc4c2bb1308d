//! What a UNet computes from the timestep alone or from the prompt alone. Both are done once per
//! picture and their weights need not stay resident, so they are nets of their own.

use super::unet_config::{Blocks, UnetConfig};
use crate::graph::Var;
use crate::nn::{Bias, Linear, Loader};
use crate::ops::pointwise::silu;
use crate::ops::timestep::timestep_embedding;
use crate::{Error, Result};

/// The time embedding (Ho et al. 2020; sinusoids of Vaswani et al. 2017) and every resnet's
/// projection of it.
pub struct UnetTime {
    linear_1: Linear,
    linear_2: Linear,
    projections: Vec<Linear>,
    config: UnetConfig,
}

/// The blocks of a configuration that [`UnetConfig::read`] has checked.
pub(super) fn blocks(config: &UnetConfig) -> Result<Blocks> {
    config.blocks().map_err(Error::Model)
}

impl UnetTime {
    /// Loads `time_embedding` and every `time_emb_proj`; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, config: &UnetConfig) -> Result<UnetTime> {
        let (sinusoids, width) = (config.block_out_channels[0], config.time_channels());
        let mlp = ld.pp("time_embedding");
        let projection = |(path, channels): (String, usize)| {
            ld.pp(path).linear("time_emb_proj", channels, width, Bias::Yes)
        };
        Ok(UnetTime {
            linear_1: mlp.linear("linear_1", width, sinusoids, Bias::Yes)?,
            linear_2: mlp.linear("linear_2", width, width, Bias::Yes)?,
            projections: blocks(config)?.resnets().map(projection).collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    /// Timesteps f32 `[steps]` → one table `[steps, C]` per resnet, in the order they run.
    #[track_caller]
    pub fn table<'g>(&self, t: Var<'g>) -> Vec<Var<'g>> {
        let c = &self.config;
        let dim = c.block_out_channels[0];
        let t = timestep_embedding(t, dim, c.flip_sin_to_cos, c.freq_shift as f32);
        let temb = self.linear_2.forward(silu(self.linear_1.forward(t))).tap("time_embedding");
        let temb = silu(temb);
        self.projections.iter().map(|projection| projection.forward(temb)).collect()
    }
}

/// Keys and values of every cross attention, which depend on the prompt alone.
pub struct UnetContext {
    projections: Vec<(Linear, Linear)>,
}

impl UnetContext {
    /// Loads every `attn2.to_k` and `attn2.to_v`; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, config: &UnetConfig) -> Result<UnetContext> {
        let context = config.cross_attention_dim;
        let projection = |(path, channels): (String, usize)| {
            let attn2 = ld.pp(path);
            let to = |name| attn2.linear(name, channels, context, Bias::No);
            Ok((to("to_k")?, to("to_v")?))
        };
        let projections =
            blocks(config)?.cross_attentions().map(projection).collect::<Result<_>>()?;
        Ok(UnetContext { projections })
    }

    /// The text encoder's output `[B, S, C]` → keys and values per cross attention, in the order they
    /// run.
    #[track_caller]
    pub fn keys_values<'g>(&self, context: Var<'g>) -> Vec<(Var<'g>, Var<'g>)> {
        self.projections.iter().map(|(k, v)| (k.forward(context), v.forward(context))).collect()
    }
}
