//! The loop of a diffusion sampler on the GPU: what the network reads, the clean picture, the next sample.
//! The coefficients are data ([`crate::diffusion::sampler`] makes the table), so one plan serves every step.

use std::any::Any;

use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Shape, Var};
use crate::{Result, params, source};

const FAST: Source = source!("sampler.wgsl");
const REFERENCE: Source = source!("reference/sampler.wgsl");

/// Floats in the `coef` input: the 12 of [`crate::diffusion::sampler::StepCoefficients`] in memory order,
/// then guidance, then zeros.
pub const COEFFICIENTS: usize = 16;

params! {
    pub struct Params {
        pub n: u32,
        pub batch: u32,
        pub pad0: u32,
        pub pad1: u32,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ModelInput = 0,
    PredictX0 = 1,
    Step = 2,
}

/// Inputs: coef, then x, and what the kind reads besides.
#[derive(Clone, Copy, Debug)]
struct SamplerStep {
    kind: Kind,
    batch: usize,
}

fn check_coef(coef: Var<'_>) -> Result<(), String> {
    if coef.shape().len() == COEFFICIENTS && coef.elem() == Elem::F32 {
        return Ok(());
    }
    Err(format!("coef {:?} of {:?}, expected f32 [{COEFFICIENTS}]", coef.shape(), coef.elem()))
}

fn check_latent(name: &str, v: Var<'_>, like: Shape) -> Result<(), String> {
    if v.shape().len() == like.len() && v.elem() == Elem::F32 {
        return Ok(());
    }
    Err(format!("{name} {:?} of {:?}, expected f32 {like:?}", v.shape(), v.elem()))
}

/// `input_scale · x` for each item of a batch: x f32 `[1, h, w, c]` gives `[batch, h, w, c]` in the graph's
/// activation type.
#[track_caller]
pub fn model_input<'g>(x: Var<'g>, coef: Var<'g>, batch: usize) -> Var<'g> {
    let shape = x.shape();
    let fits =
        check_coef(coef).and_then(|()| check_latent("x", x, shape)).and_then(|()| {
            match shape.dims() {
                [1, rest @ ..] => Ok(Shape::new(&[&[batch][..], rest].concat())),
                _ => Err(format!("x {shape:?}, expected [1, height, width, channels]")),
            }
        });
    let op = SamplerStep { kind: Kind::ModelInput, batch };
    x.graph().record(op, &[coef, x], fits, x.graph().act())
}

/// The clean picture that x and the network's answer stand for: x f32 `[1, h, w, c]` and out
/// `[2, h, w, c]` (without the prompt, then with it; joined by classifier-free guidance, arXiv 2207.12598)
/// or `[1, h, w, c]` give f32 like x. Values that are not finite are not clamped.
#[track_caller]
pub fn predict_x0<'g>(x: Var<'g>, out: Var<'g>, coef: Var<'g>) -> Var<'g> {
    let (shape, answer) = (x.shape(), out.shape());
    let batch = answer.len() / shape.len().max(1);
    let fits = check_coef(coef).and_then(|()| check_latent("x", x, shape)).and_then(|()| {
        if matches!(batch, 1 | 2) && answer.len() == batch * shape.len() && out.elem() != Elem::U32
        {
            Ok(shape)
        } else {
            Err(format!(
                "x {shape:?} with a network's answer {answer:?}, expected one or two items"
            ))
        }
    });
    let op = SamplerStep { kind: Kind::PredictX0, batch };
    x.graph().record(op, &[coef, x, out], fits, Elem::F32)
}

/// The next sample: x, x0, the x0 of the step before and fresh noise, all f32 of one shape. A part whose
/// coefficient is zero may hold anything.
#[track_caller]
pub fn step<'g>(
    x: Var<'g>,
    x0: Var<'g>,
    x0_prev: Var<'g>,
    noise: Var<'g>,
    coef: Var<'g>,
) -> Var<'g> {
    let shape = x.shape();
    let fits = check_coef(coef)
        .and_then(|()| check_latent("x", x, shape))
        .and_then(|()| check_latent("x0", x0, shape))
        .and_then(|()| check_latent("x0_prev", x0_prev, shape))
        .and_then(|()| check_latent("noise", noise, shape))
        .map(|()| shape);
    let op = SamplerStep { kind: Kind::Step, batch: 1 };
    x.graph().record(op, &[coef, x, x0, x0_prev, noise], fits, Elem::F32)
}

fn spec(reference: bool, kind: Kind, answer: Elem, out: Elem) -> Spec {
    match reference {
        true => Spec::new(REFERENCE).alias("acta", answer).alias("out", out),
        false => Spec::new(FAST).alias4("acta", answer).alias4("out", out),
    }
    .u32("KIND", kind as u32)
}

impl Op for SamplerStep {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::ModelInput => "model_input",
            Kind::PredictX0 => "predict_x0",
            Kind::Step => "sampler_step",
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (coef, x, y) = (cx.input(0)?.clone(), cx.input(1)?.clone(), cx.output().clone());
        let n = x.shape.len();
        let reference = cx.reference() || !n.is_multiple_of(4);
        let n = if reference { n } else { n / 4 };
        let p = Params { n: n as u32, batch: self.batch as u32, ..Default::default() };
        let answer = cx.inputs().get(2);
        let elem = answer.map_or(Elem::F32, |a| a.elem);
        let dispatch = Dispatch::new(spec(reference, self.kind, elem, y.elem), &p)
            .arg(&coef)
            .arg(&x)
            .arg(answer)
            .arg(cx.inputs().get(3))
            .arg(cx.inputs().get(4))
            .arg(&y)
            .linear(if self.kind == Kind::ModelInput { n * self.batch } else { n }, 64);
        cx.dispatch(dispatch)
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for reference in [true, false] {
        for elem in ACTS {
            specs.push(spec(reference, Kind::ModelInput, Elem::F32, elem));
            specs.push(spec(reference, Kind::PredictX0, elem, Elem::F32));
        }
        specs.push(spec(reference, Kind::Step, Elem::F32, Elem::F32));
    }
    vec![OpInfo { name: "sampler", specs, params: Params::FIELDS }]
}
