//! Samplers as tables: every step is a row of coefficients, so that the loop on the GPU needs no host
//! mathematics and no read-back.
//!
//! All supported samplers are linear in the sample x, the prediction x0, the x0 of the step before and
//! fresh noise. One row therefore says everything:
//! ```text
//! out = network(input_scale * x, timestep)
//! x0  = clamp(x0[0] * x + x0[1] * out, -clip, clip)
//! x'  = next[0] * x + next[1] * x0 + next[2] * x0_prev + next[3] * noise
//! ```
//! What else fits:
//! - **Two evaluations a step** (Heun, DPM2, DPM++ 2S): two rows. The first row is a plain step
//!   x_mid = a x + b x0. The second needs the old x, which is (x_mid - b x0_prev) / a, so it is linear
//!   in what the table already has.
//! - **More history** (UniPC, DEIS, 3M): a fifth coefficient, for the x0 two steps back.
//! - **History of the noise instead of x0** (LMS, PNDM): the slot holds whatever `x0` computes; with
//!   `x0 = [0, 1]` it holds the network's answer.
//! - **SDE variants**: `next[3]`. A variant that needs correlated noise only changes the noise.

use std::str::FromStr;

use super::schedule::{
    Grid, PredictionType, SMALLEST_ALPHA_CUMPROD, Schedule, ScheduleConfig, SigmaSpacing,
    SolverType, TimestepSpacing,
};
use crate::{Error, Result};

/// One step of a sampler: 12 f32, 48 bytes, in the order in which a shader's uniform reads them.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StepCoefficients {
    /// What the network is told.
    pub timestep: f32,
    /// The network's input is `input_scale * x`.
    pub input_scale: f32,
    /// x0 = x0[0] * x + x0[1] * out.
    pub x0: [f32; 2],
    /// x' = next[0] * x + next[1] * x0 + next[2] * x0_prev + next[3] * noise.
    pub next: [f32; 4],
    /// Noise level sqrt((1 - ᾱ) / ᾱ) before the step, for reports.
    pub sigma: f32,
    /// Bound of |x0|, applied before `next`; `f32::MAX` where there is none.
    pub clip: f32,
    /// A run that starts here from a clean latent (image to image, inpainting) starts at
    /// x = start[0] * clean + start[1] * noise.
    pub start: [f32; 2],
}

impl StepCoefficients {
    /// Whether the step adds fresh noise.
    pub fn needs_noise(&self) -> bool {
        self.next[3] != 0.0
    }

    /// Whether the step reads the x0 of the step before.
    pub fn needs_history(&self) -> bool {
        self.next[2] != 0.0
    }
}

/// A sampling method. Its spacing of noise levels is part of [`ScheduleConfig`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampler {
    /// arXiv 2010.02502; `eta` 0 adds no noise, 1 is as random as DDPM.
    Ddim { eta: f64 },
    /// arXiv 2006.11239.
    Ddpm,
    /// Euler's method of arXiv 2206.00364, without churn.
    Euler,
    /// Euler with part of the noise renewed each step (k-diffusion).
    EulerAncestral,
    /// Second-order multistep DPM-Solver++, arXiv 2211.01095.
    DpmPlusPlus2M,
    /// The same for the stochastic equation.
    DpmPlusPlus2MSde,
    /// Latent consistency models, arXiv 2310.04378.
    Lcm,
}

impl Sampler {
    /// Every method, in the order in which help lists them.
    pub const ALL: [Sampler; 7] = [
        Sampler::Euler,
        Sampler::EulerAncestral,
        Sampler::Ddim { eta: 0.0 },
        Sampler::Ddpm,
        Sampler::DpmPlusPlus2M,
        Sampler::DpmPlusPlus2MSde,
        Sampler::Lcm,
    ];

    /// stable-diffusion.cpp's name, as `--sampling-method` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Sampler::Ddim { .. } => "ddim",
            Sampler::Ddpm => "ddpm",
            Sampler::Euler => "euler",
            Sampler::EulerAncestral => "euler_a",
            Sampler::DpmPlusPlus2M => "dpm++2m",
            Sampler::DpmPlusPlus2MSde => "dpm++2m_sde",
            Sampler::Lcm => "lcm",
        }
    }

    /// AUTOMATIC1111's word for the `Sampler` field.
    pub fn label(self) -> &'static str {
        match self {
            Sampler::Ddim { .. } => "DDIM",
            Sampler::Ddpm => "DDPM",
            Sampler::Euler => "Euler",
            Sampler::EulerAncestral => "Euler a",
            Sampler::DpmPlusPlus2M => "DPM++ 2M",
            Sampler::DpmPlusPlus2MSde => "DPM++ 2M SDE",
            Sampler::Lcm => "LCM",
        }
    }

    /// The method that the class in a model's `scheduler_config.json` stands for; Euler where there is
    /// no such class here (PNDM, Heun and so on solve the same equation).
    pub fn of_config(config: &ScheduleConfig) -> Sampler {
        let class = config.class_name.as_deref().unwrap_or_default();
        match class.parse() {
            Ok(Sampler::DpmPlusPlus2M)
                if config.algorithm_type.as_deref() == Some("sde-dpmsolver++") =>
            {
                Sampler::DpmPlusPlus2MSde
            }
            Ok(sampler) => sampler,
            Err(_) => Sampler::Euler,
        }
    }

    /// Parses a name that may carry its spacing, as AUTOMATIC1111 wrote them: `DPM++ 2M Karras`.
    pub fn parse_with_spacing(s: &str) -> Result<(Sampler, Option<SigmaSpacing>)> {
        let lower = s.trim().to_ascii_lowercase();
        for spacing in [SigmaSpacing::Karras, SigmaSpacing::Exponential] {
            let word = spacing.label().to_ascii_lowercase();
            if let Some(name) = lower.strip_suffix(&word)
                && name.ends_with([' ', '_', '-'])
            {
                return Ok((name.parse()?, Some(spacing)));
            }
        }
        Ok((s.parse()?, None))
    }

    /// Refuses a sigma spacing that this sampler has no use for.
    pub fn check_spacing(self, spacing: SigmaSpacing) -> Result<()> {
        if matches!(self.grid(), Grid::Euler | Grid::DpmSolver) || spacing == SigmaSpacing::Discrete
        {
            return Ok(());
        }
        let able = [Sampler::Euler, Sampler::EulerAncestral, Sampler::DpmPlusPlus2M];
        Err(Error::Usage(format!(
            "sampler {} visits fixed training steps and takes no {} spacing; use discrete, or one \
             of {}, {}",
            self.name(),
            spacing.label(),
            able.map(Sampler::name).join(", "),
            Sampler::DpmPlusPlus2MSde.name()
        )))
    }

    fn grid(self) -> Grid {
        match self {
            Sampler::Ddim { .. } | Sampler::Ddpm => Grid::Ddim,
            Sampler::Euler | Sampler::EulerAncestral => Grid::Euler,
            Sampler::DpmPlusPlus2M | Sampler::DpmPlusPlus2MSde => Grid::DpmSolver,
            Sampler::Lcm => Grid::Lcm,
        }
    }

    /// Timesteps and noise levels of this sampler's run.
    pub fn schedule(self, config: &ScheduleConfig, steps: usize) -> Result<Schedule> {
        Schedule::new(config, self.grid(), steps)
    }

    /// Factor for standard normal noise that gives the first x of a run from pure noise.
    pub fn init_noise_sigma(self, config: &ScheduleConfig, steps: usize) -> Result<f32> {
        if self.grid() != Grid::Euler {
            return Ok(1.0);
        }
        let schedule = self.schedule(config, steps)?;
        let max = schedule.sigmas.iter().fold(0.0f64, |a, &b| a.max(b));
        // diffusers adds the variance of the clean sample only under leading spacing.
        let leading = config.timestep_spacing == Some(TimestepSpacing::Leading);
        Ok(if leading { max.hypot(1.0) } else { max } as f32)
    }

    /// The table of a whole run: one row per step.
    pub fn table(self, config: &ScheduleConfig, steps: usize) -> Result<Vec<StepCoefficients>> {
        self.table_from(config, steps, 0)
    }

    /// The rows from step `first` on, for a run that starts there (image to image); see
    /// [`first_step`]. The first row reads no history.
    pub fn table_from(
        self,
        config: &ScheduleConfig,
        steps: usize,
        first: usize,
    ) -> Result<Vec<StepCoefficients>> {
        let schedule = self.schedule(config, steps)?;
        let run = Run { config, schedule: &schedule, first };
        let rows: Vec<Row> = (first..schedule.steps())
            .map(|i| match self {
                Sampler::Ddim { eta } => Ok(run.ddim(i, eta)),
                Sampler::Ddpm => run.ddpm(i),
                Sampler::Euler => Ok(run.euler(i, false)),
                Sampler::EulerAncestral => Ok(run.euler(i, true)),
                Sampler::DpmPlusPlus2M => Ok(run.dpm(i, false)),
                Sampler::DpmPlusPlus2MSde => Ok(run.dpm(i, true)),
                Sampler::Lcm => Ok(run.lcm(i)),
            })
            .collect::<Result<_>>()?;
        let clip = match self.grid() {
            Grid::Ddim | Grid::Lcm => config.clip().map_or(f32::MAX, |c| c as f32),
            Grid::Euler | Grid::DpmSolver => f32::MAX,
        };
        rows.iter().enumerate().map(|(i, row)| row.finish(first + i, clip, config)).collect()
    }
}

impl FromStr for Sampler {
    type Err = Error;
    /// Takes stable-diffusion.cpp's names, AUTOMATIC1111's, k-diffusion's and diffusers' class names.
    fn from_str(s: &str) -> Result<Sampler> {
        let plain: String = s
            .to_ascii_lowercase()
            .replace("++", "pp")
            .chars()
            .filter(|c| !matches!(c, ' ' | '_' | '-'))
            .collect();
        match plain.strip_prefix("k").unwrap_or(&plain) {
            "ddim" | "ddimscheduler" => Ok(Sampler::Ddim { eta: 0.0 }),
            "ddpm" | "ddpmscheduler" => Ok(Sampler::Ddpm),
            "euler" | "eulerdiscrete" | "eulerdiscretescheduler" => Ok(Sampler::Euler),
            "eulera" | "eulerancestral" | "eulerancestraldiscretescheduler" => {
                Ok(Sampler::EulerAncestral)
            }
            "dpmpp2m" | "dpmsolverpp" | "dpmsolvermultistep" | "dpmsolvermultistepscheduler" => {
                Ok(Sampler::DpmPlusPlus2M)
            }
            "dpmpp2msde" | "sdedpmsolverpp" => Ok(Sampler::DpmPlusPlus2MSde),
            "lcm" | "lcmscheduler" => Ok(Sampler::Lcm),
            _ => Err(Error::Usage(format!(
                "unknown sampling method {s:?}; valid names: {}",
                Sampler::ALL.map(Sampler::name).join(", ")
            ))),
        }
    }
}

/// Step at which a run of `steps` starts when `strength` of it (0 to 1) is to be redone, as diffusers'
/// image-to-image counts it. Equal to `steps` when nothing is left to do.
pub fn first_step(steps: usize, strength: f64) -> Result<usize> {
    if !(0.0..=1.0).contains(&strength) {
        return Err(Error::Usage(format!("strength is {strength}; valid: 0.0 to 1.0")));
    }
    Ok(steps - ((steps as f64 * strength) as usize).min(steps))
}

/// One step on the host, in f32 and in the order of the formula: the oracle of the GPU op.
/// All slices have the length of `x`; `x0_prev` and `noise` may be None where the row does not read
/// them. Returns (x', x0).
pub fn apply(
    row: &StepCoefficients,
    x: &[f32],
    out: &[f32],
    x0_prev: Option<&[f32]>,
    noise: Option<&[f32]>,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let given = [
        ("out", Some(out), true),
        ("x0_prev", x0_prev, row.needs_history()),
        ("noise", noise, row.needs_noise()),
    ];
    for (name, slice, needed) in given {
        let wrong = slice.map_or(needed, |s| s.len() != x.len());
        if wrong {
            return Err(Error::Runtime(format!(
                "sampler step at timestep {}: {name} holds {} values, x holds {}",
                row.timestep,
                slice.map_or(0, <[f32]>::len),
                x.len()
            )));
        }
    }
    let (mut next, mut x0s) = (Vec::with_capacity(x.len()), Vec::with_capacity(x.len()));
    for i in 0..x.len() {
        let x0 = (row.x0[0] * x[i] + row.x0[1] * out[i]).clamp(-row.clip, row.clip);
        let mut value = row.next[0] * x[i] + row.next[1] * x0;
        if row.needs_history() {
            value += row.next[2] * x0_prev.map_or(0.0, |h| h[i]);
        }
        if row.needs_noise() {
            value += row.next[3] * noise.map_or(0.0, |n| n[i]);
        }
        next.push(value);
        x0s.push(x0);
    }
    Ok((next, x0s))
}

/// A row in f64, before rounding.
struct Row {
    timestep: f64,
    input_scale: f64,
    /// x = level[0] * x0 + level[1] * noise at this step.
    level: [f64; 2],
    next: [f64; 4],
}

impl Row {
    fn finish(&self, step: usize, clip: f32, config: &ScheduleConfig) -> Result<StepCoefficients> {
        let [a, s] = self.level;
        let norm = a.hypot(s);
        let x0 = match config.prediction_type {
            PredictionType::Epsilon => [1.0 / a, -s / a],
            // With x scaled to unit variance, x / norm, x0 = (a x / norm - s out) / norm.
            PredictionType::VPrediction => [a / (norm * norm), -s / norm],
            PredictionType::Sample => [0.0, 1.0],
        };
        if !x0.iter().chain(&self.next).all(|c| c.is_finite()) {
            return Err(Error::Model(format!(
                "step {step} (timestep {}) has no finite coefficients under prediction_type {:?}: \
                 {}",
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
        Ok(StepCoefficients {
            timestep: self.timestep as f32,
            input_scale: self.input_scale as f32,
            x0: x0.map(|c| c as f32),
            next: self.next.map(|c| c as f32),
            sigma: (s / a.max(floor)) as f32,
            clip,
            start: self.level.map(|c| c as f32),
        })
    }
}

struct Run<'a> {
    config: &'a ScheduleConfig,
    schedule: &'a Schedule,
    /// The step at which the run starts, where there is no history yet.
    first: usize,
}

impl Run<'_> {
    /// ᾱ at a training step, clamped to the table (`steps_offset` can point one past it).
    fn alpha(&self, t: f64) -> f64 {
        let alphas = &self.schedule.alphas_cumprod;
        alphas[(t.max(0.0) as usize).min(alphas.len() - 1)]
    }

    /// Equations 12 and 16 of arXiv 2010.02502. Under clipping the noise is taken from the clipped x0
    /// (diffusers' `use_clipped_model_output`).
    fn ddim(&self, i: usize, eta: f64) -> Row {
        let t = self.schedule.timesteps[i];
        let train = self.config.num_train_timesteps;
        let before = t - (train / self.schedule.steps().max(1)) as f64;
        let alpha = self.alpha(t);
        let alpha_before = match (before >= 0.0, self.config.set_alpha_to_one) {
            (true, _) => self.alpha(before),
            (false, true) => 1.0,
            (false, false) => self.alpha(0.0),
        };
        let variance = (1.0 - alpha_before) / (1.0 - alpha) * (1.0 - alpha / alpha_before);
        let std = eta * variance.max(0.0).sqrt();
        let direction = (1.0 - alpha_before - std * std).max(0.0).sqrt();
        let [a, s] = [alpha.sqrt(), (1.0 - alpha).sqrt()];
        let next = [direction / s, alpha_before.sqrt() - direction * a / s, 0.0, std];
        Row { timestep: t, input_scale: 1.0, level: [a, s], next }
    }

    /// Equation 7 of arXiv 2006.11239.
    fn ddpm(&self, i: usize) -> Result<Row> {
        let t = self.schedule.timesteps[i];
        let alpha = self.alpha(t);
        let alpha_before = self.schedule.timesteps.get(i + 1).map_or(1.0, |&t| self.alpha(t));
        let beta = 1.0 - alpha / alpha_before;
        let variance = match self.config.variance_type.as_deref() {
            None | Some("fixed_small" | "fixed_small_log") => {
                // diffusers' floor, kept so that the same noise is drawn.
                ((1.0 - alpha_before) / (1.0 - alpha) * beta).max(1e-20)
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
            (alpha / alpha_before).sqrt() * (1.0 - alpha_before) / (1.0 - alpha),
            alpha_before.sqrt() * beta / (1.0 - alpha),
            0.0,
            if t > 0.0 { variance.sqrt() } else { 0.0 },
        ];
        let level = [alpha.sqrt(), (1.0 - alpha).sqrt()];
        Ok(Row { timestep: t, input_scale: 1.0, level, next })
    }

    /// x = x0 + sigma noise. Ancestral: step down further than asked, then add noise up to sigma'.
    fn euler(&self, i: usize, ancestral: bool) -> Row {
        let (sigma, to) = (self.schedule.sigmas[i], self.schedule.sigmas[i + 1]);
        let up = match ancestral {
            true => (to * to * (sigma * sigma - to * to) / (sigma * sigma)).max(0.0).sqrt(),
            false => 0.0,
        };
        let ratio = (to * to - up * up).max(0.0).sqrt() / sigma;
        Row {
            timestep: self.schedule.timesteps[i],
            input_scale: 1.0 / sigma.hypot(1.0),
            level: [1.0, sigma],
            next: [ratio, 1.0 - ratio, 0.0, up],
        }
    }

    /// Equations of appendix B of arXiv 2211.01095, with h the step of log(alpha / sigma).
    fn dpm(&self, i: usize, sde: bool) -> Row {
        let (schedule, config) = (self.schedule, self.config);
        let level = |sigma: f64| [1.0 / sigma.hypot(1.0), sigma / sigma.hypot(1.0)];
        let (sigma, to) = (schedule.sigmas[i], schedule.sigmas[i + 1]);
        let ([_, noise], [signal_to, noise_to]) = (level(sigma), level(to));
        // exp(-h) is the ratio of the levels; it is 0 when the step ends without noise.
        let (shrink, h) = (to / sigma, (sigma / to).ln());
        // The stochastic equation decays twice as fast.
        let (decay, length) = if sde { (shrink * shrink, 2.0 * h) } else { (shrink, h) };
        let gain = signal_to * (1.0 - decay);
        let last = i + 1 == schedule.steps()
            && (config.euler_at_final
                || (config.lower_order_final && schedule.steps() < 15)
                || to == 0.0);
        let slope = if i == self.first || last {
            0.0
        } else {
            let ratio = h / (schedule.sigmas[i - 1] / sigma).ln();
            ratio
                * match config.solver_type {
                    SolverType::Midpoint => 0.5 * gain,
                    SolverType::Heun => signal_to * (1.0 - (1.0 - decay) / length),
                }
        };
        let keep = noise_to / noise * if sde { shrink } else { 1.0 };
        let fresh = if sde { noise_to * (1.0 - decay).max(0.0).sqrt() } else { 0.0 };
        Row {
            timestep: schedule.timesteps[i],
            input_scale: 1.0,
            level: level(sigma),
            next: [keep, gain + slope, -slope, fresh],
        }
    }

    /// Boundary scalings of arXiv 2310.04378 with sigma_data = 0.5, then noise up to the next step.
    fn lcm(&self, i: usize) -> Row {
        let t = self.schedule.timesteps[i];
        let alpha = self.alpha(t);
        let scaled = t * self.config.timestep_scaling;
        let skip = 0.25 / (scaled * scaled + 0.25);
        let out = scaled / (scaled * scaled + 0.25).sqrt();
        let [signal, noise] = match self.schedule.timesteps.get(i + 1) {
            Some(&t) => [self.alpha(t).sqrt(), (1.0 - self.alpha(t)).sqrt()],
            None => [1.0, 0.0],
        };
        Row {
            timestep: t,
            input_scale: 1.0,
            level: [alpha.sqrt(), (1.0 - alpha).sqrt()],
            next: [signal * skip, signal * out, 0.0, noise],
        }
    }
}
