//! How fast each op runs on the shapes of real models, and how near that is to what the device can do at most.

use std::time::Instant;

use serde::Serialize;

use super::bench_case::Case;
use super::bench_shapes;
use super::ceilings::Ceilings;
use crate::gpu::{Elem, Gpu, interrupted};
use crate::graph::{Plan, PlanOptions};
use crate::{Error, Result};

/// How time is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// The device's, around runs that follow each other in one submission.
    Timestamps,
    /// The host's, around several submissions.
    Host,
}

/// One op on one shape.
#[derive(Clone, Debug, Serialize)]
pub struct OpMeasured {
    pub op: &'static str,
    pub spec: String,
    pub shape: String,
    /// Where the shape is from.
    pub model: &'static str,
    /// Median of the samples.
    pub ms: f64,
    /// Median absolute deviation of the samples times 1.4826, which is the standard deviation of normal ones.
    pub spread_ms: f64,
    /// Milliseconds each.
    pub samples: Vec<f64>,
    pub clock: Clock,
    /// Of inputs, weights and the result, each read or written once.
    pub bytes: u64,
    pub flops: u64,
    pub gb_s: f64,
    /// Absent for ops that move numbers and do not compute.
    pub gflop_s: Option<f64>,
    /// The least time that copy bandwidth and arithmetic allow ([`Ceilings::least_seconds`]), over `ms`. Above 1 where buffers stayed in caches.
    pub fraction_of_ceiling: f64,
    /// `memory` or `arithmetic`: which of both allows no less.
    pub bound: &'static str,
    /// Launches of one run.
    pub launches: usize,
    pub kernels: Vec<String>,
    /// Seconds to compile these kernels, as far as the driver does that before they run.
    pub compile_seconds: f64,
    /// Milliseconds of the first run on the host's clock, in which drivers compile the rest.
    pub first_ms: f64,
}

/// What is measured and how long.
#[derive(Clone, Debug, Default)]
pub struct OpsAsked {
    /// Names of ops; none: all.
    pub ops: Vec<String>,
    /// What the case's description has to have in it.
    pub spec: Option<String>,
    /// Few small cases and few samples.
    pub quick: bool,
}

/// Told the case that is measured next, its number and how many there are.
pub type OnCase<'a> = dyn FnMut(&Case, usize, usize) + 'a;

/// How all ops are measured.
pub struct OpsBench<'a> {
    pub gpu: &'a Gpu,
    pub ceilings: Ceilings,
    pub act: Elem,
    pub options: &'a PlanOptions,
}

/// Checks the names of ops.
///
/// # Errors
/// `Usage`, naming those there are.
pub fn check_names(names: &[String]) -> Result<()> {
    let mut known: Vec<&str> = bench_shapes::all(false).iter().map(|case| case.op).collect();
    known.dedup();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(Error::Usage(format!(
            "no op \"{name}\" is measured; there are {}",
            known.join(", ")
        ))),
    }
}

impl OpsBench<'_> {
    /// Measures all cases that are asked for.
    ///
    /// # Errors
    /// As planning and running do; `Interrupted` on Ctrl-C.
    pub fn measure(&self, asked: &OpsAsked, on_case: &mut OnCase<'_>) -> Result<Vec<OpMeasured>> {
        check_names(&asked.ops)?;
        let wanted = |case: &Case| {
            let named = asked.ops.is_empty() || asked.ops.iter().any(|name| name == case.op);
            let described = asked.spec.as_ref().is_none_or(|spec| case.spec.contains(spec));
            named && described && (case.quick || !asked.quick)
        };
        let mut cases = bench_shapes::all(self.gpu.caps().software);
        cases.retain(wanted);
        let total = cases.len();
        let one = |(i, case): (usize, &Case)| {
            on_case(case, i, total);
            self.one(case, asked.quick)
        };
        cases.iter().enumerate().map(one).collect()
    }

    fn one(&self, case: &Case, quick: bool) -> Result<OpMeasured> {
        let (plan, bytes) = case.plan(self.gpu, self.act, self.options)?;
        let first_ms = 1e3 * host_seconds(self.gpu, &plan, 1)?;
        let (clock, samples) = self.samples(&plan, quick)?;
        let (ms, spread_ms) = median_and_spread(&samples);
        let (seconds, flops) = ((ms / 1e3).max(1e-9), plan.flops());
        let (memory, arithmetic) = (
            self.ceilings.least_seconds(bytes as f64, 0.0),
            self.ceilings.least_seconds(0.0, flops as f64),
        );
        let mut kernels: Vec<String> = plan.launches().iter().map(|l| l.kernel.clone()).collect();
        kernels.sort();
        kernels.dedup();
        let compiled = self.gpu.compiled();
        let compile = compiled.iter().filter(|(name, _)| kernels.contains(name));
        Ok(OpMeasured {
            op: case.op,
            spec: case.spec.clone(),
            shape: case.shape.clone(),
            model: case.model,
            ms,
            spread_ms,
            samples,
            clock,
            bytes,
            flops,
            gb_s: bytes as f64 / seconds / 1e9,
            gflop_s: (flops > 0).then_some(flops as f64 / seconds / 1e9),
            fraction_of_ceiling: memory.max(arithmetic) / seconds,
            bound: if memory >= arithmetic { "memory" } else { "arithmetic" },
            launches: plan.launches().len(),
            compile_seconds: compile.map(|(_, seconds)| seconds).sum(),
            kernels,
            first_ms,
        })
    }

    /// Milliseconds of one run, so often as a short while allows.
    fn samples(&self, plan: &Plan, quick: bool) -> Result<(Clock, Vec<f64>)> {
        const LEAST: usize = 3;
        /// Clocks and what surrounds a run say little about less than so many milliseconds.
        const LONG: f64 = 5.0;
        const MOST_RUNS: usize = 256;
        let (most, while_) = if quick { (7, 0.2) } else { (31, 0.6) };
        let clock = match plan.device_ms(1)? {
            Some(_) => Clock::Timestamps,
            None => Clock::Host,
        };
        let sample = |runs: usize| -> Result<f64> {
            interrupted()?;
            match plan.device_ms(runs)? {
                Some(ms) => Ok(ms),
                None => Ok(1e3 * host_seconds(self.gpu, plan, runs)? / runs as f64),
            }
        };
        let mut runs = 1;
        while runs < MOST_RUNS && sample(runs)? * (runs as f64) < LONG {
            runs *= 2;
        }
        let (start, mut samples) = (Instant::now(), Vec::new());
        while samples.len() < LEAST
            || (samples.len() < most && start.elapsed().as_secs_f64() < while_)
        {
            samples.push(sample(runs)?);
        }
        Ok((clock, samples))
    }
}

fn host_seconds(gpu: &Gpu, plan: &Plan, times: usize) -> Result<f64> {
    gpu.wait()?;
    let start = Instant::now();
    for _ in 0..times {
        plan.run()?;
    }
    gpu.wait()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Median, and 1.4826 times the median absolute deviation from it; both 0 of nothing.
pub fn median_and_spread(samples: &[f64]) -> (f64, f64) {
    let middle = median(samples);
    let away: Vec<f64> = samples.iter().map(|sample| (sample - middle).abs()).collect();
    (middle, 1.4826 * median(&away))
}

/// The mean of both in the middle where there is an even number; 0 of nothing.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_sample_changes_neither_median_nor_spread_much() {
        assert_eq!(median_and_spread(&[1.0, 2.0, 3.0, 4.0, 100.0]), (3.0, 1.4826));
        assert_eq!(median_and_spread(&[2.0, 4.0]), (3.0, 1.4826));
        assert_eq!((median_and_spread(&[5.0]), median_and_spread(&[])), ((5.0, 0.0), (0.0, 0.0)));
    }

    #[test]
    fn unknown_ops_are_named_with_those_there_are() {
        assert!(check_names(&["softmax".into(), "conv2d".into()]).is_ok());
        let error = check_names(&["softmaxx".into()]).unwrap_err();
        let text = error.to_string();
        assert!(error.exit_code() == 2 && text.contains("softmaxx") && text.contains("conv2d"));
    }
}
