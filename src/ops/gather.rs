//! Channels in another order: what a weight needs whose columns were sorted by group (GPTQ's act-order).

use std::any::Any;

use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Var};
use crate::{Result, params, source};

const FAST: Source = source!("gather.wgsl");
const REFERENCE: Source = source!("reference/gather.wgsl");

params! {
    /// `struct Params` of the shaders.
    pub struct Params {
        pub n: u32,
        pub c: u32,
        pub pad0: u32,
        pub pad1: u32,
    }
}

/// Inputs: x `[.., C]` and columns, u32 `[C]`.
#[derive(Clone, Copy, Debug)]
struct Gather;

/// `y[.., i] = x[.., columns[i]]`: x `[.., C]` and columns u32 `[C]` give `[.., C]`, stored as x is. A
/// number beyond the channels is taken for the last of them.
#[track_caller]
pub fn gather<'g>(x: Var<'g>, columns: Var<'g>) -> Var<'g> {
    let (shape, wanted) = (x.shape(), columns.shape());
    let fits = if columns.elem() != Elem::U32 || wanted.len() != shape.last() || shape.is_empty() {
        let elem = columns.elem();
        Err(format!(
            "x {shape:?} with columns {wanted:?} of {elem:?}; it takes u32, one per channel"
        ))
    } else if x.elem() == Elem::U32 {
        Err("x holds integers".into())
    } else {
        Ok(shape)
    };
    x.graph().record(Gather, &[x, columns], fits, x.elem())
}

impl Op for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (x, columns, y) = (cx.input(0)?.clone(), cx.input(1)?.clone(), cx.output().clone());
        let (n, c) = (x.shape.len(), x.shape.last());
        let reference = cx.reference() || !c.is_multiple_of(4);
        let p = Params { n: n as u32, c: c as u32, ..Default::default() };
        let dispatch = Dispatch::new(spec(reference, x.elem), &p)
            .arg(&x)
            .arg(&columns)
            .arg(&y)
            .linear(if reference { n } else { n / 4 }, 64);
        cx.dispatch(dispatch)
    }
}

fn spec(reference: bool, elem: Elem) -> Spec {
    match reference {
        true => Spec::new(REFERENCE).alias("act", elem),
        false => Spec::new(FAST).alias("act", elem).alias4("act4", elem),
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let specs = ACTS.iter().flat_map(|e| [spec(false, *e), spec(true, *e)]).collect();
    vec![OpInfo { name: "gather", specs, params: Params::FIELDS }]
}

/// The truth: a copy. x `[.., columns.len()]`; every column within the channels.
pub fn oracle(x: &[f32], columns: &[u32]) -> Vec<f64> {
    let row = |row: &[f32]| -> Vec<f64> {
        columns.iter().map(|&column| f64::from(row[column as usize])).collect()
    };
    x.chunks_exact(columns.len()).flat_map(row).collect()
}
