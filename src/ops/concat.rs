//! Joining two tensors along their channels.

use std::any::Any;

use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Var};
use crate::{Result, params, source};

const FAST: Source = source!("concat.wgsl");
const REFERENCE: Source = source!("reference/concat.wgsl");

params! {
    /// `struct Params` of the shaders.
    pub struct Params {
        pub n: u32,
        pub ca: u32,
        pub cb: u32,
        pub pad0: u32,
    }
}

/// Inputs: a `[.., Ca]` and b `[.., Cb]`. Ops that can read both where they lie ask for
/// `x.made_by::<Concat>()`; the node is then dead and costs nothing.
#[derive(Clone, Copy, Debug)]
pub struct Concat;

/// The channels of a, then those of b: `[.., Ca]`, `[.., Cb]` → `[.., Ca + Cb]`.
#[track_caller]
pub fn cat<'g>(a: Var<'g>, b: Var<'g>) -> Var<'g> {
    let (sa, sb) = (a.shape(), b.shape());
    let fits = if sa.is_empty() || sb.is_empty() || sa.with_last(1) != sb.with_last(1) {
        Err(format!("{sa:?} and {sb:?} differ in more than their channels"))
    } else if a.elem() != b.elem() {
        Err(format!("one is stored as {:?}, the other as {:?}", a.elem(), b.elem()))
    } else {
        Ok(sa.with_last(sa.last() + sb.last()))
    };
    a.graph().record(Concat, &[a, b], fits, a.elem())
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (a, b, y) = (cx.input(0)?.clone(), cx.input(1)?.clone(), cx.output().clone());
        let (n, ca, cb) = (y.shape.len(), a.shape.last(), b.shape.last());
        let reference = cx.reference() || !ca.is_multiple_of(4) || !cb.is_multiple_of(4);
        let p = Params { n: n as u32, ca: ca as u32, cb: cb as u32, ..Default::default() };
        let dispatch = Dispatch::new(spec(reference, y.elem), &p)
            .arg(&a)
            .arg(&b)
            .arg(&y)
            .linear(if reference { n } else { n / 4 }, 64);
        cx.dispatch(dispatch)
    }
}

fn spec(reference: bool, elem: Elem) -> Spec {
    match reference {
        true => Spec::new(REFERENCE).alias("act", elem),
        false => Spec::new(FAST).alias4("act4", elem),
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let specs = ACTS.iter().flat_map(|e| [spec(false, *e), spec(true, *e)]).collect();
    vec![OpInfo { name: "concat", specs, params: Params::FIELDS }]
}

/// The truth. a `[rows, ca]`, b `[rows, cb]`.
pub fn oracle(a: &[f32], b: &[f32], ca: usize, cb: usize) -> Vec<f64> {
    let rows = a.chunks_exact(ca).zip(b.chunks_exact(cb));
    rows.flat_map(|(a, b)| a.iter().chain(b)).map(|v| f64::from(*v)).collect()
}
