//! Layers that a checkpoint holds joined into one tensor, or transposed. They are taken apart when they
//! are loaded, so that nets need not know.

use std::ops::Range;

use super::{Bias, Linear, Loader};
use crate::graph::{Vector, Weight};
use crate::quant::{Format, Layout, Packed};
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
            true => Some(self.weights_beside(names, rows, k)?),
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
    ) -> Result<Vec<Weight>> {
        let (store, recipe) = (self.shared.store, self.shared.recipe);
        let paths = names.map(|name| self.pp(name).name("weight"));
        let each = paths.into_iter().zip(rows);
        if self.shared.outline.get() {
            let form = |(path, n): (String, usize)| {
                let form = store.outline(&path, &[n, k], &recipe.spec_for(&path))?;
                Ok((path, form))
            };
            return self.outline_all(each.map(form).collect::<Result<_>>()?);
        }
        let pack = |(path, n): (String, usize)| {
            let packed =
                store.pack_as(&path, &[n, k], &recipe.spec_for(&path), recipe.keep_packed)?;
            Ok((path, packed))
        };
        self.upload_all(each.map(pack).collect::<Result<_>>()?)
    }

    /// Weights of these forms without their numbers, side by side where they would be.
    fn outline_all(&self, parts: Vec<(String, (Layout, Format))>) -> Result<Vec<Weight>> {
        let forms: Vec<(Layout, Format)> = parts.iter().map(|(_, form)| *form).collect();
        let Some(weights) = Weight::outline_beside(self.shared.gpu, &forms)? else {
            let each = parts.into_iter();
            return each.map(|(path, (l, f))| self.upload_outline(path, l, f)).collect();
        };
        for (weight, (path, _)) in weights.iter().zip(parts) {
            self.note_outline(path, weight);
        }
        Ok(weights)
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
        let parts = self.parts(path, packed, rows)?;
        let mut layers = Vec::with_capacity(L);
        for (weight, range) in parts {
            let bias = |values: &Vec<f32>| -> Result<Vector> {
                let name = part_name::<L>(&self.name("bias"), &range);
                self.upload_vector(name, &values[range.clone()])
            };
            let bias = biases.as_ref().map(bias).transpose()?;
            let branch = low_rank.as_ref().zip(down.clone());
            let branch = branch.map(|(low, down)| self.upload_up(low, down, range.clone()));
            layers.push(Linear { weight, bias, branch: branch.transpose()? });
        }
        // One layer was pushed for each count.
        layers.try_into().map_err(|_| Error::Runtime(format!("{path}: {L} layers expected")))
    }
    /// The weights of each range of rows, side by side where that is possible.
    fn parts<const L: usize>(
        &self,
        path: &str,
        packed: &Packed,
        rows: [usize; L],
    ) -> Result<Vec<(Weight, Range<usize>)>> {
        let mut ranges = Vec::with_capacity(L);
        let mut first = 0;
        for count in rows {
            ranges.push(first..first + count);
            first += count;
        }
        if L == 1 {
            let weight = self.upload(path.to_string(), packed)?;
            return Ok(ranges.into_iter().map(|range| (weight.clone(), range)).collect());
        }
        let named =
            |range: &Range<usize>| (part_name::<L>(path, range), packed.slice_rows(range.clone()));
        let slices: Vec<(String, Packed)> = ranges.iter().map(named).collect();
        let weights = match self.alone() && !self.shared.outline.get() {
            true => self.upload_all(slices)?,
            false => {
                let each = slices.into_iter().map(|(name, part)| self.upload(name, &part));
                each.collect::<Result<_>>()?
            }
        };
        Ok(weights.into_iter().zip(ranges).collect())
    }

    /// Weights that share their input, side by side where that is possible.
    fn upload_all(&self, parts: Vec<(String, Packed)>) -> Result<Vec<Weight>> {
        let named: Vec<(&str, &Packed)> =
            parts.iter().map(|(name, p)| (name.as_str(), p)).collect();
        let Some(weights) = Weight::upload_beside(self.shared.gpu, &named)? else {
            return parts.into_iter().map(|(name, packed)| self.upload(name, &packed)).collect();
        };
        for (weight, (name, packed)) in weights.iter().zip(parts) {
            self.note_weight(name, weight, packed.sqnr_db)?;
        }
        Ok(weights)
    }
}

/// The name of some rows of a tensor, of which a checkpoint has so many layers in one.
fn part_name<const L: usize>(path: &str, rows: &Range<usize>) -> String {
    match L {
        1 => path.to_string(),
        _ => format!("{path}[{}..{}]", rows.start, rows.end),
    }
}
