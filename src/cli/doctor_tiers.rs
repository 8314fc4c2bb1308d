//! The self-test of `inknib doctor`, and what is tried where it fails: the device without subgroups, without f16, without
//! both, and at last with the reference kernels alone.

use super::common::Ui;
use super::doctor::{Args, again};
use super::recover::twice;
use crate::gpu::{Elem, Gpu, Without};
use crate::graph::MAX_TRIPS;
use crate::probe::selftest::{SelfTest, selftest};
use crate::{Error, Result};

/// One run of the self-test.
pub(super) struct Tier {
    /// What was left out, beyond what the user leaves out.
    pub without: Without,
    pub gpu: Gpu,
    pub act: Elem,
    /// What was found, or how the device was lost.
    pub outcome: Result<SelfTest, String>,
}

impl Tier {
    fn run(args: &Args, first: Gpu, act: Elem, without: Without, ui: &Ui) -> Result<Tier> {
        let mut gpu = first;
        let outcome = twice(ui, |repeated| {
            if repeated {
                gpu = again(args, without)?;
            }
            let bar = ui.bar("self-test", 0);
            selftest(&gpu, act, |case| bar.say(format!("{} {} {}", case.op, case.spec, case.shape)))
        });
        let outcome = match outcome {
            Ok(test) => Ok(test),
            Err(Error::DeviceLost(what)) => Err(what),
            Err(other) => return Err(other),
        };
        Ok(Tier { without, gpu, act, outcome })
    }
    pub fn passed(&self) -> bool {
        self.outcome.as_ref().is_ok_and(SelfTest::passed)
    }
    /// `as it is`, `without subgroups`, …
    pub fn name(&self) -> String {
        match self.without.words()[..] {
            [] => "as it is".to_string(),
            _ if self.without.fast_kernels => "with the reference kernels alone".to_string(),
            ref words => format!("without {}", words.join(" and ")),
        }
    }
    /// What is wrong in one clause; empty if nothing is.
    pub fn failure(&self) -> String {
        match &self.outcome {
            Ok(test) if test.passed() => String::new(),
            Ok(test) => first_failure(test),
            Err(lost) => lost.clone(),
        }
    }
    /// As an error, with the next step.
    pub fn error(&self) -> Error {
        let name = &self.gpu.adapter().name;
        match &self.outcome {
            Ok(test) => Error::OutOfTolerance(format!("{name}: {}; {NEXT}", first_failure(test))),
            Err(lost) => Error::DeviceLost(format!("{lost}; {NEXT}")),
        }
    }
    /// Whether leaving features out cannot help: a reference kernel in f32, which uses none, is wrong.
    fn is_last(&self) -> bool {
        let wrong = |test: &SelfTest| test.failures().any(|case| case.kernels == "reference");
        self.act == Elem::F32 && self.outcome.as_ref().is_ok_and(wrong)
    }
}

pub(super) const NEXT: &str = "update the driver, or take another --device";

fn first_failure(test: &SelfTest) -> String {
    let count = test.failures().count();
    match test.failures().next() {
        Some(case) => format!(
            "{count} of {} self-test cases are wrong, the first {} ({} {}, {} kernels)",
            test.cases.len(),
            case.op,
            case.spec,
            case.shape,
            case.kernels
        ),
        None if !test.canaries.loops_right => {
            format!("loops of {MAX_TRIPS} iterations do not run to their end")
        }
        None => "infinite and NaN values are not seen".to_string(),
    }
}

/// Runs the self-test on this device and, until one passes, with less and less of it. The last one is the best that
/// there is.
pub(super) fn search(args: &Args, gpu: Gpu, ui: &Ui) -> Result<Vec<Tier>> {
    let act = args.activations.resolve(&gpu)?;
    let lesser = lesser(&gpu, act);
    let mut tiers = vec![Tier::run(args, gpu, act, Without::default(), ui)?];
    for without in lesser {
        let last = &tiers[tiers.len() - 1];
        if last.passed() || last.is_last() {
            break;
        }
        let gpu = again(args, without)?;
        // f16 activations that were asked for cannot be had without f16.
        let Ok(act) = args.activations.resolve(&gpu) else { continue };
        tiers.push(Tier::run(args, gpu, act, without, ui)?);
    }
    Ok(tiers)
}

/// What to leave out, the least first. f16 is in kernels only where activations are f16.
fn lesser(gpu: &Gpu, act: Elem) -> Vec<Without> {
    let nothing = Without::default();
    let (f16, subgroups) = (act == Elem::F16, gpu.caps().subgroups);
    let mut all = Vec::new();
    if gpu.caps().coop_edge > 0 && f16 {
        all.push(Without { coop: true, ..nothing });
    }
    if subgroups {
        all.push(Without { subgroups, ..nothing });
    }
    if f16 {
        all.push(Without { f16, ..nothing });
    }
    if f16 && subgroups {
        all.push(Without { f16, subgroups, ..nothing });
    }
    if gpu.caps().fast_kernels {
        all.push(Without { f16, subgroups, fast_kernels: true, ..nothing });
    }
    all
}
