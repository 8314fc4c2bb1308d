//! What GPTQ, AWQ and compressed-tensors files come to once their bits are in order: integer codes,
//! scales and zero points, `w = scale · (code − zero)`. And how that becomes a [`Packed`] weight.

use half::f16;
use rayon::prelude::*;

use crate::quant::{Layout, Offset, Packed, QuantSpec};
use crate::{Error, Result};

/// Which columns share a scale.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Groups {
    /// So many neighbouring ones, the last group possibly short.
    Runs(usize),
    /// Column k belongs to group number `[k]` (GPTQ's g_idx).
    Index(Vec<u32>),
}

/// The weights of one linear layer.
#[derive(Clone, Debug)]
pub(super) struct Codes {
    /// N, outputs.
    pub rows: usize,
    /// K, inputs.
    pub channels: usize,
    /// 4 or 8.
    pub bits: u32,
    /// `[rows, channels]`, each below 2^bits.
    pub codes: Vec<u8>,
    pub groups: Groups,
    /// `[rows, groups]`
    pub scales: Vec<f32>,
    /// `[rows, groups]`
    pub zeros: Vec<u8>,
}

/// Where the groups of a weight can lie in memory.
struct Arrangement {
    group: u32,
    /// The source's column of each stored one, where they must be reordered.
    columns: Option<Vec<u32>>,
}

impl Codes {
    /// The weight as it goes to the GPU.
    ///
    /// 4-bit codes and symmetric 8-bit ones stay as they are, columns sorted by group where they were
    /// not. Scales become f16: those of f16 files and nearly all of bf16 files exactly, those of f32
    /// files rounded by at most 2⁻¹¹ of themselves, as the weights would be in a 16-bit file. What has
    /// no such form (asymmetric 8-bit codes, groups that are no multiple of 8 columns, scales beyond
    /// the range of f16) is decoded, to F16 where that holds every weight within 2⁻¹¹ of itself, to
    /// F32 otherwise.
    pub(super) fn pack(self) -> Result<Packed> {
        let bad = self.scales.iter().filter(|s| !s.is_finite()).count();
        if bad > 0 {
            return Err(Error::Model(format!("{bad} scales are not finite; the file is damaged")));
        }
        self.check_groups()?;
        let layout = Layout::linear(self.rows, self.channels);
        layout.check()?;
        let scales: Vec<f16> = self.scales.iter().map(|&s| f16::from_f32(s)).collect();
        let fits = scales.iter().zip(&self.scales).all(|(h, &s)| close(h.to_f32(), s));
        let middle = 1u8 << (self.bits - 1);
        let symmetric = self.zeros.iter().all(|&z| z == middle);
        let arrangement = self.arrange().filter(|_| fits && (self.bits == 4 || symmetric));
        let Some(Arrangement { group, columns }) = arrangement else {
            return self.decode_and_pack(layout);
        };
        let codes = match &columns {
            None => self.codes,
            Some(columns) => reorder(&self.codes, columns),
        };
        let packed = match (self.bits, symmetric) {
            (4, true) => Packed::from_q4_codes(layout, group, 0.0, &codes, &scales),
            (4, false) => {
                let zeros: Vec<f16> = self.zeros.iter().map(|&z| f16::from(z)).collect();
                let kind = Offset::Zero;
                Packed::from_q4_codes_with_offsets(layout, group, kind, &codes, &scales, &zeros)
            }
            _ => {
                let signed: Vec<i8> = codes.iter().map(|&c| c.wrapping_sub(middle) as i8).collect();
                Packed::from_q8_codes(layout, group, &signed, &scales)
            }
        }?;
        match columns {
            None => Ok(packed),
            Some(columns) => packed.with_columns(&columns),
        }
    }

    /// The weights, `[rows, channels]`, columns in the order of the file.
    pub(super) fn decode(&self) -> Vec<f32> {
        let groups = self.group_count();
        let of: Vec<usize> = match &self.groups {
            Groups::Runs(size) => (0..self.channels).map(|k| k / size).collect(),
            Groups::Index(index) => index.iter().map(|&g| g as usize).collect(),
        };
        let mut out = vec![0.0; self.codes.len()];
        out.par_chunks_mut(self.channels).enumerate().for_each(|(row, out)| {
            let (first, codes) = (row * groups, &self.codes[row * self.channels..]);
            for (k, out) in out.iter_mut().enumerate() {
                let g = first + of[k];
                *out = self.scales[g] * (f32::from(codes[k]) - f32::from(self.zeros[g]));
            }
        });
        out
    }

    fn group_count(&self) -> usize {
        self.scales.len() / self.rows.max(1)
    }

    /// An error unless every column has a scale.
    fn check_groups(&self) -> Result<()> {
        let (groups, channels) = (self.group_count(), self.channels);
        let fits = match &self.groups {
            Groups::Runs(size) => *size > 0 && channels.div_ceil(*size) == groups,
            Groups::Index(index) => {
                index.len() == channels && index.iter().all(|&g| (g as usize) < groups)
            }
        };
        match fits {
            true => Ok(()),
            false => Err(Error::Model(format!(
                "{groups} scales a row do not cover {channels} columns in {}",
                match &self.groups {
                    Groups::Runs(size) => format!("groups of {size}"),
                    Groups::Index(_) => "the groups that g_idx names; the file is damaged".into(),
                }
            ))),
        }
    }

    /// Runs of a multiple of eight columns, or one run of all; `None` where there are none.
    fn arrange(&self) -> Option<Arrangement> {
        let whole = self.channels.next_multiple_of(8);
        let run = |size: usize| {
            let size = if size >= self.channels { whole } else { size };
            u32::try_from(size).ok().filter(|size| size.is_multiple_of(8))
        };
        let index = match &self.groups {
            Groups::Runs(size) => return Some(Arrangement { group: run(*size)?, columns: None }),
            Groups::Index(index) => index,
        };
        let mut columns: Vec<u32> = (0..u32::try_from(self.channels).ok()?).collect();
        columns.sort_by_key(|&k| index[k as usize]);
        let group = self.channels.div_ceil(self.group_count());
        let first = columns.iter().take_while(|&&k| index[k as usize] == 0).count();
        // All groups but the last hold as many columns as the first.
        let size = if self.group_count() == 1 { group } else { first };
        let regular = |(at, &k): (usize, &u32)| index[k as usize] as usize == at / size.max(1);
        if size == 0 || !columns.iter().enumerate().all(regular) {
            return None;
        }
        let sorted = columns.is_sorted();
        Some(Arrangement { group: run(size)?, columns: (!sorted).then_some(columns) })
    }

    fn decode_and_pack(&self, layout: Layout) -> Result<Packed> {
        let values = self.decode();
        let fits = values.par_iter().all(|&v| close(f16::from_f32(v).to_f32(), v));
        let spec = if fits { QuantSpec::F16 } else { QuantSpec::F32 };
        tracing::warn!(
            "{} rows of {} columns at {} bits have no packed form here; decoded to {spec}",
            self.rows,
            self.channels,
            self.bits
        );
        Packed::pack(&values, layout, &spec, None)
    }
}

/// Whether f16 holds a value as well as it holds any: within 2⁻¹¹ of itself.
fn close(half: f32, value: f32) -> bool {
    (half - value).abs() <= value.abs() / 2048.0
}

/// Columns of every row in the order `columns`.
fn reorder(codes: &[u8], columns: &[u32]) -> Vec<u8> {
    let mut out = vec![0; codes.len()];
    let rows = out.par_chunks_mut(columns.len()).zip(codes.par_chunks(columns.len()));
    rows.for_each(|(out, codes)| {
        out.iter_mut().zip(columns).for_each(|(out, &k)| *out = codes[k as usize]);
    });
    out
}

/// `code(row, column)` for all of them, `[rows, channels]`. Walks tiles that suit files which keep
/// columns far apart.
pub(super) fn unpack(
    rows: usize,
    channels: usize,
    code: impl Fn(usize, usize) -> u8 + Sync,
) -> Vec<u8> {
    /// Rows of a tile: neighbours in the words of GPTQ and AWQ.
    const TILE: usize = 64;
    let mut out = vec![0; rows * channels];
    out.par_chunks_mut(TILE * channels.max(1)).enumerate().for_each(|(tile, out)| {
        for first in (0..channels).step_by(8) {
            for (row, out) in out.chunks_mut(channels).enumerate() {
                let columns = out.iter_mut().enumerate().skip(first).take(8);
                columns.for_each(|(k, out)| *out = code(tile * TILE + row, k));
            }
        }
    });
    out
}

/// From `[groups, rows]` to `[rows, groups]`.
pub(super) fn transpose(values: &[f32], groups: usize, rows: usize) -> Vec<f32> {
    (0..rows).flat_map(|n| (0..groups).map(move |g| values[g * rows + n])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Format;

    fn codes(channels: usize, bits: u32, groups: Groups, count: usize) -> Codes {
        let rows = 3;
        Codes {
            rows,
            channels,
            bits,
            codes: (0..rows * channels).map(|i| (i * 37 % (1 << bits)) as u8).collect(),
            groups,
            scales: (0..rows * count).map(|i| (i as f32 - 2.0) * 0.125).collect(),
            zeros: (0..rows * count).map(|i| (i * 5 % 16) as u8).collect(),
        }
    }

    fn format(codes: &Codes) -> Format {
        let (packed, want) = (codes.clone().pack().unwrap(), codes.decode());
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&packed.decode()), bits(&want), "{codes:?}");
        packed.format
    }

    #[test]
    fn every_arrangement_decodes_to_the_same_bits() {
        let zero = |group| Format::Q4 { group, cubic: 0.0, offset: Offset::Zero };
        assert_eq!(format(&codes(64, 4, Groups::Runs(32), 2)), zero(32));
        assert_eq!(format(&codes(40, 4, Groups::Runs(16), 3)), zero(16));
        assert_eq!(format(&codes(20, 4, Groups::Runs(20), 1)), zero(24), "a whole row");
        assert_eq!(format(&codes(20, 4, Groups::Runs(10), 2)), Format::F16, "no multiple of 8");
        assert_eq!(format(&codes(64, 8, Groups::Runs(32), 2)), Format::F16, "asymmetric bytes");
        let index = |of: &dyn Fn(u32) -> u32| Groups::Index((0..48).map(of).collect());
        let trivial = codes(48, 4, index(&|k| k / 16), 3);
        assert!(trivial.clone().pack().unwrap().columns.is_none());
        assert_eq!(format(&trivial), zero(16));
        let shuffled = codes(48, 4, index(&|k| k * 5 % 48 / 16), 3);
        assert!(shuffled.clone().pack().unwrap().columns.is_some());
        assert_eq!(format(&shuffled), zero(16));
        assert_eq!(format(&codes(48, 4, index(&|k| u32::from(k >= 32)), 2)), zero(32));
        assert_eq!(format(&codes(48, 4, index(&|k| u32::from(k >= 16)), 2)), Format::F16);
        assert_eq!(format(&codes(48, 4, index(&|k| 2 * (k % 2)), 3)), Format::F16, "group 1 empty");
        let mut plain = codes(64, 8, Groups::Runs(32), 2);
        plain.zeros.fill(128);
        assert_eq!(format(&plain), Format::Q8 { group: 32 });
        plain = codes(64, 4, Groups::Runs(32), 2);
        plain.zeros.fill(8);
        assert_eq!(format(&plain), Format::Q4 { group: 32, cubic: 0.0, offset: Offset::None });
    }

    #[test]
    fn scales_that_f16_has_not() {
        let mut c = codes(64, 4, Groups::Runs(32), 2);
        // Beyond the range on either side: decoded, exactly. 3e-6 is no f16 within 2⁻¹¹.
        for scale in [1e6, 3.01e-6] {
            c.scales[1] = scale;
            assert_eq!(format(&c), Format::F32);
        }
        // A third is rounded as any f16 is, by 2⁻¹¹ at most.
        c.scales[1] = 1.0 / 3.0;
        let packed = c.clone().pack().unwrap();
        assert!(matches!(packed.format, Format::Q4 { .. }));
        let error =
            packed.decode().into_iter().zip(c.decode()).map(|(a, b)| (a - b).abs() / b.abs());
        assert!(error.filter(|e| e.is_finite()).all(|e| e <= 1.0 / 2048.0));
        c.scales[1] = f32::NAN;
        assert!(c.pack().unwrap_err().to_string().contains("1 scales are not finite"));
    }

    #[test]
    fn groups_that_do_not_fit_are_refused() {
        for (groups, count) in [
            (Groups::Runs(16), 3),
            (Groups::Runs(0), 4),
            (Groups::Index(vec![4; 64]), 4),
            (Groups::Index(vec![0; 63]), 4),
        ] {
            let e = codes(64, 4, groups, count).pack().unwrap_err().to_string();
            assert!(e.contains("64 columns"), "{e}");
        }
    }
}
