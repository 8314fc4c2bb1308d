//! Layers: a weight and the op that uses it. A [`Loader`] makes them from a checkpoint.

mod cache;
mod fused;
mod kv_cache;
mod loader;
mod lora;

pub use cache::WeightCache;
pub use kv_cache::{Heads, KvCache, KvFormat};
pub use loader::{LoadReport, LoadedTensor, Loader};
pub use lora::Branch;

use crate::gpu::Gpu;
use crate::graph::{Var, Vector, Weight};
use crate::ops::concat::Concat;
use crate::ops::conv2d::{Conv, conv2d};
use crate::ops::embed::{embed, embed_range, embed_stacked};
use crate::ops::matmul::{linear, linear_f32};
use crate::ops::norm::{group_norm, layer_norm, rms_norm};
use crate::quant::{Layout, Packed, QuantSpec};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Whether a layer has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    Yes,
    No,
    /// As the checkpoint has it.
    IfPresent,
}

impl From<bool> for Bias {
    fn from(yes: bool) -> Bias {
        if yes { Bias::Yes } else { Bias::No }
    }
}

/// `y = x·Wᵀ + b` over the last axis; a 1×1 convolution as well.
#[derive(Clone, Debug)]
pub struct Linear {
    pub weight: Weight,
    pub bias: Option<Vector>,
    /// What LoRAs add.
    pub branch: Option<Branch>,
}

impl Linear {
    /// `[.., K]` → `[.., N]`
    #[track_caller]
    pub fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        // Over pictures it is a convolution of one tap, which reads the parts of a `cat` where they lie.
        let y = match x.made_by::<Concat>() {
            Some(_) if x.shape().rank() == 4 && self.weight.columns().is_none() => {
                conv2d(x, &self.weight, self.bias.as_ref(), Conv::default())
            }
            _ => linear(x, &self.weight, self.bias.as_ref()),
        };
        self.branch.as_ref().map_or(y, |branch| branch.add(x, y))
    }
    /// As [`Linear::forward`], stored as f32 whatever the graph's activations are. For the heads of language
    /// models, which no LoRA here changes.
    #[track_caller]
    pub fn forward_f32<'g>(&self, x: Var<'g>) -> Var<'g> {
        if self.branch.is_some() {
            return x.graph().invalid("a LoRA of a layer whose output stays f32".into());
        }
        linear_f32(x, &self.weight, self.bias.as_ref())
    }
}

/// A square convolution over `[B, H, W, Cin]`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    pub weight: Weight,
    pub bias: Option<Vector>,
    pub conv: Conv,
    /// What LoRAs add.
    pub branch: Option<Branch>,
}

impl Conv2d {
    /// `[B, H, W, Cin]` → `[B, H', W', Cout]`
    #[track_caller]
    pub fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let y = conv2d(x, &self.weight, self.bias.as_ref(), self.conv);
        self.branch.as_ref().map_or(y, |branch| branch.add_conv(x, y, self.conv))
    }
}

/// One row of a table per token.
#[derive(Clone, Debug)]
pub struct Embedding {
    pub weight: Weight,
    /// Rows behind the checkpoint's own.
    added: Option<Weight>,
}

impl Embedding {
    /// Puts `[rows, channels]` behind the table's own rows, in f32; None takes them away again. Ids from
    /// the table's number of rows on then mean them.
    pub fn set_added(&mut self, gpu: &Gpu, rows: Option<&Tensor>) -> Result<()> {
        self.added = None;
        let Some(rows) = rows else { return Ok(()) };
        let channels = self.weight.channels();
        let [count, own] = rows.shape[..] else {
            return Err(Error::Model(format!(
                "added rows of shape {:?}, not two axes",
                rows.shape
            )));
        };
        if own != channels {
            return Err(Error::Model(format!(
                "added rows of {own} channels for a table of {channels}; they belong to another model"
            )));
        }
        let layout = Layout::linear(count, channels);
        let packed = Packed::pack(&rows.to_f32(), layout, &QuantSpec::F32, None)?;
        self.added = Some(Weight::upload(gpu, "added rows", &packed)?);
        Ok(())
    }
    /// u32 `[B, S]` → `[B, S, C]`
    #[track_caller]
    pub fn forward<'g>(&self, ids: Var<'g>) -> Var<'g> {
        match &self.added {
            Some(added) => embed_stacked(ids, &[&self.weight, added]),
            None => embed(ids, &self.weight),
        }
    }
    /// Rows `start .. start + count` (start u32 `[1]`) → `[1, count, C]`: learned positions.
    #[track_caller]
    pub fn forward_range<'g>(&self, start: Var<'g>, count: usize) -> Var<'g> {
        embed_range(start, count, &self.weight)
    }
    /// The same table as the output layer of a language model ("tied").
    pub fn as_linear(&self) -> Linear {
        Linear { weight: self.weight.clone(), bias: None, branch: None }
    }
}

/// A learned vector per position. Few and always the first S rows, so they go into the graph as a
/// constant.
#[derive(Clone, Debug)]
pub struct Positions {
    values: Vec<f32>,
    channels: usize,
}

impl Positions {
    /// `x [B, S, C]` + the first S rows.
    #[track_caller]
    pub fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let (s, c) = (x.dim(1), self.channels);
        match self.values.get(..s * c) {
            Some(rows) => x + x.graph().literal([1, s, c], rows.to_vec()),
            None => x.graph().invalid(format!(
                "{s} tokens, the model has positions for {}",
                self.values.len() / c.max(1)
            )),
        }
    }
}

/// Wu and He 2018: mean and variance over a group of channels and all pixels.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    gamma: Vector,
    beta: Vector,
    groups: usize,
    eps: f32,
    path: String,
}

impl GroupNorm {
    /// `[B, .., C]` → same, tapped with its path.
    #[track_caller]
    pub fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        group_norm(x, &self.gamma, &self.beta, self.groups, self.eps).tap(self.path.as_str())
    }
}

/// Ba et al. 2016: mean and variance over the last axis.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    gamma: Vector,
    beta: Vector,
    eps: f32,
}

impl LayerNorm {
    /// `[.., C]` → same
    #[track_caller]
    pub fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        layer_norm(x, &self.gamma, &self.beta, self.eps)
    }
}

/// Zhang and Sennrich 2019: `γ·x / sqrt(mean(x²) + ε)` over the last axis.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    gamma: Vector,
    eps: f32,
}

impl RmsNorm {
    /// `[.., C]` → same
    #[track_caller]
    pub fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        rms_norm(x, &self.gamma, self.eps)
    }
}
