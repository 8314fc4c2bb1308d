//! Writing keys and values of new tokens into a cache that outlives the plan.

use std::any::Any;

use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Operand, Var};
use crate::{Result, params, source};

const FAST: Source = source!("kv_cache.wgsl");
const REFERENCE: Source = source!("reference/kv_cache.wgsl");
const Q8: Source = source!("kv_cache_q8.wgsl");
const Q8_REFERENCE: Source = source!("reference/kv_cache_q8.wgsl");
const REDUCE_ALL_ONE: Source = source!("parts/reduce_all_one.wgsl");
const REDUCE_ALL_WORKGROUP: Source = source!("parts/reduce_all_workgroup.wgsl");

params! {
    /// `struct Params` of the shaders.
    pub struct Params {
        pub n: u32,
        pub rows: u32,
        pub context: u32,
        pub c: u32,
    }
}

params! {
    /// `struct Params` of the shaders for a cache of eight bits.
    pub struct Q8Params {
        pub n: u32,
        pub rows: u32,
        pub context: u32,
        pub heads: u32,
        pub cells: u32,
        pub pad0: u32,
        pub pad1: u32,
        pub pad2: u32,
    }
}

/// Words of a row of a cache of eight bits: four channels in a word, and one f32 scale for each head. In
/// memory the channels of all rows come first, then the scales of all rows.
pub fn q8_words(heads: usize, d: usize) -> usize {
    heads * d / 4 + heads
}

/// Heads of a cache of eight bits (u32 `[1, context, words]`) that holds rows of `width` channels; None where
/// the two do not belong together.
pub fn q8_heads(words: usize, width: usize) -> Option<usize> {
    let heads = words.checked_sub(width / 4).filter(|h| *h > 0)?;
    width.is_multiple_of(4 * heads).then_some(heads)
}

/// Inputs: cache `[B, context, C]`, x `[B, S, C]`, start u32 `[1]`. The output is the cache itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvWrite {
    /// Whether what makes x may write it itself: one item of floats.
    plain: bool,
}

impl KvWrite {
    /// Whether an op that makes input `slot` can write its rows into the cache itself.
    pub(super) fn takes_rows(self, slot: usize) -> bool {
        self.plain && slot == 1
    }
}

/// Writes x `[B, S, C]` into rows `start .. start + S` of cache `[B, context, C]`, in place, and returns the
/// cache. Rows beyond the context are dropped. A cache of u32 `[1, context, `[`q8_words`]`]` keeps eight bits.
#[track_caller]
pub fn kv_write<'g>(cache: Var<'g>, x: Var<'g>, start: Var<'g>) -> Var<'g> {
    let (sc, sx) = (cache.shape(), x.shape());
    let fits = if sc.rank() != 3 || sx.rank() != 3 || sc.dims()[0] != sx.dims()[0] {
        Err(format!("x {sx:?} into a cache {sc:?}"))
    } else if cache.elem() == Elem::U32 {
        match q8_heads(sc.last(), sx.last()) {
            Some(_) if sc.dims()[0] == 1 => Ok(sc),
            _ => Err(format!("x {sx:?} into a cache {sc:?} of eight bits")),
        }
    } else if sc.last() != sx.last() || cache.elem() != x.elem() {
        Err(format!("x {sx:?} {:?} into a cache {sc:?} {:?}", x.elem(), cache.elem()))
    } else if start.elem() != Elem::U32 || start.shape().len() != 1 {
        Err(format!("start must be one u32, not {:?} {:?}", start.shape(), start.elem()))
    } else {
        Ok(sc)
    };
    let plain = cache.elem() != Elem::U32 && cache.dim(0) == 1;
    cache.graph().record(KvWrite { plain }, &[cache, x, start], fits, cache.elem())
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
        if cache.elem == Elem::U32 {
            return eight_bits(cx, [&x, &start, &cache]);
        }
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

fn eight_bits(cx: &mut Lower<'_>, [x, start, cache]: [&Operand; 3]) -> Result<()> {
    let (rows, width) = (x.shape.rows(), x.shape.last());
    let Some(heads) = q8_heads(cache.shape.last(), width) else {
        unreachable!("the shape rule lets whole heads pass")
    };
    let cells = width / heads / 4;
    let reference = cx.reference();
    let lanes = if cx.software() { None } else { Some(32) };
    let n = if reference { rows * heads * cells } else { rows * heads };
    let p = Q8Params {
        n: n as u32,
        rows: rows as u32,
        context: cache.shape.dims()[1] as u32,
        heads: heads as u32,
        cells: cells as u32,
        ..Default::default()
    };
    let (spec, per_group, trips) = match reference {
        true => (q8_reference(x.elem), 64, 4 * cells + 4),
        false => {
            let trips = 2 * cells.div_ceil(lanes.unwrap_or(1) as usize) + 8;
            (q8_spec(x.elem, lanes), if lanes.is_some() { 1 } else { 64 }, trips)
        }
    };
    let dispatch = Dispatch::new(spec, &p).arg(x).arg(start).arg(cache);
    cx.dispatch(dispatch.linear(n, per_group).trips(trips))
}

fn q8_reference(elem: Elem) -> Spec {
    Spec::new(Q8_REFERENCE).alias("act", elem)
}

/// With the workgroup's size where a workgroup shares a head.
fn q8_spec(elem: Elem, lanes: Option<u32>) -> Spec {
    let spec = Spec::new(Q8).alias4("act4", elem);
    let spec = spec.u32("LANES", lanes.unwrap_or(1)).u32("WG_X", lanes.unwrap_or(64));
    spec.part(if lanes.is_some() { REDUCE_ALL_WORKGROUP } else { REDUCE_ALL_ONE })
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
    let eight = ACTS
        .iter()
        .flat_map(|e| [q8_reference(*e), q8_spec(*e, None), q8_spec(*e, Some(32))])
        .collect();
    vec![
        OpInfo { name: "kv_cache", specs, params: Params::FIELDS },
        OpInfo { name: "kv_cache_q8", specs: eight, params: Q8Params::FIELDS },
    ]
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

/// The truth of eight bits: x `[rows, heads, d]` in words as a row of the cache keeps them, channels then
/// scales.
pub fn oracle_q8(x: &[f32], heads: usize, d: usize) -> Vec<(Vec<i8>, f32)> {
    debug_assert!(x.len().is_multiple_of(heads * d));
    let head = |x: &[f32]| {
        let top = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let inverse = if top == 0.0 { 0.0 } else { 127.0 / top };
        let codes = x.iter().map(|v| (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i8);
        (codes.collect(), top / 127.0)
    };
    x.chunks_exact(d).map(head).collect()
}
