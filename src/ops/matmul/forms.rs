//! The Spec of each kernel of a product.

use super::coop::Coop;
use super::pieces::{Pieces, load_pieces};
use super::{Params, TILE_WG, TILE64, Tail, VEC_WG, Variant, X_SCALAR, X_VEC};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{dot_part, weight_part};
use crate::ops::pointwise::Act;
use crate::ops::{ACTS, OpInfo, formats};
use crate::source;

const TILE: Source = source!("matmul.wgsl");
const LANES: Source = source!("matmul_lanes.wgsl");
const TILED: Source = source!("matmul_tiled.wgsl");
const COOP: Source = source!("matmul_coop.wgsl");
const VEC: Source = source!("matmul_vec.wgsl");
const VEC_LANES: Source = source!("matmul_vec_lanes.wgsl");
const REFERENCE: Source = source!("reference/matmul.wgsl");
/// What becomes of a product, in all but the reference.
const OUT: Source = source!("parts/matmul_out.wgsl");
const ACTIVATION: Source = source!("parts/activation.wgsl");
const PIECES: Source = source!("matmul_pieces.wgsl");

/// Element types, and what is fused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub x: Elem,
    /// Of the residual.
    pub act: Elem,
    pub out: Elem,
    pub activation: Act,
    pub bias: bool,
    pub tail: Tail,
    pub into_cache: bool,
    /// Bits of a norm's ε.
    pub eps: Option<u32>,
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
        Variant::Pieces(pieces) => load_pieces(Spec::new(PIECES), pieces, x, form.eps),
        Variant::VecLanes { vec8 } => load(Spec::new(VEC_LANES), vec8),
        Variant::Tile { vec8 } => load(Spec::new(TILE).u32("WG_X", TILE_WG), vec8),
        Variant::Lanes { tall, vec8 } => load(Spec::new(LANES).flag("TALL", tall), vec8),
        Variant::Tiled { vec8 } => load(Spec::new(TILED).part(TILE64), vec8),
        Variant::Coop { coop, vec8 } => {
            load(coop.join(Spec::new(COOP)).u32("WG_X", coop.workgroup()), vec8)
        }
    };
    let spec = match variant {
        Variant::Reference => spec,
        _ => spec.part(OUT),
    };
    spec.part(ACTIVATION)
        .alias("act", form.act)
        .alias("out", form.out)
        .u32("ACT", form.activation as u32)
        .flag("BIAS", form.bias)
        .flag("RESIDUAL", form.tail != Tail::None)
        .flag("MULTIPLY", form.tail == Tail::Multiply)
        .flag("INTO_CACHE", form.into_cache)
}

/// Everything fused that a kernel may have, for rows that are and are not whole vectors.
fn forms(x: Elem) -> Vec<(bool, Form)> {
    let (activation, bias, eps) = (Act::Silu, true, Some(1e-5f32.to_bits()));
    let of = |tail, into_cache| Form { x, act: x, out: x, activation, bias, tail, into_cache, eps };
    let add = of(Tail::Add, false);
    let (gate, cache) = (of(Tail::Multiply, false), of(Tail::None, true));
    vec![(true, add), (false, add), (true, gate), (true, cache)]
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
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
                for coop in Coop::all().filter(|_| x == Elem::F16) {
                    specs.push(weight_part(spec(Variant::Coop { coop, vec8 }, form), format));
                }
            }
        }
    }
    vec![OpInfo { name: "matmul", specs, params: Params::FIELDS }]
}
