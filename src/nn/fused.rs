//! Layers that a checkpoint holds joined into one tensor, or transposed. They are taken apart when they
//! are loaded, so that nets need not know.

use super::{Bias, Linear, Loader};
use crate::graph::{Vector, Weight};
use crate::quant::Packed;
use crate::{Error, Result};

impl Loader<'_> {
    /// Layers that share their input, joined along the rows of `name.weight` `[Σ rows, k]` and of
    /// `name.bias` `[Σ rows]` in this order (Phi-3's `qkv_proj`). They are quantized together; a packed
    /// weight keeps its bits.
    pub fn linears<const L: usize>(
        &self,
        name: &str,
        rows: [usize; L],
        k: usize,
        bias: Bias,
    ) -> Result<[Linear; L]> {
        let (at, shared) = (self.pp(name), &self.shared);
        let path = at.name("weight");
        let total = rows.iter().sum();
        let (spec, keep) = (shared.recipe.spec_for(&path), shared.recipe.keep_packed);
        let packed = shared.store.pack_as(&path, &[total, k], &spec, keep)?;
        at.take_apart(&path, &packed, rows, bias)
    }

    /// Layers that share their input, each with tensors of its own, in memory side by side where that is possible, so that one
    /// launch may compute all of them ([`Weight::upload_beside`]).
    pub fn linears_beside<const L: usize>(
        &self,
        names: [&str; L],
        rows: [usize; L],
        k: usize,
        bias: Bias,
    ) -> Result<[Linear; L]> {
        let weights = match self.alone() {
            true => self.weights_beside(names, rows, k)?,
            false => None,
        };
        let mut layers = Vec::with_capacity(L);
        for (i, (name, n)) in names.into_iter().zip(rows).enumerate() {
            let at = self.pp(name);
            let weight = match &weights {
                Some(weights) => weights[i].clone(),
                None => at.weight("weight", &[n, k])?,
            };
            layers.push(Linear { weight, bias: at.bias(n, bias)?, branch: at.branch([n, 1, k])? });
        }
        // One layer was pushed for each name.
        layers
            .try_into()
            .map_err(|_| Error::Runtime(format!("{}: {L} layers expected", self.path())))
    }

    fn weights_beside<const L: usize>(
        &self,
        names: [&str; L],
        rows: [usize; L],
        k: usize,
    ) -> Result<Option<Vec<Weight>>> {
        let shared = &self.shared;
        let mut parts = Vec::with_capacity(L);
        for (name, n) in names.into_iter().zip(rows) {
            let path = self.pp(name).name("weight");
            let (spec, keep) = (shared.recipe.spec_for(&path), shared.recipe.keep_packed);
            let packed = shared.store.pack_as(&path, &[n, k], &spec, keep)?;
            parts.push((path, packed));
        }
        let named: Vec<(&str, &Packed)> =
            parts.iter().map(|(path, p)| (path.as_str(), p)).collect();
        let Some(weights) = Weight::upload_beside(shared.gpu, &named)? else {
            let each = parts.into_iter().map(|(path, packed)| self.upload(path, &packed));
            return each.collect::<Result<Vec<_>>>().map(Some);
        };
        for (weight, (path, packed)) in weights.iter().zip(parts) {
            self.note_weight(path, weight, packed.sqnr_db)?;
        }
        Ok(Some(weights))
    }

    /// As [`Loader::linears`] from transformers' `Conv1D`, which keeps its weight as `[k, Σ rows]`
    /// (GPT-2); see [`WeightStore::pack_transposed`](crate::weights::WeightStore::pack_transposed).
    pub fn conv1ds<const L: usize>(
        &self,
        name: &str,
        rows: [usize; L],
        k: usize,
        bias: Bias,
    ) -> Result<[Linear; L]> {
        let (at, shared) = (self.pp(name), &self.shared);
        let path = at.name("weight");
        let total = rows.iter().sum();
        let (spec, keep) = (shared.recipe.spec_for(&path), shared.recipe.keep_packed);
        let packed = shared.store.pack_transposed(&path, [k, total], &spec, keep)?;
        at.take_apart(&path, &packed, rows, bias)
    }

    /// Uploads each range of rows as a layer of its own. `self` is the layer's place.
    fn take_apart<const L: usize>(
        &self,
        path: &str,
        packed: &Packed,
        rows: [usize; L],
        bias: Bias,
    ) -> Result<[Linear; L]> {
        let biases = match bias {
            Bias::No => None,
            Bias::IfPresent if !self.contains("bias") => None,
            _ => Some(self.shared.store.vector(&self.name("bias"), packed.layout.rows)?),
        };
        let channels = packed.layout.channels;
        let low_rank = self.low_rank([packed.layout.rows, 1, channels])?;
        let down = low_rank.as_ref().map(|low| self.upload_down(low, 1, channels)).transpose()?;
        let mut layers = Vec::with_capacity(L);
        let mut first = 0;
        for count in rows {
            let range = first..first + count;
            let part = |path: &str| match L {
                1 => path.to_string(),
                _ => format!("{path}[{}..{}]", range.start, range.end),
            };
            let weight = match L {
                1 => self.upload(part(path), packed)?,
                _ => self.upload(part(path), &packed.slice_rows(range.clone()))?,
            };
            let bias = |values: &Vec<f32>| -> Result<Vector> {
                self.upload_vector(part(&self.name("bias")), &values[range.clone()])
            };
            let bias = biases.as_ref().map(bias).transpose()?;
            let branch = low_rank.as_ref().zip(down.clone());
            let branch = branch.map(|(low, down)| self.upload_up(low, down, range.clone()));
            layers.push(Linear { weight, bias, branch: branch.transpose()? });
            first += count;
        }
        // One layer was pushed for each count.
        layers.try_into().map_err(|_| Error::Runtime(format!("{path}: {L} layers expected")))
    }
}
