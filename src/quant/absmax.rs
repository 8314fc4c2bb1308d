//! Scales from the largest magnitude of a group.

use super::grid::{Grid, scale_f16};

/// The scale that puts the weight of largest magnitude on the outermost level: code 0, level −8·(1 +
/// 64c), as llama.cpp's Q4_0 does (`quantize_row_q4_0_ref` in ggml-quants.c), so the scale is negative
/// when that weight is positive. Zero for a group of zeros.
pub fn scale(grid: &Grid, w: &[f32]) -> f32 {
    let extreme = w.iter().fold(0.0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
    if extreme == 0.0 {
        return 0.0;
    }
    grid.exact_scale(w, extreme.abs()).unwrap_or_else(|| scale_f16(extreme / grid.level[0]))
}

/// The scale of a symmetric INT8 group, largest magnitude / 127. Zero for a group of zeros.
pub fn scale_q8(w: &[f32]) -> f32 {
    let largest = w.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    if largest == 0.0 { 0.0 } else { scale_f16(largest / 127.0) }
}

/// The nearest INT8 code of a weight, within ±127.
#[inline]
pub fn code_q8(w: f32, inverse_scale: f32) -> i8 {
    // Adding and taking away 1.5·2^23 rounds to the nearest integer, ties to even, without a call.
    const ROUND: f32 = 12_582_912.0;
    (((w * inverse_scale).clamp(-127.0, 127.0) + ROUND) - ROUND) as i8
}
