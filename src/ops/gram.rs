//! The Gram matrix of what a layer reads, summed over runs: the Hessian that GPTQ works with.

use std::any::Any;

use super::conv2d::{Conv, Conv2d};
use super::matmul::{EPILOGUE_TRIPS, Matmul};
use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Shape, Var, Weight};
use crate::{Result, params, source};

const FAST: Source = source!("gram.wgsl");
const REFERENCE: Source = source!("reference/gram.wgsl");
const COLUMNS: Source = source!("parts/columns.wgsl");
const ONE_VEC: Source = source!("parts/conv_one_vec.wgsl");
const ONE_SCALAR: Source = source!("parts/conv_one_scalar.wgsl");

/// Rows that one dispatch adds up: its only loop.
const ROWS: usize = 8192;

params! {
    /// `struct Params` of the shaders, here and in moments.
    pub struct Params {
        pub m0: u32,
        pub m: u32,
        pub k0: u32,
        pub k: u32,
        pub in_h: u32,
        pub in_w: u32,
        pub out_h: u32,
        pub out_w: u32,
        pub ca: u32,
        pub side: u32,
        pub stride: u32,
        pub up: u32,
        pub before: u32,
        pub every: u32,
        pub pad1: u32,
        pub pad2: u32,
    }
}

/// How a layer walks over its input. With [`Walk::LINEAR`] each row of x `[.., C]` is a row of the matrix X;
/// otherwise X has a row for each output pixel, `[B·H'·W', side² · C]`, columns in (ky, kx, channel) order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    pub side: usize,
    pub conv: Conv,
}

impl Walk {
    /// A linear layer's.
    pub const LINEAR: Walk =
        Walk { side: 1, conv: Conv { stride: 1, upsample: false, pad: super::conv2d::Pad::Same } };

    /// Rows and columns of X.
    ///
    /// # Errors
    /// In words, where x is no picture or smaller than the window.
    pub fn size(self, x: Var<'_>) -> Result<[usize; 2], String> {
        let shape = x.shape();
        if x.elem() == Elem::U32 || shape.is_empty() {
            return Err(format!("x {shape:?} of {:?}", x.elem()));
        }
        let [b, h, w] = self.picture(shape);
        match (self.conv.outputs(h, self.side), self.conv.outputs(w, self.side)) {
            (Some(oh), Some(ow)) => Ok([b * oh * ow, self.side * self.side * shape.last()]),
            _ => Err(format!("x {shape:?} is smaller than the window")),
        }
    }

    /// Pictures, height and width; for a linear layer everything is one row of pixels.
    fn picture(self, shape: Shape) -> [usize; 3] {
        match *shape.dims() {
            [b, h, w, _] if self != Walk::LINEAR => [b, h, w],
            _ => [1, 1, shape.rows()],
        }
    }
}

/// The weight that an op multiplies its first input with, how it walks over it, and whether the channels of the second
/// input follow those of the first; `None` for ops without a weight.
pub fn reader(op: &dyn Op) -> Option<(&Weight, Walk, bool)> {
    if let Some(op) = op.as_any().downcast_ref::<Matmul>() {
        return Some((op.weight(), Walk::LINEAR, false));
    }
    let op = op.as_any().downcast_ref::<Conv2d>()?;
    let (conv, two) = op.walk();
    let side = op.weight().taps().isqrt();
    Some((op.weight(), Walk { side, conv }, two))
}

/// Inputs: g f32 `[k, k]`, and x.
#[derive(Clone, Copy, Debug)]
struct Gram {
    walk: Walk,
    first: usize,
    every: usize,
}

/// Adds XᵀX to `g` (a [`Graph::external`](crate::graph::Graph::external) f32 `[k, k]`) for columns `first ..
/// first + k` of X, on and below the diagonal; the rest is not touched. X is what x is to a layer that walks over it
/// ([`Walk`]); of its rows every `every`th counts, from the first on. Returns g, which has to be an output to be computed.
#[track_caller]
pub fn gram<'g>(g: Var<'g>, x: Var<'g>, walk: Walk, first: usize, every: usize) -> Var<'g> {
    let shape = g.shape();
    let fits = walk.size(x).and_then(|[_, columns]| match *shape.dims() {
        _ if every == 0 => Err("every 0th row".into()),
        [k, other] if k == other && k > 0 && first + k <= columns && g.elem() == Elem::F32 => {
            Ok(shape)
        }
        _ => Err(format!(
            "g {shape:?} of {:?} for columns from {first} of {columns}; it takes a square of f32",
            g.elem()
        )),
    });
    g.graph().record(Gram { walk, first, every }, &[g, x], fits, Elem::F32)
}

/// What gram and moments lower alike.
pub(super) struct Columns {
    pub walk: Walk,
    /// First column and number of columns.
    pub range: [usize; 2],
    /// 1, or n to take every nth row.
    pub every: usize,
}

impl Columns {
    /// Params of each dispatch over so many rows, and whether blocks of eight columns stay within a tap.
    pub fn params(&self, cx: &Lower<'_>) -> Result<(Vec<Params>, bool)> {
        let x = cx.input(1)?;
        let ca = x.shape.last();
        let ([b, h, w], Walk { side, conv }) = (self.walk.picture(x.shape), self.walk);
        let outputs = |size| conv.outputs(size, side).unwrap_or(0);
        let (oh, ow) = (outputs(h), outputs(w));
        let [k0, k] = self.range;
        let whole = Params {
            k0: k0 as u32,
            k: k as u32,
            in_h: h as u32,
            in_w: w as u32,
            out_h: oh as u32,
            out_w: ow as u32,
            ca: ca as u32,
            side: side as u32,
            stride: conv.stride as u32,
            up: u32::from(conv.upsample),
            before: conv.zeros(side).0 as u32,
            every: self.every as u32,
            ..Default::default()
        };
        let (rows, step) = (b * oh * ow, ROWS * self.every);
        let part = |m0: usize| Params { m0: m0 as u32, m: rows.min(m0 + step) as u32, ..whole };
        let eights = [ca, k0, k].iter().all(|n| n.is_multiple_of(8));
        Ok(((0..rows).step_by(step).map(part).collect(), eights))
    }

    /// A launch over the rows of `p`: group 0 is x, then what is added to.
    pub fn dispatch(cx: &Lower<'_>, spec: Spec, p: &Params) -> Result<Dispatch> {
        let dispatch = Dispatch::new(spec, p).arg(cx.input(1)?).arg(cx.output());
        Ok(dispatch.trips((p.m - p.m0).div_ceil(p.every) as usize + EPILOGUE_TRIPS))
    }
}

impl Op for Gram {
    fn name(&self) -> &'static str {
        "gram"
    }
    fn in_place(&self) -> Option<usize> {
        Some(0)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let k = cx.output().shape.last();
        let columns = Columns { walk: self.walk, range: [self.first, k], every: self.every };
        let (params, eights) = columns.params(cx)?;
        let fast = eights && !cx.reference();
        let x = cx.input(1)?.elem;
        let items = if fast { k / 8 * (k / 8) } else { k * k };
        for p in params {
            let dispatch = Columns::dispatch(cx, spec([FAST, REFERENCE], fast, x), &p)?;
            cx.dispatch(
                dispatch.linear(items, 64).flops((p.m - p.m0).div_ceil(p.every) as usize * k * k),
            )?;
        }
        Ok(())
    }
}

/// One of two shaders with the parts that read columns.
pub(super) fn spec([vec, scalar]: [Source; 2], fast: bool, x: Elem) -> Spec {
    let spec = match fast {
        true => Spec::new(vec).alias4("xload", x).part(ONE_VEC),
        false => Spec::new(scalar).alias("xload", x).part(ONE_SCALAR),
    };
    spec.part(COLUMNS)
}

/// Every variant of a pair of shaders.
pub(super) fn specs(sources: [Source; 2]) -> Vec<Spec> {
    ACTS.into_iter().flat_map(|x| [true, false].map(|fast| spec(sources, fast, x))).collect()
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let specs = specs([FAST, REFERENCE]);
    vec![OpInfo { name: "gram", specs, params: Params::FIELDS }]
}

/// X in f64, `[rows, columns]`: x is `[b, h, w, c]` flat, `shape` its dimensions.
pub fn columns(x: &[f32], shape: [usize; 4], walk: Walk) -> Vec<Vec<f64>> {
    let [b, h, w, c] = shape;
    let Walk { side, conv } = walk;
    let up = usize::from(conv.upsample);
    let (Some(oh), Some(ow)) = (conv.outputs(h, side), conv.outputs(w, side)) else {
        return Vec::new();
    };
    let before = conv.zeros(side).0;
    let place = |o: usize, k: usize, size: usize| {
        let i = (o * conv.stride + k).checked_sub(before)?;
        (i < size << up).then_some(i >> up)
    };
    let row = |out: usize| -> Vec<f64> {
        let (item, oy, ox) = (out / (oh * ow), out / ow % oh, out % ow);
        let column = |j: usize| {
            let (tap, channel) = (j / c, j % c);
            let (iy, ix) = (place(oy, tap / side, h), place(ox, tap % side, w));
            let at = |(iy, ix)| f64::from(x[((item * h + iy) * w + ix) * c + channel]);
            iy.zip(ix).map_or(0.0, at)
        };
        (0..side * side * c).map(column).collect()
    };
    (0..b * oh * ow).map(row).collect()
}

/// The truth, in f64: XᵀX `[k, k]` of columns `first .. first + k`, zeros above the diagonal.
pub fn oracle(rows: &[Vec<f64>], first: usize, k: usize) -> Vec<f64> {
    let element = |at: usize| {
        let (i, j) = (at / k, at % k);
        let sum = || rows.iter().map(|row| row[first + i] * row[first + j]).sum();
        if j <= i { sum() } else { 0.0 }
    };
    (0..k * k).map(element).collect()
}
