//! Adding a row of a table to all pixels: what a time embedding does to a residual block.

use std::any::Any;

use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Var};
use crate::{Result, params, source};

const FAST: Source = source!("channels.wgsl");
const REFERENCE: Source = source!("reference/channels.wgsl");

params! {
    /// `struct Params` of the shaders.
    pub struct Params {
        pub n: u32,
        pub c: u32,
        pub item: u32,
        pub steps: u32,
    }
}

/// Inputs: x `[B, .., C]`, table `[steps, C]` (f32 or f16) and row, u32 `[B]`.
#[derive(Clone, Copy, Debug)]
pub struct AddChannels;

/// `x[b, .., c] + table[row[b], c]`. A row beyond the table is taken for its last.
#[track_caller]
pub fn add_channels<'g>(x: Var<'g>, table: Var<'g>, row: Var<'g>) -> Var<'g> {
    let (sx, st, sr) = (x.shape(), table.shape(), row.shape());
    let fits = if sx.rank() < 2
        || sx.is_empty()
        || st.rank() != 2
        || st.is_empty()
        || st.last() != sx.last()
    {
        Err(format!("x {sx:?} with a table {st:?}; it takes [steps, {}]", sx.last()))
    } else if sr.len() != sx.dims()[0] || row.elem() != Elem::U32 {
        let elem = row.elem();
        Err(format!("x {sx:?} with rows {sr:?} of {elem:?}; it takes [{}] of U32", sx.dims()[0]))
    } else if table.elem() == Elem::U32 {
        Err("the table holds integers".into())
    } else {
        Ok(sx)
    };
    x.graph().record(AddChannels, &[x, table, row], fits, x.graph().act())
}

impl Op for AddChannels {
    fn name(&self) -> &'static str {
        "add_channels"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (x, table, row) = (cx.input(0)?.clone(), cx.input(1)?.clone(), cx.input(2)?.clone());
        let (n, c) = (x.shape.len(), x.shape.last());
        let reference = cx.reference() || !c.is_multiple_of(4);
        let p = Params {
            n: n as u32,
            c: c as u32,
            item: (n / row.shape.len()) as u32,
            steps: table.shape.rows() as u32,
        };
        let dispatch = Dispatch::new(spec(reference, x.elem, table.elem), &p)
            .arg(&x)
            .arg(&table)
            .arg(&row)
            .arg(cx.output())
            .linear(if reference { n } else { n / 4 }, 64)
            .flops(n);
        cx.dispatch(dispatch)
    }
}

fn spec(reference: bool, act: Elem, table: Elem) -> Spec {
    match reference {
        true => Spec::new(REFERENCE).alias("act", act).alias("tab", table),
        false => Spec::new(FAST).alias4("act4", act).alias4("tab4", table),
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for act in ACTS {
        for table in ACTS {
            specs.extend([spec(false, act, table), spec(true, act, table)]);
        }
    }
    vec![OpInfo { name: "channels", specs, params: Params::FIELDS }]
}

/// The truth, in f64. x `[B, .., c]`, table `[steps, c]`, row `[B]`.
pub fn oracle(x: &[f32], table: &[f32], row: &[u32], c: usize) -> Vec<f64> {
    let item = x.len() / row.len();
    let at = |i: usize| row[i / item] as usize * c + i % c;
    x.iter().enumerate().map(|(i, v)| f64::from(*v) + f64::from(table[at(i)])).collect()
}
