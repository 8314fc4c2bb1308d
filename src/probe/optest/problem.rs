//! What is tested: one op in one form at one shape, with its inputs and what has to come out.

use std::cell::RefCell;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::diffusion::rng::Mt19937;
use crate::gpu::{Elem, Gpu};
use crate::graph::{Graph, Var, Vector, Weight};
use crate::quant::{Layout, Packed, QuantSpec};

/// How much is tested; each level holds those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// One small problem of every family: what `doctor` runs, two seconds.
    Smoke,
    /// Every form at a few odd shapes: 20 seconds on a CPU that plays the GPU.
    Quick,
    #[default]
    Usual,
    /// With the layers of whole models and what is larger than a binding.
    Full,
}

/// Where a shape comes from; what `--shape` chooses by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Set {
    /// The smallest corner of a layer.
    Small,
    /// Sizes that divide by nothing.
    Ragged,
    /// One below, at and above the sizes of tiles, groups, bindings and loops.
    Edges,
    Sd15,
    Sdxl,
    Llama,
    Qwen,
    /// Numbers that are hard to compute with: a large range, denormals, values near f16's limit, infinities.
    Numbers,
}

impl Set {
    pub const ALL: [Set; 8] = [
        Set::Small,
        Set::Ragged,
        Set::Edges,
        Set::Sd15,
        Set::Sdxl,
        Set::Llama,
        Set::Qwen,
        Set::Numbers,
    ];
    /// The word that `--shape` takes.
    pub fn name(self) -> &'static str {
        match self {
            Set::Small => "small",
            Set::Ragged => "ragged",
            Set::Edges => "edges",
            Set::Sd15 => "sd15",
            Set::Sdxl => "sdxl",
            Set::Llama => "llama",
            Set::Qwen => "qwen",
            Set::Numbers => "numbers",
        }
    }
}

/// A value that the host writes before the run.
#[derive(Clone, Debug)]
pub enum Feed {
    F32(&'static str, Vec<f32>),
    U32(&'static str, Vec<u32>),
}

/// Records the expression of a problem.
pub type Build = Box<dyn for<'g> Fn(&'g Graph) -> Var<'g>>;

/// A problem on one device: weights uploaded, inputs drawn, the answer known.
pub struct Prepared {
    pub feeds: Vec<Feed>,
    pub build: Build,
    /// By the f64 oracle. Not finite where the output must not be either.
    pub want: Rc<Vec<f64>>,
    /// Which outputs `want` holds, where it is not all of them.
    pub at: Option<Rc<Vec<usize>>>,
    /// Times the usual tolerance, with the reason at the problem.
    pub slack: f64,
}

impl Prepared {
    pub fn new(
        want: Rc<Vec<f64>>,
        build: impl for<'g> Fn(&'g Graph) -> Var<'g> + 'static,
    ) -> Prepared {
        Prepared { feeds: Vec::new(), build: Box::new(build), want, at: None, slack: 1.0 }
    }
    pub fn feed(mut self, feed: Feed) -> Prepared {
        self.feeds.push(feed);
        self
    }
    /// Multiplies the tolerance.
    pub fn slack(mut self, times: f64) -> Prepared {
        self.slack = times;
        self
    }
    /// A copy or a choice: nothing is to be rounded.
    pub fn exact(self) -> Prepared {
        self.slack(0.0)
    }
    /// `want` is what has to be at these places of the output.
    pub fn at(mut self, places: Vec<usize>) -> Prepared {
        self.at = Some(Rc::new(places));
        self
    }
}

/// One op in one form at one shape.
pub struct Problem {
    /// The op family: `matmul`, `conv2d`, `attention` …
    pub op: &'static str,
    /// Format of the weight and what else is special.
    pub spec: String,
    pub shape: String,
    pub set: Set,
    pub level: Level,
    /// Too much work for kernels with one invocation per output on a CPU that plays the GPU.
    pub heavy: bool,
    /// Longer loops than a reference kernel may run: it goes through a row element by element.
    pub fast_only: bool,
    /// With f32 activations alone: of integers, or of numbers that f16 does not have.
    pub f32_only: bool,
    pub make: Box<dyn Fn(&Site<'_>) -> Result<Prepared> + Send + Sync>,
}

impl Problem {
    pub fn new(
        op: &'static str,
        spec: impl Into<String>,
        shape: impl Into<String>,
        (set, level): (Set, Level),
        make: impl Fn(&Site<'_>) -> Result<Prepared> + Send + Sync + 'static,
    ) -> Problem {
        let (spec, shape) = (spec.into(), shape.into());
        let (heavy, fast_only, f32_only) = (false, false, false);
        Problem { op, spec, shape, set, level, heavy, fast_only, f32_only, make: Box::new(make) }
    }
    pub fn heavy(mut self) -> Problem {
        self.heavy = true;
        self
    }
    pub fn fast_only(mut self) -> Problem {
        self.fast_only = true;
        self
    }
    pub fn f32_only(mut self) -> Problem {
        self.f32_only = true;
        self
    }
}

/// The f64 answer of a problem for each type of activations: computed once, whatever devices follow.
#[derive(Default)]
pub struct Answers(RefCell<Vec<(Elem, Rc<Vec<f64>>)>>);

/// What a problem is prepared for.
pub struct Site<'a> {
    pub gpu: &'a Gpu,
    pub act: Elem,
    pub answers: &'a Answers,
}

impl Site<'_> {
    /// Values as the device will hold them.
    pub fn stored(&self, mut values: Vec<f32>) -> Vec<f32> {
        if self.act == Elem::F16 {
            values.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32());
        }
        values
    }
    /// Standard normal numbers as the device will hold them.
    pub fn data(&self, seed: u64, n: usize) -> Vec<f32> {
        self.stored(normal(seed, n))
    }
    /// A weight on the device.
    pub fn upload(&self, packed: &Packed) -> Result<Weight> {
        Weight::upload(self.gpu, "op test", packed)
    }
    /// A f32 vector on the device.
    pub fn vector(&self, values: &[f32]) -> Result<Vector> {
        Vector::upload(self.gpu, "op test", values)
    }
    /// What `compute` gives, at the first device that asks.
    pub fn want(&self, compute: impl FnOnce() -> Vec<f64>) -> Rc<Vec<f64>> {
        let known = self.answers.0.borrow().iter().find(|(act, _)| *act == self.act).cloned();
        if let Some((_, want)) = known {
            return want;
        }
        let want = Rc::new(compute());
        self.answers.0.borrow_mut().push((self.act, want.clone()));
        want
    }
}

/// Standard normal numbers from a seed. A prime number of them is drawn; more repeat, each time from another place,
/// since drawing a hundred million would take longer than the test.
pub fn normal(seed: u64, n: usize) -> Vec<f32> {
    const DRAWN: usize = 1_000_003;
    let mut values = Mt19937::new(seed).randn(n.clamp(16, DRAWN));
    values.truncate(n);
    while values.len() < n {
        let from = (values.len() / DRAWN * 7_919) % DRAWN;
        let more = (n - values.len()).min(DRAWN - from);
        values.extend_from_within(from..from + more);
    }
    values
}

/// A weight of normal numbers in this format.
pub fn packed(seed: u64, layout: Layout, spec: &str) -> Result<Packed> {
    let spec: QuantSpec = spec.parse()?;
    Packed::pack(&normal(seed, layout.len()), layout, &spec, None)
}
