//! How few rows of x meet a weight on a real GPU: thirty-two channels at a time (shaders/parts/pieces.wgsl), here and where
//! several products are computed together.

use super::{VEC_ROWS, VEC_WG, X_SCALAR, X_VEC};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower};
use crate::source;

const PART: Source = source!("parts/pieces.wgsl");
const GAMMA_VEC: Source = source!("parts/gamma_vec.wgsl");
const GAMMA_SCALAR: Source = source!("parts/gamma_scalar.wgsl");
const LANES_SUBGROUP: Source = source!("parts/lanes_subgroup.wgsl");
const LANES_WORKGROUP: Source = source!("parts/lanes_workgroup.wgsl");

/// Few rows of x: `lanes` invocations for `rows` outputs, which add up by the subgroup's operations or in workgroup memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pieces {
    lanes: u32,
    rows: u32,
    subgroup: bool,
    vec8: bool,
}

impl Pieces {
    /// As many rows of w for each group of lanes as leave enough lanes to keep memory busy. None where a processor plays the GPU,
    /// and for many rows of x.
    pub(super) fn fit(cx: &Lower<'_>, m: usize, k: usize, n: usize) -> Option<Pieces> {
        if cx.software() || cx.reference() || m > VEC_ROWS {
            return None;
        }
        let lanes = 32.min(k.div_ceil(32).next_power_of_two()) as u32;
        let rows = [4, 2]
            .into_iter()
            .find(|rows| n / rows * lanes as usize >= cx.caps.tuning.busy_lanes as usize)
            .unwrap_or(1);
        let subgroup = cx.caps.subgroups && cx.caps.subgroup_min >= lanes;
        Some(Pieces { lanes, rows: rows as u32, subgroup, vec8: k.is_multiple_of(8) })
    }
    /// The same with two rows at least, which belong to two weights.
    pub(super) fn in_pairs(self) -> Pieces {
        Pieces { rows: self.rows.max(2), ..self }
    }
    /// Those of the shader tests.
    pub(super) fn all(vec8: bool) -> impl Iterator<Item = Pieces> {
        [(1, 1, true), (16, 2, true), (32, 4, true), (32, 4, false)]
            .into_iter()
            .map(move |(lanes, rows, subgroup)| Pieces { lanes, rows, subgroup, vec8 })
    }
    /// For m rows of x of k channels, by n rows of w.
    pub(super) fn launch(self, dispatch: Dispatch, m: usize, n: usize, k: usize) -> Dispatch {
        let mut dispatch = dispatch.linear(n, (VEC_WG / self.lanes * self.rows) as usize);
        dispatch.groups[2] = m as u32;
        dispatch.trips(k.div_ceil(32 * self.lanes as usize) + 16)
    }
}

/// What kernels that go by thirty-two channels have in common; `eps` is of the norm that they compute, in bits, whose scale they
/// bind as `gamma`.
pub(super) fn load_pieces(
    spec: Spec,
    pieces: Pieces,
    x: Elem,
    eps: Option<u32>,
    gamma: u32,
) -> Spec {
    let Pieces { lanes, rows, subgroup, vec8 } = pieces;
    let spec = spec.u32("LANES", lanes).u32("ROWS", rows).u32("WG_X", VEC_WG);
    let spec = spec
        .flag("NORM", eps.is_some())
        .u32("EPS", eps.unwrap_or(0))
        .part(PART)
        .u32("GAMMA", gamma);
    let spec = spec.part(self::lanes(subgroup));
    match vec8 {
        true => spec.alias4("xload", x).part(X_VEC).part(GAMMA_VEC),
        false => spec.alias("xload", x).part(X_SCALAR).part(GAMMA_SCALAR),
    }
}

/// How LANES neighbouring invocations add up, here and in attention.
pub(in crate::ops) fn lanes(subgroup: bool) -> Source {
    if subgroup { LANES_SUBGROUP } else { LANES_WORKGROUP }
}
