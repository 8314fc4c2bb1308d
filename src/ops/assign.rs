//! A copy into memory that outlives the plan.

use std::any::Any;

use super::OpInfo;
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Var};
use crate::{Result, params, source};

const FAST: Source = source!("assign.wgsl");
const REFERENCE: Source = source!("reference/assign.wgsl");

params! {
    pub struct Params {
        pub n: u32,
        pub pad0: u32,
        pub pad1: u32,
        pub pad2: u32,
    }
}

#[derive(Clone, Copy, Debug)]
struct Assign;

/// Copies `value` over `dst` (a [`crate::graph::Graph::external`] of the same element type and number of
/// elements) and returns dst. Only a result that is an output, or is read by one, is computed: name it
/// with [`crate::graph::Graph::output`].
#[track_caller]
pub fn assign<'g>(dst: Var<'g>, value: Var<'g>) -> Var<'g> {
    let (to, from) = (dst.shape(), value.shape());
    let fits = if to.len() == from.len() && dst.elem() == value.elem() {
        Ok(to)
    } else {
        Err(format!("{to:?} of {:?} cannot hold {from:?} of {:?}", dst.elem(), value.elem()))
    };
    dst.graph().record(Assign, &[dst, value], fits, dst.elem())
}

/// Words wherever the bytes divide: f16 needs no f16 arithmetic, and no driver touches the bits of a NaN.
fn spec(reference: bool, item: Elem) -> Spec {
    match reference {
        true => Spec::new(REFERENCE).alias("item", item),
        false => Spec::new(FAST).alias4("item", item),
    }
}

impl Op for Assign {
    fn name(&self) -> &'static str {
        "assign"
    }
    fn in_place(&self) -> Option<usize> {
        Some(0)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (value, dst) = (cx.input(1)?.clone(), cx.output().clone());
        let bytes = dst.shape.len() * dst.elem.bytes() as usize;
        let reference = cx.reference() || !bytes.is_multiple_of(16);
        let (item, size) = match (bytes.is_multiple_of(4), reference) {
            (false, _) => (dst.elem, dst.elem.bytes() as usize),
            (true, true) => (Elem::U32, 4),
            (true, false) => (Elem::U32, 16),
        };
        let p = Params { n: (bytes / size) as u32, ..Default::default() };
        let dispatch =
            Dispatch::new(spec(reference, item), &p).arg(&value).arg(&dst).linear(bytes / size, 64);
        cx.dispatch(dispatch)
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let specs = vec![spec(true, Elem::U32), spec(true, Elem::F16), spec(false, Elem::U32)];
    vec![OpInfo { name: "assign", specs, params: Params::FIELDS }]
}
