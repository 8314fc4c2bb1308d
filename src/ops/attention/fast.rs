//! Which kernel attends, how its work is cut, and every variant for the shader tests.

use super::{Attend, Params, SOFT_CAP, Sight, Sizes};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, MAX_TRIPS, Operand};
use crate::ops::matmul::coop::Coop;
use crate::ops::matmul::pieces::lanes;
use crate::{Result, source};

const ROWS: Source = source!("attention.wgsl");
const LANES: Source = source!("attention_lanes.wgsl");
const COOP: Source = source!("attention_coop.wgsl");
const PIECES: Source = source!("attention_pieces.wgsl");
const MERGE: Source = source!("attention_merge.wgsl");
const KV: Source = source!("parts/attention_kv.wgsl");
const KV_Q8: Source = source!("parts/attention_kv_q8.wgsl");
const PLAIN: Source = source!("parts/score_plain.wgsl");
const CAPPED: Source = source!("parts/score_capped.wgsl");
const WHOLE: Source = source!("parts/attention_whole.wgsl");
const SPLIT: Source = source!("parts/attention_split.wgsl");

/// Most fours of channels that a lane of [`Variant::Lanes`] has registers for.
const LANES_FOURS: u32 = 5;
/// Most heads that share what is read of keys and values.
const SHARED_HEADS: usize = 4;
/// Most matrices along a head that a subgroup has registers for: 160 channels; with half as many lanes for each number
/// (edge 8) a matrix takes a quarter of the registers.
const MATRICES: [(u32, usize); 2] = [(16, 10), (8, 20)];
/// Queries from which tiles of them pay on a real GPU.
const MANY: usize = 32;

#[derive(Clone, Copy, Debug)]
enum Variant {
    /// A workgroup per eight queries of a head.
    Rows { wg: u32 },
    /// Eight lanes per sixteen queries of a head; each lane has so many fours of channels.
    Lanes { fours: u32 },
    /// A workgroup per query of so many heads that share keys; teams of `lanes` invocations take keys.
    Pieces { wg: u32, heads: u32, lanes: u32, subgroup: bool },
    /// A workgroup of four subgroups that multiply matrices, so many along a head.
    Coop { edge: u32, subgroup: u32, matrices: u32 },
}

/// Emits the fast kernels.
pub(super) fn lower(op: &Attend, cx: &mut Lower<'_>, s: &Sizes) -> Result<()> {
    let (d4, variant) = (s.d / 4, Variant::fit(op, cx, s));
    // Enough parts that no invocation loops too long and, for few queries, that a GPU is busy.
    let reach = op.window.map_or(s.sk, |window| s.sk.min(window + variant.queries() - 1));
    let mut splits = variant.busy(cx, op, s, reach);
    let span = |splits: usize| reach.div_ceil(splits).next_multiple_of(8);
    while variant.trips(span(splits), d4) > MAX_TRIPS as usize && span(splits) > 8 {
        splits += 1;
    }
    let span = span(splits);
    let splits = reach.div_ceil(span);
    let p = Params { splits: splits as u32, span: span as u32, ..op.params(s) };
    let spec = spec(variant, cx.act, op.sight(), d4 as u32, splits > 1);
    let [x, y, z] = variant.groups(op, s);
    let dispatch = op.inputs(Dispatch::new(spec, &p), cx).groups(x, y, z * splits);
    let dispatch = dispatch.trips(variant.trips(span, d4)).flops(op.flops(s));
    if splits == 1 {
        return cx.dispatch(dispatch.arg(&cx.output().clone()));
    }
    let part = cx.scratch([s.rows, splits, s.d], Elem::F32);
    let stat = cx.scratch([s.rows, splits, 2], Elem::F32);
    cx.dispatch(dispatch.arg(&part).arg(&stat))?;
    join(cx, s, p, &part, &stat)
}

/// Joins the parts that the keys were divided into.
fn join(cx: &mut Lower<'_>, s: &Sizes, p: Params, part: &Operand, stat: &Operand) -> Result<()> {
    let n = s.rows * s.d / 4;
    let p = Params { n: n as u32, ..p };
    let dispatch = Dispatch::new(merge(cx.act), &p)
        .arg(part)
        .arg(stat)
        .arg(cx.output())
        .linear(n, 64)
        .trips(2 * p.splits as usize);
    cx.dispatch(dispatch)
}

/// Invocations for the channels of a head, eight each.
fn lanes8(d4: usize) -> u32 {
    d4.div_ceil(2).next_power_of_two() as u32
}

impl Variant {
    fn fit(op: &Attend, cx: &Lower<'_>, s: &Sizes) -> Variant {
        let (d4, software) = (s.d / 4, cx.software());
        let fours = d4.div_ceil(8) as u32;
        if cx.eight_lanes() && s.sq >= 8 && fours <= LANES_FOURS {
            return Variant::Lanes { fours };
        }
        if software && s.sq >= 4 {
            return Variant::Rows { wg: lanes8(d4).max(8) };
        }
        if !software && s.sq >= MANY {
            let rows = Variant::Rows { wg: lanes8(d4).max(32) };
            return Variant::coop(cx, s.d).unwrap_or(rows);
        }
        let lanes = lanes8(d4);
        let served = op.heads / op.kv_heads;
        let heads = served.div_ceil(served.div_ceil(SHARED_HEADS)) as u32;
        let subgroup = cx.caps.subgroups && cx.caps.subgroup_min >= lanes;
        let wg = match cx.caps.tuning.attention_lanes {
            0 if software => 8,
            0 => 128,
            tuned => tuned.next_power_of_two().min(cx.caps.max_workgroup_invocations),
        };
        Variant::Pieces { wg: lanes.max(wg), heads, lanes, subgroup }
    }

    /// Matrices, where the adapter has them and activations, which they multiply as they are, are f16.
    fn coop(cx: &Lower<'_>, d: usize) -> Option<Variant> {
        let caps = cx.caps;
        let edge = caps.coop_edge;
        if edge == 0
            || !caps.tuning.attention_matrices
            || cx.act != Elem::F16
            || caps.subgroup_max < edge
        {
            return None;
        }
        let most = MATRICES.iter().find(|(e, _)| *e == edge)?.1;
        let matrices = d.div_ceil(edge as usize);
        let variant =
            Variant::Coop { edge, subgroup: caps.subgroup_max, matrices: matrices as u32 };
        let fits = matrices <= most && variant.workgroup_bytes() <= caps.max_workgroup_bytes;
        fits.then_some(variant)
    }

    /// Of attention_coop.wgsl: two tiles of 32 keys, scores and weights of the queries, a word for each subgroup.
    fn workgroup_bytes(self) -> u32 {
        match self {
            Variant::Coop { edge, matrices, .. } => {
                2 * 64 * (matrices * edge + 8) + 4 * edge * (4 * 36 + 2 * 40) + 16
            }
            _ => 0,
        }
    }

    /// Neighbouring queries of one workgroup.
    fn queries(self) -> usize {
        match self {
            Variant::Rows { .. } => 8,
            Variant::Lanes { .. } => 16,
            Variant::Pieces { .. } => 1,
            Variant::Coop { edge, .. } => 4 * edge as usize,
        }
    }

    /// Workgroups, if one goes through all keys.
    fn groups(self, op: &Attend, s: &Sizes) -> [usize; 3] {
        match self {
            Variant::Pieces { heads, .. } => {
                let parts = (op.heads / op.kv_heads).div_ceil(heads as usize);
                [op.kv_heads * parts, s.batch * s.sq, 1]
            }
            _ => [s.sq.div_ceil(self.queries()), op.heads, s.batch],
        }
    }

    /// Parts of the keys that give a real GPU enough to do: two workgroups for each of some hundred processors. One part where it
    /// would be over before another launch, which joins them, has begun: eight turns. For one token more of them cost that launch
    /// little, and two turns of each are enough.
    fn busy(self, cx: &Lower<'_>, op: &Attend, s: &Sizes, reach: usize) -> usize {
        let groups: usize = self.groups(op, s).iter().product();
        let (alone, least) = match self {
            _ if cx.software() => return 1,
            Variant::Pieces { wg, lanes, .. } => {
                let turn = 4 * (wg / lanes) as usize;
                (8 * turn, 2 * turn)
            }
            _ => (512, 512),
        };
        match reach <= alone {
            true => 1,
            false => (256 / groups.max(1)).clamp(1, reach.div_ceil(least)),
        }
    }

    /// Loop iterations of one invocation over `span` keys of `d4` times four channels.
    fn trips(self, span: usize, d4: usize) -> usize {
        match self {
            Variant::Rows { wg } => {
                let (wg, lanes) = (wg as usize, lanes8(d4) as usize);
                let (keys, shares, per_query) = (8 * wg.min(32), wg / lanes, wg / 8);
                let weights = 2 * (keys / 4).div_ceil(per_query) + per_query;
                let turn = d4 + weights + (keys / 4).div_ceil(shares) + 1;
                span.div_ceil(keys) * turn + 2 * 8 * (per_query + shares + 1)
            }
            Variant::Lanes { .. } => span.div_ceil(64) * (1 + d4 + 16) + 16,
            // A turn has up to five steps of adding up for each head; each head's end goes twice over the teams.
            Variant::Pieces { wg, heads, lanes, .. } => {
                let (heads, teams) = (heads as usize, (wg / lanes) as usize);
                span.div_ceil(4 * teams) * (1 + 6 * heads) + heads * (2 * teams + 2)
            }
            // A turn fetches keys and values, multiplies by columns of keys twice, and goes over the weights twice.
            Variant::Coop { edge, subgroup, matrices } => {
                let (edge, shares) = (edge as usize, (subgroup / edge) as usize);
                let fours = matrices as usize * edge / 4;
                let wg = 4 * subgroup as usize;
                let fetch = (32 * fours).div_ceil(wg);
                let scaling = matrices as usize * edge.div_ceil(shares);
                let turn = fetch + 2 * (32 / edge) + 2 * 8usize.div_ceil(shares) + 4 + scaling;
                let queries = (4 * edge * fours).div_ceil(wg);
                span.div_ceil(32) * turn + queries + scaling + 4
            }
        }
    }
}

fn spec(variant: Variant, elem: Elem, sight: Sight, d4: u32, split: bool) -> Spec {
    let spec = match variant {
        Variant::Rows { wg } => Spec::new(ROWS).u32("WG_X", wg).u32("LANES8", lanes8(d4 as usize)),
        Variant::Lanes { fours } => Spec::new(LANES).u32("FOURS", fours),
        Variant::Pieces { wg, heads, lanes: each, subgroup } => {
            let spec = Spec::new(PIECES).u32("WG_X", wg);
            spec.u32("LANES", each).u32("HEADS", heads).part(lanes(subgroup))
        }
        Variant::Coop { edge, subgroup, matrices } => {
            let spec = Spec::new(COOP).u32("WG_X", 4 * subgroup).u32("MATRICES", matrices);
            Coop::matrices(spec, edge)
        }
    };
    let spec = sight.head(spec.part(if sight.q8 { KV_Q8 } else { KV })).part(if split {
        SPLIT
    } else {
        WHOLE
    });
    let spec = if sight.cap { spec.part(CAPPED).part(SOFT_CAP) } else { spec.part(PLAIN) };
    spec.alias4("act4", elem)
}

fn merge(elem: Elem) -> Spec {
    Spec::new(MERGE).alias4("act4", elem)
}

/// Variants for the shader tests: what a head of `d4` times four channels may get.
fn every(d4: usize, elem: Elem) -> Vec<Variant> {
    let lanes = lanes8(d4);
    let mut all = vec![Variant::Rows { wg: lanes.max(8) }, Variant::Rows { wg: lanes.max(32) }];
    let of = |wg, heads, subgroup| Variant::Pieces { wg, heads, lanes, subgroup };
    all.extend([of(lanes.max(8), 1, lanes <= 8), of(128, 3, lanes <= 32), of(128, 4, false)]);
    all.extend([16, 64, 256].map(|wg| of(lanes.max(wg), 4, lanes <= 8)));
    for (edge, most) in MATRICES.into_iter().filter(|_| elem == Elem::F16) {
        let matrices = (4 * d4).div_ceil(edge as usize);
        for subgroup in [edge, 32, 64].into_iter().filter(|_| matrices <= most) {
            all.push(Variant::Coop { edge, subgroup, matrices: matrices as u32 });
        }
    }
    all
}

/// Every fast kernel, for the shader tests.
pub(super) fn specs(elem: Elem, sights: &[Sight]) -> Vec<Spec> {
    let mut specs = vec![merge(elem)];
    for sight in sights.iter().copied() {
        for (d4, split) in [(8, false), (10, true), (16, false), (40, false), (128, true)] {
            let variants = every(d4, elem).into_iter();
            specs.extend(variants.map(|variant| spec(variant, elem, sight, d4 as u32, split)));
        }
        for (fours, split) in [(1, false), (2, true), (5, false)] {
            specs.push(spec(Variant::Lanes { fours }, elem, sight, 8 * fours, split));
        }
    }
    specs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Target, link};
    use crate::ops::attention::MaskKind;

    /// What decides whether an adapter has room for a tile is what the shader declares.
    #[test]
    fn workgroup_memory_is_what_the_shader_declares() {
        let sight = Sight { mask: MaskKind::None, window: false, cap: false, q8: false };
        for (edge, most) in MATRICES {
            for matrices in 1..=most as u32 {
                let variant = Variant::Coop { edge, subgroup: 32, matrices };
                let spec = spec(variant, Elem::F16, sight, matrices * edge / 4, false);
                let module =
                    naga::front::wgsl::parse_str(&link(&spec, Target::Native).text).unwrap();
                let bytes: u32 = module
                    .global_variables
                    .iter()
                    .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup)
                    .map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx()))
                    .sum();
                assert_eq!(bytes, variant.workgroup_bytes(), "{matrices} of {edge}");
            }
        }
    }
}
