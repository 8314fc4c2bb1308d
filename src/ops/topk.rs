//! The largest logits: the choice of a token without reading a vocabulary back.

use std::any::Any;

use super::OpInfo;
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, MAX_TRIPS, Op, Shape, Var};
use crate::{Result, params, source};

const FAST: Source = source!("topk.wgsl");
const ARGMAX: Source = source!("topk_argmax.wgsl");
const REFERENCE: Source = source!("reference/topk.wgsl");
const SCAN: Source = source!("parts/candidate_scan.wgsl");
const CANDIDATE: Source = source!("parts/candidate.wgsl");

/// The id that stands for "some logit is not finite".
pub const NOT_FINITE: u32 = u32::MAX;
/// Largest k of [`top_k`].
pub const MAX_K: usize = 64;

/// Numbers that one workgroup goes through for the largest alone, or one invocation of the reference.
const SEGMENT: usize = 4096;
/// Numbers that each lane goes through for k of them: k lanes' numbers are what a workgroup has memory for.
const EACH: usize = 16;

params! {
    pub struct Params {
        pub n: u32,
        pub k: u32,
        pub segment: u32,
        pub segments: u32,
        pub pairs: u32,
        pub ids_only: u32,
        pub pad0: u32,
        pub pad1: u32,
    }
}

#[derive(Clone, Copy, Debug)]
struct TopK {
    k: usize,
    ids_only: bool,
}

/// The place of the largest number: x f32 `[1, V]` gives u32 `[1]`. The lowest among equals;
/// [`NOT_FINITE`] if any number is infinite or NaN.
#[track_caller]
pub fn argmax(x: Var<'_>) -> Var<'_> {
    record(x, TopK { k: 1, ids_only: true })
}

/// The k largest numbers of x f32 `[1, V]`, k ≤ [`MAX_K`], as u32 `[2k]`: the bits of k f32, largest first
/// (−0 as 0), then their k places, the lower first among equals. If any number is infinite or NaN, all are
/// NaN and all places are [`NOT_FINITE`].
#[track_caller]
pub fn top_k(x: Var<'_>, k: usize) -> Var<'_> {
    record(x, TopK { k, ids_only: false })
}

#[track_caller]
fn record(x: Var<'_>, op: TopK) -> Var<'_> {
    let (shape, k) = (x.shape(), op.k);
    let fits = if x.elem() != Elem::F32 || shape.rows() != 1 {
        Err(format!("x {shape:?} of {:?}, expected f32 [1, vocabulary]", x.elem()))
    } else if k == 0 || k > MAX_K || k > shape.len() {
        Err(format!("k is {k} of {} numbers; valid: 1 to {MAX_K}", shape.len()))
    } else {
        Ok(Shape::new(&[if op.ids_only { k } else { 2 * k }]))
    };
    x.graph().record(op, &[x], fits, Elem::U32)
}

/// Which kernel, with how many lanes to a workgroup.
#[derive(Clone, Copy, Debug)]
enum Variant {
    Reference,
    Argmax(u32),
    /// At least [`MAX_K`] lanes.
    Ranks(u32),
}

fn spec(variant: Variant) -> Spec {
    match variant {
        Variant::Reference => Spec::new(REFERENCE),
        Variant::Argmax(lanes) => Spec::new(ARGMAX).part(SCAN).u32("LANES", lanes),
        Variant::Ranks(lanes) => Spec::new(FAST).part(SCAN).u32("LANES", lanes),
    }
    .part(CANDIDATE)
}

impl Op for TopK {
    fn name(&self) -> &'static str {
        if self.ids_only { "argmax" } else { "top_k" }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }

    /// Each dispatch keeps k of every segment, until one segment is left.
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (k, y) = (self.k, cx.output().clone());
        let variant = match (cx.reference(), k, cx.software()) {
            (true, ..) => Variant::Reference,
            (_, 1, software) => Variant::Argmax(if software { 64 } else { 256 }),
            (_, _, software) => Variant::Ranks(if software { 128 } else { 256 }),
        };
        let segment = match variant {
            Variant::Reference => SEGMENT.min(MAX_TRIPS as usize / (k + 1)),
            Variant::Argmax(_) => SEGMENT,
            Variant::Ranks(lanes) => EACH * lanes as usize,
        };
        let mut x = cx.input(0)?.clone();
        let mut n = x.shape.len();
        let mut pairs = false;
        loop {
            let segments = n.div_ceil(segment);
            let last = segments == 1;
            let to = if last { y.clone() } else { cx.scratch([2 * segments * k], Elem::U32) };
            let p = Params {
                n: n as u32,
                k: k as u32,
                segment: segment as u32,
                segments: segments as u32,
                pairs: u32::from(pairs),
                ids_only: u32::from(last && self.ids_only),
                ..Default::default()
            };
            let dispatch = Dispatch::new(spec(variant), &p).arg(&x).arg(&to);
            cx.dispatch(match variant {
                Variant::Reference => dispatch.linear(segments, 64).trips((k + 1) * segment.min(n)),
                Variant::Argmax(lanes) => {
                    let scan = segment.div_ceil(lanes as usize);
                    dispatch.groups(segments, 1, 1).trips(scan + lanes.ilog2() as usize)
                }
                Variant::Ranks(lanes) => {
                    let (lanes, most) = (lanes as usize, EACH * MAX_K);
                    let ranks = most.div_ceil(lanes) * (1 + most);
                    dispatch.groups(segments, 1, 1).trips(2 * EACH + lanes + ranks + MAX_K)
                }
            })?;
            if last {
                return Ok(());
            }
            (x, n, pairs) = (to, segments * k, true);
        }
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let specs = [
        Variant::Reference,
        Variant::Argmax(64),
        Variant::Argmax(256),
        Variant::Ranks(128),
        Variant::Ranks(256),
    ];
    let specs = specs.map(spec).to_vec();
    vec![OpInfo { name: "top_k", specs, params: Params::FIELDS }]
}

/// The truth: the k largest and their places; None if any number is not finite.
pub fn oracle(x: &[f32], k: usize) -> Option<Vec<(f32, u32)>> {
    let mut all: Vec<(f32, u32)> = x.iter().copied().zip(0..).collect();
    if all.iter().any(|(v, _)| !v.is_finite()) {
        return None;
    }
    // A stable sort keeps the lower place first among equals.
    all.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(std::cmp::Ordering::Equal));
    all.truncate(k);
    Some(all)
}
