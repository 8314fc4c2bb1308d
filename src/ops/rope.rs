//! Rotary position embedding (RoFormer, Su et al. 2021) in the half-split order of Hugging Face's
//! `rotate_half`.

use std::any::Any;
use std::rc::Rc;

use super::kv_cache::KvWrite;
use super::matmul::VEC_ROWS;
use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Joint, Lower, Op, Operand, Var, Vector};
use crate::{Result, params, source};

const FAST: Source = source!("rope.wgsl");
const JOINT: Source = source!("rope_joint.wgsl");
const REFERENCE: Source = source!("reference/rope.wgsl");
const NORM_NONE: Source = source!("parts/norm_none.wgsl");
const NORM_HEAD: Source = source!("parts/norm_head.wgsl");
const GAMMA_HEAD: Source = source!("parts/gamma_head.wgsl");
const GAMMA_HEADS: Source = source!("parts/gamma_heads.wgsl");
const TURN: Source = source!("parts/rope_turn.wgsl");
pub(super) const SIN_COS: Source = source!("parts/sin_cos.wgsl");

params! {
    /// `struct Params` of the shaders.
    pub struct Params {
        pub n: u32,
        pub first: u32,
        pub rows: u32,
        pub heads: u32,
        pub heads2: u32,
        pub half: u32,
        pub rest: u32,
        pub scale: f32,
        pub context: u32,
        pub eps: f32,
        pub pad0: u32,
        pub pad1: u32,
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

    pub(super) fn rotary(&self) -> &Rotary {
        &self.rotary
    }
    pub(super) fn d(&self) -> usize {
        self.d
    }
    /// Whether it only turns, four channels at a time, and has no norm of heads.
    pub(super) fn is_plain(&self) -> bool {
        self.norm.is_none() && self.fours()
    }
    /// Whether heads of the same length are turned by the same angles.
    pub(super) fn turns_as(&self, other: &Rope) -> bool {
        let (a, b) = (&self.rotary, &other.rotary);
        a.inv_freq.buffer.same(&b.inv_freq.buffer) && a.scale == b.scale && self.d == other.d
    }

    /// Whether one kernel turns what both turn: queries and keys of a layer.
    fn joins_with(&self, other: &Rope) -> bool {
        let eps = |rope: &Rope| rope.norm.as_ref().map(|(_, eps)| *eps);
        let caches = self.into_cache && other.into_cache;
        self.turns_as(other) && eps(self) == eps(other) && self.fours() && !caches
    }

    /// One launch for this op, and for another that [joins](Self::joins_with) it.
    fn emit(&self, cx: &mut Lower<'_>, other: Option<(&Rope, &Joint)>) -> Result<()> {
        let (x, start, y) = (cx.input(0)?.clone(), cx.input(1)?.clone(), cx.output().clone());
        let at = cx.inputs().get(3).filter(|_| self.into_cache).cloned();
        let (half, rest) = (self.rotary.inv_freq.len, self.rest());
        let reference = cx.reference() || !self.fours();
        let items = x.shape.rows() * (half + rest) / if reference { 1 } else { 4 };
        let heads2 = other.map_or(0, |(rope, _)| rope.heads);
        let n = items * (self.heads + heads2);
        let into = [Some((self, &y)), other.map(|(rope, joint)| (rope, &joint.output))];
        let caches = into.map(|to| to.filter(|(rope, _)| rope.into_cache).map(|(_, cache)| cache));
        let p = Params {
            n: n as u32,
            first: (items * self.heads) as u32,
            rows: x.shape.dims()[1] as u32,
            heads: self.heads as u32,
            heads2: heads2 as u32,
            half: half as u32,
            rest: rest as u32,
            scale: self.rotary.scale,
            context: caches.into_iter().flatten().next().map_or(0, |y| y.shape.rows() as u32),
            eps: self.norm.as_ref().map_or(0.0, |(_, eps)| *eps),
            ..Default::default()
        };
        let form = Form {
            partial: rest > 0,
            norm: self.norm.is_some(),
            caches: u32::from(caches[0].is_some()) + 2 * u32::from(caches[1].is_some()),
            two: other.is_some(),
        };
        let mut dispatch = Dispatch::new(spec(reference, x.elem, form), &p)
            .arg(&x)
            .arg(&start)
            .arg(&self.rotary.inv_freq)
            .arg(&y)
            .linear(n, 64)
            .trips(if self.norm.is_some() { self.d / 4 } else { 0 })
            .flops(6 * x.shape.rows() * (self.heads + heads2) * self.d);
        dispatch = match other {
            Some((_, joint)) => dispatch.arg(joint.inputs.first()).arg(&joint.output),
            None => dispatch.arg(at.as_ref()),
        };
        for (gamma, _) in [Some(self), other.map(|(rope, _)| rope)]
            .into_iter()
            .flatten()
            .filter_map(|rope| rope.norm.as_ref())
        {
            dispatch = dispatch.arg(gamma);
        }
        cx.dispatch(dispatch)
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
    fn partners(&self) -> usize {
        1
    }
    fn joins(&self, inputs: &[usize], other: &dyn Op, theirs: &[usize]) -> bool {
        let Some(other) = other.as_any().downcast_ref::<Rope>() else { return false };
        // One position for both, at which rows go into a cache, too.
        let at = |rope: &Rope, inputs: &[usize]| !rope.into_cache || inputs[3] == inputs[1];
        let same = inputs[1] == theirs[1] && at(self, inputs) && at(other, theirs);
        same && self.joins_with(other)
    }
    fn lower_joint(&self, cx: &mut Lower<'_>, others: &[Joint]) -> Result<bool> {
        let [other] = others else { return Ok(false) };
        let Some(rope) = other.op.as_any().downcast_ref::<Rope>() else { return Ok(false) };
        let rows = |x: &Operand| (x.shape.dims()[0], x.shape.dims()[1]);
        match other.inputs.first() {
            Some(x) if rows(x) == rows(cx.input(0)?) => self.emit(cx, Some((rope, other)))?,
            _ => return Ok(false),
        }
        Ok(true)
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        self.emit(cx, None)
    }
}

/// What a kernel turns.
#[derive(Clone, Copy)]
struct Form {
    partial: bool,
    norm: bool,
    /// Bit i: what is made of the i-th input goes into a cache.
    caches: u32,
    two: bool,
}

fn spec(reference: bool, elem: Elem, form: Form) -> Spec {
    let spec = match reference {
        true => Spec::new(REFERENCE).alias("act", elem).flag("INTO_CACHE", form.caches > 0),
        false => {
            let spec = match form.two {
                true => Spec::new(JOINT).u32("CACHES", form.caches),
                false => Spec::new(FAST).flag("INTO_CACHE", form.caches > 0),
            };
            let spec = spec.alias4("act4", elem).flag("PARTIAL", form.partial).part(TURN);
            match form.norm {
                true => spec.part(NORM_HEAD).part(if form.two { GAMMA_HEADS } else { GAMMA_HEAD }),
                false => spec.part(NORM_NONE),
            }
        }
    };
    spec.part(SIN_COS)
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for elem in ACTS {
        for caches in 0..3 {
            let plain = Form { partial: false, norm: false, caches, two: false };
            for two in [false, true].into_iter().filter(|two| *two || caches < 2) {
                for (partial, norm) in [(false, false), (true, false), (false, true), (true, true)]
                {
                    specs.push(spec(false, elem, Form { partial, norm, two, ..plain }));
                }
            }
        }
        let reference = |caches| Form { partial: false, norm: false, caches, two: false };
        specs.extend([0, 1].map(|caches| spec(true, elem, reference(caches))));
    }
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
