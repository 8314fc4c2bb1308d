//! Number formats that no kernel reads, imitated: weights are rounded as the format says and computed with in 32 bits.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::probe::singular::low_rank;
use crate::quant::{Layout, Packed, QuantSpec, Recipe, Statistics, conv_to_rows, rows_to_conv};
use crate::tensor::Tensor;
use crate::weights::{WeightStore, layout_of, transpose, transposes};
use crate::{Error, Result};

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The whole weight.
    Tensor,
    /// An output channel: a row.
    Channel,
    /// So many input channels of one tap.
    Group(usize),
}

/// Where the levels lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Around zero, the largest magnitude at the end.
    Symmetric,
    /// From the smallest to the largest value, with an offset of 16 bits.
    Asymmetric,
}

/// A format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Imitation {
    pub bits: u32,
    pub span: Span,
    pub form: Form,
    /// Try 40 smaller ranges too and take that with the least squared error.
    pub search: bool,
    /// Share of the input columns, those with the largest inputs, that stay in 16 bits (LLM.int8(), arXiv 2208.07339).
    pub outliers: f64,
}

impl Imitation {
    /// Round to nearest, symmetric.
    pub fn plain(bits: u32, span: Span) -> Imitation {
        Imitation { bits, span, form: Form::Symmetric, search: false, outliers: 0.0 }
    }

    /// `int4 per channel, asymmetric`
    pub fn name(&self) -> String {
        let span = match self.span {
            Span::Tensor => "per tensor".to_string(),
            Span::Channel => "per channel".to_string(),
            Span::Group(g) => format!("g{g}"),
        };
        let form = if self.form == Form::Asymmetric { ", asymmetric" } else { "" };
        let search = if self.search { ", searched" } else { "" };
        let outliers = match self.outliers {
            0.0 => String::new(),
            share => format!(", {:.1} % of columns fp16", 100.0 * share),
        };
        format!("int{} {span}{form}{search}{outliers}", self.bits)
    }

    /// Bits of the weight `[rows, taps, channels]`, scales, offsets and columns in 16 bits counted.
    fn count(&self, layout: &Layout) -> u64 {
        let spans = match self.span {
            Span::Tensor => 1,
            Span::Channel => layout.rows,
            Span::Group(g) => layout.rows * layout.taps * layout.channels.div_ceil(g),
        };
        let each = if self.form == Form::Asymmetric { 32 } else { 16 };
        let kept = self.kept(layout.row_len()) * layout.rows;
        (layout.len() as u64 - kept as u64) * u64::from(self.bits)
            + (spans * each + 16 * kept) as u64
    }

    /// Columns in 16 bits.
    fn kept(&self, columns: usize) -> usize {
        (self.outliers * columns as f64).ceil() as usize
    }

    /// Rounds `[rows, taps, channels]`; `importance` `[taps·channels]` says which columns have large inputs.
    pub fn round(&self, values: &[f32], layout: Layout, importance: Option<&[f32]>) -> Vec<f32> {
        let k = layout.row_len().max(1);
        let mut order: Vec<usize> = (0..k).collect();
        let weigh = |i: usize| match importance {
            Some(importance) => importance[i],
            None => values.iter().skip(i).step_by(k).fold(0.0, |m: f32, v| m.max(v.abs())),
        };
        let weights: Vec<f32> = match self.outliers {
            0.0 => vec![],
            _ => (0..k).map(weigh).collect(),
        };
        if !weights.is_empty() {
            order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
        }
        let kept = &order[..self.kept(k).min(k)];
        let mut rest = values.to_vec();
        // Columns that are taken out widen no range.
        for row in rest.chunks_mut(k) {
            kept.iter().for_each(|&i| row[i] = 0.0);
        }
        match self.span {
            Span::Tensor => self.span(&mut rest),
            Span::Channel => rest.par_chunks_mut(k).for_each(|row| self.span(row)),
            Span::Group(g) => rest
                .par_chunks_mut(layout.channels.max(1))
                .for_each(|tap| tap.chunks_mut(g).for_each(|group| self.span(group))),
        }
        for (row, source) in rest.chunks_mut(k).zip(values.chunks(k)) {
            kept.iter().for_each(|&i| row[i] = f16::from_f32(source[i]).to_f32());
        }
        rest
    }

    /// Rounds what shares a scale.
    fn span(&self, w: &mut [f32]) {
        let (low, high) = w.iter().fold((0f32, 0f32), |(a, b), v| (a.min(*v), b.max(*v)));
        if low == high {
            return;
        }
        let levels = (1u32 << self.bits) as f32;
        let code = |shrink: f32| match self.form {
            Form::Symmetric => {
                let top = levels / 2.0 - 1.0;
                let s = f16::from_f32(low.abs().max(high) * shrink / top).to_f32();
                // The spare code of the negative side is used only where ranges are searched.
                let bottom = if self.search { -top - 1.0 } else { -top };
                (s, 0.0, [bottom, top])
            }
            Form::Asymmetric => {
                let s = f16::from_f32((high - low) * shrink / (levels - 1.0)).to_f32();
                (s, f16::from_f32(low * shrink).to_f32(), [0.0, levels - 1.0])
            }
        };
        let value = |w: f32, (s, offset, [least, most]): (f32, f32, [f32; 2])| match s == 0.0 {
            true => offset,
            false => ((w - offset) / s).round().clamp(least, most) * s + offset,
        };
        let error = |code| w.iter().map(|&w| f64::from(value(w, code) - w).powi(2)).sum::<f64>();
        let tries = if self.search { 41 } else { 1 };
        let codes = (0..tries).map(|i| code(1.0 - 0.015 * i as f32));
        let best = codes.map(|code| (error(code), code)).min_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((_, best)) = best {
            w.iter_mut().for_each(|w| *w = value(*w, best));
        }
    }
}

/// How the weights of a store are changed.
pub enum Change<'a> {
    Imitation(&'a Imitation, Option<&'a Statistics>),
    /// 8 bits of mantissa.
    Bf16,
    /// Packed, and of what that loses the largest singular values beside it, so many, in 16 bits.
    LowRank(QuantSpec, usize),
}

impl Change<'_> {
    /// Rows `[rows, taps·channels]` of the weight `name` after the change, and the bits they take.
    fn round(&self, name: &str, rows: &[f32], layout: Layout) -> Result<(Vec<f32>, u64)> {
        match self {
            Change::Bf16 => {
                let values = rows.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
                Ok((values, 16 * rows.len() as u64))
            }
            Change::Imitation(format, statistics) => {
                let known = statistics.and_then(|s| s.layers.get(name)).map(|l| l.importance());
                let known = known.filter(|known| known.len() == layout.row_len());
                Ok((format.round(rows, layout, known.as_deref()), format.count(&layout)))
            }
            Change::LowRank(spec, rank) => {
                let packed = Packed::pack(rows, layout, spec, None)?;
                let decoded = packed.decode();
                let lost: Vec<f32> = rows.iter().zip(&decoded).map(|(w, q)| w - q).collect();
                let branch = low_rank(&lost, layout.row_len(), *rank);
                let values = decoded.iter().zip(&branch).map(|(q, b)| q + b).collect();
                let factors = rank.min(&layout.rows) * (layout.rows + layout.row_len());
                Ok((values, (8 * packed.bytes() + 16 * factors) as u64))
            }
        }
    }
}

/// The store with every weight that `recipe` packs changed, all in 32 bits, and the bits per weight that the whole net
/// would have, what is not changed counted with 16.
///
/// # Errors
/// As reading does.
pub fn imitated(
    store: &WeightStore,
    recipe: &Recipe,
    change: &Change<'_>,
) -> Result<(WeightStore, f64)> {
    let (mut tensors, mut bits, mut count) = (Vec::new(), 0u64, 0u64);
    let turned = transposes(store);
    for name in store.names() {
        let (shape, values) = (store.shape(name)?.to_vec(), store.values(name)?);
        let packs = matches!(recipe.spec_for(name), QuantSpec::Q4 { .. } | QuantSpec::Q8 { .. });
        let (turn, whole) = (turned(name) && shape.len() == 2, layout_of(&shape));
        let layout = whole.filter(|layout| packs && layout.rows > 1);
        let layout = layout.map(|l| if turn { Layout::linear(l.channels, l.rows) } else { l });
        count += values.len() as u64;
        let values = match layout {
            Some(layout) => {
                let rows = match shape[..] {
                    [n, c, h, w] => conv_to_rows(&values, [n, c, h, w]).0,
                    [k, n] if turn => transpose(&values, k, n),
                    _ => values,
                };
                let (rounded, spent) = change.round(name, &rows, layout)?;
                bits += spent;
                match shape.len() {
                    4 => rows_to_conv(&rounded, layout),
                    _ if turn => transpose(&rounded, layout.rows, layout.channels),
                    _ => rounded,
                }
            }
            None => {
                bits += 16 * values.len() as u64;
                match change {
                    Change::Bf16 => values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect(),
                    _ => values,
                }
            }
        };
        tensors.push((name.to_string(), Tensor::f32(&shape, values)));
    }
    if count == 0 {
        return Err(Error::Model("no weights to change".into()));
    }
    Ok((WeightStore::from_tensors(&tensors)?, bits as f64 / count as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::rng::{Rng, RngKind};
    use crate::quant::metrics::sqnr_db;

    fn db(format: Imitation) -> f64 {
        let layout = Layout::linear(64, 1024);
        let values = Rng::new(RngKind::Cpu, 1).randn(layout.len());
        sqnr_db(&format.round(&values, layout, None), &values)
    }

    #[test]
    fn normal_weights_lose_what_theory_says() {
        // The same in numpy, on normal weights of its own: 16.84 dB per row of 1024, 19.31 in groups of 64; 0.3: the largest of
        // each row is another.
        for (span, expected) in [(Span::Channel, 16.84), (Span::Group(64), 19.31)] {
            let found = db(Imitation::plain(4, span));
            assert!((found - expected).abs() < 0.3, "{span:?}: {found}");
        }
        // A bit more halves the step: 6.02 dB.
        let more = db(Imitation::plain(8, Span::Channel)) - db(Imitation::plain(6, Span::Channel));
        assert!((more - 12.04).abs() < 0.5, "{more}");
        let searched = Imitation { search: true, ..Imitation::plain(4, Span::Channel) };
        assert!(db(searched) > db(Imitation::plain(4, Span::Channel)) + 2.0);
    }

    #[test]
    fn every_bit_is_counted() {
        let layout = Layout { rows: 4, taps: 9, channels: 64 };
        let bits = |format: Imitation| format.count(&layout) as f64 / layout.len() as f64;
        assert_eq!(bits(Imitation::plain(4, Span::Group(64))), 4.25);
        assert_eq!(bits(Imitation::plain(4, Span::Channel)), 4.0 + 16.0 / 576.0);
        let asymmetric =
            Imitation { form: Form::Asymmetric, ..Imitation::plain(4, Span::Group(32)) };
        assert_eq!(bits(asymmetric), 5.0);
        // 6 of 576 columns.
        let some = Imitation { outliers: 0.01, ..Imitation::plain(4, Span::Tensor) };
        assert!((bits(some) - (4.0 + 12.0 * 6.0 / 576.0 + 16.0 / 2304.0)).abs() < 1e-12);
    }

    #[test]
    fn columns_with_large_inputs_stay() {
        let layout = Layout::linear(2, 100);
        let values = Rng::new(RngKind::Cpu, 2).randn(200);
        let mut importance = vec![1.0; 100];
        importance[17] = 50.0;
        let format = Imitation { outliers: 0.01, ..Imitation::plain(3, Span::Tensor) };
        let rounded = format.round(&values, layout, Some(&importance));
        assert_eq!(rounded[117], f16::from_f32(values[117]).to_f32());
        assert_ne!(rounded[16], values[16]);
    }
}
