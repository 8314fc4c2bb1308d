//! Whether this GPU and its driver compute right: a small case of every family of kernels, fast and
//! reference, against the f64 oracle; and canaries for what drivers are known to get wrong without an
//! error. About two seconds. The op tests go deeper; this is what can be run on anybody's machine.

use std::time::Instant;

use serde::Serialize;

use super::optest::{self, Case, Status};
use crate::Result;
use crate::gpu::{Elem, Gpu};
use crate::graph::{Graph, Kernels, MAX_TRIPS, Plan, PlanOptions};
use crate::ops::{canary, finite};

/// What drivers get wrong without an error.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Canaries {
    /// Loop iterations that one invocation really runs of [`LONG_LOOP`]: fewer is a driver's silent
    /// limit, which plans stay below.
    pub loop_iterations: u32,
    /// Loops at the length that plans use at most run to their end.
    pub loops_right: bool,
    /// Infinite and NaN values are counted right by their bits.
    pub non_finite_right: bool,
}

/// Iterations of the loop canary; software drivers stop at 65,535.
pub const LONG_LOOP: u32 = 100_000;

/// What [`selftest`] found.
#[derive(Clone, Debug, Serialize)]
pub struct SelfTest {
    pub activations: &'static str,
    pub cases: Vec<Case>,
    pub canaries: Canaries,
    pub kernels_compiled: usize,
    pub compile_seconds: f64,
    pub seconds: f64,
}

impl SelfTest {
    /// Cases that are beyond their tolerance or did not run.
    pub fn failures(&self) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(|c| c.status == Status::Failed)
    }
    /// Whether everything that results depend on is right.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
            && self.canaries.loops_right
            && self.canaries.non_finite_right
    }
}

/// Runs the self-test with activations stored as `act`: the smallest level of the op test. `on_case` hears of each case.
///
/// # Errors
/// Only what ends all work: a lost device, no memory, an interrupt. A kernel that is wrong or does not
/// compile is a failed case.
pub fn selftest(gpu: &Gpu, act: Elem, mut on_case: impl FnMut(&Case)) -> Result<SelfTest> {
    let start = Instant::now();
    let before = gpu.compile_cost();
    let mut cases = Vec::new();
    optest::smoke(gpu, act, &mut |case| {
        on_case(&case);
        cases.push(case);
    })?;
    let canaries = canaries(gpu)?;
    let after = gpu.compile_cost();
    Ok(SelfTest {
        activations: act.wgsl(),
        cases,
        canaries,
        kernels_compiled: after.0 - before.0,
        compile_seconds: after.1 - before.1,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn canaries(gpu: &Gpu) -> Result<Canaries> {
    let long = canary::count_loop(gpu, Kernels::Fast, LONG_LOOP, LONG_LOOP)?;
    let most = MAX_TRIPS as u32;
    let safe = canary::count_loop(gpu, Kernels::Fast, 2 * most, most)?;
    let mut values = vec![1.0f32; 1000];
    for (i, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
        values[i * 400 + 7] = bad;
    }
    let graph = Graph::new(Elem::F32);
    let x = graph.input("x", [values.len()], Elem::F32);
    graph.output("count", finite::count_nonfinite(x));
    let plan = Plan::new(gpu, &graph, &PlanOptions::default())?;
    plan.set("x", &values)?;
    plan.run()?;
    Ok(Canaries {
        loop_iterations: long.count,
        loops_right: safe == canary::expected(2 * most),
        non_finite_right: plan.read_u32("count")? == [3],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuOptions;

    #[test]
    fn this_adapter_passes() {
        let gpu = match Gpu::open(&GpuOptions::default()) {
            Ok(gpu) => gpu,
            Err(error) => return println!("skipped: {error}"),
        };
        let mut heard = 0;
        let report = selftest(&gpu, Elem::F32, |_| heard += 1).unwrap();
        let failures: Vec<&Case> = report.failures().collect();
        assert!(report.passed(), "{:?} {failures:#?}", report.canaries);
        assert_eq!(heard, report.cases.len());
        println!(
            "{} cases, {:.2} s, compiling {:.2} s",
            heard, report.seconds, report.compile_seconds
        );
    }
}
