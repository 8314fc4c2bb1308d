//! Sums and sums of squares of what a layer reads, over runs: the importance of its inputs, and their mean.

use std::any::Any;

use super::OpInfo;
use super::gram::{Columns, Params, Walk, spec, specs};
use crate::Result;
use crate::gpu::{Elem, Source};
use crate::graph::{Lower, Op, Shape, Var};
use crate::source;

const FAST: Source = source!("moments.wgsl");
const REFERENCE: Source = source!("reference/moments.wgsl");

/// Inputs: s f32 `[3, K]`, and x.
#[derive(Clone, Copy, Debug)]
struct Moments(Walk);

/// Adds to `s` (a [`Graph::external`](crate::graph::Graph::external) f32 `[3, K]`) the sum of each of the K columns of
/// X, the sum of its squares, and the number of rows. X is as for [`gram`](super::gram::gram). Returns s,
/// which has to be an output to be computed.
#[track_caller]
pub fn moments<'g>(s: Var<'g>, x: Var<'g>, walk: Walk) -> Var<'g> {
    let shape = s.shape();
    let fits = walk.size(x).and_then(|[_, k]| {
        match shape == Shape::new(&[3, k]) && s.elem() == Elem::F32 {
            true => Ok(shape),
            false => Err(format!("s {shape:?} of {:?} for {k} columns", s.elem())),
        }
    });
    s.graph().record(Moments(walk), &[s, x], fits, Elem::F32)
}

impl Op for Moments {
    fn name(&self) -> &'static str {
        "moments"
    }
    fn in_place(&self) -> Option<usize> {
        Some(0)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let k = cx.output().shape.last();
        let (params, eights) = Columns { walk: self.0, range: [0, k], every: 1 }.params(cx)?;
        let fast = eights && !cx.reference();
        let x = cx.input(1)?.elem;
        for p in params {
            let dispatch = Columns::dispatch(cx, spec([FAST, REFERENCE], fast, x), &p)?;
            let rows = (p.m - p.m0) as usize;
            let items = if fast { k / 8 } else { k };
            cx.dispatch(dispatch.linear(items, 64).flops(3 * rows * k))?;
        }
        Ok(())
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let specs = specs([FAST, REFERENCE]);
    vec![OpInfo { name: "moments", specs, params: Params::FIELDS }]
}

/// The truth, in f64: sums, sums of squares and number of rows, `[3, K]`.
pub fn oracle(rows: &[Vec<f64>]) -> Vec<f64> {
    let k = rows.first().map_or(0, Vec::len);
    let sum = |f: &dyn Fn(f64) -> f64| -> Vec<f64> {
        (0..k).map(|j| rows.iter().map(|row| f(row[j])).sum()).collect()
    };
    [sum(&|v| v), sum(&|v| v * v), sum(&|_| 1.0)].concat()
}
