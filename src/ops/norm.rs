//! Group, layer and RMS norm. Statistics are f32 and take two passes: the mean, then deviations from it.

use std::any::Any;
use std::rc::Rc;

use super::concat::Concat;
use super::matmul::Matmul;
use super::pointwise::{Act, Binary, BinaryKind, Unary};
use super::rope::Rope;
use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Operand, Shape, Var, Vector};
use crate::{Result, params, source};

const ROWS: Source = source!("norm.wgsl");
const SLICES: Source = source!("norm_slices.wgsl");
const MERGE: Source = source!("norm_merge.wgsl");
const APPLY: Source = source!("norm_apply.wgsl");
const GROUP: Source = source!("norm_group.wgsl");
const REFERENCE: Source = source!("reference/norm.wgsl");
const INPUT: Source = source!("parts/norm_input.wgsl");
const ACTIVATION: Source = source!("parts/activation.wgsl");
const REDUCE_ALL_ONE: Source = source!("parts/reduce_all_one.wgsl");
const REDUCE_ALL_WORKGROUP: Source = source!("parts/reduce_all_workgroup.wgsl");

params! {
    /// `struct Params` of the shaders.
    pub struct Params {
        pub pixels: u32,
        pub c: u32,
        pub ca: u32,
        pub groups: u32,
        pub chunk: u32,
        pub slices: u32,
        pub n: u32,
        pub eps: f32,
    }
}

/// Inputs: x `[B, .., C]`, or two parts of it along the channels; then what is added to the result, if anything is.
#[derive(Clone, Debug)]
struct Norm {
    gamma: Vector,
    /// None in RMS norm, which does not subtract the mean either.
    beta: Option<Vector>,
    /// None in layer and RMS norm: every row by itself.
    groups: Option<usize>,
    act: Act,
    eps: f32,
    /// Whether the last input is added to the result. Layer and RMS norm alone.
    added: bool,
}

/// `(x − mean) · gamma / √(variance + eps) + beta` over the positions and the channels of each of `groups`
/// groups of x `[B, .., C]` (Wu and He 2018, as torch's `GroupNorm`). x may be a
/// [`cat`](super::concat::cat), whose two parts are read where they lie; a following activation is absorbed.
#[track_caller]
pub fn group_norm<'g>(
    x: Var<'g>,
    gamma: &Vector,
    beta: &Vector,
    groups: usize,
    eps: f32,
) -> Var<'g> {
    let c = x.shape().last();
    let fits = if groups == 0 || !c.is_multiple_of(groups) || x.shape().rank() < 2 {
        Err(format!("x {:?} in {groups} groups", x.shape()))
    } else {
        Ok(x.shape())
    };
    let inputs = x.made_by::<Concat>().unwrap_or_else(|| vec![x]);
    let (gamma, beta) = (gamma.clone(), Some(beta.clone()));
    let op = Norm { gamma, beta, groups: Some(groups), act: Act::None, eps, added: false };
    op.record(x, &inputs, fits)
}

/// `(x − mean) · gamma / √(variance + eps) + beta` over the last axis (torch's `LayerNorm`).
#[track_caller]
pub fn layer_norm<'g>(x: Var<'g>, gamma: &Vector, beta: &Vector, eps: f32) -> Var<'g> {
    let (gamma, beta) = (gamma.clone(), Some(beta.clone()));
    let norm = Norm { gamma, beta, groups: None, act: Act::None, eps, added: false };
    norm.record(x, &[x], Ok(x.shape()))
}

/// `x · gamma / √(mean of x² + eps)` over the last axis (transformers' `LlamaRMSNorm`).
#[track_caller]
pub fn rms_norm<'g>(x: Var<'g>, gamma: &Vector, eps: f32) -> Var<'g> {
    let gamma = gamma.clone();
    let norm = Norm { gamma, beta: None, groups: None, act: Act::None, eps, added: false };
    norm.record(x, &[x], Ok(x.shape()))
}

/// What went into the norm that made this value, if one of these did.
pub fn before_norm(x: Var<'_>) -> Option<Var<'_>> {
    x.made_by::<Norm>()?.first().copied()
}

/// Numbers of a group that one workgroup of a real GPU goes over: eighty a lane, three times, mostly from a cache. That this
/// takes less than two more launches is an estimate, no measurement.
const ONE_LAUNCH: usize = 20_480;

/// How the work of a launch is divided; depends on nothing but the shape.
struct Sizes {
    batch: usize,
    pixels: usize,
    c: usize,
    ca: usize,
    groups: usize,
}

impl Norm {
    #[track_caller]
    fn record<'g>(self, x: Var<'g>, inputs: &[Var<'g>], fits: Result<Shape, String>) -> Var<'g> {
        let c = x.shape().last();
        let beta = self.beta.as_ref().map_or(c, |b| b.len);
        let fits = fits.and_then(|shape| match (self.gamma.len, beta) {
            (g, b) if g == c && b == c && c > 0 => Ok(shape),
            (g, b) => Err(format!("{shape:?} with a scale of {g} and a shift of {b} channels")),
        });
        x.graph().record(self, inputs, fits, x.elem())
    }

    fn form(&self, inputs: usize) -> Form {
        let two = inputs == 2 && !self.added;
        Form { two, center: self.beta.is_some(), added: self.added }
    }

    fn sizes(&self, cx: &Lower<'_>) -> Result<Sizes> {
        let (shape, ca) = (cx.output().shape, cx.input(0)?.shape.last());
        let (batch, groups) = match self.groups {
            Some(groups) => (shape.dims()[0], groups),
            None => (shape.rows(), 1),
        };
        let pixels = shape.rows() / batch.max(1);
        Ok(Sizes { batch, pixels, c: shape.last(), ca, groups })
    }

    fn params(&self, s: &Sizes, chunk: usize, n: usize) -> Params {
        Params {
            pixels: s.pixels as u32,
            c: s.c as u32,
            ca: s.ca as u32,
            groups: s.groups as u32,
            chunk: chunk as u32,
            slices: s.pixels.div_ceil(chunk) as u32,
            n: n as u32,
            eps: self.eps,
        }
    }

    fn reference(&self, cx: &mut Lower<'_>, s: &Sizes) -> Result<()> {
        let size = s.c / s.groups;
        let chunk = (4096 / size).clamp(1, s.pixels);
        let slices = s.pixels.div_ceil(chunk);
        let all = s.batch * s.groups;
        let (part, stat) = (cx.scratch([all, slices], Elem::F32), cx.scratch([all, 2], Elem::F32));
        let inputs = cx.inputs().to_vec();
        for stage in if self.beta.is_some() { 0..5 } else { 2..5 } {
            let (n, trips) = match stage {
                0 | 2 => (all * slices, chunk * size),
                1 | 3 => (all, slices),
                _ => (s.batch * s.pixels * s.c, 0),
            };
            let spec = reference(stage, cx.act, self.act, self.form(inputs.len()));
            let dispatch = Dispatch::new(spec, &self.params(s, chunk, n))
                .arg(&inputs[0])
                .arg(inputs.get(1))
                .arg(&self.gamma)
                .arg(self.beta.as_ref())
                .arg(&part)
                .arg(&stat)
                .arg(cx.output())
                .linear(n, 64)
                .trips(trips);
            cx.dispatch(dispatch)?;
        }
        Ok(())
    }

    /// Layer and RMS norm: one launch.
    fn rows(&self, cx: &mut Lower<'_>, s: &Sizes) -> Result<()> {
        let cells = s.c / 4;
        let lanes = match cells {
            _ if cx.software() && cells <= 4096 => None,
            0..1024 => Some(64),
            _ => Some(256.min(cx.caps.max_workgroup_invocations)),
        };
        let spec = rows(cx.act, lanes, self.form(cx.inputs().len()));
        let dispatch = Dispatch::new(spec, &self.params(s, 1, s.batch))
            .arg(cx.input(0)?)
            .arg(&self.gamma)
            .arg(self.beta.as_ref())
            .arg(cx.output())
            .arg(cx.inputs().get(1))
            .linear(s.batch, if lanes.is_some() { 1 } else { 64 })
            .trips(3 * cells.div_ceil(lanes.unwrap_or(1) as usize) + 16)
            .flops(6 * s.batch * s.c);
        cx.dispatch(dispatch)
    }

    /// Group norm of small pictures: one launch.
    fn small(&self, cx: &mut Lower<'_>, s: &Sizes) -> Result<()> {
        let (n, cells) = (s.batch * s.groups, s.pixels * s.c / s.groups / 4);
        let lanes = 256.min(cx.caps.max_workgroup_invocations);
        let inputs: Vec<Operand> = cx.inputs().to_vec();
        let spec = group_spec(cx.act, self.act, lanes, inputs.len() == 2);
        let dispatch = Dispatch::new(spec, &self.params(s, s.pixels, n))
            .arg(&inputs[0])
            .arg(inputs.get(1))
            .arg(&self.gamma)
            .arg(self.beta.as_ref())
            .arg(cx.output())
            .linear(n, 1)
            .trips(3 * cells.div_ceil(lanes as usize) + 16)
            .flops(8 * s.batch * s.pixels * s.c);
        cx.dispatch(dispatch)
    }

    /// Group norm: statistics of slices, of groups, and the result.
    fn grouped(&self, cx: &mut Lower<'_>, s: &Sizes) -> Result<()> {
        let (cells, size) = (s.c / 4, s.c / s.groups);
        // Short enough that a slice is still in the cache for its second pass, long enough that there are few.
        let busy = if cx.software() { 2048 } else { 1 << 16 };
        let most = (s.pixels / 8192).max(128);
        let chunk = (s.batch * s.pixels * cells / busy).clamp(16, most).min(s.pixels);
        let slices = s.pixels.div_ceil(chunk);
        let part = cx.scratch([s.batch, slices, 2, s.c], Elem::F32);
        let coef = cx.scratch([s.batch, 2, s.c], Elem::F32);
        let inputs: Vec<Operand> = cx.inputs().to_vec();
        let two = inputs.len() == 2;

        let n = s.batch * slices * cells;
        let dispatch = Dispatch::new(slices_spec(cx.act, two), &self.params(s, chunk, n))
            .arg(&inputs[0])
            .arg(inputs.get(1))
            .arg(&part)
            .linear(n, 64)
            .trips(2 * chunk)
            .flops(4 * s.batch * s.pixels * s.c);
        cx.dispatch(dispatch)?;

        let lanes = if cx.software() { 8 } else { 64 };
        let n = s.batch * s.groups;
        let dispatch = Dispatch::new(merge_spec(lanes), &self.params(s, chunk, n))
            .arg(&self.gamma)
            .arg(&part)
            .arg(&coef)
            .linear(n, 1)
            .trips(2 * (slices * size).div_ceil(lanes as usize) + size + 16);
        cx.dispatch(dispatch)?;

        let n = s.batch * s.pixels * cells;
        let dispatch = Dispatch::new(apply_spec(cx.act, self.act, two), &self.params(s, chunk, n))
            .arg(&inputs[0])
            .arg(inputs.get(1))
            .arg(self.beta.as_ref())
            .arg(&coef)
            .arg(cx.output())
            .linear(n, 64)
            .flops(3 * s.batch * s.pixels * s.c);
        cx.dispatch(dispatch)
    }
}

impl Op for Norm {
    fn name(&self) -> &'static str {
        match (self.groups, &self.beta) {
            (Some(_), _) => "group_norm",
            (None, Some(_)) => "layer_norm",
            (None, None) => "rms_norm",
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn absorb(&self, next: &dyn Op, _slot: usize) -> Option<Rc<dyn Op>> {
        let next = next.as_any();
        let free = self.act == Act::None && !self.added;
        let norm = if let Some(unary) = next.downcast_ref::<Unary>() {
            free.then(|| Norm { act: unary.act, ..self.clone() }).filter(|n| n.groups.is_some())
        } else {
            let Binary { kind, broadcast } = next.downcast_ref::<Binary>()?;
            let sum = *kind == BinaryKind::Add && !broadcast;
            (sum && free && self.groups.is_none()).then(|| Norm { added: true, ..self.clone() })
        };
        norm.map(|norm| Rc::new(norm) as Rc<dyn Op>)
    }
    fn fold(&self, next: &dyn Op, rows: usize) -> Option<Rc<dyn Op>> {
        let plain = self.groups.is_none() && self.beta.is_none() && !self.added;
        let next = Some(next.as_any()).filter(|_| plain)?;
        if let Some(rope) = next.downcast_ref::<Rope>() {
            return Some(Rc::new(rope.with_norm(&self.gamma, self.eps, rows)?));
        }
        let matmul = next.downcast_ref::<Matmul>()?;
        Some(Rc::new(matmul.with_norm(&self.gamma, self.eps, rows)?))
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let s = self.sizes(cx)?;
        let fours = s.c.is_multiple_of(4) && s.ca.is_multiple_of(4);
        match self.groups {
            _ if cx.reference() || !fours => self.reference(cx, &s),
            Some(groups) => {
                let size = s.c / groups;
                let small = s.pixels * size <= ONE_LAUNCH && size.is_multiple_of(4);
                match small && !cx.software() {
                    true => self.small(cx, &s),
                    false => self.grouped(cx, &s),
                }
            }
            None => self.rows(cx, &s),
        }
    }
}

/// What a kernel reads and computes besides the scale.
#[derive(Clone, Copy)]
struct Form {
    /// x in two parts.
    two: bool,
    /// The mean is subtracted, and there is a shift.
    center: bool,
    /// Something is added.
    added: bool,
}

fn reference(stage: u32, elem: Elem, act: Act, form: Form) -> Spec {
    Spec::new(REFERENCE)
        .part(ACTIVATION)
        .alias("act", elem)
        .u32("STAGE", stage)
        .u32("ACT", act as u32)
        .flag("TWO", form.two)
        .flag("CENTER", form.center)
        .flag("ADDED", form.added)
}

/// With the workgroup's size where a workgroup shares a row.
fn rows(elem: Elem, lanes: Option<u32>, form: Form) -> Spec {
    let spec = Spec::new(ROWS).alias4("act4", elem);
    let spec = spec.flag("CENTER", form.center).flag("ADDED", form.added);
    let spec = spec.u32("LANES", lanes.unwrap_or(1)).u32("WG_X", lanes.unwrap_or(64));
    spec.part(if lanes.is_some() { REDUCE_ALL_WORKGROUP } else { REDUCE_ALL_ONE })
}

fn slices_spec(elem: Elem, two: bool) -> Spec {
    Spec::new(SLICES).part(INPUT).alias4("act4", elem).flag("TWO", two)
}

fn merge_spec(lanes: u32) -> Spec {
    Spec::new(MERGE).u32("WG_X", lanes).part(REDUCE_ALL_WORKGROUP)
}

fn apply_spec(elem: Elem, act: Act, two: bool) -> Spec {
    let spec = Spec::new(APPLY).part(INPUT).part(ACTIVATION).alias4("act4", elem);
    spec.u32("ACT", act as u32).flag("TWO", two)
}

fn group_spec(elem: Elem, act: Act, lanes: u32, two: bool) -> Spec {
    let spec = Spec::new(GROUP).part(INPUT).part(ACTIVATION).part(REDUCE_ALL_WORKGROUP);
    spec.alias4("act4", elem).u32("ACT", act as u32).u32("WG_X", lanes).flag("TWO", two)
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = vec![merge_spec(8), merge_spec(64)];
    for elem in ACTS {
        for two in [false, true] {
            specs.push(slices_spec(elem, two));
            specs.extend([Act::None, Act::Silu].map(|act| apply_spec(elem, act, two)));
            specs.push(group_spec(elem, Act::Silu, 256, two));
            let form = Form { two, center: true, added: false };
            specs.extend((0..5).map(|stage| reference(stage, elem, Act::Silu, form)));
        }
        for (center, added) in [(false, false), (false, true), (true, false), (true, true)] {
            let form = Form { two: false, center, added };
            let first = if center { 0 } else { 2 };
            specs.extend((first..5).map(|stage| reference(stage, elem, Act::None, form)));
            specs.extend([None, Some(64), Some(256)].map(|lanes| rows(elem, lanes, form)));
        }
    }
    vec![OpInfo { name: "norm", specs, params: Params::FIELDS }]
}

/// The truth. x `[batch, pixels, c]`; layer and RMS norm have one group and one position, RMS norm no beta.
pub fn oracle(
    x: &[f32],
    gamma: &[f32],
    beta: Option<&[f32]>,
    pixels: usize,
    groups: usize,
    eps: f32,
) -> Vec<f64> {
    let c = gamma.len();
    let size = c / groups;
    let mut y = vec![0.0; x.len()];
    for item in 0..x.len() / (pixels * c) {
        for group in 0..groups {
            let all: Vec<usize> = (0..pixels * size)
                .map(|e| (item * pixels + e / size) * c + group * size + e % size)
                .collect();
            let count = all.len() as f64;
            let mean = match beta {
                Some(_) => all.iter().map(|i| f64::from(x[*i])).sum::<f64>() / count,
                None => 0.0,
            };
            let squares = all.iter().map(|i| (f64::from(x[*i]) - mean).powi(2)).sum::<f64>();
            let deviation = (squares / count + f64::from(eps)).sqrt();
            for i in all {
                let shift = beta.map_or(0.0, |b| f64::from(b[i % c]));
                y[i] = (f64::from(x[i]) - mean) / deviation * f64::from(gamma[i % c]) + shift;
            }
        }
    }
    y
}
