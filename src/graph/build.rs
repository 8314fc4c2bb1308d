//! From a graph to what a plan is made of: live nodes lowered to dispatches, memory, compiled kernels with everything bound.

use std::collections::{HashMap, HashSet};

use half::f16;

use super::lower::{Arg, Dispatch, Joint, Lower, Operand, Place};
use super::plan::{Launch, Named, PlanOptions};
use super::storage::{GUARD, GUARD_WORD, Region};
use super::stream::{Placer, Stream};
use super::{Graph, Home, Node, fuse, storage};
use crate::gpu::{Bind, Buffer, Caps, Elem, Gpu, Step, buffer_bytes, interrupted};
use crate::{Error, Result};

/// The nodes of a graph that this device can run.
pub(super) fn nodes(gpu: &Gpu, graph: &Graph) -> Result<Vec<Node>> {
    graph.finish()?;
    if graph.act() == Elem::F16 && !gpu.caps().f16 {
        let name = &gpu.adapter().name;
        return Err(Error::Usage(format!("{name} has no f16 in shaders; use f32 activations")));
    }
    Ok(graph.nodes.borrow().clone())
}

pub(super) fn live_nodes(
    nodes: &mut [Node],
    roots: &[usize],
    options: &PlanOptions,
    caps: &Caps,
) -> Vec<bool> {
    let mut kept: HashSet<usize> = roots.iter().copied().collect();
    if options.no_fusion {
        let mut live = vec![false; nodes.len()];
        for id in (0..nodes.len()).rev() {
            live[id] |= kept.contains(&id);
            if live[id] {
                nodes[id].inputs.iter().for_each(|i| live[*i] = true);
            }
        }
        return live;
    }
    // A view keeps its source's memory alive, but the source may still be fused away only if it is
    // not itself read by name.
    for id in roots {
        kept.insert(storage::root(nodes, *id));
    }
    fuse::fuse(nodes, &kept, options.kernels.on(caps).for_hardware(caps))
}

pub(super) struct Builder<'a> {
    gpu: &'a Gpu,
    /// Those of the device, unless somebody asks what other ones would lead to.
    pub(super) caps: &'a Caps,
    options: &'a PlanOptions,
    act: Elem,
    leaves: HashMap<usize, Buffer>,
    pub(super) slots: storage::Slots,
    /// Stands for every buffer where nothing is to be allocated.
    nothing: Option<Buffer>,
    /// Bytes of each input and literal.
    pub(super) leaf_bytes: Vec<u64>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        gpu: &'a Gpu,
        options: &'a PlanOptions,
        act: Elem,
        nothing: Option<Buffer>,
    ) -> Builder<'a> {
        let (leaves, slots, leaf_bytes) = Default::default();
        Builder { gpu, caps: gpu.caps(), options, act, leaves, slots, nothing, leaf_bytes }
    }

    /// Lowers every live op in recording order, taking and giving back slots on the way. Returns the
    /// dispatches and, for each, the node it belongs to.
    pub(super) fn lower(
        &mut self,
        nodes: &[Node],
        live: &[bool],
        roots: &[usize],
    ) -> Result<(Vec<Dispatch>, Vec<usize>)> {
        let last = storage::last_uses(nodes, live, roots);
        let (mut dispatches, mut owners) = (Vec::new(), Vec::new());
        // Nodes that an earlier one's launch computes.
        let mut joined = HashSet::new();
        for (id, node) in nodes.iter().enumerate().filter(|(id, _)| live[*id]) {
            self.place(nodes, id)?;
            if let Some(op) = node.op.as_ref().filter(|_| !joined.contains(&id)) {
                let others = self.others(nodes, live, id);
                let joints = self.joints(nodes, &others)?;
                let inputs = node.inputs.iter().map(|i| self.operand(nodes, *i)).collect();
                let output = self.operand(nodes, id);
                let slots = &mut self.slots;
                let mut taken = Vec::new();
                let mut scratch = |bytes| {
                    let slot = slots.take(bytes);
                    taken.push(slot);
                    slot
                };
                let mut cx = Lower {
                    caps: self.caps,
                    kernels: self.options.kernels.on(self.caps),
                    act: self.act,
                    node,
                    inputs,
                    output,
                    scratch: &mut scratch,
                    dispatches: Vec::new(),
                };
                if !joints.is_empty() && op.lower_joint(&mut cx, &joints)? {
                    joined.extend(others);
                } else {
                    op.lower(&mut cx)?;
                }
                owners.extend(cx.dispatches.iter().map(|_| id));
                dispatches.append(&mut cx.dispatches);
                taken.into_iter().for_each(|slot| self.slots.give_back(slot));
            }
            let mut done: Vec<usize> =
                node.inputs.iter().map(|i| storage::root(nodes, *i)).collect();
            done.push(storage::root(nodes, id));
            done.sort_unstable();
            done.dedup();
            for root in done.into_iter().filter(|r| last.get(r) == Some(&id)) {
                if let Some(slot) = self.slots.of.get(&root) {
                    self.slots.give_back(*slot);
                }
            }
        }
        Ok((dispatches, owners))
    }

    /// Later nodes that one launch may compute with node `id`, as many as its op wants or none: they read only what is there
    /// before node `id` runs, and nobody reads before them what they write into.
    fn others(&self, nodes: &[Node], live: &[bool], id: usize) -> Vec<usize> {
        let node = &nodes[id];
        let Some(op) = &node.op else { return Vec::new() };
        let joins = |other: &Node| match &other.op {
            Some(theirs) => op.joins(&node.inputs, theirs.as_ref(), &other.inputs),
            None => false,
        };
        let real = self.options.kernels.on(self.caps).for_hardware(self.caps);
        let wanted = op.partners();
        // An op that would not join itself joins nothing.
        if !real || self.options.apart || wanted == 0 || !joins(node) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for (later, other) in nodes.iter().enumerate().skip(id + 1).filter(|(id, _)| live[*id]) {
            let ready =
                || other.inputs.iter().all(|input| *input < id || nodes[*input].op.is_none());
            let root = storage::root(nodes, later);
            let reads = |node: &Node| node.inputs.iter().any(|i| storage::root(nodes, *i) == root);
            let unread =
                || !nodes[id..later].iter().zip(&live[id..]).any(|(n, live)| *live && reads(n));
            if joins(other) && ready() && unread() {
                found.push(later);
            }
            if found.len() == wanted {
                return found;
            }
        }
        Vec::new()
    }

    fn joints(&mut self, nodes: &[Node], others: &[usize]) -> Result<Vec<Joint>> {
        let mut joints = Vec::new();
        for &other in others {
            let node = &nodes[other];
            let Some(op) = node.op.clone() else { continue };
            for input in node.inputs.iter().chain([&other]) {
                self.place(nodes, *input)?;
            }
            let inputs = node.inputs.iter().map(|i| self.operand(nodes, *i)).collect();
            joints.push(Joint { op, inputs, output: self.operand(nodes, other) });
        }
        Ok(joints)
    }

    /// Finds memory for a node that needs its own and has none yet.
    fn place(&mut self, nodes: &[Node], id: usize) -> Result<()> {
        let node = &nodes[id];
        let placed = self.leaves.contains_key(&id) || self.slots.of.contains_key(&id);
        if storage::root(nodes, id) != id || placed {
            return Ok(());
        }
        let bytes = node.shape.len() as u64 * node.elem.bytes();
        let buffer = match &node.home {
            Home::Planned => {
                let slot = self.slots.take(bytes);
                self.slots.of.insert(id, slot);
                return Ok(());
            }
            Home::External(buffer) => buffer.clone(),
            Home::Input(name) => self.leaf(name, bytes)?,
            Home::Literal(_) if self.nothing.is_some() => self.leaf("literal", bytes)?,
            Home::Literal(data) => {
                let buffer = self.leaf("literal", bytes)?;
                match node.elem {
                    Elem::F16 => {
                        let half: Vec<f16> = data.iter().map(|v| f16::from_f32(*v)).collect();
                        self.gpu.write(&buffer, 0, bytemuck::cast_slice(&half))?;
                    }
                    _ => self.gpu.write(&buffer, 0, bytemuck::cast_slice(data.as_slice()))?,
                }
                buffer
            }
        };
        self.leaves.insert(id, buffer);
        Ok(())
    }

    fn leaf(&mut self, label: &str, bytes: u64) -> Result<Buffer> {
        self.leaf_bytes.push(bytes);
        match &self.nothing {
            Some(nothing) => Ok(nothing.clone()),
            None => self.gpu.buffer(label, bytes),
        }
    }

    fn operand(&self, nodes: &[Node], id: usize) -> Operand {
        let root = storage::root(nodes, id);
        let place = match self.slots.of.get(&root) {
            Some(slot) if storage::is_planned(&nodes[root]) => Place::Slot(*slot),
            _ => Place::Buffer(self.leaves[&root].clone()),
        };
        Operand { shape: nodes[id].shape, elem: nodes[id].elem, place }
    }

    pub(super) fn named(&self, nodes: &[Node], id: usize, slots: &[Region]) -> Named {
        let operand = self.operand(nodes, id);
        let (buffer, base) = match operand.place {
            Place::Slot(slot) => (slots[slot].buffer.clone(), slots[slot].base),
            Place::Buffer(buffer) => (buffer, 0),
        };
        Named { buffer, base, shape: operand.shape, elem: operand.elem }
    }

    pub(super) fn allocate(&self) -> Result<Vec<Region>> {
        let arena = self.options.arena.clone().unwrap_or_default();
        let base = if self.options.guards { GUARD } else { 0 };
        let sizes: Vec<u64> =
            self.slots.sizes.iter().map(|bytes| buffer_bytes(*bytes) + 2 * base).collect();
        let buffers = arena.allocate(self.gpu, &sizes)?;
        for (buffer, bytes) in buffers.iter().zip(&self.slots.sizes) {
            if self.options.poison {
                self.gpu.write(buffer, 0, &vec![0xff; buffer.bytes() as usize])?;
            }
            if self.options.guards {
                let words = [GUARD_WORD; (GUARD / 4) as usize];
                self.gpu.write(buffer, 0, bytemuck::cast_slice(&words))?;
                let behind = base + buffer_bytes(*bytes);
                self.gpu.write(buffer, behind, bytemuck::cast_slice(&words))?;
            }
        }
        Ok(buffers.into_iter().map(|buffer| Region { buffer, base }).collect())
    }

    /// Compiles every kernel, writes all params into one buffer and binds everything.
    pub(super) fn compile(
        &self,
        nodes: &[Node],
        dispatches: Vec<Dispatch>,
        owners: &[usize],
        slots: &[Region],
    ) -> Result<(Vec<Step>, Vec<Launch>, Option<Stream>)> {
        let (bytes, offsets) = params(self.gpu, &dispatches);
        let params = self.gpu.uniform("params", bytes.len() as u64)?;
        if !bytes.is_empty() {
            self.gpu.write(&params, 0, &bytes)?;
        }
        let windows = dispatches.iter().filter_map(|d| d.weight.as_ref());
        let mut placer = Placer::new(self.gpu, self.options.stream_pool, windows)?;
        let (mut steps, mut launches) = (Vec::new(), Vec::new());
        for ((dispatch, offset), owner) in dispatches.iter().zip(offsets).zip(owners) {
            interrupted()?;
            let node = &nodes[*owner];
            let kernel = self.gpu.kernel(&dispatch.spec)?;
            let size = (dispatch.params.len() as u64).next_multiple_of(16);
            let mut own = vec![Some(Bind { buffer: params.clone(), offset, bytes: size })];
            own.extend(dispatch.args.iter().map(|arg: &Arg| arg.bind(slots)));
            let mut sets = vec![own];
            if let Some(window) = &dispatch.weight {
                sets.push(match placer.as_mut().filter(|_| window.held().next().is_some()) {
                    Some(placer) => placer.place(steps.len(), window)?,
                    None => window.binds_with(|_| Err(unplaced()))?,
                });
            }
            let step = self.gpu.bind(&kernel, &sets, dispatch.groups).map_err(|e| match e {
                Error::OutOfMemory(_) => e,
                e => Error::Runtime(format!("{}:{}: {e}", node.at.file(), node.at.line())),
            })?;
            steps.push(step);
            launches.push(launch(dispatch, node));
        }
        Ok((steps, launches, placer.map(Placer::finish)))
    }
}

fn launch(dispatch: &Dispatch, node: &Node) -> Launch {
    Launch {
        op: node.op.as_ref().map_or("", |op| op.name()),
        kernel: dispatch.spec.describe(),
        flops: dispatch.flops,
        weight_bytes: dispatch.weight_bytes,
    }
}

/// The params of all dispatches in one buffer, and where each begins.
pub(super) fn params(gpu: &Gpu, dispatches: &[Dispatch]) -> (Vec<u8>, Vec<u64>) {
    let align = (gpu.caps().uniform_align as usize).max(16);
    let (mut bytes, mut offsets) = (Vec::new(), Vec::new());
    for dispatch in dispatches {
        offsets.push(bytes.len() as u64);
        bytes.extend_from_slice(&dispatch.params);
        bytes.resize(bytes.len().next_multiple_of(align), 0);
    }
    (bytes, offsets)
}

/// A weight on the host that the placer never saw: a mistake in this file.
fn unplaced() -> Error {
    Error::Runtime("a weight on the host has no place in the pool".into())
}
