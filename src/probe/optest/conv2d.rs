//! Convolutions: every format, stride, padding and number of inputs, with what is fused behind, and the layers of Stable
//! Diffusion.

use super::matmul::{FOREIGN, FORMATS, weight};
use super::problem::{Feed, Level, Prepared, Problem, Set, Site, normal};
use crate::Result;
use crate::gpu::Elem;
use crate::graph::Weight;
use crate::ops::channels::{self, add_channels};
use crate::ops::concat::{self, cat};
use crate::ops::conv2d::{Conv, Pad, conv2d, oracle};
use crate::ops::pointwise::{Act, silu};
use crate::quant::{Layout, Packed};

/// One convolution.
#[derive(Clone, Copy)]
struct Form {
    /// Batch, height, width of the input.
    size: [usize; 3],
    /// Channels of the first and the second input; 0 for no second.
    channels: [usize; 2],
    rows: usize,
    side: usize,
    conv: Conv,
    spec: &'static str,
    then: Then,
    /// Rows of the weight in one window; 0 for all.
    window: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Then {
    Nothing,
    Silu,
    Residual,
    /// A row of a table for each item, then SiLU.
    Time,
}

const SAME: Conv = Conv { stride: 1, upsample: false, pad: Pad::Same };
const FORM: Form = Form {
    size: [1, 6, 5],
    channels: [64, 0],
    rows: 24,
    side: 3,
    conv: SAME,
    spec: FORMATS[0],
    then: Then::Nothing,
    window: 0,
};

impl Form {
    fn spec(&self) -> String {
        let how = match self.conv {
            Conv { upsample: true, .. } => ", upsampled",
            Conv { stride: 2, pad: Pad::End, .. } => ", stride 2, padded at the end",
            Conv { stride: 2, .. } => ", stride 2",
            _ => "",
        };
        let then = match self.then {
            Then::Nothing => "",
            Then::Silu => " silu",
            Then::Residual => " residual",
            Then::Time => " time silu",
        };
        let side = self.side;
        format!("{}, {side}x{side}{how}{then}", self.spec)
    }
    fn shape(&self) -> String {
        let Form { size: [b, h, w], channels: [ca, cb], rows, .. } = self;
        let channels = if *cb > 0 { format!("{ca}+{cb}") } else { ca.to_string() };
        let windows = match self.window {
            0 => String::new(),
            rows => format!(" in windows of {rows} rows"),
        };
        format!("{b}x{h}x{w}x{channels} to {rows}{windows}")
    }
    fn flops(&self) -> usize {
        2 * self.size.iter().product::<usize>()
            * (self.channels[0] + self.channels[1])
            * self.side
            * self.side
            * self.rows
    }
}

pub fn add(all: &mut Vec<Problem>) {
    let mut add = |form: Form, set: Set, level: Level| all.push(problem(form, set, level));
    let halving = Conv { stride: 2, ..SAME };
    let ending = Conv { stride: 2, upsample: false, pad: Pad::End };
    let doubling = Conv { upsample: true, ..SAME };
    add(Form { spec: "fp16", ..FORM }, Set::Small, Level::Smoke);
    add(FORM, Set::Small, Level::Smoke);
    add(Form { conv: halving, ..FORM }, Set::Small, Level::Smoke);
    add(Form { conv: doubling, ..FORM }, Set::Small, Level::Smoke);
    // Two inputs read as one without a copy, as after a skip connection of a UNet.
    add(Form { channels: [40, 24], ..FORM }, Set::Small, Level::Smoke);
    for spec in FORMATS.into_iter().chain(FOREIGN) {
        for (i, (channels, rows)) in
            [([12, 0], 9), ([64, 0], 40), ([136, 0], 8), ([8, 24], 17), ([5, 3], 7)]
                .into_iter()
                .enumerate()
        {
            let quick = i == 3 && FORMATS[..4].contains(&spec);
            let level = if quick { Level::Quick } else { Level::Usual };
            let form = Form { size: [1, 5, 7], channels, rows, spec, then: Then::Silu, ..FORM };
            add(form, Set::Ragged, level);
        }
        let one = Form { channels: [64, 32], rows: 40, side: 1, spec, ..FORM };
        add(one, Set::Ragged, Level::Usual);
    }
    for conv in [SAME, halving, ending, doubling] {
        for then in [Then::Nothing, Then::Residual, Then::Time] {
            for spec in ["int4-g64-cubic", "fp16", "int4-g32-min"] {
                let form = Form { size: [2, 7, 9], channels: [24, 0], rows: 20, ..FORM };
                let form = Form { conv, then, spec, ..form };
                let quick = spec == "fp16" && then != Then::Residual;
                add(form, Set::Ragged, if quick { Level::Quick } else { Level::Usual });
            }
        }
    }
    for (h, w) in [(1, 1), (1, 8), (8, 8), (9, 7), (15, 17), (16, 16)] {
        for channels in [8, 32, 33, 64] {
            let (spec, rows) = (FORMATS[(h + channels) % 5], [8, 16, 17][w % 3]);
            let form = Form { size: [1, h, w], channels: [channels, 0], rows, spec, ..FORM };
            add(form, Set::Edges, Level::Usual);
        }
    }
    for spec in ["int4-g64-cubic", "fp32"] {
        let form = Form { channels: [40, 24], rows: 50, spec, window: 7, ..FORM };
        add(Form { then: Then::Silu, ..form }, Set::Edges, Level::Usual);
    }
    // Taps that real GPUs divide, of sums that do not fill the sixteen bytes that a binding is rounded up to.
    for (size, channels, rows) in [([1, 1, 1], [128, 0], 1), ([1, 3, 3], [80, 48], 3)] {
        add(Form { size, channels, rows, ..FORM }, Set::Edges, Level::Usual);
    }
    models(all);
    small_ops(all);
}

fn models(all: &mut Vec<Problem>) {
    let conv = |size, channels, rows| Form { size, channels, rows, ..FORM };
    let layers = [
        (Set::Sd15, conv([1, 64, 64], [320, 0], 320)),
        (Set::Sd15, conv([2, 32, 32], [640, 0], 640)),
        (Set::Sd15, conv([1, 8, 8], [1280, 0], 1280)),
        (Set::Sd15, conv([1, 16, 16], [1280, 640], 640)),
        (Set::Sd15, conv([1, 64, 64], [4, 0], 320)),
        (Set::Sd15, conv([1, 64, 64], [320, 0], 4)),
        (Set::Sdxl, conv([1, 128, 128], [320, 0], 320)),
        (Set::Sdxl, conv([1, 32, 32], [1280, 0], 1280)),
        (Set::Sdxl, conv([1, 32, 32], [1280, 640], 1280)),
    ];
    for (set, form) in layers {
        for spec in &FORMATS[..3] {
            let form = Form { spec, ..form };
            let level = if form.flops() < 1 << 28 { Level::Usual } else { Level::Full };
            let problem = problem(form, set, level);
            all.push(if form.flops() > 1 << 28 { problem.heavy() } else { problem });
        }
    }
}

fn problem(form: Form, set: Set, level: Level) -> Problem {
    Problem::new("conv2d", form.spec(), form.shape(), (set, level), move |site| prepare(site, form))
}

/// Joins two pictures along their channels.
fn join(a: &[f32], b: &[f32], [ca, cb]: [usize; 2]) -> Vec<f32> {
    if cb == 0 {
        return a.to_vec();
    }
    concat::oracle(a, b, ca, cb).into_iter().map(|v| v as f32).collect()
}

/// Rows of the picture that the oracle computes where all would take it minutes: the first and the last.
const BAND: usize = 2;

fn prepare(site: &Site<'_>, form: Form) -> Result<Prepared> {
    let Form { size: [b, h, w], channels: [ca, cb], rows, side, conv, then, .. } = form;
    let layout = Layout { rows, taps: side * side, channels: ca + cb };
    let packed = weight(4, layout, form.spec)?;
    let limit = match form.window {
        0 => site.gpu.caps().max_binding_bytes,
        rows => packed.row_words() as u64 * 4 * rows as u64,
    };
    let weight = Weight::upload_windowed(site.gpu, "op test", &packed, limit)?;
    let bias = normal(5, rows);
    let vector = site.vector(&bias)?;
    let (x, x2) = (site.data(6, b * h * w * ca), site.data(7, b * h * w * cb));
    let joined = join(&x, &x2, [ca, cb]);
    let banded = form.flops() > 1 << 30 && conv == SAME && h > 4 * BAND;
    let at: Vec<usize> = match banded {
        true => (0..b * h * w * rows).filter(|i| in_band(i / (w * rows) % h, h)).collect(),
        false => Vec::new(),
    };
    let (oh, ow) = outputs(conv, side, h, w);
    let (row, table) =
        ((0..b as u32).map(|i| (2 * i + 1) % 5).collect::<Vec<u32>>(), site.data(8, 5 * rows));
    let residual = site.data(9, if then == Then::Residual { b * oh * ow * rows } else { 0 });
    let want = site.want(|| {
        let y = match banded {
            true => bands(&joined, [b, h, w, ca + cb], &packed, side),
            false => oracle(&joined, [b, h, w, ca + cb], &packed.decode(), side, conv),
        };
        let item = y.len() / b;
        let finish = |(i, v): (usize, f64)| {
            let v = v + f64::from(bias[i % rows]);
            match then {
                Then::Nothing => v,
                Then::Silu => Act::Silu.oracle(v),
                Then::Residual => v + f64::from(residual[i]),
                Then::Time => {
                    let shift = table[row[i / item] as usize * rows + i % rows];
                    Act::Silu.oracle(v + f64::from(shift))
                }
            }
        };
        y.into_iter().enumerate().map(finish).collect()
    });
    let feed = Feed::U32("row", row);
    let prepared = Prepared::new(want, move |g| {
        let mut y = g.literal([b, h, w, ca], x.clone());
        if cb > 0 {
            y = cat(y, g.literal([b, h, w, cb], x2.clone()));
        }
        y = conv2d(y, &weight, Some(&vector), conv);
        match then {
            Then::Nothing => y,
            Then::Silu => silu(y),
            Then::Residual => g.literal(y.shape(), residual.clone()) + y,
            Then::Time => {
                let table = g.literal([5, rows], table.clone());
                silu(add_channels(y, table, g.input("row", [b], Elem::U32)))
            }
        }
    });
    let prepared = if then == Then::Time { prepared.feed(feed) } else { prepared };
    Ok(if banded { prepared.at(at) } else { prepared })
}

fn in_band(y: usize, h: usize) -> bool {
    y < BAND || y >= h - BAND
}

/// Rows and columns that come out.
fn outputs(conv: Conv, side: usize, h: usize, w: usize) -> (usize, usize) {
    let zeros = if conv.pad == Pad::End { 1 } else { side - 1 };
    let out = |size: usize| ((size << usize::from(conv.upsample)) + zeros - side) / conv.stride + 1;
    (out(h), out(w))
}

/// The first and the last rows of each item, from a picture of those and their neighbours.
fn bands(x: &[f32], [b, h, w, c]: [usize; 4], packed: &Packed, side: usize) -> Vec<f64> {
    let (values, rows) = (packed.decode(), packed.layout.rows);
    // A row more than is looked at: what lies beyond its edge is not zero.
    let cut = BAND + side / 2;
    let mut y = Vec::new();
    for item in x.chunks_exact(h * w * c).take(b) {
        for (from, keep) in [(0, 0..BAND), (h - cut, cut - BAND..cut)] {
            let part = &item[from * w * c..(from + cut) * w * c];
            let out = oracle(part, [1, cut, w, c], &values, side, SAME);
            y.extend_from_slice(&out[keep.start * w * rows..keep.end * w * rows]);
        }
    }
    y
}

/// What stands alone where nothing takes it in.
fn small_ops(all: &mut Vec<Problem>) {
    let sizes = [
        (30, [40, 24], (Set::Small, Level::Smoke)),
        (5, [3, 4], (Set::Ragged, Level::Quick)),
        (7, [1, 1], (Set::Ragged, Level::Quick)),
        (4096, [320, 640], (Set::Sd15, Level::Usual)),
    ];
    for (pixels, [ca, cb], level) in sizes {
        let shape = format!("{pixels}x{ca}+{cb}");
        all.push(Problem::new("concat", "copy", shape, level, move |site| {
            let (a, b) = (site.data(7, pixels * ca), site.data(8, pixels * cb));
            let want = site.want(|| concat::oracle(&a, &b, ca, cb));
            Ok(Prepared::new(want, move |g| {
                let a = g.literal([1, pixels, ca], a.clone());
                cat(a, g.literal([1, pixels, cb], b.clone()))
            })
            .exact())
        }));
    }
    let sizes = [
        ([2, 30, 64], (Set::Small, Level::Smoke)),
        ([3, 5, 12], (Set::Ragged, Level::Quick)),
        ([2, 4, 5], (Set::Ragged, Level::Quick)),
        ([2, 4096, 320], (Set::Sd15, Level::Usual)),
    ];
    for ([b, pixels, c], level) in sizes {
        let shape = format!("{b}x{pixels}x{c}");
        all.push(Problem::new("add_channels", "a row an item", shape, level, move |site| {
            let (x, table) = (site.data(9, b * pixels * c), site.data(10, 4 * c));
            let row: Vec<u32> = (0..b as u32).map(|i| (3 * i + 2) % 4).collect();
            let want = site.want(|| channels::oracle(&x, &table, &row, c));
            let prepared = Prepared::new(want, move |g| {
                let x = g.literal([b, pixels, c], x.clone());
                let row = g.input("row", [b], Elem::U32);
                add_channels(x, g.literal([4, c], table.clone()), row)
            });
            Ok(prepared.feed(Feed::U32("row", row)))
        }));
    }
}
