//! Which kernel multiplies, how its work is cut, and every variant for the shader tests.

use super::coop::Coop;
use super::pieces::{Pieces, load_pieces};
use super::{Params, Tail, VEC_ROWS, whole_groups};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, MAX_TRIPS, dot_part, several_part, weight_part};
use crate::ops::pointwise::Act;
use crate::ops::round8::Codes;
use crate::ops::{ACTS, OpInfo, formats};
use crate::quant::Format;
use crate::source;

const TILE: Source = source!("matmul.wgsl");
const LANES: Source = source!("matmul_lanes.wgsl");
const TILED: Source = source!("matmul_tiled.wgsl");
/// The workgroup's part of a tiled product, here and in conv2d.
pub(in crate::ops) const TILE64: Source = source!("parts/tile64.wgsl");
const COOP: Source = source!("matmul_coop.wgsl");
const VEC: Source = source!("matmul_vec.wgsl");
const VEC_LANES: Source = source!("matmul_vec_lanes.wgsl");
const REFERENCE: Source = source!("reference/matmul.wgsl");
/// What becomes of a product, in all but the reference.
const OUT: Source = source!("parts/matmul_out.wgsl");
const OUT_HALVES: Source = source!("parts/matmul_out_halves.wgsl");
const OUT_THREE: Source = source!("parts/matmul_out_three.wgsl");
const ROWS_PLAIN: Source = source!("parts/rows_plain.wgsl");
const ROWS_PAIRED: Source = source!("parts/rows_paired.wgsl");
pub(super) const ACTIVATION: Source = source!("parts/activation.wgsl");
pub(in crate::ops) const X_VEC: Source = source!("parts/x_vec.wgsl");
pub(in crate::ops) const X_SCALAR: Source = source!("parts/x_scalar.wgsl");
const PIECES: Source = source!("matmul_pieces.wgsl");
const MERGE: Source = source!("matmul_merge.wgsl");
/// What becomes of a sum over a part of k, here and in conv2d.
pub(in crate::ops) const PARTIAL: Source = source!("parts/partial.wgsl");
const ADD_PARTIAL: Source = source!("parts/add_partial.wgsl");

impl Variant {
    /// For m rows of x of k channels, by n rows of w.
    /// `codes`: in what order x is rounded, if it is.
    pub(super) fn fit(
        cx: &Lower<'_>,
        x: Elem,
        (format, codes): (Format, Option<Codes>),
        (m, k, n): (usize, usize, usize),
    ) -> Variant {
        let (blocks, vec8) = (k.div_ceil(8), k.is_multiple_of(8));
        if cx.reference() {
            return Variant::Reference;
        }
        if m <= VEC_ROWS {
            return match Pieces::fit(cx, (format, codes), (m, k, n)) {
                _ if !whole_groups(format, k) => Variant::Vec { vec8 },
                Some(pieces) => Variant::Pieces(pieces),
                None if cx.eight_lanes() && n >= VEC_LANES_ROWS => Variant::VecLanes { vec8 },
                None => Variant::Vec { vec8 },
            };
        }
        if cx.eight_lanes() && n >= LANES_COLUMNS && lanes_trips(blocks) as u64 <= MAX_TRIPS {
            return Variant::Lanes { tall: m > 8, vec8 };
        }
        if let Some(coop) = Coop::fit(cx, x, m, n)
            && (coop.trips(blocks) + coop.epilogue_trips()) as u64 <= MAX_TRIPS
        {
            return Variant::Coop { coop, vec8 };
        }
        if cx.software() || tiled_trips(blocks) as u64 > MAX_TRIPS {
            return Variant::Tile { vec8 };
        }
        Variant::Tiled { vec8 }
    }

    /// In what order x is rounded, if it is.
    pub(super) fn codes(self) -> Option<Codes> {
        match self {
            Variant::Pieces(pieces) => pieces.codes,
            _ => None,
        }
    }

    /// Parts that k is divided into: several where tiles alone are too few for a real GPU.
    pub(super) fn splits(self, cx: &Lower<'_>, (m, k, n): (usize, usize, usize)) -> usize {
        let tile = match self {
            Variant::Tiled { .. } => 64,
            Variant::Coop { coop, .. } => coop.tile(),
            _ => return 1,
        };
        parts(cx, m.div_ceil(tile) * n.div_ceil(tile), k.div_ceil(8))
    }

    /// Workgroups and trips for m rows of x of k channels, by n rows of w.
    pub(super) fn launch(self, dispatch: Dispatch, m: usize, n: usize, k: usize) -> Dispatch {
        let blocks = k.div_ceil(8);
        match self {
            Variant::Reference => dispatch.linear(m * n, 64).trips(k),
            Variant::Vec { .. } => {
                let mut d = dispatch.linear(n, VEC_WG as usize);
                d.groups[2] = m as u32;
                // A group has two blocks at least.
                d.trips(blocks + blocks.div_ceil(2))
            }
            Variant::Pieces(pieces) => pieces.launch(dispatch, m, n, k),
            Variant::VecLanes { .. } => {
                let mut d = dispatch.linear(n, VEC_LANES_ROWS);
                d.groups[2] = m as u32;
                d.trips(blocks.div_ceil(8) + 2)
            }
            Variant::Tile { .. } => dispatch
                .linear(n.div_ceil(8) * m.div_ceil(8), TILE_WG as usize)
                .trips(blocks + EPILOGUE_TRIPS),
            Variant::Lanes { tall, .. } => {
                let rows = if tall { 16 } else { 8 };
                dispatch.linear(n.div_ceil(64) * m.div_ceil(rows), 1).trips(lanes_trips(blocks))
            }
            Variant::Tiled { .. } => {
                dispatch.groups(n.div_ceil(64), m.div_ceil(64), 1).trips(tiled_trips(blocks))
            }
            Variant::Coop { coop, .. } => {
                let tile = coop.tile();
                let trips = coop.trips(blocks) + coop.epilogue_trips();
                dispatch.groups(n.div_ceil(tile), m.div_ceil(tile), 1).trips(trips)
            }
        }
    }
}

pub(in crate::ops) const VEC_WG: u32 = 64;
/// Rows of w of one workgroup of [`Variant::VecLanes`].
const VEC_LANES_ROWS: usize = 16;
/// Iterations of the loops that store a tile of 8 by 8.
pub(in crate::ops) const EPILOGUE_TRIPS: usize = 72;

/// Blocks of eight k that a part of a sum should have at least: fewer are over before a launch that adds parts up has begun.
const PART_BLOCKS: usize = 64;
/// Most parts of a sum: their traffic grows with them.
const MOST_PARTS: usize = 8;

/// Parts of a sum over so many blocks of eight k that give a real GPU as many workgroups as it is said to need, where tiles alone
/// give it only so many.
pub(crate) fn parts(cx: &Lower<'_>, tiles: usize, blocks: usize) -> usize {
    let most = (blocks / PART_BLOCKS).clamp(1, MOST_PARTS);
    (cx.caps.tuning.split_tiles as usize / tiles.max(1)).clamp(1, most)
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Variant {
    Reference,
    /// Few rows of x: an invocation for each output.
    Vec {
        vec8: bool,
    },
    Pieces(Pieces),
    /// Few rows of x: two outputs for each of eight lanes, which share x by broadcast.
    VecLanes {
        vec8: bool,
    },
    /// A register tile of 8 rows by 8 columns. `vec8`: K is a multiple of eight.
    Tile {
        vec8: bool,
    },
    /// A tile of 16 rows, or 8, by 64 columns in the registers of eight lanes.
    Lanes {
        tall: bool,
        vec8: bool,
    },
    /// 64 rows by 64 columns in a workgroup that shares what it has fetched.
    Tiled {
        vec8: bool,
    },
    /// A workgroup of four subgroups that multiply matrices.
    Coop {
        coop: Coop,
        vec8: bool,
    },
}

/// Software adapters run one workgroup on one thread with eight lanes: neighbours along n share x.
const TILE_WG: u32 = 8;

/// Columns from which a tile of [`Variant::Lanes`] has fewer idle lanes than it saves loads.
pub(in crate::ops) const LANES_COLUMNS: usize = 17;

/// Loop iterations of one lane: a group of weights has at least two blocks, then 16 rows of 8 columns are stored.
pub(in crate::ops) fn lanes_trips(blocks: usize) -> usize {
    blocks + blocks.div_ceil(2) + 144
}

fn tiled_trips(blocks: usize) -> usize {
    blocks.div_ceil(2) * 9 + EPILOGUE_TRIPS
}

/// Element types, and what is fused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) x: Elem,
    /// Of the residual.
    pub(super) act: Elem,
    pub(super) out: Elem,
    pub(super) activation: Act,
    pub(super) bias: bool,
    pub(super) tail: Tail,
    /// Bit i: the output goes into a cache, of several the i-th.
    pub(super) caches: u32,
    /// Bits of a norm's ε.
    pub(super) eps: Option<u32>,
    /// Sums of parts of k come out, and nothing is fused.
    pub(super) partial: bool,
}

pub(super) fn spec(variant: Variant, form: Form) -> Spec {
    let x = form.x;
    let load = |spec: Spec, vec8: bool| match vec8 {
        true => spec.alias4("xload", x).part(X_VEC),
        false => spec.alias("xload", x).part(X_SCALAR),
    };
    let spec = match variant {
        Variant::Reference => Spec::new(REFERENCE).alias("xload", x),
        Variant::Vec { vec8 } => load(Spec::new(VEC).u32("WG_X", VEC_WG), vec8),
        Variant::Pieces(pieces) => load_pieces(Spec::new(PIECES), pieces, x, form.eps, 6),
        Variant::VecLanes { vec8 } => load(Spec::new(VEC_LANES), vec8),
        Variant::Tile { vec8 } => load(Spec::new(TILE).u32("WG_X", TILE_WG), vec8),
        Variant::Lanes { tall, vec8 } => load(Spec::new(LANES).flag("TALL", tall), vec8),
        Variant::Tiled { vec8 } => rows(load(Spec::new(TILED).part(TILE64), vec8), form, 32),
        Variant::Coop { coop, vec8 } => {
            let spec = coop.join(Spec::new(COOP)).u32("WG_X", coop.workgroup());
            rows(load(spec, vec8), form, coop.edge())
        }
    };
    match variant {
        Variant::Reference => epilogue(spec, form),
        _ if form.partial => spec.part(PARTIAL),
        _ => out(spec, form),
    }
}

/// Which rows of w a tile has; of a weight in halves so many of one beside those of the other.
fn rows(spec: Spec, form: Form, pair: u32) -> Spec {
    match form.tail {
        tail if tail.halves() => spec.part(ROWS_PAIRED).u32("PAIR", pair),
        _ => spec.part(ROWS_PLAIN),
    }
}

/// Adds so many parts of k up.
pub(super) fn merge(form: Form, parts: usize) -> Spec {
    out(adding(Spec::new(MERGE), parts), form)
}

/// The kernel that adds parts of sums up, here and in conv2d.
pub(in crate::ops) fn adding(spec: Spec, parts: usize) -> Spec {
    spec.part(ADD_PARTIAL).u32("PARTS", parts as u32)
}

/// What becomes of a product.
fn out(spec: Spec, form: Form) -> Spec {
    match form.tail {
        Tail::Three => spec
            .part(OUT_THREE)
            .alias("out", form.out)
            .flag("BIAS", form.bias)
            .u32("CACHES", form.caches),
        Tail::Geglu | Tail::Gate => {
            result(spec.part(OUT_HALVES), form).flag("GATE_FIRST", form.tail == Tail::Gate)
        }
        _ => epilogue(spec.part(OUT), form),
    }
}

/// What epilogues of one output have.
fn result(spec: Spec, form: Form) -> Spec {
    spec.part(ACTIVATION)
        .alias("out", form.out)
        .u32("ACT", form.activation as u32)
        .flag("BIAS", form.bias)
}

fn epilogue(spec: Spec, form: Form) -> Spec {
    result(spec, form)
        .alias("act", form.act)
        .flag("RESIDUAL", form.tail != Tail::None)
        .flag("MULTIPLY", form.tail == Tail::Multiply)
        .flag("INTO_CACHE", form.caches != 0)
}

/// Everything fused that a kernel may have, for rows that are and are not whole vectors.
fn forms(x: Elem) -> Vec<(bool, Form)> {
    let (activation, bias, eps) = (Act::Silu, true, Some(1e-5f32.to_bits()));
    let partial = false;
    let of =
        |tail, caches| Form { x, act: x, out: x, activation, bias, tail, caches, eps, partial };
    let add = of(Tail::Add, 0);
    let (gate, cache) = (of(Tail::Multiply, 0), of(Tail::None, 1));
    vec![(true, add), (false, add), (true, gate), (true, cache)]
}

/// A form in each kernel of a real GPU that goes by tiles.
fn tiles(vec8: bool, form: Form, decoding: &dyn Fn(Spec) -> Spec) -> Vec<Spec> {
    let coop = Coop::all().filter(|_| form.x == Elem::F16);
    let coop = coop.map(|coop| Variant::Coop { coop, vec8 });
    let all = [Variant::Tiled { vec8 }].into_iter().chain(coop);
    all.map(|variant| decoding(spec(variant, form))).collect()
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for x in ACTS {
        specs.extend(forms(x).into_iter().map(|(_, form)| merge(form, 3)));
        let (_, form) = forms(x)[0];
        specs.push(merge(Form { tail: Tail::Three, caches: 4, ..form }, 3));
    }
    for format in formats() {
        for x in ACTS {
            for (vec8, form) in forms(x) {
                for variant in [
                    Variant::Reference,
                    Variant::Vec { vec8 },
                    Variant::Tile { vec8 },
                    Variant::Lanes { tall: true, vec8 },
                    Variant::Lanes { tall: false, vec8 },
                    Variant::Tiled { vec8 },
                ] {
                    specs.push(weight_part(spec(variant, form), format));
                }
                for pieces in Pieces::all(vec8, format) {
                    specs.push(pieces.dot_part(spec(Variant::Pieces(pieces), form), format));
                }
                specs.push(dot_part(spec(Variant::VecLanes { vec8 }, form), format));
                let sums = Form { partial: true, ..form };
                specs.extend(tiles(vec8, sums, &|spec| weight_part(spec, format)));
                for coop in Coop::all().filter(|_| x == Elem::F16) {
                    specs.push(weight_part(spec(Variant::Coop { coop, vec8 }, form), format));
                }
            }
            for (vec8, form) in forms(x).into_iter().take(2) {
                for (tail, caches) in [(Tail::Geglu, 0), (Tail::Gate, 0), (Tail::Three, 4)] {
                    let form = Form { tail, caches, ..form };
                    let part = if tail == Tail::Geglu { weight_part } else { several_part };
                    specs.extend(tiles(vec8, form, &|spec| part(spec, format)));
                }
            }
        }
    }
    vec![OpInfo { name: "matmul", specs, params: Params::FIELDS }]
}
