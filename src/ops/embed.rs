//! Rows of a table: token embeddings, and one token out of a stream.

use std::any::Any;

use super::{ACTS, OpInfo, formats};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Shape, Var, Weight, weight_part};
use crate::{Result, params, source};

const FAST: Source = source!("embed.wgsl");
const REFERENCE: Source = source!("reference/embed.wgsl");
const TAKE: Source = source!("embed_row.wgsl");
const TAKE_REFERENCE: Source = source!("reference/embed_row.wgsl");

params! {
    pub struct Params {
        pub tokens: u32,
        pub channels: u32,
        pub row0: u32,
        pub rows: u32,
        pub total: u32,
        pub range: u32,
        pub pad0: u32,
        pub pad1: u32,
    }
}

params! {
    pub struct TakeParams {
        pub batch: u32,
        pub tokens: u32,
        pub channels: u32,
        pub pad0: u32,
    }
}

/// y[t, c] = w[ids[t], c], or w[ids[0] + t, c] for a range; w is all tables one below the other
#[derive(Clone, Debug)]
struct Embed {
    tables: Vec<Weight>,
    range: bool,
}

/// y[b, 0, c] = x[b, row[b], c]
#[derive(Clone, Copy, Debug)]
struct TakeRow;

/// Rows of a table: ids u32 `[B, S]` and a weight of V rows by C channels in any format give `[B, S, C]`.
/// A table of several windows is one dispatch each. An id of V or more gives zeros.
#[track_caller]
pub fn embed<'g>(ids: Var<'g>, weight: &Weight) -> Var<'g> {
    embed_stacked(ids, &[weight])
}

/// As [`embed`] with several tables of the same channels, one below the other: ids go on where the table
/// above ends. The tables may differ in format.
#[track_caller]
pub fn embed_stacked<'g>(ids: Var<'g>, tables: &[&Weight]) -> Var<'g> {
    let shape = ids.shape();
    let channels = tables.first().map_or(0, |table| table.channels());
    let (mut columns, mut taps) = (false, 1);
    for table in tables {
        columns |= table.columns().is_some();
        taps = taps.max(table.taps());
    }
    let fits = if ids.elem() != Elem::U32 || shape.rank() > 4 {
        Err(format!("ids {shape:?} of {:?}, expected u32 [batch, tokens]", ids.elem()))
    } else if columns {
        Err("the table has reordered channels; it belongs to a linear layer".into())
    } else if taps != 1 {
        Err(format!("the table has {taps} taps; it belongs to a convolution"))
    } else if tables.iter().any(|table| table.channels() != channels) {
        let all: Vec<usize> = tables.iter().map(|table| table.channels()).collect();
        Err(format!("tables of {all:?} channels; those of one embedding have the same"))
    } else {
        let mut dims = shape.dims().to_vec();
        dims.push(channels);
        Ok(Shape::new(&dims))
    };
    let op = Embed { tables: tables.iter().map(|&table| table.clone()).collect(), range: false };
    ids.graph().record(op, &[ids], fits, ids.graph().act())
}

/// Rows `start .. start + count` of a table (learned positions): start u32 `[1]` and a weight of V rows by C
/// channels give `[1, count, C]`. Rows of V or more are zeros.
#[track_caller]
pub fn embed_range<'g>(start: Var<'g>, count: usize, weight: &Weight) -> Var<'g> {
    let fits = if start.elem() != Elem::U32 || start.shape().len() != 1 || weight.taps() != 1 {
        Err(format!(
            "start {:?} of {:?} and {} taps, expected one u32 and one",
            start.shape(),
            start.elem(),
            weight.taps()
        ))
    } else {
        Ok(Shape::new(&[1, count, weight.channels()]))
    };
    let op = Embed { tables: vec![weight.clone()], range: true };
    start.graph().record(op, &[start], fits, start.graph().act())
}

/// One token of each item of the batch: x `[B, S, C]` and row u32 `[B]` give `[B, 1, C]`, stored as x is.
/// A row of S or more gives zeros.
#[track_caller]
pub fn take_row<'g>(x: Var<'g>, row: Var<'g>) -> Var<'g> {
    let (shape, rows) = (x.shape(), row.shape());
    let fits = match shape.dims() {
        &[b, _, c] if row.elem() == Elem::U32 && rows.len() == b => Ok(Shape::new(&[b, 1, c])),
        _ => Err(format!(
            "x {shape:?} with rows {rows:?} of {:?}, expected [batch, tokens, channels] and u32 [batch]",
            row.elem()
        )),
    };
    x.graph().record(TakeRow, &[x, row], fits, x.elem())
}

/// The names of the tables that an op takes rows of.
pub fn tables(op: &dyn Op) -> impl Iterator<Item = &str> {
    let embed = op.as_any().downcast_ref::<Embed>();
    embed.into_iter().flat_map(|embed| embed.tables.iter().map(Weight::name))
}

fn spec(reference: bool, elem: Elem) -> Spec {
    match reference {
        true => Spec::new(REFERENCE).alias("act", elem),
        false => Spec::new(FAST).alias4("act4", elem),
    }
}

fn take_spec(reference: bool, elem: Elem) -> Spec {
    match reference {
        true => Spec::new(TAKE_REFERENCE).alias("act", elem),
        false => Spec::new(TAKE).alias4("act4", elem),
    }
}

impl Op for Embed {
    fn name(&self) -> &'static str {
        "embed"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (ids, y) = (cx.input(0)?.clone(), cx.output().clone());
        let (tokens, channels) = (y.shape.rows(), y.shape.last());
        let reference = cx.reference() || !channels.is_multiple_of(8);
        let items = if reference { tokens * channels } else { tokens * channels / 8 };
        let total: usize = self.tables.iter().map(Weight::rows).sum();
        let mut above = 0;
        for table in &self.tables {
            for chunk in table.chunks() {
                let p = Params {
                    tokens: tokens as u32,
                    channels: channels as u32,
                    row0: (above + chunk.row0) as u32,
                    rows: chunk.rows as u32,
                    total: total as u32,
                    range: u32::from(self.range),
                    ..Default::default()
                };
                let dispatch = Dispatch::new(spec(reference, y.elem), &p)
                    .arg(&ids)
                    .arg(&y)
                    .weight(chunk, table.format())
                    .weight_bytes(chunk.bytes() * tokens as u64 / chunk.rows.max(1) as u64)
                    .linear(items, 64);
                cx.dispatch(dispatch)?;
            }
            above += table.rows();
        }
        Ok(())
    }
}

impl Op for TakeRow {
    fn name(&self) -> &'static str {
        "take_row"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (x, row, y) = (cx.input(0)?.clone(), cx.input(1)?.clone(), cx.output().clone());
        let &[batch, tokens, channels] = x.shape.dims() else {
            unreachable!("the shape rule lets three dimensions pass")
        };
        let reference = cx.reference() || !channels.is_multiple_of(4);
        let channels = if reference { channels } else { channels / 4 };
        let p = TakeParams {
            batch: batch as u32,
            tokens: tokens as u32,
            channels: channels as u32,
            pad0: 0,
        };
        let dispatch = Dispatch::new(take_spec(reference, x.elem), &p)
            .arg(&x)
            .arg(&row)
            .arg(&y)
            .linear(batch * channels, 64);
        cx.dispatch(dispatch)
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for elem in ACTS {
        for reference in [true, false] {
            specs.extend(formats().into_iter().map(|f| weight_part(spec(reference, elem), f)));
        }
    }
    let takes = [Elem::F32, Elem::F16, Elem::U32]
        .into_iter()
        .flat_map(|elem| [true, false].map(|reference| take_spec(reference, elem)));
    vec![
        OpInfo { name: "embed", specs, params: Params::FIELDS },
        OpInfo { name: "take_row", specs: takes.collect(), params: TakeParams::FIELDS },
    ]
}

/// The truth: a copy. ids `[tokens]`, w `[rows, channels]`.
pub fn oracle(ids: &[u32], w: &[f32], channels: usize) -> Vec<f64> {
    let row = |id: &u32| {
        let start = *id as usize * channels;
        match w.get(start..start + channels) {
            Some(row) => row.iter().map(|v| f64::from(*v)).collect(),
            None => vec![0.0; channels],
        }
    };
    ids.iter().flat_map(row).collect()
}
