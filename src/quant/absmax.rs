//! Scales from the largest magnitude of a group.

use super::grid::{Grid, Group, scale_f16};

/// The scale that puts the weight of largest magnitude on the outermost level: code 0, level −8·(1 +
/// 64c), as llama.cpp's Q4_0 does (`quantize_row_q4_0_ref` in ggml-quants.c), so the scale is negative
/// when that weight is positive. Zero for a group of zeros.
pub fn scale(grid: &Grid, group: Group<'_>) -> f32 {
    let weights = group.w.as_flattened();
    let extreme = weights.iter().fold(0.0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
    grid.exact_scale(group).unwrap_or_else(|| scale_f16(extreme / grid.level[0]))
}

/// The scale of a symmetric INT8 group, largest magnitude / 127. Zero for a group of zeros.
pub fn scale_q8(group: Group<'_>) -> f32 {
    let largest = group.largest();
    if largest == 0.0 { 0.0 } else { scale_f16(largest / 127.0) }
}

/// The nearest INT8 codes of eight weights, within ±127, as two words of bytes, the first in the low
/// bits, and the same as numbers.
#[inline(always)]
pub fn encode8_q8(w: &[f32; 8], inverse_scale: f32) -> ([u32; 2], [f32; 8]) {
    // Adding 1.5·2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let (mut byte, mut code) = ([0u8; 8], [0.0f32; 8]);
    for i in 0..8 {
        let u = w[i] * inverse_scale;
        let u = if u < 127.0 { u } else { 127.0 };
        let sum = (if u > -127.0 { u } else { -127.0 }) + ROUND;
        byte[i] = sum.to_bits() as u8;
        code[i] = sum - ROUND;
    }
    let word = |at: usize| u32::from_le_bytes([byte[at], byte[at + 1], byte[at + 2], byte[at + 3]]);
    ([word(0), word(4)], code)
}
