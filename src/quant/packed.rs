//! [`Packed`]: a weight exactly as it lies in GPU memory and on disk.

use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::grid::{CUBIC_CANDIDATES, Grid};
use super::{Layout, Levels, QuantSpec, Search, absmax, mse};
use crate::{Error, Result};

/// The number format of a [`Packed`] weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    /// One f32 a word.
    F32,
    /// Two f16 a word, the first in the low half.
    F16,
    /// Four two's-complement bytes a word, the first in the low byte: `w = s·q`.
    Q8 { group: u32 },
    /// Eight nibbles a word, the first in the low bits: `w = s·(q−8)·(1 + cubic·(q−8)²)` without an
    /// offset; what an [`Offset`] does to it is said there. `cubic` is 0 with one.
    Q4 { group: u32, cubic: f32, offset: Offset },
}

/// The second number of a group of 4-bit codes q, an f16 as the scale s is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Offset {
    /// There is none: code 8 is zero.
    #[default]
    None,
    /// The code of zero: `w = s·(q − z)`. GPTQ, AWQ and compressed-tensors have integers here, which
    /// f16 holds exactly.
    Zero,
    /// The value of code 0: `w = s·q + m`, as in GGUF's Q4_1 and Q4_K.
    Min,
}

impl Format {
    /// The format that a spec asks for; `cubic` is chosen only when there are values.
    pub fn of(spec: &QuantSpec) -> Format {
        match *spec {
            QuantSpec::F32 => Format::F32,
            QuantSpec::F16 => Format::F16,
            QuantSpec::Q8 { group } => Format::Q8 { group },
            QuantSpec::Q4 { group, .. } => Format::Q4 { group, cubic: 0.0, offset: Offset::None },
        }
    }

    /// Elements in one word of 32 bits.
    pub fn per_word(&self) -> usize {
        match self {
            Format::F32 => 1,
            Format::F16 => 2,
            Format::Q8 { .. } => 4,
            Format::Q4 { .. } => 8,
        }
    }

    /// Channels per scale; `None` for the unscaled formats.
    pub fn group(&self) -> Option<u32> {
        match self {
            Format::F32 | Format::F16 => None,
            Format::Q8 { group } | Format::Q4 { group, .. } => Some(*group),
        }
    }

    /// Bytes of words, scales and offsets of a weight in this format, padding included.
    pub fn bytes(&self, layout: &Layout) -> usize {
        let words = layout.rows * layout.row_stride() / self.per_word();
        let scales = self.group().map_or(0, |g| (layout.rows * layout.row_groups(g)).div_ceil(2));
        let offsets = if self.offset() == Offset::None { 0 } else { scales };
        4 * (words + scales + offsets)
    }

    /// What each group has besides its scale.
    pub fn offset(&self) -> Offset {
        match self {
            Format::Q4 { offset, .. } => *offset,
            _ => Offset::None,
        }
    }
}

/// A weight `[rows, taps, channels]` in the bytes that go to the GPU and to disk.
///
/// `words` holds `rows` rows of [`Packed::row_words`] words; padding elements hold the code of value
/// zero (q = 8 in a Q4 row). `scales` holds f16 `[rows, taps, groups per tap]` flattened, two a word,
/// the first in the low half, padded to a whole word; it is empty for F32 and F16. `offsets` lies as
/// `scales` does and is empty where the format has none.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    pub layout: Layout,
    pub format: Format,
    pub words: Vec<u32>,
    pub scales: Vec<u32>,
    pub offsets: Vec<u32>,
    /// For weights whose channels were reordered so that groups lie together (GPTQ's act-order): the
    /// channel of the source that each stored channel is, `[channels]`. What is multiplied with the
    /// weight has to be gathered in this order; [`Packed::decode`] gives the source's order.
    pub columns: Option<Arc<[u32]>>,
    /// Signal to quantization noise against the weights it was packed from, in dB: infinite where
    /// nothing was lost, `None` where the source is not known.
    pub sqnr_db: Option<f64>,
}

impl Packed {
    /// Packs `values` `[rows, taps, channels]`. `importance` weighs the squared error of each
    /// (tap, channel) in the least-squares search, for instance by the mean square of what the layer
    /// reads there; it must not be negative. An error counts weights that are not finite, or beyond
    /// the range of f16 for every format but F32.
    pub fn pack(
        values: &[f32],
        layout: Layout,
        spec: &QuantSpec,
        importance: Option<&[f32]>,
    ) -> Result<Packed> {
        layout.check()?;
        if values.len() != layout.len()
            || importance.is_some_and(|h| h.len() != layout.row_len())
            || spec.group().is_some_and(|g| g == 0 || !g.is_multiple_of(8))
        {
            return Err(Error::Runtime(format!(
                "{} values with {:?} importances do not make a weight of {layout:?} in {spec}",
                values.len(),
                importance.map(<[f32]>::len)
            )));
        }
        check_range(values, spec)?;
        let mut format = Format::of(spec);
        if let QuantSpec::Q4 { group, levels: Levels::Cubic, search } = *spec {
            let cubic = choose_cubic(values, layout, group, search, importance);
            format = Format::Q4 { group, cubic, offset: Offset::None };
        }
        let search = match spec {
            QuantSpec::Q4 { search, .. } => *search,
            _ => Search::Absmax,
        };
        Ok(pack_rows(values, layout, format, search, importance))
    }

    /// Words of one row.
    pub fn row_words(&self) -> usize {
        self.layout.row_stride() / self.format.per_word()
    }

    /// Scales of one row.
    pub(super) fn row_groups(&self) -> usize {
        self.format.group().map_or(0, |g| self.layout.row_groups(g))
    }

    /// Number of scales, without padding.
    pub fn scale_count(&self) -> usize {
        self.layout.rows * self.row_groups()
    }

    /// Scale number `index` of `[rows, taps, groups per tap]` flattened; 0 beyond the end.
    pub fn scale(&self, index: usize) -> f32 {
        half_at(&self.scales, index).to_f32()
    }

    /// Offset number `index`, as [`Packed::scale`]; 0 where there are none.
    pub fn offset(&self, index: usize) -> f32 {
        half_at(&self.offsets, index).to_f32()
    }

    /// Bytes of words, scales and offsets, padding included: what the weight takes on the GPU.
    pub fn bytes(&self) -> usize {
        4 * (self.words.len() + self.scales.len() + self.offsets.len())
    }

    /// Bits of words, scales and offsets over the weights without padding.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes() as f64 / self.layout.len().max(1) as f64
    }

    /// The weights as f32, `[rows, taps, channels]`, channels in the order of the source.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.layout.len()];
        if out.is_empty() {
            return out;
        }
        let grid = self.grid();
        let rows = out.par_chunks_mut(self.layout.row_len()).enumerate();
        rows.for_each(|(row, out)| {
            for (tap, out) in out.chunks_mut(self.layout.channels).enumerate() {
                for channel in 0..out.len() {
                    let source = self.columns.as_ref().map_or(channel, |c| c[channel] as usize);
                    out[source] = self.value(&grid, row, tap, channel);
                }
            }
        });
        out
    }

    /// One weight by its place in memory; 0 outside the layout.
    pub fn decode_at(&self, row: usize, tap: usize, channel: usize) -> f32 {
        let l = &self.layout;
        if row >= l.rows || tap >= l.taps || channel >= l.channels {
            return 0.0;
        }
        self.value(&self.grid(), row, tap, channel)
    }

    fn grid(&self) -> Grid {
        match self.format {
            Format::Q4 { cubic, .. } => Grid::new(cubic),
            _ => Grid::new(0.0),
        }
    }

    fn value(&self, grid: &Grid, row: usize, tap: usize, channel: usize) -> f32 {
        let per_word = self.format.per_word();
        let element = tap * self.layout.tap_stride() + channel;
        let word = self.words[row * self.row_words() + element / per_word];
        let part = word >> (element % per_word * (32 / per_word));
        let index = |group: u32| {
            let per_tap = self.layout.groups_per_tap(group);
            (row * self.layout.taps + tap) * per_tap + channel / group as usize
        };
        match self.format {
            Format::F32 => f32::from_bits(word),
            Format::F16 => f16::from_bits(part as u16).to_f32(),
            Format::Q8 { group } => self.scale(index(group)) * f32::from(part as u8 as i8),
            Format::Q4 { group, offset, .. } => {
                let (i, q) = (index(group), (part & 15) as usize);
                let s = self.scale(i);
                match offset {
                    Offset::None => s * grid.level[q],
                    Offset::Zero => s * (q as f32 - self.offset(i)),
                    Offset::Min => s * q as f32 + self.offset(i),
                }
            }
        }
    }

    /// Signal to quantization noise against `values` `[rows, taps, channels]`, in dB.
    pub fn sqnr_against(&self, values: &[f32]) -> f64 {
        super::metrics::sqnr_db(&self.decode(), values)
    }
}

/// Eight nibbles of the code that stands for zero.
pub(super) const Q4_ZEROS: u32 = 0x8888_8888;

/// Number `index` of halves that lie two a word; 0 beyond the end.
pub(super) fn half_at(words: &[u32], index: usize) -> f16 {
    let word = words.get(index / 2).copied().unwrap_or(0);
    f16::from_bits((word >> (16 * (index % 2))) as u16)
}

/// Two halves a word, the first in the low half, padded with zero.
pub(crate) fn pair_halves(bits: &[u16]) -> Vec<u32> {
    let word = |pair: &[u16]| {
        u32::from(pair[0]) | u32::from(pair.get(1).copied().unwrap_or_default()) << 16
    };
    bits.chunks(2).map(word).collect()
}

fn check_range(values: &[f32], spec: &QuantSpec) -> Result<()> {
    let limit = if *spec == QuantSpec::F32 { f32::MAX } else { f16::MAX.to_f32() };
    let bad: usize =
        values.par_chunks(1 << 16).map(|c| c.iter().filter(|v| !v.is_finite()).count()).sum();
    if bad > 0 {
        return Err(Error::Model(format!(
            "{bad} of {} weights are not finite numbers; the file is damaged or the training diverged",
            values.len()
        )));
    }
    let far: usize =
        values.par_chunks(1 << 16).map(|c| c.iter().filter(|v| v.abs() > limit).count()).sum();
    match far {
        0 => Ok(()),
        _ => Err(Error::Model(format!(
            "{far} of {} weights are beyond the range of f16 (65504), which {spec} cannot hold; give \
             this weight fp32 in the recipe",
            values.len()
        ))),
    }
}

/// Packs all rows and measures the error that was made.
fn pack_rows(
    values: &[f32],
    layout: Layout,
    format: Format,
    search: Search,
    importance: Option<&[f32]>,
) -> Packed {
    let row_words = layout.row_stride() / format.per_word();
    let fill = if matches!(format, Format::Q4 { .. }) { Q4_ZEROS } else { 0 };
    let mut words = vec![fill; layout.rows * row_words];
    let per_row = format.group().map_or(0, |g| layout.row_groups(g));
    let mut bits = vec![0u16; layout.rows * per_row];
    let noise: Vec<f64> = if layout.is_empty() {
        vec![]
    } else {
        let packer = RowPacker::new(layout, format, search, importance);
        // `par_chunks_mut` needs a size above zero also where there are no scales.
        let mut none = vec![0u16; if per_row == 0 { layout.rows } else { 0 }];
        let (bits, size) = if per_row == 0 { (&mut none, 1) } else { (&mut bits, per_row) };
        let rows = words
            .par_chunks_mut(row_words)
            .zip(bits.par_chunks_mut(size))
            .zip(values.par_chunks(layout.row_len()));
        rows.map(|((words, bits), values)| packer.pack(values, words, bits)).collect()
    };
    let signal: f64 = values
        .par_chunks(1 << 16)
        .map(|c| c.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>())
        .collect::<Vec<_>>()
        .iter()
        .sum();
    // Summed in the order of rows, so that the figure does not depend on the number of threads.
    let noise: f64 = noise.iter().sum();
    let sqnr_db = if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() };
    let (scales, offsets, columns) = (pair_halves(&bits), vec![], None);
    Packed { layout, format, words, scales, offsets, columns, sqnr_db: Some(sqnr_db) }
}

/// What packing one row needs to know.
struct RowPacker<'a> {
    layout: Layout,
    format: Format,
    search: Search,
    importance: Option<&'a [f32]>,
    grid: Grid,
}

impl RowPacker<'_> {
    fn new(
        layout: Layout,
        format: Format,
        search: Search,
        importance: Option<&[f32]>,
    ) -> RowPacker<'_> {
        let cubic = if let Format::Q4 { cubic, .. } = format { cubic } else { 0.0 };
        RowPacker { layout, format, search, importance, grid: Grid::new(cubic) }
    }

    /// Writes one row's words and scale bits; returns its squared error.
    fn pack(&self, values: &[f32], words: &mut [u32], bits: &mut [u16]) -> f64 {
        let mut noise = 0.0;
        for (tap, values) in values.chunks(self.layout.channels).enumerate() {
            let first = tap * self.layout.tap_stride();
            match self.format {
                Format::F32 => {
                    for (i, &v) in values.iter().enumerate() {
                        words[first + i] = v.to_bits();
                    }
                }
                Format::F16 => noise += put_f16(words, first, values),
                Format::Q8 { group } => {
                    let per_tap = self.layout.groups_per_tap(group);
                    for (n, w) in values.chunks(group as usize).enumerate() {
                        let s = absmax::scale_q8(w);
                        bits[tap * per_tap + n] = f16::from_f32(s).to_bits();
                        noise += put_q8(words, first + n * group as usize, w, s);
                    }
                }
                Format::Q4 { group, .. } => {
                    let per_tap = self.layout.groups_per_tap(group);
                    let mut codes = vec![0u8; group as usize];
                    for (n, w) in values.chunks(group as usize).enumerate() {
                        let at = n * group as usize;
                        let codes = &mut codes[..w.len()];
                        let from = tap * self.layout.channels + at;
                        let h = self.importance.map(|h| &h[from..from + w.len()]);
                        let (s, error) = quantize(&self.grid, self.search, w, h, codes);
                        bits[tap * per_tap + n] = f16::from_f32(s).to_bits();
                        put_nibbles(words, first + at, codes);
                        noise += error;
                    }
                }
            }
        }
        noise
    }
}

/// The scale and codes of one group, and their squared error without importance.
fn quantize(
    grid: &Grid,
    search: Search,
    w: &[f32],
    importance: Option<&[f32]>,
    codes: &mut [u8],
) -> (f32, f64) {
    let s = match search {
        Search::Absmax => absmax::scale(grid, w),
        Search::Mse => mse::scale(grid, w, importance, codes),
    };
    grid.encode(w, s, codes);
    (s, grid.error(w, None, codes, s))
}

/// The curvature with the least error over a sample of groups spread through the tensor.
fn choose_cubic(
    values: &[f32],
    layout: Layout,
    group: u32,
    search: Search,
    importance: Option<&[f32]>,
) -> f32 {
    /// Enough for a choice among six curves: their errors differ by several per cent, the mean over
    /// this many groups varies by about one.
    const SAMPLE: usize = 512;
    let per_tap = layout.groups_per_tap(group);
    let total = layout.rows * layout.row_groups(group);
    let error = |index: usize| -> [f64; CUBIC_CANDIDATES.len()] {
        let (tap, n) = (index / per_tap, index % per_tap);
        let start = n * group as usize;
        let length = (layout.channels - start).min(group as usize);
        let from = tap * layout.channels + start;
        let w = &values[from..from + length];
        let at = tap % layout.taps * layout.channels + start;
        let h = importance.map(|h| &h[at..at + length]);
        let mut codes = vec![0u8; length];
        CUBIC_CANDIDATES.map(|c| {
            let grid = Grid::new(c);
            let (s, plain) = quantize(&grid, search, w, h, &mut codes);
            if h.is_none() { plain } else { grid.error(w, h, &codes, s) }
        })
    };
    let measure = |count: usize| {
        let picks: Vec<[f64; CUBIC_CANDIDATES.len()]> = (0..count)
            .into_par_iter()
            .map(|i| error((i as u128 * total as u128 / count as u128) as usize))
            .collect();
        let mut sums = [0.0; CUBIC_CANDIDATES.len()];
        picks.iter().for_each(|p| sums.iter_mut().zip(p).for_each(|(sum, e)| *sum += e));
        sums
    };
    let mut sums = measure(total.min(SAMPLE));
    // Weights that lie on levels already: several curves may fit the sample without error, but only
    // one of them everything.
    if total > SAMPLE && sums.iter().filter(|&&e| e == 0.0).count() > 1 {
        sums = measure(total);
    }
    let mut best = 0;
    for i in 1..sums.len() {
        if sums[i] < sums[best] {
            best = i;
        }
    }
    CUBIC_CANDIDATES[best]
}

/// Writes codes as nibbles from element `first` of a row on; elements are overwritten, not merged.
pub(super) fn put_nibbles(words: &mut [u32], first: usize, codes: &[u8]) {
    for (i, &code) in codes.iter().enumerate() {
        let (word, shift) = ((first + i) / 8, (first + i) % 8 * 4);
        words[word] = words[word] & !(15 << shift) | u32::from(code & 15) << shift;
    }
}

fn put_f16(words: &mut [u32], first: usize, values: &[f32]) -> f64 {
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    let mut noise = 0.0;
    for (i, (half, &v)) in halves.iter().zip(values).enumerate() {
        words[(first + i) / 2] |= u32::from(half.to_bits()) << ((first + i) % 2 * 16);
        let e = f64::from(half.to_f32()) - f64::from(v);
        noise += e * e;
    }
    noise
}

fn put_q8(words: &mut [u32], first: usize, w: &[f32], s: f32) -> f64 {
    let inverse = if s == 0.0 { 0.0 } else { 1.0 / s };
    let mut noise = 0.0;
    for (i, &w) in w.iter().enumerate() {
        let code = absmax::code_q8(w, inverse);
        words[(first + i) / 4] |= u32::from(code as u8) << ((first + i) % 4 * 8);
        let e = f64::from(s * f32::from(code)) - f64::from(w);
        noise += e * e;
    }
    noise
}
