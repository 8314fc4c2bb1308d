//! Softmax over the last axis: `y = exp(x − max) / Σ exp(x − max)`.

use std::any::Any;

use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Var};
use crate::{Result, params, source};

const FAST: Source = source!("softmax.wgsl");
const REFERENCE: Source = source!("reference/softmax.wgsl");
const REDUCE_ALL_ONE: Source = source!("parts/reduce_all_one.wgsl");
const REDUCE_ALL_WORKGROUP: Source = source!("parts/reduce_all_workgroup.wgsl");

params! {
    /// `struct Params` of the shaders.
    pub struct Params {
        pub rows: u32,
        pub c: u32,
        pub pad0: u32,
        pub pad1: u32,
    }
}

/// Longest row that one invocation takes alone; longer ones would come near the limit of loop iterations.
const ALONE: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Softmax;

/// Softmax over the last axis, of any shape and length.
#[track_caller]
pub fn softmax(x: Var<'_>) -> Var<'_> {
    let shape = x.shape();
    let fits = if shape.is_empty() { Err(format!("nothing in {shape:?}")) } else { Ok(shape) };
    x.graph().record(Softmax, &[x], fits, x.elem())
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (x, y) = (cx.input(0)?.clone(), cx.output().clone());
        let (rows, c) = (x.shape.len() / x.shape.last(), x.shape.last());
        let p = Params { rows: rows as u32, c: c as u32, ..Default::default() };
        let wg = match cx.software() {
            true if c <= ALONE => 0,
            true => 32,
            false if c <= ALONE => 64,
            false => 256.min(cx.caps.max_workgroup_invocations),
        };
        // The reference is one invocation a row: beyond its limit, many lanes of the fast one.
        let dispatch = if cx.reference() && 3 * c <= 30_000 {
            Dispatch::new(reference(x.elem), &p).linear(rows, 64).trips(3 * c)
        } else if wg == 0 {
            Dispatch::new(spec(x.elem, None), &p).linear(rows, 64).trips(3 * c)
        } else {
            let trips = 3 * c.div_ceil(wg as usize) + 16;
            Dispatch::new(spec(x.elem, Some(wg)), &p).linear(rows, 1).trips(trips)
        };
        cx.dispatch(dispatch.arg(&x).arg(&y).flops(4 * x.shape.len()))
    }
}

fn reference(elem: Elem) -> Spec {
    Spec::new(REFERENCE).alias("act", elem)
}

/// With the workgroup's size where a workgroup shares a row.
fn spec(elem: Elem, lanes: Option<u32>) -> Spec {
    let spec = Spec::new(FAST).alias("act", elem).u32("LANES", lanes.unwrap_or(1));
    match lanes {
        Some(lanes) => spec.u32("WG_X", lanes).part(REDUCE_ALL_WORKGROUP),
        None => spec.u32("WG_X", 64).part(REDUCE_ALL_ONE),
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let lanes = [None, Some(32), Some(64), Some(256)];
    let fast = ACTS.iter().flat_map(|e| lanes.map(|l| spec(*e, l)));
    let specs = fast.chain(ACTS.map(reference)).collect();
    vec![OpInfo { name: "softmax", specs, params: Params::FIELDS }]
}

/// The truth: rows of length `c`.
pub fn oracle(x: &[f32], c: usize) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(c) {
        let most = row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(f64::from(*v)));
        let exp: Vec<f64> = row.iter().map(|v| (f64::from(*v) - most).exp()).collect();
        let sum: f64 = exp.iter().sum();
        y.extend(exp.iter().map(|e| e / sum));
    }
    y
}
