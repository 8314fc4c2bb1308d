//! How a product is cut for subgroups that multiply matrices (shaders/parts/coop.wgsl), here and in conv2d.

use crate::gpu::{Elem, Role, Source, Spec};
use crate::graph::Lower;
use crate::source;

const PART: Source = source!("parts/coop.wgsl");

/// A workgroup of four subgroups, two by two, each with `across²` matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Coop {
    /// Rows and columns of a matrix: 8 or 16.
    edge: u32,
    /// Invocations of a subgroup.
    subgroup: u32,
    /// Matrices of a subgroup in each direction: 2 or 4.
    across: u32,
}

impl Coop {
    /// For m rows by n columns, where the adapter has it and x, whose numbers it multiplies as they are, is f16.
    pub(in crate::ops) fn fit(cx: &Lower<'_>, x: Elem, m: usize, n: usize) -> Option<Coop> {
        let caps = cx.caps;
        let can = !cx.software() && caps.coop_edge > 0 && caps.tuning.matrices;
        if !can || x != Elem::F16 || n < caps.coop_edge as usize {
            return None;
        }
        let wide = Coop { edge: caps.coop_edge, subgroup: caps.subgroup_max, across: 4 };
        let small = Coop { across: 2, ..wide };
        let tiles = m.div_ceil(wide.tile()) * n.div_ceil(wide.tile());
        // Of a tile that is half empty the empty half is multiplied as well.
        let filled = m > small.tile() && n > small.tile();
        Some(if filled && tiles >= caps.tuning.wide_tiles as usize { wide } else { small })
    }
    /// Those that real adapters would take, for the shader tests.
    pub(in crate::ops) fn all() -> impl Iterator<Item = Coop> {
        [(8, 8), (8, 32), (16, 32), (16, 64)]
            .into_iter()
            .flat_map(|(edge, subgroup)| [2, 4].map(|across| Coop { edge, subgroup, across }))
    }
    /// Rows and columns of a matrix.
    pub(in crate::ops) fn edge(self) -> u32 {
        self.edge
    }
    /// Rows and columns of a workgroup.
    pub(in crate::ops) fn tile(self) -> usize {
        (2 * self.across * self.edge) as usize
    }
    pub(in crate::ops) fn workgroup(self) -> u32 {
        4 * self.subgroup
    }
    /// Loop iterations over so many blocks of eight k.
    pub(in crate::ops) fn trips(self, blocks: usize) -> usize {
        let fetch = (self.tile() * 4).div_ceil(self.workgroup() as usize);
        blocks.div_ceil(4) * (1 + fetch + (32 / self.edge) as usize)
    }
    /// Those that find the pixels under a tap.
    pub(in crate::ops) fn find_trips(self) -> usize {
        1 + self.tile().div_ceil(self.workgroup() as usize)
    }
    pub(in crate::ops) fn epilogue_trips(self) -> usize {
        let each = (self.edge * self.edge).div_ceil(self.subgroup);
        (self.across * self.across * (1 + each)) as usize
    }
    /// The names of a product's three matrices.
    pub(in crate::ops) fn matrices(spec: Spec, edge: u32) -> Spec {
        spec.coop("Left", Elem::F16, edge, Role::Left)
            .coop("Right", Elem::F16, edge, Role::Right)
            .coop("Sum", Elem::F32, edge, Role::Sum)
            .u32("EDGE", edge)
    }
    pub(in crate::ops) fn join(self, spec: Spec) -> Spec {
        Coop::matrices(spec.part(PART), self.edge)
            .u32("SPAN", self.across * self.edge)
            .flag("WIDE", self.across == 4)
    }
}
