//! The loop of a diffusion sampler on the GPU: what the network reads, the value that its answer stands for, the next
//! sample, and what later rows need. The coefficients are data ([`crate::ops::sampler::COEFFICIENTS`] floats; the
//! samplers of the diffusion floor make them), so one plan serves every row of every method.

use std::any::Any;

use super::guidance::Answer;
use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Operand, Shape, Var};
use crate::{Result, params, source};

const FAST: Source = source!("sampler.wgsl");
const REFERENCE: Source = source!("reference/sampler.wgsl");

/// Floats in the `coef` input: the 27 of a row in memory order, then the guidance scale, guidance rescale, zeros.
pub const COEFFICIENTS: usize = 32;
/// Parts of the memory between rows: three older values, newest first, and the kept sample.
pub const MEMORY: usize = 4;

params! {
    pub struct Params {
        pub n: u32,
        pub copies: u32,
        pub item: u32,
        pub pad0: u32,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ModelInput = 0,
    Value = 1,
    PredictX0 = 2,
    Step = 3,
    Remember = 4,
}

/// How the network's answers lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answers {
    #[default]
    One = 1,
    /// Without the prompt, then with it.
    Joined = 2,
    Pair = 3,
}

/// Inputs: coef, x, and what the kind reads besides; for `Remember` the memory comes first.
#[derive(Clone, Copy, Debug)]
struct SamplerStep {
    kind: Kind,
    copies: usize,
    answers: Answers,
    rescaled: bool,
}

impl SamplerStep {
    fn of(kind: Kind) -> SamplerStep {
        SamplerStep { kind, copies: 1, answers: Answers::One, rescaled: false }
    }
}

pub(super) fn check_coef(coef: Var<'_>) -> Result<(), String> {
    if coef.shape().len() == COEFFICIENTS && coef.elem() == Elem::F32 {
        return Ok(());
    }
    Err(format!("coef {:?} of {:?}, expected f32 [{COEFFICIENTS}]", coef.shape(), coef.elem()))
}

fn check_latent(name: &str, v: Var<'_>, like: Shape, parts: usize) -> Result<(), String> {
    if v.shape().len() == parts * like.len() && v.elem() == Elem::F32 {
        return Ok(());
    }
    let parts = if parts == 1 { String::new() } else { format!("{parts} times ") };
    Err(format!("{name} {:?} of {:?}, expected f32 {parts}{like:?}", v.shape(), v.elem()))
}

/// `input_scale · x` for each of `copies` of the pictures (two under guidance): x f32 `[n, h, w, c]` gives
/// `[copies · n, h, w, c]` in the graph's activation type.
#[track_caller]
pub fn model_input<'g>(x: Var<'g>, coef: Var<'g>, copies: usize) -> Var<'g> {
    let shape = x.shape();
    let fits = check_coef(coef).and_then(|()| check_latent("x", x, shape, 1)).and_then(|()| {
        match shape.dims() {
            [n, rest @ ..] if !rest.is_empty() => {
                Ok(Shape::new(&[&[copies * n][..], rest].concat()))
            }
            _ => Err(format!("x {shape:?}, expected [n, height, width, channels]")),
        }
    });
    let op = SamplerStep { copies, ..SamplerStep::of(Kind::ModelInput) };
    x.graph().record(op, &[coef, x], fits, x.graph().act())
}

/// The value that x and the network's answer stand for at this row, not clamped yet: x f32 `[n, h, w, c]` and an
/// [`Answer`] give f32 like x. Two answers are joined by classifier-free guidance, arXiv 2207.12598.
#[track_caller]
pub fn predict_value<'g>(x: Var<'g>, answer: impl Into<Answer<'g>>, coef: Var<'g>) -> Var<'g> {
    predict(Kind::Value, x, answer.into(), coef)
}

/// The clean picture at this row, whatever the method's value is; not clamped. For previews.
#[track_caller]
pub fn predict_x0<'g>(x: Var<'g>, answer: impl Into<Answer<'g>>, coef: Var<'g>) -> Var<'g> {
    predict(Kind::PredictX0, x, answer.into(), coef)
}

#[track_caller]
fn predict<'g>(kind: Kind, x: Var<'g>, answer: Answer<'g>, coef: Var<'g>) -> Var<'g> {
    let shape = x.shape();
    let pictures = shape.dims().first().copied().unwrap_or(0);
    let fits = check_coef(coef)
        .and_then(|()| check_latent("x", x, shape, 1))
        .and_then(|()| answer.check(shape.len()))
        .and_then(|()| match answer.factor {
            Some(factor) if factor.shape().len() != pictures => {
                Err(format!("x {shape:?} with {} factors", factor.shape().len()))
            }
            _ => Ok(shape),
        });
    let answers = match answer.prompted {
        Some(_) => Answers::Pair,
        None if answer.out.shape().len() == 2 * shape.len() => Answers::Joined,
        None => Answers::One,
    };
    let op = SamplerStep { answers, rescaled: answer.factor.is_some(), ..SamplerStep::of(kind) };
    let inputs = [Some(coef), Some(x), Some(answer.out), answer.prompted, answer.factor];
    let inputs: Vec<Var<'g>> = inputs.into_iter().flatten().collect();
    x.graph().record(op, &inputs, fits, Elem::F32)
}

/// The next sample: x, the row's value and noise are f32 of one shape, memory is f32 of [`MEMORY`] times as many
/// elements. A part whose coefficient is zero may hold anything; a value that is not finite is not clamped.
#[track_caller]
pub fn step<'g>(
    x: Var<'g>,
    value: Var<'g>,
    memory: Var<'g>,
    noise: Var<'g>,
    coef: Var<'g>,
) -> Var<'g> {
    let shape = x.shape();
    let fits = check_coef(coef)
        .and_then(|()| check_latent("x", x, shape, 1))
        .and_then(|()| check_latent("value", value, shape, 1))
        .and_then(|()| check_latent("memory", memory, shape, MEMORY))
        .and_then(|()| check_latent("noise", noise, shape, 1))
        .map(|()| shape);
    let op = SamplerStep::of(Kind::Step);
    x.graph().record(op, &[coef, x, value, memory, noise], fits, Elem::F32)
}

/// Writes what later rows need of x and the row's value into memory (a [`crate::graph::Graph::external`]), in place,
/// and returns it. Record it behind [`step`], which reads the memory as it was, and before x is assigned.
#[track_caller]
pub fn remember<'g>(memory: Var<'g>, x: Var<'g>, value: Var<'g>, coef: Var<'g>) -> Var<'g> {
    let fits = check_coef(coef)
        .and_then(|()| check_latent("value", value, x.shape(), 1))
        .and_then(|()| check_latent("memory", memory, x.shape(), MEMORY))
        .map(|()| memory.shape());
    let op = SamplerStep::of(Kind::Remember);
    x.graph().record(op, &[memory, coef, x, value], fits, Elem::F32)
}

fn spec(reference: bool, op: &SamplerStep, a: Elem, b: Elem, out: Elem) -> Spec {
    match reference {
        true => Spec::new(REFERENCE).alias("acta", a).alias("actb", b).alias("out", out),
        false => Spec::new(FAST).alias4("acta", a).alias4("actb", b).alias4("out", out),
    }
    .u32("KIND", op.kind as u32)
    .u32("ANSWERS", op.answers as u32)
    .flag("RESCALED", op.rescaled)
}

impl SamplerStep {
    /// coef, x, a, b, noise, factor, as the shader binds them.
    fn bound<'a>(&self, inputs: &'a [Operand]) -> [Option<&'a Operand>; 6] {
        let at = |i: usize| inputs.get(i);
        match self.kind {
            Kind::ModelInput => [at(0), at(1), None, None, None, None],
            Kind::Step => [at(0), at(1), at(2), at(3), at(4), None],
            Kind::Remember => [at(1), at(2), at(3), None, None, None],
            Kind::Value | Kind::PredictX0 => {
                let pair = self.answers == Answers::Pair;
                let factor = if pair { 4 } else { 3 };
                [at(0), at(1), at(2), at(3).filter(|_| pair), None, at(factor)]
            }
        }
    }
}

impl Op for SamplerStep {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::ModelInput => "model_input",
            Kind::Value => "predict_value",
            Kind::PredictX0 => "predict_x0",
            Kind::Step => "sampler_step",
            Kind::Remember => "sampler_remember",
        }
    }
    fn in_place(&self) -> Option<usize> {
        (self.kind == Kind::Remember).then_some(0)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let y = cx.output().clone();
        let inputs = cx.inputs().to_vec();
        let bound = self.bound(&inputs);
        let (n, item) = bound[1].map_or((0, 1), |x| {
            let items = x.shape.dims().first().copied().unwrap_or(1).max(1);
            (x.shape.len(), (x.shape.len() / items).max(1))
        });
        let reference = cx.reference() || !item.is_multiple_of(4);
        let cell = if reference { 1 } else { 4 };
        let n = n / cell;
        let p = Params {
            n: n as u32,
            copies: self.copies as u32,
            item: (item / cell) as u32,
            ..Default::default()
        };
        let elem = |operand: Option<&Operand>| operand.map_or(Elem::F32, |o| o.elem);
        let spec = spec(reference, self, elem(bound[2]), elem(bound[3]), y.elem);
        let dispatch = bound.iter().fold(Dispatch::new(spec, &p), |d, operand| d.arg(*operand));
        cx.dispatch(dispatch.arg(&y).linear(n * self.copies, 64).trips(4))
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for reference in [true, false] {
        for elem in ACTS {
            let input = SamplerStep::of(Kind::ModelInput);
            specs.push(spec(reference, &input, Elem::F32, Elem::F32, elem));
            for kind in [Kind::Value, Kind::PredictX0] {
                for answers in [Answers::One, Answers::Joined, Answers::Pair] {
                    let b = if answers == Answers::Pair { elem } else { Elem::F32 };
                    for rescaled in [false, true] {
                        let op = SamplerStep { answers, rescaled, ..SamplerStep::of(kind) };
                        specs.push(spec(reference, &op, elem, b, Elem::F32));
                    }
                }
            }
        }
        for kind in [Kind::Step, Kind::Remember] {
            let op = SamplerStep::of(kind);
            specs.push(spec(reference, &op, Elem::F32, Elem::F32, Elem::F32));
        }
    }
    vec![OpInfo { name: "sampler", specs, params: Params::FIELDS }]
}
