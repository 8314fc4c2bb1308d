//! Every kernel in every form against the f64 oracle: at shapes of real models and at odd ones, with every
//! format of weights, in every feature tier of the adapter, over poisoned memory between guard words, twice.

mod attention;
mod cache;
mod conv2d;
mod judge;
mod known;
mod lookup;
mod matmul;
mod norm;
mod numbers;
mod pointwise;
mod problem;
mod render;
mod sampler;
mod tier;
mod web;
mod whole;

use std::collections::{HashSet, VecDeque};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use known::{Known, KnownFailure};
pub use problem::{Level, Problem, Set};
pub use render::{families, junit, markdown, worst};
pub use tier::Tier;
pub use web::export;
pub use whole::{Distance, Whole, allowed, distances, picture, reply};

use crate::gpu::{AdapterSummary, Elem, Gpu, GpuOptions, Spec};
use crate::graph::{Graph, Kernels, Plan, PlanOptions};
use crate::{Error, Result};
use judge::{Verdict, judge};
use problem::{Answers, Feed, Prepared, Site};
use tier::{TierDevice, open};

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Passed,
    Failed,
    /// Failed, and the list of known failures has it.
    Known,
    /// Passed, though the list of known failures has it: the list is to be mended.
    Unexpected,
    /// Not run: the adapter has no room for it.
    Skipped,
}

impl Status {
    pub fn mark(self) -> &'static str {
        match self {
            Status::Passed => "✓",
            Status::Failed => "✗",
            Status::Known => "known",
            Status::Unexpected => "✓, known to fail",
            Status::Skipped => "skipped",
        }
    }
}

/// One problem with one kind of kernels in one tier.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    pub op: String,
    pub spec: String,
    pub shape: String,
    pub set: Set,
    pub tier: Tier,
    /// `reference`, `fast`, or `hardware` for the fast ones of a real GPU on one that a CPU plays.
    pub kernels: String,
    pub activations: String,
    /// Σ(got − oracle)² / Σ oracle²; null in JSON where it is not finite.
    #[serde(deserialize_with = "or_nan")]
    pub nmse: f64,
    /// The largest error over the larger of the value there and the root mean square of all.
    #[serde(deserialize_with = "or_nan")]
    pub max_error: f64,
    /// The NMSE that is allowed.
    pub tolerance: f64,
    pub max_tolerance: f64,
    pub status: Status,
    /// With compilation.
    pub seconds: f64,
    /// Why it failed or was skipped, where numbers do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Reads null as NaN: JSON has no other word for it.
fn or_nan<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

impl Case {
    /// `matmul int4-g64-cubic 5x17x9, fast f32 in tier none`
    pub fn name(&self) -> String {
        let Case { op, spec, shape, kernels, activations, tier, .. } = self;
        format!("{op} {spec} {shape}, {kernels} {activations} in tier {}", tier.name())
    }
    /// What is wrong with it, in a few words.
    pub fn trouble(&self) -> String {
        self.why.clone().unwrap_or_else(|| {
            format!(
                "NMSE {:.1e} of {:.0e} allowed, largest error {:.1e} of {:.0e}",
                self.nmse, self.tolerance, self.max_error, self.max_tolerance
            )
        })
    }
}

/// Which problems are run, and in which tiers.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    pub level: Level,
    /// Op families; all if empty.
    pub ops: Vec<String>,
    /// All if empty.
    pub sets: Vec<Set>,
    /// All if empty, but for the levels up to quick: none and all.
    pub tiers: Vec<Tier>,
}

impl Choice {
    fn takes(&self, problem: &Problem) -> bool {
        problem.level <= self.level
            && (self.ops.is_empty() || self.ops.iter().any(|op| op == problem.op))
            && (self.sets.is_empty() || self.sets.contains(&problem.set))
    }
    /// The tiers that are asked for. Those between nothing and everything have few kernels of their own.
    fn tiers(&self) -> &[Tier] {
        match (self.tiers.is_empty(), self.level <= Level::Quick) {
            (false, _) => &self.tiers,
            (true, true) => &[Tier::None, Tier::All],
            (true, false) => &Tier::ALL,
        }
    }
    fn problems(&self) -> Result<Vec<Problem>> {
        let all = problems();
        for op in &self.ops {
            if !all.iter().any(|problem| problem.op == op) {
                let mut known: Vec<&str> = all.iter().map(|problem| problem.op).collect();
                known.dedup();
                return Err(Error::Usage(format!(
                    "no op \"{op}\"; there are {}",
                    known.join(", ")
                )));
            }
        }
        let chosen: Vec<Problem> = all.into_iter().filter(|problem| self.takes(problem)).collect();
        if chosen.is_empty() {
            return Err(Error::Usage(
                "no case fits; take fewer of --op and --shape, or --full".into(),
            ));
        }
        Ok(chosen)
    }
}

/// Every problem, those of most use first.
pub fn problems() -> Vec<Problem> {
    let mut all = Vec::new();
    matmul::add(&mut all);
    conv2d::add(&mut all);
    attention::add(&mut all);
    norm::add(&mut all);
    cache::add(&mut all);
    pointwise::add(&mut all);
    lookup::add(&mut all);
    sampler::add(&mut all);
    numbers::add(&mut all);
    all.sort_by_key(|problem: &Problem| first_of(problem.op));
    all
}

/// Families in the order of the tables.
fn first_of(op: &str) -> usize {
    const ORDER: [&str; 6] = ["matmul", "conv2d", "attention", "norm", "kv_cache", "rope"];
    ORDER.iter().position(|known| *known == op).unwrap_or(ORDER.len())
}

/// What [`run`] found on one adapter.
#[derive(Clone, Debug)]
pub struct OpTest {
    pub adapter: AdapterSummary,
    pub cases: Vec<Case>,
    /// The shipped models from end to end, where they were run.
    pub models: Vec<Whole>,
    /// Tiers that the adapter lacks, and why.
    pub missing: Vec<(Tier, String)>,
    pub kernels_compiled: usize,
    pub compile_seconds: f64,
    pub seconds: f64,
}

impl OpTest {
    pub fn count(&self, status: Status) -> usize {
        self.cases.iter().filter(|case| case.status == status).count()
    }
    /// Whether nothing failed that is not known to, and nothing passed that is known not to.
    pub fn passed(&self) -> bool {
        self.count(Status::Failed) + self.count(Status::Unexpected) == 0
            && self.models.iter().all(Whole::passed)
    }
}

/// Losses of the device after which a run ends.
const MOST_LOSSES: usize = 5;
/// Problems under way at once: most of the time goes into compiling, which a driver does on one core.
const WORKERS: usize = 4;

/// Runs the chosen problems. `on_case` hears of each case, and of how many problems are done of how many.
///
/// # Errors
/// What ends all work: no device, a choice that fits nothing, an interrupt, a device lost again and again. A kernel that
/// is wrong or does not compile is a failed case.
pub fn run(
    options: &GpuOptions,
    choice: &Choice,
    known: &Known,
    mut on_case: impl FnMut(&Case, usize, usize),
) -> Result<OpTest> {
    let start = Instant::now();
    let problems = choice.problems()?;
    let tiers = choice.tiers();
    let opener = || open(options, tiers, choice.level > Level::Quick);
    let (devices, missing) = opener()?;
    if devices.is_empty() {
        let why: Vec<&str> = missing.iter().map(|(_, why)| why.as_str()).collect();
        return Err(Error::Usage(format!("no tier can be tested: {}", why.join("; "))));
    }
    // With all its features, whatever the tiers.
    let adapter = Gpu::open(options)?.adapter().clone();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let workers = cores.clamp(1, WORKERS);
    let families = Mutex::new(by_family(&problems));
    let (send, receive) = channel();
    let (mut cases, mut compiled, mut done) = (Vec::new(), (0, 0.0), 0);
    let ended = std::thread::scope(|scope| {
        let mut devices = Some(devices);
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                let (families, send, devices) = (&families, send.clone(), devices.take());
                scope.spawn(move || work(&opener, devices, families, &send))
            })
            .collect();
        drop(send);
        for news in receive {
            match news {
                News::Case(index, case) => {
                    let mut case = *case;
                    let AdapterSummary { name, driver, backend, .. } = &adapter;
                    case.status = known.judge([name, driver, backend], &case);
                    on_case(&case, done, problems.len());
                    cases.push((index, case));
                }
                News::Done => done += 1,
                News::Compiled(kernels, seconds) => {
                    compiled = (compiled.0 + kernels, compiled.1 + seconds);
                }
            }
        }
        let panicked = |_| Err(Error::Runtime("a test thread panicked".into()));
        threads.into_iter().map(|t| t.join().unwrap_or_else(panicked)).collect::<Result<Vec<()>>>()
    });
    ended?;
    // Of one problem they are in order already.
    cases.sort_by_key(|(index, _)| *index);
    Ok(OpTest {
        adapter,
        cases: cases.into_iter().map(|(_, case)| case).collect(),
        models: Vec::new(),
        missing,
        kernels_compiled: compiled.0,
        compile_seconds: compiled.1,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// The smallest problem of every family with the device as it is: reference and fast kernels.
///
/// # Errors
/// What ends work on this device; a kernel that is wrong or does not compile is a failed case.
pub(super) fn smoke(gpu: &Gpu, act: Elem, on_case: &mut dyn FnMut(Case)) -> Result<()> {
    let mut device = TierDevice::new(Tier::All, gpu.clone(), false);
    for problem in problems().iter().filter(|problem| problem.level == Level::Smoke) {
        device.acts = vec![if problem.f32_only { Elem::F32 } else { act }];
        Trial::new(problem).run(std::slice::from_ref(&device), on_case)?;
    }
    Ok(())
}

/// Problems with their places in the list, those of one op together: they share kernels, which each worker compiles anew.
fn by_family(problems: &[Problem]) -> VecDeque<Vec<(usize, &Problem)>> {
    let mut families: VecDeque<Vec<(usize, &Problem)>> = VecDeque::new();
    for (index, problem) in problems.iter().enumerate() {
        match families.iter_mut().find(|of| of[0].1.op == problem.op) {
            Some(of) => of.push((index, problem)),
            None => families.push_back(vec![(index, problem)]),
        }
    }
    families
}

/// What a worker tells.
enum News {
    /// Of the problem with this index.
    Case(usize, Box<Case>),
    /// A problem is done.
    Done,
    /// Kernels compiled, and seconds that took.
    Compiled(usize, f64),
}

/// Takes one family of problems after the other, on devices of its own.
fn work(
    open: &dyn Fn() -> Result<(Vec<TierDevice>, Vec<(Tier, String)>)>,
    mut devices: Option<Vec<TierDevice>>,
    families: &Mutex<VecDeque<Vec<(usize, &Problem)>>>,
    send: &Sender<News>,
) -> Result<()> {
    // Nobody listens any more where the run has ended.
    let tell = |news| drop(send.send(news));
    let mut losses = 0;
    loop {
        let next = families.lock().unwrap_or_else(|e| e.into_inner()).pop_front();
        let Some(family) = next else { break };
        for (index, problem) in family {
            let opened = match devices.take() {
                Some(devices) => devices,
                None => open()?.0,
            };
            let mut on_case = |case| tell(News::Case(index, Box::new(case)));
            match Trial::new(problem).run(&opened, &mut on_case) {
                Ok(()) => devices = Some(opened),
                // A case has told of the loss; the next problem gets new devices.
                Err(Error::DeviceLost(_)) if losses < MOST_LOSSES => {
                    losses += 1;
                    tell(compiled(&opened));
                }
                Err(error) => return Err(error),
            }
            tell(News::Done);
        }
    }
    devices.iter().for_each(|devices| tell(compiled(devices)));
    Ok(())
}

fn compiled(devices: &[TierDevice]) -> News {
    let costs = devices.iter().map(|device| device.gpu.compile_cost());
    let (kernels, seconds) = costs.fold((0, 0.0), |sum, cost| (sum.0 + cost.0, sum.1 + cost.1));
    News::Compiled(kernels, seconds)
}

/// One problem on its way through tiers, types and kernels.
struct Trial<'a> {
    problem: &'a Problem,
    answers: Answers,
    /// What ran already: another tier often has the same kernels.
    seen: HashSet<Vec<(Spec, [u32; 3])>>,
}

impl Trial<'_> {
    fn new(problem: &Problem) -> Trial<'_> {
        Trial { problem, answers: Answers::default(), seen: HashSet::new() }
    }

    /// # Errors
    /// What ends work on these devices; it was reported as a case if it is a loss.
    fn run(mut self, devices: &[TierDevice], on_case: &mut dyn FnMut(Case)) -> Result<()> {
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

fn name(kernels: Kernels) -> &'static str {
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
