//! Attention of every pixel to every pixel (`attention_processor.py`, Attention with a residual connection;
//! AttentionBlock before diffusers 0.12): what a UNet without a prompt has behind its resnets, and an
//! autoencoder in its middle.

use super::transformer::heads;
use crate::Result;
use crate::graph::Var;
use crate::nn::{Bias, GroupNorm, Linear, Loader};
use crate::ops::attention::{Attention, attention};

pub(super) struct PixelAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    how: Attention<'static>,
    path: String,
}

impl PixelAttention {
    /// `c` channels in `n` heads. Files written before diffusers 0.12 say query, key, value and
    /// proj_attn.
    pub(super) fn load(
        ld: &Loader<'_>,
        c: usize,
        n: usize,
        groups: usize,
        eps: f64,
    ) -> Result<PixelAttention> {
        let (names, out) = match ld.contains("query.weight") {
            true => (["query", "key", "value"], "proj_attn"),
            false => (["to_q", "to_k", "to_v"], "to_out.0"),
        };
        let [to_q, to_k, to_v] = ld.linears_beside(names, [c; 3], c, Bias::Yes)?;
        Ok(PixelAttention {
            group_norm: ld.group_norm("group_norm", groups, c, eps)?,
            to_q,
            to_k,
            to_v,
            to_out: ld.linear(out, c, c, Bias::Yes)?,
            how: heads(c, n),
            path: ld.path().to_string(),
        })
    }

    /// `x [B, H, W, C]` → same.
    pub(super) fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let tokens = [x.dim(0), x.dim(1) * x.dim(2), x.dim(3)];
        let h = self.group_norm.forward(x).reshape(tokens);
        let (q, k, v) = (self.to_q.forward(h), self.to_k.forward(h), self.to_v.forward(h));
        let h = attention(q, k, v, self.how).reshape(x.shape());
        (x + self.to_out.forward(h)).tap(self.path.as_str())
    }
}
