//! A part of a checkpoint as a store of its own: other names and shapes over the same mapped bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::WeightStore;
use super::bytes::Bytes;
use super::gguf::Gguf;
use super::gguf_names::Source;
use super::gguf_repack::Rows;
use super::gguf_store::GgufTensors;
use super::image_names::Take;
use super::store::{Entry, Shard};
use crate::{Error, Result};

/// A tensor of a file under the name and in the shape that it is to have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pick {
    pub(super) to: String,
    pub(super) from: String,
    pub(super) take: Take,
    pub(super) shape: Vec<usize>,
}

impl Pick {
    /// What `take` makes of a tensor of the shape `stored`; an error says why it cannot be.
    pub(super) fn new(
        from: &str,
        stored: &[usize],
        (to, take): (String, Take),
    ) -> Result<Pick, String> {
        let shape = match (take, stored) {
            (Take::Whole, _) | (Take::Linear, [_] | [_, _]) => stored.to_vec(),
            (Take::Linear, [n, k, 1, 1]) => vec![*n, *k],
            (Take::Transposed, [k, n]) => vec![*n, *k],
            (Take::Third(_), [rows, rest @ ..]) if rows % 3 == 0 => [&[rows / 3], rest].concat(),
            _ => {
                return Err(format!("tensor `{from}` has shape {stored:?}, which makes no `{to}`"));
            }
        };
        Ok(Pick { to, from: from.into(), take, shape })
    }
}

impl WeightStore {
    /// The picked tensors of this store. Their bytes are shared with it; only a transposed matrix is
    /// copied.
    pub(super) fn pick(&self, path: &Path, picks: &[Pick]) -> Result<WeightStore> {
        let mut store = WeightStore::empty(path);
        store.shards = self.shards.clone();
        for pick in picks {
            let Some(entry) = self.entries.get(&pick.from) else {
                return Err(Error::Model(format!("{}: no tensor `{}`", path.display(), pick.from)));
            };
            let (shard, dtype, shape) = (entry.shard, entry.dtype, pick.shape.clone());
            let (start, size) = (entry.range.start, entry.range.len());
            let entry = match pick.take {
                Take::Whole | Take::Linear => {
                    Entry { shard, dtype, shape, range: entry.range.clone() }
                }
                Take::Third(i) => {
                    let range = start + size / 3 * i..start + size / 3 * (i + 1);
                    Entry { shard, dtype, shape, range }
                }
                Take::Transposed => {
                    let bytes = self.shards[shard].bytes.get().get(entry.range.clone());
                    let bytes = turned(bytes.unwrap_or_default(), &pick.shape);
                    let (range, path) = (0..bytes.len(), self.shards[shard].path.clone());
                    let (bytes, metadata) = (Arc::new(Bytes::Held(bytes)), BTreeMap::new());
                    store.shards.push(Shard { path, bytes, metadata, derived: true });
                    Entry { shard: store.shards.len() - 1, dtype, shape, range }
                }
            };
            store.entries.insert(pick.to.clone(), entry);
        }
        store.names = store.entries.keys().cloned().collect();
        Ok(store)
    }

    /// The picked tensors of a GGUF file.
    pub(super) fn pick_gguf(gguf: &Arc<Gguf>, picks: &[Pick]) -> WeightStore {
        let source = |pick: &Pick| {
            let first = match pick.take {
                Take::Third(i) => pick.shape.first().copied().unwrap_or_default() * i,
                _ => 0,
            };
            let source = Source {
                tensor: pick.from.clone(),
                shape: pick.shape.clone(),
                rows: Rows { first, interleaved: None },
                transposed: pick.take == Take::Transposed,
                minus: 0.0,
            };
            (pick.to.clone(), source)
        };
        let mut store = WeightStore::empty(gguf.path());
        let sources: BTreeMap<String, Source> = picks.iter().map(source).collect();
        store.names = sources.keys().cloned().collect();
        store.gguf = Some(GgufTensors::over(gguf.clone(), sources));
        store
    }
}

/// The elements of a `[K, N]` matrix in the order of its transpose, whose shape is given.
fn turned(bytes: &[u8], shape: &[usize]) -> Vec<u8> {
    let &[n, k] = shape else { return bytes.to_vec() };
    let size = bytes.len() / (n * k).max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for column in 0..n {
        for row in 0..k {
            let at = (row * n + column) * size;
            out.extend_from_slice(&bytes[at..at + size]);
        }
    }
    out
}

/// The shapes of all tensors of a file by its own names. A GGUF file may have flattened a tensor for
/// the sake of its blocks; `comfy.gguf.orig_shape.NAME` is then its shape (ComfyUI-GGUF's convert.py).
pub(super) fn gguf_shapes(gguf: &Gguf) -> Result<BTreeMap<String, Vec<usize>>> {
    let mut shapes = BTreeMap::new();
    for (name, tensor) in gguf.tensors() {
        if !tensor.ty.is_supported() {
            return Err(Error::Model(format!(
                "{}: tensor `{name}` has the type {}, which is not read here; take the same model as \
                 Q4_0, Q4_K, Q5_K, Q6_K, Q8_0 or F16",
                gguf.path().display(),
                tensor.ty
            )));
        }
        let key = format!("comfy.gguf.orig_shape.{name}");
        let shape = match gguf.numbers(&key)? {
            None => tensor.shape.clone(),
            Some(sizes) => {
                let whole = |n: &f64| *n >= 1.0 && n.fract() == 0.0 && *n <= (1u64 << 40) as f64;
                let shape: Vec<usize> = sizes.iter().map(|n| *n as usize).collect();
                let len = shape.iter().try_fold(1usize, |len, &n| len.checked_mul(n));
                if !sizes.iter().all(whole) || len != Some(tensor.len()) {
                    return Err(
                        gguf.bad(&key, "is not a shape of as many numbers as the tensor has")
                    );
                }
                shape
            }
        };
        shapes.insert(name.clone(), shape);
    }
    Ok(shapes)
}
