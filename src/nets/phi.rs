//! Phi-1, 1.5 and 2 (Gunasekar et al. 2023; Javaheripi et al. 2023): attention and feed-forward unit side by side on one
//! LayerNorm, biases everywhere, part of each head turns. Names and numbers as transformers'
//! `modeling_phi.py` has them.

use super::config::Fields;
use super::language::{Net, Text};
use super::rotary::{Rope, RotaryConfig, RotaryRules};
use crate::Result;
use crate::graph::Var;
use crate::nn::{Bias, Embedding, Heads, LayerNorm, Linear, Loader};
use crate::ops::pointwise::{Act, activate};
use crate::ops::rope::rope;

/// `config.json` of a Phi.
#[derive(Clone, Debug)]
pub(super) struct PhiConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub layers: usize,
    pub max_position_embeddings: usize,
    pub heads: usize,
    pub kv_heads: usize,
    intermediate_size: usize,
    act: Act,
    eps: f64,
    qk_layernorm: bool,
    tied: bool,
    rope: RotaryConfig,
}

impl PhiConfig {
    pub fn read(f: Fields<'_>) -> Result<PhiConfig> {
        let (hidden_size, heads) = (f.size(&["hidden_size"])?, f.size(&["num_attention_heads"])?);
        let kv_heads = f.size_or("num_key_value_heads", heads)?;
        if !hidden_size.is_multiple_of(heads) || !heads.is_multiple_of(kv_heads) {
            return Err(f.wrong(format!(
                "{heads} heads over {kv_heads} key/value heads of {hidden_size} channels make no attention"
            )));
        }
        let (head_dim, partial) = (hidden_size / heads, Some(0.5));
        let positions = f.size_or("max_position_embeddings", 2048)?;
        let rules = RotaryRules { head_dim, theta: 10_000.0, partial, positions };
        Ok(PhiConfig {
            vocab_size: f.size(&["vocab_size"])?,
            hidden_size,
            layers: f.size(&["num_hidden_layers"])?,
            max_position_embeddings: positions,
            heads,
            kv_heads,
            intermediate_size: f.size(&["intermediate_size"])?,
            act: f.activation("hidden_act", Act::GeluTanh)?,
            eps: f.number_or("layer_norm_eps", 1e-5)?,
            qk_layernorm: f.flag_or("qk_layernorm", false)?,
            tied: f.flag_or("tie_word_embeddings", false)?,
            rope: RotaryConfig::read(f, "full_attention", rules)?,
        })
    }
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.heads
    }
    /// Channels of the keys of a token.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim()
    }
}

struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    dense: Linear,
    /// On each head of q and k, where the configuration wants it.
    qk_layernorm: Option<[LayerNorm; 2]>,
    how: Heads,
    head_dim: usize,
    layer: usize,
}

impl SelfAttention {
    fn load(ld: &Loader<'_>, c: &PhiConfig, layer: usize) -> Result<SelfAttention> {
        let (width, head_dim) = (c.hidden_size, c.head_dim());
        let norm = |name| ld.layer_norm(name, head_dim, c.eps);
        let qk_layernorm = match c.qk_layernorm {
            true => Some([norm("q_layernorm")?, norm("k_layernorm")?]),
            false => None,
        };
        let (heads, kv_heads) = (c.heads, c.kv_heads);
        let scale = 1.0 / (head_dim as f32).sqrt();
        Ok(SelfAttention {
            q_proj: ld.linear("q_proj", width, width, Bias::Yes)?,
            k_proj: ld.linear("k_proj", c.kv_width(), width, Bias::Yes)?,
            v_proj: ld.linear("v_proj", c.kv_width(), width, Bias::Yes)?,
            dense: ld.linear("dense", width, width, Bias::Yes)?,
            qk_layernorm,
            how: Heads { heads, kv_heads, scale, cap: None, window: None },
            head_dim,
            layer,
        })
    }

    fn forward<'g>(&self, x: Var<'g>, text: &Text<'g, '_>, at: &Rope) -> Var<'g> {
        let (mut q, mut k) = (self.q_proj.forward(x), self.k_proj.forward(x));
        if let Some([q_layernorm, k_layernorm]) = &self.qk_layernorm {
            let heads = |x: Var<'g>| x.reshape([1, x.shape().len() / self.head_dim, self.head_dim]);
            q = q_layernorm.forward(heads(q)).reshape(q.shape());
            k = k_layernorm.forward(heads(k)).reshape(k.shape());
        }
        let at = at.for_context(text.cache.context());
        let q = rope(q, text.start, at, self.how.heads);
        let k = rope(k, text.start, at, self.how.kv_heads);
        let v = self.v_proj.forward(x);
        self.dense.forward(text.cache.attend(self.layer, [q, k, v], text.start, self.how))
    }
}

struct Layer {
    input_layernorm: LayerNorm,
    self_attn: SelfAttention,
    fc1: Linear,
    fc2: Linear,
    act: Act,
    path: String,
}

impl Layer {
    fn load(ld: &Loader<'_>, c: &PhiConfig, layer: usize) -> Result<Layer> {
        let (width, inner, mlp) = (c.hidden_size, c.intermediate_size, ld.pp("mlp"));
        Ok(Layer {
            input_layernorm: ld.layer_norm("input_layernorm", width, c.eps)?,
            self_attn: SelfAttention::load(&ld.pp("self_attn"), c, layer)?,
            fc1: mlp.linear("fc1", inner, width, Bias::Yes)?,
            fc2: mlp.linear("fc2", width, inner, Bias::Yes)?,
            act: c.act,
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>, text: &Text<'g, '_>, at: &Rope) -> Var<'g> {
        let h = self.input_layernorm.forward(x);
        let a = self.self_attn.forward(h, text, at).tap(format!("{}.self_attn", self.path));
        let m = self.fc2.forward(activate(self.fc1.forward(h), self.act));
        (x + a + m.tap(format!("{}.mlp", self.path))).tap(self.path.as_str())
    }
}

/// A Phi on the GPU.
pub(super) struct Phi {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    final_layernorm: LayerNorm,
    lm_head: Linear,
    rope: Rope,
}

impl Phi {
    /// Loads every tensor; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, c: &PhiConfig) -> Result<Phi> {
        let (vocab, width, model) = (c.vocab_size, c.hidden_size, ld.pp("model"));
        let embed_tokens = model.embedding("embed_tokens", vocab, width)?;
        let layers = model.pp("layers");
        let layer = |i| Layer::load(&layers.pp(i), c, i);
        let lm_head = match c.tied {
            true => {
                let bias = Some(ld.pp("lm_head").vector("bias", vocab)?);
                Linear { bias, ..embed_tokens.as_linear() }
            }
            false => ld.linear("lm_head", vocab, width, Bias::Yes)?,
        };
        Ok(Phi {
            layers: (0..c.layers).map(layer).collect::<Result<_>>()?,
            final_layernorm: model.layer_norm("final_layernorm", width, c.eps)?,
            rope: c.rope.upload(ld.gpu())?,
            embed_tokens,
            lm_head,
        })
    }
}

impl Net for Phi {
    fn hidden<'g>(&self, ids: Var<'g>, text: &Text<'g, '_>) -> Var<'g> {
        let x = self.embed_tokens.forward(ids).tap("model.embed_tokens");
        self.layers.iter().fold(x, |x, layer| layer.forward(x, text, &self.rope))
    }

    fn logits<'g>(&self, x: Var<'g>) -> Var<'g> {
        self.lm_head.forward_f32(self.final_layernorm.forward(x)).tap("lm_head")
    }
}
