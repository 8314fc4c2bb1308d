//! Whether this GPU and its driver compute right: a small case of every family of kernels, fast and
//! reference, against the f64 oracle; and canaries for what drivers are known to get wrong without an
//! error. About two seconds. The op tests go deeper; this is what can be run on anybody's machine.

use std::time::Instant;

use serde::Serialize;

use super::selftest_cases;
use crate::diffusion::rng::Mt19937;
use crate::gpu::{Elem, Gpu};
use crate::graph::{Graph, Kernels, MAX_TRIPS, Plan, PlanOptions, Var, Vector, Weight};
use crate::ops::{canary, finite};
use crate::quant::{Layout, Packed, QuantSpec, metrics};
use crate::{Error, Result};

/// One family of kernels in one variant.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// The op family: `matmul`, `conv2d`, `attention` …
    pub op: &'static str,
    /// Format, size or form.
    pub what: String,
    /// `fast` or `reference`.
    pub kernels: &'static str,
    /// Σ(got − oracle)² / Σ oracle²; null in JSON where a value is not finite.
    pub nmse: f64,
    pub tolerance: f64,
    /// With compilation, which some drivers do at the first run.
    pub seconds: f64,
    pub passed: bool,
    /// What the driver said if it refused the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

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
        self.cases.iter().filter(|c| !c.passed)
    }
    /// Whether everything that results depend on is right.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
            && self.canaries.loops_right
            && self.canaries.non_finite_right
    }
}

/// Runs the self-test with activations stored as `act`. `on_case` hears of each case.
///
/// # Errors
/// Only what ends all work: a lost device, no memory, an interrupt. A kernel that is wrong or does not
/// compile is a failed case.
pub fn selftest(gpu: &Gpu, act: Elem, on_case: impl FnMut(&Case)) -> Result<SelfTest> {
    let start = Instant::now();
    let before = gpu.compile_cost();
    let mut bench = Bench { gpu, act, cases: Vec::new(), on_case: Box::new(on_case) };
    selftest_cases::all(&mut bench)?;
    let cases = bench.cases;
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

/// A value that the host writes before the run.
pub(super) enum Feed<'a> {
    F32(&'static str, &'a [f32]),
    U32(&'static str, &'a [u32]),
}

/// What cases are run on.
pub(super) struct Bench<'a> {
    pub gpu: &'a Gpu,
    pub act: Elem,
    cases: Vec<Case>,
    on_case: Box<dyn FnMut(&Case) + 'a>,
}

impl Bench<'_> {
    /// Standard normal numbers as the device will hold them.
    pub fn data(&self, seed: u64, n: usize) -> Vec<f32> {
        let mut values = Mt19937::new(seed).randn(n);
        if self.act == Elem::F16 {
            values.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32());
        }
        values
    }
    /// A random weight on the device, and its values as the device will decode them.
    pub fn weight(&self, seed: u64, layout: Layout, spec: QuantSpec) -> Result<(Weight, Vec<f32>)> {
        let packed = Packed::pack(&Mt19937::new(seed).randn(layout.len()), layout, &spec, None)?;
        Ok((Weight::upload(self.gpu, "self-test", &packed)?, packed.decode()))
    }
    /// A random f32 vector on the device, and its values.
    pub fn vector(&self, seed: u64, n: usize) -> Result<(Vector, Vec<f32>)> {
        let values = Mt19937::new(seed).randn(n);
        Ok((Vector::upload(self.gpu, "self-test", &values)?, values))
    }

    /// Runs an expression with both kinds of kernels against `want`.
    pub fn check(
        &mut self,
        op: &'static str,
        what: impl Into<String>,
        feeds: &[Feed<'_>],
        want: &[f64],
        build: impl for<'g> Fn(&'g Graph) -> Var<'g>,
    ) -> Result<()> {
        let what = what.into();
        for (kernels, name) in [(Kernels::Reference, "reference"), (Kernels::Fast, "fast")] {
            let start = Instant::now();
            let got = evaluate(self.gpu, self.act, kernels, feeds, &build);
            let mut case = judge(op, &what, name, self.act, got, want)?;
            case.seconds = start.elapsed().as_secs_f64();
            (self.on_case)(&case);
            self.cases.push(case);
        }
        Ok(())
    }
}

/// Over memory full of NaN, so that a value nobody wrote shows.
fn evaluate(
    gpu: &Gpu,
    act: Elem,
    kernels: Kernels,
    feeds: &[Feed<'_>],
    build: &impl for<'g> Fn(&'g Graph) -> Var<'g>,
) -> Result<Vec<f32>> {
    let graph = Graph::new(act);
    let y = build(&graph);
    graph.output("y", y);
    let options = PlanOptions { kernels, poison: true, ..Default::default() };
    let plan = Plan::new(gpu, &graph, &options)?;
    for feed in feeds {
        match feed {
            Feed::F32(name, values) => plan.set(name, values)?,
            Feed::U32(name, values) => plan.set_u32(name, values)?,
        }
    }
    plan.run()?;
    plan.read("y")
}

fn judge(
    op: &'static str,
    what: &str,
    kernels: &'static str,
    act: Elem,
    got: Result<Vec<f32>>,
    want: &[f64],
) -> Result<Case> {
    // f32: sums in another order come to 1e-12; 1e-8 leaves room for a driver's exp, sin and inverse
    // square root, which the WGSL specification allows to be tens of units off. f16: one store rounds by 2⁻¹¹/√3, NMSE 8e-8,
    // and one output may pass several. A wrong kernel is wrong by 1e-3 and more.
    let tolerance = if act == Elem::F16 { 1e-6 } else { 1e-8 };
    let (nmse, error) = match got {
        Ok(got) if got.len() == want.len() => {
            let want: Vec<f32> = want.iter().map(|v| *v as f32).collect();
            (metrics::nmse(&got, &want), None)
        }
        Ok(got) => (f64::NAN, Some(format!("{} values for {}", got.len(), want.len()))),
        Err(error @ (Error::Runtime(_) | Error::Usage(_))) => (f64::NAN, Some(error.to_string())),
        Err(fatal) => return Err(fatal),
    };
    // Not `nmse > tolerance`: NaN has to fail.
    let passed = error.is_none() && nmse <= tolerance;
    let what = what.to_string();
    Ok(Case { op, what, kernels, nmse, tolerance, seconds: 0.0, passed, error })
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
    fn a_wrong_or_non_finite_result_fails() {
        let judge = |got: Result<Vec<f32>>| {
            judge("x", "y", "fast", Elem::F32, got, &[1.0, -2.0]).map(|c| (c.passed, c.error))
        };
        assert_eq!(judge(Ok(vec![1.0, -2.0])).unwrap(), (true, None));
        assert!(!judge(Ok(vec![1.0, -2.01])).unwrap().0);
        assert!(!judge(Ok(vec![1.0, f32::NAN])).unwrap().0);
        assert!(!judge(Ok(vec![1.0, f32::INFINITY])).unwrap().0);
        let (passed, error) = judge(Ok(vec![1.0])).unwrap();
        assert!(!passed && error.is_some());
        let (passed, error) = judge(Err(Error::Runtime("does not compile".into()))).unwrap();
        assert!(!passed && error.unwrap().contains("compile"));
        assert!(judge(Err(Error::Interrupted)).is_err());
    }

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
