//! The sixteen levels of a 4-bit code and the nearest one to a value.

/// Curvatures tried for a tensor with cubic levels, in units of (q−8)²: `c0/64` for c0 = 0, 0.2,
/// 0.35, 0.5, 0.7, 1, so that with u = (q−8)/8 a level is 8·(u + c0·u³). Division by 64 is exact.
pub const CUBIC_CANDIDATES: [f32; 6] =
    [0.0, 0.2 / 64.0, 0.35 / 64.0, 0.5 / 64.0, 0.7 / 64.0, 1.0 / 64.0];

/// The levels `(q−8)·(1 + c·(q−8)²)` for q = 0..15 at scale 1. They are symmetric but for the
/// outermost negative one, whose magnitude (step 8) has no positive twin; a negative scale turns
/// that spare level to the other side.
#[derive(Clone, Debug)]
pub struct Grid {
    /// The curvature c.
    pub cubic: f32,
    /// The level of each code.
    pub level: [f32; 16],
    /// The magnitude of step k = |q−8|, k = 0..8.
    pub step: [f32; 9],
    /// The middle between steps k and k+1.
    pub middle: [f32; 8],
    /// The distance between steps k and k+1.
    pub gap: [f32; 8],
}

impl Grid {
    /// The levels for curvature `cubic`, which must not be negative.
    pub fn new(cubic: f32) -> Grid {
        let value = |d: f32| d * (1.0 + cubic * (d * d));
        let level: [f32; 16] = std::array::from_fn(|q| value(q as f32 - 8.0));
        let step: [f32; 9] = std::array::from_fn(|k| value(k as f32));
        let middle = std::array::from_fn(|k| 0.5 * (step[k] + step[k + 1]));
        let gap = std::array::from_fn(|k| step[k + 1] - step[k]);
        Grid { cubic, level, step, middle, gap }
    }

    /// The code whose level is nearest to `u` (a weight divided by its scale). Ties go towards zero.
    #[inline]
    pub fn nearest(&self, u: f32) -> u8 {
        let magnitude = u.abs();
        let inner: u8 = self.middle[..7].iter().map(|&m| u8::from(magnitude > m)).sum();
        let spare = u8::from(u < -self.middle[7]);
        if u < 0.0 { 8 - inner - spare } else { 8 + inner }
    }

    /// Writes the nearest codes of `w` at scale `s` to `codes`. A scale of zero gives code 8.
    pub fn encode(&self, w: &[f32], s: f32, codes: &mut [u8]) {
        let inverse = if s == 0.0 { 0.0 } else { 1.0 / s };
        for (code, &w) in codes.iter_mut().zip(w) {
            *code = self.nearest(w * inverse);
        }
    }

    /// The squared error of `codes` at scale `s`, each term times its importance.
    pub fn error(&self, w: &[f32], importance: Option<&[f32]>, codes: &[u8], s: f32) -> f64 {
        let term = |i: usize| {
            let e = f64::from(w[i]) - f64::from(s * self.level[usize::from(codes[i] & 15)]);
            e * e * importance.map_or(1.0, |h| f64::from(h[i]))
        };
        (0..w.len()).map(term).sum()
    }

    /// The scale at which every weight of the group is a level already, if there is one: the value
    /// is kept bit for bit, so that packing what was decoded from a packed weight changes nothing,
    /// and files quantized elsewhere on even levels pass through unharmed.
    pub fn exact_scale(&self, w: &[f32], largest: f32) -> Option<f32> {
        let candidates = (1..=8).rev().flat_map(|k| {
            let s = scale_f16(largest / self.step[k]);
            [-s, s].into_iter()
        });
        candidates
            .into_iter()
            .find(|&s| w.iter().all(|&w| s * self.level[usize::from(self.nearest(w / s))] == w))
    }
}

/// `s` as the f16 that is stored. A magnitude below the smallest normal f16 (2^-14) is raised to it:
/// drivers may flush subnormal halves to zero when they unpack them, and a scale that differs from
/// GPU to GPU is worse than the absolute error of at most 2^-15 that this costs.
pub fn scale_f16(s: f32) -> f32 {
    let s = half::f16::from_f32(s).to_f32();
    let smallest = half::f16::MIN_POSITIVE.to_f32();
    if s.abs() < smallest { smallest.copysign(s) } else { s }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_is_nearest() {
        for c in CUBIC_CANDIDATES {
            let grid = Grid::new(c);
            for i in -3000..3000 {
                let u = i as f32 * 0.01;
                let q = usize::from(grid.nearest(u));
                let best = grid.level.iter().map(|l| (l - u).abs()).fold(f32::MAX, f32::min);
                // 1e-5: a tie may go either way within the rounding of the middles.
                assert!((grid.level[q] - u).abs() <= best + 1e-5, "c {c} u {u} q {q}");
            }
            for q in 0..16 {
                assert_eq!(usize::from(grid.nearest(grid.level[q])), q);
            }
        }
    }

    #[test]
    fn scales_stay_normal() {
        let smallest = half::f16::MIN_POSITIVE.to_f32();
        assert_eq!(scale_f16(1e-9), smallest);
        assert_eq!(scale_f16(-1e-9), -smallest);
        assert_eq!(scale_f16(-0.5), -0.5);
    }
}
