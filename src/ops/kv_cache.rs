//! Writing keys and values of new tokens into a cache that outlives the plan.

use std::any::Any;

use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Var};
use crate::{Result, params, source};

const FAST: Source = source!("kv_cache.wgsl");
const REFERENCE: Source = source!("reference/kv_cache.wgsl");

params! {
    /// `struct Params` of the shaders.
    pub struct Params {
        pub n: u32,
        pub rows: u32,
        pub context: u32,
        pub c: u32,
    }
}

/// Inputs: cache `[B, context, C]`, x `[B, S, C]`, start u32 `[1]`. The output is the cache itself.
#[derive(Clone, Copy, Debug)]
struct KvWrite;

/// Writes x `[B, S, C]` into rows `start .. start + S` of cache `[B, context, C]`, in place, and returns the
/// cache. Rows beyond the context are dropped.
#[track_caller]
pub fn kv_write<'g>(cache: Var<'g>, x: Var<'g>, start: Var<'g>) -> Var<'g> {
    let (sc, sx) = (cache.shape(), x.shape());
    let fits = if sc.rank() != 3 || sx.rank() != 3 || sc.dims()[0] != sx.dims()[0] {
        Err(format!("x {sx:?} into a cache {sc:?}"))
    } else if sc.last() != sx.last() || cache.elem() != x.elem() {
        Err(format!("x {sx:?} {:?} into a cache {sc:?} {:?}", x.elem(), cache.elem()))
    } else if start.elem() != Elem::U32 || start.shape().len() != 1 {
        Err(format!("start must be one u32, not {:?} {:?}", start.shape(), start.elem()))
    } else {
        Ok(sc)
    };
    cache.graph().record(KvWrite, &[cache, x, start], fits, cache.elem())
}

impl Op for KvWrite {
    fn name(&self) -> &'static str {
        "kv_write"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn in_place(&self) -> Option<usize> {
        Some(0)
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (x, start, cache) = (cx.input(1)?.clone(), cx.input(2)?.clone(), cx.output().clone());
        let (sx, context) = (x.shape.dims(), cache.shape.dims()[1]);
        let wide = !cx.reference() && x.shape.last().is_multiple_of(4);
        let cell = if wide { 4 } else { 1 };
        let n = x.shape.len() / cell;
        let p = Params {
            n: n as u32,
            rows: sx[1] as u32,
            context: context as u32,
            c: (x.shape.last() / cell) as u32,
        };
        let dispatch = Dispatch::new(spec(cx.reference(), wide, x.elem), &p)
            .arg(&x)
            .arg(&start)
            .arg(&cache)
            .linear(n, 64);
        cx.dispatch(dispatch)
    }
}

fn spec(reference: bool, wide: bool, elem: Elem) -> Spec {
    let spec = Spec::new(if reference { REFERENCE } else { FAST });
    if wide { spec.alias4("cell", elem) } else { spec.alias("cell", elem) }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let specs = ACTS
        .iter()
        .flat_map(|e| [spec(true, false, *e), spec(false, false, *e), spec(false, true, *e)])
        .collect();
    vec![OpInfo { name: "kv_cache", specs, params: Params::FIELDS }]
}

/// The truth: the cache `[batch, context, c]` after x `[batch, s, c]` was written at `start`.
pub fn oracle(cache: &[f32], x: &[f32], batch: usize, c: usize, start: usize) -> Vec<f64> {
    let mut out: Vec<f64> = cache.iter().map(|v| f64::from(*v)).collect();
    let (context, rows) = (cache.len() / batch / c, x.len() / batch / c);
    for (i, v) in x.iter().enumerate() {
        let (b, s) = (i / c / rows, i / c % rows);
        if start + s < context {
            out[(b * context + start + s) * c + i % c] = f64::from(*v);
        }
    }
    out
}
