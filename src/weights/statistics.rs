//! Statistics of calibration as a safetensors file: `NAME.moments` `[3, K]` (sums, sums of squares, rows) and
//! `NAME.gram.FIRST` `[width, width]`, all f32.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::WeightStore;
use crate::quant::file::write_whole;
use crate::quant::{GramBlock, Statistics};
use crate::{Error, Result};

/// The metadata key under which the writer says what the file is of.
const KEY: &str = "inknib-calibration";

impl Statistics {
    /// Writes a file, which appears when it is complete; `about` is kept with it.
    pub fn save(&self, path: impl AsRef<Path>, about: &str) -> Result<()> {
        let path = path.as_ref();
        let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = vec![];
        for (name, layer) in &self.layers {
            let rows = vec![layer.rows as f32; layer.sum.len()];
            let moments = [&layer.sum[..], &layer.square, &rows].concat();
            tensors.push((format!("{name}.moments"), vec![3, layer.sum.len()], moments));
            for block in &layer.gram {
                let shape = vec![block.width; 2];
                tensors.push((format!("{name}.gram.{}", block.first), shape, block.values.clone()));
            }
        }
        let failed = |e| Error::Runtime(format!("{}: {e}", path.display()));
        let views = tensors.iter().map(|(name, shape, values)| {
            let bytes = bytemuck::cast_slice(values);
            Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(failed)?))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let metadata = HashMap::from([(KEY.to_string(), about.to_string())]);
        write_whole(path, |temporary| {
            safetensors::serialize_to_file(views, Some(metadata), temporary)
        })
    }

    /// Reads a file that [`Statistics::save`] wrote, and what was kept with it.
    ///
    /// # Errors
    /// `Model` for another file.
    pub fn load(path: impl AsRef<Path>) -> Result<(Statistics, String)> {
        let path = path.as_ref();
        let store = WeightStore::open(path)?;
        let bad = |why: &str| {
            Error::Model(format!("{}: no file of calibration statistics: {why}", path.display()))
        };
        let about =
            store.metadata(KEY).ok_or_else(|| bad("its metadata do not say so"))?.to_string();
        let mut all = Statistics::default();
        for stored in store.names() {
            let (values, shape) = (store.get(stored)?.to_f32()?, store.shape(stored)?);
            if let Some(name) = stored.strip_suffix(".moments") {
                let &[3, k] = shape else { return Err(bad("moments of another shape")) };
                let layer = all.layers.entry(name.to_string()).or_default();
                layer.rows = values.last().copied().map_or(0.0, f64::from);
                layer.sum = values[..k].to_vec();
                layer.square = values[k..2 * k].to_vec();
                continue;
            }
            let part = stored.rsplit_once(".gram.").and_then(|(n, at)| Some((n, at.parse().ok()?)));
            let (Some((name, first)), &[width, other]) = (part, shape) else {
                return Err(bad(stored));
            };
            if width != other {
                return Err(bad(stored));
            }
            let layer = all.layers.entry(name.to_string()).or_default();
            layer.gram.push(GramBlock { first, width, values });
        }
        for layer in all.layers.values_mut() {
            layer.gram.sort_by_key(|block| block.first);
        }
        Ok((all, about))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::LayerStatistics;

    #[test]
    fn files_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("statistics.safetensors");
        let block =
            |first, width: usize| GramBlock { first, width, values: vec![0.5; width * width] };
        let a = LayerStatistics {
            rows: 7.0,
            sum: vec![1.0; 12],
            square: vec![2.0; 12],
            gram: vec![block(0, 4), block(4, 6), block(10, 2)],
        };
        let b = LayerStatistics { gram: vec![], ..a.clone() };
        let all = Statistics { layers: [("a.weight".into(), a), ("b.weight".into(), b)].into() };
        all.save(&path, "what it is of").unwrap();
        assert_eq!(Statistics::load(&path).unwrap(), (all, "what it is of".to_string()));
        let other = folder.path().join("other.safetensors");
        let x = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        safetensors::serialize_to_file([("x", x)], None, &other).unwrap();
        let error = Statistics::load(&other).unwrap_err();
        assert!(error.to_string().contains("no file of calibration statistics"), "{error}");
    }
}
