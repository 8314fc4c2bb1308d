//! What becomes of GGUF's blocks on the GPU.
//!
//! | in the file | here | signal to noise of what is lost, on random blocks |
//! |---|---|---|
//! | Q4_0 | int4 g32, even levels | none |
//! | Q4_1 | int4 g32 with a least value per group | none |
//! | Q4_K | int4 g32 with a least value per group | 72 dB: d·sc and dmin·mn rounded to f16 |
//! | Q5_0, Q8_0 | int8 g32 | none |
//! | Q5_1, Q5_K | int8 g32, quantized again | 48 dB: int8's steps, where 5 bits leave about 28 dB |
//! | Q6_K | int8 g16 | 76 dB: d·sc rounded to f16 |
//! | F16 beside quantized tensors | fp16 | none |
//! | BF16, F32 beside quantized tensors | fp16 (matrices), fp32 (norms, biases) | 73 dB: f16's 11 bits |
//! | F16, BF16, F32 in a file without quantized tensors | as the recipe says | the recipe's |
//!
//! tests/gguf/blocks.rs measures them.

use half::f16;
use rayon::prelude::*;

use super::gguf_blocks::{GgmlType, decode, half_at, k_scale, min_codes, q6k_scale, signed_codes};
use crate::quant::{Format, Layout, Offset, Packed, QuantSpec, pair_halves};
use crate::{Error, Result};

/// Which row of the stored matrix each row of Hugging Face's is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rows {
    /// The first row, where a fused tensor is taken apart.
    pub(super) first: usize,
    /// Channels of a head whose two halves the file interleaves (`permute` of llama.cpp's
    /// convert_hf_to_gguf.py): pair j of a head lies in rows 2j and 2j+1 there, in j and j + D/2 here.
    pub(super) interleaved: Option<usize>,
}

impl Rows {
    /// The stored row of row `row`.
    pub(super) fn stored(self, row: usize) -> usize {
        let row = match self.interleaved {
            None => row,
            Some(d) => {
                let (head, channel) = (row / d, row % d);
                let (half, pair) = (channel / (d / 2), channel % (d / 2));
                head * d + 2 * pair + half
            }
        };
        self.first + row
    }
}

/// The number format that blocks of this type get; `None` for plain numbers, which follow the recipe
/// or stay as they are.
pub fn becomes(ty: GgmlType) -> Option<Format> {
    let q4 = |offset| Some(Format::Q4 { group: 32, cubic: 0.0, offset });
    match ty {
        GgmlType::Q4_0 => q4(Offset::None),
        GgmlType::Q4_1 | GgmlType::Q4K => q4(Offset::Min),
        GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q5K | GgmlType::Q8_0 => {
            Some(Format::Q8 { group: 32 })
        }
        GgmlType::Q6K => Some(Format::Q8 { group: 16 }),
        GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 | GgmlType::Other(_) => None,
    }
}

/// The rows `[layout.rows, K]` of a stored matrix as f32, in Hugging Face's order.
pub(super) fn decode_rows(ty: GgmlType, data: &[u8], layout: Layout, rows: Rows) -> Vec<f32> {
    let mut out = vec![0.0; layout.len()];
    let row_bytes = layout.row_len() / ty.block() * ty.block_bytes();
    if rows == Rows::default() {
        decode(ty, data, &mut out);
        return out;
    }
    out.par_chunks_mut(layout.row_len().max(1)).enumerate().for_each(|(row, out)| {
        let from = rows.stored(row) * row_bytes;
        decode(ty, &data[from..from + row_bytes], out);
    });
    out
}

/// The rows of a stored matrix of blocks, packed as [`becomes`] says. `data` holds the whole stored
/// matrix, whose rows have K = `layout.channels` weights, a multiple of the block.
pub(super) fn repack(ty: GgmlType, data: &[u8], layout: Layout, rows: Rows) -> Result<Packed> {
    layout.check()?;
    match (ty, becomes(ty)) {
        (GgmlType::Q5_1 | GgmlType::Q5K, _) | (_, None) => {
            let values = decode_rows(ty, data, layout, rows);
            Packed::pack(&values, layout, &QuantSpec::Q8 { group: 32 }, None)
        }
        (_, Some(format)) => pack_blocks(ty, data, layout, rows, format),
    }
}

/// Blocks whose codes stay as they are; only the scales of the K types are rounded.
fn pack_blocks(
    ty: GgmlType,
    data: &[u8],
    layout: Layout,
    rows: Rows,
    format: Format,
) -> Result<Packed> {
    let (block, size) = (ty.block(), ty.block_bytes());
    let group = format.group().unwrap_or(32) as usize;
    let row_words = layout.row_stride() / format.per_word();
    let (per_row, row_bytes) = (layout.channels / group, layout.channels / block * size);
    let mut words = vec![0u32; layout.rows * row_words];
    let mut halves = vec![[0u16; 2]; layout.rows * per_row];
    let tasks = words.par_chunks_mut(row_words).zip(halves.par_chunks_mut(per_row)).enumerate();
    let sums: Vec<Sums> = tasks
        .map(|(row, (words, halves))| {
            let from = rows.stored(row) * row_bytes;
            let blocks = data[from..from + row_bytes].chunks_exact(size);
            let words = words.chunks_exact_mut(block / format.per_word());
            let parts = blocks.zip(words.zip(halves.chunks_exact_mut(block / group)));
            let mut sums = Sums::default();
            parts.for_each(|(b, (words, halves))| pack_block(ty, b, words, halves, &mut sums));
            sums
        })
        .collect();
    let bad: usize = sums.iter().map(|s| s.bad).sum();
    if bad > 0 {
        return Err(Error::Model(format!(
            "{bad} scales are not finite f16 numbers; the file is damaged or the training diverged"
        )));
    }
    let part = |n: usize| pair_halves(&halves.iter().map(|pair| pair[n]).collect::<Vec<u16>>());
    let offsets = if format.offset() == Offset::None { vec![] } else { part(1) };
    let mut packed = Packed::from_parts_with_offsets(layout, format, words, part(0), offsets)?;
    // Summed in the order of rows, so that the figure does not depend on the number of threads.
    let (signal, noise) =
        sums.iter().fold((0.0, 0.0), |(s, n), row| (s + row.signal, n + row.noise));
    packed.sqnr_db =
        Some(if noise == 0.0 { f64::INFINITY } else { 10.0 * f64::log10(signal / noise) });
    Ok(packed)
}

/// Squares of the weights and of their errors, and numbers that f16 cannot hold.
#[derive(Default)]
struct Sums {
    signal: f64,
    noise: f64,
    bad: usize,
}

/// Writes one block's words, and scale and offset of each of its groups.
fn pack_block(ty: GgmlType, b: &[u8], words: &mut [u32], halves: &mut [[u16; 2]], sums: &mut Sums) {
    let (mut signed, mut from_zero) = ([0i8; 256], [0u8; 256]);
    let codes = &mut signed[..ty.block()];
    let minimum = matches!(ty, GgmlType::Q4_1 | GgmlType::Q4K);
    if minimum {
        min_codes(ty, b, &mut from_zero[..codes.len()]);
        codes.iter_mut().zip(from_zero).for_each(|(to, q)| *to = q as i8);
    } else {
        signed_codes(ty, b, codes);
    }
    if codes.len() == 8 * words.len() {
        let zero = if minimum { 0 } else { 8 };
        for (word, q) in words.iter_mut().zip(codes.as_chunks::<8>().0) {
            *word = q.iter().rev().fold(0, |w, &q| w << 4 | u32::from((q + zero) as u8));
        }
    } else {
        for (word, q) in words.iter_mut().zip(codes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(q.map(|q| q as u8));
        }
    }
    let group = codes.len() / halves.len();
    for (n, (halves, codes)) in halves.iter_mut().zip(codes.chunks(group)).enumerate() {
        let (scale, min) = match ty {
            GgmlType::Q4K => {
                let (scale, min) = k_scale(b, n);
                (scale, -min)
            }
            GgmlType::Q4_1 => (half_at(b, 0), half_at(b, 2)),
            GgmlType::Q6K => (q6k_scale(b, n), 0.0),
            _ => (half_at(b, 0), 0.0),
        };
        let kept = [scale, min].map(f16::from_f32);
        *halves = kept.map(f16::to_bits);
        sums.bad += kept.iter().filter(|h| !h.is_finite()).count();
        let [ds, dm] = [(kept[0], scale), (kept[1], min)]
            .map(|(kept, exact)| f64::from(kept.to_f32()) - f64::from(exact));
        // Sums of (a·q + b)² over the group, from those of q and q².
        let (linear, squares) =
            codes.iter().map(|&q| i32::from(q)).fold((0, 0), |(l, s), q| (l + q, s + q * q));
        let power = |a: f64, b: f64| {
            let sum = a * a * f64::from(squares) + 2.0 * a * b * f64::from(linear);
            (sum + b * b * codes.len() as f64).max(0.0)
        };
        sums.signal += power(f64::from(scale), f64::from(min));
        sums.noise += power(ds, dm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_heads_are_put_in_halves() {
        // Two heads of six channels: pairs (0,3), (1,4), (2,5) of each lie side by side in the file.
        let rows = Rows { first: 0, interleaved: Some(6) };
        let stored: Vec<usize> = (0..12).map(|row| rows.stored(row)).collect();
        assert_eq!(stored, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert_eq!(Rows { first: 7, interleaved: None }.stored(2), 9);
    }
}
