//! Keys and values of the tokens seen so far, and attention to them.

use crate::gpu::{Buffer, Elem, Gpu};
use crate::graph::{Graph, Var};
use crate::ops::attention::{Attention, Mask, attention};
use crate::ops::kv_cache::{kv_write, q8_words};
use crate::{Error, Result};

/// How a cache stores keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// As activations are stored.
    Float(Elem),
    /// Signed bytes, with an f32 scale for each head of a token.
    Int8,
}

impl From<Elem> for KvFormat {
    fn from(elem: Elem) -> KvFormat {
        KvFormat::Float(elem)
    }
}

/// Keys and values of every layer for the tokens seen so far, `[1, context, width]` each. Graphs that
/// are given the same cache read and write the same memory.
#[derive(Clone)]
pub struct KvCache {
    layers: Vec<[Buffer; 2]>,
    context: usize,
    width: usize,
    elem: Elem,
}

/// How the heads of a layer attend to its cache.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub heads: usize,
    /// Fewer than the heads: grouped-query attention (Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Limit of the scores.
    pub cap: Option<f32>,
    /// Only the last so many tokens are seen.
    pub window: Option<usize>,
}

impl KvCache {
    /// Memory for `context` tokens in `layers` layers of `kv_heads` heads with `head_dim` channels.
    pub fn new(
        gpu: &Gpu,
        layers: usize,
        [kv_heads, head_dim]: [usize; 2],
        context: usize,
        format: impl Into<KvFormat>,
    ) -> Result<KvCache> {
        let (width, elem) = match format.into() {
            KvFormat::Float(elem) => (kv_heads * head_dim, elem),
            KvFormat::Int8 if head_dim.is_multiple_of(4) => {
                (q8_words(kv_heads, head_dim), Elem::U32)
            }
            KvFormat::Int8 => {
                return Err(Error::Usage(format!(
                    "heads of {head_dim} channels do not fit into a cache of eight bits, which holds \
                     four in a word; leave --kv out"
                )));
            }
        };
        let bytes = (context * width) as u64 * elem.bytes();
        let layer = |_| Ok([gpu.buffer("keys", bytes)?, gpu.buffer("values", bytes)?]);
        let layers = (0..layers).map(layer).collect::<Result<_>>()?;
        Ok(KvCache { layers, context, width, elem })
    }
    /// Tokens it has room for.
    pub fn context(&self) -> usize {
        self.context
    }
    /// Bytes on the GPU.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().flatten().map(Buffer::bytes).sum()
    }

    /// Keys and values of a layer.
    #[track_caller]
    fn layer<'g>(&self, graph: &'g Graph, layer: usize) -> [Var<'g>; 2] {
        let shape = [1, self.context, self.width];
        match self.layers.get(layer) {
            Some([k, v]) => [k, v].map(|buffer| graph.external(buffer, shape, self.elem)),
            None => [(); 2].map(|()| {
                graph.invalid(format!(
                    "the cache has {} layers, the model asks for number {layer}; it was made for \
                     another model",
                    self.layers.len()
                ))
            }),
        }
    }

    /// Writes the keys and values `[1, S, width]` of S new tokens, the first at position `start` (u32
    /// `[1]`), and lets their queries `[1, S, heads · D]` attend to what the layer has seen up to
    /// themselves.
    #[track_caller]
    pub fn attend<'g>(
        &self,
        layer: usize,
        [q, k, v]: [Var<'g>; 3],
        start: Var<'g>,
        how: Heads,
    ) -> Var<'g> {
        let [keys, values] = self.layer(q.graph(), layer);
        let (keys, values) = (kv_write(keys, k, start), kv_write(values, v, start));
        let Heads { heads, kv_heads, scale, cap, window } = how;
        let mask = Mask::Cached { start, window };
        attention(q, keys, values, Attention { heads, kv_heads, scale, cap, mask })
    }
}
