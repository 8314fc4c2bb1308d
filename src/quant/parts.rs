//! [`Packed`] out of parts that exist already (files that were quantized elsewhere, the quantized file),
//! and rows of one as a weight of their own.

use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::packed::{Format, Offset, Packed, Q4_ZEROS, half_at, pair_halves, put_nibbles};
use super::{Layout, Words};
use crate::{Error, Result};

impl Packed {
    /// A weight from words and scales that exist already; an error when their numbers do not fit the
    /// layout. For formats with offsets there is [`Packed::from_parts_with_offsets`].
    pub fn from_parts(
        layout: Layout,
        format: Format,
        words: impl Into<Words>,
        scales: impl Into<Words>,
    ) -> Result<Packed> {
        Packed::from_parts_with_offsets(layout, format, words, scales, vec![])
    }

    /// As [`Packed::from_parts`] with the offsets of each group, which lie as the scales do. Scales and
    /// offsets must be finite: what pads a row is multiplied with zeros.
    pub fn from_parts_with_offsets(
        layout: Layout,
        format: Format,
        words: impl Into<Words>,
        scales: impl Into<Words>,
        offsets: impl Into<Words>,
    ) -> Result<Packed> {
        layout.check()?;
        if format.group().is_some_and(|g| g == 0 || !g.is_multiple_of(8)) {
            return Err(Error::Model(format!("{format:?}: groups are multiples of 8 channels")));
        }
        if matches!(format, Format::Q4 { cubic, offset, .. } if cubic != 0.0 && offset != Offset::None)
        {
            return Err(Error::Model(format!("{format:?}: cubic levels have no offset")));
        }
        let (columns, sqnr_db) = (None, None);
        let (words, scales, offsets) = (words.into(), scales.into(), offsets.into());
        let packed = Packed { layout, format, words, scales, offsets, columns, sqnr_db };
        let words = layout.rows * packed.row_words();
        let scales = packed.scale_count().div_ceil(2);
        let offsets = if format.offset() == Offset::None { 0 } else { scales };
        if packed.words.len() != words
            || packed.scales.len() != scales
            || packed.offsets.len() != offsets
        {
            return Err(Error::Model(format!(
                "{layout:?} as {format:?} has {words} words, {scales} words of scales and {offsets} of \
                 offsets, not {}, {} and {}",
                packed.words.len(),
                packed.scales.len(),
                packed.offsets.len()
            )));
        }
        for (what, halves) in [("scales", &packed.scales), ("offsets", &packed.offsets)] {
            // An exponent of ones: infinite, or no number.
            let bad = |half: u32| u32::from(half & 0x7c00 == 0x7c00);
            let bad: u32 = halves.iter().map(|w| bad(*w) + bad(w >> 16)).sum();
            if bad > 0 {
                let why = format!("{bad} {what} are not finite; the file is damaged");
                return Err(Error::Model(why));
            }
        }
        Ok(packed)
    }

    /// A Q4 weight from one code (0..15) per weight, `[rows, taps, channels]`, and one scale per
    /// group, `[rows, taps, groups per tap]`: the way in for files that were quantized elsewhere.
    pub fn from_q4_codes(
        layout: Layout,
        group: u32,
        cubic: f32,
        codes: &[u8],
        scales: &[f16],
    ) -> Result<Packed> {
        let format = Format::Q4 { group, cubic, offset: Offset::None };
        let (words, scales) = (nibbles(layout, codes)?, pair(scales));
        Packed::from_parts(layout, format, words, scales)
    }

    /// As [`Packed::from_q4_codes`] on even levels, with one offset per group.
    pub fn from_q4_codes_with_offsets(
        layout: Layout,
        group: u32,
        offset: Offset,
        codes: &[u8],
        scales: &[f16],
        offsets: &[f16],
    ) -> Result<Packed> {
        let format = Format::Q4 { group, cubic: 0.0, offset };
        let (words, scales, offsets) = (nibbles(layout, codes)?, pair(scales), pair(offsets));
        Packed::from_parts_with_offsets(layout, format, words, scales, offsets)
    }

    /// A Q8 weight from one signed code per weight and one scale per group, laid out as in
    /// [`Packed::from_q4_codes`].
    pub fn from_q8_codes(
        layout: Layout,
        group: u32,
        codes: &[i8],
        scales: &[f16],
    ) -> Result<Packed> {
        let mut words = room(layout, codes.len(), 4, 0)?;
        each_tap(layout, 4, &mut words, codes, |words, first, codes| {
            for (i, &code) in codes.iter().enumerate() {
                words[(first + i) / 4] |= u32::from(code as u8) << ((first + i) % 4 * 8);
            }
        });
        Packed::from_parts(layout, Format::Q8 { group }, words, pair(scales))
    }

    /// The same weight stored with its channels in another order: `columns[i]` is the channel of the
    /// source that stored channel i is. An error unless each channel is named once.
    pub fn with_columns(mut self, columns: &[u32]) -> Result<Packed> {
        let channels = self.layout.channels;
        let mut seen = vec![false; channels];
        let fresh =
            |&c: &u32| seen.get_mut(c as usize).is_some_and(|s| !std::mem::replace(s, true));
        if columns.len() != channels || self.layout.taps != 1 || !columns.iter().all(fresh) {
            return Err(Error::Model(format!(
                "{} column numbers that do not name each of {channels} channels once",
                columns.len()
            )));
        }
        self.columns = Some(columns.into());
        Ok(self)
    }

    /// The rows of `range` as a weight of their own, for windows under a binding limit. A range
    /// beyond the end is cut.
    pub fn slice_rows(&self, range: Range<usize>) -> Packed {
        let end = range.end.min(self.layout.rows);
        let start = range.start.min(end);
        let words = self.words.part(start * self.row_words()..end * self.row_words());
        self.take_rows(words, start..end)
    }

    /// Row i of the result is row `rows[i]` of this weight; an error for a row that there is not.
    pub fn permute_rows(&self, rows: &[usize]) -> Result<Packed> {
        if let Some(row) = rows.iter().find(|&&row| row >= self.layout.rows) {
            let have = self.layout.rows;
            return Err(Error::Model(format!("row {row} of a weight of {have} rows")));
        }
        Layout { rows: rows.len(), ..self.layout }.check()?;
        let row_words = self.row_words();
        let mut words = Vec::with_capacity(rows.len() * row_words);
        rows.iter().for_each(|r| words.extend(&self.words[r * row_words..(r + 1) * row_words]));
        Ok(self.take_rows(words.into(), rows.iter().copied()))
    }

    /// `rows` must be rows of this weight, `words` theirs.
    fn take_rows(
        &self,
        words: Words,
        rows: impl ExactSizeIterator<Item = usize> + Clone,
    ) -> Packed {
        let (count, per_row) = (rows.len(), self.row_groups());
        let halves = |source: &[u32]| -> Vec<u32> {
            if source.is_empty() {
                return vec![];
            }
            let indices = rows.clone().flat_map(|r| r * per_row..(r + 1) * per_row);
            pair_halves(&indices.map(|i| half_at(source, i).to_bits()).collect::<Vec<u16>>())
        };
        Packed {
            layout: Layout { rows: count, ..self.layout },
            format: self.format,
            words,
            scales: halves(&self.scales).into(),
            offsets: halves(&self.offsets).into(),
            columns: self.columns.clone(),
            sqnr_db: self.sqnr_db,
        }
    }

    /// Scale and offset of each group side by side, the scale in the low half of a word: one fetch for
    /// a kernel. `[rows, taps, groups per tap]`.
    pub(crate) fn scale_offset_pairs(&self) -> Vec<u32> {
        let pair = |i| {
            let (s, z) = (half_at(&self.scales, i), half_at(&self.offsets, i));
            u32::from(s.to_bits()) | u32::from(z.to_bits()) << 16
        };
        (0..self.scale_count()).map(pair).collect()
    }
}

fn pair(halves: &[f16]) -> Vec<u32> {
    pair_halves(&halves.iter().map(|h| h.to_bits()).collect::<Vec<u16>>())
}

/// Words filled with `fill`, `per_word` elements each, after checking that `codes` codes fit the layout.
fn room(layout: Layout, codes: usize, per_word: usize, fill: u32) -> Result<Vec<u32>> {
    layout.check()?;
    match codes == layout.len() {
        true => Ok(vec![fill; layout.rows * (layout.row_stride() / per_word)]),
        false => Err(Error::Model(format!("{codes} codes for {layout:?}"))),
    }
}

fn nibbles(layout: Layout, codes: &[u8]) -> Result<Vec<u32>> {
    let mut words = room(layout, codes.len(), 8, Q4_ZEROS)?;
    each_tap(layout, 8, &mut words, codes, put_nibbles);
    Ok(words)
}

/// Calls `put(words of the row, first element, codes)` for each tap of each row.
fn each_tap<T: Sync>(
    layout: Layout,
    per_word: usize,
    words: &mut [u32],
    codes: &[T],
    put: impl Fn(&mut [u32], usize, &[T]) + Sync,
) {
    if layout.is_empty() {
        return;
    }
    let row_words = layout.row_stride() / per_word;
    let rows = words.par_chunks_mut(row_words).zip(codes.par_chunks(layout.row_len()));
    rows.for_each(|(words, codes)| {
        for (tap, codes) in codes.chunks(layout.channels).enumerate() {
            put(words, tap * layout.tap_stride(), codes);
        }
    });
}
