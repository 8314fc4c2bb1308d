//! Methods of two evaluations a step. All work on x = x0 + sigma · noise.

use super::rows::{NOISE, OLDER, Row, Run, SAVED, V, X, ancestral_step, terms};

impl Run<'_> {
    /// Algorithm 1 of arXiv 2206.00364 without churn: the mean of the slopes at both ends. In terms of x0,
    /// so that it can be clipped.
    pub(super) fn heun(&self, i: usize) -> Vec<Row> {
        let (sigma, to) = self.sigmas(i);
        let ratio = to / sigma;
        let next = terms(&[(X, ratio), (V, 1.0 - ratio)]);
        let first = Row::clean(i, self.schedule.timesteps[i], [1.0, sigma], next);
        if to == 0.0 {
            return vec![first];
        }
        // (x - x0) / sigma is the slope at a level.
        let (half, at, end) = (0.5 * (to - sigma), 1.0 / sigma, 1.0 / to);
        let next =
            [(SAVED, 1.0 + half * at), (OLDER, -half * at), (X, half * end), (V, -half * end)];
        let t = self.schedule.timesteps[i + 1];
        vec![first.keeping_x().pushed(), Row::clean(i, t, [1.0, to], terms(&next))]
    }

    /// Midpoint in log sigma: the slope there is that of the whole step.
    pub(super) fn dpm2(&self, i: usize, ancestral: bool) -> Vec<Row> {
        let (sigma, to) = self.sigmas(i);
        let t = self.schedule.timesteps[i];
        if to == 0.0 {
            return vec![Row::noise(i, t, [1.0, sigma], terms(&[(X, 1.0), (V, -sigma)]))];
        }
        let [down, up] = if ancestral { ancestral_step(sigma, to) } else { [to, 0.0] };
        let middle = (sigma * down).sqrt();
        let half = terms(&[(X, 1.0), (V, middle - sigma)]);
        let whole = terms(&[(SAVED, 1.0), (V, down - sigma), (NOISE, up)]);
        vec![
            Row::noise(i, t, [1.0, sigma], half).keeping_x(),
            Row::noise(i, self.schedule.timestep_at(middle), [1.0, middle], whole),
        ]
    }

    /// k-diffusion's `sample_dpmpp_sde` with r = 1/2: an ancestral step to the midpoint in log sigma, whose x0
    /// then serves an ancestral step over the whole way.
    ///
    /// Both noises are increments of one Brownian path over sigma, each divided by the root of its interval's
    /// length: n1 from sigma to the midpoint, n2 from sigma to the end. With n independent of n1,
    /// n2 = √share · n1 + √(1 - share) · n, and n1 is what the first row added to x.
    pub(super) fn dpm_sde(&self, i: usize) -> Vec<Row> {
        let (sigma, to) = self.sigmas(i);
        let t = self.schedule.timesteps[i];
        if to == 0.0 {
            return vec![Row::clean(i, t, [1.0, sigma], terms(&[(V, 1.0)]))];
        }
        let middle = (sigma * to).sqrt();
        let [near, stirred] = ancestral_step(sigma, middle).map(|v| v.min(middle));
        let [far, up] = ancestral_step(sigma, to).map(|v| v.min(to));
        let half = terms(&[(X, near / sigma), (V, 1.0 - near / sigma), (NOISE, stirred)]);
        let share = (sigma - middle) / (sigma - to);
        // n1 = (x - near/sigma · s - (1 - near/sigma) · h1) / stirred.
        let again = up * share.sqrt() / stirred;
        let whole = terms(&[
            (SAVED, far / sigma - again * near / sigma),
            (V, 1.0 - far / sigma),
            (X, again),
            (OLDER, -again * (1.0 - near / sigma)),
            (NOISE, up * (1.0 - share).sqrt()),
        ]);
        vec![
            Row::clean(i, t, [1.0, sigma], half).keeping_x().pushed(),
            Row::clean(i, self.schedule.timestep_at(middle), [1.0, middle], whole),
        ]
    }
}
