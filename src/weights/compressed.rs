//! compressed-tensors checkpoints in the format "pack-quantized", as llm-compressor writes them
//! (`compressed_tensors/compressors/pack_quantized`). For a layer of K inputs and N outputs at b bits:
//!
//! - `NAME.weight_packed` i32 `[N, ⌈K·b/32⌉]`, 32/b inputs a word, the first in the low bits, each
//!   code with 2^(b−1) added; `NAME.weight_shape` the integers N and K;
//! - `NAME.weight_scale` `[N, G]`, one column for a whole row, or one number for all;
//! - `NAME.weight_zero_point` i32 `[⌈N·b/32⌉, G]`, packed along the outputs as the codes are (older
//!   files: i8 `[N, G]`); absent where the format is symmetric;
//! - `NAME.weight_g_idx` i32 `[K]`, the group of each input, where they were reordered; −1 for none.

use super::codes::{Codes, Groups, unpack};
use super::foreign::{Config, Part, Parts};
use super::gptq::misfit;
use super::{Dtype, View, WeightStore};
use crate::{Error, Result};

/// What the configuration says.
#[derive(Clone, Debug)]
pub(super) struct Compressed {
    /// Group sizes that occur, for layers whose scales leave it open.
    groups: Vec<usize>,
}

impl Compressed {
    pub(super) fn new(config: &Config<'_>) -> Result<Compressed> {
        let mut formats: Vec<&str> = config.text("format").into_iter().collect();
        let mut groups = vec![];
        for scheme in config.objects("config_groups") {
            formats.extend(scheme.text("format"));
            let Some(weights) = scheme.object("weights") else { continue };
            match (weights.text("type").unwrap_or("int"), weights.number("num_bits")?.unwrap_or(4))
            {
                ("int", 4 | 8) => groups.extend(weights.group("group_size")?),
                (kind, bits) => {
                    let what = format!("compressed-tensors weights of type {kind}{bits}");
                    return Err(config.refuse(&what));
                }
            }
        }
        // The group's own formats say what a mixed file holds.
        let other = |f: &&str| !["pack-quantized", "dense", "mixed-precision"].contains(f);
        if let Some(format) = formats.into_iter().find(other) {
            return Err(config.refuse(&format!("the compressed-tensors format `{format}`")));
        }
        if config.object("transform_config").is_some_and(|t| !t.is_empty()) {
            return Err(
                config.refuse("compressed-tensors weights with rotations (transform_config)")
            );
        }
        let sparse = config.object("sparsity_config");
        let sparse = sparse.as_ref().and_then(|s| s.text("format")).filter(|f| *f != "dense");
        if let Some(format) = sparse {
            return Err(config.refuse(&format!("sparse compressed-tensors weights (`{format}`)")));
        }
        Ok(Compressed { groups })
    }

    /// How messages name it.
    pub(super) fn describe(&self) -> String {
        "compressed-tensors, pack-quantized".into()
    }

    /// Layers by name, each with its `[N, K]`.
    pub(super) fn find(&self, store: &WeightStore) -> Result<Parts> {
        let others = ["weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"];
        Parts::find(store, "weight_packed", &others, |name| {
            let packed = store.part(name, "weight_packed", Part::Words)?;
            let view = store.part(name, "weight_shape", Part::Integers)?;
            let shape = if view.len() == 2 { view.to_i64()? } else { vec![] };
            let size = |i: usize| shape.get(i).and_then(|&n| usize::try_from(n).ok());
            let fits = |n: usize, k: usize| {
                let words = |per: usize| packed.shape == [n, k.div_ceil(per)];
                n > 0 && k > 0 && (words(8) || words(4))
            };
            match (size(0), size(1)) {
                (Some(n), Some(k)) if fits(n, k) => Ok([n, k]),
                _ => Err(Error::Model(format!(
                    "`{name}.weight_packed` has shape {:?}, which does not hold `{name}.weight_shape` \
                     {shape:?} at 4 or 8 bits",
                    packed.shape
                ))),
            }
        })
    }

    pub(super) fn read(&self, store: &WeightStore, name: &str, shape: [usize; 2]) -> Result<Codes> {
        let [n, k] = shape;
        let packed = store.part(name, "weight_packed", Part::Words)?;
        let row_words = k.div_ceil(8);
        let bits: u32 = if packed.shape == [n, row_words] { 4 } else { 8 };
        let per_word = 32 / bits as usize;
        let row_words = k.div_ceil(per_word);
        let mask = if bits == 4 { 15u8 } else { 255 };
        let part = |word: u32, i: usize| (word >> (i as u32 * bits)) as u8 & mask;

        let scales = store.part(name, "weight_scale", Part::Floats)?;
        let (groups, scales) = match *scales.shape {
            [] | [1] | [1, 1] => (1, vec![scales.to_f32()?[0]; n]),
            [rows] if rows == n => (1, scales.to_f32()?),
            [rows, groups] if rows == n && groups > 0 => (groups, scales.to_f32()?),
            _ => return Err(misfit(&scales, &format!("[{n}, groups]"), name, shape)),
        };
        let words = packed.to_u32()?;
        Ok(Codes {
            rows: n,
            channels: k,
            bits,
            codes: unpack(n, k, |row, k| part(words[row * row_words + k / per_word], k % per_word)),
            groups: self.groups(store, name, shape, groups)?,
            scales,
            zeros: zeros(store, name, shape, groups, bits)?,
        })
    }

    fn groups(
        &self,
        store: &WeightStore,
        name: &str,
        shape: [usize; 2],
        groups: usize,
    ) -> Result<Groups> {
        let k = shape[1];
        if store.is_plain(&format!("{name}.weight_g_idx")) {
            let view = store.part(name, "weight_g_idx", Part::Integers)?;
            if view.len() != k {
                return Err(misfit(&view, &format!("[{k}]"), name, shape));
            }
            let index = view.to_i64()?;
            if !index.contains(&-1) {
                let index = index.iter().map(|&g| u32::try_from(g).unwrap_or(u32::MAX));
                return Ok(Groups::Index(index.collect()));
            }
        }
        let known = self.groups.iter().copied().find(|&g| k.div_ceil(g) == groups);
        Ok(Groups::Runs(match known {
            Some(size) if groups > 1 => size,
            _ => k.div_ceil(groups),
        }))
    }
}

/// `[N, G]`, with what was added to the codes.
fn zeros(
    store: &WeightStore,
    name: &str,
    shape: [usize; 2],
    groups: usize,
    bits: u32,
) -> Result<Vec<u8>> {
    let (n, middle) = (shape[0], 1u8 << (bits - 1));
    if !store.is_plain(&format!("{name}.weight_zero_point")) {
        return Ok(vec![middle; n * groups]);
    }
    let view = store.part(name, "weight_zero_point", Part::Integers)?;
    if view.dtype == Dtype::I8 {
        return signed_zeros(&view, name, shape, groups, bits);
    }
    let (per_word, mask) = (32 / bits as usize, if bits == 4 { 15u8 } else { 255 });
    let wanted = [n.div_ceil(per_word), groups];
    if view.shape != wanted {
        return Err(misfit(&view, &format!("{wanted:?}"), name, shape));
    }
    let words = view.to_u32()?;
    Ok(unpack(n, groups, |row, g| {
        let word = words[row / per_word * groups + g];
        (word >> ((row % per_word) as u32 * bits)) as u8 & mask
    }))
}

/// Zero points as older versions stored them: a signed byte each, one for all, one a row, or one a
/// group.
fn signed_zeros(
    view: &View<'_>,
    name: &str,
    shape: [usize; 2],
    groups: usize,
    bits: u32,
) -> Result<Vec<u8>> {
    let (count, middle) = (shape[0] * groups, 1i64 << (bits - 1));
    let stored = view.to_i64()?;
    if stored.len() != count && stored.len() != 1 {
        return Err(misfit(view, &format!("[{}, {groups}]", shape[0]), name, shape));
    }
    let zero = |i: usize| {
        let z = stored[i % stored.len()] + middle;
        u8::try_from(z).ok().filter(|&z| i64::from(z) < 2 * middle)
    };
    let zeros: Option<Vec<u8>> = (0..count).map(zero).collect();
    zeros.ok_or_else(|| {
        Error::Model(format!("`{}` holds zero points beyond {bits} bits; it is damaged", view.name))
    })
}
