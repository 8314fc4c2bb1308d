//! The network's answers with and without the prompt, and guidance rescale: how strong a guided answer may be.

use std::any::Any;

use super::sampler::check_coef;
use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Operand, Shape, Var};
use crate::{Result, params, source};

const FAST: Source = source!("guidance.wgsl");
const REFERENCE: Source = source!("reference/guidance.wgsl");

/// Values of a slice's statistics: mean and squares around it, of the prompted and of the guided answer.
const STATISTICS: usize = 4;

params! {
    pub struct Params {
        pub items: u32,
        pub item: u32,
        pub chunk: u32,
        pub slices: u32,
    }
}

/// What the network said about n pictures, f32 or the activation type: one answer `[n, h, w, c]`, or two, without the
/// prompt and with it, joined in `[2 · n, h, w, c]` (all without it first) or apart. A [`Var`] is one of the former.
#[derive(Clone, Copy)]
pub struct Answer<'g> {
    pub(super) out: Var<'g>,
    pub(super) prompted: Option<Var<'g>>,
    pub(super) factor: Option<Var<'g>>,
}

impl<'g> From<Var<'g>> for Answer<'g> {
    fn from(out: Var<'g>) -> Answer<'g> {
        Answer { out, prompted: None, factor: None }
    }
}

impl<'g> Answer<'g> {
    /// Two answers that the network gave one after the other.
    pub fn pair(unprompted: Var<'g>, prompted: Var<'g>) -> Answer<'g> {
        Answer { out: unprompted, prompted: Some(prompted), factor: None }
    }

    /// The guided answer g of each picture is to be multiplied by `φ · std(c) / std(g) + 1 − φ`, where c is the
    /// answer with the prompt and φ the guidance rescale that `coef` holds: section 3.4 of arXiv 2305.08891. The
    /// standard deviation is over all of a picture and unbiased, as torch's. A single answer stays as it is.
    #[track_caller]
    pub fn rescaled(self, pictures: usize, coef: Var<'g>) -> Answer<'g> {
        let all = self.out.shape().len();
        let pictures = pictures.max(1);
        let n = match self.prompted {
            Some(_) => all,
            None if self.out.shape().dims().first() == Some(&(2 * pictures)) => all / 2,
            None => return self,
        };
        let fits = check_coef(coef).and_then(|()| self.check(n)).and_then(|()| {
            match n.is_multiple_of(pictures) {
                true => Ok(Shape::new(&[pictures])),
                false => Err(format!("{:?} of {pictures} pictures", self.out.shape())),
            }
        });
        let inputs: Vec<Var<'g>> =
            [Some(coef), Some(self.out), self.prompted].into_iter().flatten().collect();
        let op = Rescale { item: n / pictures, pair: self.prompted.is_some() };
        let factor = coef.graph().record(op, &inputs, fits, Elem::F32);
        Answer { factor: Some(factor), ..self }
    }

    /// Whether this can be the answer about x of n elements.
    pub(super) fn check(&self, n: usize) -> Result<(), String> {
        let shape = self.out.shape();
        let fits = match self.prompted {
            Some(c) => shape.len() == n && c.shape().len() == n && c.elem() != Elem::U32,
            None => shape.len() == n || shape.len() == 2 * n,
        };
        match (fits && self.out.elem() != Elem::U32, self.prompted) {
            (true, _) => Ok(()),
            (false, None) => {
                Err(format!("a network's answer {shape:?}, expected one or two times {n} values"))
            }
            (false, Some(c)) => Err(format!(
                "a network's answers {shape:?} and {:?}, expected {n} values each",
                c.shape()
            )),
        }
    }
}

/// Inputs: coef, the answers. Output: a factor for each picture.
#[derive(Clone, Copy, Debug)]
struct Rescale {
    item: usize,
    pair: bool,
}

fn spec(reference: bool, stage: u32, pair: bool, act: Elem) -> Spec {
    match reference {
        true => Spec::new(REFERENCE).alias("act", act),
        false => Spec::new(FAST).alias4("act", act),
    }
    .u32("STAGE", stage)
    .flag("PAIR", pair)
}

impl Op for Rescale {
    fn name(&self) -> &'static str {
        "guidance_rescale"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (coef, out, y) = (cx.input(0)?.clone(), cx.input(1)?.clone(), cx.output().clone());
        let prompted: Option<Operand> = cx.inputs().get(2).cloned();
        let reference = cx.reference() || !self.item.is_multiple_of(4);
        let cell = if reference { 1 } else { 4 };
        let (items, item) = (y.shape.len(), self.item / cell);
        // Few enough slices for one invocation to merge, short enough to be read by many.
        let chunk = item.div_ceil(256).max(64).min(item.max(1));
        let slices = item.div_ceil(chunk);
        let part = cx.scratch([items, slices, STATISTICS], Elem::F32);
        let p = Params {
            items: items as u32,
            item: item as u32,
            chunk: chunk as u32,
            slices: slices as u32,
        };
        for (stage, count, trips) in [(0, items * slices, 2 * chunk), (1, items, 2 * slices)] {
            let dispatch = Dispatch::new(spec(reference, stage, self.pair, out.elem), &p)
                .arg(&coef)
                .arg(&out)
                .arg(prompted.as_ref())
                .arg(&part)
                .arg(&y)
                .linear(count, 64)
                .trips(trips);
            cx.dispatch(dispatch)?;
        }
        Ok(())
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for reference in [true, false] {
        for act in ACTS {
            for pair in [false, true] {
                specs.extend([0, 1].map(|stage| spec(reference, stage, pair, act)));
            }
        }
    }
    vec![OpInfo { name: "guidance", specs, params: Params::FIELDS }]
}

/// The truth: the guided and rescaled answer about pictures of `item` values each; u and c are the answers without
/// and with the prompt. Where the guided answer does not vary it stays as it is.
pub fn oracle(u: &[f32], c: &[f32], item: usize, guidance: f32, rescale: f32) -> Vec<f64> {
    let wide = |v: &[f32]| -> Vec<f64> { v.iter().map(|v| f64::from(*v)).collect() };
    let deviation = |v: &[f64]| {
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        let squares = v.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
        (squares / (v.len() as f64 - 1.0)).sqrt()
    };
    let rescale = f64::from(rescale);
    let pictures = u.chunks_exact(item).zip(c.chunks_exact(item));
    pictures
        .flat_map(|(u, c)| {
            let (u, c) = (wide(u), wide(c));
            let guided: Vec<f64> =
                u.iter().zip(&c).map(|(u, c)| u + f64::from(guidance) * (c - u)).collect();
            let spread = deviation(&guided);
            let ratio = if spread > 0.0 { deviation(&c) / spread } else { 1.0 };
            let factor = rescale * ratio + 1.0 - rescale;
            guided.into_iter().map(move |g| g * factor)
        })
        .collect()
}
