//! The two products of a gated unit in one launch, where their weights lie side by side: what an MLP of a Llama begins with. Few rows
//! meet them by pieces here, many by tiles (beside.rs).

use std::any::Any;
use std::rc::Rc;

use super::beside::halves;
use super::joint::{alike, side};
use super::pieces::{Pieces, load_pieces};
use super::{ACTIVATION, Matmul, Tail, VEC_ROWS};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Arg, Dispatch, Lower, Op, Operand};
use crate::ops::pointwise::Act;
use crate::ops::round8::rounded;
use crate::ops::{OpInfo, formats};
use crate::quant::Format;
use crate::{Error, Result, params, source};

const GATED: Source = source!("matmul_gated.wgsl");

params! {
    pub struct Params {
        pub k: u32,
        pub blocks: u32,
        pub n: u32,
        pub pad: u32,
        pub words: [u32; 2],
        pub scales: [u32; 2],
        pub cubic: [f32; 4],
    }
}

/// `y = activation(x · w0ᵀ + bias0) · (x · w1ᵀ + bias1)`. Inputs: x `[.., K]`, twice.
#[derive(Clone, Debug)]
struct Gated {
    gate: Matmul,
    up: Matmul,
}

#[derive(Clone, Copy, Debug)]
struct Form {
    x: Elem,
    act: Elem,
    activation: Act,
    bias: bool,
    /// Bits of a norm's ε.
    eps: Option<u32>,
}

/// Both at once, if their weights lie side by side.
pub(super) fn pair(gate: &Matmul, up: &Matmul) -> Option<Rc<dyn Op>> {
    let plain = up.act == Act::None && up.tail == Tail::None && !up.into_cache;
    let fits = gate.tail == Tail::Multiply
        && plain
        && !gate.into_cache
        && gate.out.is_none()
        && up.out.is_none()
        && gate.weight.rows() == up.weight.rows()
        && alike(gate, up);
    fits.then(|| Rc::new(Gated { gate: gate.clone(), up: up.clone() }) as Rc<dyn Op>)
}

impl Op for Gated {
    fn name(&self) -> &'static str {
        "matmul"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let x = cx.input(0)?.clone();
        if x.shape.rows() > VEC_ROWS {
            return self.lower_many(cx, x);
        }
        let (m, n, k) = (x.shape.rows(), self.gate.weight.rows(), x.shape.last());
        let missing = || Error::Runtime("a gated unit has no kernel here".into());
        let codes = self.gate.codes(cx).filter(|_| self.up.codes(cx).is_some());
        let formats = [&self.gate, &self.up].map(|product| product.weight.format());
        let format = Format::of_all(formats).ok_or_else(missing)?;
        let pieces =
            Pieces::fit(cx, (format, codes), (m, k, 2 * n)).ok_or_else(missing)?.in_pairs();
        let chunks = [&self.gate, &self.up].map(|m| m.weight.chunks().first());
        let [Some(a), Some(b)] = chunks else { return Err(missing()) };
        let places = a.beside([a, b].into_iter()).ok_or_else(missing)?;
        let mut p =
            Params { k: k as u32, blocks: k.div_ceil(8) as u32, n: n as u32, ..Default::default() };
        for (i, matmul) in [&self.gate, &self.up].into_iter().enumerate() {
            (p.words[i], p.scales[i], p.cubic[i]) = side(matmul, places[i]);
        }
        let norm = self.gate.norm.as_ref();
        let gamma = norm.map(|(gamma, _)| gamma);
        let eight = pieces.codes.map(|codes| rounded(cx, &x, codes, gamma)).transpose()?;
        let form = Form {
            x: x.elem,
            act: cx.act,
            activation: self.gate.act,
            bias: self.gate.bias.is_some(),
            eps: norm.map(|(_, eps)| eps.to_bits()),
        };
        let dispatch = Dispatch::new(spec(pieces, form), &p)
            .arg(eight.as_ref().unwrap_or(&x))
            .arg(self.gate.bias.as_ref())
            .arg(self.up.bias.as_ref())
            .arg(&cx.output().clone())
            // Rounded, x is bound once more, as floats.
            .arg(eight.as_ref().map_or(Arg::from(gamma), Arg::from))
            .weight_as(&a.whole_side(), |spec| pieces.dot_part(spec, format))
            .flops(4 * m * n * k);
        cx.dispatch(pieces.launch(dispatch, m, 2 * n, k))
    }
}

impl Gated {
    /// By tiles, or one product behind the other.
    fn lower_many(&self, cx: &mut Lower<'_>, x: Operand) -> Result<()> {
        if let Some(both) = halves(cx, &self.gate, &self.up)? {
            return both.lower(cx);
        }
        let (up, output) = (cx.scratch(cx.output().shape, cx.act), cx.output().clone());
        cx.lower_as(&self.up, vec![x.clone()], up.clone())?;
        cx.lower_as(&self.gate, vec![x, up], output)
    }
}

fn spec(pieces: Pieces, form: Form) -> Spec {
    load_pieces(Spec::new(GATED), pieces, form.x, form.eps, 5)
        .part(ACTIVATION)
        .alias("act", form.act)
        .u32("ACT", form.activation as u32)
        .flag("BIAS", form.bias)
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for format in formats() {
        for (x, vec8) in [(Elem::F32, true), (Elem::F16, true), (Elem::F16, false)] {
            let (activation, eps) = (Act::Silu, Some(1e-5f32.to_bits()));
            let form = Form { x, act: x, activation, bias: true, eps };
            for pieces in Pieces::all(vec8, format).map(Pieces::in_pairs) {
                specs.push(pieces.dot_part(spec(pieces, form), format));
            }
        }
    }
    vec![OpInfo { name: "matmul_gated", specs, params: Params::FIELDS }]
}
