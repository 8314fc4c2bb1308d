//! What two runs of a text-to-image model differ by at every step, and how the error is made: how much of
//! it follows the prediction, its neighbours in time and its other half under guidance, and in which
//! frequencies it lies.

use serde::Serialize;

use super::compare::Estimate;
use super::spectrum::{BANDS, rel_l2_by_band};
use crate::quant::metrics::{correlation, cosine, kurtosis, regression, rel_l2};

/// Errors at one evaluation of the UNet, means over the pairs of runs. The error e is the variant's
/// prediction less the baseline's ε, both for the baseline's latents (teacher-forced) unless it is said
/// otherwise. Relative errors are ‖a−b‖ / ‖b‖ of `[batch, h, w, c]`. `null` in JSON is a value that is not
/// finite, as correlations are where nothing differs.
#[derive(Clone, Debug, Serialize)]
pub struct StepError {
    pub step: usize,
    /// Noise level √((1−ᾱ)/ᾱ) before the step.
    pub sigma: f64,
    /// The variant on the baseline's latents: weights and kernels together.
    pub eps_rel_l2_teacher_forced: f64,
    /// The variant on its own latents.
    pub eps_rel_l2_free_running: f64,
    /// The variant's own latents after the step.
    pub latent_rel_l2: f64,
    /// Teacher-forced, after guidance: u + g·(c−u).
    pub guided_rel_l2: f64,
    /// The variant's weights against fp16, both under the reference kernels. Absent where the baseline has
    /// the fast ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization_rel_l2: Option<f64>,
    /// The variant's kernels against the reference on the variant's weights. Absent as above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_rel_l2: Option<f64>,
    /// fp16 against fp32 weights under the fast kernels; of the first pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_rel_l2: Option<f64>,
    /// The own latents after the step of fp32 weights under the fast kernels; of the first pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_latent_rel_l2: Option<f64>,
    /// Of the variant's prediction and the baseline's.
    pub cosine: f64,
    /// ρ, the correlation of e without the prompt and e with it: guidance g multiplies independent errors
    /// by √(g² + (g−1)²), equal ones by 1. Absent without guidance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rho: Option<f64>,
    /// k of the least-squares line e ≈ k·ε + b (PTQD, arXiv 2305.10657).
    pub error_slope: f64,
    /// b of the same line.
    pub error_offset: f64,
    /// Correlation of e and ε.
    pub error_correlation: f64,
    /// Correlation of e with that of the step before. Absent in the first step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_lag: Option<f64>,
    /// Excess kurtosis of e: 0 if it is normally distributed.
    pub error_kurtosis: f64,
    /// Relative error of ε by band of radial frequency ([`super::spectrum::EDGES`]).
    pub bands: [f64; BANDS],
    /// Relative error of the variant's own latents after the step, by band.
    pub latent_bands: [f64; BANDS],
    /// Spread over the pairs.
    pub over_pairs: StepSpread,
}

/// Standard errors of the means of a step.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StepSpread {
    pub eps_rel_l2_teacher_forced: f64,
    pub eps_rel_l2_free_running: f64,
    pub latent_rel_l2: f64,
}

/// What one evaluation gave in the runs of a pair. ε is `[batch, h, w, c]`, without the prompt first where
/// `guided`; latents are those after the step.
pub(super) struct StepRuns<'a> {
    pub step: usize,
    pub sigma: f64,
    pub shape: [usize; 4],
    pub guidance: f32,
    pub guided: bool,
    /// ε and latents of the baseline.
    pub base: [&'a [f32]; 2],
    /// The same of the variant, free-running.
    pub free: [&'a [f32]; 2],
    pub forced: &'a [f32],
    /// The variant's weights under the reference kernels, teacher-forced.
    pub reference: Option<&'a [f32]>,
    /// The baseline's and the variant's ε (teacher-forced) of the step before.
    pub before: Option<[&'a [f32]; 2]>,
    /// [`StepError::floor_rel_l2`] and [`StepError::floor_latent_rel_l2`].
    pub floor: Option<[f64; 2]>,
}

/// u + g·(c−u) of two halves; one alone as it is.
pub(super) fn guide(eps: &[f32], guidance: f32, guided: bool) -> Vec<f32> {
    if !guided {
        return eps.to_vec();
    }
    let (u, c) = eps.split_at(eps.len() / 2);
    u.iter().zip(c).map(|(u, c)| u + guidance * (c - u)).collect()
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

impl StepRuns<'_> {
    pub(super) fn measure(&self) -> StepError {
        let [base, latents] = self.base;
        let error = difference(self.forced, base);
        let (error_slope, error_offset) = regression(&error, base);
        let halves = error.split_at(error.len() / 2);
        let guide = |eps: &[f32]| guide(eps, self.guidance, self.guided);
        let lag = |[base, forced]: [&[f32]; 2]| correlation(&error, &difference(forced, base));
        let [_, h, w, c] = self.shape;
        let pictures = base.len() / (h * w * c).max(1);
        StepError {
            step: self.step,
            sigma: self.sigma,
            eps_rel_l2_teacher_forced: rel_l2(self.forced, base),
            eps_rel_l2_free_running: rel_l2(self.free[0], base),
            latent_rel_l2: rel_l2(self.free[1], latents),
            guided_rel_l2: rel_l2(&guide(self.forced), &guide(base)),
            quantization_rel_l2: self.reference.map(|r| rel_l2(r, base)),
            kernel_rel_l2: self.reference.map(|r| rel_l2(self.forced, r)),
            floor_rel_l2: self.floor.map(|floor| floor[0]),
            floor_latent_rel_l2: self.floor.map(|floor| floor[1]),
            cosine: cosine(self.forced, base),
            rho: self.guided.then(|| correlation(halves.0, halves.1)),
            error_slope,
            error_offset,
            error_correlation: correlation(&error, base),
            error_lag: self.before.map(lag),
            error_kurtosis: kurtosis(&error),
            bands: rel_l2_by_band(self.forced, base, [pictures, h, w, c]),
            latent_bands: rel_l2_by_band(self.free[1], latents, self.shape),
            over_pairs: StepSpread {
                eps_rel_l2_teacher_forced: f64::NAN,
                eps_rel_l2_free_running: f64::NAN,
                latent_rel_l2: f64::NAN,
            },
        }
    }
}

/// The means of one step over the pairs; `None` without any. What was measured of some pairs only is the
/// mean of those.
pub(super) fn mean_of_steps(pairs: &[&StepError]) -> Option<StepError> {
    let first = pairs.first()?;
    let of = |f: &dyn Fn(&StepError) -> f64| Estimate::of(pairs.iter().map(|s| f(s)));
    let mean = |f: &dyn Fn(&StepError) -> f64| of(f).mean;
    let some = |f: &dyn Fn(&StepError) -> Option<f64>| {
        let values: Vec<f64> = pairs.iter().filter_map(|s| f(s)).collect();
        (!values.is_empty()).then(|| Estimate::of(values.into_iter()).mean)
    };
    Some(StepError {
        step: first.step,
        sigma: first.sigma,
        eps_rel_l2_teacher_forced: mean(&|s| s.eps_rel_l2_teacher_forced),
        eps_rel_l2_free_running: mean(&|s| s.eps_rel_l2_free_running),
        latent_rel_l2: mean(&|s| s.latent_rel_l2),
        guided_rel_l2: mean(&|s| s.guided_rel_l2),
        quantization_rel_l2: some(&|s| s.quantization_rel_l2),
        kernel_rel_l2: some(&|s| s.kernel_rel_l2),
        floor_rel_l2: some(&|s| s.floor_rel_l2),
        floor_latent_rel_l2: some(&|s| s.floor_latent_rel_l2),
        cosine: mean(&|s| s.cosine),
        rho: some(&|s| s.rho),
        error_slope: mean(&|s| s.error_slope),
        error_offset: mean(&|s| s.error_offset),
        error_correlation: mean(&|s| s.error_correlation),
        error_lag: some(&|s| s.error_lag),
        error_kurtosis: mean(&|s| s.error_kurtosis),
        bands: std::array::from_fn(|i| mean(&|s| s.bands[i])),
        latent_bands: std::array::from_fn(|i| mean(&|s| s.latent_bands[i])),
        over_pairs: StepSpread {
            eps_rel_l2_teacher_forced: of(&|s| s.eps_rel_l2_teacher_forced).standard_error,
            eps_rel_l2_free_running: of(&|s| s.eps_rel_l2_free_running).standard_error,
            latent_rel_l2: of(&|s| s.latent_rel_l2).standard_error,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_is_known() {
        // ε of 4x4 latents with one channel, without and with the prompt.
        let base: Vec<f32> = (0..32).map(|i| (i as f32 * 0.7).sin()).collect();
        // e = ε / 10 + 1/2: the line that fits it is known, and so is its correlation.
        let forced: Vec<f32> = base.iter().map(|v| v + 0.1 * v + 0.5).collect();
        let latents = &base[..16];
        let runs = StepRuns {
            step: 1,
            sigma: 2.0,
            shape: [1, 4, 4, 1],
            guidance: 3.0,
            guided: true,
            base: [&base, latents],
            free: [&base, latents],
            forced: &forced,
            reference: Some(&forced),
            before: Some([&base, &forced]),
            floor: None,
        };
        let step = runs.measure();
        // 1e-5: values of about one in f32.
        let near = |a: f64, b: f64| (a - b).abs() < 1e-5;
        assert!(near(step.error_slope, 0.1) && near(step.error_offset, 0.5));
        assert!(near(step.error_correlation, 1.0) && near(step.error_lag.unwrap(), 1.0));
        let halves: Vec<f32> = base.iter().map(|v| 0.1 * v).collect();
        assert!(near(step.rho.unwrap(), correlation(&halves[..16], &halves[16..])));
        assert_eq!((step.eps_rel_l2_free_running, step.latent_rel_l2), (0.0, 0.0));
        assert_eq!((step.kernel_rel_l2, step.quantization_rel_l2.is_some()), (Some(0.0), true));
        assert!(near(guide(&base, 3.0, true)[0] as f64, (3.0 * base[16] - 2.0 * base[0]) as f64));
        let mut other = step.clone();
        other.eps_rel_l2_teacher_forced += 2.0;
        other.rho = None;
        let mean = mean_of_steps(&[&step, &other]).unwrap();
        assert!(near(mean.eps_rel_l2_teacher_forced, step.eps_rel_l2_teacher_forced + 1.0));
        // Two values that are 2 apart: standard deviation √2, over √2.
        assert!(near(mean.over_pairs.eps_rel_l2_teacher_forced, 1.0) && mean.rho == step.rho);
    }
}
