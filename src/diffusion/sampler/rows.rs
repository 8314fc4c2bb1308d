//! Rows in f64 before rounding, and the methods that need one evaluation and no history.

use super::{Sampler, StepCoefficients};
use crate::diffusion::schedule::{
    PredictionType, SMALLEST_ALPHA_CUMPROD, Schedule, ScheduleConfig,
};
use crate::{Error, Result};

// Positions in `next` and `keep`.
pub(super) const X: usize = 0;
pub(super) const V: usize = 1;
/// h1; h2 and h3 follow.
pub(super) const OLDER: usize = 2;
pub(super) const SAVED: usize = 5;
pub(super) const NOISE: usize = 6;
/// v before it was clamped.
const UNCLAMPED: usize = 7;

/// Coefficients of (x, v, h1, h2, h3, s, noise, w).
pub(super) type Terms = [f64; 8];

/// [α, σ] of x = α · x0 + σ · noise.
pub(super) type Level = [f64; 2];

/// The level of a sigma where x has unit variance.
pub(super) fn unit_level(sigma: f64) -> Level {
    [1.0 / sigma.hypot(1.0), sigma / sigma.hypot(1.0)]
}

/// The level of ᾱ.
pub(super) fn alpha_level(alpha: f64) -> Level {
    [alpha.sqrt(), (1.0 - alpha).sqrt()]
}

/// What v stands for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Value {
    Clean,
    Noise,
    Answer,
}

pub(super) struct Row {
    pub step: usize,
    pub timestep: f64,
    /// Of x when the network is asked.
    pub level: Level,
    pub value: Value,
    pub next: Terms,
    /// None: the kept sample stays.
    pub keep: Option<Terms>,
    pub push: bool,
}

impl Row {
    /// A row whose v is the clean picture, and that leaves nothing for later rows.
    pub fn clean(step: usize, timestep: f64, level: Level, next: Terms) -> Row {
        Row { step, timestep, level, value: Value::Clean, next, keep: None, push: false }
    }

    /// The same with the noise for v.
    pub fn noise(step: usize, timestep: f64, level: Level, next: Terms) -> Row {
        Row { value: Value::Noise, ..Row::clean(step, timestep, level, next) }
    }

    pub fn pushed(self) -> Row {
        Row { push: true, ..self }
    }

    pub fn keeping(self, keep: Terms) -> Row {
        Row { keep: Some(keep), ..self }
    }

    /// Keeps x as it is before the row.
    pub fn keeping_x(self) -> Row {
        self.keeping(terms(&[(X, 1.0)]))
    }

    pub fn finish(
        &self,
        steps_done: usize,
        clip: f32,
        config: &ScheduleConfig,
    ) -> Result<StepCoefficients> {
        let [a, s] = self.level;
        let norm = a.hypot(s);
        // With x scaled to unit variance, x / norm, the velocity is out = (a noise - s x0) / norm.
        let (x0, noise) = match config.prediction_type {
            PredictionType::Epsilon => ([1.0 / a, -s / a], [0.0, 1.0]),
            PredictionType::VPrediction => {
                ([a / (norm * norm), -s / norm], [s / (norm * norm), a / norm])
            }
            PredictionType::Sample => ([0.0, 1.0], [1.0 / s, -a / s]),
        };
        let value = match self.value {
            Value::Clean => x0,
            Value::Noise => noise,
            Value::Answer => [0.0, 1.0],
        };
        let keep = self.keep.unwrap_or(terms(&[(SAVED, 1.0)]));
        if !x0.iter().chain(&value).chain(&self.next).chain(&keep).all(|c| c.is_finite()) {
            return Err(Error::Model(format!(
                "step {} (timestep {}) has no finite coefficients under prediction_type {:?}: {}",
                self.step,
                self.timestep,
                config.prediction_type,
                if a == 0.0 {
                    "the schedule ends in pure noise (rescale_betas_zero_snr), from which epsilon \
                     cannot give x0; use a v-prediction model or rescale_betas_zero_snr = false"
                } else {
                    "check the betas of the scheduler configuration"
                }
            )));
        }
        let floor = SMALLEST_ALPHA_CUMPROD.sqrt();
        let [kx, kv, k1, k2, k3, ks, ..] = keep;
        Ok(StepCoefficients {
            timestep: self.timestep as f32,
            input_scale: (1.0 / norm) as f32,
            value: value.map(|c| c as f32),
            clip,
            next: self.next.map(|c| c as f32),
            keep: [kx, kv, k1, k2, k3, ks].map(|c| c as f32),
            push: f32::from(self.push),
            x0: x0.map(|c| c as f32),
            sigma: (s / a.max(floor)) as f32,
            start: self.level.map(|c| c as f32),
            step: self.step as u32,
            steps_done: steps_done as u32,
        })
    }
}

/// Zero but for the given positions.
pub(super) fn terms(given: &[(usize, f64)]) -> Terms {
    let mut all = [0.0; 8];
    for (position, value) in given {
        all[*position] += value;
    }
    all
}

/// `a + factor · b`.
pub(super) fn plus(a: Terms, factor: f64, b: Terms) -> Terms {
    std::array::from_fn(|i| a[i] + factor * b[i])
}

pub(super) struct Run<'a> {
    pub config: &'a ScheduleConfig,
    pub schedule: &'a Schedule,
    /// The step at which the run starts, where there is no history yet.
    pub first: usize,
}

impl<'a> Run<'a> {
    pub fn new(config: &'a ScheduleConfig, schedule: &'a Schedule, first: usize) -> Run<'a> {
        Run { config, schedule, first }
    }

    /// All rows from the first step on.
    pub fn rows(&self, sampler: Sampler) -> Result<Vec<Row>> {
        let steps = self.first..self.schedule.steps();
        if sampler == Sampler::Plms {
            return self.pndm();
        }
        let mut rows = Vec::new();
        for i in steps {
            match sampler {
                Sampler::Ddim { eta } => rows.push(self.ddim(i, eta)),
                Sampler::Ddpm => rows.push(self.ddpm(i)?),
                Sampler::Euler => rows.push(self.euler(i, false)),
                Sampler::EulerAncestral => rows.push(self.euler(i, true)),
                Sampler::Lcm => rows.push(self.lcm(i)),
                Sampler::Tcd { eta } => rows.push(self.tcd(i, eta)),
                Sampler::Lms => rows.push(self.lms(i)),
                Sampler::DpmPlusPlus2M => rows.push(self.dpm_multistep(i, false)?),
                Sampler::DpmPlusPlus2MSde => rows.push(self.dpm_multistep(i, true)?),
                Sampler::DpmPlusPlus2S => rows.push(self.dpm_singlestep(i)?),
                Sampler::UniPc => rows.push(self.unipc(i)?),
                Sampler::Deis => rows.push(self.deis(i)?),
                Sampler::Heun => rows.extend(self.heun(i)),
                Sampler::Dpm2 => rows.extend(self.dpm2(i, false)),
                Sampler::Dpm2Ancestral => rows.extend(self.dpm2(i, true)),
                Sampler::DpmPlusPlusSde => rows.extend(self.dpm_sde(i)),
                Sampler::Plms => {}
            }
        }
        Ok(rows)
    }

    /// ᾱ at a training step, clamped to the table (`steps_offset` can point one past it).
    pub fn alpha(&self, t: f64) -> f64 {
        let alphas = &self.schedule.alphas_cumprod;
        alphas[(t.max(0.0) as usize).min(alphas.len() - 1)]
    }

    /// ᾱ at a training step that may lie before the first one.
    pub fn alpha_or_final(&self, t: f64) -> f64 {
        match (t >= 0.0, self.config.set_alpha_to_one()) {
            (true, _) => self.alpha(t),
            (false, true) => 1.0,
            (false, false) => self.alpha(0.0),
        }
    }

    /// Whole training steps between two steps of the run.
    pub fn stride(&self) -> f64 {
        (self.config.num_train_timesteps / self.schedule.steps().max(1)) as f64
    }

    /// Noise levels before and after step i.
    pub fn sigmas(&self, i: usize) -> (f64, f64) {
        (self.schedule.sigmas[i], self.schedule.sigmas[i + 1])
    }

    /// Equations 12 and 16 of arXiv 2010.02502. The direction towards x is the network's own noise, under
    /// clipping too, as in diffusers without `use_clipped_model_output`.
    fn ddim(&self, i: usize, eta: f64) -> Row {
        let t = self.schedule.timesteps[i];
        let (alpha, before) = (self.alpha(t), self.alpha_or_final(t - self.stride()));
        let variance = (1.0 - before) / (1.0 - alpha) * (1.0 - alpha / before);
        let std = eta * variance.max(0.0).sqrt();
        let direction = (1.0 - before - std * std).max(0.0).sqrt();
        let [a, s] = alpha_level(alpha);
        let own = if self.config.clip().is_some() { UNCLAMPED } else { V };
        let next =
            [(X, direction / s), (V, before.sqrt()), (own, -direction * a / s), (NOISE, std)];
        Row::clean(i, t, [a, s], terms(&next))
    }

    /// Equation 7 of arXiv 2006.11239.
    fn ddpm(&self, i: usize) -> Result<Row> {
        let t = self.schedule.timesteps[i];
        let alpha = self.alpha(t);
        let before = self.schedule.timesteps.get(i + 1).map_or(1.0, |&t| self.alpha(t));
        let beta = 1.0 - alpha / before;
        let variance = match self.config.variance_type.as_deref() {
            None | Some("fixed_small" | "fixed_small_log") => {
                // diffusers' floor, kept so that the same noise is drawn.
                ((1.0 - before) / (1.0 - alpha) * beta).max(1e-20)
            }
            Some("fixed_large") => beta,
            Some(word) => {
                return Err(Error::Model(format!(
                    "variance_type is {word:?}; valid here: fixed_small, fixed_small_log, \
                     fixed_large; or choose another sampler than ddpm"
                )));
            }
        };
        let next = [
            (X, (alpha / before).sqrt() * (1.0 - before) / (1.0 - alpha)),
            (V, before.sqrt() * beta / (1.0 - alpha)),
            (NOISE, if t > 0.0 { variance.sqrt() } else { 0.0 }),
        ];
        Ok(Row::clean(i, t, alpha_level(alpha), terms(&next)))
    }

    /// x = x0 + sigma noise. Ancestral: step down further than asked, then add noise up to sigma'.
    fn euler(&self, i: usize, ancestral: bool) -> Row {
        let (sigma, to) = self.sigmas(i);
        let [down, up] = if ancestral { ancestral_step(sigma, to) } else { [to, 0.0] };
        let ratio = down / sigma;
        let next = [(X, ratio), (V, 1.0 - ratio), (NOISE, up)];
        Row::clean(i, self.schedule.timesteps[i], [1.0, sigma], terms(&next))
    }

    /// Boundary scalings of arXiv 2310.04378 with sigma_data = 0.5, then noise up to the next step.
    fn lcm(&self, i: usize) -> Row {
        let t = self.schedule.timesteps[i];
        let scaled = t * self.config.timestep_scaling;
        let skip = 0.25 / (scaled * scaled + 0.25);
        let out = scaled / (scaled * scaled + 0.25).sqrt();
        let [signal, noise] = match self.schedule.timesteps.get(i + 1) {
            Some(&t) => alpha_level(self.alpha(t)),
            None => [1.0, 0.0],
        };
        let next = [(X, signal * skip), (V, signal * out), (NOISE, noise)];
        Row::clean(i, t, alpha_level(self.alpha(t)), terms(&next))
    }

    /// Strategic stochastic sampling, algorithm 4 of arXiv 2402.19159: to step s = (1 - eta) t', then noise up
    /// to t'. The last step goes to training step 0 and adds none.
    fn tcd(&self, i: usize, eta: f64) -> Row {
        let t = self.schedule.timesteps[i];
        let later = self.schedule.timesteps.get(i + 1).copied();
        let to = later.unwrap_or(0.0);
        // In f32, as torch multiplies a tensor of integers by a number: the floor depends on it.
        let between = f64::from(((1.0 - eta) as f32 * to as f32).floor());
        let [a, s] = alpha_level(self.alpha(t));
        let [signal, noise] = alpha_level(self.alpha(between));
        let ratio = match later {
            Some(_) if eta > 0.0 => self.alpha(to) / self.alpha(between),
            _ => 1.0,
        };
        let (keep, fresh) = (ratio.sqrt(), (1.0 - ratio).max(0.0).sqrt());
        let next = [(X, keep * noise / s), (V, keep * (signal - noise * a / s)), (NOISE, fresh)];
        Row::clean(i, t, [a, s], terms(&next))
    }
}

/// Where an ancestral step from `sigma` to `to` goes, and how much noise brings it back up.
pub(super) fn ancestral_step(sigma: f64, to: f64) -> [f64; 2] {
    let up = (to * to * (sigma * sigma - to * to) / (sigma * sigma)).max(0.0).sqrt();
    [(to * to - up * up).max(0.0).sqrt(), up]
}
