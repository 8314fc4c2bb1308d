//! Sinusoidal embedding of the diffusion timestep.

use std::any::Any;

use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Shape, Var};
use crate::{Result, params, source};

const FAST: Source = source!("timestep.wgsl");
const REFERENCE: Source = source!("reference/timestep.wgsl");
const SIN_COS: Source = source!("parts/sin_cos.wgsl");

/// Period of the slowest pair, in multiples of 2π (diffusers' default).
const MAX_PERIOD: f64 = 10_000.0;

params! {
    pub struct Params {
        pub batch: u32,
        pub dim: u32,
        pub half: u32,
        pub cos_first: u32,
    }
}

/// Inputs: t `[B]` and the frequencies `[dim/2]`, both f32.
#[derive(Clone, Copy, Debug)]
struct Timestep {
    cos_first: bool,
}

/// diffusers' `get_timestep_embedding`: t f32 `[B]` gives `[B, dim]`, sines first, or cosines first with
/// `flip_sin_to_cos`; `shift` is `downscale_freq_shift`. Angles to 2²⁴ are reduced exactly.
#[track_caller]
pub fn timestep_embedding(t: Var<'_>, dim: usize, flip_sin_to_cos: bool, shift: f32) -> Var<'_> {
    let (shape, half) = (t.shape(), dim / 2);
    let fits = if t.elem() != Elem::F32 || shape.rank() != 1 {
        Err(format!("t {shape:?} of {:?}, expected f32 [batch]", t.elem()))
    } else if half == 0 || half as f32 <= shift {
        Err(format!("{dim} channels with a frequency shift of {shift}"))
    } else {
        Ok(Shape::new(&[shape.len(), dim]))
    };
    let graph = t.graph();
    let freq = graph.literal_f32([half], frequencies(half, shift));
    graph.record(Timestep { cos_first: flip_sin_to_cos }, &[t, freq], fits, graph.act())
}

/// exp(−ln(10000) · i / (half − shift)), rounded to f32 where diffusers rounds, because networks were
/// trained on those values: at t = 1000 one unit in the last place turns the angle by 6e-5.
fn frequencies(half: usize, shift: f32) -> Vec<f32> {
    let scale = -MAX_PERIOD.ln() as f32;
    let exponent = |i: usize| scale * i as f32 / (half as f32 - shift);
    (0..half).map(|i| f64::from(exponent(i)).exp() as f32).collect()
}

fn spec(reference: bool, elem: Elem) -> Spec {
    Spec::new(if reference { REFERENCE } else { FAST }).part(SIN_COS).alias("act", elem)
}

impl Op for Timestep {
    fn name(&self) -> &'static str {
        "timestep_embedding"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (t, freq, y) = (cx.input(0)?.clone(), cx.input(1)?.clone(), cx.output().clone());
        let (batch, dim) = (y.shape.rows(), y.shape.last());
        let p = Params {
            batch: batch as u32,
            dim: dim as u32,
            half: freq.shape.len() as u32,
            cos_first: u32::from(self.cos_first),
        };
        let items = if cx.reference() { batch * dim } else { batch * dim.div_ceil(2) };
        let dispatch = Dispatch::new(spec(cx.reference(), y.elem), &p)
            .arg(&t)
            .arg(&freq)
            .arg(&y)
            .linear(items, 64);
        cx.dispatch(dispatch)
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let specs = ACTS.into_iter().flat_map(|e| [true, false].map(|reference| spec(reference, e)));
    vec![OpInfo { name: "timestep_embedding", specs: specs.collect(), params: Params::FIELDS }]
}

/// The truth: sine and cosine in f64 of the f32 angle that diffusers computes. t `[B]` → `[B, dim]`.
pub fn oracle(t: &[f32], dim: usize, flip_sin_to_cos: bool, shift: f32) -> Vec<f64> {
    let freq = frequencies(dim / 2, shift);
    let mut y = Vec::with_capacity(t.len() * dim);
    for t in t {
        let angles = || freq.iter().map(|f| f64::from(t * f));
        let (sines, cosines) = (angles().map(f64::sin), angles().map(f64::cos));
        match flip_sin_to_cos {
            true => y.extend(cosines.chain(sines)),
            false => y.extend(sines.chain(cosines)),
        }
        y.resize(y.len() + dim % 2, 0.0);
    }
    y
}
