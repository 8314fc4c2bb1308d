//! PNDM, arXiv 2202.09778: linear multistep on the network's answers, after three Runge-Kutta steps unless the file
//! says `skip_prk_steps`.
//!
//! The history holds answers as they come, and what they stand for is decided where they are used, at the level
//! of the step: so diffusers does it, which matters for v-prediction.

use super::rows::{OLDER, Row, Run, SAVED, Terms, V, Value, X, alpha_level, plus, terms};
use crate::diffusion::schedule::PredictionType;
use crate::{Error, Result};

/// Adams-Bashforth weights of 1 to 4 answers, newest first.
const WEIGHTS: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// Runge-Kutta steps at the beginning.
const RUNGE_KUTTA: usize = 3;

impl Run<'_> {
    pub(super) fn pndm(&self) -> Result<Vec<Row>> {
        if self.config.prediction_type == PredictionType::Sample {
            return Err(Error::Usage(
                "sampler plms takes epsilon and v_prediction models, and this one predicts the \
                 sample; use another, ddim for one"
                    .into(),
            ));
        }
        let count = self.schedule.steps().saturating_sub(self.first);
        // A Runge-Kutta step ends at the next one; so few steps leave no room for three of them.
        if self.config.skip_prk_steps() || count <= RUNGE_KUTTA {
            return Ok(self.plms());
        }
        let mut rows: Vec<Row> = (0..RUNGE_KUTTA).flat_map(|k| self.prk(self.first + k)).collect();
        rows.extend((self.first + RUNGE_KUTTA..self.schedule.steps()).map(|i| self.linear(i, 4)));
        Ok(rows)
    }

    fn plms(&self) -> Vec<Row> {
        let (first, times) = (self.first, &self.schedule.timesteps);
        if first >= times.len() {
            return Vec::new();
        }
        let mut rows = vec![self.linear(first, 1).keeping_x()];
        if let Some(&t2) = times.get(first + 1) {
            // The first step is done again with the mean of the answers at both of its ends.
            let [a, b] = self.transfer(t2 + self.stride(), t2);
            let next = terms(&[(SAVED, a), (V, 0.5 * b), (OLDER, 0.5 * b)]);
            rows.push(self.row(first, t2, next));
        }
        rows.extend((first + 1..times.len()).map(|i| self.linear(i, (i - first + 1).min(4))));
        rows
    }

    fn row(&self, step: usize, timestep: f64, next: Terms) -> Row {
        let level = alpha_level(self.alpha(timestep));
        Row { value: Value::Answer, ..Row::clean(step, timestep, level, next) }
    }

    /// Step i by the newest `count` answers.
    fn linear(&self, i: usize, count: usize) -> Row {
        let t = self.schedule.timesteps[i];
        let [a, b] = self.transfer(t, t - self.stride());
        let mut next = terms(&[(X, a)]);
        for (k, weight) in WEIGHTS[count - 1].iter().enumerate() {
            next[V + k] = b * weight;
        }
        self.row(i, t, next).pushed()
    }

    /// Equation 9: x at `to` is a · x + b · answer for x at `from`.
    fn transfer(&self, from: f64, to: f64) -> [f64; 2] {
        let (alpha, after) = (self.alpha(from), self.alpha_or_final(to));
        let x = (after / alpha).sqrt();
        let noise = (alpha - after)
            / (alpha * (1.0 - after).sqrt() + (alpha * (1.0 - alpha) * after).sqrt());
        match self.config.prediction_type {
            // noise = √ᾱ · answer + √(1-ᾱ) · x
            PredictionType::VPrediction => [x + noise * (1.0 - alpha).sqrt(), noise * alpha.sqrt()],
            _ => [x, noise],
        }
    }

    /// Step i by the four answers of the classical Runge-Kutta method. The slots have no room for x and three
    /// answers, so s gathers the result, a3 x + b3 (e0/6 + e1/3 + e2/3), and what the points between need is solved
    /// for: e0 is h1, and x and e1 follow from s and the current sample.
    fn prk(&self, i: usize) -> [Row; 4] {
        let times = &self.schedule.timesteps;
        let (t, end) = (times[i], times[i + 1]);
        let half = (self.stride() / 2.0).floor();
        let (near, middle) = (t - half, end + half);
        let [[a1, b1], [a2, b2], [a3, b3]] = [near, middle, end].map(|to| self.transfer(t, to));
        let gathered = |weight: f64| terms(&[(SAVED, 1.0), (V, b3 * weight)]);
        // The first row left x1 = a1 x + b1 e0, so x = (x1 - b1 e0) / a1.
        let second = [(X, a2 / a1), (OLDER, -a2 * b1 / a1), (V, b2)];
        // The second left x2 = a2 x + b2 e1 and s = a3 x + b3 (e0/6 + e1/3); without e1 that is x.
        let determinant = a3 * b2 - a2 * b3 / 3.0;
        let x = terms(&[(SAVED, b2), (OLDER, -b2 * b3 / 6.0), (X, -b3 / 3.0)]);
        let third = plus(terms(&[(V, b3)]), a3 / determinant, x);
        [
            self.row(i, t, terms(&[(X, a1), (V, b1)]))
                .pushed()
                .keeping(terms(&[(X, a3), (V, b3 / 6.0)])),
            self.row(i, middle, terms(&second)).keeping(gathered(1.0 / 3.0)),
            self.row(i, middle, third).keeping(gathered(1.0 / 3.0)),
            self.row(i, end, gathered(1.0 / 6.0)),
        ]
    }
}
