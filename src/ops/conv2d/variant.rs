//! Which kernels convolve, how their work is cut, and every variant for the shader tests.

use super::Params;
use crate::gpu::{Elem, Source, Spec};
use crate::graph::weight_part;
use crate::ops::matmul::coop::Coop;
use crate::ops::matmul::{PARTIAL, TILE64, adding};
use crate::ops::pointwise::Act;
use crate::ops::{ACTS, OpInfo, formats};
use crate::quant::{Format, Offset};
use crate::source;

const TILE: Source = source!("conv2d.wgsl");
const LANES: Source = source!("conv2d_lanes.wgsl");
const TILED: Source = source!("conv2d_tiled.wgsl");
const COOP: Source = source!("conv2d_coop.wgsl");
const MERGE: Source = source!("conv2d_merge.wgsl");
const REFERENCE: Source = source!("reference/conv2d.wgsl");
/// What becomes of a sum, in all but the reference.
const OUT: Source = source!("parts/conv_out.wgsl");
const GATHER: Source = source!("parts/conv_gather.wgsl");
const ACTIVATION: Source = source!("parts/activation.wgsl");
const ONE_VEC: Source = source!("parts/conv_one_vec.wgsl");
const ONE_SCALAR: Source = source!("parts/conv_one_scalar.wgsl");
const TWO_VEC: Source = source!("parts/conv_two_vec.wgsl");
const TWO_SCALAR: Source = source!("parts/conv_two_scalar.wgsl");
const SHIFT_NONE: Source = source!("parts/shift_none.wgsl");
const SHIFT_ROW: Source = source!("parts/shift_row.wgsl");

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Variant {
    Reference,
    /// A register tile of 8 pixels by 8 channels. `vec8`: all numbers of input channels are multiples of
    /// eight.
    Tile {
        vec8: bool,
    },
    /// A tile of 16 pixels by 64 channels in the registers of eight lanes.
    Lanes {
        vec8: bool,
    },
    /// 64 pixels by 64 channels in a workgroup that shares what it has fetched.
    Tiled {
        vec8: bool,
    },
    /// A workgroup of four subgroups that multiply matrices.
    Coop {
        coop: Coop,
        vec8: bool,
    },
}

/// Invocations of one workgroup.
const WORKGROUP: u32 = 64;

impl Variant {
    fn workgroup(self) -> u32 {
        match self {
            Variant::Coop { coop, .. } => coop.workgroup(),
            _ => WORKGROUP,
        }
    }
    /// Items of a workgroup.
    pub(super) fn threads(self) -> usize {
        match self {
            Variant::Reference | Variant::Tile { .. } => WORKGROUP as usize,
            _ => 1,
        }
    }
    /// Items for so many pixels and channels.
    pub(super) fn tiles(self, pixels: usize, channels: usize) -> usize {
        let (tall, wide) = match self {
            Variant::Reference => (1, 1),
            Variant::Tile { .. } => (8, 8),
            Variant::Lanes { .. } => (16, 64),
            Variant::Tiled { .. } => (64, 64),
            Variant::Coop { coop, .. } => (coop.tile(), coop.tile()),
        };
        pixels.div_ceil(tall) * channels.div_ceil(wide)
    }
}

/// What is fused into a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) two: bool,
    pub(super) table: Option<Elem>,
    pub(super) act: Act,
    pub(super) bias: bool,
    pub(super) residual: bool,
    /// Sums of parts of the taps come out, and nothing but the second input is fused.
    pub(super) partial: bool,
}

pub(super) fn spec(variant: Variant, x: Elem, act: Elem, form: Form) -> Spec {
    let (spec, vec8) = match variant {
        Variant::Reference => (Spec::new(REFERENCE), false),
        Variant::Tile { vec8 } => (Spec::new(TILE).part(GATHER), vec8),
        Variant::Lanes { vec8 } => (Spec::new(LANES).part(GATHER), vec8),
        Variant::Tiled { vec8 } => (Spec::new(TILED).part(TILE64).part(GATHER), vec8),
        Variant::Coop { coop, vec8 } => (coop.join(Spec::new(COOP)).part(GATHER), vec8),
    };
    let spec = match (form.two, vec8) {
        (false, true) => spec.part(ONE_VEC).alias4("xload", x),
        (false, false) => spec.part(ONE_SCALAR).alias("xload", x),
        (true, true) => spec.part(TWO_VEC).alias4("xload", x),
        (true, false) => spec.part(TWO_SCALAR).alias("xload", x),
    };
    // Behind x and what comes out.
    let spec = match form.two {
        true => spec.u32("SECOND", if form.partial { 3 } else { 5 }),
        false => spec,
    };
    let spec = spec.u32("WG_X", variant.workgroup());
    match variant {
        Variant::Reference => epilogue(spec, act, form),
        _ if form.partial => spec.part(PARTIAL),
        _ => epilogue(spec.part(OUT), act, form),
    }
}

/// Adds so many parts of the taps up.
pub(super) fn merge(act: Elem, form: Form, parts: usize) -> Spec {
    epilogue(adding(Spec::new(MERGE), parts).part(OUT), act, form)
}

fn epilogue(spec: Spec, act: Elem, form: Form) -> Spec {
    let spec = match form.table {
        Some(table) => spec.part(SHIFT_ROW).alias("tab", table),
        None => spec.part(SHIFT_NONE),
    };
    spec.part(ACTIVATION)
        .alias("act", act)
        .u32("ACT", form.act as u32)
        .flag("BIAS", form.bias)
        .flag("RESIDUAL", form.residual)
}

/// Variants for the shader tests: every weight format with one input, every kind of input with INT4.
pub(crate) fn info() -> Vec<OpInfo> {
    let one = Form {
        two: false,
        table: None,
        act: Act::Silu,
        bias: true,
        residual: true,
        partial: false,
    };
    let int4 = Format::Q4 { group: 64, cubic: 0.01, offset: Offset::None };
    let mut specs = Vec::new();
    for x in ACTS {
        let tiles = [true, false]
            .map(|vec8| [Variant::Tile { vec8 }, Variant::Lanes { vec8 }, Variant::Tiled { vec8 }]);
        let coops = [true, false]
            .into_iter()
            .flat_map(|vec8| Coop::all().map(move |coop| Variant::Coop { coop, vec8 }))
            .filter(|_| x == Elem::F16);
        let tiles = tiles.into_iter().flatten().chain(coops);
        for variant in [Variant::Reference].into_iter().chain(tiles) {
            specs.extend(formats().into_iter().map(|f| weight_part(spec(variant, x, x, one), f)));
            for form in [Form { two: true, ..one }, Form { table: Some(x), ..one }] {
                specs.push(weight_part(spec(variant, x, x, form), int4));
            }
            if matches!(variant, Variant::Tiled { .. } | Variant::Coop { .. }) {
                for two in [true, false] {
                    let form = Form { two, partial: true, ..one };
                    specs.push(weight_part(spec(variant, x, x, form), int4));
                }
            }
        }
        specs.extend([one, Form { table: Some(x), ..one }].map(|form| merge(x, form, 3)));
    }
    vec![OpInfo { name: "conv2d", specs, params: Params::FIELDS }]
}
