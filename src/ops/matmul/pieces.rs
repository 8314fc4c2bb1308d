//! How few rows of x meet a weight on a real GPU: thirty-two channels at a time (shaders/parts/pieces.wgsl), here and where
//! several products are computed together; x as it is, or rounded to eight bits (`--int-dot`).

use super::{VEC_ROWS, VEC_WG, X_SCALAR, X_VEC};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, dot_part, int_dot_part};
use crate::ops::round8::Codes;
use crate::quant::{Format, Offset};
use crate::source;

const PART: Source = source!("parts/pieces.wgsl");
const FETCH: Source = source!("parts/fetch_float.wgsl");
const FETCH_I8: Source = source!("parts/fetch_i8.wgsl");
/// Eight channels of a row, here and in round8.
const EIGHT: Source = source!("parts/eight.wgsl");
const GAMMA_VEC: Source = source!("parts/gamma_vec.wgsl");
const GAMMA_SCALAR: Source = source!("parts/gamma_scalar.wgsl");
const LANES_SUBGROUP: Source = source!("parts/lanes_subgroup.wgsl");
const LANES_WORKGROUP: Source = source!("parts/lanes_workgroup.wgsl");
const LANES_ONE: Source = source!("parts/lanes_one.wgsl");
/// Invocations of a workgroup whose lanes are a processor's: as many as compute at once, so that few rows of w busy all cores.
const SOFTWARE_WG: u32 = 8;

/// Few rows of x: `lanes` invocations for `rows` outputs, which add up by the subgroup's operations or in workgroup memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pieces {
    lanes: u32,
    rows: u32,
    sums: Sums,
    vec8: bool,
    /// In what order x is rounded, if it is.
    pub(super) codes: Option<Codes>,
}

/// How the lanes of a row add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sums {
    /// By the subgroup's operations.
    Subgroup,
    /// In workgroup memory.
    Workgroup,
    /// There is one lane, of a processor.
    One,
}

/// In what order x is rounded for weights that integers can be multiplied with; None for others.
pub(super) fn codes(format: Format) -> Option<Codes> {
    match format {
        Format::Q4 { cubic, offset, .. } if cubic == 0.0 || offset != Offset::None => {
            Some(Codes::Nibbles)
        }
        Format::Q8 { .. } => Some(Codes::Plain),
        _ => None,
    }
}

impl Pieces {
    /// As many rows of w for each group of lanes as leave enough lanes to keep memory busy. None for many rows of x, and where a
    /// processor plays the GPU and has something better: eight lanes that share x, or, for floats, one row for each invocation.
    pub(super) fn fit(
        cx: &Lower<'_>,
        (format, codes): (Format, Option<Codes>),
        (m, k, n): (usize, usize, usize),
    ) -> Option<Pieces> {
        let better = cx.eight_lanes() || matches!(format, Format::F32 | Format::F16);
        if (cx.software() && better && codes.is_none()) || cx.reference() || m > VEC_ROWS {
            return None;
        }
        let vec8 = k.is_multiple_of(8);
        if cx.software() {
            // Lanes of one thread: each has rows of its own.
            return Some(Pieces { lanes: 1, rows: 4, sums: Sums::One, vec8, codes });
        }
        let lanes = 32.min(k.div_ceil(32).next_power_of_two()) as u32;
        let rows = [4, 2]
            .into_iter()
            .find(|rows| n / rows * lanes as usize >= cx.caps.tuning.busy_lanes as usize)
            .unwrap_or(1);
        let subgroup = cx.caps.subgroups && cx.caps.subgroup_min >= lanes;
        let sums = if subgroup { Sums::Subgroup } else { Sums::Workgroup };
        Some(Pieces { lanes, rows: rows as u32, sums, vec8, codes })
    }
    /// The same with two rows at least, which belong to two weights.
    pub(super) fn in_pairs(self) -> Pieces {
        Pieces { rows: self.rows.max(2), ..self }
    }
    /// Those of the shader tests.
    pub(super) fn all(vec8: bool, format: Format) -> impl Iterator<Item = Pieces> {
        let forms = [
            (1, 1, Sums::Subgroup),
            (16, 2, Sums::Subgroup),
            (32, 4, Sums::Subgroup),
            (32, 4, Sums::Workgroup),
            (1, 4, Sums::One),
        ];
        let eight = codes(format).filter(|_| vec8);
        let with = move |codes: Option<Codes>| {
            let of = move |(lanes, rows, sums)| Pieces { lanes, rows, sums, vec8, codes };
            forms.into_iter().map(of)
        };
        with(None).chain(eight.into_iter().flat_map(move |codes| with(Some(codes))))
    }
    fn workgroup(self) -> u32 {
        if self.sums == Sums::One { SOFTWARE_WG } else { VEC_WG }
    }
    /// Joins the part that multiplies thirty-two channels of this format with x as it is here.
    pub(super) fn dot_part(self, spec: Spec, format: Format) -> Spec {
        match self.codes {
            Some(_) => int_dot_part(spec, format),
            None => dot_part(spec, format),
        }
    }
    /// For m rows of x of k channels, by n rows of w.
    pub(super) fn launch(self, dispatch: Dispatch, m: usize, n: usize, k: usize) -> Dispatch {
        let rows = self.workgroup() / self.lanes * self.rows;
        let mut dispatch = dispatch.linear(n, rows as usize);
        dispatch.groups[2] = m as u32;
        dispatch.trips(k.div_ceil(32 * self.lanes as usize) + 16)
    }
}

/// What kernels that go by thirty-two channels have in common; `eps` is of the norm that they compute, in bits, whose scale they
/// bind as `gamma`, or, if x is rounded, its scales.
pub(super) fn load_pieces(
    spec: Spec,
    pieces: Pieces,
    x: Elem,
    eps: Option<u32>,
    gamma: u32,
) -> Spec {
    let Pieces { lanes, rows, sums, vec8, codes } = pieces;
    let spec = spec.u32("LANES", lanes).u32("ROWS", rows).u32("WG_X", pieces.workgroup());
    let spec = spec.flag("NORM", eps.is_some()).u32("EPS", eps.unwrap_or(0));
    let adding = match sums {
        Sums::One => LANES_ONE,
        _ => self::lanes(sums == Sums::Subgroup),
    };
    let spec = spec.part(adding).u32("GAMMA", gamma);
    let spec = spec.part(PART);
    match codes {
        Some(_) => spec.alias4("xload", Elem::U32).part(FETCH_I8),
        None => load_eight(spec.part(FETCH), x, vec8),
    }
}

/// How eight channels of a row are loaded and scaled, here and in round8; `vec8`: rows are whole eights.
pub(in crate::ops) fn load_eight(spec: Spec, x: Elem, vec8: bool) -> Spec {
    let spec = spec.part(EIGHT);
    match vec8 {
        true => spec.alias4("xload", x).part(X_VEC).part(GAMMA_VEC),
        false => spec.alias("xload", x).part(X_SCALAR).part(GAMMA_SCALAR),
    }
}

/// How LANES neighbouring invocations add up, here and in attention.
pub(in crate::ops) fn lanes(subgroup: bool) -> Source {
    if subgroup { LANES_SUBGROUP } else { LANES_WORKGROUP }
}
