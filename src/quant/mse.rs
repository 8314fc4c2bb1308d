//! Scales with the least squared error.
//!
//! For codes with levels l the best scale is s = Σhwl / Σhl² (h the importance of a weight), and it
//! leaves the error Σhw² − (Σhwl)²/Σhl². So the search tries a few places at which the largest weight
//! could lie on the level axis, assigns each weight its nearest level, and keeps the place with the
//! greatest (Σhwl)²/Σhl². Both signs of the scale cost one pass: they differ only in the weights
//! beyond the last middle, which only one side can reach.

use super::grid::{Grid, scale_f16};

/// Weights are taken this many at a time, in loops that a compiler turns into vector code.
const LANES: usize = 8;

/// Where the largest magnitude may lie, as a multiple of the outermost step: below 1 it is not
/// reached, above 1 the largest weights are clipped.
const REACH: [f32; 24] = [
    0.74, 0.79, 0.84, 0.88, 0.91, 0.94, 0.97, 1.0, 1.03, 1.06, 1.09, 1.12, 1.15, 1.18, 1.22, 1.26,
    1.3, 1.35, 1.4, 1.46, 1.53, 1.61, 1.7, 1.8,
];

/// The scale of one group, to be rounded no further. Zero for a group of zeros.
pub fn scale(grid: &Grid, w: &[f32], importance: Option<&[f32]>, codes: &mut [u8]) -> f32 {
    let largest = w.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    if let Some(s) = grid.exact_scale(w, largest) {
        return s;
    }
    let group = Group::new(w, importance, largest);
    let mut best = (f32::NEG_INFINITY, 1.0);
    for reach in REACH {
        let place = reach * grid.step[8];
        let (positive, negative) = group.gain(grid, place);
        let s = largest / place;
        if positive > best.0 {
            best = (positive, s);
        }
        if negative > best.0 {
            best = (negative, -s);
        }
    }
    refine(grid, w, importance, best.1, codes)
}

/// Alternates between nearest codes and the best scale for them, with the scale rounded to f16 as it
/// will be stored; keeps the best of what it saw.
fn refine(grid: &Grid, w: &[f32], h: Option<&[f32]>, start: f32, codes: &mut [u8]) -> f32 {
    let mut s = scale_f16(start);
    let mut best = (f64::INFINITY, s);
    for _ in 0..3 {
        grid.encode(w, s, codes);
        let error = grid.error(w, h, codes, s);
        if error < best.0 {
            best = (error, s);
        }
        let (mut wl, mut ll) = (0.0f32, 0.0f32);
        for i in 0..w.len() {
            let l = grid.level[usize::from(codes[i] & 15)];
            let hl = l * h.map_or(1.0, |h| h[i]);
            wl += w[i] * hl;
            ll += l * hl;
        }
        let next = if ll > 0.0 { scale_f16(wl / ll) } else { s };
        if next == s || next == 0.0 {
            break;
        }
        s = next;
    }
    best.1
}

/// The magnitudes of a group relative to its largest, in lanes padded with zeros (which lie on level
/// 0 and add nothing).
struct Group {
    chunks: Vec<Chunk>,
}

#[derive(Clone, Copy)]
struct Chunk {
    /// |w| / largest
    magnitude: [f32; LANES],
    /// h
    importance: [f32; LANES],
    /// h where w is negative, else 0
    importance_negative: [f32; LANES],
}

impl Group {
    fn new(w: &[f32], importance: Option<&[f32]>, largest: f32) -> Group {
        let zero = [0.0; LANES];
        let empty = Chunk { magnitude: zero, importance: zero, importance_negative: zero };
        let mut chunks = vec![empty; w.len().div_ceil(LANES)];
        for (i, &w) in w.iter().enumerate() {
            let h = importance.map_or(1.0, |h| h[i]);
            let chunk = &mut chunks[i / LANES];
            chunk.magnitude[i % LANES] = w.abs() / largest;
            chunk.importance[i % LANES] = h;
            chunk.importance_negative[i % LANES] = if w < 0.0 { h } else { 0.0 };
        }
        Group { chunks }
    }

    /// (Σhwl)²/Σhl² with the largest magnitude at `place` on the level axis, for a positive scale
    /// (step 8 on the negative side) and for a negative one (step 8 on the positive side).
    fn gain(&self, grid: &Grid, place: f32) -> (f32, f32) {
        let zero = [0.0f32; LANES];
        let (mut wl, mut ll) = (zero, zero);
        let (mut wl_spare, mut ll_spare) = (zero, zero);
        let (mut wl_negative, mut ll_negative) = (zero, zero);
        let (middle, gap) = (grid.middle, grid.gap);
        for chunk in &self.chunks {
            for i in 0..LANES {
                let u = chunk.magnitude[i] * place;
                let mut level = 0.0;
                for k in 0..7 {
                    level += if u > middle[k] { gap[k] } else { 0.0 };
                }
                let (h, h_negative) = (chunk.importance[i], chunk.importance_negative[i]);
                let hl = h * level;
                wl[i] += u * hl;
                ll[i] += level * hl;
                let beyond = if u > middle[7] { 1.0 } else { 0.0 };
                wl_spare[i] += u * (h * beyond);
                ll_spare[i] += h * beyond;
                wl_negative[i] += u * (h_negative * beyond);
                ll_negative[i] += h_negative * beyond;
            }
        }
        let sum = |lanes: [f32; LANES]| lanes.iter().sum::<f32>();
        let more_wl = gap[7];
        let more_ll = grid.step[8] * grid.step[8] - grid.step[7] * grid.step[7];
        let gain = |wl_extra: f32, ll_extra: f32| {
            let (wl, ll) = (sum(wl) + more_wl * wl_extra, sum(ll) + more_ll * ll_extra);
            // `u` carries the factor `place`; dividing it out makes places comparable.
            if ll > 0.0 { wl * wl / (ll * place * place) } else { 0.0 }
        };
        let (wl_n, ll_n) = (sum(wl_negative), sum(ll_negative));
        (gain(wl_n, ll_n), gain(sum(wl_spare) - wl_n, sum(ll_spare) - ll_n))
    }
}
