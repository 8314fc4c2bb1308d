//! What a UNet computes from the timestep or from the prompt alone. Both are done once per picture and
//! their weights need not stay resident, so they are nets of their own.

use super::unet_config::UnetConfig;
use super::unet_layout::Blocks;
use crate::graph::Var;
use crate::nn::{Bias, Linear, Loader};
use crate::ops::concat::cat;
use crate::ops::pointwise::silu;
use crate::ops::timestep::timestep_embedding;
use crate::{Error, Result};

/// The blocks of a configuration that [`UnetConfig::read`] has checked.
pub(super) fn blocks(config: &UnetConfig) -> Result<Blocks> {
    config.blocks().map_err(Error::Model)
}

/// `linear_2(silu(linear_1(x)))`, diffusers' TimestepEmbedding.
struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    path: String,
}

impl TimestepEmbedding {
    fn load(ld: &Loader<'_>, channels: usize, width: usize) -> Result<TimestepEmbedding> {
        Ok(TimestepEmbedding {
            linear_1: ld.linear("linear_1", width, channels, Bias::Yes)?,
            linear_2: ld.linear("linear_2", width, width, Bias::Yes)?,
            path: ld.path().to_string(),
        })
    }
    #[track_caller]
    fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        self.linear_2.forward(silu(self.linear_1.forward(x))).tap(self.path.as_str())
    }
}

/// What the time embedding depends on besides the step, for each of `items` prompts. A UNet takes what
/// its configuration has: [`UnetConfig::time_cond_proj_dim`] and [`UnetConfig::added`].
#[derive(Clone, Copy, Default)]
pub struct TimeConditions<'g> {
    /// The guidance scale that an LCM works with, as [`guidance_embedding`] has it:
    /// `[items, time_cond_proj_dim]`.
    pub timestep_cond: Option<Var<'g>>,
    /// Pooled text of SDXL, `[items, channels]`.
    pub text_embeds: Option<Var<'g>>,
    /// Sizes that go with it, f32 `[items, n]`: original height and width, top and left of the crop,
    /// target height and width; the refiner has a score in place of the target.
    pub time_ids: Option<Var<'g>>,
}

/// The time embedding (Ho et al. 2020; sinusoids of Vaswani et al. 2017) and every resnet's
/// projection of it.
pub struct UnetTime {
    time_embedding: TimestepEmbedding,
    cond_proj: Option<Linear>,
    add_embedding: Option<TimestepEmbedding>,
    projections: Vec<Linear>,
    config: UnetConfig,
}

impl UnetTime {
    /// Loads `time_embedding`, `add_embedding` and every `time_emb_proj`; `ld` is the root of the
    /// checkpoint.
    pub fn load(ld: &Loader<'_>, config: &UnetConfig) -> Result<UnetTime> {
        let (sinusoids, width) = (config.block_out_channels[0], config.time_channels());
        let projection = |(path, channels): (String, usize)| {
            ld.pp(path).linear("time_emb_proj", channels, width, Bias::Yes)
        };
        let cond = |dim| ld.linear("time_embedding.cond_proj", sinusoids, dim, Bias::No);
        let add = |channels| TimestepEmbedding::load(&ld.pp("add_embedding"), channels, width);
        Ok(UnetTime {
            time_embedding: TimestepEmbedding::load(&ld.pp("time_embedding"), sinusoids, width)?,
            cond_proj: config.time_cond_proj_dim.map(cond).transpose()?,
            add_embedding: config.added().map(|added| add(added.channels)).transpose()?,
            projections: blocks(config)?.resnets().map(projection).collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    /// Channels of each table, in the order the resnets run.
    pub fn widths(&self) -> impl Iterator<Item = usize> {
        self.projections.iter().map(|projection| projection.weight.rows())
    }

    /// Timesteps f32 `[steps]` → one table per resnet, in the order they run. Without conditions a
    /// table is `[steps, C]` and its row is the step's number; with conditions for `items` prompts it is
    /// `[steps · items, C]`, row `step · items + item`. Conditions of one item serve all prompts.
    #[track_caller]
    pub fn table<'g>(&self, t: Var<'g>, conditions: &TimeConditions<'g>) -> Vec<Var<'g>> {
        let (c, graph) = (&self.config, t.graph());
        if let Err(why) = self.check(conditions) {
            return vec![graph.invalid(why); self.projections.len()];
        }
        let items = [conditions.timestep_cond, conditions.text_embeds];
        let items = items.into_iter().flatten().map(|v| v.dim(0)).max().unwrap_or(1);
        let sinusoids = |t, dim| timestep_embedding(t, dim, c.flip_sin_to_cos, c.freq_shift as f32);
        let mut x = sinusoids(t, c.block_out_channels[0]);
        if let (Some(cond_proj), Some(cond)) = (&self.cond_proj, conditions.timestep_cond) {
            x = for_items(x, items) + cond_proj.forward(cond);
        }
        let mut x = self.time_embedding.forward(x);
        if let (Some(add), Some(text), Some(ids)) =
            (&self.add_embedding, conditions.text_embeds, conditions.time_ids)
        {
            let channels = c.added().map_or(0, |added| added.time_channels);
            let (count, each) = (ids.dim(0), ids.dim(1));
            let sizes = sinusoids(ids.reshape([count * each]), channels);
            let added = add.forward(cat(text, sizes.reshape([count, each * channels])));
            x = for_items(x, items) + added;
        }
        let (x, width) = (silu(x), c.time_channels());
        let x = x.reshape([x.shape().len() / width.max(1), width]);
        self.projections.iter().map(|projection| projection.forward(x)).collect()
    }

    /// What is wrong with the conditions for this net.
    fn check(&self, conditions: &TimeConditions<'_>) -> Result<(), String> {
        let TimeConditions { timestep_cond, text_embeds, time_ids } = conditions;
        let shape =
            |v: &Option<Var<'_>>| v.map_or("nothing".into(), |v| format!("{:?}", v.shape()));
        let cond = timestep_cond.map(|v| (v.shape().rank(), v.dim(1)));
        if cond != self.config.time_cond_proj_dim.map(|dim| (2, dim)) {
            return Err(match self.config.time_cond_proj_dim {
                Some(dim) => format!(
                    "{} for the guidance scale; this UNet was distilled with one and takes its \
                     embedding, [items, {dim}]",
                    shape(timestep_cond)
                ),
                None => "an embedding of the guidance scale; this UNet takes none".into(),
            });
        }
        let Some(added) = self.config.added() else {
            return match (text_embeds, time_ids) {
                (None, None) => Ok(()),
                _ => Err("pooled text or sizes; this UNet takes neither".into()),
            };
        };
        let channels = text_embeds.zip(*time_ids).and_then(|(text, ids)| {
            let pairs = text.shape().rank() == 2 && ids.shape().rank() == 2;
            let same = text.dim(0) == ids.dim(0);
            (pairs && same).then(|| text.dim(1) + ids.dim(1) * added.time_channels)
        });
        match channels == Some(added.channels) {
            true => Ok(()),
            false => Err(format!(
                "{} of pooled text with sizes {}; this UNet takes [items, channels] and [items, n] with \
                 channels + {} n = {}",
                shape(text_embeds),
                shape(time_ids),
                added.time_channels,
                added.channels
            )),
        }
    }
}

/// `[steps, C]` → `[steps, items, C]`, each row as often as there are items; what has that form stays.
#[track_caller]
fn for_items<'g>(x: Var<'g>, items: usize) -> Var<'g> {
    let &[steps, channels] = x.shape().dims() else { return x };
    let rows = (1..items).fold(x, |rows, _| cat(rows, x));
    rows.reshape([steps, items, channels])
}

/// The guidance scale as the input of an LCM's `time_embedding.cond_proj`: sines, then cosines of
/// `1000 · (scale − 1) · 10000^(−i / (dim/2 − 1))`, rounded to f32 where diffusers'
/// `get_guidance_scale_embedding` rounds (Luo et al. 2023; the form is that of Kingma et al. 2021).
pub fn guidance_embedding(scale: f32, dim: usize) -> Vec<f32> {
    let (w, half) = ((scale - 1.0) * 1000.0, dim / 2);
    let slope = 10_000f64.ln() as f32 / (half as f32 - 1.0);
    let angle = |i: usize| f64::from(w * f64::from(i as f32 * -slope).exp() as f32);
    let sines = (0..half).map(|i| angle(i).sin() as f32);
    let cosines = (0..half).map(|i| angle(i).cos() as f32);
    let mut embedding: Vec<f32> = sines.chain(cosines).collect();
    embedding.resize(dim, 0.0);
    embedding
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

    /// Whether there is no cross attention at all, as in a UNet2DModel.
    pub fn is_empty(&self) -> bool {
        self.projections.is_empty()
    }

    /// The text encoder's output `[B, S, C]` → keys and values per cross attention, in the order they
    /// run.
    #[track_caller]
    pub fn keys_values<'g>(&self, context: Var<'g>) -> Vec<(Var<'g>, Var<'g>)> {
        self.projections.iter().map(|(k, v)| (k.forward(context), v.forward(context))).collect()
    }
}
