//! GPTQ checkpoints, as AutoGPTQ and GPTQModel write them (`qlinear_cuda.py: pack`,
//! `gptqmodel/nn_modules/qlinear`). For a layer of K inputs and N outputs at b bits:
//!
//! - `NAME.qweight` i32 `[K·b/32, N]`, 32/b inputs a word, the first in the low bits;
//! - `NAME.qzeros` i32 `[G, N·b/32]`, packed along the outputs, in format "gptq" (v1) one less than
//!   the zero point, which is taken modulo 2^b after the one is added; "gptq_v2" stores it as it is;
//! - `NAME.scales` `[G, N]`, `NAME.g_idx` i32 `[K]`, the group of each input (optional).

use super::codes::{Codes, Groups, transpose, unpack};
use super::foreign::{Config, Part, Parts};
use super::{View, WeightStore};
use crate::{Error, Result};

/// What the configuration says.
#[derive(Clone, Debug)]
pub(super) struct Gptq {
    bits: u32,
    /// `None`: one group for each row.
    group: Option<usize>,
    /// 1 where zero points are stored one less than they are.
    plus: u8,
}

impl Gptq {
    pub(super) fn new(config: &Config<'_>) -> Result<Gptq> {
        let bits = config.number("bits")?.unwrap_or(4);
        let bits = match bits {
            4 | 8 => bits as u32,
            other => return Err(config.refuse(&format!("GPTQ at {other} bits"))),
        };
        let marlin = config.flag("is_marlin_format", false)?;
        let layout = config.text("checkpoint_format").unwrap_or("gptq");
        let plus = match if marlin { "marlin" } else { layout } {
            "gptq" => 1,
            "gptq_v2" => 0,
            other => return Err(config.refuse(&format!("GPTQ weights in the layout `{other}`"))),
        };
        let group = config.group("group_size")?;
        Ok(Gptq { bits, group, plus })
    }

    /// How messages name it.
    pub(super) fn describe(&self) -> String {
        let version = if self.plus == 1 { "v1" } else { "v2" };
        format!("GPTQ {version}, {} bits", self.bits)
    }

    /// Layers by name, each with its `[N, K]`.
    pub(super) fn find(&self, store: &WeightStore) -> Result<Parts> {
        Parts::find(store, "qweight", &["qzeros", "scales", "g_idx"], |name| {
            let qweight = store.part(name, "qweight", Part::Words)?;
            let per_word = 32 / self.bits(store, name, &qweight) as usize;
            match *qweight.shape {
                [words, n] if words > 0 && n > 0 => Ok([n, words.saturating_mul(per_word)]),
                _ => Err(Error::Model(format!("`{name}.qweight` has shape {:?}", qweight.shape))),
            }
        })
    }

    /// Bits of one layer: single layers may differ from the rest ("dynamic"), which `g_idx` shows.
    fn bits(&self, store: &WeightStore, name: &str, qweight: &View<'_>) -> u32 {
        let words = qweight.shape.first().copied().unwrap_or_default();
        let inputs = store.get(&format!("{name}.g_idx")).map(|view| view.len()).unwrap_or_default();
        let fits = |bits: &u32| words > 0 && words.checked_mul(32 / *bits as usize) == Some(inputs);
        [4, 8].into_iter().find(fits).unwrap_or(self.bits)
    }

    pub(super) fn read(&self, store: &WeightStore, name: &str, shape: [usize; 2]) -> Result<Codes> {
        let qweight = store.part(name, "qweight", Part::Words)?;
        let bits = self.bits(store, name, &qweight);
        let ([n, k], per_word) = (shape, 32 / bits as usize);
        let mask = if bits == 4 { 15u8 } else { 255 };
        let part = |word: u32, i: usize| (word >> (i as u32 * bits)) as u8 & mask;
        let scales = store.part(name, "scales", Part::Floats)?;
        let groups = match *scales.shape {
            [groups, columns] if columns == n && groups > 0 => groups,
            _ => return Err(misfit(&scales, &format!("[groups, {n}]"), name, shape)),
        };
        let zeros = store.part(name, "qzeros", Part::Words)?;
        let zero_words = n.div_ceil(per_word);
        if zeros.shape != [groups, zero_words] {
            return Err(misfit(&zeros, &format!("[{groups}, {zero_words}]"), name, shape));
        }
        let (words, zeros) = (qweight.to_u32()?, zeros.to_u32()?);
        let zero = |row: usize, g: usize| {
            let stored = part(zeros[g * zero_words + row / per_word], row % per_word);
            stored.wrapping_add(self.plus) & mask
        };
        Ok(Codes {
            rows: n,
            channels: k,
            bits,
            codes: unpack(n, k, |row, k| part(words[k / per_word * n + row], k % per_word)),
            groups: self.groups(store, name, shape, groups)?,
            scales: transpose(&scales.to_f32()?, groups, n),
            zeros: unpack(n, groups, zero),
        })
    }

    /// `g_idx` where there is one; it also tells of layers whose groups are not those of the rest.
    fn groups(
        &self,
        store: &WeightStore,
        name: &str,
        shape: [usize; 2],
        groups: usize,
    ) -> Result<Groups> {
        let k = shape[1];
        if !store.is_plain(&format!("{name}.g_idx")) {
            return Ok(Groups::Runs(self.group.unwrap_or(k)));
        }
        let view = store.part(name, "g_idx", Part::Integers)?;
        if view.len() != k {
            return Err(misfit(&view, &format!("[{k}]"), name, shape));
        }
        // Negative numbers become too large ones, which are refused where groups are counted.
        let index = view.to_i64()?.iter().map(|&g| u32::try_from(g).unwrap_or(u32::MAX)).collect();
        match groups {
            // Files without act-order sometimes leave it unset.
            1 => Ok(Groups::Runs(k)),
            _ => Ok(Groups::Index(index)),
        }
    }
}

/// An error with both shapes for a part that does not belong to its layer.
pub(super) fn misfit(view: &View<'_>, wanted: &str, name: &str, [n, k]: [usize; 2]) -> Error {
    Error::Model(format!(
        "`{}` has shape {:?}, but `{name}` with {n} outputs and {k} inputs needs {wanted}; the file is \
         damaged, or in another format than its quantization_config says",
        view.name, view.shape
    ))
}
