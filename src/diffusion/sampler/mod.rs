//! Samplers as tables: every evaluation of the network is a row of coefficients, so that the loop on the GPU
//! needs no host mathematics and no read-back.
//!
//! A run keeps the sample x, up to three older values h1, h2, h3 (newest first) and one kept sample s. A row
//! says all that happens after the network has answered:
//! ```text
//! out   = network(input_scale * x, timestep)
//! w     = value[0] * x + value[1] * out
//! v     = clamp(w, -clip, clip)
//! x'    = next · (x, v, h1, h2, h3, s, noise, w)
//! s'    = keep · (x, v, h1, h2, h3, s)
//! h1, h2, h3 = v, h1, h2        where push is 1
//! ```
//! What v is depends on the method: the clean picture x0 (DDIM, Euler, Heun, DPM-Solver++, UniPC, LCM, TCD), the
//! noise (LMS, DPM2, DEIS), or the network's answer as it is (PLMS). How the methods use the slots:
//! - **Two evaluations a step** (Heun, DPM2, DPM++ SDE): the first row keeps x in s and goes to the point between,
//!   the second row starts again from s.
//! - **History** (LMS, PLMS, DPM++ 2M, DEIS): h1 to h3.
//! - **A corrector** (UniPC): s is the sample of the step before, corrected; its row corrects and predicts in one.
//! - **Runge-Kutta** (PNDM): s gathers the weighted sum of the four answers.
//! - **Noise**: a row with a coefficient for it takes a fresh standard normal draw. DPM++ SDE asks for two increments
//!   of one Brownian path a step, the second over an interval that contains the first; it is written as a sum of
//!   the first one, which x still holds, and an independent one. So it is a Brownian path exactly, though not the
//!   numbers of torchsde's tree.

use super::schedule::{Grid, Schedule, ScheduleConfig, TimestepSpacing};
use crate::{Error, Result};

mod apply;
mod multistep;
mod names;
mod pndm;
mod rows;
mod staged;

pub use apply::{State, apply};
use rows::{Row, Run};

/// Older values that a run keeps.
pub const HISTORY: usize = 3;
/// Floats of the buffer that a step on the GPU reads: a [`StepCoefficients`], guidance, guidance rescale, zeros.
pub const COEFFICIENTS: usize = 32;

/// One evaluation of the network: 27 words, in the order in which the shaders read them.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StepCoefficients {
    /// What the network is told.
    pub timestep: f32,
    /// The network's input is `input_scale * x`.
    pub input_scale: f32,
    /// w = value[0] * x + value[1] * out.
    pub value: [f32; 2],
    /// v is w within this bound; `f32::MAX` where there is none.
    pub clip: f32,
    /// x' = next · (x, v, h1, h2, h3, s, noise, w).
    pub next: [f32; 8],
    /// s' = keep · (x, v, h1, h2, h3, s).
    pub keep: [f32; 6],
    /// 1: v becomes the newest of the history. 0: the history stays.
    pub push: f32,
    /// The clean picture x0 = x0[0] * x + x0[1] * out, for previews; not clamped.
    pub x0: [f32; 2],
    /// Noise level sqrt((1 - ᾱ) / ᾱ) at which the network is asked, for reports.
    pub sigma: f32,
    /// A run that starts with the step of this row from a clean latent (image to image, inpainting) starts at
    /// x = start[0] * clean + start[1] * noise. Meaningful in the first row of a step.
    pub start: [f32; 2],
    /// The step that this evaluation belongs to, counted from 0 at the beginning of the whole schedule.
    pub step: u32,
    /// Steps that are complete after this row, counted from the row with which the table begins.
    pub steps_done: u32,
}

impl StepCoefficients {
    /// Whether the row adds fresh noise.
    pub fn needs_noise(&self) -> bool {
        self.next[rows::NOISE] != 0.0
    }

    /// Whether the row reads what earlier rows left: older values or the kept sample.
    pub fn needs_history(&self) -> bool {
        let reads = |c: &[f32], slots: std::ops::Range<usize>| c[slots].iter().any(|c| *c != 0.0);
        // A row that only hands the kept sample on does not depend on it.
        reads(&self.next, rows::OLDER..rows::NOISE) || reads(&self.keep, rows::OLDER..rows::SAVED)
    }

    /// What a step on the GPU reads: the row, the guidance scale, and how much of guidance rescale there is.
    pub fn with_guidance(&self, guidance: f32, rescale: f32) -> [f32; COEFFICIENTS] {
        let own: [f32; 27] = bytemuck::cast(*self);
        let mut all = [0.0; COEFFICIENTS];
        all[..27].copy_from_slice(&own);
        (all[27], all[28]) = (guidance, rescale);
        all
    }
}

/// A sampling method. Its spacing of noise levels is part of [`ScheduleConfig`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampler {
    /// arXiv 2010.02502; `eta` 0 adds no noise, 1 is as random as DDPM.
    Ddim { eta: f64 },
    /// arXiv 2006.11239.
    Ddpm,
    /// Pseudo linear multistep of arXiv 2202.09778, after Runge-Kutta steps if the file asks for them.
    Plms,
    /// Linear multistep of order 4 (k-diffusion).
    Lms,
    /// Euler's method of arXiv 2206.00364, without churn.
    Euler,
    /// Euler with part of the noise renewed each step (k-diffusion).
    EulerAncestral,
    /// Algorithm 1 of arXiv 2206.00364, without churn: two evaluations a step.
    Heun,
    /// DPM-Solver-2 in the form of algorithm 2 of arXiv 2206.00364: two evaluations a step.
    Dpm2,
    /// The same with part of the noise renewed each step.
    Dpm2Ancestral,
    /// Singlestep DPM-Solver++, arXiv 2211.01095. A step is one evaluation, as diffusers counts.
    DpmPlusPlus2S,
    /// Multistep DPM-Solver++, arXiv 2211.01095, of order 2 unless the file says otherwise.
    DpmPlusPlus2M,
    /// The same for the stochastic equation.
    DpmPlusPlus2MSde,
    /// Singlestep, for the stochastic equation: two evaluations a step (k-diffusion).
    DpmPlusPlusSde,
    /// arXiv 2302.04867.
    UniPc,
    /// arXiv 2204.13902, in log rho.
    Deis,
    /// Latent consistency models, arXiv 2310.04378.
    Lcm,
    /// Trajectory consistency distillation, arXiv 2402.19159; `eta` is its gamma.
    Tcd { eta: f64 },
}

impl Sampler {
    /// Every method, in the order in which help lists them.
    pub const ALL: [Sampler; 17] = [
        Sampler::Euler,
        Sampler::EulerAncestral,
        Sampler::Heun,
        Sampler::Dpm2,
        Sampler::Dpm2Ancestral,
        Sampler::DpmPlusPlus2S,
        Sampler::DpmPlusPlus2M,
        Sampler::DpmPlusPlus2MSde,
        Sampler::DpmPlusPlusSde,
        Sampler::Lms,
        Sampler::Plms,
        Sampler::Ddim { eta: 0.0 },
        Sampler::Ddpm,
        Sampler::UniPc,
        Sampler::Deis,
        Sampler::Lcm,
        Sampler::Tcd { eta: 0.3 },
    ];

    fn grid(self) -> Grid {
        match self {
            Sampler::Ddim { .. } | Sampler::Ddpm | Sampler::Plms => Grid::Ddim,
            Sampler::Euler => Grid::Euler,
            Sampler::EulerAncestral | Sampler::Lms | Sampler::Heun | Sampler::DpmPlusPlusSde => {
                Grid::EulerToZero
            }
            Sampler::Dpm2 | Sampler::Dpm2Ancestral => Grid::Dpm2,
            Sampler::DpmPlusPlus2M | Sampler::DpmPlusPlus2MSde => Grid::DpmSolver,
            Sampler::DpmPlusPlus2S => Grid::DpmSolverSinglestep,
            Sampler::UniPc => Grid::UniPc,
            Sampler::Deis => Grid::Deis,
            Sampler::Lcm | Sampler::Tcd { .. } => Grid::Lcm,
        }
    }

    /// Whether the method is defined for a schedule that begins in pure noise, as diffusers' class has it.
    fn takes_zero_snr(self) -> bool {
        !matches!(
            self,
            Sampler::Plms
                | Sampler::Lms
                | Sampler::Heun
                | Sampler::Dpm2
                | Sampler::Dpm2Ancestral
                | Sampler::DpmPlusPlus2S
                | Sampler::DpmPlusPlusSde
                | Sampler::Deis
        )
    }

    /// Timesteps and noise levels of this sampler's run, one per step.
    ///
    /// # Errors
    /// `Usage` for step counts that cannot be served and for a method that cannot begin in pure noise where
    /// the model does, `Model` for what the file asks for and no sampler here computes.
    pub fn schedule(self, config: &ScheduleConfig, steps: usize) -> Result<Schedule> {
        if config.rescale_betas_zero_snr && !self.takes_zero_snr() {
            let able = Sampler::ALL.into_iter().filter(|s| s.takes_zero_snr()).map(Sampler::name);
            return Err(Error::Usage(format!(
                "sampler {} cannot begin in pure noise, which this model does \
                 (rescale_betas_zero_snr); use one of {}",
                self.name(),
                able.collect::<Vec<_>>().join(", ")
            )));
        }
        Schedule::new(config, self.grid(), steps)
    }

    /// Factor for standard normal noise that gives the first x of a run from pure noise.
    pub fn init_noise_sigma(self, config: &ScheduleConfig, steps: usize) -> Result<f32> {
        if !self.grid().is_fractional() {
            return Ok(1.0);
        }
        let schedule = self.schedule(config, steps)?;
        let max = schedule.sigmas.iter().fold(0.0f64, |a, &b| a.max(b));
        // diffusers adds the variance of the clean sample only under leading spacing.
        let leading = config.timestep_spacing == Some(TimestepSpacing::Leading);
        Ok(if leading { max.hypot(1.0) } else { max } as f32)
    }

    /// The table of a whole run: one row per evaluation of the network.
    pub fn table(self, config: &ScheduleConfig, steps: usize) -> Result<Vec<StepCoefficients>> {
        self.table_from(config, steps, 0)
    }

    /// The rows from step `first` on, for a run that starts there (image to image); see
    /// [`first_step`]. The first row reads no history: multistep methods begin anew at their lowest order.
    /// (diffusers' PNDM and LMS, started in the middle, take coefficients of a history that is not there.)
    pub fn table_from(
        self,
        config: &ScheduleConfig,
        steps: usize,
        first: usize,
    ) -> Result<Vec<StepCoefficients>> {
        let schedule = self.schedule(config, steps)?;
        let run = Run::new(config, &schedule, first);
        let rows = run.rows(self)?;
        let clip = match self {
            Sampler::Ddim { .. } | Sampler::Ddpm | Sampler::Lcm | Sampler::Heun => {
                config.clip().map_or(f32::MAX, |c| c as f32)
            }
            _ => f32::MAX,
        };
        let next = rows.iter().skip(1).map(|row| Some(row.step)).chain([None]);
        let done = |row: &Row, next: Option<usize>| row.step + usize::from(next != Some(row.step));
        rows.iter()
            .zip(next)
            .map(|(row, next)| row.finish(done(row, next) - first, clip, config))
            .collect()
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
