//! Convolution of pictures with a packed weight, as an implicit matrix product (no im2col in memory):
//! `y = activation(conv(x, w) + bias + time embedding) + residual`.

mod variant;

use std::any::Any;
use std::rc::Rc;

pub(crate) use variant::info;
use variant::{Form, Variant, merge, spec};

use super::channels::AddChannels;
use super::concat::Concat;
use super::matmul::coop::Coop;
use super::matmul::{EPILOGUE_TRIPS, LANES_COLUMNS, lanes_trips, linear, parts, rows_per_dispatch};
use super::pointwise::{Act, Binary, BinaryKind, Unary};
use crate::gpu::Elem;
use crate::graph::{Chunk, Dispatch, Lower, MAX_TRIPS, Op, Operand, Shape, Var, Vector, Weight};
use crate::{Result, params};

params! {
    /// `struct Params` of the shaders.
    pub struct Params {
        pub m0: u32,
        pub m: u32,
        pub n: u32,
        pub n0: u32,
        pub n_total: u32,
        pub in_h: u32,
        pub in_w: u32,
        pub out_h: u32,
        pub out_w: u32,
        pub ca: u32,
        pub cb: u32,
        pub side: u32,
        pub stride: u32,
        pub up: u32,
        pub before: u32,
        pub steps: u32,
    }
}

/// Where the zeros around a picture go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pad {
    /// (side − 1)/2 on every side.
    #[default]
    Same,
    /// None before, one row and column after: diffusers' downsampling in the VAE's encoder.
    End,
}

/// How a convolution walks over its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv {
    /// Pixels from one output to the next, in both directions.
    pub stride: usize,
    /// Double the input in both directions first, by the nearest pixel.
    pub upsample: bool,
    pub pad: Pad,
}

impl Default for Conv {
    fn default() -> Conv {
        Conv { stride: 1, upsample: false, pad: Pad::Same }
    }
}

impl Conv {
    /// Zeros before and after a row, for a window of `side` pixels.
    pub(super) fn zeros(self, side: usize) -> (usize, usize) {
        match self.pad {
            Pad::Same => ((side - 1) / 2, (side - 1) / 2),
            Pad::End => (0, 1),
        }
    }
    /// Pixels that come out of `size` pixels in one direction; None if the window does not fit once.
    pub(super) fn outputs(self, size: usize, side: usize) -> Option<usize> {
        let (before, after) = self.zeros(side);
        let padded = (size << usize::from(self.upsample)) + before + after;
        Some(padded.checked_sub(side)? / self.stride + 1)
    }
}

/// Inputs: x `[B, H, W, Ca]`; x2 `[B, H, W, Cb]` if `two`; table `[steps, Cout]` and row u32 `[B]` if
/// `shift`; the residual `[B, H', W', Cout]` if `residual`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Weight,
    bias: Option<Vector>,
    conv: Conv,
    side: usize,
    two: bool,
    shift: bool,
    act: Act,
    residual: bool,
}

/// `[B, H, W, Cin]` by a weight of Cout rows, side² taps (ky, kx) and Cin channels gives
/// `[B, H', W', Cout]`. The two parts of a [`cat`](super::concat::cat) are read where they lie.
#[track_caller]
pub fn conv2d<'g>(x: Var<'g>, weight: &Weight, bias: Option<&Vector>, conv: Conv) -> Var<'g> {
    let parts = x.made_by::<Concat>();
    if weight.taps() == 1 && parts.is_none() && conv == Conv::default() && x.shape().rank() == 4 {
        return linear(x, weight, bias);
    }
    let side = weight.taps().isqrt();
    let op = Conv2d {
        weight: weight.clone(),
        bias: bias.cloned(),
        conv,
        side,
        two: parts.is_some(),
        shift: false,
        act: Act::None,
        residual: false,
    };
    let fits = shape_rule(x.shape(), weight, bias, conv, side);
    x.graph().record(op, &parts.unwrap_or_else(|| vec![x]), fits, x.graph().act())
}

fn shape_rule(
    x: Shape,
    weight: &Weight,
    bias: Option<&Vector>,
    conv: Conv,
    side: usize,
) -> Result<Shape, String> {
    let (rows, taps, channels) = (weight.rows(), weight.taps(), weight.channels());
    let &[b, h, w, c] = x.dims() else {
        return Err(format!("x {x:?} is no picture [batch, height, width, channels]"));
    };
    if side * side != taps || side == 0 || c != channels {
        return Err(format!(
            "x {x:?} against a weight of {rows} rows, {taps} taps, {channels} channels"
        ));
    }
    if weight.columns().is_some() {
        return Err("the weight has reordered channels; it belongs to a linear layer".into());
    }
    if conv.stride == 0 || x.is_empty() {
        return Err(format!("x {x:?} with a stride of {}", conv.stride));
    }
    if let Some(b) = bias.filter(|b| b.len != rows) {
        return Err(format!("{rows} outputs with a bias of {}", b.len));
    }
    match (conv.outputs(h, side), conv.outputs(w, side)) {
        (Some(h), Some(w)) => Ok(Shape::new(&[b, h, w, rows])),
        _ => Err(format!("x {x:?} is smaller than the window of {side}x{side} pixels")),
    }
}

impl Conv2d {
    /// What the picture is convolved with.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }
    /// How it walks over its input: of one picture, or of two joined along their channels.
    pub fn walk(&self) -> (Conv, bool) {
        (self.conv, self.two)
    }
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn absorb(&self, next: &dyn Op, slot: usize) -> Option<Rc<dyn Op>> {
        let next = next.as_any();
        if self.residual {
            return None;
        }
        if let Some(unary) = next.downcast_ref::<Unary>().filter(|_| self.act == Act::None) {
            return Some(Rc::new(Conv2d { act: unary.act, ..self.clone() }));
        }
        // With two inputs and a table a kernel would bind nine storage buffers; eight are certain.
        let plain = !self.two && !self.shift && self.act == Act::None && slot == 0;
        if next.is::<AddChannels>() && plain {
            return Some(Rc::new(Conv2d { shift: true, ..self.clone() }));
        }
        let add = next
            .downcast_ref::<Binary>()
            .is_some_and(|b| b.kind == BinaryKind::Add && !b.broadcast);
        add.then(|| Rc::new(Conv2d { residual: true, ..self.clone() }) as Rc<dyn Op>)
    }

    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let bound = self.bound(cx)?;
        let vec8 = [Some(&bound.x), bound.x2.as_ref()]
            .into_iter()
            .flatten()
            .all(|x| x.shape.last().is_multiple_of(8));
        let variant = self.variant(cx, bound.x.elem, vec8);
        if self.split(cx, &bound, variant)? {
            return Ok(());
        }
        for chunk in self.weight.chunks() {
            let pixels = cx.output().shape.rows();
            let step = rows_per_dispatch(cx, self.cost(chunk));
            for m0 in (0..pixels).step_by(step) {
                let m = pixels.min(m0 + step);
                let dispatch = self.dispatch(cx, &bound, variant, chunk, (m0, m), None);
                cx.dispatch(dispatch)?;
            }
        }
        Ok(())
    }
}

/// The inputs by name.
struct Bound {
    x: Operand,
    x2: Option<Operand>,
    table: Option<Operand>,
    row: Option<Operand>,
    residual: Option<Operand>,
}

impl Conv2d {
    fn variant(&self, cx: &Lower<'_>, x: Elem, vec8: bool) -> Variant {
        let (tiled, lanes) = (Variant::Tiled { vec8 }, Variant::Lanes { vec8 });
        let coop = Coop::fit(cx, x, cx.output().shape.rows(), self.weight.rows());
        let coop = coop.map(|coop| Variant::Coop { coop, vec8 });
        match () {
            () if cx.reference() => Variant::Reference,
            () if self.fits_lanes(cx, lanes) => lanes,
            () if coop.is_some_and(|v| self.trips(v) as u64 <= MAX_TRIPS) => coop.unwrap_or(tiled),
            () if cx.software() || self.trips(tiled) as u64 > MAX_TRIPS => Variant::Tile { vec8 },
            () => tiled,
        }
    }

    fn fits_lanes(&self, cx: &Lower<'_>, lanes: Variant) -> bool {
        cx.eight_lanes()
            && self.weight.rows() >= LANES_COLUMNS
            && self.trips(lanes) as u64 <= MAX_TRIPS
    }

    /// Loop iterations of one invocation.
    fn trips(&self, variant: Variant) -> usize {
        let (taps, blocks) = (self.weight.taps(), self.weight.channels().div_ceil(8));
        match variant {
            Variant::Reference => taps * (1 + self.weight.channels()),
            Variant::Tile { .. } => taps * (1 + blocks) + EPILOGUE_TRIPS,
            Variant::Lanes { .. } => taps * (1 + lanes_trips(blocks)),
            Variant::Tiled { .. } => taps * (1 + blocks.div_ceil(2) * 9) + EPILOGUE_TRIPS,
            Variant::Coop { coop, .. } => {
                taps * (coop.find_trips() + coop.trips(blocks)) + coop.epilogue_trips()
            }
        }
    }

    fn bound(&self, cx: &Lower<'_>) -> Result<Bound> {
        let mut next = 1;
        let mut take = |wanted: bool| -> Result<Option<Operand>> {
            if !wanted {
                return Ok(None);
            }
            next += 1;
            cx.input(next - 1).cloned().map(Some)
        };
        Ok(Bound {
            x: cx.input(0)?.clone(),
            x2: take(self.two)?,
            table: take(self.shift)?,
            row: take(self.shift)?,
            residual: take(self.residual)?,
        })
    }

    /// Floating-point operations for a pixel.
    fn cost(&self, chunk: &Chunk) -> usize {
        2 * self.weight.taps() * self.weight.channels() * chunk.rows
    }

    /// A launch for parts of the taps, and one that adds them up, where tiles are too few for a real GPU. False where they are not.
    fn split(&self, cx: &mut Lower<'_>, bound: &Bound, variant: Variant) -> Result<bool> {
        let pixels = cx.output().shape.rows();
        let ([chunk], Variant::Tiled { .. } | Variant::Coop { .. }) =
            (self.weight.chunks(), variant)
        else {
            return Ok(false);
        };
        let (taps, blocks) = (self.weight.taps(), self.weight.channels().div_ceil(8));
        let splits = parts(cx, variant.tiles(pixels, chunk.rows), taps * blocks).min(taps);
        if splits == 1 || pixels > rows_per_dispatch(cx, self.cost(chunk)) {
            return Ok(false);
        }
        let part = cx.scratch([splits, pixels, chunk.rows], Elem::F32);
        let mut sums = self.dispatch(cx, bound, variant, chunk, (0, pixels), Some(&part));
        sums.groups[2] = splits as u32;
        cx.dispatch(sums)?;
        let p = self.params(cx, bound, chunk, (0, pixels));
        let adding = Dispatch::new(merge(cx.act, self.form(bound), splits), &p).arg(&part);
        let adding = self.epilogue(cx, adding, bound);
        let adding = adding.linear(pixels * chunk.rows, 64).trips(splits);
        cx.dispatch([&bound.table, &bound.row].into_iter().flatten().fold(adding, Dispatch::arg))?;
        Ok(true)
    }

    fn form(&self, bound: &Bound) -> Form {
        Form {
            two: self.two,
            table: bound.table.as_ref().map(|t| t.elem),
            act: self.act,
            bias: self.bias.is_some(),
            residual: self.residual,
            partial: false,
        }
    }

    /// Output pixels `m0..m` by one window of the weight.
    fn params(
        &self,
        cx: &Lower<'_>,
        bound: &Bound,
        chunk: &Chunk,
        (m0, m): (usize, usize),
    ) -> Params {
        let (x, y) = (bound.x.shape.dims(), cx.output().shape.dims());
        Params {
            m0: m0 as u32,
            m: m as u32,
            n: chunk.rows as u32,
            n0: chunk.row0 as u32,
            n_total: self.weight.rows() as u32,
            in_h: x[1] as u32,
            in_w: x[2] as u32,
            out_h: y[1] as u32,
            out_w: y[2] as u32,
            ca: x[3] as u32,
            cb: bound.x2.as_ref().map_or(0, |b| b.shape.last()) as u32,
            side: self.side as u32,
            stride: self.conv.stride as u32,
            up: u32::from(self.conv.upsample),
            before: self.conv.zeros(self.side).0 as u32,
            steps: bound.table.as_ref().map_or(1, |t| t.shape.rows()) as u32,
        }
    }

    /// Binds what becomes of a sum, but for time embeddings.
    fn epilogue(&self, cx: &Lower<'_>, dispatch: Dispatch, bound: &Bound) -> Dispatch {
        dispatch.arg(self.bias.as_ref()).arg(bound.residual.as_ref()).arg(cx.output())
    }

    /// Output pixels `m0..m`, into sums of parts of the taps, if there are any.
    fn dispatch(
        &self,
        cx: &Lower<'_>,
        bound: &Bound,
        variant: Variant,
        chunk: &Chunk,
        (m0, m): (usize, usize),
        part: Option<&Operand>,
    ) -> Dispatch {
        let form = Form { partial: part.is_some(), ..self.form(bound) };
        let spec = spec(variant, bound.x.elem, cx.act, form);
        let dispatch = Dispatch::new(spec, &self.params(cx, bound, chunk, (m0, m))).arg(&bound.x);
        let dispatch = match part {
            Some(part) => dispatch.arg(part),
            None => self.epilogue(cx, dispatch, bound),
        };
        let extras = [&bound.x2, &bound.table, &bound.row].into_iter().flatten();
        let extras = extras.take(if part.is_some() { usize::from(self.two) } else { 3 });
        extras
            .fold(dispatch.weight(chunk, self.weight.format()), Dispatch::arg)
            .linear(variant.tiles(m - m0, chunk.rows), variant.threads())
            .trips(self.trips(variant))
            .flops((m - m0) * self.cost(chunk))
    }
}

/// The truth, in f64, without epilogue. x `[b, h, w, c]` flat with `shape` its dimensions, w
/// `[rows, side², c]`. Returns `[b, h', w', rows]` flat; empty if the window does not fit.
pub fn oracle(x: &[f32], shape: [usize; 4], w: &[f32], side: usize, conv: Conv) -> Vec<f64> {
    let [b, h, wd, c] = shape;
    let up = usize::from(conv.upsample);
    let (Some(oh), Some(ow)) = (conv.outputs(h, side), conv.outputs(wd, side)) else {
        return Vec::new();
    };
    let before = conv.zeros(side).0;
    let place = |o: usize, k: usize, size: usize| {
        let i = (o * conv.stride + k).checked_sub(before)?;
        (i < size << up).then_some(i >> up)
    };
    let rows = w.len() / (side * side * c);
    let mut y = Vec::with_capacity(b * oh * ow * rows);
    for out in 0..b * oh * ow {
        let (item, oy, ox) = (out / (oh * ow), out / ow % oh, out % ow);
        for row in w.chunks_exact(side * side * c) {
            let mut sum = 0.0;
            for (tap, taps) in row.chunks_exact(c).enumerate() {
                let (iy, ix) = (place(oy, tap / side, h), place(ox, tap % side, wd));
                let (Some(iy), Some(ix)) = (iy, ix) else { continue };
                let pixel = &x[((item * h + iy) * wd + ix) * c..][..c];
                sum +=
                    pixel.iter().zip(taps).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            }
            y.push(sum);
        }
    }
    y
}
