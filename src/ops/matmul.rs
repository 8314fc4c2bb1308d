//! Matrix multiplication with a packed weight: `y = activation(x · wᵀ + bias) + residual`, or times it, or into a cache.

pub(super) mod coop;
mod forms;
pub mod joint;
mod pieces;

use std::any::Any;
use std::rc::Rc;

use coop::Coop;
pub(crate) use forms::info;
use forms::{Form, spec};
use pieces::Pieces;

use super::gather::gather;
use super::kv_cache::KvWrite;
use super::pointwise::{Act, Binary, BinaryKind, Unary};
use super::round8::{Codes, rounded};
use crate::gpu::{Elem, Source};
use crate::graph::{
    Arg, Chunk, Dispatch, Joint, Lower, MAX_TRIPS, Op, Operand, Var, Vector, Weight, dot_part,
    weight_part,
};
use crate::quant::Format;
use crate::{Result, params, source};

/// The workgroup's part of a tiled product, here and in conv2d.
pub(super) const TILE64: Source = source!("parts/tile64.wgsl");
pub(super) const X_VEC: Source = source!("parts/x_vec.wgsl");
pub(super) const X_SCALAR: Source = source!("parts/x_scalar.wgsl");

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
    fn joins(&self, other: &dyn Op) -> bool {
        other.as_any().downcast_ref::<Matmul>().is_some_and(|other| joint::may_join(self, other))
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
        let size = (m, k, self.weight.rows());
        let variant = variant(cx, x.elem, (self.weight.format(), self.codes(cx)), size);
        let codes = match variant {
            Variant::Pieces(pieces) => pieces.codes,
            _ => None,
        };
        let gamma = self.norm.as_ref().map(|(gamma, _)| gamma);
        let eight = codes.map(|codes| rounded(cx, &x, codes, gamma)).transpose()?;
        let window = match self.into_cache {
            true => m.max(1),
            false => cx.window_rows(m, cx.inputs().iter().chain([cx.output()])),
        };
        for chunk in self.weight.chunks() {
            let step = rows_per_dispatch(cx, 2 * chunk.rows * k);
            for first in (0..m).step_by(window) {
                let bound = (first, m.min(first + window));
                for m0 in (bound.0..bound.1).step_by(step) {
                    let rows = (m0, bound.1.min(m0 + step));
                    let dispatch = self.dispatch(cx, (variant, &eight), chunk, bound, rows)?;
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
    /// Rows `m0..m` of x, of which `first..end` are bound, by one window of the weight.
    fn dispatch(
        &self,
        cx: &Lower<'_>,
        (variant, eight): (Variant, &Option<Operand>),
        chunk: &Chunk,
        (first, end): (usize, usize),
        (m0, m): (usize, usize),
    ) -> Result<Dispatch> {
        let x = cx.input(0)?;
        let (n, k) = (chunk.rows, x.shape.last());
        let p = Params {
            m: (m - first) as u32,
            n: n as u32,
            k: k as u32,
            n0: chunk.row0 as u32,
            n_total: self.weight.rows() as u32,
            blocks: k.div_ceil(8) as u32,
            m0: (m0 - first) as u32,
            context: if self.into_cache { cx.output().shape.rows() as u32 } else { 0 },
        };
        let form = Form {
            x: x.elem,
            act: cx.act,
            out: self.out.unwrap_or(cx.act),
            activation: self.act,
            bias: self.bias.is_some(),
            tail: self.tail,
            into_cache: self.into_cache,
            eps: self.norm.as_ref().map(|(_, eps)| eps.to_bits()),
        };
        let whole = (first, end) == (0, x.shape.rows());
        let bind = |operand: &Operand| match whole {
            true => Arg::from(operand),
            false => operand.window(first, end),
        };
        let dispatch = Dispatch::new(spec(variant, form), &p)
            .arg(eight.as_ref().map_or_else(|| bind(x), Arg::from))
            .arg(self.bias.as_ref())
            .arg(cx.inputs().get(1).filter(|_| self.tail != Tail::None).map_or(Arg::Nothing, bind))
            .arg(bind(cx.output()))
            .arg(cx.inputs().get(2).filter(|_| self.into_cache));
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
                _ => weight_part(spec, self.weight.format()),
            })
            .flops(2 * (m - m0) * n * k);
        Ok(variant.launch(dispatch, m - m0, n, k))
    }
}

impl Variant {
    /// Workgroups and trips for m rows of x of k channels, by n rows of w.
    fn launch(self, dispatch: Dispatch, m: usize, n: usize, k: usize) -> Dispatch {
        let blocks = k.div_ceil(8);
        match self {
            Variant::Reference => dispatch.linear(m * n, 64).trips(k),
            Variant::Vec { .. } => {
                let mut d = dispatch.linear(n, VEC_WG as usize);
                d.groups[2] = m as u32;
                d.trips(blocks)
            }
            Variant::Pieces(pieces) => pieces.launch(dispatch, m, n, k),
            Variant::VecLanes { .. } => {
                let mut d = dispatch.linear(n, VEC_LANES_ROWS);
                d.groups[2] = m as u32;
                d.trips(blocks.div_ceil(8) + 2)
            }
            Variant::Tile { .. } => dispatch
                .linear(n.div_ceil(8) * m.div_ceil(8), TILE_WG as usize)
                .trips(blocks + EPILOGUE_TRIPS),
            Variant::Lanes { tall, .. } => {
                let rows = if tall { 16 } else { 8 };
                dispatch.linear(n.div_ceil(64) * m.div_ceil(rows), 1).trips(lanes_trips(blocks))
            }
            Variant::Tiled { .. } => {
                dispatch.groups(n.div_ceil(64), m.div_ceil(64), 1).trips(tiled_trips(blocks))
            }
            Variant::Coop { coop, .. } => {
                let tile = coop.tile();
                let trips = coop.trips(blocks) + coop.epilogue_trips();
                dispatch.groups(n.div_ceil(tile), m.div_ceil(tile), 1).trips(trips)
            }
        }
    }
}

pub(super) const VEC_WG: u32 = 64;
/// Rows of w of one workgroup of [`Variant::VecLanes`].
const VEC_LANES_ROWS: usize = 16;
/// Iterations of the loops that store a tile of 8 by 8.
pub(super) const EPILOGUE_TRIPS: usize = 72;

#[derive(Clone, Copy, Debug)]
enum Variant {
    Reference,
    /// Few rows of x: an invocation for each output.
    Vec {
        vec8: bool,
    },
    Pieces(Pieces),
    /// Few rows of x: two outputs for each of eight lanes, which share x by broadcast.
    VecLanes {
        vec8: bool,
    },
    /// A register tile of 8 rows by 8 columns. `vec8`: K is a multiple of eight.
    Tile {
        vec8: bool,
    },
    /// A tile of 16 rows, or 8, by 64 columns in the registers of eight lanes.
    Lanes {
        tall: bool,
        vec8: bool,
    },
    /// 64 rows by 64 columns in a workgroup that shares what it has fetched.
    Tiled {
        vec8: bool,
    },
    /// A workgroup of four subgroups that multiply matrices.
    Coop {
        coop: Coop,
        vec8: bool,
    },
}

/// Software adapters run one workgroup on one thread with eight lanes: neighbours along n share x.
const TILE_WG: u32 = 8;

/// Columns from which a tile of [`Variant::Lanes`] has fewer idle lanes than it saves loads.
pub(super) const LANES_COLUMNS: usize = 17;

/// Loop iterations of one lane: a group of weights has at least two blocks, then 16 rows of 8 columns are stored.
pub(super) fn lanes_trips(blocks: usize) -> usize {
    blocks + blocks.div_ceil(2) + 144
}

fn tiled_trips(blocks: usize) -> usize {
    blocks.div_ceil(2) * 9 + EPILOGUE_TRIPS
}

/// `codes`: in what order x is rounded, if it is.
fn variant(
    cx: &Lower<'_>,
    x: Elem,
    (format, codes): (Format, Option<Codes>),
    (m, k, n): (usize, usize, usize),
) -> Variant {
    let (blocks, vec8) = (k.div_ceil(8), k.is_multiple_of(8));
    if cx.reference() {
        return Variant::Reference;
    }
    if m <= VEC_ROWS {
        return match Pieces::fit(cx, codes, (m, k, n)) {
            _ if !whole_groups(format, k) => Variant::Vec { vec8 },
            Some(pieces) => Variant::Pieces(pieces),
            None if cx.eight_lanes() && n >= VEC_LANES_ROWS => Variant::VecLanes { vec8 },
            None => Variant::Vec { vec8 },
        };
    }
    if cx.eight_lanes() && n >= LANES_COLUMNS && lanes_trips(blocks) as u64 <= MAX_TRIPS {
        return Variant::Lanes { tall: m > 8, vec8 };
    }
    if let Some(coop) = Coop::fit(cx, x, m, n)
        && (coop.trips(blocks) + coop.epilogue_trips()) as u64 <= MAX_TRIPS
    {
        return Variant::Coop { coop, vec8 };
    }
    if cx.software() || tiled_trips(blocks) as u64 > MAX_TRIPS {
        return Variant::Tile { vec8 };
    }
    Variant::Tiled { vec8 }
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
