//! From numbers to [`Packed`]: rows are read, quantized and measured one by one, on all cores.

use std::borrow::Cow;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::grid::{CUBIC_CANDIDATES, Grid, Group, inverse};
use super::numbers::Rows;
use super::packed::{Q4_ZEROS, pair_halves};
use super::{
    Format, Layout, Levels, Numbers, Offset, Order, Packed, QuantSpec, Search, absmax, hqq, mse,
};
use crate::{Error, Result};

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
        let numbers = Numbers::F32(Cow::Borrowed(values));
        Packed::pack_numbers(&numbers, Order::ChannelsLast, layout, spec, importance)
    }

    /// As [`Packed::pack`], from the type and the order that a file has: nothing but the rows at work
    /// is held as f32.
    pub fn pack_numbers(
        numbers: &Numbers<'_>,
        order: Order,
        layout: Layout,
        spec: &QuantSpec,
        importance: Option<&[f32]>,
    ) -> Result<Packed> {
        layout.check()?;
        if numbers.len() != layout.len()
            || importance.is_some_and(|h| h.len() != layout.row_len())
            || spec.group().is_some_and(|g| g == 0 || !g.is_multiple_of(8))
        {
            return Err(Error::Runtime(format!(
                "{} values with {:?} importances do not make a weight of {layout:?} in {spec}",
                numbers.len(),
                importance.map(<[f32]>::len)
            )));
        }
        let rows = Rows { numbers, layout, order };
        if let QuantSpec::Q4 { group, search: Search::Hqq, .. } = *spec {
            return hqq::pack(&rows, group);
        }
        let mut format = Format::of(spec);
        if let QuantSpec::Q4 { group, levels: Levels::Cubic, search } = *spec {
            let cubic = choose_cubic(&rows, group, search, importance);
            format = Format::Q4 { group, cubic, offset: Offset::None };
        }
        let search = match spec {
            QuantSpec::Q4 { search, .. } => *search,
            _ => Search::Absmax,
        };
        pack_rows(&rows, format, search, importance, spec)
    }
}

/// What was measured while rows were packed.
#[derive(Clone, Copy, Default)]
struct Measured {
    /// Σ of squares of the weights and of their errors.
    signal: f64,
    noise: f64,
    /// Weights that are not finite, and finite ones beyond the range of the format.
    bad: usize,
    far: usize,
}

/// Packs all rows and measures the error that was made.
fn pack_rows(
    rows: &Rows<'_>,
    format: Format,
    search: Search,
    importance: Option<&[f32]>,
    spec: &QuantSpec,
) -> Result<Packed> {
    /// Weights that one task takes at least.
    const TASK: usize = 1 << 14;
    let layout = rows.layout;
    let row_words = layout.row_stride() / format.per_word();
    let fill = if matches!(format, Format::Q4 { .. }) { Q4_ZEROS } else { 0 };
    let mut words = vec![fill; layout.rows * row_words];
    let per_row = format.group().map_or(0, |g| layout.row_groups(g));
    let mut bits = vec![0u16; layout.rows * per_row];
    let mut all = Measured::default();
    if !layout.is_empty() {
        let importance = importance.map(|h| importance_of_groups(h, layout, format));
        let packer = RowPacker::new(layout, format, search, importance.as_deref());
        // `par_chunks_mut` needs a size above zero also where there are no scales.
        let mut none = vec![0u16; if per_row == 0 { layout.rows } else { 0 }];
        let (bits, size) = if per_row == 0 { (&mut none, 1) } else { (&mut bits, per_row) };
        let tasks = words.par_chunks_mut(row_words).zip(bits.par_chunks_mut(size)).enumerate();
        let room = || (vec![0.0; layout.row_len()], vec![0.0; layout.row_len()], vec![]);
        let measured: Vec<Measured> = tasks
            .with_min_len((TASK / layout.row_len()).max(1))
            .map_init(room, |(scratch, values, eights), (row, (words, bits))| {
                rows.read(row, scratch, values);
                packer.pack(values, eights, words, bits)
            })
            .collect();
        // Summed in the order of rows, so that the figures do not depend on the number of threads.
        for m in measured {
            all.signal += m.signal;
            all.noise += m.noise;
            all.bad += m.bad;
            all.far += m.far;
        }
    }
    check_range(&all, layout, spec)?;
    let exact = all.noise == 0.0;
    let sqnr_db = if exact { f64::INFINITY } else { 10.0 * (all.signal / all.noise).log10() };
    let (scales, offsets, columns) = (pair_halves(&bits), vec![], None);
    let (words, scales, offsets) = (words.into(), scales.into(), offsets.into());
    Ok(Packed { layout, format, words, scales, offsets, columns, sqnr_db: Some(sqnr_db) })
}

fn check_range(all: &Measured, layout: Layout, spec: &QuantSpec) -> Result<()> {
    let (count, Measured { bad, far, .. }) = (layout.len(), *all);
    match (bad, far) {
        (0, 0) => Ok(()),
        (0, _) => Err(Error::Model(format!(
            "{far} of {count} weights are beyond the range of f16 (65504), which {spec} cannot hold; give \
             this weight fp32 in the recipe"
        ))),
        _ => Err(Error::Model(format!(
            "{bad} of {count} weights are not finite numbers; the file is damaged or the training diverged"
        ))),
    }
}

/// The groups of a row one after another, each padded to whole eights with zeros.
fn importance_of_groups(importance: &[f32], layout: Layout, format: Format) -> Vec<[f32; 8]> {
    let mut out = vec![];
    let group = format.group().map_or(layout.channels, |g| g as usize);
    for tap in importance.chunks(layout.channels) {
        tap.chunks(group).for_each(|h| push_eights(&mut out, h));
    }
    out
}

pub(super) fn push_eights(out: &mut Vec<[f32; 8]>, values: &[f32]) {
    let (whole, rest) = values.as_chunks::<8>();
    out.extend_from_slice(whole);
    if !rest.is_empty() {
        let mut last = [0.0; 8];
        last[..rest.len()].copy_from_slice(rest);
        out.push(last);
    }
}

/// How the scale of a 4-bit group is found, with the levels it is for.
pub(super) enum Scales {
    Absmax(Grid),
    Mse(Box<mse::Search>),
}

impl Scales {
    pub(super) fn new(grid: Grid, search: Search) -> Scales {
        match search {
            Search::Absmax => Scales::Absmax(grid),
            Search::Mse | Search::Hqq => Scales::Mse(Box::new(mse::Search::new(grid))),
        }
    }
    pub(super) fn grid(&self) -> &Grid {
        match self {
            Scales::Absmax(grid) => grid,
            Scales::Mse(search) => search.grid(),
        }
    }
    pub(super) fn scale(&self, group: Group<'_>) -> f32 {
        match self {
            Scales::Absmax(grid) => absmax::scale(grid, group),
            Scales::Mse(search) => search.scale(group),
        }
    }
}

/// What packing one row needs to know.
struct RowPacker<'a> {
    layout: Layout,
    format: Format,
    scales: Scales,
    /// As [`importance_of_groups`] lays it out.
    importance: Option<&'a [[f32; 8]]>,
}

impl RowPacker<'_> {
    fn new(
        layout: Layout,
        format: Format,
        search: Search,
        importance: Option<&[[f32; 8]]>,
    ) -> RowPacker<'_> {
        let cubic = format.cubic();
        RowPacker { layout, format, scales: Scales::new(Grid::new(cubic), search), importance }
    }

    /// Writes one row's words and scale bits. `eights` is room for one group.
    fn pack(
        &self,
        values: &[f32],
        eights: &mut Vec<[f32; 8]>,
        words: &mut [u32],
        bits: &mut [u16],
    ) -> Measured {
        let mut measured = measure(values, self.format);
        let (mut group_index, mut eight) = (0, 0);
        for (tap, values) in values.chunks(self.layout.channels).enumerate() {
            let size = self.format.group().map_or(values.len(), |g| g as usize);
            for (n, values) in values.chunks(size).enumerate() {
                // A group is padded unless it is made of whole eights already.
                let w = match values.as_chunks::<8>() {
                    (whole, []) => whole,
                    _ => {
                        eights.clear();
                        push_eights(eights, values);
                        &eights[..]
                    }
                };
                let importance = self.importance.map(|h| &h[eight..eight + w.len()]);
                let first = (tap * self.layout.tap_stride() + n * size) / self.format.per_word();
                let (s, noise) = self.group(Group { w, importance }, &mut words[first..]);
                if let Some(bits) = bits.get_mut(group_index) {
                    *bits = f16::from_f32(s).to_bits();
                }
                measured.noise += f64::from(noise);
                group_index += 1;
                eight += w.len();
            }
        }
        measured
    }

    /// Writes the words of one group (of one tap in the unscaled formats); its scale and the sum of its
    /// squared errors.
    fn group(&self, group: Group<'_>, words: &mut [u32]) -> (f32, f32) {
        let mut noise = [0.0f32; 8];
        let mut add = |w: &[f32; 8], decoded: &[f32; 8]| {
            for i in 0..8 {
                let e = w[i] - decoded[i];
                noise[i] += e * e;
            }
        };
        let s = match self.format {
            Format::F32 => {
                let values = group.w.as_flattened();
                words.iter_mut().zip(values).for_each(|(word, v)| *word = v.to_bits());
                return (1.0, 0.0);
            }
            Format::F16 => {
                for (w, words) in group.w.iter().zip(words.as_chunks_mut::<4>().0) {
                    let mut halves = [f16::ZERO; 8];
                    halves.convert_from_f32_slice(w);
                    *words = std::array::from_fn(|i| {
                        let [low, high] = [halves[2 * i], halves[2 * i + 1]];
                        u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
                    });
                    let mut decoded = [0.0; 8];
                    halves.convert_to_f32_slice(&mut decoded);
                    add(w, &decoded);
                }
                1.0
            }
            Format::Q8 { .. } => {
                let s = absmax::scale_q8(group);
                for (w, words) in group.w.iter().zip(words.as_chunks_mut::<2>().0) {
                    let code;
                    (*words, code) = absmax::encode8_q8(w, inverse(s));
                    add(w, &code.map(|code| s * code));
                }
                s
            }
            Format::Q4 { .. } => {
                let (s, grid) = (self.scales.scale(group), self.scales.grid());
                let inverse = inverse(s);
                for (w, word) in group.w.iter().zip(words) {
                    let level;
                    (*word, level) = grid.encode8(w, inverse);
                    add(w, &level.map(|level| s * level));
                }
                s
            }
        };
        (s, noise.iter().sum())
    }
}

/// The signal of a row, and what of it the format cannot hold.
#[allow(clippy::neg_cmp_op_on_partial_ord)] // a NaN is outside as well
fn measure(values: &[f32], format: Format) -> Measured {
    let limit = if format == Format::F32 { f32::MAX } else { f16::MAX.to_f32() };
    let mut signal = 0.0;
    // By bits, without the sign: those of infinities and NaN are above every number's.
    let beyond = |v: f32| u32::from(v.to_bits() & 0x7fff_ffff > limit.to_bits());
    let mut outside = 0;
    for part in values.chunks(256) {
        let mut sums = [0.0f32; 8];
        let (whole, rest) = part.as_chunks::<8>();
        for v in whole {
            for i in 0..8 {
                sums[i] += v[i] * v[i];
                outside |= beyond(v[i]);
            }
        }
        outside |= rest.iter().fold(0, |any, &v| any | beyond(v));
        let rest: f32 = rest.iter().map(|v| v * v).sum();
        signal += f64::from(sums.iter().sum::<f32>() + rest);
    }
    let count = |test: &dyn Fn(f32) -> bool| values.iter().filter(|v| test(**v)).count();
    let (bad, far) = match outside {
        0 => (0, 0),
        _ => (count(&|v| !v.is_finite()), count(&|v| v.is_finite() && v.abs() > limit)),
    };
    Measured { signal, noise: 0.0, bad, far }
}

/// The curvature with the least error over a sample of groups spread through the tensor.
pub(super) fn choose_cubic(
    rows: &Rows<'_>,
    group: u32,
    search: Search,
    importance: Option<&[f32]>,
) -> f32 {
    /// Enough for a choice among six curves: their errors differ by several per cent, the mean over
    /// this many groups varies by about one.
    const SAMPLE: usize = 512;
    let layout = rows.layout;
    let per_tap = layout.groups_per_tap(group);
    let total = layout.rows * layout.row_groups(group);
    let curves = CUBIC_CANDIDATES.map(|c| Scales::new(Grid::new(c), search));
    let error = |index: usize| -> [f64; CUBIC_CANDIDATES.len()] {
        let (line, n) = (index / per_tap, index % per_tap);
        let (row, tap, start) = (line / layout.taps, line % layout.taps, n * group as usize);
        let length = (layout.channels - start).min(group as usize);
        let mut values = vec![0.0f32; length];
        rows.read_channels(row, tap, start, &mut values);
        let eights = |values: &[f32]| {
            let mut out = Vec::with_capacity(length.div_ceil(8));
            push_eights(&mut out, values);
            out
        };
        let at = tap * layout.channels + start;
        let (w, h) = (eights(&values), importance.map(|h| eights(&h[at..at + length])));
        errors(&curves, Group { w: &w, importance: h.as_deref() })
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

/// The squared error that each curve leaves in one group; for the least-squares search the estimate
/// that its choice goes by, which takes one tally for all.
fn errors(curves: &[Scales; CUBIC_CANDIDATES.len()], group: Group<'_>) -> [f64; 6] {
    let largest = group.largest();
    let tally = (!mse::is_zero(largest)).then(|| mse::Tally::new(group, largest));
    let mut power = 0.0;
    for (n, w) in group.w.iter().enumerate() {
        let h = group.importance(n);
        power += (0..8).map(|i| f64::from(h[i]) * f64::from(w[i]) * f64::from(w[i])).sum::<f64>();
    }
    std::array::from_fn(|i| match (&curves[i], &tally) {
        (Scales::Mse(search), Some(tally)) if search.grid().exact_scale(group).is_none() => {
            // Above zero, whatever rounding says: a curve that fits the group exactly must win.
            (power - f64::from(search.best(tally).0)).max(f64::MIN_POSITIVE)
        }
        (curve, _) => curve.grid().error(group, curve.scale(group)),
    })
}
