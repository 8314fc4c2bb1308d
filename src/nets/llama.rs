//! Llama (Touvron et al. 2023; Grattafiori et al. 2024): RMSNorm, rotary positions, grouped-query
//! attention, SwiGLU. Names and numbers as transformers' `modeling_llama.py` has them. Mistral, Qwen,
//! SmolLM, OLMo 2, Phi-3 and Gemma are the same net with other data ([`LlamaConfig`]).

use super::language::{Net, Text};
use super::llama_config::{LayerKind, LlamaConfig, QkNorm};
use super::rotary::Rope;
use crate::Result;
use crate::graph::Var;
use crate::nn::{Bias, Embedding, Heads, Linear, Loader, RmsNorm};
use crate::ops::pointwise::{Act, gated, soft_cap};
use crate::ops::rope::rope;

/// A norm that some families have not.
struct Norm(Option<RmsNorm>);

impl Norm {
    fn load(ld: &Loader<'_>, c: &LlamaConfig, name: Option<&str>, width: usize) -> Result<Norm> {
        let load = |name| match c.norm_offset {
            true => ld.rms_norm_offset(name, width, c.eps),
            false => ld.rms_norm(name, width, c.eps),
        };
        name.map(load).transpose().map(Norm)
    }
    fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        self.0.as_ref().map_or(x, |norm| norm.forward(x))
    }
    /// Of `[1, S, heads · width]` each `width` channels by themselves.
    fn forward_each<'g>(&self, x: Var<'g>, width: usize) -> Var<'g> {
        let Some(norm) = &self.0 else { return x };
        let rows = x.shape().len().checked_div(width).unwrap_or(0);
        norm.forward(x.reshape([1, rows, width])).reshape(x.shape())
    }
}

struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    q_norm: Norm,
    k_norm: Norm,
    o_proj: Linear,
    how: Heads,
    /// Channels that the norms of q and k take together.
    norm_widths: [usize; 2],
    /// Which of the model's frequencies.
    rope: Option<usize>,
    layer: usize,
    head_dim: usize,
    path: String,
}

impl SelfAttention {
    fn load(ld: &Loader<'_>, c: &LlamaConfig, layer: usize, kind: LayerKind) -> Result<Self> {
        let (width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let (k, bias) = (c.hidden_size, Bias::from(c.bias.qkv));
        let [q_proj, k_proj, v_proj] = match c.fused {
            true => ld.linears("qkv_proj", [width, kv_width, kv_width], k, bias)?,
            false => {
                let names = ["q_proj", "k_proj", "v_proj"];
                ld.linears_beside(names, [width, kv_width, kv_width], k, bias)?
            }
        };
        let (names, norm_widths) = match c.qk_norm {
            QkNorm::No => ([None, None], [width, kv_width]),
            QkNorm::Head => ([Some("q_norm"), Some("k_norm")], [c.head_dim, c.head_dim]),
            QkNorm::Width => ([Some("q_norm"), Some("k_norm")], [width, kv_width]),
        };
        Ok(SelfAttention {
            q_proj,
            k_proj,
            v_proj,
            q_norm: Norm::load(ld, c, names[0], norm_widths[0])?,
            k_norm: Norm::load(ld, c, names[1], norm_widths[1])?,
            o_proj: ld.linear("o_proj", c.hidden_size, width, Bias::from(c.bias.o))?,
            how: Heads {
                heads: c.heads,
                kv_heads: c.kv_heads,
                scale: c.attention_scale,
                cap: c.attention_cap,
                window: kind.window,
            },
            norm_widths,
            rope: kind.rope,
            layer,
            head_dim: c.head_dim,
            path: ld.path().to_string(),
        })
    }

    /// Whether it is softmax(q·k / √d) over all tokens before, which a probe computes from taps of both.
    fn is_plain(&self) -> bool {
        let Heads { scale, cap, window, .. } = self.how;
        let d = self.head_dim as f32;
        cap.is_none() && window.is_none() && (scale * d.sqrt() - 1.0).abs() < 1e-6
    }

    fn forward<'g>(&self, x: Var<'g>, text: &Text<'g, '_>, ropes: &[Rope]) -> Var<'g> {
        let q = self.q_norm.forward_each(self.q_proj.forward(x), self.norm_widths[0]);
        let k = self.k_norm.forward_each(self.k_proj.forward(x), self.norm_widths[1]);
        let v = self.v_proj.forward(x);
        let [q, k] = match self.rope.and_then(|rope| ropes.get(rope)) {
            Some(at) => {
                let at = at.for_context(text.cache.context());
                [(q, self.how.heads), (k, self.how.kv_heads)]
                    .map(|(x, heads)| rope(x, text.start, at, heads))
            }
            None => [q, k],
        };
        if self.is_plain() {
            let tap = |x: Var<'g>, heads: usize, name: &str| {
                let each = [x.dim(0), x.dim(1), heads, x.dim(2) / heads];
                x.reshape(each).tap(format!("{}.{name}", self.path));
            };
            tap(q, self.how.heads, "q");
            tap(k, self.how.kv_heads, "k.causal");
        }
        self.o_proj.forward(text.cache.attend(self.layer, [q, k, v], text.start, self.how))
    }
}

/// SwiGLU (Shazeer 2020): down(silu(gate(x)) · up(x)), or with GELU.
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    act: Act,
}

impl Mlp {
    fn load(ld: &Loader<'_>, c: &LlamaConfig) -> Result<Mlp> {
        let (inner, width, bias) = (c.intermediate_size, c.hidden_size, Bias::from(c.bias.mlp));
        let [gate_proj, up_proj] = match c.fused {
            true => ld.linears("gate_up_proj", [inner, inner], width, bias)?,
            false => ld.linears_beside(["gate_proj", "up_proj"], [inner, inner], width, bias)?,
        };
        let down_proj = ld.linear("down_proj", width, inner, bias)?;
        Ok(Mlp { gate_proj, up_proj, down_proj, act: c.act })
    }

    fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let (gate, up) = (self.gate_proj.forward(x), self.up_proj.forward(x));
        self.down_proj.forward(gated(gate, up, self.act))
    }
}

struct Layer {
    before_attention: Norm,
    self_attn: SelfAttention,
    after_attention: Norm,
    before_mlp: Norm,
    mlp: Mlp,
    after_mlp: Norm,
    path: String,
}

impl Layer {
    fn load(ld: &Loader<'_>, c: &LlamaConfig, layer: usize, kind: LayerKind) -> Result<Layer> {
        let norm = |name| Norm::load(ld, c, name, c.hidden_size);
        Ok(Layer {
            before_attention: norm(c.norms.before_attention)?,
            self_attn: SelfAttention::load(&ld.pp("self_attn"), c, layer, kind)?,
            after_attention: norm(c.norms.after_attention)?,
            before_mlp: norm(c.norms.before_mlp)?,
            mlp: Mlp::load(&ld.pp("mlp"), c)?,
            after_mlp: norm(c.norms.after_mlp)?,
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>, text: &Text<'g, '_>, ropes: &[Rope]) -> Var<'g> {
        let a = self.self_attn.forward(self.before_attention.forward(x), text, ropes);
        let x = x + self.after_attention.forward(a).tap(format!("{}.self_attn", self.path));
        let m = self.mlp.forward(self.before_mlp.forward(x));
        let x = x + self.after_mlp.forward(m).tap(format!("{}.mlp", self.path));
        x.tap(self.path.as_str())
    }
}

/// A Llama, or one of its relatives, on the GPU.
pub(super) struct Llama {
    embed_tokens: Embedding,
    embedding_scale: f32,
    layers: Vec<Layer>,
    ropes: Vec<Rope>,
    norm: Norm,
    lm_head: Linear,
    logit_cap: Option<f32>,
}

/// Where the language model lies in a checkpoint: by itself, or beside a vision tower (Gemma 3, as
/// transformers 4 and 5 name it).
const PLACES: [(&str, &str); 3] = [
    ("model", "lm_head"),
    ("language_model.model", "language_model.lm_head"),
    ("model.language_model", "lm_head"),
];

impl Llama {
    /// Loads every tensor; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, c: &LlamaConfig) -> Result<Llama> {
        let (vocab, width) = (c.vocab_size, c.hidden_size);
        let here = |(model, _): &(&str, &str)| ld.contains(&format!("{model}.embed_tokens.weight"));
        let (model, head) = PLACES.into_iter().find(here).unwrap_or(PLACES[0]);
        let model = ld.pp(model);
        let embed_tokens = model.embedding("embed_tokens", vocab, width)?;
        let layers = model.pp("layers");
        let layer = |(i, kind): (usize, &LayerKind)| Layer::load(&layers.pp(i), c, i, *kind);
        let layers = c.layers.iter().enumerate().map(layer).collect::<Result<_>>()?;
        let tied = c.tied.unwrap_or(!ld.contains(&format!("{head}.weight")));
        let lm_head = match tied {
            true => embed_tokens.as_linear(),
            false => ld.linear(head, vocab, width, Bias::No)?,
        };
        Ok(Llama {
            embed_tokens,
            embedding_scale: c.embedding_scale,
            layers,
            ropes: c.ropes.iter().map(|rope| rope.upload(ld.gpu())).collect::<Result<_>>()?,
            norm: Norm::load(&model, c, Some("norm"), width)?,
            lm_head,
            logit_cap: c.logit_cap,
        })
    }
}

impl Net for Llama {
    fn hidden<'g>(&self, ids: Var<'g>, text: &Text<'g, '_>) -> Var<'g> {
        let x = self.embed_tokens.forward(ids).tap("model.embed_tokens");
        let x = if self.embedding_scale == 1.0 { x } else { self.embedding_scale * x };
        self.layers.iter().fold(x, |x, layer| layer.forward(x, text, &self.ropes))
    }

    fn logits<'g>(&self, x: Var<'g>) -> Var<'g> {
        let logits = self.lm_head.forward_f32(self.norm.forward(x));
        self.logit_cap.map_or(logits, |cap| soft_cap(logits, cap)).tap("lm_head")
    }
}
