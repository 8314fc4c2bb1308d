//! Transformer2DModel, the attention of a UNet that is told what to paint: each pixel is a token, and the
//! prompt comes in through cross attention. Names as in diffusers' `transformer_2d.py` and `attention.py`.

use crate::Result;
use crate::graph::Var;
use crate::nn::{Bias, GroupNorm, LayerNorm, Linear, Loader};
use crate::ops::attention::{Attention, Mask, attention};
use crate::ops::pointwise::geglu;

/// Transformer2DModel gives its group norm this ε in code; `norm_eps` is the resnets'.
const TRANSFORMER_EPS: f64 = 1e-6;
/// The ε of its layer norms, torch's default.
const LAYER_EPS: f64 = 1e-5;

struct SelfAttention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    how: Attention<'static>,
    path: String,
}

/// Queries from the picture; keys and values come from [`UnetContext`].
struct CrossAttention {
    to_q: Linear,
    to_out: Linear,
    how: Attention<'static>,
    path: String,
}

/// `heads` heads that share the channels evenly, each as diffusers scales it.
pub(super) fn heads(channels: usize, heads: usize) -> Attention<'static> {
    let scale = 1.0 / ((channels / heads) as f32).sqrt();
    Attention { heads, kv_heads: heads, scale, cap: None, mask: Mask::None }
}

/// Taps `[B, S, C]` as `[B, S, heads, C / heads]`, from which a probe computes what is attended to.
fn tap_heads(x: Var<'_>, heads: usize, name: String) {
    x.reshape([x.dim(0), x.dim(1), heads, x.dim(2) / heads]).tap(name);
}

impl SelfAttention {
    fn load(ld: &Loader<'_>, c: usize, how: Attention<'static>) -> Result<SelfAttention> {
        let [to_q, to_k, to_v] =
            ld.linears_beside(["to_q", "to_k", "to_v"], [c; 3], c, Bias::No)?;
        Ok(SelfAttention {
            to_q,
            to_k,
            to_v,
            to_out: ld.linear("to_out.0", c, c, Bias::Yes)?,
            how,
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let (q, k, v) = (self.to_q.forward(x), self.to_k.forward(x), self.to_v.forward(x));
        tap_heads(q, self.how.heads, format!("{}.q", self.path));
        tap_heads(k, self.how.heads, format!("{}.k", self.path));
        self.to_out.forward(attention(q, k, v, self.how)).tap(self.path.as_str())
    }
}

impl CrossAttention {
    fn load(ld: &Loader<'_>, c: usize, how: Attention<'static>) -> Result<CrossAttention> {
        let (to_q, to_out) =
            (ld.linear("to_q", c, c, Bias::No)?, ld.linear("to_out.0", c, c, Bias::Yes)?);
        Ok(CrossAttention { to_q, to_out, how, path: ld.path().to_string() })
    }

    fn forward<'g>(&self, x: Var<'g>, (k, v): (Var<'g>, Var<'g>)) -> Var<'g> {
        let q = self.to_q.forward(x);
        tap_heads(q, self.how.heads, format!("{}.q", self.path));
        tap_heads(k, self.how.heads, format!("{}.k", self.path));
        self.to_out.forward(attention(q, k, v, self.how)).tap(self.path.as_str())
    }
}

/// BasicTransformerBlock: self attention, cross attention, GEGLU (Shazeer 2020), each after a norm.
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: SelfAttention,
    norm2: LayerNorm,
    attn2: CrossAttention,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
    path: String,
}

impl TransformerBlock {
    fn load(ld: &Loader<'_>, c: usize, n: usize) -> Result<TransformerBlock> {
        let net = ld.pp("ff.net");
        Ok(TransformerBlock {
            norm1: ld.layer_norm("norm1", c, LAYER_EPS)?,
            attn1: SelfAttention::load(&ld.pp("attn1"), c, heads(c, n))?,
            norm2: ld.layer_norm("norm2", c, LAYER_EPS)?,
            attn2: CrossAttention::load(&ld.pp("attn2"), c, heads(c, n))?,
            norm3: ld.layer_norm("norm3", c, LAYER_EPS)?,
            ff_in: net.linear("0.proj", 8 * c, c, Bias::Yes)?,
            ff_out: net.linear("2", c, 4 * c, Bias::Yes)?,
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>, kv: (Var<'g>, Var<'g>)) -> Var<'g> {
        let x = x + self.attn1.forward(self.norm1.forward(x));
        let x = x + self.attn2.forward(self.norm2.forward(x), kv);
        let h = geglu(self.ff_in.forward(self.norm3.forward(x)));
        (x + self.ff_out.forward(h)).tap(self.path.as_str())
    }
}

/// Transformer2DModel: pixels as tokens. `proj_in` and `proj_out` are 1×1 convolutions or linear
/// layers (`use_linear_projection`), which are the same on this layout.
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Linear,
    path: String,
}

impl Transformer {
    /// `c` channels in `heads` heads, `depth` transformer blocks.
    pub(super) fn load(
        ld: &Loader<'_>,
        c: usize,
        groups: usize,
        (heads, depth): (usize, usize),
    ) -> Result<Transformer> {
        let block = |i| TransformerBlock::load(&ld.pp("transformer_blocks").pp(i), c, heads);
        Ok(Transformer {
            norm: ld.group_norm("norm", groups, c, TRANSFORMER_EPS)?,
            proj_in: ld.linear("proj_in", c, c, Bias::Yes)?,
            transformer_blocks: (0..depth).map(block).collect::<Result<_>>()?,
            proj_out: ld.linear("proj_out", c, c, Bias::Yes)?,
            path: ld.path().to_string(),
        })
    }

    /// `x [B, H, W, C]` → same; `kv` are keys and values for each block.
    pub(super) fn forward<'g>(&self, x: Var<'g>, kv: &[(Var<'g>, Var<'g>)]) -> Var<'g> {
        let tokens = [x.dim(0), x.dim(1) * x.dim(2), x.dim(3)];
        let h = self.proj_in.forward(self.norm.forward(x)).reshape(tokens);
        let blocks = self.transformer_blocks.iter().zip(kv);
        let h = blocks.fold(h, |h, (block, kv)| block.forward(h, *kv)).reshape(x.shape());
        (x + self.proj_out.forward(h)).tap(self.path.as_str())
    }
}
