//! Rotary position embedding (RoFormer, Su et al. 2021) in the half-split order of Hugging Face's
//! `rotate_half`.

use std::any::Any;

use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Var, Vector};
use crate::{Result, params, source};

const FAST: Source = source!("rope.wgsl");
const REFERENCE: Source = source!("reference/rope.wgsl");
const SIN_COS: Source = source!("parts/sin_cos.wgsl");

params! {
    /// `struct Params` of the shaders.
    pub struct Params {
        pub n: u32,
        pub rows: u32,
        pub heads: u32,
        pub half: u32,
    }
}

/// Inputs: x `[B, S, heads · D]`, start u32 `[1]`.
#[derive(Clone, Debug)]
struct Rope {
    inv_freq: Vector,
    heads: usize,
}

/// Turns pair (i, i + D/2) of every head of x `[B, S, heads · D]` by `(start + s) · inv_freq[i]`. `start` is
/// u32 `[1]`, `inv_freq` `[D/2]`. The angle is a product of two f32, as in transformers.
#[track_caller]
pub fn rope<'g>(x: Var<'g>, start: Var<'g>, inv_freq: &Vector, heads: usize) -> Var<'g> {
    let shape = x.shape();
    let fits = if shape.rank() != 3 || heads == 0 || shape.last() != heads * 2 * inv_freq.len {
        Err(format!("x {shape:?} with {heads} heads of {} frequencies", inv_freq.len))
    } else if start.elem() != Elem::U32 || start.shape().len() != 1 {
        Err(format!("start must be one u32, not {:?} {:?}", start.shape(), start.elem()))
    } else {
        Ok(shape)
    };
    let op = Rope { inv_freq: inv_freq.clone(), heads };
    x.graph().record(op, &[x, start], fits, x.elem())
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (x, start, y) = (cx.input(0)?.clone(), cx.input(1)?.clone(), cx.output().clone());
        let half = self.inv_freq.len;
        let reference = cx.reference() || !half.is_multiple_of(4);
        let n = x.shape.len() / if reference { 2 } else { 8 };
        let p = Params {
            n: n as u32,
            rows: x.shape.dims()[1] as u32,
            heads: self.heads as u32,
            half: half as u32,
        };
        let dispatch = Dispatch::new(spec(reference, x.elem), &p)
            .arg(&x)
            .arg(&start)
            .arg(&self.inv_freq)
            .arg(&y)
            .linear(n, 64)
            .flops(6 * x.shape.len());
        cx.dispatch(dispatch)
    }
}

fn spec(reference: bool, elem: Elem) -> Spec {
    match reference {
        true => Spec::new(REFERENCE).alias("act", elem),
        false => Spec::new(FAST).alias4("act4", elem),
    }
    .part(SIN_COS)
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let specs = ACTS.iter().flat_map(|e| [spec(false, *e), spec(true, *e)]).collect();
    vec![OpInfo { name: "rope", specs, params: Params::FIELDS }]
}

/// The truth, in f64 but for the angle, which transformers also rounds to f32. x `[batch, rows, heads · d]`.
pub fn oracle(x: &[f32], inv_freq: &[f32], rows: usize, heads: usize, start: u32) -> Vec<f64> {
    let half = inv_freq.len();
    let mut y = vec![0.0; x.len()];
    for (h, head) in x.chunks_exact(2 * half).enumerate() {
        let position = (start + (h / heads % rows) as u32) as f32;
        for i in 0..half {
            let (sin, cos) = f64::from(position * inv_freq[i]).sin_cos();
            let (lo, hi) = (f64::from(head[i]), f64::from(head[i + half]));
            y[h * 2 * half + i] = lo * cos - hi * sin;
            y[h * 2 * half + half + i] = hi * cos + lo * sin;
        }
    }
    y
}
