//! Matrix multiplication with a packed weight: `y = activation(x · wᵀ + bias) + residual`.

use std::any::Any;
use std::rc::Rc;

use super::gather::gather;
use super::pointwise::{Act, Binary, BinaryKind, Unary};
use super::{ACTS, OpInfo, formats};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{
    Arg, Chunk, Dispatch, Lower, MAX_TRIPS, Op, Operand, Var, Vector, Weight, weight_part,
};
use crate::{Result, params, source};

const TILE: Source = source!("matmul.wgsl");
const LANES: Source = source!("matmul_lanes.wgsl");
const TILED: Source = source!("matmul_tiled.wgsl");
/// The workgroup's part of a tiled product, here and in conv2d.
pub(super) const TILE64: Source = source!("parts/tile64.wgsl");
const VEC: Source = source!("matmul_vec.wgsl");
const VEC_LANES: Source = source!("matmul_vec_lanes.wgsl");
const REFERENCE: Source = source!("reference/matmul.wgsl");
const ACTIVATION: Source = source!("parts/activation.wgsl");
const X_VEC: Source = source!("parts/x_vec.wgsl");
const X_SCALAR: Source = source!("parts/x_scalar.wgsl");
const REDUCE_ONE: Source = source!("parts/reduce_one.wgsl");
const REDUCE_WORKGROUP: Source = source!("parts/reduce_workgroup.wgsl");

/// Rows of x up to which one output per group of lanes beats a register tile.
const VEC_ROWS: usize = 4;

params! {
    pub struct Params {
        pub m: u32,
        pub n: u32,
        pub k: u32,
        pub n0: u32,
        pub n_total: u32,
        pub blocks: u32,
        pub m0: u32,
        pub pad0: u32,
    }
}

/// Inputs: x `[.., K]`, and the residual `[.., N]` if there is one.
#[derive(Clone, Debug)]
pub struct Matmul {
    weight: Weight,
    bias: Option<Vector>,
    act: Act,
    residual: bool,
    out: Option<Elem>,
}

/// `x · wᵀ + bias`: `[.., K]` by a weight of N rows and K channels gives `[.., N]`. Where the weight's
/// channels were reordered, x is gathered in their order first.
#[track_caller]
pub fn linear<'g>(x: Var<'g>, weight: &Weight, bias: Option<&Vector>) -> Var<'g> {
    record(x, weight, bias, None)
}

/// As [`linear`], stored as f32 whatever the graph's activations are (logits).
#[track_caller]
pub fn linear_f32<'g>(x: Var<'g>, weight: &Weight, bias: Option<&Vector>) -> Var<'g> {
    record(x, weight, bias, Some(Elem::F32))
}

#[track_caller]
fn record<'g>(x: Var<'g>, weight: &Weight, bias: Option<&Vector>, out: Option<Elem>) -> Var<'g> {
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
        residual: false,
        out,
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
}

impl Op for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn absorb(&self, next: &dyn Op, _slot: usize) -> Option<Rc<dyn Op>> {
        if self.residual || self.out.is_some() {
            return None;
        }
        let next = next.as_any();
        if let Some(unary) = next.downcast_ref::<Unary>().filter(|_| self.act == Act::None) {
            return Some(Rc::new(Matmul { act: unary.act, ..self.clone() }));
        }
        let add = next
            .downcast_ref::<Binary>()
            .is_some_and(|b| b.kind == BinaryKind::Add && !b.broadcast);
        add.then(|| Rc::new(Matmul { residual: true, ..self.clone() }) as Rc<dyn Op>)
    }

    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let x = cx.input(0)?;
        let (m, k) = (x.shape.rows(), x.shape.last());
        let variant = variant(cx, m, k, self.weight.rows());
        let window = cx.window_rows(m, cx.inputs().iter().chain([cx.output()]));
        for chunk in self.weight.chunks() {
            let step = rows_per_dispatch(cx, 2 * chunk.rows * k);
            for first in (0..m).step_by(window) {
                let bound = (first, m.min(first + window));
                for m0 in (bound.0..bound.1).step_by(step) {
                    let rows = (m0, bound.1.min(m0 + step));
                    let dispatch = self.dispatch(cx, variant, chunk, bound, rows)?;
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
        variant: Variant,
        chunk: &Chunk,
        (first, end): (usize, usize),
        (m0, m): (usize, usize),
    ) -> Result<Dispatch> {
        let x = cx.input(0)?;
        let (n, k) = (chunk.rows, x.shape.last());
        let blocks = k.div_ceil(8);
        let p = Params {
            m: (m - first) as u32,
            n: n as u32,
            k: k as u32,
            n0: chunk.row0 as u32,
            n_total: self.weight.rows() as u32,
            blocks: blocks as u32,
            m0: (m0 - first) as u32,
            ..Default::default()
        };
        let form = Form {
            x: x.elem,
            act: cx.act,
            out: self.out.unwrap_or(cx.act),
            activation: self.act,
            bias: self.bias.is_some(),
            residual: self.residual,
        };
        let whole = (first, end) == (0, x.shape.rows());
        let bind = |operand: &Operand| match whole {
            true => Arg::from(operand),
            false => operand.window(first, end),
        };
        let dispatch = Dispatch::new(spec(variant, form), &p)
            .arg(bind(x))
            .arg(self.bias.as_ref())
            .arg(cx.inputs().get(1).filter(|_| self.residual).map_or(Arg::Nothing, bind))
            .arg(bind(cx.output()))
            .weight(chunk, self.weight.format())
            .flops(2 * (m - m0) * n * k);
        let m = m - m0;
        Ok(match variant {
            Variant::Reference => dispatch.linear(m * n, 64).trips(k),
            Variant::Vec { lanes, .. } => {
                let mut d = dispatch.linear(n, (VEC_WG / lanes) as usize);
                d.groups[2] = m as u32;
                d.trips(blocks.div_ceil(lanes as usize) + 8)
            }
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
        })
    }
}

const VEC_WG: u32 = 64;
/// Rows of w of one workgroup of [`Variant::VecLanes`].
const VEC_LANES_ROWS: usize = 16;
/// Iterations of the loops that store a tile of 8 by 8.
pub(super) const EPILOGUE_TRIPS: usize = 72;

#[derive(Clone, Copy, Debug)]
enum Variant {
    Reference,
    /// Few rows of x: `lanes` invocations for each output.
    Vec {
        lanes: u32,
        vec8: bool,
    },
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

fn variant(cx: &Lower<'_>, m: usize, k: usize, n: usize) -> Variant {
    let (blocks, vec8) = (k.div_ceil(8), k.is_multiple_of(8));
    if cx.reference() {
        return Variant::Reference;
    }
    if m <= VEC_ROWS && cx.eight_lanes() && n >= VEC_LANES_ROWS {
        return Variant::VecLanes { vec8 };
    }
    if m <= VEC_ROWS {
        let lanes = if cx.software() { 1 } else { 32.min(blocks.next_power_of_two() as u32) };
        return Variant::Vec { lanes, vec8 };
    }
    if cx.eight_lanes() && n >= LANES_COLUMNS && lanes_trips(blocks) as u64 <= MAX_TRIPS {
        return Variant::Lanes { tall: m > 8, vec8 };
    }
    if cx.software() || tiled_trips(blocks) as u64 > MAX_TRIPS {
        return Variant::Tile { vec8 };
    }
    Variant::Tiled { vec8 }
}

/// Element types, and what is fused.
#[derive(Clone, Copy, Debug)]
struct Form {
    x: Elem,
    /// Of the residual.
    act: Elem,
    out: Elem,
    activation: Act,
    bias: bool,
    residual: bool,
}

fn spec(variant: Variant, form: Form) -> Spec {
    let x = form.x;
    let load = |spec: Spec, vec8: bool| match vec8 {
        true => spec.alias4("xload", x).part(X_VEC),
        false => spec.alias("xload", x).part(X_SCALAR),
    };
    let spec = match variant {
        Variant::Reference => Spec::new(REFERENCE).alias("xload", x),
        Variant::Vec { lanes, vec8 } => {
            let spec = Spec::new(VEC).u32("LANES", lanes).u32("WG_X", VEC_WG);
            load(spec.part(if lanes == 1 { REDUCE_ONE } else { REDUCE_WORKGROUP }), vec8)
        }
        Variant::VecLanes { vec8 } => load(Spec::new(VEC_LANES), vec8),
        Variant::Tile { vec8 } => load(Spec::new(TILE).u32("WG_X", TILE_WG), vec8),
        Variant::Lanes { tall, vec8 } => load(Spec::new(LANES).flag("TALL", tall), vec8),
        Variant::Tiled { vec8 } => load(Spec::new(TILED).part(TILE64), vec8),
    };
    spec.part(ACTIVATION)
        .alias("act", form.act)
        .alias("out", form.out)
        .u32("ACT", form.activation as u32)
        .flag("BIAS", form.bias)
        .flag("RESIDUAL", form.residual)
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for format in formats() {
        for x in ACTS {
            let (activation, bias, residual) = (Act::Silu, true, true);
            let form = Form { x, act: x, out: x, activation, bias, residual };
            for vec8 in [true, false] {
                for variant in [
                    Variant::Reference,
                    Variant::Vec { lanes: 1, vec8 },
                    Variant::Vec { lanes: 32, vec8 },
                    Variant::VecLanes { vec8 },
                    Variant::Tile { vec8 },
                    Variant::Lanes { tall: true, vec8 },
                    Variant::Lanes { tall: false, vec8 },
                    Variant::Tiled { vec8 },
                ] {
                    specs.push(weight_part(spec(variant, form), format));
                }
            }
        }
    }
    vec![OpInfo { name: "matmul", specs, params: Params::FIELDS }]
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
