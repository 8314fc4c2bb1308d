//! Noise schedules as pure data: the timesteps and noise levels that n steps visit.
//!
//! Every rule follows diffusers' scheduler class of the same family, numpy's rounding included,
//! because a timestep off by one is another picture. tests/schedules.rs holds them to its tables.

pub use super::schedule_config::*;
use crate::{Error, Result};

/// Which family's rule picks the timesteps: the classes of diffusers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grid {
    /// DDIM, DDPM, PNDM: whole steps of `num_train_timesteps / n`, leading by default.
    Ddim,
    /// Euler: fractional steps, linspace by default.
    Euler,
    /// Euler's kin (ancestral, LMS, Heun, DPM++ SDE): the same, and ends at 0 whatever the file says.
    EulerToZero,
    /// DPM2: as the kin, but whole steps under Karras.
    Dpm2,
    /// Multistep DPM-Solver: n of n + 1 whole steps, linspace by default.
    DpmSolver,
    /// The same, and whole steps under Karras are rounded for every β.
    DpmSolverSinglestep,
    /// As singlestep DPM-Solver, without `lambda_min_clipped`.
    UniPc,
    /// As UniPC; ends at the level of training step 0, or stays at the last level where it does not visit
    /// training steps.
    Deis,
    /// LCM and TCD: a subset of the distilled schedule.
    Lcm,
}

impl Grid {
    /// Fractional steps, and x = x0 + sigma · noise; else x has unit variance.
    pub fn is_fractional(self) -> bool {
        matches!(self, Grid::Euler | Grid::EulerToZero | Grid::Dpm2)
    }

    /// n of n + 1 whole steps, where noise levels may be spaced by themselves.
    fn is_solver(self) -> bool {
        matches!(self, Grid::DpmSolver | Grid::DpmSolverSinglestep | Grid::UniPc | Grid::Deis)
    }

    /// Which whole step the network is told for a level between two.
    fn whole(self, t: f64, config: &ScheduleConfig, spacing: SigmaSpacing) -> f64 {
        let karras = spacing == SigmaSpacing::Karras;
        let cosine = config.beta_schedule == BetaSchedule::SquaredcosCapV2;
        match self {
            Grid::Dpm2 if karras => t.round_ties_even(),
            Grid::DpmSolver if karras && cosine => t.trunc(),
            _ if self.is_solver() && karras => t.round_ties_even(),
            _ if self.is_solver() => t.trunc(),
            _ => t,
        }
    }
}

/// The visited noise levels of a run of n steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// What the network is told, [n], falling.
    pub timesteps: Vec<f64>,
    /// Noise level before each step and after the last, [n + 1].
    pub sigmas: Vec<f64>,
    /// ᾱ per training step, [num_train_timesteps]. Of a zero-SNR schedule the last is 0 for the
    /// grids `Ddim` and `Lcm`, and 2^-24 for the others, which need a finite sigma.
    pub alphas_cumprod: Vec<f64>,
    /// log sigma per training step, [num_train_timesteps].
    log_sigmas: Vec<f64>,
}

impl Schedule {
    /// Timesteps and sigmas of `steps` steps under a family's rule.
    pub fn new(config: &ScheduleConfig, grid: Grid, steps: usize) -> Result<Schedule> {
        config.check()?;
        let train = config.num_train_timesteps;
        if steps == 0 {
            return Err(Error::Usage("zero steps were asked for; give at least one".into()));
        }
        if steps > train {
            return Err(Error::Usage(format!(
                "{steps} steps were asked for, but the model was trained with {train}; give at most \
                 {train}"
            )));
        }
        let (floored, levels) = config.training_sigmas();
        let log_sigmas: Vec<f64> = levels.iter().map(|s| f64::from(s.ln() as f32)).collect();
        let alphas_cumprod = match grid {
            Grid::Ddim | Grid::Lcm => config.alphas_cumprod(),
            _ => floored,
        };
        let mut timesteps = match grid {
            Grid::Ddim => ddim_timesteps(config, steps),
            Grid::Euler | Grid::EulerToZero | Grid::Dpm2 => euler_timesteps(config, steps),
            Grid::Lcm => lcm_timesteps(config, steps)?,
            _ => solver_timesteps(config, grid, &alphas_cumprod, steps),
        };
        timesteps.truncate(steps);
        if timesteps.is_empty() {
            return Err(Error::Model(
                "lambda_min_clipped leaves no training step; the default is -Infinity".into(),
            ));
        }
        let sgm = config.timestep_spacing == Some(TimestepSpacing::SgmUniform);
        let level = |t: &f64| match grid.is_fractional() && sgm {
            // k-diffusion interpolates log sigma, diffusers sigma.
            true => interpolate(&log_sigmas, *t).exp(),
            false => interpolate(&levels, *t),
        };
        let mut sigmas: Vec<f64> = timesteps.iter().map(level).collect();
        let spacing = config.sigma_spacing();
        let spaced =
            spacing != SigmaSpacing::Discrete && (grid.is_fractional() || grid.is_solver());
        if spaced {
            let (max, min) = spacing_bounds(config, grid, &sigmas, &levels);
            sigmas = match spacing {
                SigmaSpacing::Karras => karras(max, min, steps),
                _ => linspace(max.ln(), min.ln(), steps).into_iter().map(f64::exp).collect(),
            };
            let told = |s: &f64| grid.whole(timestep_of(*s, &log_sigmas), config, spacing);
            timesteps = sigmas.iter().map(told).collect();
        }
        // The multistep formulas divide by the difference of two levels.
        if grid.is_solver() && !sigmas.is_sorted_by(|a, b| a > b) {
            return Err(Error::Usage(format!(
                "{steps} steps visit a noise level twice, which this sampler cannot do; give fewer"
            )));
        }
        let smallest = levels.first().copied().unwrap_or(0.0);
        sigmas.push(match (grid, config.final_sigmas_type) {
            (Grid::Deis, _) if spaced => sigmas.last().copied().unwrap_or(smallest),
            (Grid::Deis, _) => smallest,
            (Grid::EulerToZero | Grid::Dpm2, _) | (_, FinalSigma::Zero) => 0.0,
            (_, FinalSigma::SigmaMin) => smallest,
        });
        Ok(Schedule { timesteps, sigmas, alphas_cumprod, log_sigmas })
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// Fractional training step of a noise level, linear in log sigma.
    pub fn timestep_at(&self, sigma: f64) -> f64 {
        timestep_of(sigma, &self.log_sigmas)
    }
}

fn ddim_timesteps(config: &ScheduleConfig, steps: usize) -> Vec<f64> {
    let train = config.num_train_timesteps;
    match config.timestep_spacing.unwrap_or(TimestepSpacing::Leading) {
        TimestepSpacing::Linspace => {
            let rising = linspace(0.0, (train - 1) as f64, steps);
            rising.into_iter().rev().map(f64::round_ties_even).collect()
        }
        TimestepSpacing::Leading => leading(train / steps, steps, config.steps_offset),
        TimestepSpacing::Trailing => trailing(train as f64, train as f64 / steps as f64),
        TimestepSpacing::SgmUniform => sgm_uniform(train, steps, f64::round_ties_even),
    }
}

fn euler_timesteps(config: &ScheduleConfig, steps: usize) -> Vec<f64> {
    let train = config.num_train_timesteps;
    match config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace) {
        TimestepSpacing::Linspace => {
            let rising = linspace(0.0, (train - 1) as f64, steps);
            rising.into_iter().rev().map(|t| f64::from(t as f32)).collect()
        }
        TimestepSpacing::Leading => leading(train / steps, steps, config.steps_offset),
        TimestepSpacing::Trailing => trailing(train as f64, train as f64 / steps as f64),
        TimestepSpacing::SgmUniform => sgm_uniform(train, steps, |t| f64::from(t as f32)),
    }
}

fn solver_timesteps(config: &ScheduleConfig, grid: Grid, alphas: &[f64], steps: usize) -> Vec<f64> {
    let train = config.num_train_timesteps;
    let lambda = |a: f64| 0.5 * (a / (1.0 - a)).ln();
    let clipped = match grid {
        Grid::UniPc | Grid::Deis => f64::NEG_INFINITY,
        _ => config.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY),
    };
    let last = train - alphas.iter().filter(|&&a| lambda(a) < clipped).count();
    let mut timesteps = match config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace) {
        TimestepSpacing::Linspace | TimestepSpacing::SgmUniform => {
            sgm_uniform(last, steps, f64::round_ties_even)
        }
        TimestepSpacing::Leading => leading(last / (steps + 1), steps + 1, config.steps_offset),
        TimestepSpacing::Trailing => trailing(last as f64, train as f64 / steps as f64),
    };
    timesteps.truncate(steps);
    timesteps
}

/// The first n of n + 1 equal steps from the last of `train` training steps to the first.
fn sgm_uniform(train: usize, steps: usize, store: impl Fn(f64) -> f64) -> Vec<f64> {
    let rising = linspace(0.0, train as f64 - 1.0, steps + 1);
    rising.into_iter().skip(1).rev().map(store).collect()
}

/// arXiv 2310.04378: n of the `original_inference_steps` that the model was distilled with.
fn lcm_timesteps(config: &ScheduleConfig, steps: usize) -> Result<Vec<f64>> {
    let (train, original) = (config.num_train_timesteps, config.original_inference_steps);
    if original == 0 || original > train {
        return Err(Error::Model(format!(
            "original_inference_steps is {original}; valid: 1 to num_train_timesteps = {train}"
        )));
    }
    if steps > original {
        return Err(Error::Usage(format!(
            "{steps} steps were asked for, but LCM and TCD take at most original_inference_steps = \
             {original}"
        )));
    }
    let stride = original as f64 / steps as f64;
    let index = |i: usize| (i as f64 * stride).floor() as usize;
    Ok((0..steps).map(|i| ((original - index(i)) * (train / original) - 1) as f64).collect())
}

fn leading(ratio: usize, count: usize, offset: usize) -> Vec<f64> {
    (0..count).rev().map(|i| (i * ratio + offset) as f64).collect()
}

/// `round(numpy.arange(first, 0, -step)) - 1`; numpy takes the step as the difference of the first two.
fn trailing(first: f64, step: f64) -> Vec<f64> {
    let (count, delta) = ((first / step).ceil() as usize, (first - step) - first);
    (0..count).map(|i| (first + i as f64 * delta).round_ties_even() - 1.0).collect()
}

/// `numpy.linspace`: the last value is exactly `end`.
fn linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = (end - start) / (n.max(2) - 1) as f64;
    let mut values: Vec<f64> = (0..n).map(|i| i as f64 * step + start).collect();
    if let (true, Some(last)) = (n > 1, values.last_mut()) {
        *last = end;
    }
    values
}

/// Level at a fractional training step; clamped to the ends as `numpy.interp` does.
fn interpolate(levels: &[f64], t: f64) -> f64 {
    let top = levels.len() - 1;
    let t = t.clamp(0.0, top as f64);
    let low = (t.floor() as usize).min(top.saturating_sub(1));
    let high = (low + 1).min(top);
    levels[low] + (levels[high] - levels[low]) * (t - low as f64)
}

/// Euler and its kin span the visited levels (or the file's bounds), DPM-Solver all levels of training.
fn spacing_bounds(
    config: &ScheduleConfig,
    grid: Grid,
    visited: &[f64],
    levels: &[f64],
) -> (f64, f64) {
    let ends = |v: &[f64]| (v.first().copied().unwrap_or(0.0), v.last().copied().unwrap_or(0.0));
    if grid.is_solver() {
        let (min, max) = ends(levels);
        return (max, min);
    }
    let (max, min) = ends(visited);
    (config.sigma_max.unwrap_or(max), config.sigma_min.unwrap_or(min))
}

fn karras(max: f64, min: f64, n: usize) -> Vec<f64> {
    let (high, low) = (max.powf(1.0 / 7.0), min.powf(1.0 / 7.0));
    linspace(0.0, 1.0, n).into_iter().map(|r| (high + r * (low - high)).powi(7)).collect()
}

/// Fractional training step of a level, linear in log sigma.
fn timestep_of(sigma: f64, logs: &[f64]) -> f64 {
    let log = sigma.max(1e-10).ln();
    let low = logs.partition_point(|&l| l <= log).saturating_sub(1);
    let low = low.min(logs.len().saturating_sub(2));
    let high = (low + 1).min(logs.len() - 1);
    let width = logs[low] - logs[high];
    let w = if width == 0.0 { 0.0 } else { ((logs[low] - log) / width).clamp(0.0, 1.0) };
    (1.0 - w) * low as f64 + w * high as f64
}
