//! Element by element: activations, sums, products, gated units.

use std::any::Any;
use std::ops::{Add, Mul};
use std::rc::Rc;

use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Arg, Dispatch, Lower, Op, Operand, Var};
use crate::{Result, params, source};

const FAST: Source = source!("pointwise.wgsl");
const REFERENCE: Source = source!("reference/pointwise.wgsl");
const ACTIVATION: Source = source!("parts/activation.wgsl");
const SOFT_CAP: Source = source!("parts/soft_cap.wgsl");

params! {
    pub struct Params {
        pub n: u32,
        pub b_len: u32,
        pub c: u32,
        pub kind: u32,
        pub scale: f32,
        pub pad0: u32,
        pub pad1: u32,
        pub pad2: u32,
    }
}

/// Activation functions, numbered as in shaders/parts/activation.wgsl.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Act {
    #[default]
    None = 0,
    /// x·σ(x)
    Silu = 1,
    /// x·Φ(x), the exact form
    Gelu = 2,
    /// x·σ(1.702 x)
    QuickGelu = 3,
    /// The tanh approximation of GELU.
    GeluTanh = 4,
    /// max(x, 0)
    Relu = 5,
}

impl Act {
    /// The truth, in f64.
    pub fn oracle(self, x: f64) -> f64 {
        let logistic = |v: f64| 1.0 / (1.0 + (-v).exp());
        match self {
            Act::None => x,
            Act::Silu => x * logistic(x),
            Act::Gelu => 0.5 * x * erfc(-x / std::f64::consts::SQRT_2),
            Act::QuickGelu => x * logistic(1.702 * x),
            Act::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + u.tanh())
            }
            Act::Relu => x.max(0.0),
        }
    }
}

/// erfc in f64: the Taylor series of erf near zero, the continued fraction of erfc (Lentz) in the tail.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    let scale = 2.0 / std::f64::consts::PI.sqrt();
    if x < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - scale * sum;
    }
    let mut fraction = 0.0;
    for n in (1..=100).rev() {
        fraction = f64::from(n) / 2.0 / (x + fraction);
    }
    (-x * x).exp() / (x + fraction) / std::f64::consts::PI.sqrt()
}

/// y = activation(a)
#[derive(Clone, Copy, Debug)]
pub struct Unary {
    pub act: Act,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryKind {
    Add,
    Mul,
    /// activation(a) · b
    Gate(Act),
}

/// Two inputs; the second may be shorter and repeat.
#[derive(Clone, Copy, Debug)]
pub struct Binary {
    pub kind: BinaryKind,
    /// The second input repeats with its own period.
    pub broadcast: bool,
}

/// y[.., c] = a[.., c] · activation(a[.., C + c])
#[derive(Clone, Copy, Debug)]
pub(super) struct GatedHalves {
    pub(super) act: Act,
}

#[derive(Clone, Copy, Debug)]
struct Scale {
    factor: f32,
}

#[derive(Clone, Copy, Debug)]
struct SoftCap {
    cap: f32,
}

#[track_caller]
fn unary(x: Var<'_>, act: Act) -> Var<'_> {
    x.graph().record(Unary { act }, &[x], Ok(x.shape()), x.graph().act())
}
/// x·σ(x)
#[track_caller]
pub fn silu(x: Var<'_>) -> Var<'_> {
    unary(x, Act::Silu)
}
/// Any of the activations.
#[track_caller]
pub fn activate(x: Var<'_>, act: Act) -> Var<'_> {
    unary(x, act)
}
/// activation(gate) · value, the feed-forward unit of Llama with SiLU.
#[track_caller]
pub fn gated<'g>(gate: Var<'g>, value: Var<'g>, act: Act) -> Var<'g> {
    binary(gate, value, BinaryKind::Gate(act))
}
/// `cap · tanh(x / cap)`, stored as x is (Gemma 2's logits, which are f32 whatever the activations are).
#[track_caller]
pub fn soft_cap(x: Var<'_>, cap: f32) -> Var<'_> {
    let fits = if cap > 0.0 { Ok(x.shape()) } else { Err(format!("a cap of {cap}")) };
    x.graph().record(SoftCap { cap }, &[x], fits, x.elem())
}
/// diffusers' GEGLU: `[.., 2C]` → `[.., C]`, value in the first half, GELU gate in the second.
#[track_caller]
pub fn geglu(x: Var<'_>) -> Var<'_> {
    let shape = x.shape();
    let fits = match shape.last() {
        c if c > 0 && c.is_multiple_of(2) => Ok(shape.with_last(c / 2)),
        c => Err(format!("{c} channels cannot be halved")),
    };
    x.graph().record(GatedHalves { act: Act::Gelu }, &[x], fits, x.graph().act())
}

/// Shapes are equal, or the second is the tail of the first (channels, or one item of the batch). The
/// result is stored as both inputs are.
#[track_caller]
fn binary<'g>(a: Var<'g>, b: Var<'g>, kind: BinaryKind) -> Var<'g> {
    let (sa, sb) = (a.shape(), b.shape());
    let one = sb.dims().iter().skip_while(|d| **d == 1).copied().collect::<Vec<_>>();
    let broadcast = sa.len() != sb.len();
    let tail = sa.dims().ends_with(&one) && matches!(kind, BinaryKind::Add | BinaryKind::Mul);
    let fits = if a.elem() != b.elem() {
        Err(format!("{sa:?} stored as {:?} with {sb:?} stored as {:?}", a.elem(), b.elem()))
    } else if sa == sb || (sa.len() == sb.len() && sa.dims().ends_with(&one)) || tail {
        Ok(sa)
    } else {
        Err(format!("{sa:?} vs {sb:?}"))
    };
    a.graph().record(Binary { kind, broadcast }, &[a, b], fits, a.elem())
}

impl<'g> Add for Var<'g> {
    type Output = Var<'g>;
    #[track_caller]
    fn add(self, other: Var<'g>) -> Var<'g> {
        binary(self, other, BinaryKind::Add)
    }
}
impl<'g> Mul for Var<'g> {
    type Output = Var<'g>;
    #[track_caller]
    fn mul(self, other: Var<'g>) -> Var<'g> {
        binary(self, other, BinaryKind::Mul)
    }
}
impl<'g> Mul<Var<'g>> for f32 {
    type Output = Var<'g>;
    #[track_caller]
    fn mul(self, x: Var<'g>) -> Var<'g> {
        x.graph().record(Scale { factor: self }, &[x], Ok(x.shape()), x.elem())
    }
}

fn spec(reference: bool, kind: u32, act: Act, elem: Elem) -> Spec {
    let spec = if reference {
        Spec::new(REFERENCE).alias("act", elem)
    } else {
        Spec::new(FAST).alias4("act4", elem)
    };
    spec.part(ACTIVATION).part(SOFT_CAP).u32("KIND", kind).u32("ACT", act as u32)
}

fn emit(cx: &mut Lower<'_>, kind: u32, act: Act, b: Option<Operand>, scale: f32) -> Result<()> {
    let (a, y) = (cx.input(0)?.clone(), cx.output().clone());
    let b_len = b.as_ref().map_or(4, |b| b.shape.len());
    let (rows, c) = (y.shape.rows(), y.shape.last());
    let fours = y.shape.len().is_multiple_of(4)
        && b_len.is_multiple_of(4)
        && (kind != 4 || c.is_multiple_of(4));
    let broadcast = b.as_ref().is_some_and(|b| b.shape.len() != y.shape.len());
    let window =
        cx.window_rows(rows, [&a, &y].into_iter().chain(b.as_ref().filter(|_| !broadcast)));
    let reference = cx.reference() || !fours;
    for first in (0..rows).step_by(window) {
        let end = rows.min(first + window);
        let bind = |operand: &Operand| match window == rows {
            true => Arg::from(operand),
            false => operand.window(first, end),
        };
        let n = (end - first) * c;
        let b_len = if broadcast || b.is_none() { b_len } else { n };
        let p = Params {
            n: n as u32,
            b_len: b_len as u32,
            c: c as u32,
            kind,
            scale,
            ..Default::default()
        };
        let b = b.as_ref().map_or(Arg::Nothing, |b| if broadcast { b.into() } else { bind(b) });
        let dispatch = Dispatch::new(spec(reference, kind, act, y.elem), &p)
            .arg(bind(&a))
            .arg(b)
            .arg(bind(&y))
            .linear(if reference { n } else { n / 4 }, 64)
            .flops(n);
        cx.dispatch(dispatch)?;
    }
    Ok(())
}

impl Op for Unary {
    fn name(&self) -> &'static str {
        "activation"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn absorb(&self, next: &dyn Op, slot: usize) -> Option<Rc<dyn Op>> {
        let product = next.as_any().downcast_ref::<Binary>()?;
        let gate = product.kind == BinaryKind::Mul && !product.broadcast && slot == 0;
        gate.then(|| {
            Rc::new(Binary { kind: BinaryKind::Gate(self.act), broadcast: false }) as Rc<dyn Op>
        })
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        emit(cx, 0, self.act, None, 1.0)
    }
}

impl Op for Binary {
    fn name(&self) -> &'static str {
        match self.kind {
            BinaryKind::Add => "add",
            BinaryKind::Mul => "mul",
            BinaryKind::Gate(_) => "gate",
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let b = cx.input(1)?.clone();
        let (kind, act) = match self.kind {
            BinaryKind::Add => (1, Act::None),
            BinaryKind::Mul => (2, Act::None),
            BinaryKind::Gate(act) => (3, act),
        };
        emit(cx, kind, act, Some(b), 1.0)
    }
}

impl Op for GatedHalves {
    fn name(&self) -> &'static str {
        "geglu"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        emit(cx, 4, self.act, None, 1.0)
    }
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        emit(cx, 5, Act::None, None, self.factor)
    }
}

impl Op for SoftCap {
    fn name(&self) -> &'static str {
        "soft_cap"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        emit(cx, 6, Act::None, None, self.cap)
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for elem in ACTS {
        for reference in [false, true] {
            specs.extend([1, 2, 5, 6].map(|kind| spec(reference, kind, Act::None, elem)));
            for act in [Act::Silu, Act::Gelu, Act::QuickGelu, Act::GeluTanh, Act::Relu] {
                specs.extend([0, 3, 4].map(|kind| spec(reference, kind, act, elem)));
            }
        }
    }
    vec![OpInfo { name: "pointwise", specs, params: Params::FIELDS }]
}
