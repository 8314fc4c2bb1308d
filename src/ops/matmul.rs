//! Matrix multiplication with a packed weight: `y = activation(x · wᵀ + bias) + residual`, or times it, or into a cache.

pub mod beside;
pub(super) mod coop;
pub mod gated;
mod geglu;
pub mod joint;
pub(super) mod pieces;
mod turned;
mod variant;

use std::any::Any;
use std::rc::Rc;

use variant::{ACTIVATION, Form, Variant, merge, spec};
pub(super) use variant::{
    EPILOGUE_TRIPS, LANES_COLUMNS, PARTIAL, TILE64, VEC_WG, X_SCALAR, X_VEC, adding, lanes_trips,
};
pub(crate) use variant::{info, parts};

use super::gather::gather;
use super::kv_cache::KvWrite;
use super::pointwise::{Act, Binary, BinaryKind, Unary};
use super::round8::{Codes, rounded};
use crate::gpu::{Elem, Spec};
use crate::graph::{
    Arg, Chunk, Dispatch, Joint, Lower, Op, Operand, Var, Vector, Weight, dot_part, several_part,
    weight_part,
};
use crate::quant::Format;
use crate::{Result, params};

/// Rows of x up to which one output per group of lanes beats a register tile.
pub(crate) const VEC_ROWS: usize = 4;

params! {
    pub struct Params {
        pub m: u32,
        pub n: u32,
        pub k: u32,
        pub n0: u32,
        pub n_total: u32,
        pub blocks: u32,
        pub m0: u32,
        pub context: u32,
        pub begins: [u32; 4],
        pub cubic: [f32; 4],
    }
}

/// What else goes into the result, stored as activations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    None,
    /// A residual `[.., N]`.
    Add,
    /// The other half of a gated unit, `[.., N]`.
    Multiply,
    /// No input: the second half of the product gates the first.
    Geglu,
    /// No input: the first half gates the second.
    Gate,
    /// No input: rows of three weights in one, each into an output of its own.
    Three,
}

impl Tail {
    /// Whether both halves of the weight's rows meet in one output.
    fn halves(self) -> bool {
        matches!(self, Tail::Geglu | Tail::Gate)
    }
}

/// Inputs: x `[.., K]`; the tail `[.., N]` if there is one; of a product that goes into a cache, the cache `[1, context, N]`
/// and u32 `[1]`, its first row there.
#[derive(Clone, Debug)]
pub struct Matmul {
    pub(super) weight: Weight,
    pub(super) bias: Option<Vector>,
    pub(super) act: Act,
    pub(super) tail: Tail,
    pub(super) into_cache: bool,
    /// An RMS norm of x that is computed on the way: its scale and ε.
    pub(super) norm: Option<(Vector, f32)>,
    pub(super) out: Option<Elem>,
    /// Whether few rows of x are rounded to eight bits on any device, and not only where it is asked to.
    pub(super) rounds: bool,
}

/// `x · wᵀ + bias`: `[.., K]` by a weight of N rows and K channels gives `[.., N]`. Where the weight's
/// channels were reordered, x is gathered in their order first.
#[track_caller]
pub fn linear<'g>(x: Var<'g>, weight: &Weight, bias: Option<&Vector>) -> Var<'g> {
    record(x, weight, bias, (None, false))
}

/// As [`linear`], stored as f32 whatever the graph's activations are (logits).
#[track_caller]
pub fn linear_f32<'g>(x: Var<'g>, weight: &Weight, bias: Option<&Vector>) -> Var<'g> {
    record(x, weight, bias, (Some(Elem::F32), false))
}

/// As [`linear`]; few rows of x meet weights of uniform INT4 or INT8 in eight bits, as with `GpuOptions::int_dot` everywhere.
#[track_caller]
pub fn linear_rounded<'g>(x: Var<'g>, weight: &Weight, bias: Option<&Vector>) -> Var<'g> {
    record(x, weight, bias, (None, true))
}

#[track_caller]
fn record<'g>(
    x: Var<'g>,
    weight: &Weight,
    bias: Option<&Vector>,
    (out, rounds): (Option<Elem>, bool),
) -> Var<'g> {
    let (shape, k, n) = (x.shape(), weight.taps() * weight.channels(), weight.rows());
    let fits = if weight.taps() != 1 || shape.last() != k {
        Err(format!(
            "x {shape:?} against a weight of {n} rows, {} taps, {} channels",
            weight.taps(),
            weight.channels()
        ))
    } else if bias.is_some_and(|b| b.len != n) {
        Err(format!("{n} outputs with a bias of {}", bias.map_or(0, |b| b.len)))
    } else {
        Ok(shape.with_last(n))
    };
    let op = Matmul {
        weight: weight.clone(),
        bias: bias.cloned(),
        act: Act::None,
        tail: Tail::None,
        into_cache: false,
        norm: None,
        out,
        rounds,
    };
    let x = match (&fits, weight.columns()) {
        (Ok(_), Some(columns)) => gather(x, x.graph().external(columns, [k], Elem::U32)),
        _ => x,
    };
    x.graph().record(op, &[x], fits, out.unwrap_or(x.graph().act()))
}

impl Matmul {
    /// What x is multiplied with.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }
    /// The order of x in eight bits, where few rows of it are rounded for this weight.
    fn codes(&self, cx: &Lower<'_>) -> Option<Codes> {
        let asked = self.rounds || cx.caps.int_products;
        pieces::codes(self.weight.format()).filter(|_| asked)
    }
    /// Behind an RMS norm that it computes itself, if its kernel for a real GPU can: of few rows of x each launch has it as a
    /// by-product.
    pub(super) fn with_norm(&self, gamma: &Vector, eps: f32, rows: usize) -> Option<Matmul> {
        let k = self.weight.channels();
        let fits = rows <= VEC_ROWS && whole_groups(self.weight.format(), k) && gamma.len == k;
        let norm = Some((gamma.clone(), eps));
        (fits && self.norm.is_none()).then(|| Matmul { norm, ..self.clone() })
    }
}

impl Op for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn in_place(&self) -> Option<usize> {
        self.into_cache.then_some(1)
    }
    fn partners(&self) -> usize {
        2
    }
    fn joins(&self, inputs: &[usize], other: &dyn Op, theirs: &[usize]) -> bool {
        joint::joins(self, inputs, other, theirs)
    }
    fn pair(&self, next: &dyn Op, slot: usize, rows: usize) -> Option<Rc<dyn Op>> {
        let next = next.as_any();
        if let Some(rope) = next.downcast_ref() {
            return turned::pair(self, rope, rows);
        }
        if let Some(halves) = next.downcast_ref() {
            return geglu::pair(self, halves, rows);
        }
        gated::pair(next.downcast_ref().filter(|_| slot == 1)?, self)
    }
    fn lower_joint(&self, cx: &mut Lower<'_>, others: &[Joint]) -> Result<bool> {
        joint::lower(cx, self, others)
    }
    fn absorb(&self, next: &dyn Op, slot: usize) -> Option<Rc<dyn Op>> {
        if self.tail != Tail::None || self.into_cache || self.out.is_some() {
            return None;
        }
        let (next, plain) = (next.as_any(), self.act == Act::None);
        let fused = |act, tail, into_cache| {
            Some(Rc::new(Matmul { act, tail, into_cache, ..self.clone() }) as Rc<dyn Op>)
        };
        if let Some(unary) = next.downcast_ref::<Unary>().filter(|_| plain) {
            return fused(unary.act, Tail::None, false);
        }
        if next.downcast_ref::<KvWrite>().is_some_and(|write| write.takes_rows(slot)) {
            return fused(self.act, Tail::None, true);
        }
        match next.downcast_ref::<Binary>().filter(|b| !b.broadcast)?.kind {
            BinaryKind::Add => fused(self.act, Tail::Add, false),
            BinaryKind::Gate(act) if plain && slot == 0 => fused(act, Tail::Multiply, false),
            _ => None,
        }
    }

    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let x = cx.input(0)?.clone();
        let (m, k) = (x.shape.rows(), x.shape.last());
        let formats = (self.weight.format(), self.codes(cx));
        let variant = Variant::fit(cx, x.elem, formats, (m, k, self.weight.rows()));
        let gamma = self.norm.as_ref().map(|(gamma, _)| gamma);
        let eight = variant.codes().map(|codes| rounded(cx, &x, codes, gamma)).transpose()?;
        let window = match self.into_cache {
            true => m.max(1),
            false => cx.window_rows(m, cx.inputs().iter().chain([cx.output()])),
        };
        if let [chunk] = self.weight.chunks()
            && m <= window.min(rows_per_dispatch(cx, 2 * chunk.rows * k))
        {
            let splits = match self.tail {
                // Values and gates have to come to one invocation.
                tail if tail.halves() => 1,
                _ => variant.splits(cx, (m, k, chunk.rows)),
            };
            return match splits {
                1 => {
                    let dispatch =
                        self.dispatch(cx, (variant, &eight), chunk, (0, m), (0, m), None)?;
                    cx.dispatch(dispatch)
                }
                splits => self.split(cx, variant, chunk, splits),
            };
        }
        for chunk in self.weight.chunks() {
            let step = rows_per_dispatch(cx, 2 * chunk.rows * k);
            for first in (0..m).step_by(window) {
                let bound = (first, m.min(first + window));
                for m0 in (bound.0..bound.1).step_by(step) {
                    let rows = (m0, bound.1.min(m0 + step));
                    let dispatch =
                        self.dispatch(cx, (variant, &eight), chunk, bound, rows, None)?;
                    cx.dispatch(dispatch)?;
                }
            }
        }
        Ok(())
    }
}

/// Rows of x, or pixels, in one dispatch, where one of them costs so many operations: submissions, which are cut
/// between dispatches, should stay near a tenth of a second. A multiple of every tile's height.
pub(super) fn rows_per_dispatch(cx: &Lower<'_>, flops: usize) -> usize {
    let most: usize = if cx.software() { 1 << 30 } else { 1 << 37 };
    (most / flops.max(1)).max(1).next_multiple_of(64)
}

impl Matmul {
    /// A launch for parts of k, and one that adds them up.
    fn split(
        &self,
        cx: &mut Lower<'_>,
        variant: Variant,
        chunk: &Chunk,
        splits: usize,
    ) -> Result<()> {
        let m = cx.input(0)?.shape.rows();
        let part = cx.scratch([splits, m, chunk.rows], Elem::F32);
        let mut products =
            self.dispatch(cx, (variant, &None), chunk, (0, m), (0, m), Some(&part))?;
        products.groups[2] = splits as u32;
        cx.dispatch(products)?;
        let p = self.params(cx, chunk, (0, m))?;
        let adding = Dispatch::new(merge(self.form(cx, cx.act), splits), &p).arg(&part);
        let adding = self.epilogue(cx, adding, |operand| operand.into());
        cx.dispatch(adding.linear(m * chunk.rows, 64).trips(splits))
    }

    /// Rows `m0..m` of x, counted from the first that is bound, by one window of the weight.
    fn params(&self, cx: &Lower<'_>, chunk: &Chunk, (m0, m): (usize, usize)) -> Result<Params> {
        let k = cx.input(0)?.shape.last();
        let several = self.weight.parts().unwrap_or_default();
        Ok(Params {
            m: m as u32,
            n: chunk.rows as u32,
            k: k as u32,
            n0: chunk.row0 as u32,
            n_total: self.weight.rows() as u32,
            blocks: k.div_ceil(8) as u32,
            m0: m0 as u32,
            context: if self.into_cache { cx.output().shape.rows() as u32 } else { 0 },
            begins: several.begins,
            cubic: several.cubic,
        })
    }

    fn form(&self, cx: &Lower<'_>, x: Elem) -> Form {
        Form {
            x,
            act: cx.act,
            out: self.out.unwrap_or(cx.act),
            activation: self.act,
            bias: self.bias.is_some(),
            tail: self.tail,
            caches: self.into_cache.into(),
            eps: self.norm.as_ref().map(|(_, eps)| eps.to_bits()),
            partial: false,
        }
    }

    /// Binds what becomes of a product.
    fn epilogue(
        &self,
        cx: &Lower<'_>,
        dispatch: Dispatch,
        bind: impl Fn(&Operand) -> Arg,
    ) -> Dispatch {
        let dispatch = dispatch.arg(self.bias.as_ref());
        if self.tail.halves() {
            return dispatch.arg(bind(cx.output()));
        }
        let tail = cx.inputs().get(1).filter(|_| self.tail != Tail::None);
        dispatch
            .arg(tail.map_or(Arg::Nothing, &bind))
            .arg(bind(cx.output()))
            .arg(cx.inputs().get(2).filter(|_| self.into_cache))
    }

    /// Rows `m0..m` of x, of which `first..end` are bound, by one window of the weight; into sums of parts of k, if there are any.
    fn dispatch(
        &self,
        cx: &Lower<'_>,
        (variant, eight): (Variant, &Option<Operand>),
        chunk: &Chunk,
        (first, end): (usize, usize),
        (m0, m): (usize, usize),
        part: Option<&Operand>,
    ) -> Result<Dispatch> {
        let x = cx.input(0)?;
        let (n, k) = (chunk.rows, x.shape.last());
        let p = self.params(cx, chunk, (m0 - first, m - first))?;
        let whole = (first, end) == (0, x.shape.rows());
        let bind = |operand: &Operand| match whole {
            true => Arg::from(operand),
            false => operand.window(first, end),
        };
        let form = Form { partial: part.is_some(), ..self.form(cx, x.elem) };
        let dispatch = Dispatch::new(spec(variant, form), &p)
            .arg(eight.as_ref().map_or_else(|| bind(x), Arg::from));
        let dispatch = match part {
            Some(part) => dispatch.arg(part),
            None => self.epilogue(cx, dispatch, bind),
        };
        let dispatch = match (variant, &self.norm) {
            // The same memory once more, as floats.
            (Variant::Pieces(_), _) if eight.is_some() => dispatch.arg(eight.as_ref()),
            (Variant::Pieces(_), norm) => dispatch.arg(norm.as_ref().map(|(gamma, _)| gamma)),
            _ => dispatch,
        };
        let dispatch = dispatch
            .weight_as(chunk, |spec| match variant {
                Variant::Pieces(pieces) => pieces.dot_part(spec, self.weight.format()),
                Variant::VecLanes { .. } => dot_part(spec, self.weight.format()),
                _ => decoding(spec, &self.weight),
            })
            .flops(2 * (m - m0) * n * k);
        Ok(variant.launch(dispatch, m - m0, n, k))
    }
}

/// Joins the part that decodes a weight, or several in one.
fn decoding(spec: Spec, weight: &Weight) -> Spec {
    match weight.parts() {
        Some(_) => several_part(spec, weight.format()),
        None => weight_part(spec, weight.format()),
    }
}

/// Whether no group of weights ends within thirty-two channels: INT8 may have two of sixteen.
pub(super) fn whole_groups(format: Format, k: usize) -> bool {
    let whole = |group: u32| group.is_multiple_of(32) || group as usize >= k;
    match format {
        Format::F32 | Format::F16 => true,
        Format::Q8 { group } => group == 16 || whole(group),
        Format::Q4 { group, .. } => whole(group),
    }
}

/// The truth, in f64. x `[m, k]`, w `[n, k]`, bias `[n]`, residual `[m, n]`.
pub fn oracle(
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    act: Act,
    k: usize,
) -> Vec<f64> {
    let n = w.len() / k;
    let mut y = Vec::with_capacity(x.len() / k * n);
    for (m, row) in x.chunks_exact(k).enumerate() {
        for (j, wrow) in w.chunks_exact(k).enumerate() {
            let dot: f64 = row.iter().zip(wrow).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let v = act.oracle(dot + bias.map_or(0.0, |b| f64::from(b[j])));
            y.push(v + residual.map_or(0.0, |r| f64::from(r[m * n + j])));
        }
    }
    y
}
