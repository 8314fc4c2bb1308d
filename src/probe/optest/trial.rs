//! One problem in every tier, with every type of activations and every kind of kernels.

use std::collections::HashSet;
use std::time::Instant;

use super::case::{Case, Status};
use super::judge::{self, Verdict, judge};
use super::problem::{Answers, Feed, Prepared, Problem, Site};
use super::tier::TierDevice;
use crate::gpu::{Elem, Gpu};
use crate::graph::{Graph, Kernels, Plan, PlanOptions, Planned};
use crate::{Error, Result};

/// One problem on its way through tiers, types and kernels.
pub(super) struct Trial<'a> {
    problem: &'a Problem,
    answers: Answers,
    /// What ran already: another tier often has the same kernels.
    seen: HashSet<Vec<Planned>>,
}

impl Trial<'_> {
    pub fn new(problem: &Problem) -> Trial<'_> {
        Trial { problem, answers: Answers::default(), seen: HashSet::new() }
    }

    /// # Errors
    /// What ends work on these devices; it was reported as a case if it is a loss.
    pub fn run(mut self, devices: &[TierDevice], on_case: &mut dyn FnMut(Case)) -> Result<()> {
        for device in devices {
            for &act in &device.acts {
                if act == Elem::F32 || !self.problem.f32_only {
                    self.run_with(device, act, on_case)?;
                }
            }
        }
        Ok(())
    }

    fn run_with(
        &mut self,
        device: &TierDevice,
        act: Elem,
        on_case: &mut dyn FnMut(Case),
    ) -> Result<()> {
        let site = Site { gpu: &device.gpu, act, answers: &self.answers };
        let prepared = match (self.problem.make)(&site) {
            Ok(prepared) => prepared,
            Err(error) => {
                let start = Instant::now();
                let case = self.case(device, (act, Kernels::Fast), start, 1.0, Err(error))?;
                on_case(case);
                return Ok(());
            }
        };
        for &kernels in &device.kernels {
            let slow = self.problem.heavy && device.gpu.caps().software;
            if kernels == Kernels::Reference && (slow || self.problem.fast_only) {
                continue;
            }
            let start = Instant::now();
            let outcome = match self.is_new(device, act, kernels, &prepared) {
                Ok(false) => continue,
                Ok(true) => evaluate(&device.gpu, act, kernels, &prepared),
                Err(error) => Err(error),
            };
            let lost = match &outcome {
                Err(Error::DeviceLost(why)) => Some(why.clone()),
                _ => None,
            };
            on_case(self.case(device, (act, kernels), start, prepared.slack, outcome)?);
            if let Some(why) = lost {
                return Err(Error::DeviceLost(why));
            }
        }
        Ok(())
    }

    /// Whether this combination launches anything that no earlier one did.
    fn is_new(
        &mut self,
        device: &TierDevice,
        act: Elem,
        kernels: Kernels,
        prepared: &Prepared,
    ) -> Result<bool> {
        let graph = Graph::new(act);
        graph.output("y", (prepared.build)(&graph));
        let options = PlanOptions { kernels, ..Default::default() };
        let gpu = &device.gpu;
        Ok(self.seen.insert(Plan::kernels(gpu, &graph, &options, gpu.caps())?))
    }

    fn case(
        &self,
        device: &TierDevice,
        (act, kernels): (Elem, Kernels),
        start: Instant,
        slack: f64,
        outcome: Result<Verdict>,
    ) -> Result<Case> {
        let (nmse, max) = judge::allowed(act);
        let nothing = Verdict {
            nmse: f64::NAN,
            max_error: f64::NAN,
            nmse_allowed: nmse * slack,
            max_allowed: max * slack.sqrt(),
            misplaced: 0,
        };
        let (verdict, status, why) = match outcome {
            Ok(verdict) if verdict.passed() => (verdict, Status::Passed, None),
            Ok(verdict) if verdict.misplaced > 0 => {
                let why = format!("{} values are finite or not, wrongly", verdict.misplaced);
                (verdict, Status::Failed, Some(why))
            }
            Ok(verdict) => (verdict, Status::Failed, None),
            Err(Error::OutOfMemory(why)) => (nothing, Status::Skipped, Some(why)),
            Err(error @ (Error::Interrupted | Error::NoAdapter(_))) => return Err(error),
            Err(error) => (nothing, Status::Failed, Some(error.to_string())),
        };
        let Problem { op, spec, shape, set, .. } = self.problem;
        Ok(Case {
            op: (*op).to_string(),
            spec: spec.clone(),
            shape: shape.clone(),
            set: *set,
            tier: device.tier,
            kernels: name(kernels).to_string(),
            activations: act.wgsl().to_string(),
            nmse: verdict.nmse,
            max_error: verdict.max_error,
            tolerance: verdict.nmse_allowed,
            max_tolerance: verdict.max_allowed,
            status,
            seconds: start.elapsed().as_secs_f64(),
            why,
        })
    }
}

pub(super) fn name(kernels: Kernels) -> &'static str {
    match kernels {
        Kernels::Fast => "fast",
        Kernels::Hardware => "hardware",
        Kernels::Reference => "reference",
    }
}

/// Twice, over memory full of NaN, so that a value nobody wrote shows, and between guard words.
fn evaluate(gpu: &Gpu, act: Elem, kernels: Kernels, prepared: &Prepared) -> Result<Verdict> {
    let graph = Graph::new(act);
    graph.output("y", (prepared.build)(&graph));
    let options = PlanOptions { kernels, poison: true, guards: true, ..Default::default() };
    let plan = Plan::new(gpu, &graph, &options)?;
    let run = || -> Result<Vec<f32>> {
        for feed in &prepared.feeds {
            match feed {
                Feed::F32(name, values) => plan.set(name, values)?,
                Feed::U32(name, values) => plan.set_u32(name, values)?,
            }
        }
        plan.run()?;
        plan.read("y")
    };
    let (first, second) = (run()?, run()?);
    let same = first.iter().zip(&second).all(|(a, b)| a.to_bits() == b.to_bits());
    if !same {
        return Err(Error::Runtime("two runs on one device differ".into()));
    }
    if !plan.guards_intact()? {
        return Err(Error::Runtime("memory around the result was written".into()));
    }
    let got: Vec<f32> = match &prepared.at {
        Some(places) => places.iter().filter_map(|at| first.get(*at).copied()).collect(),
        None => first,
    };
    if got.len() != prepared.want.len() {
        let (got, want) = (got.len(), prepared.want.len());
        return Err(Error::Runtime(format!("{got} values came out, {want} were to")));
    }
    Ok(judge(&got, &prepared.want, act, prepared.slack))
}
