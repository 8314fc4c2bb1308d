//! Rotary position embedding (RoFormer, Su et al. 2021) in the half-split order of Hugging Face's
//! `rotate_half`.

use std::any::Any;
use std::rc::Rc;

use super::kv_cache::KvWrite;
use super::matmul::VEC_ROWS;
use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Var, Vector};
use crate::{Result, params, source};

const FAST: Source = source!("rope.wgsl");
const REFERENCE: Source = source!("reference/rope.wgsl");
const NORM_NONE: Source = source!("parts/norm_none.wgsl");
const NORM_HEAD: Source = source!("parts/norm_head.wgsl");
const SIN_COS: Source = source!("parts/sin_cos.wgsl");

params! {
    /// `struct Params` of the shaders.
    pub struct Params {
        pub n: u32,
        pub rows: u32,
        pub heads: u32,
        pub half: u32,
        pub rest: u32,
        pub scale: f32,
        pub context: u32,
        pub eps: f32,
    }
}

/// How fast each pair of channels turns.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Radians per position, f32 `[R/2]`: the first R channels of a head turn.
    pub inv_freq: Vector,
    /// Factor of sine and cosine (transformers' `attention_scaling`, of YaRN and LongRoPE), else 1.
    pub scale: f32,
}

/// Inputs: x `[B, S, heads · D]`, start u32 `[1]`; if the result goes into a cache, that `[1, context, heads · D]` and u32 `[1]`,
/// the first row there.
#[derive(Clone, Debug)]
pub(super) struct Rope {
    rotary: Rotary,
    heads: usize,
    /// Channels of a head.
    d: usize,
    /// An RMS norm of each head that is computed on the way: its scale and ε.
    norm: Option<(Vector, f32)>,
    into_cache: bool,
}

/// Turns pair (i, i + R/2) of every head of x `[B, S, heads · D]` by `(start + s) · inv_freq[i]`; channels of a
/// head beyond R stay. `start` is u32 `[1]`. The angle is a product of two f32, as in transformers.
#[track_caller]
pub fn rope<'g>(x: Var<'g>, start: Var<'g>, rotary: &Rotary, heads: usize) -> Var<'g> {
    let (shape, frequencies) = (x.shape(), rotary.inv_freq.len);
    let d = shape.last().checked_div(heads).unwrap_or(0);
    let fits = if shape.rank() != 3
        || heads == 0
        || !shape.last().is_multiple_of(heads)
        || frequencies == 0
        || d < 2 * frequencies
    {
        Err(format!("x {shape:?} with {heads} heads of {frequencies} frequencies"))
    } else if start.elem() != Elem::U32 || start.shape().len() != 1 {
        Err(format!("start must be one u32, not {:?} {:?}", start.shape(), start.elem()))
    } else {
        Ok(shape)
    };
    let op = Rope { rotary: rotary.clone(), heads, d, norm: None, into_cache: false };
    x.graph().record(op, &[x, start], fits, x.elem())
}

impl Rope {
    /// Channels that do not turn.
    fn rest(&self) -> usize {
        self.d - 2 * self.rotary.inv_freq.len
    }
    /// Whether four channels at a time are whole.
    fn fours(&self) -> bool {
        self.rotary.inv_freq.len.is_multiple_of(4) && self.rest().is_multiple_of(4)
    }
    /// Behind an RMS norm of each head. Every four pairs of channels compute its norm again, which few rows do not feel.
    pub(super) fn with_norm(&self, gamma: &Vector, eps: f32, rows: usize) -> Option<Rope> {
        let fits = rows <= VEC_ROWS && gamma.len == self.d && self.fours() && self.norm.is_none();
        fits.then(|| Rope { norm: Some((gamma.clone(), eps)), ..self.clone() })
    }
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn in_place(&self) -> Option<usize> {
        self.into_cache.then_some(2)
    }
    fn absorb(&self, next: &dyn Op, slot: usize) -> Option<Rc<dyn Op>> {
        let write = next.as_any().downcast_ref::<KvWrite>()?;
        let fits = !self.into_cache && write.takes_rows(slot);
        fits.then(|| Rc::new(Rope { into_cache: true, ..self.clone() }) as Rc<dyn Op>)
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (x, start, y) = (cx.input(0)?.clone(), cx.input(1)?.clone(), cx.output().clone());
        let at = cx.inputs().get(3).filter(|_| self.into_cache).cloned();
        let half = self.rotary.inv_freq.len;
        let rest = self.rest();
        let reference = cx.reference() || !self.fours();
        let n = x.shape.rows() * self.heads * (half + rest) / if reference { 1 } else { 4 };
        let p = Params {
            n: n as u32,
            rows: x.shape.dims()[1] as u32,
            heads: self.heads as u32,
            half: half as u32,
            rest: rest as u32,
            scale: self.rotary.scale,
            context: if self.into_cache { y.shape.rows() as u32 } else { 0 },
            eps: self.norm.as_ref().map_or(0.0, |(_, eps)| *eps),
        };
        let form = (rest > 0, self.into_cache, self.norm.is_some());
        let dispatch = Dispatch::new(spec(reference, x.elem, form), &p)
            .arg(&x)
            .arg(&start)
            .arg(&self.rotary.inv_freq)
            .arg(&y)
            .arg(at.as_ref())
            .linear(n, 64)
            .trips(if self.norm.is_some() { self.d / 4 } else { 0 })
            .flops(6 * x.shape.len());
        cx.dispatch(match &self.norm {
            Some((gamma, _)) => dispatch.arg(gamma),
            None => dispatch,
        })
    }
}

fn spec(reference: bool, elem: Elem, (partial, into_cache, norm): (bool, bool, bool)) -> Spec {
    match reference {
        true => Spec::new(REFERENCE).alias("act", elem),
        false => {
            let spec = Spec::new(FAST).alias4("act4", elem).flag("PARTIAL", partial);
            spec.part(if norm { NORM_HEAD } else { NORM_NONE })
        }
    }
    .flag("INTO_CACHE", into_cache)
    .part(SIN_COS)
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let forms = |e| {
        [
            (false, (false, false, false)),
            (false, (true, false, false)),
            (false, (true, true, false)),
            (false, (false, true, true)),
            (false, (true, false, true)),
            (true, (true, true, false)),
        ]
        .map(|(reference, form)| spec(reference, e, form))
    };
    let specs = ACTS.into_iter().flat_map(forms).collect();
    vec![OpInfo { name: "rope", specs, params: Params::FIELDS }]
}

/// One call for [`oracle`]: x has `rows` tokens of `heads` heads of `d` channels, from position `start` on.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub rows: usize,
    pub heads: usize,
    pub d: usize,
    pub start: u32,
    pub scale: f32,
}

/// The truth, in f64 but for the angle, which transformers also rounds to f32. x `[batch, rows, heads · d]`,
/// inv_freq `[R/2]`.
pub fn oracle(x: &[f32], inv_freq: &[f32], case: Case) -> Vec<f64> {
    let Case { rows, heads, d, start, scale } = case;
    let half = inv_freq.len();
    let mut y: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    for (h, head) in x.chunks_exact(d).enumerate() {
        let position = (start + (h / heads % rows) as u32) as f32;
        for i in 0..half {
            let (sin, cos) = f64::from(position * inv_freq[i]).sin_cos();
            let (sin, cos) = (f64::from(scale) * sin, f64::from(scale) * cos);
            let (lo, hi) = (f64::from(head[i]), f64::from(head[i + half]));
            y[h * d + i] = lo * cos - hi * sin;
            y[h * d + half + i] = hi * cos + lo * sin;
        }
    }
    y
}
