//! Scales with the least squared error.
//!
//! For weights w of importance h on levels l the best scale is s = Σhwl / Σhl², and it leaves the error
//! Σhw² − (Σhwl)²/Σhl². So the search tries places at which the largest weight could lie on the level
//! axis, gives each weight its nearest level, and keeps the place with the greatest gain
//! (Σhwl)²/Σhl².
//!
//! A group is read once, for all places: its magnitudes go into cells of equal width on a logarithmic
//! axis, and each cell keeps Σh and Σhw. Places follow each other by one cell, so from one to the next
//! the cell at each middle between two levels moves up a level, and both sums change by what lies in
//! eight cells. That a middle is rounded to a cell costs nothing but the precision of the choice: the
//! gain is that of the codes it stands for, and the last step takes the nearest codes again.
//! Both signs of the scale share the work: they differ only in the weights beyond the last middle,
//! which only one side can reach.

use std::sync::LazyLock;

use super::grid::{Grid, Group, inverse, scale_f16};

/// Cells of one octave of magnitude: 2.9 % each. Twice as many gain less than 0.003 dB.
const PER_OCTAVE: usize = 24;
/// Places tried. The largest magnitude lies on 0.74 to 1.81 times the outermost step: below 1 it is not
/// reached, above 1 the largest weights are clipped.
const PLACES: usize = 32;
const FIRST_PLACE: f32 = 0.74;
/// Cells before that of the largest magnitude: the last middle begins beyond it.
const BEFORE: usize = 16;
/// Octaves below the largest magnitude that are told apart; 5.8 reach the first middle of every
/// curvature tried.
const OCTAVES: usize = 6;
/// Cells of one sign; the last one takes what is too small to have another level than zero.
const CELLS: usize = BEFORE + OCTAVES * PER_OCTAVE + 8;

/// Below this, a magnitude (relative to the largest) is too small to tell.
const SMALLEST: f32 = 1.0 / (1 << OCTAVES) as f32;
/// What an f32's bits are shifted by to find its cell: six bits of the mantissa remain.
const SHIFT: u32 = 17;
/// Entries of the table of cells for one sign: seven octaves of 64, rounded up to a power of two.
const ENTRIES: usize = 512;

/// The cell of a magnitude, by its bits less those of [`SMALLEST`], shifted; then the same for negative
/// weights, whose cells come after.
static CELL: LazyLock<[u16; 2 * ENTRIES]> = LazyLock::new(|| {
    std::array::from_fn(|i| {
        let (sign, entry) = (i / ENTRIES, i % ENTRIES);
        let half = 1 << (SHIFT - 1);
        let magnitude = f32::from_bits(SMALLEST.to_bits() + ((entry as u32) << SHIFT) + half);
        let cell = match entry {
            0 => CELLS - 1,
            _ => BEFORE + (-magnitude.log2() * PER_OCTAVE as f32).max(0.0) as usize,
        };
        (sign * CELLS + cell) as u16
    })
});

/// A group in cells: Σh and Σhw of each, magnitudes relative to the largest, positive weights first.
pub struct Tally {
    largest: f32,
    h: [f32; 2 * CELLS],
    hw: [f32; 2 * CELLS],
}

impl Tally {
    /// Tallies a group whose greatest magnitude is `largest`, above zero.
    #[inline(always)]
    pub fn new(group: Group<'_>, largest: f32) -> Tally {
        let mut tally = Tally { largest, h: [0.0; 2 * CELLS], hw: [0.0; 2 * CELLS] };
        let (cell, to_one) = (&*CELL, 1.0 / largest);
        for (n, w) in group.w.iter().enumerate() {
            let (mut u, mut entry) = ([0.0f32; 8], [0u32; 8]);
            for i in 0..8 {
                let magnitude = w[i].abs() * to_one;
                u[i] = if magnitude > SMALLEST { magnitude } else { SMALLEST };
                let above = u[i].to_bits() - SMALLEST.to_bits();
                entry[i] = (above >> SHIFT) + (w[i].to_bits() >> 31) * ENTRIES as u32;
            }
            let h = group.importance(n);
            for i in 0..8 {
                let cell = usize::from(cell[entry[i] as usize % (2 * ENTRIES)]);
                tally.h[cell] += h[i];
                tally.hw[cell] += h[i] * u[i];
            }
        }
        tally
    }
}

/// The search over the levels of one curvature.
pub struct Search {
    grid: Grid,
    /// The first cell below the middle between steps k and k+1 at the first place.
    start: [usize; 8],
    /// Level and squared level of each cell at the first place, the outermost step left out.
    level: [f32; CELLS],
    square: [f32; CELLS],
    /// The distance between the squares of steps k and k+1.
    square_gap: [f32; 8],
}

impl Search {
    pub fn new(grid: Grid) -> Search {
        let place = FIRST_PLACE * grid.step[8];
        let start = std::array::from_fn(|k| {
            let cells = (place / grid.middle[k]).log2() * PER_OCTAVE as f32;
            let last = (CELLS - 1 - PLACES) as f32;
            (cells + BEFORE as f32).round().clamp(0.0, last) as usize
        });
        let square_gap = std::array::from_fn(|k| {
            grid.step[k + 1] * grid.step[k + 1] - grid.step[k] * grid.step[k]
        });
        let reached = |cell: usize| start[..7].iter().filter(|&&start| cell < start).count();
        let level = std::array::from_fn(|cell| grid.step[reached(cell)]);
        let square = std::array::from_fn(|cell| grid.step[reached(cell)].powi(2));
        Search { grid, start, level, square, square_gap }
    }

    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// The scale of one group, to be rounded no further. Zero for a group of zeros.
    pub fn scale(&self, group: Group<'_>) -> f32 {
        if let Some(s) = self.grid.exact_scale(group) {
            return s;
        }
        let largest = group.largest();
        if is_zero(largest) {
            return 0.0;
        }
        let tally = Tally::new(group, largest);
        least_squares(&self.grid, group, scale_f16(self.best(&tally).1))
    }

    /// The greatest gain (Σhwl)²/Σhl² of a group, and its scale before it is rounded.
    pub fn best(&self, tally: &Tally) -> (f32, f32) {
        let (h, hw) = (both_signs(&tally.h), both_signs(&tally.hw));
        let (mut hl, mut hwl) = ([0.0f32; PLACES], [0.0f32; PLACES]);
        for k in 0..7 {
            add_scaled(&mut hl, self.square_gap[k], &h[self.start[k]..]);
            add_scaled(&mut hwl, self.grid.gap[k], &hw[self.start[k]..]);
        }
        let first = (dot(&h, &self.square), dot(&hw, &self.level));
        let mut best = (0.0, 0.0);
        // A positive scale has the outermost step on the negative side.
        for (sign, side) in [(1.0, CELLS), (-1.0, 0)] {
            let (mut hl, mut hwl) = (hl, hwl);
            add_scaled(&mut hl, self.square_gap[7], &tally.h[side + self.start[7]..]);
            add_scaled(&mut hwl, self.grid.gap[7], &tally.hw[side + self.start[7]..]);
            let (hl, hwl) = (running(first.0, &hl), running(first.1, &hwl));
            let (mut at, mut greatest) = (0, 0.0);
            for j in 0..PLACES {
                let gain = hwl[j] * hwl[j] / hl[j];
                if gain > greatest {
                    (at, greatest) = (j, gain);
                }
            }
            if greatest > best.0 {
                best = (greatest, sign * hwl[at] / hl[at]);
            }
        }
        let largest = tally.largest;
        (best.0 * largest * largest, best.1 * largest)
    }
}

/// Whether every weight up to this magnitude is nearer to zero than to the smallest scale.
pub fn is_zero(largest: f32) -> bool {
    largest < 0.5 * half::f16::MIN_POSITIVE.to_f32()
}

/// The best scale, rounded, for the codes that are nearest at scale `s`.
fn least_squares(grid: &Grid, group: Group<'_>, s: f32) -> f32 {
    let (mut hwl, mut hl) = ([0.0f32; 8], [0.0f32; 8]);
    let inverse = inverse(s);
    for (n, w) in group.w.iter().enumerate() {
        let (h, (_, level)) = (group.importance(n), grid.encode8(w, inverse));
        for i in 0..8 {
            let l = h[i] * level[i];
            hwl[i] += w[i] * l;
            hl[i] += level[i] * l;
        }
    }
    let (hwl, hl): (f32, f32) = (hwl.iter().sum(), hl.iter().sum());
    let next = if hl > 0.0 { scale_f16(hwl / hl) } else { s };
    if next == 0.0 { s } else { next }
}

fn both_signs(cells: &[f32; 2 * CELLS]) -> [f32; CELLS] {
    std::array::from_fn(|i| cells[i] + cells[CELLS + i])
}

/// Adds `factor` times the first of `cells` to what each place changes.
fn add_scaled(places: &mut [f32; PLACES], factor: f32, cells: &[f32]) {
    places.iter_mut().zip(cells).for_each(|(place, cell)| *place += factor * cell);
}

/// `first`, and then `first` with more and more of `changes` added.
fn running(first: f32, changes: &[f32; PLACES]) -> [f32; PLACES] {
    let mut sum = first;
    changes.map(|change| {
        let before = sum;
        sum += change;
        before
    })
}

fn dot(a: &[f32; CELLS], b: &[f32; CELLS]) -> f32 {
    let mut sums = [0.0f32; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        (0..8).for_each(|i| sums[i] += a[i] * b[i]);
    }
    sums.iter().sum()
}
