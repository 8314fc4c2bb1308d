//! The number formats of GGUF tensors, and their decoding to f32, bit for bit as gguf-py's
//! `gguf.quants.dequantize` has it (ggml's `dequantize_row_*`, ggml-quants.c).
//!
//! A block is a run of weights of one row with its scales. With q a code, d and m f16 numbers of the
//! block (in the K types: of 256 weights, with scales of 6 or 8 bits for every 32 or 16 of them):
//!
//! | type | weights a block | bytes | weight |
//! |---|---|---|---|
//! | Q4_0 | 32 | 18 | d·(q−8) |
//! | Q4_1 | 32 | 20 | d·q + m |
//! | Q5_0 | 32 | 22 | d·(q−16) |
//! | Q5_1 | 32 | 24 | d·q + m |
//! | Q8_0 | 32 | 34 | d·q |
//! | Q4_K | 256 | 144 | (d·sc)·q − (dmin·mn), sc and mn for every 32 |
//! | Q5_K | 256 | 176 | the same with q of 5 bits |
//! | Q6_K | 256 | 210 | (d·sc)·(q−32), sc (i8) for every 16 |

use std::fmt;

use half::f16;
use rayon::prelude::*;

/// A tensor's number format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
    /// One that ggml knows and this program does not decode, by its number in the file.
    Other(u32),
}

/// Number in the file, name, weights of a block, bytes of a block (ggml.h `enum ggml_type`; sizes of
/// gguf-py's `GGML_QUANT_SIZES`).
const TYPES: [(u32, GgmlType, &str, usize, usize); 35] = {
    use GgmlType::*;
    [
        (0, F32, "F32", 1, 4),
        (1, F16, "F16", 1, 2),
        (2, Q4_0, "Q4_0", 32, 18),
        (3, Q4_1, "Q4_1", 32, 20),
        (6, Q5_0, "Q5_0", 32, 22),
        (7, Q5_1, "Q5_1", 32, 24),
        (8, Q8_0, "Q8_0", 32, 34),
        (9, Other(9), "Q8_1", 32, 40),
        (10, Other(10), "Q2_K", 256, 84),
        (11, Other(11), "Q3_K", 256, 110),
        (12, Q4K, "Q4_K", 256, 144),
        (13, Q5K, "Q5_K", 256, 176),
        (14, Q6K, "Q6_K", 256, 210),
        (15, Other(15), "Q8_K", 256, 292),
        (16, Other(16), "IQ2_XXS", 256, 66),
        (17, Other(17), "IQ2_XS", 256, 74),
        (18, Other(18), "IQ3_XXS", 256, 98),
        (19, Other(19), "IQ1_S", 256, 50),
        (20, Other(20), "IQ4_NL", 32, 18),
        (21, Other(21), "IQ3_S", 256, 110),
        (22, Other(22), "IQ2_S", 256, 82),
        (23, Other(23), "IQ4_XS", 256, 136),
        (24, Other(24), "I8", 1, 1),
        (25, Other(25), "I16", 1, 2),
        (26, Other(26), "I32", 1, 4),
        (27, Other(27), "I64", 1, 8),
        (28, Other(28), "F64", 1, 8),
        (29, Other(29), "IQ1_M", 256, 56),
        (30, Bf16, "BF16", 1, 2),
        (34, Other(34), "TQ1_0", 256, 54),
        (35, Other(35), "TQ2_0", 256, 66),
        (39, Other(39), "MXFP4", 32, 17),
        (40, Other(40), "NVFP4", 64, 36),
        (41, Other(41), "Q1_0", 128, 18),
        (u32::MAX, Other(u32::MAX), "unknown", 1, 1),
    ]
};

impl GgmlType {
    /// The type of this number in a file; `None` for numbers that ggml does not use (any more).
    pub fn from_number(number: u32) -> Option<GgmlType> {
        TYPES.iter().find(|t| t.0 == number && number != u32::MAX).map(|t| t.1)
    }

    fn row(self) -> &'static (u32, GgmlType, &'static str, usize, usize) {
        TYPES.iter().find(|t| t.1 == self).unwrap_or(&TYPES[TYPES.len() - 1])
    }

    /// Weights of one block; 1 for plain numbers.
    pub fn block(self) -> usize {
        self.row().3
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Whether there is a decoder for it.
    pub fn is_supported(self) -> bool {
        !matches!(self, GgmlType::Other(_))
    }

    /// Whether it is a format of quantized blocks.
    pub fn is_quantized(self) -> bool {
        self.block() > 1
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

/// Decodes whole blocks; `out` has [`GgmlType::block`] weights for every
/// [`GgmlType::block_bytes`] bytes. Types without a decoder leave `out` as it is; the caller has
/// refused them.
pub fn decode(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    // Blocks a task decodes: some hundred microseconds of work.
    const TASK: usize = 4096;
    let (block, size) = (ty.block(), ty.block_bytes());
    let tasks = out.par_chunks_mut(TASK * block).zip(bytes.par_chunks(TASK * size));
    tasks.for_each(|(out, bytes)| {
        let blocks = out.chunks_exact_mut(block).zip(bytes.chunks_exact(size));
        blocks.for_each(|(out, bytes)| decode_block(ty, bytes, out));
    });
}

/// One block. The slices have the sizes of the table above.
fn decode_block(ty: GgmlType, b: &[u8], out: &mut [f32]) {
    match ty {
        GgmlType::F32 => out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        GgmlType::F16 => out[0] = half_at(b, 0),
        GgmlType::Bf16 => {
            out[0] = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)
        }
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => {
            let d = half_at(b, 0);
            let mut codes = [0i8; 32];
            signed_codes(ty, b, &mut codes);
            for (out, q) in out.iter_mut().zip(codes) {
                *out = d * f32::from(q);
            }
        }
        GgmlType::Q4_1 | GgmlType::Q5_1 => {
            let (d, m) = (half_at(b, 0), half_at(b, 2));
            let mut codes = [0u8; 32];
            min_codes(ty, b, &mut codes);
            for (out, q) in out.iter_mut().zip(codes) {
                *out = d * f32::from(q) + m;
            }
        }
        GgmlType::Q4K | GgmlType::Q5K => {
            let mut codes = [0u8; 256];
            min_codes(ty, b, &mut codes);
            for (n, (out, codes)) in out.chunks_mut(32).zip(codes.chunks(32)).enumerate() {
                let (scale, min) = k_scale(b, n);
                for (out, &q) in out.iter_mut().zip(codes) {
                    *out = scale * f32::from(q) - min;
                }
            }
        }
        GgmlType::Q6K => {
            let mut codes = [0i8; 256];
            signed_codes(ty, b, &mut codes);
            for (n, (out, codes)) in out.chunks_mut(16).zip(codes.chunks(16)).enumerate() {
                let scale = q6k_scale(b, n);
                for (out, &q) in out.iter_mut().zip(codes) {
                    *out = scale * f32::from(q);
                }
            }
        }
        GgmlType::Other(_) => {}
    }
}

/// The f16 at byte `at` of a block.
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The codes of a symmetric block as they multiply the scale: Q4_0 −8..7, Q5_0 −16..15, Q8_0
/// −128..127, Q6_K −32..31. `codes` has the block's number of weights.
pub(super) fn signed_codes(ty: GgmlType, b: &[u8], codes: &mut [i8]) {
    match ty {
        GgmlType::Q4_0 => {
            for (j, &byte) in b[2..18].iter().enumerate() {
                codes[j] = (byte & 15) as i8 - 8;
                codes[j + 16] = (byte >> 4) as i8 - 8;
            }
        }
        GgmlType::Q5_0 => {
            let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
            for (j, &byte) in b[6..22].iter().enumerate() {
                codes[j] = ((byte & 15) | bit(high, j, 4)) as i8 - 16;
                codes[j + 16] = ((byte >> 4) | bit(high, j + 16, 4)) as i8 - 16;
            }
        }
        GgmlType::Q8_0 => {
            codes.iter_mut().zip(&b[2..34]).for_each(|(code, &byte)| *code = byte as i8);
        }
        GgmlType::Q6K => {
            // Two halves of 128 weights; the quarters of a half share each byte of the high bits, two
            // of them each byte of the low ones.
            for (half, codes) in codes.chunks_exact_mut(128).enumerate() {
                let (low, high) = (&b[64 * half..][..64], &b[128 + 32 * half..][..32]);
                for (quarter, codes) in codes.chunks_exact_mut(32).enumerate() {
                    let low = &low[32 * (quarter & 1)..][..32];
                    let shift = if quarter < 2 { 0 } else { 4 };
                    for ((code, &low), &high) in codes.iter_mut().zip(low).zip(high) {
                        let top = (high >> (2 * quarter)) & 3;
                        *code = ((low >> shift) & 15 | top << 4) as i8 - 32;
                    }
                }
            }
        }
        _ => {}
    }
}

/// The codes of a block with a minimum, from 0: Q4_1 and Q4_K to 15, Q5_1 and Q5_K to 31.
pub(super) fn min_codes(ty: GgmlType, b: &[u8], codes: &mut [u8]) {
    match ty {
        GgmlType::Q4_1 => {
            for (j, &byte) in b[4..20].iter().enumerate() {
                codes[j] = byte & 15;
                codes[j + 16] = byte >> 4;
            }
        }
        GgmlType::Q5_1 => {
            let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
            for (j, &byte) in b[8..24].iter().enumerate() {
                codes[j] = (byte & 15) | bit(high, j, 4);
                codes[j + 16] = (byte >> 4) | bit(high, j + 16, 4);
            }
        }
        GgmlType::Q4K | GgmlType::Q5K => {
            let low = if ty == GgmlType::Q4K { &b[16..144] } else { &b[48..176] };
            for (sub, codes) in codes.chunks_exact_mut(32).enumerate() {
                let (low, shift) = (&low[32 * (sub / 2)..][..32], 4 * (sub % 2));
                codes.iter_mut().zip(low).for_each(|(code, &byte)| *code = (byte >> shift) & 15);
                if ty == GgmlType::Q5K {
                    let high = codes.iter_mut().zip(&b[16..48]);
                    high.for_each(|(code, &byte)| *code |= (byte >> sub & 1) << 4);
                }
            }
        }
        _ => {}
    }
}

/// Bit number `n` of a word, moved to bit `to` of a byte.
fn bit(word: u32, n: usize, to: u32) -> u8 {
    ((word >> n & 1) << to) as u8
}

/// Scale d·sc and minimum dmin·mn of sub-block `n` (0..7) of a Q4_K or Q5_K block. The 12 bytes hold
/// eight pairs of six bits: the first four whole, the upper two bits of the others above them.
pub(super) fn k_scale(b: &[u8], n: usize) -> (f32, f32) {
    let s = &b[4..16];
    let (sc, mn) = match n {
        0..4 => (s[n] & 63, s[n + 4] & 63),
        _ => ((s[n + 4] & 15) | (s[n - 4] >> 6) << 4, (s[n + 4] >> 4) | (s[n] >> 6) << 4),
    };
    (half_at(b, 0) * f32::from(sc), half_at(b, 2) * f32::from(mn))
}

/// Scale d·sc of sub-block `n` (0..15) of a Q6_K block.
pub(super) fn q6k_scale(b: &[u8], n: usize) -> f32 {
    half_at(b, 208) * f32::from(b[192 + n] as i8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_from_the_fields() {
        // Sums of the fields that the decoders above read.
        for (ty, block, bytes) in [
            (GgmlType::Q4_0, 32, 2 + 16),
            (GgmlType::Q4_1, 32, 4 + 16),
            (GgmlType::Q5_0, 32, 2 + 4 + 16),
            (GgmlType::Q5_1, 32, 4 + 4 + 16),
            (GgmlType::Q8_0, 32, 2 + 32),
            (GgmlType::Q4K, 256, 4 + 12 + 128),
            (GgmlType::Q5K, 256, 4 + 12 + 32 + 128),
            (GgmlType::Q6K, 256, 128 + 64 + 16 + 2),
        ] {
            assert_eq!((ty.block(), ty.block_bytes()), (block, bytes), "{ty}");
            assert!(ty.is_supported() && ty.is_quantized());
        }
        assert_eq!(GgmlType::from_number(14), Some(GgmlType::Q6K));
        assert_eq!(GgmlType::from_number(20).unwrap().to_string(), "IQ4_NL");
        for gone in [4, 5, 31, 36, 42, u32::MAX] {
            assert_eq!(GgmlType::from_number(gone), None);
        }
    }
}
