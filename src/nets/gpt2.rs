//! GPT-2 (Radford et al. 2019): LayerNorm, learned positions, GELU. Names and numbers as transformers'
//! `modeling_gpt2.py` has them, with `transformer.` before them or without.

use super::config::Fields;
use super::language::{Net, Text};
use crate::Result;
use crate::graph::Var;
use crate::nn::{Bias, Embedding, Heads, LayerNorm, Linear, Loader};
use crate::ops::pointwise::{Act, activate};

/// `config.json` of a GPT-2.
#[derive(Clone, Debug)]
pub(super) struct Gpt2Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub layers: usize,
    pub positions: usize,
    pub heads: usize,
    inner: usize,
    act: Act,
    eps: f64,
    scaled: bool,
    scaled_by_layer: bool,
    tied: bool,
}

impl Gpt2Config {
    pub fn read(f: Fields<'_>) -> Result<Gpt2Config> {
        f.check("GPT-2", &[("add_cross_attention", "null|false")])?;
        let hidden_size = f.size(&["n_embd", "hidden_size"])?;
        let heads = f.size(&["n_head", "num_attention_heads"])?;
        if !hidden_size.is_multiple_of(heads) {
            return Err(f.wrong(format!("{heads} heads of {hidden_size} channels")));
        }
        Ok(Gpt2Config {
            vocab_size: f.size(&["vocab_size"])?,
            hidden_size,
            layers: f.size(&["n_layer", "num_hidden_layers"])?,
            positions: f.size(&["n_positions", "max_position_embeddings", "n_ctx"])?,
            heads,
            inner: f.size_or("n_inner", 4 * hidden_size)?,
            act: f.activation("activation_function", Act::GeluTanh)?,
            eps: f.number_or("layer_norm_epsilon", 1e-5)?,
            scaled: f.flag_or("scale_attn_weights", true)?,
            scaled_by_layer: f.flag_or("scale_attn_by_inverse_layer_idx", false)?,
            tied: f.flag_or("tie_word_embeddings", true)?,
        })
    }

    /// Factor of the scores.
    fn scale(&self, layer: usize) -> f32 {
        let head_dim = (self.hidden_size / self.heads) as f32;
        let scale = if self.scaled { 1.0 / head_dim.sqrt() } else { 1.0 };
        if self.scaled_by_layer { scale / (layer + 1) as f32 } else { scale }
    }
}

struct Block {
    ln_1: LayerNorm,
    /// The three parts of `c_attn`.
    qkv: [Linear; 3],
    attn_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
    how: Heads,
    act: Act,
    layer: usize,
    path: String,
}

impl Block {
    fn load(ld: &Loader<'_>, c: &Gpt2Config, layer: usize) -> Result<Block> {
        let (width, attn, mlp) = (c.hidden_size, ld.pp("attn"), ld.pp("mlp"));
        let [attn_proj] = attn.conv1ds("c_proj", [width], width, Bias::Yes)?;
        let [c_fc] = mlp.conv1ds("c_fc", [c.inner], width, Bias::Yes)?;
        let [c_proj] = mlp.conv1ds("c_proj", [width], c.inner, Bias::Yes)?;
        let (heads, scale) = (c.heads, c.scale(layer));
        Ok(Block {
            ln_1: ld.layer_norm("ln_1", width, c.eps)?,
            qkv: attn.conv1ds("c_attn", [width; 3], width, Bias::Yes)?,
            attn_proj,
            ln_2: ld.layer_norm("ln_2", width, c.eps)?,
            c_fc,
            c_proj,
            how: Heads { heads, kv_heads: heads, scale, cap: None, window: None },
            act: c.act,
            layer,
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>, text: &Text<'g, '_>) -> Var<'g> {
        let h = self.ln_1.forward(x);
        let qkv = self.qkv.each_ref().map(|part| part.forward(h));
        let a = self.attn_proj.forward(text.cache.attend(self.layer, qkv, text.start, self.how));
        let x = x + a.tap(format!("{}.attn", self.path));
        let m = activate(self.c_fc.forward(self.ln_2.forward(x)), self.act);
        (x + self.c_proj.forward(m).tap(format!("{}.mlp", self.path))).tap(self.path.as_str())
    }
}

/// A GPT-2 on the GPU.
pub(super) struct Gpt2 {
    wte: Embedding,
    wpe: Embedding,
    blocks: Vec<Block>,
    ln_f: LayerNorm,
    lm_head: Linear,
}

impl Gpt2 {
    /// Loads every tensor; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, c: &Gpt2Config) -> Result<Gpt2> {
        let (vocab, width) = (c.vocab_size, c.hidden_size);
        let root = match ld.contains("wte.weight") {
            true => ld.clone(),
            false => ld.pp("transformer"),
        };
        let wte = root.embedding("wte", vocab, width)?;
        let wpe = root.embedding("wpe", c.positions, width)?;
        let h = root.pp("h");
        let block = |i| Block::load(&h.pp(i), c, i);
        let blocks = (0..c.layers).map(block).collect::<Result<_>>()?;
        let lm_head = match c.tied {
            true => wte.as_linear(),
            false => ld.linear("lm_head", vocab, width, Bias::No)?,
        };
        let ln_f = root.layer_norm("ln_f", width, c.eps)?;
        Ok(Gpt2 { wte, wpe, blocks, ln_f, lm_head })
    }
}

impl Net for Gpt2 {
    fn hidden<'g>(&self, ids: Var<'g>, text: &Text<'g, '_>) -> Var<'g> {
        let x = self.wte.forward(ids) + self.wpe.forward_range(text.start, ids.dim(1));
        self.blocks.iter().fold(x.tap("transformer.drop"), |x, block| block.forward(x, text))
    }

    fn logits<'g>(&self, x: Var<'g>) -> Var<'g> {
        self.lm_head.forward_f32(self.ln_f.forward(x)).tap("lm_head")
    }
}
