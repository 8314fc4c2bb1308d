//! LoRA beside a layer: `y = layer(x) + up(down(x))`, computed at run time. The layer's weight stays as it
//! is, packed in four bits or not; nothing is merged into it.

use std::ops::Range;

use super::Loader;
use crate::Result;
use crate::graph::{Residence, Var, Weight};
use crate::ops::conv2d::{Conv, conv2d};
use crate::ops::matmul::linear;
use crate::quant::{Format, Layout, Packed, QuantSpec};
use crate::weights::lora::{Adapters, LoraNet, LowRank};

/// The low-rank branch of a layer on the GPU.
#[derive(Clone, Debug)]
pub struct Branch {
    /// rank rows, as many taps and channels as the layer's weight has.
    down: Weight,
    /// The layer's rows, rank channels; weights and scales of the LoRAs are in it.
    up: Weight,
}

impl Branch {
    /// `y + up(down(x))` beside a linear layer.
    #[track_caller]
    pub(super) fn add<'g>(&self, x: Var<'g>, y: Var<'g>) -> Var<'g> {
        y + linear(linear(x, &self.down, None), &self.up, None)
    }
    /// `y + up(down(x))` beside a convolution, over whose windows `down` runs.
    #[track_caller]
    pub(super) fn add_conv<'g>(&self, x: Var<'g>, y: Var<'g>, conv: Conv) -> Var<'g> {
        y + linear(conv2d(x, &self.down, None, conv), &self.up, None)
    }
}

impl<'a> Loader<'a> {
    /// Layers loaded from here on have the adapters' branches beside them. `net` is what this checkpoint
    /// is.
    ///
    /// # Errors
    /// `Model` for a LoRA that was made for another base, see [`Adapters::check`].
    pub fn with_adapters(self, adapters: &'a Adapters, net: LoraNet) -> Result<Loader<'a>> {
        adapters.check(net, self.shared.store)?;
        Ok(Loader { adapters: Some((adapters, net)), ..self })
    }

    /// What adapters add to the layer at this place, on the host.
    pub(super) fn low_rank(&self, shape: [usize; 3]) -> Result<Option<LowRank>> {
        match self.adapters {
            Some((adapters, net)) => adapters.branch(net, &self.path, shape),
            None => Ok(None),
        }
    }

    /// The branch of the layer at this place, whose weight is `[rows, taps, channels]`.
    pub(super) fn branch(&self, [rows, taps, channels]: [usize; 3]) -> Result<Option<Branch>> {
        let low_rank = self.low_rank([rows, taps, channels])?;
        let upload = |low: LowRank| -> Result<Branch> {
            let down = self.upload_down(&low, taps, channels)?;
            self.upload_up(&low, down, 0..rows)
        };
        low_rank.map(upload).transpose()
    }

    /// `down` alone, which layers that were one share.
    pub(super) fn upload_down(
        &self,
        low: &LowRank,
        taps: usize,
        channels: usize,
    ) -> Result<Weight> {
        let layout = Layout { rows: low.rank, taps, channels };
        self.upload_half("lora_down", &low.down, layout)
    }

    /// The rows of `up` that belong to a layer, and `down` with them.
    pub(super) fn upload_up(
        &self,
        low: &LowRank,
        down: Weight,
        rows: Range<usize>,
    ) -> Result<Branch> {
        let layout = Layout::linear(rows.len(), low.rank);
        let values = &low.up[rows.start * low.rank..rows.end * low.rank];
        Ok(Branch { down, up: self.upload_half("lora_up", values, layout)? })
    }

    /// In f16, or in f32 where the recipe keeps the layer's own weight so.
    fn upload_half(&self, name: &str, values: &[f32], layout: Layout) -> Result<Weight> {
        let (spec, format) = match self.shared.recipe.spec_for(&self.name("weight")) {
            QuantSpec::F32 => (QuantSpec::F32, Format::F32),
            _ => (QuantSpec::F16, Format::F16),
        };
        if self.shared.outline.get() {
            let weight = Weight::outline(self.shared.gpu, layout, format)?;
            let (elements, bytes) = (weight.elements(), weight.bytes());
            self.record(self.name(name), format, elements, bytes, Residence::Outline);
            return Ok(weight);
        }
        self.upload(self.name(name), &Packed::pack(values, layout, &spec, None)?)
    }
}
