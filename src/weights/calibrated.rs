//! Packing with what calibration knows: by the importance of inputs, by GPTQ, or with scales that move from a norm into
//! the layers behind it (AWQ).

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::WeightStore;
use super::gguf_store::transpose;
use super::packed::layout_of;
use crate::quant::{
    LayerStatistics, Layout, Numbers, Order, Packed, QuantSpec, Statistics, conv_to_rows, gptq,
};
use crate::{Error, Result};

/// How the codes of 4-bit weights are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// The nearest level, at the scale with the least squared error. Needs no calibration.
    #[default]
    Mse,
    /// The same with each error weighed by the mean square of the input that it meets.
    Imatrix,
    /// Errors are taken back by later columns, and codes improved one by one, for the least error in the output.
    Gptq,
    /// Channels with large inputs are scaled up before packing and their norm down (Lin et al. 2023), then as `Imatrix`.
    Awq,
}

impl Method {
    /// Whether it needs to know what layers are given, and whether XᵀX too.
    pub fn needs(self) -> (bool, bool) {
        (self != Method::Mse, matches!(self, Method::Gptq | Method::Awq))
    }
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Method::Mse => "mse",
            Method::Imatrix => "imatrix",
            Method::Gptq => "gptq",
            Method::Awq => "awq",
        }
    }
}

/// A weight of plain numbers as its layer multiplies with it.
pub(super) struct Rows {
    /// `[rows, taps, channels]`
    pub values: Vec<f32>,
    pub layout: Layout,
}

impl Rows {
    /// Reads a weight; `conv1d`: the store holds its transpose. `None` for tensors that are no matrix.
    pub fn read(store: &WeightStore, name: &str, conv1d: bool) -> Result<Option<Rows>> {
        let shape = store.shape(name)?;
        let values = || store.values(name);
        Ok(match (conv1d, shape) {
            (true, &[k, n]) => {
                let values = transpose(&values()?, k, n);
                Some(Rows { values, layout: Layout::linear(n, k) })
            }
            (_, &[rows, channels, kh, kw]) => {
                let (values, layout) = conv_to_rows(&values()?, [rows, channels, kh, kw]);
                Some(Rows { values, layout })
            }
            (_, shape) => match layout_of(shape) {
                Some(layout) => Some(Rows { values: values()?, layout }),
                None => None,
            },
        })
    }

    /// Packs by a method; without statistics as the method without calibration would.
    pub fn pack(
        &self,
        spec: &QuantSpec,
        method: Method,
        layer: Option<&LayerStatistics>,
    ) -> Result<Packed> {
        let layer = layer.filter(|layer| layer.sum.len() == self.layout.row_len());
        let int4 = matches!(spec, QuantSpec::Q4 { .. });
        match (method, layer) {
            (Method::Gptq, Some(layer)) if int4 && !layer.gram.is_empty() => {
                let numbers = Numbers::F32((&self.values[..]).into());
                gptq(&numbers, Order::ChannelsLast, self.layout, spec, layer)
            }
            (Method::Mse, _) | (_, None) => Packed::pack(&self.values, self.layout, spec, None),
            (_, Some(layer)) => {
                Packed::pack(&self.values, self.layout, spec, Some(&layer.importance()))
            }
        }
    }

    /// The error that `packed` makes in the layer's output.
    pub fn error(&self, packed: &Packed, layer: &LayerStatistics) -> OutputError {
        let k = self.layout.row_len().max(1);
        let (decoded, mean) = (packed.decode(), layer.mean());
        let rows = self.values.par_chunks(k).zip(decoded.par_chunks(k));
        let each: Vec<[f64; 3]> = rows
            .map(|(w, q)| {
                let e: Vec<f32> = w.iter().zip(q).map(|(w, q)| q - w).collect();
                let shift = e.iter().zip(&mean).map(|(&e, m)| f64::from(e) * m).sum();
                [layer.power(w), layer.power(&e), shift]
            })
            .collect();
        OutputError {
            signal: each.iter().map(|e| e[0]).sum(),
            noise: each.iter().map(|e| e[1]).sum(),
            shift: each.iter().map(|e| e[2]).collect(),
        }
    }

    /// Multiplies each column by a factor.
    fn scaled(&self, factors: &[f32]) -> Rows {
        let by = |(i, v): (usize, &f32)| v * factors[i % factors.len()];
        Rows { values: self.values.iter().enumerate().map(by).collect(), layout: self.layout }
    }
}

/// What quantization changed in a layer's output over the calibration data.
pub(super) struct OutputError {
    /// Powers of the output and of its error.
    pub signal: f64,
    pub noise: f64,
    /// The mean error of each output channel.
    pub shift: Vec<f64>,
}

impl OutputError {
    /// Signal to noise in dB; `None` where nothing was lost.
    pub fn sqnr_db(&self) -> Option<f64> {
        (self.noise > 0.0).then(|| 10.0 * (self.signal / self.noise).log10())
    }
}

/// What AWQ changes: factors of the columns of weights, and of the elements of norms.
#[derive(Default)]
pub(super) struct Folded {
    pub columns: BTreeMap<String, Vec<f32>>,
    pub norms: BTreeMap<String, Vec<f32>>,
}

/// Norms, by the end of their name, and the layers that alone read them, beside each norm: LayerNorms of a UNet's
/// transformer blocks, RMSNorms of Llamas.
const FOLDS: [(&str, &[&str]); 5] = [
    ("norm1", &["attn1.to_q", "attn1.to_k", "attn1.to_v"]),
    ("norm2", &["attn2.to_q"]),
    ("norm3", &["ff.net.0.proj"]),
    ("input_layernorm", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ("post_attention_layernorm", &["mlp.gate_proj", "mlp.up_proj"]),
];

/// The norm's place and the names of its readers, if it is one of [`FOLDS`].
fn readers(store: &WeightStore, name: &str) -> Option<Vec<String>> {
    let norm = name.strip_suffix(".weight")?;
    let (place, last) = norm.rsplit_once('.')?;
    let (_, layers) = FOLDS.iter().find(|(norm, _)| *norm == last)?;
    // Other families put norms of the same name behind attention (OLMo 2, Gemma 2), or count γ from 1 (Gemma).
    let sandwich = store.contains(&format!("{place}.pre_feedforward_layernorm.weight"))
        || store.contains(&format!("{place}.post_feedforward_layernorm.weight"));
    let names: Vec<String> = layers.iter().map(|l| format!("{place}.{l}.weight")).collect();
    let all = names.iter().all(|name| store.contains(name));
    (all && !sandwich).then_some(names)
}

/// Chooses AWQ's factors for every norm that allows it: s = rms(x)^α over the geometric mean, the α in 0, 0.1 … 1 that
/// leaves the least error in the outputs.
pub(super) fn fold(
    store: &WeightStore,
    statistics: &Statistics,
    spec_for: &dyn Fn(&str) -> QuantSpec,
) -> Result<Folded> {
    let mut folded = Folded::default();
    for norm in store.names() {
        let Some(names) = readers(store, norm) else { continue };
        let layers: Option<Vec<&LayerStatistics>> =
            names.iter().map(|name| statistics.layers.get(name)).collect();
        let int4 = names.iter().all(|name| matches!(spec_for(name), QuantSpec::Q4 { .. }));
        let Some(layers) = layers.filter(|_| int4) else { continue };
        let rows = names.iter().map(|name| Rows::read(store, name, false));
        let rows: Option<Vec<Rows>> = rows.collect::<Result<Option<_>>>()?;
        let Some(rows) = rows else { continue };
        let (mut best, mut least) = (None, f64::INFINITY);
        for alpha in (0..=10).map(|i| f64::from(i) * 0.1) {
            let factors = factors(layers[0], alpha);
            let mut noise = 0.0;
            for ((rows, layer), name) in rows.iter().zip(&layers).zip(&names) {
                let packed = pack_scaled(rows, &spec_for(name), &factors, layer)?;
                let e = rows.error(&undo(&packed, &factors)?, layer);
                noise += e.noise / e.signal.max(f64::MIN_POSITIVE);
            }
            if noise < least {
                (best, least) = (Some(factors), noise);
            }
        }
        let Some(factors) = best.filter(|f| f.iter().any(|&f| f != 1.0)) else { continue };
        let inverse: Vec<f32> = factors.iter().map(|f| 1.0 / f).collect();
        let bias = norm.replace(".weight", ".bias");
        for name in [norm.to_string(), bias].into_iter().filter(|name| store.contains(name)) {
            folded.norms.insert(name, inverse.clone());
        }
        names.into_iter().for_each(|name| drop(folded.columns.insert(name, factors.clone())));
    }
    Ok(folded)
}

fn factors(layer: &LayerStatistics, alpha: f64) -> Vec<f32> {
    let logs: Vec<f64> =
        layer.importance().iter().map(|&h| 0.5 * alpha * f64::from(h).ln()).collect();
    let mean = logs.iter().sum::<f64>() / logs.len().max(1) as f64;
    // Factors beyond 16 would only spoil the norm's own precision.
    logs.iter().map(|l| (l - mean).exp().clamp(1.0 / 16.0, 16.0) as f32).collect()
}

/// Packs a weight whose columns are multiplied by factors and its inputs divided.
pub(super) fn pack_scaled(
    rows: &Rows,
    spec: &QuantSpec,
    factors: &[f32],
    layer: &LayerStatistics,
) -> Result<Packed> {
    let importance: Vec<f32> =
        layer.importance().iter().zip(factors).map(|(h, f)| h / (f * f)).collect();
    Packed::pack(&rows.scaled(factors).values, rows.layout, spec, Some(&importance))
}

/// What a weight with scaled columns stands for, to be measured.
pub(super) fn undo(packed: &Packed, factors: &[f32]) -> Result<Packed> {
    let decoded = Rows { values: packed.decode(), layout: packed.layout };
    let inverse: Vec<f32> = factors.iter().map(|f| 1.0 / f).collect();
    Packed::pack(&decoded.scaled(&inverse).values, packed.layout, &QuantSpec::F32, None)
}

/// A vector with each element multiplied.
pub(super) fn scale_vector(values: &[f32], factors: &[f32]) -> Result<Vec<f32>> {
    match values.len() == factors.len() {
        true => Ok(values.iter().zip(factors).map(|(v, f)| v * f).collect()),
        false => Err(Error::Model(format!(
            "a norm of {} channels before layers of {}",
            values.len(),
            factors.len()
        ))),
    }
}
