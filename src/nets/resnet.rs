//! The residual block of diffusers' UNets and autoencoders (`resnet.py`, ResnetBlock2D), after He et
//! al. 2016 with the norms and time embedding of Ho et al. 2020.

use crate::Result;
use crate::graph::Var;
use crate::nn::{Bias, Conv2d, GroupNorm, Linear, Loader};
use crate::ops::channels::add_channels;
use crate::ops::conv2d::Conv;
use crate::ops::pointwise::silu;

/// What a block adds to its channels for the timestep: row `row[b]` of `table [steps, C]`, which
/// holds `time_emb_proj(silu(temb))` of every step.
#[derive(Clone, Copy)]
pub(super) struct Time<'g> {
    pub table: Var<'g>,
    pub row: Var<'g>,
}

pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Linear>,
    path: String,
}

impl ResnetBlock {
    pub(super) fn load(
        ld: &Loader<'_>,
        cin: usize,
        cout: usize,
        groups: usize,
        eps: f64,
    ) -> Result<ResnetBlock> {
        let shortcut = || ld.linear("conv_shortcut", cout, cin, Bias::Yes);
        Ok(ResnetBlock {
            norm1: ld.group_norm("norm1", groups, cin, eps)?,
            conv1: ld.conv("conv1", cin, cout, 3, Conv::default())?,
            norm2: ld.group_norm("norm2", groups, cout, eps)?,
            conv2: ld.conv("conv2", cout, cout, 3, Conv::default())?,
            conv_shortcut: (cin != cout).then(shortcut).transpose()?,
            path: ld.path().to_string(),
        })
    }

    /// `x [B, H, W, Cin]`, which may be `cat(h, skip)`, → `[B, H, W, Cout]`.
    #[track_caller]
    pub(super) fn forward<'g>(&self, x: Var<'g>, time: Option<Time<'g>>) -> Var<'g> {
        let h = self.conv1.forward(silu(self.norm1.forward(x)));
        let h = time.map_or(h, |time| add_channels(h, time.table, time.row));
        let h = self.conv2.forward(silu(self.norm2.forward(h)));
        let x = self.conv_shortcut.as_ref().map_or(x, |shortcut| shortcut.forward(x));
        (x + h).tap(self.path.as_str())
    }
}
