//! x in eight bits, thirty-two channels of a row by themselves: what a product with integers takes (`--int-dot`).

use std::any::Any;

use super::matmul::pieces::load_eight;
use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Operand, Var, Vector};
use crate::{Result, params, source};

const FAST: Source = source!("round8.wgsl");
const REFERENCE: Source = source!("reference/round8.wgsl");

params! {
    /// `struct Params` of the shaders.
    pub struct Params {
        pub m: u32,
        pub k: u32,
        pub blocks: u32,
        pub pieces: u32,
    }
}

/// Words of thirty-two channels: their codes, four in a word; s, Σ q and Σ x² as f32; one that is zero.
pub const WORDS: usize = 12;

/// The order in which codes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// That of the channels.
    Plain,
    /// Of each eight channels the even ones, then the odd ones: so lie a word's nibbles, every other one under a mask.
    Nibbles,
}

/// Inputs: x `[.., K]`.
#[derive(Clone, Copy, Debug)]
struct Round8(Codes);

/// x `[.., K]` in eight bits: u32 `[.., ⌈K / 32⌉ · `[`WORDS`]`]`.
#[track_caller]
pub fn round8<'g>(x: Var<'g>, codes: Codes) -> Var<'g> {
    let shape = x.shape();
    let fits = if x.elem() == Elem::U32 {
        Err("x holds integers".into())
    } else if shape.is_empty() {
        Err(format!("x {shape:?} has no channels"))
    } else {
        Ok(shape.with_last(shape.last().div_ceil(32) * WORDS))
    };
    x.graph().record(Round8(codes), &[x], fits, Elem::U32)
}

impl Op for Round8 {
    fn name(&self) -> &'static str {
        "round8"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (x, y) = (cx.input(0)?.clone(), cx.output().clone());
        dispatch(cx, &x, &y, self.0, None)
    }
}

/// x in eight bits in memory of the op that is lowered; behind a norm with this scale, but for what the product does.
pub(super) fn rounded(
    cx: &mut Lower<'_>,
    x: &Operand,
    codes: Codes,
    gamma: Option<&Vector>,
) -> Result<Operand> {
    let y = cx.scratch([x.shape.rows(), x.shape.last().div_ceil(32) * WORDS], Elem::U32);
    dispatch(cx, x, &y, codes, gamma)?;
    Ok(y)
}

fn dispatch(
    cx: &mut Lower<'_>,
    x: &Operand,
    y: &Operand,
    codes: Codes,
    gamma: Option<&Vector>,
) -> Result<()> {
    let (m, k) = (x.shape.rows(), x.shape.last());
    let pieces = k.div_ceil(32);
    let p =
        Params { m: m as u32, k: k as u32, blocks: k.div_ceil(8) as u32, pieces: pieces as u32 };
    let (spec, count, trips) = match cx.reference() {
        true => (reference(x.elem, codes, gamma.is_some()), m * pieces * WORDS, 64),
        false => (fast(x.elem, k.is_multiple_of(8), codes, gamma.is_some()), m * pieces, 0),
    };
    let dispatch = Dispatch::new(spec, &p).arg(x).arg(y).arg(gamma);
    cx.dispatch(dispatch.linear(count, 64).trips(trips))
}

fn reference(x: Elem, codes: Codes, norm: bool) -> Spec {
    form(Spec::new(REFERENCE).alias("xload", x), codes, norm)
}

fn fast(x: Elem, vec8: bool, codes: Codes, norm: bool) -> Spec {
    let spec = load_eight(Spec::new(FAST).u32("GAMMA", 3), x, vec8);
    form(spec, codes, norm)
}

fn form(spec: Spec, codes: Codes, norm: bool) -> Spec {
    spec.flag("NIBBLES", codes == Codes::Nibbles).flag("NORM", norm)
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for x in ACTS {
        for (codes, norm) in [(Codes::Plain, true), (Codes::Nibbles, true), (Codes::Nibbles, false)]
        {
            specs.push(reference(x, codes, norm));
            specs.extend([true, false].map(|vec8| fast(x, vec8, codes, norm)));
        }
    }
    vec![OpInfo { name: "round8", specs, params: Params::FIELDS }]
}

/// The truth: codes and scale of each thirty-two channels of a row; what is missing at its end is zero.
pub fn oracle(x: &[f32], k: usize) -> Vec<([i8; 32], f64)> {
    let piece = |x: &[f32]| {
        let top = x.iter().fold(0.0f64, |top, v| top.max(f64::from(*v).abs()));
        let mut codes = [0; 32];
        if top > 0.0 {
            for (code, v) in codes.iter_mut().zip(x) {
                *code = (f64::from(*v) * (127.0 / top)).round_ties_even() as i8;
            }
        }
        (codes, top / 127.0)
    };
    x.chunks_exact(k).flat_map(|row| row.chunks(32).map(piece)).collect()
}

/// Codes, scale and sum of codes of each thirty-two channels, from the words of the shaders.
pub fn read(words: &[u32], codes: Codes) -> Vec<([i8; 32], f32, f32)> {
    let piece = |words: &[u32]| {
        let mut all = [0; 32];
        for (i, code) in all.iter_mut().enumerate() {
            let place = match codes {
                Codes::Plain => i,
                Codes::Nibbles => i / 8 * 8 + i % 8 / 2 + 4 * (i % 2),
            };
            *code = (words[place / 4] >> (8 * (place % 4))) as i8;
        }
        (all, f32::from_bits(words[8]), f32::from_bits(words[9]))
    };
    words.chunks_exact(WORDS).map(piece).collect()
}
