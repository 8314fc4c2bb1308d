//! Matrix multiplication with a packed weight: `y = activation(x · wᵀ + bias) + residual`.

use std::any::Any;
use std::rc::Rc;

use super::pointwise::{Act, Binary, BinaryKind, Unary};
use super::{ACTS, OpInfo, formats};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Var, Vector, Weight, weight_part};
use crate::{Result, params, source};

const TILE: Source = source!("matmul.wgsl");
const VEC: Source = source!("matmul_vec.wgsl");
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
        pub pad0: u32,
        pub pad1: u32,
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

/// `x · wᵀ + bias`: `[.., K]` by a weight of N rows and K channels gives `[.., N]`.
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
    x.graph().record(op, &[x], fits, out.unwrap_or(x.graph().act()))
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
        let x = cx.input(0)?.clone();
        let (m, k) = (x.shape.rows(), x.shape.last());
        let n_total = self.weight.rows();
        let vec8 = k.is_multiple_of(8);
        let format = self.weight.format();
        for chunk in self.weight.chunks() {
            let n = chunk.rows;
            let blocks = k.div_ceil(8);
            let p = Params {
                m: m as u32,
                n: n as u32,
                k: k as u32,
                n0: chunk.row0 as u32,
                n_total: n_total as u32,
                blocks: blocks as u32,
                ..Default::default()
            };
            let variant = if cx.reference() {
                Variant::Reference
            } else if m <= VEC_ROWS {
                let lanes =
                    if cx.caps.software { 1 } else { 32.min(blocks.next_power_of_two() as u32) };
                Variant::Vec { lanes, vec8 }
            } else {
                Variant::Tile { software: cx.caps.software, vec8 }
            };
            let out = self.out.unwrap_or(cx.act);
            let spec = self.spec(variant, x.elem, out);
            let residual = cx.inputs().get(1).filter(|_| self.residual);
            let dispatch = Dispatch::new(spec, &p)
                .arg(&x)
                .arg(self.bias.as_ref())
                .arg(residual)
                .arg(cx.output())
                .weight(chunk, format)
                .flops(2 * m * n * k);
            let dispatch = match variant {
                Variant::Reference => dispatch.linear(m * n, 64).trips(k),
                Variant::Vec { lanes, .. } => {
                    let mut d = dispatch.linear(n, (VEC_WG / lanes) as usize);
                    d.groups[2] = m as u32;
                    d.trips(blocks.div_ceil(lanes as usize) + 8)
                }
                Variant::Tile { software, .. } => {
                    let (wx, wy) = tile_workgroup(software);
                    dispatch
                        .groups(n.div_ceil(8 * wx as usize), m.div_ceil(8 * wy as usize), 1)
                        .trips(blocks + EPILOGUE_TRIPS)
                }
            };
            cx.dispatch(dispatch)?;
        }
        Ok(())
    }
}

const VEC_WG: u32 = 64;
/// Iterations of the loops that store a tile of 8 by 8.
pub(super) const EPILOGUE_TRIPS: usize = 72;

#[derive(Clone, Copy, Debug)]
enum Variant {
    Reference,
    Vec { lanes: u32, vec8: bool },
    Tile { software: bool, vec8: bool },
}

/// Software adapters run one workgroup on one thread with eight lanes: neighbours along n share x.
fn tile_workgroup(software: bool) -> (u32, u32) {
    if software { (8, 1) } else { (8, 8) }
}

impl Matmul {
    fn spec(&self, variant: Variant, x: Elem, out: Elem) -> Spec {
        spec(variant, x, out, self.act, self.bias.is_some(), self.residual)
    }
}

fn spec(variant: Variant, x: Elem, out: Elem, act: Act, bias: bool, residual: bool) -> Spec {
    let load = |spec: Spec, vec8: bool| match vec8 {
        true => spec.alias4("xload", x).part(X_VEC),
        false => spec.alias("xload", x).part(X_SCALAR),
    };
    let spec = match variant {
        Variant::Reference => Spec::new(REFERENCE),
        Variant::Vec { lanes, vec8 } => {
            let spec = Spec::new(VEC).u32("LANES", lanes).u32("WG_X", VEC_WG);
            load(spec.part(if lanes == 1 { REDUCE_ONE } else { REDUCE_WORKGROUP }), vec8)
        }
        Variant::Tile { software, vec8 } => {
            let (wx, wy) = tile_workgroup(software);
            load(Spec::new(TILE).u32("WG_X", wx).u32("WG_Y", wy), vec8)
        }
    };
    spec.part(ACTIVATION)
        .alias("act", x)
        .alias("out", out)
        .u32("ACT", act as u32)
        .flag("BIAS", bias)
        .flag("RESIDUAL", residual)
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for format in formats() {
        for x in ACTS {
            for vec8 in [true, false] {
                for variant in [
                    Variant::Reference,
                    Variant::Vec { lanes: 1, vec8 },
                    Variant::Vec { lanes: 32, vec8 },
                    Variant::Tile { software: true, vec8 },
                    Variant::Tile { software: false, vec8 },
                ] {
                    specs.push(weight_part(spec(variant, x, x, Act::Silu, true, true), format));
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
