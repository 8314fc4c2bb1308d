//! [`Packed`]: a weight exactly as it lies in GPU memory and on disk.

use std::sync::Arc;

use half::f16;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::grid::Grid;
use super::{Layout, QuantSpec, Search, Words};

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
            QuantSpec::Q4 { group, search, .. } => {
                let offset = if search == Search::Hqq { Offset::Zero } else { Offset::None };
                Format::Q4 { group, cubic: 0.0, offset }
            }
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
    /// Bytes of a weight's words, and of its scales and offsets side by side, without what fills the last four up.
    pub fn sides(&self, layout: &Layout) -> [u64; 2] {
        let words = 4 * layout.rows * layout.row_stride() / self.per_word();
        let groups = self.group().map_or(0, |group| layout.rows * layout.row_groups(group));
        let each = if self.offset() == Offset::None { 2 } else { 4 };
        [words as u64, (groups * each) as u64]
    }
    /// The same with even levels.
    pub fn even(self) -> Format {
        match self {
            Format::Q4 { group, offset, .. } => Format::Q4 { group, cubic: 0.0, offset },
            other => other,
        }
    }
    /// The format by which one kernel decodes weights that differ in their levels alone: cubic if any has cubic ones, of which even
    /// ones are those with c = 0. None of none.
    pub fn of_all(all: impl IntoIterator<Item = Format>) -> Option<Format> {
        all.into_iter().reduce(|a, b| if a.cubic() == 0.0 { b } else { a })
    }
    /// c of its levels; 0 of even ones.
    pub fn cubic(&self) -> f32 {
        match self {
            Format::Q4 { cubic, .. } => *cubic,
            _ => 0.0,
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
    pub words: Words,
    pub scales: Words,
    pub offsets: Words,
    /// For weights whose channels were reordered so that groups lie together (GPTQ's act-order): the
    /// channel of the source that each stored channel is, `[channels]`. What is multiplied with the
    /// weight has to be gathered in this order; [`Packed::decode`] gives the source's order.
    pub columns: Option<Arc<[u32]>>,
    /// Signal to quantization noise against the weights it was packed from, in dB: infinite where
    /// nothing was lost, `None` where the source is not known.
    pub sqnr_db: Option<f64>,
}

impl Packed {
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

/// Writes codes as nibbles from element `first` of a row on; elements are overwritten, not merged.
pub(super) fn put_nibbles(words: &mut [u32], first: usize, codes: &[u8]) {
    for (i, &code) in codes.iter().enumerate() {
        let (word, shift) = ((first + i) / 8, (first + i) % 8 * 4);
        words[word] = words[word] & !(15 << shift) | u32::from(code & 15) << shift;
    }
}
