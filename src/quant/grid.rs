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

    /// The codes of eight weights at the scale whose inverse is given, as a word of nibbles, the first
    /// in the low bits, and the level of each. Codes as [`Grid::nearest`], levels exactly those of
    /// [`Grid::level`]; written so that a compiler makes vector code of it.
    #[inline(always)]
    pub fn encode8(&self, w: &[f32; 8], inverse: f32) -> (u32, [f32; 8]) {
        let (mut code, mut level) = ([0u8; 8], [0.0f32; 8]);
        for i in 0..8 {
            let u = w[i] * inverse;
            let mut step = 0.0f32;
            for k in 0..7 {
                step += if u.abs() > self.middle[k] { 1.0 } else { 0.0 };
            }
            step += if u < -self.middle[7] { 1.0 } else { 0.0 };
            let d = step.copysign(u);
            level[i] = d * (1.0 + self.cubic * (d * d));
            // Adding 2^23 leaves the integer in the low bits, without a conversion that saturates.
            code[i] = (d + (8.0 + 8_388_608.0)).to_bits() as u8;
        }
        // Eight nibbles in the low halves of eight bytes are pushed together by halves.
        let x = u64::from_le_bytes(code);
        let x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
        let x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
        ((x | x >> 16) as u32, level)
    }

    /// The squared error of a group at scale `s` with the nearest codes, each term times its
    /// importance.
    pub fn error(&self, group: Group<'_>, s: f32) -> f64 {
        let mut sums = [0.0f32; 8];
        let inverse = inverse(s);
        for (n, w) in group.w.iter().enumerate() {
            let (h, (_, level)) = (group.importance(n), self.encode8(w, inverse));
            for i in 0..8 {
                let e = w[i] - s * level[i];
                sums[i] += h[i] * (e * e);
            }
        }
        sums.iter().map(|&sum| f64::from(sum)).sum()
    }

    /// The scale at which every weight of the group is a level already, if there is one: the value
    /// is kept bit for bit, so that packing what was decoded from a packed weight changes nothing,
    /// and files quantized elsewhere on even levels pass through unharmed. Zero for a group of zeros.
    pub fn exact_scale(&self, group: Group<'_>) -> Option<f32> {
        if has_nine_magnitudes(group) {
            return None;
        }
        let largest = group.largest();
        if largest == 0.0 {
            return Some(0.0);
        }
        let candidates = (1..=8).rev().flat_map(|k| {
            let s = scale_f16(largest / self.step[k]);
            [-s, s].into_iter()
        });
        let exact = |s: f32, w: f32| s * self.level[usize::from(self.nearest(w / s))] == w;
        candidates.into_iter().find(|&s| group.w.as_flattened().iter().all(|&w| exact(s, w)))
    }
}

/// The weights of one scale in eights, the last ones padded with zeros, and what their errors weigh.
#[derive(Clone, Copy)]
pub struct Group<'a> {
    pub w: &'a [[f32; 8]],
    /// As long as `w`; `None` where all weigh the same.
    pub importance: Option<&'a [[f32; 8]]>,
}

impl Group<'_> {
    /// The greatest magnitude.
    pub fn largest(&self) -> f32 {
        let mut largest = [0.0f32; 8];
        for w in self.w {
            for i in 0..8 {
                // Not `max`, whose rule for NaN costs more than the rest.
                largest[i] = if w[i].abs() > largest[i] { w[i].abs() } else { largest[i] };
            }
        }
        largest.into_iter().fold(0.0, f32::max)
    }

    /// What the weights of eight number `n` weigh.
    #[inline(always)]
    pub fn importance(&self, n: usize) -> [f32; 8] {
        self.importance.map_or([1.0; 8], |h| h[n])
    }
}

/// Whether there are more magnitudes than the eight steps besides zero: true of nearly every group after
/// a few weights.
fn has_nine_magnitudes(group: Group<'_>) -> bool {
    let (mut seen, mut count) = ([0.0f32; 9], 1);
    for magnitude in group.w.as_flattened().iter().map(|w| w.abs()) {
        if !seen[..count].contains(&magnitude) {
            if count == seen.len() {
                return true;
            }
            seen[count] = magnitude;
            count += 1;
        }
    }
    false
}

/// 1/s, 0 for a scale of zero, at which every weight has code 8.
pub fn inverse(s: f32) -> f32 {
    if s == 0.0 { 0.0 } else { 1.0 / s }
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
    fn eight_codes_are_the_nearest() {
        for c in CUBIC_CANDIDATES {
            let grid = Grid::new(c);
            for i in -400i16..400 {
                let w: [f32; 8] =
                    std::array::from_fn(|k| f32::from(i) * 0.0613 + k as f32 * 0.0071);
                let (word, level) = grid.encode8(&w, 1.0);
                for k in 0..8 {
                    let code = usize::from(grid.nearest(w[k]));
                    assert_eq!((word >> (4 * k) & 15) as usize, code, "c {c}, {}", w[k]);
                    assert_eq!(level[k], grid.level[code]);
                }
            }
        }
    }

    #[test]
    fn groups_of_few_magnitudes_may_be_exact() {
        let levels: [[f32; 8]; 2] =
            std::array::from_fn(|n| std::array::from_fn(|i| (8 * n + i) as f32 * 0.25 - 2.0));
        let group = Group { w: &levels, importance: None };
        assert_eq!(Grid::new(0.0).exact_scale(group), Some(0.25));
        assert!(!has_nine_magnitudes(group));
        let w = levels.map(|w| w.map(|w| w - 0.25));
        assert!(has_nine_magnitudes(Group { w: &w, importance: None }));
    }

    #[test]
    fn scales_stay_normal() {
        let smallest = half::f16::MIN_POSITIVE.to_f32();
        assert_eq!(scale_f16(1e-9), smallest);
        assert_eq!(scale_f16(-1e-9), -smallest);
        assert_eq!(scale_f16(-0.5), -0.5);
    }
}
