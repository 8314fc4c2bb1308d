//! Whether what came out is what had to.

use crate::gpu::Elem;

/// What is allowed and what was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Σ(got − want)² / Σ want², over what must be finite.
    pub nmse: f64,
    /// Largest |got − want|, over the larger of |want| there and the root mean square of all.
    pub max_error: f64,
    pub nmse_allowed: f64,
    pub max_allowed: f64,
    /// Values that had to be finite and are not, or the other way round.
    pub misplaced: usize,
}

impl Verdict {
    pub fn passed(&self) -> bool {
        // Not `nmse > allowed`: NaN has to fail.
        self.nmse <= self.nmse_allowed && self.max_error <= self.max_allowed && self.misplaced == 0
    }
}

/// NMSE and largest relative error that are allowed, by how results are stored; llama.cpp's test-backend-ops allows a matrix
/// product 5e-4.
///
/// f32: sums of a few thousand products in another order come to (2⁻²⁴)²·K ≈ 1e-12 and an error of some 1e-6; 1e-8 and 3e-4
/// leave room for a driver's exp, sin and inverse square root, which the WGSL specification allows to be tens of
/// units off. f16: one store rounds by 2⁻¹¹/√3, NMSE 8e-8 and at most 4.9e-4 of the value, and one output may pass
/// several. A wrong kernel is wrong by 1e-3 and more.
pub fn allowed(act: Elem) -> (f64, f64) {
    if act == Elem::F16 { (1e-6, 4e-3) } else { (1e-8, 3e-4) }
}

/// Holds `got` against `want`, of the same length; `slack` multiplies the allowed NMSE, its root the allowed error.
pub fn judge(got: &[f32], want: &[f64], act: Elem, slack: f64) -> Verdict {
    let (nmse, max) = allowed(act);
    let finite = |(_, want): &(&f32, &f64)| want.is_finite();
    let (mut noise, mut power, mut count) = (0.0, 0.0, 0usize);
    for (got, want) in got.iter().zip(want).filter(finite) {
        noise += (f64::from(*got) - want).powi(2);
        power += want * want;
        count += 1;
    }
    let rms = (power / count.max(1) as f64).sqrt();
    let mut worst = 0.0f64;
    for (got, want) in got.iter().zip(want).filter(finite) {
        let error = (f64::from(*got) - want).abs();
        let relative = if error == 0.0 { 0.0 } else { error / want.abs().max(rms) };
        worst = if relative.is_nan() { f64::NAN } else { worst.max(relative) };
    }
    let misplaced = got.iter().zip(want).filter(|(g, w)| g.is_finite() != w.is_finite()).count();
    Verdict {
        nmse: if noise == 0.0 { 0.0 } else { noise / power },
        max_error: worst,
        nmse_allowed: nmse * slack,
        max_allowed: max * slack.sqrt(),
        misplaced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(got: &[f32], want: &[f64]) -> bool {
        judge(got, want, Elem::F32, 1.0).passed()
    }

    #[test]
    fn a_wrong_or_non_finite_result_fails() {
        assert!(passes(&[1.0, -2.0], &[1.0, -2.0]));
        assert!(passes(&[0.0, 0.0], &[0.0, 0.0]));
        assert!(!passes(&[1.0, -2.01], &[1.0, -2.0]));
        assert!(!passes(&[1.0, f32::NAN], &[1.0, -2.0]));
        assert!(!passes(&[1.0, f32::INFINITY], &[1.0, -2.0]));
        assert!(!passes(&[1e-6, 0.0], &[0.0, 0.0]));
    }

    #[test]
    fn one_value_far_off_among_many_fails() {
        // NMSE alone would let it pass.
        let want = vec![1.0; 1_000_000];
        let mut got = vec![1.0; 1_000_000];
        got[77] = 1.01;
        let verdict = judge(&got, &want, Elem::F32, 1.0);
        assert!(verdict.nmse < verdict.nmse_allowed && !verdict.passed());
    }

    #[test]
    fn what_cannot_be_finite_must_not_be() {
        let want = [1.0, f64::NAN, f64::INFINITY];
        assert!(passes(&[1.0, f32::NAN, f32::NAN], &want));
        assert!(!passes(&[1.0, 0.0, f32::INFINITY], &want));
        assert_eq!(judge(&[f32::NAN; 3], &want, Elem::F32, 1.0).misplaced, 1);
    }
}
