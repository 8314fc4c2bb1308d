//! Every kernel in every form against the f64 oracle: at shapes of real models and at odd ones, with every
//! format of weights, in every feature tier of the adapter, over poisoned memory between guard words, twice.

mod attention;
mod cache;
mod case;
mod conv2d;
mod judge;
mod known;
mod layers;
mod lookup;
mod matmul;
mod norm;
mod numbers;
mod pointwise;
mod problem;
mod render;
mod sampler;
mod tier;
mod trial;
mod web;
mod whole;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

pub use case::{Case, Status};
pub use known::Known;
pub use problem::{Level, Problem, Set};
pub use render::{families, junit, markdown, worst};
pub use tier::Tier;
pub use web::export;
pub use whole::{Whole, distances, picture, reply};

use crate::gpu::{AdapterSummary, Elem, Gpu, GpuOptions};
use crate::{Error, Result};
use tier::{TierDevice, open};
use trial::Trial;

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
    layers::add(&mut all);
    conv2d::add(&mut all);
    attention::add(&mut all);
    norm::add(&mut all);
    cache::add(&mut all);
    pointwise::add(&mut all);
    lookup::add(&mut all);
    sampler::add(&mut all);
    numbers::add(&mut all);
    by_family(all).into_iter().flatten().collect()
}

/// Those of one op together, in the order of the tables: ops of most use first, the others as they come.
fn by_family(problems: Vec<Problem>) -> Vec<Vec<Problem>> {
    const FIRST: [&str; 6] = ["matmul", "conv2d", "attention", "norm", "kv_cache", "rope"];
    let mut families: Vec<Vec<Problem>> = Vec::new();
    for problem in problems {
        match families.iter_mut().find(|of| of[0].op == problem.op) {
            Some(of) => of.push(problem),
            None => families.push(vec![problem]),
        }
    }
    let place = |of: &Vec<Problem>| FIRST.iter().position(|op| *op == of[0].op);
    families.sort_by_key(|of| place(of).unwrap_or(FIRST.len()));
    families
}

/// Problems that share kernels, which each worker would compile anew: those of one op and one format of weights, or one width of
/// heads. Each with its place in the whole list.
fn sharing(problems: Vec<Problem>) -> VecDeque<Vec<(usize, Problem)>> {
    let mut families: Vec<(String, Vec<(usize, Problem)>)> = Vec::new();
    for (place, problem) in problems.into_iter().enumerate() {
        let part = match problem.op {
            "matmul" | "conv2d" | "embed" => problem.spec.split([' ', ',']).next(),
            "attention" => problem.shape.rsplit(' ').next(),
            _ => None,
        };
        let key = format!("{} {}", problem.op, part.unwrap_or_default());
        match families.iter_mut().find(|(of, _)| *of == key) {
            Some((_, family)) => family.push((place, problem)),
            None => families.push((key, vec![(place, problem)])),
        }
    }
    families.into_iter().map(|(_, family)| family).collect()
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
    let (tiers, total) = (choice.tiers(), problems.len());
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
    let families = Mutex::new(sharing(problems));
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
                    known.judge([name, driver, backend], &mut case);
                    on_case(&case, done, total);
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
    families: &Mutex<VecDeque<Vec<(usize, Problem)>>>,
    send: &Sender<News>,
) -> Result<()> {
    // Nobody listens any more where the run has ended.
    let tell = |news| drop(send.send(news));
    let mut losses = 0;
    loop {
        let next = families.lock().unwrap_or_else(|e| e.into_inner()).pop_front();
        let Some(family) = next else { break };
        for (index, problem) in &family {
            let opened = match devices.take() {
                Some(devices) => devices,
                None => open()?.0,
            };
            let mut on_case = |case| tell(News::Case(*index, Box::new(case)));
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
