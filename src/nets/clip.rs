//! CLIP's text encoder (Radford et al. 2021): a causal transformer over 77 tokens, the prompt's way
//! into Stable Diffusion. Names as in transformers' `modeling_clip.py`.

use std::path::Path;

use serde::Deserialize;

use super::config::{self, wrong};
use crate::Result;
use crate::gpu::Gpu;
use crate::graph::Var;
use crate::nn::{Bias, Embedding, LayerNorm, Linear, Loader, Positions};
use crate::ops::attention::{Attention, Mask, attention};
use crate::ops::embed::take_row;
use crate::ops::pointwise::{Act, activate};
use crate::tensor::Tensor;

/// `config.json` of a CLIP text encoder. Absent fields have transformers' defaults.
#[derive(Clone, Debug, Deserialize)]
pub struct ClipTextConfig {
    #[serde(default = "defaults::vocab")]
    pub vocab_size: usize,
    #[serde(default = "defaults::hidden")]
    pub hidden_size: usize,
    #[serde(default = "defaults::intermediate")]
    pub intermediate_size: usize,
    #[serde(default = "defaults::layers")]
    pub num_hidden_layers: usize,
    #[serde(default = "defaults::heads")]
    pub num_attention_heads: usize,
    #[serde(default = "defaults::positions")]
    pub max_position_embeddings: usize,
    #[serde(default = "defaults::eps")]
    pub layer_norm_eps: f64,
    #[serde(default)]
    hidden_act: HiddenAct,
    #[serde(default)]
    pub eos_token_id: Option<u32>,
    /// Channels of `text_embeds`, where the encoder has a projection.
    #[serde(default = "defaults::hidden")]
    pub projection_dim: usize,
}

mod defaults {
    pub fn vocab() -> usize {
        49408
    }
    pub fn hidden() -> usize {
        512
    }
    pub fn intermediate() -> usize {
        2048
    }
    pub fn layers() -> usize {
        12
    }
    pub fn heads() -> usize {
        8
    }
    pub fn positions() -> usize {
        77
    }
    pub fn eps() -> f64 {
        1e-5
    }
}

/// SD 1.x has `quick_gelu` (CLIP-L as OpenAI trained it), SD 2.x `gelu` (OpenCLIP-H).
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum HiddenAct {
    #[default]
    QuickGelu,
    Gelu,
}

impl ClipTextConfig {
    /// Reads `config.json` of a text encoder's folder (or a file of that form).
    ///
    /// # Errors
    /// `Model` for another architecture or activation.
    pub fn read(path: impl AsRef<Path>) -> Result<ClipTextConfig> {
        let (source, fields) = config::fields(path.as_ref())?;
        ClipTextConfig::from_value(&fields, &source)
    }
    /// As [`ClipTextConfig::read`], from what the file holds; `source` is its name in messages.
    pub fn from_value(fields: &serde_json::Value, path: &Path) -> Result<ClipTextConfig> {
        let rules =
            [("model_type", "\"clip_text_model\""), ("hidden_act", "\"quick_gelu\"|\"gelu\"")];
        let config: ClipTextConfig = config::parse(fields, path, "the text encoder", &rules)?;
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        match heads > 0 && width.is_multiple_of(heads) {
            true => Ok(config),
            false => Err(wrong(path, format!("{width} channels do not divide into {heads} heads"))),
        }
    }

    /// Where each prompt's pooled state is, for `ids` of prompts of `length` tokens: the first
    /// end-of-text token. Files from before transformers 4.30 say `eos_token_id` 2 whatever the
    /// vocabulary, and there the highest id is meant.
    pub fn eos_rows(&self, ids: &[u32], length: usize) -> Vec<u32> {
        let row = |ids: &[u32]| {
            let highest = ids.iter().copied().max().unwrap_or(0);
            let end = self.eos_token_id.filter(|id| *id != 2).unwrap_or(highest);
            ids.iter().position(|id| *id == end).unwrap_or(0) as u32
        };
        ids.chunks_exact(length.max(1)).map(row).collect()
    }
}

struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    how: Attention<'static>,
}

impl SelfAttention {
    fn load(ld: &Loader<'_>, c: &ClipTextConfig) -> Result<SelfAttention> {
        let (width, heads) = (c.hidden_size, c.num_attention_heads);
        let names = ["q_proj", "k_proj", "v_proj"];
        let [q_proj, k_proj, v_proj] = ld.linears_beside(names, [width; 3], width, Bias::Yes)?;
        let scale = 1.0 / ((width / heads) as f32).sqrt();
        Ok(SelfAttention {
            q_proj,
            k_proj,
            v_proj,
            out_proj: ld.linear("out_proj", width, width, Bias::Yes)?,
            how: Attention { heads, kv_heads: heads, scale, cap: None, mask: Mask::Causal },
        })
    }

    fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let (q, k, v) = (self.q_proj.forward(x), self.k_proj.forward(x), self.v_proj.forward(x));
        self.out_proj.forward(attention(q, k, v, self.how))
    }
}

struct Layer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    act: Act,
    path: String,
}

impl Layer {
    fn load(ld: &Loader<'_>, c: &ClipTextConfig) -> Result<Layer> {
        let (width, inner) = (c.hidden_size, c.intermediate_size);
        let act = match c.hidden_act {
            HiddenAct::QuickGelu => Act::QuickGelu,
            HiddenAct::Gelu => Act::Gelu,
        };
        let mlp = ld.pp("mlp");
        Ok(Layer {
            layer_norm1: ld.layer_norm("layer_norm1", width, c.layer_norm_eps)?,
            self_attn: SelfAttention::load(&ld.pp("self_attn"), c)?,
            layer_norm2: ld.layer_norm("layer_norm2", width, c.layer_norm_eps)?,
            fc1: mlp.linear("fc1", inner, width, Bias::Yes)?,
            fc2: mlp.linear("fc2", width, inner, Bias::Yes)?,
            act,
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let x = x + self.self_attn.forward(self.layer_norm1.forward(x));
        let h = activate(self.fc1.forward(self.layer_norm2.forward(x)), self.act);
        (x + self.fc2.forward(h)).tap(self.path.as_str())
    }
}

/// A text encoder on the GPU: CLIPTextModel, or CLIPTextModelWithProjection.
pub struct ClipText {
    token_embedding: Embedding,
    position_embedding: Positions,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

/// Every state of a text encoder. What nobody asks for costs nothing: a plan drops it.
pub struct ClipStates<'g, 'a> {
    /// The embeddings, then the output of each layer.
    hidden: Vec<Var<'g>>,
    net: &'a ClipText,
}

impl ClipText {
    /// Loads every tensor; `ld` is the root of the checkpoint. Published files name them
    /// `text_model.…`, those that transformers 5 writes leave that out.
    pub fn load(ld: &Loader<'_>, config: &ClipTextConfig) -> Result<ClipText> {
        let published = ld.contains("text_model.embeddings.token_embedding.weight");
        let model = if published { ld.pp("text_model") } else { ld.clone() };
        let (embeddings, layers) = (model.pp("embeddings"), model.pp("encoder.layers"));
        let (width, positions) = (config.hidden_size, config.max_position_embeddings);
        let layer = |i| Layer::load(&layers.pp(i), config);
        let projected = ld.contains("text_projection.weight");
        let projection = || ld.linear("text_projection", config.projection_dim, width, Bias::No);
        Ok(ClipText {
            token_embedding: embeddings.embedding("token_embedding", config.vocab_size, width)?,
            position_embedding: embeddings.positions("position_embedding", positions, width)?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            final_layer_norm: model.layer_norm("final_layer_norm", width, config.layer_norm_eps)?,
            text_projection: projected.then(projection).transpose()?,
        })
    }

    /// Whether it has the projection that `text_embeds` needs.
    pub fn projects(&self) -> bool {
        self.text_projection.is_some()
    }

    /// Puts vectors `[n, C]` of textual inversion behind the token table: ids from `vocab_size` on.
    pub fn set_added_tokens(&mut self, gpu: &Gpu, rows: Option<&Tensor>) -> Result<()> {
        self.token_embedding.set_added(gpu, rows)
    }

    /// Token ids u32 `[B, S]` → the last hidden state `[B, S, C]`, after the final norm: the context
    /// of SD 1.x and 2.x.
    #[track_caller]
    pub fn forward<'g>(&self, ids: Var<'g>) -> Var<'g> {
        self.states(ids).last()
    }

    /// Token ids u32 `[B, S]` → every state there is to ask for.
    #[track_caller]
    pub fn states<'g>(&self, ids: Var<'g>) -> ClipStates<'g, '_> {
        let embeddings = self.position_embedding.forward(self.token_embedding.forward(ids));
        self.states_of(embeddings)
    }

    /// As [`ClipText::states`] from embeddings `[B, S, C]` of tokens and positions.
    fn states_of<'g>(&self, embeddings: Var<'g>) -> ClipStates<'g, '_> {
        let mut hidden = vec![embeddings];
        for layer in &self.layers {
            hidden.push(layer.forward(hidden[hidden.len() - 1]));
        }
        ClipStates { hidden, net: self }
    }
}

impl<'g> ClipStates<'g, '_> {
    /// The output of the last layer `[B, S, C]`, after the final norm.
    #[track_caller]
    pub fn last(&self) -> Var<'g> {
        self.skipped(0)
    }

    /// The output `[B, S, C]` of the layer that has `skip` layers behind it, which has no norm after it:
    /// transformers' `hidden_states[-(skip + 1)]`. SDXL's context is that of `skip` 1 and, where
    /// diffusers is given a `clip_skip`, of 1 + `clip_skip`.
    #[track_caller]
    pub fn hidden(&self, skip: usize) -> Var<'g> {
        match self.hidden.iter().rev().nth(skip) {
            Some(state) => *state,
            None => self.hidden[0].graph().invalid(format!(
                "{skip} layers to be skipped, the text encoder has {}",
                self.hidden.len() - 1
            )),
        }
    }

    /// [`ClipStates::hidden`] after the final norm: the context of SD 1.x and 2.x, where `skip` is
    /// diffusers' `clip_skip` and one less than the "CLIP skip" of other programs.
    #[track_caller]
    pub fn skipped(&self, skip: usize) -> Var<'g> {
        self.net.final_layer_norm.forward(self.hidden(skip))
    }

    /// The state of one token of each prompt, after all layers and the final norm: rows u32 `[B]`, as
    /// [`ClipTextConfig::eos_rows`] finds them, → `[B, C]`.
    #[track_caller]
    pub fn pooled(&self, rows: Var<'g>) -> Var<'g> {
        let state = take_row(self.hidden(0), rows);
        let state = state.reshape([state.dim(0), state.dim(2)]);
        self.net.final_layer_norm.forward(state)
    }

    /// [`ClipStates::pooled`] projected, `[B, projection_dim]`: SDXL's pooled text.
    #[track_caller]
    pub fn text_embeds(&self, rows: Var<'g>) -> Var<'g> {
        match &self.net.text_projection {
            Some(projection) => projection.forward(self.pooled(rows)),
            None => rows.graph().invalid(
                "the text encoder has no `text_projection.weight`; pooled text for SDXL comes from a \
                 CLIPTextModelWithProjection (`text_encoder_2`)"
                    .into(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two readings of transformers' `modeling_clip.py`.
    #[test]
    fn the_pooled_token_is_the_first_end_of_text() {
        let config = |eos: &str| -> ClipTextConfig {
            serde_json::from_str(&format!("{{\"eos_token_id\": {eos}}}")).unwrap()
        };
        let ids = [9, 4, 7, 9, 8, 8, 2, 5, 9, 9];
        assert_eq!(config("7").eos_rows(&ids, 5), [2, 0]);
        assert_eq!(config("2").eos_rows(&ids, 5), [0, 3]);
        assert_eq!(config("null").eos_rows(&ids, 5), [0, 3]);
    }
}
