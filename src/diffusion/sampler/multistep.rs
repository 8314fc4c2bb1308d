//! Methods with a history: LMS, DPM-Solver++, DEIS, UniPC.

use super::rows::{Level, NOISE, OLDER, Row, Run, SAVED, Terms, V, X, plus, terms, unit_level};
use crate::diffusion::schedule::SolverType;
use crate::{Error, Result};

/// Where the k-th value before the newest lies: v itself, then the history.
const fn older(k: usize) -> usize {
    V + k
}

/// What the exponential integrators need of a step from sigma to a smaller sigma, where h is the step of
/// log(α / σ). It may end at 0, where h is infinite.
struct Interval {
    signal_to: f64,
    noise: f64,
    noise_to: f64,
    h: f64,
    /// exp(-h)
    shrink: f64,
}

impl Interval {
    fn new(sigma: f64, to: f64) -> Interval {
        let ([_, noise], [signal_to, noise_to]) = (unit_level(sigma), unit_level(to));
        Interval { signal_to, noise, noise_to, h: (sigma / to).ln(), shrink: to / sigma }
    }
}

impl Run<'_> {
    /// `solver_order` of the file, or the default of the classes that have it.
    fn order(&self) -> Result<usize> {
        match self.config.solver_order {
            None => Ok(2),
            Some(order @ 1..=3) => Ok(order),
            Some(order) => {
                Err(Error::Model(format!("solver_order is {order}; valid here: 1, 2, 3")))
            }
        }
    }

    fn last(&self) -> usize {
        self.schedule.steps() - 1
    }

    /// Order of step i of a method that begins at 1, and may end lower on short runs.
    fn rising_order(&self, i: usize, final_order_is_one: bool) -> Result<usize> {
        let short = self.config.lower_order_final() && self.schedule.steps() < 15;
        let most = match self.last() - i {
            0 if short || final_order_is_one => 1,
            1 if short => 2,
            _ => 3,
        };
        Ok(self.order()?.min(most).min(i - self.first + 1))
    }

    fn unit_sigma(&self, i: usize) -> Level {
        unit_level(self.schedule.sigmas[i])
    }

    /// log(sigma_a / sigma_b): the step of log(α / σ) from a to b.
    fn log_ratio(&self, a: usize, b: usize) -> f64 {
        (self.schedule.sigmas[a] / self.schedule.sigmas[b]).ln()
    }

    /// k-diffusion's linear multistep: the slopes (which are the noise) as a polynomial in sigma, integrated.
    pub(super) fn lms(&self, i: usize) -> Row {
        let (sigma, to) = self.sigmas(i);
        let nodes: Vec<f64> =
            (0..(i - self.first + 1).min(4)).map(|k| self.schedule.sigmas[i - k]).collect();
        let lagrange = |k: usize, at: f64| -> f64 {
            let others = nodes.iter().enumerate().filter(|(j, _)| *j != k);
            others.map(|(_, node)| (at - node) / (nodes[k] - node)).product()
        };
        // Two Gauss points are exact for cubics.
        let (center, half) = (0.5 * (sigma + to), 0.5 * (to - sigma));
        let offset = half / 3f64.sqrt();
        let mut next = terms(&[(X, 1.0)]);
        for k in 0..nodes.len() {
            next[older(k)] = half * (lagrange(k, center - offset) + lagrange(k, center + offset));
        }
        Row::noise(i, self.schedule.timesteps[i], [1.0, sigma], next).pushed()
    }

    /// Multistep equations of appendix B of arXiv 2211.01095.
    pub(super) fn dpm_multistep(&self, i: usize, sde: bool) -> Result<Row> {
        let (sigma, to) = self.sigmas(i);
        let order = self.rising_order(i, self.config.euler_at_final || to == 0.0)?;
        if sde && self.order()? > 2 {
            return Err(Error::Model(
                "solver_order is 3, which sampler dpm++2m_sde does not have; set it to 2".into(),
            ));
        }
        let step = Interval::new(sigma, to);
        // The stochastic equation decays twice as fast.
        let (decay, length) = match sde {
            true => (step.shrink * step.shrink, 2.0 * step.h),
            false => (step.shrink, step.h),
        };
        let gain = step.signal_to * (1.0 - decay);
        let slope = step.signal_to * (1.0 - (1.0 - decay) / length);
        let keep = step.noise_to / step.noise * if sde { step.shrink } else { 1.0 };
        let fresh = if sde { step.noise_to * (1.0 - decay).max(0.0).sqrt() } else { 0.0 };
        let mut next = terms(&[(X, keep), (V, gain), (NOISE, fresh)]);
        if order > 1 {
            // The newest difference quotient of x0, over a unit of the coming step.
            let r0 = self.log_ratio(i - 1, i) / step.h;
            let d0 = terms(&[(V, 1.0 / r0), (OLDER, -1.0 / r0)]);
            if order == 2 {
                let factor = match self.config.solver_type {
                    SolverType::Heun => slope,
                    _ => 0.5 * gain,
                };
                next = plus(next, factor, d0);
            } else {
                let r1 = self.log_ratio(i - 2, i - 1) / step.h;
                let d1 = terms(&[(OLDER, 1.0 / r1), (older(2), -1.0 / r1)]);
                let change = plus(d0, -1.0, d1);
                next = plus(next, slope, plus(d0, r0 / (r0 + r1), change));
                next = plus(next, step.curvature() / (r0 + r1), change);
            }
        }
        let t = self.schedule.timesteps[i];
        Ok(Row::clean(i, t, self.unit_sigma(i), next).pushed())
    }

    /// Singlestep: orders 1, 2, … from one start, then anew. Every evaluation is a step.
    pub(super) fn dpm_singlestep(&self, i: usize) -> Result<Row> {
        let order = self.singlestep_order(i)?;
        // The group began order - 1 steps ago; s is the sample there.
        let start = i + 1 - order;
        let step = Interval::new(self.schedule.sigmas[start], self.schedule.sigmas[i + 1]);
        let gain = step.signal_to * (1.0 - step.shrink);
        let slope = step.signal_to * (1.0 - (1.0 - step.shrink) / step.h);
        let from = if order == 1 { X } else { SAVED };
        let ratio = step.noise_to / step.noise;
        let next = terms(&[(from, ratio), (older(order - 1), gain)]);
        let heun = self.config.solver_type == SolverType::Heun;
        // Difference quotient of x0 between the start and the k-th step after it, over a unit of the group.
        let quotient = |k: usize| {
            let r = self.log_ratio(start, start + k) / step.h;
            let newer = older(order - 1 - k);
            (r, terms(&[(newer, 1.0 / r), (older(order - 1), -1.0 / r)]))
        };
        let next = match order {
            1 => next,
            2 => plus(next, if heun { slope } else { 0.5 * gain }, quotient(1).1),
            _ => {
                let ((r1, d1), (r0, d0)) = (quotient(1), quotient(2));
                if heun {
                    let first = plus(d1.map(|c| c * r0 / (r0 - r1)), -r1 / (r0 - r1), d0);
                    let second = plus(d0, -1.0, d1).map(|c| c * 2.0 / (r0 - r1));
                    plus(plus(next, slope, first), step.curvature(), second)
                } else {
                    plus(next, slope, d0)
                }
            }
        };
        let row = Row::clean(i, self.schedule.timesteps[i], self.unit_sigma(i), next).pushed();
        Ok(if order == 1 { row.keeping_x() } else { row })
    }

    /// diffusers' `get_order_list`: whole groups, and what is left of the last one.
    fn singlestep_order(&self, i: usize) -> Result<usize> {
        let (order, steps) = (self.order()?, self.schedule.steps());
        let whole = self.config.lower_order_final() && steps.is_multiple_of(order);
        let order = match self.last() - i {
            0 if whole || self.schedule.sigmas[steps] == 0.0 => 1,
            _ => i % order + 1,
        };
        // A run that starts within a group has less history than the group asks for.
        Ok(order.min(i - self.first + 1))
    }

    /// DEIS in log rho, arXiv 2204.13902, where rho is sigma: the noise as a polynomial in log rho.
    pub(super) fn deis(&self, i: usize) -> Result<Row> {
        let order = self.rising_order(i, false)?;
        let (sigma, to) = self.sigmas(i);
        let ([signal, _], [signal_to, _]) = (unit_level(sigma), unit_level(to));
        let mut next = terms(&[(X, signal_to / signal)]);
        let nodes: Vec<f64> = (0..order).map(|k| self.schedule.sigmas[i - k].ln()).collect();
        for k in 0..order {
            let others: Vec<f64> =
                nodes.iter().enumerate().filter(|(j, _)| *j != k).map(|(_, n)| *n).collect();
            let scale: f64 = others.iter().map(|n| nodes[k] - n).product();
            let integral = antiderivative(to, &others) - antiderivative(sigma, &others);
            next[older(k)] = signal_to * integral / scale;
        }
        let t = self.schedule.timesteps[i];
        Ok(Row::noise(i, t, self.unit_sigma(i), next).pushed())
    }

    /// UniPC, arXiv 2302.04867: corrects the step that led here with the new x0, then predicts. The kept sample is
    /// the corrected one.
    pub(super) fn unipc(&self, i: usize) -> Result<Row> {
        if self.config.predict_x0 == Some(false) {
            return Err(Error::Model(
                "predict_x0 is false, which sampler unipc does not support; set it to true".into(),
            ));
        }
        let on = i > self.first && !self.config.disable_corrector.contains(&(i - 1));
        let corrected = match on {
            true => self.correct(i)?,
            false => terms(&[(X, 1.0)]),
        };
        let (sigma, to) = self.sigmas(i);
        let order = if to == 0.0 { 1 } else { self.unipc_order(i)? };
        let step = Interval::new(sigma, to);
        let base = terms(&[(V, step.signal_to * (1.0 - step.shrink))]);
        let mut next = plus(base, step.noise_to / step.noise, corrected);
        if order > 1 {
            let (phi, ratios) = self.unipc_step(&step, i, order);
            let weights = match order {
                2 => vec![0.5],
                _ => phi.weights(&ratios),
            };
            for (k, (weight, ratio)) in weights.iter().zip(&ratios).enumerate() {
                let difference = terms(&[(older(k + 1), 1.0 / ratio), (V, -1.0 / ratio)]);
                next = plus(next, -step.signal_to * phi.b * weight, difference);
            }
        }
        let t = self.schedule.timesteps[i];
        Ok(Row::clean(i, t, self.unit_sigma(i), next).pushed().keeping(corrected))
    }

    fn unipc_order(&self, i: usize) -> Result<usize> {
        let order = self.order()?.min(i - self.first + 1);
        Ok(if self.config.lower_order_final() { order.min(self.last() - i + 1) } else { order })
    }

    /// The sample at step i by the step from i - 1 again, now that x0 at its end is known.
    fn correct(&self, i: usize) -> Result<Terms> {
        let order = self.unipc_order(i - 1)?;
        let step = Interval::new(self.schedule.sigmas[i - 1], self.schedule.sigmas[i]);
        let (phi, mut ratios) = self.unipc_step(&step, i - 1, order);
        ratios.push(1.0);
        let weights = if order == 1 { vec![0.5] } else { phi.weights(&ratios) };
        let mut next = terms(&[
            (SAVED, step.noise_to / step.noise),
            (OLDER, step.signal_to * (1.0 - step.shrink)),
        ]);
        for (k, (weight, ratio)) in weights.iter().zip(&ratios).enumerate() {
            let value = if k + 1 == order { V } else { older(k + 2) };
            let difference = terms(&[(value, 1.0 / ratio), (OLDER, -1.0 / ratio)]);
            next = plus(next, -step.signal_to * phi.b * weight, difference);
        }
        Ok(next)
    }

    /// φ of the step from i, and where the older values lie: in units of the step, negative.
    fn unipc_step(&self, step: &Interval, i: usize, order: usize) -> (Phi, Vec<f64>) {
        let ratios = (1..order).map(|k| -self.log_ratio(i - k, i) / step.h).collect();
        (Phi::new(-step.h, self.config.solver_type), ratios)
    }
}

impl Interval {
    /// Weight of the second derivative of x0.
    fn curvature(&self) -> f64 {
        -self.signal_to * ((self.shrink - 1.0 + self.h) / (self.h * self.h) - 0.5)
    }
}

/// UniPC's B(h), and the right side of the equations for its weights.
struct Phi {
    b: f64,
    right: [f64; 3],
}

impl Phi {
    fn new(hh: f64, solver: SolverType) -> Phi {
        let b = if solver == SolverType::Bh1 { hh } else { hh.exp_m1() };
        let (mut phi, mut factorial) = (hh.exp_m1() / hh - 1.0, 1.0);
        let right = [2.0, 3.0, 4.0].map(|next| {
            let value = phi * factorial / b;
            factorial *= next;
            phi = phi / hh - 1.0 / factorial;
            value
        });
        Phi { b, right }
    }

    /// Solves `Σ_k ratio_k^j · weight_k = right_j` for j from 0: a polynomial through the right sides.
    fn weights(&self, ratios: &[f64]) -> Vec<f64> {
        let weight = |k: usize| {
            // Coefficients of the Lagrange polynomial of node k, lowest power first.
            let mut polynomial = vec![1.0];
            for (j, node) in ratios.iter().enumerate().filter(|(j, _)| *j != k) {
                let scale = ratios[k] - ratios[j];
                let mut raised = vec![0.0; polynomial.len() + 1];
                for (power, c) in polynomial.iter().enumerate() {
                    raised[power] -= c * node / scale;
                    raised[power + 1] += c / scale;
                }
                polynomial = raised;
            }
            polynomial.iter().zip(self.right).map(|(c, r)| c * r).sum()
        };
        (0..ratios.len()).map(weight).collect()
    }
}

/// Of `Π (log rho - node)` over rho, at rho; up to two nodes.
fn antiderivative(rho: f64, nodes: &[f64]) -> f64 {
    let log = rho.ln();
    match nodes {
        [a, b] => rho * (log * log - (2.0 + a + b) * log + 2.0 + a + b + a * b),
        [a] => rho * (log - 1.0 - a),
        _ => rho,
    }
}
