//! Turning a checkpoint into a quantized file.

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use rayon::prelude::*;
use safetensors::Dtype;
use serde::Serialize;

use super::calibrated::{Folded, Method, Rows, fold, pack_scaled, scale_vector, undo};
use super::compressed_export::write_compressed;
use super::packed::layout_of;
use super::spill::Spill;
use super::{View, WeightStore, read_json};
use crate::quant::file::{Calibration, write_calibrated};
use crate::quant::{Format, LayerStatistics, Numbers, QuantSpec, Recipe, Statistics, Stored};
use crate::tensor::{Data, Tensor};
use crate::{Error, Result};

/// What became of one tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    pub name: String,
    /// Bits per weight, scales and padding counted.
    pub bits: f64,
    /// Channels per scale; absent for plain tensors.
    pub group: Option<u32>,
    /// Curvature of the levels in units of (q−8)².
    pub c: Option<f32>,
    /// Absent where nothing was lost.
    pub sqnr_db: Option<f64>,
    /// Of the layer's output over the calibration data, where there was any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_sqnr_db: Option<f64>,
    /// Number of weights.
    pub weights: usize,
}

/// What became of a file.
#[derive(Clone, Debug, Default, Serialize)]
pub struct QuantizedReport {
    /// Bits per weight over all tensors, those that stayed plain included.
    pub bits_per_weight: f64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Signal to quantization noise over all packed weights together, in dB.
    pub sqnr_db: Option<f64>,
    /// Sum of the squares of the packed weights, to join the SQNR of several files.
    #[serde(skip)]
    pub signal: f64,
    pub tensors: Vec<TensorReport>,
    /// What `config.json` has to say of a file in another program's form.
    #[serde(skip)]
    pub quantization_config: Option<serde_json::Value>,
}

/// Bytes after which pages of the checkpoint are given back.
const RELEASE: usize = 64 << 20;

/// How a file is to be quantized.
#[derive(Clone, Copy, Debug)]
pub struct Quantize<'a> {
    pub recipe: &'a Recipe,
    pub method: Method,
    /// What calibration knows, and in words what of. Whatever the method, biases take over the mean errors of their
    /// layers' outputs.
    pub statistics: Option<(&'a Statistics, &'a str)>,
    pub form: Form,
}

/// What kind of file is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// This program's own, which holds all formats.
    #[default]
    Own,
    /// compressed-tensors, "pack-quantized", for transformers and vLLM.
    CompressedTensors,
}

/// Quantizes every tensor of `store` as `recipe` says and writes the quantized file to `output`.
/// Only weights of 2 or 4 axes are packed; others stay floats, at 16 bits unless the recipe or an
/// F32 source asks for more. `progress` hears of each tensor with its number and the count of all; an
/// error of its own ends the work, and no file appears.
pub fn quantize(
    store: &WeightStore,
    recipe: &Recipe,
    output: impl AsRef<Path>,
    progress: impl FnMut(&TensorReport, usize, usize) -> Result<()>,
) -> Result<QuantizedReport> {
    let how = Quantize { recipe, method: Method::Mse, statistics: None, form: Form::Own };
    quantize_with(store, &how, output, progress)
}

/// As [`quantize`], with a method and what calibration knows.
pub fn quantize_with(
    store: &WeightStore,
    how: &Quantize<'_>,
    output: impl AsRef<Path>,
    mut progress: impl FnMut(&TensorReport, usize, usize) -> Result<()>,
) -> Result<QuantizedReport> {
    refuse_quantized(store)?;
    let total = store.names().count();
    let mut work = Work::new(store, how)?;
    let mut spill = Spill::beside(output.as_ref())?;
    let mut read = 0;
    let mut tensors: Vec<(String, Stored)> = vec![];
    let mut report = QuantizedReport::default();
    let (mut noise, mut weights) = (0.0, 0usize);
    for name in store.names() {
        let view = store.get(name)?;
        let mut stored = work.convert(&view)?;
        let mut tensor = describe(name, &stored, &view);
        tensor.output_sqnr_db = work.output_sqnr_db.get(name).copied();
        if let (Some(_), Some(db)) = (tensor.group, tensor.sqnr_db) {
            let power = power(&view.numbers()?);
            report.signal += power;
            noise += power / 10f64.powf(db / 10.0);
        }
        weights += tensor.weights;
        report.bytes += (tensor.bits * tensor.weights as f64 / 8.0).round() as u64;
        progress(&tensor, report.tensors.len() + 1, total)?;
        report.tensors.push(tensor);
        if let Stored::Packed { packed, .. } | Stored::Transposed { packed, .. } = &mut stored {
            spill.take(&mut packed.words)?;
        }
        tensors.push((name.to_string(), stored));
        read += view.bytes.len();
        if read > RELEASE {
            store.release();
            read = 0;
        }
    }
    work.correct_biases(&mut tensors);
    report.bits_per_weight = 8.0 * report.bytes as f64 / weights.max(1) as f64;
    report.sqnr_db = (noise > 0.0).then(|| 10.0 * (report.signal / noise).log10());
    match how.form {
        Form::Own => {
            let calibration = work.calibration();
            write_calibrated(output, &how.recipe.name, &store.sha256(), &tensors, calibration)?;
        }
        Form::CompressedTensors => {
            report.quantization_config = Some(write_compressed(output.as_ref(), &tensors)?);
        }
    }
    Ok(report)
}

fn refuse_quantized(store: &WeightStore) -> Result<()> {
    if let Some(format) = store.quantized_elsewhere() {
        return Err(Error::Model(format!(
            "{}: is quantized already ({format}) and can be used as it is; to quantize it otherwise, \
             start from the original weights",
            store.path().display()
        )));
    }
    match store.quantized() {
        Some(_) => Err(Error::Model(format!(
            "{}: is quantized already; start from the original weights",
            store.path().display()
        ))),
        None => Ok(()),
    }
}

/// A file on its way.
struct Work<'a> {
    store: &'a WeightStore,
    how: &'a Quantize<'a>,
    gpt2: bool,
    folded: Folded,
    output_sqnr_db: BTreeMap<String, f64>,
    /// By the name of a bias, the mean error of the output that it is added to.
    shifts: BTreeMap<String, Vec<f64>>,
}

impl<'a> Work<'a> {
    fn new(store: &'a WeightStore, how: &'a Quantize<'a>) -> Result<Work<'a>> {
        let folded = match (how.method, how.statistics) {
            (Method::Awq, Some((all, _))) => fold(store, all, &|name| how.recipe.spec_for(name))?,
            _ => Folded::default(),
        };
        let (output_sqnr_db, shifts) = Default::default();
        Ok(Work { store, how, gpt2: is_gpt2(store), folded, output_sqnr_db, shifts })
    }

    fn convert(&mut self, view: &View<'_>) -> Result<Stored> {
        let (name, spec) = (view.name, self.how.recipe.spec_for(view.name));
        let conv1d = self.gpt2 && CONV1D.iter().any(|end| name.ends_with(end));
        let layer = self.how.statistics.and_then(|(all, _)| all.layers.get(name));
        if let (Some(layer), Some(_)) = (layer, spec.group())
            && let Some(rows) = Rows::read(self.store, name, conv1d)?
        {
            return self.calibrated(view, &rows, &spec, (layer, conv1d));
        }
        if let Some(factors) = self.folded.norms.get(name) {
            let data = Data::F32(scale_vector(&view.to_f32()?, factors)?);
            return Ok(Stored::Plain(Tensor { shape: view.shape.to_vec(), data }));
        }
        convert(self.store, view, spec, conv1d)
    }

    fn calibrated(
        &mut self,
        view: &View<'_>,
        rows: &Rows,
        spec: &QuantSpec,
        (layer, conv1d): (&LayerStatistics, bool),
    ) -> Result<Stored> {
        let (packed, stands_for) = match self.folded.columns.get(view.name) {
            Some(factors) => {
                let packed = pack_scaled(rows, spec, factors, layer)?;
                let stands_for = undo(&packed, factors)?;
                (packed, stands_for)
            }
            None => {
                let packed = rows.pack(spec, self.how.method, Some(layer))?;
                (packed.clone(), packed)
            }
        };
        if layer.sum.len() == rows.layout.row_len() {
            let error = rows.error(&stands_for, layer);
            if let Some(db) = error.sqnr_db() {
                self.output_sqnr_db.insert(view.name.to_string(), db);
            }
            if let Some(place) = view.name.strip_suffix(".weight") {
                self.shifts.insert(format!("{place}.bias"), error.shift);
            }
        }
        let shape = view.shape.to_vec();
        Ok(match conv1d {
            true => Stored::Transposed { shape, packed },
            false => Stored::Packed { shape, packed },
        })
    }

    /// Takes the mean errors out of the biases that follow.
    fn correct_biases(&self, tensors: &mut [(String, Stored)]) {
        for (name, stored) in tensors {
            let (Some(shift), Stored::Plain(tensor)) = (self.shifts.get(name), stored) else {
                continue;
            };
            if tensor.len() != shift.len() {
                continue;
            }
            let less = |v: f32, shift: &f64| (f64::from(v) - shift) as f32;
            match &mut tensor.data {
                Data::F32(values) => {
                    values.iter_mut().zip(shift).for_each(|(v, shift)| *v = less(*v, shift));
                }
                Data::F16(values) => values
                    .iter_mut()
                    .zip(shift)
                    .for_each(|(v, shift)| *v = f16::from_f32(less(v.to_f32(), shift))),
                Data::I64(_) | Data::U32(_) => {}
            }
        }
    }

    fn calibration(&self) -> Option<Calibration> {
        let (all, data) = self.how.statistics?;
        Some(Calibration {
            method: self.how.method.name().to_string(),
            data: data.to_string(),
            rows: all.layers.values().map(|layer| layer.rows).fold(0.0, f64::max),
            output_sqnr_db: self.output_sqnr_db.clone(),
        })
    }
}

/// Σ of the squares, summed in an order that does not depend on the number of threads.
fn power(numbers: &Numbers<'_>) -> f64 {
    const PART: usize = 1 << 14;
    let sum = |first: usize| {
        let mut values = vec![0.0f32; PART.min(numbers.len() - first)];
        numbers.read(first, &mut values);
        values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>()
    };
    let firsts: Vec<usize> = (0..numbers.len()).step_by(PART).collect();
    firsts.into_par_iter().map(sum).collect::<Vec<f64>>().iter().sum()
}

/// GPT-2's matrices, which transformers' `Conv1D` keeps as `[K, N]`.
const CONV1D: [&str; 4] =
    [".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight"];

/// Which matrices the store keeps as `[K, N]`, by name.
pub(crate) fn transposes(store: &WeightStore) -> impl Fn(&str) -> bool + use<> {
    let gpt2 = is_gpt2(store);
    move |name| gpt2 && CONV1D.iter().any(|end| name.ends_with(end))
}

/// Whether the configuration beside the weights is that of a GPT-2.
fn is_gpt2(store: &WeightStore) -> bool {
    let path = store.path();
    let folder = if path.is_dir() { Some(path) } else { path.parent().filter(|_| path.exists()) };
    let config = folder.and_then(|f| read_json::<serde_json::Value>(f, "config.json").ok());
    config.is_some_and(|c| c.get("model_type").is_some_and(|family| family == "gpt2"))
}

fn convert(store: &WeightStore, view: &View<'_>, spec: QuantSpec, conv1d: bool) -> Result<Stored> {
    if !matches!(view.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) {
        return Ok(Stored::Plain(view.to_tensor()?));
    }
    if let (true, Some(_), &[k, n]) = (conv1d, spec.group(), view.shape) {
        let packed = store.pack_transposed(view.name, [k, n], &spec, true)?;
        return Ok(Stored::Transposed { shape: view.shape.to_vec(), packed });
    }
    if spec.group().is_some() && layout_of(view.shape).is_some() {
        let packed = store.pack(view.name, view.shape, &spec)?;
        return Ok(Stored::Packed { shape: view.shape.to_vec(), packed });
    }
    // F16 holds an F16 source without loss; the loader widens it where f32 is wanted.
    if view.dtype == Dtype::F16 {
        return Ok(Stored::Plain(view.to_tensor()?));
    }
    let values = view.to_f32()?;
    let fits = values.par_iter().all(|v| v.abs() <= f16::MAX.to_f32());
    let data = match spec == QuantSpec::F32 || !fits {
        true => Data::F32(values),
        false => Data::F16(values.iter().map(|&v| f16::from_f32(v)).collect()),
    };
    Ok(Stored::Plain(Tensor { shape: view.shape.to_vec(), data }))
}

fn describe(name: &str, stored: &Stored, view: &View<'_>) -> TensorReport {
    let (bits, group, c, sqnr_db) = match stored {
        Stored::Packed { packed, .. } | Stored::Transposed { packed, .. } => {
            let c = if let Format::Q4 { cubic, .. } = packed.format { Some(cubic) } else { None };
            (packed.bits_per_weight(), packed.format.group(), c, packed.sqnr_db)
        }
        Stored::Plain(tensor) => {
            let bits = match tensor.data {
                Data::F16(_) => 16.0,
                Data::F32(_) | Data::U32(_) => 32.0,
                Data::I64(_) => 64.0,
            };
            (bits, None, None, None)
        }
    };
    let sqnr_db = sqnr_db.filter(|db| db.is_finite());
    let output_sqnr_db = None;
    TensorReport {
        name: name.to_string(),
        bits,
        group,
        c,
        sqnr_db,
        output_sqnr_db,
        weights: view.len(),
    }
}
