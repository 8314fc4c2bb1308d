//! A graph after fusion, buffer assignment and kernel compilation: replayed as often as wanted.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use half::f16;

use super::lower::{Arg, Dispatch, Kernels, Lower, Operand, Place};
use super::storage::{GUARD, GUARD_WORD, Region};
use super::stream::{Placer, Stream};
use super::{Arena, Graph, Home, Node, Observe, fuse, storage};
use crate::gpu::{
    Bind, Buffer, Caps, Command, Elem, Gpu, PendingRead, Step, buffer_bytes, interrupted,
};
use crate::tensor::{Data, Tensor};
use crate::{Error, Result};

/// Choices made once per plan.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    pub kernels: Kernels,
    /// Keep every tapped value readable. Taps prevent fusion and reuse of memory.
    pub taps: bool,
    /// Keep fusion off (to measure what it changes).
    pub no_fusion: bool,
    /// Fill all planned memory with NaN first, so that a value nobody wrote shows.
    pub poison: bool,
    /// Keep words around all planned memory that [`Plan::guards_intact`] looks at. Such a plan cannot be connected to
    /// others by [`Plan::buffer`].
    pub guards: bool,
    /// Memory shared with other plans, which then must not run before this one's outputs were read.
    pub arena: Option<Arena>,
    /// Bytes of GPU memory through which weights pass that stay on the host; at least what the largest
    /// window of one needs.
    pub stream_pool: u64,
    /// Shown every graph before it is planned.
    pub observe: Option<Arc<dyn Observe>>,
}

/// A value of the plan that the host can name.
#[derive(Clone, Debug)]
struct Named {
    buffer: Buffer,
    /// Where the value begins in it.
    base: u64,
    shape: super::Shape,
    elem: Elem,
}

/// What one launch is called and costs, for reports.
#[derive(Clone, Debug)]
pub struct Launch {
    pub op: &'static str,
    pub kernel: String,
    pub flops: u64,
    /// Bytes of weights that it reads, each counted once.
    pub weight_bytes: u64,
}

/// A computation ready to run.
pub struct Plan {
    pub(super) gpu: Gpu,
    pub(super) steps: Vec<Step>,
    launches: Vec<Launch>,
    inputs: HashMap<String, Named>,
    outputs: Vec<(String, Named)>,
    taps: Vec<(String, Named)>,
    activation_bytes: u64,
    pub(super) stream: Option<Stream>,
    /// Memory between guards, and its bytes.
    guarded: Vec<(Region, u64)>,
}

/// Work in one submission: about a tenth of a second on a GPU, so that no watchdog of a driver fires. A
/// software adapter has no watchdog; there it is about a second, which Ctrl-C may have to wait for.
const FLOPS_PER_SUBMISSION_SOFTWARE: u64 = 1 << 32;
const FLOPS_PER_SUBMISSION: u64 = 1 << 37;

impl Plan {
    /// Plans a graph for a device.
    ///
    /// # Errors
    /// The graph's first shape error, a kernel that does not compile, an allocation beyond the budget.
    pub fn new(gpu: &Gpu, graph: &Graph, options: &PlanOptions) -> Result<Plan> {
        if let Some(observer) = &options.observe {
            observer.observe(graph)?;
        }
        let mut nodes = nodes(gpu, graph)?;
        let outputs = graph.outputs.borrow().clone();
        let taps = if options.taps { graph.taps.borrow().clone() } else { Vec::new() };
        let roots: Vec<usize> = outputs.iter().chain(&taps).map(|(_, id)| *id).collect();
        let live = live_nodes(&mut nodes, &roots, options);

        let mut builder = Builder::new(gpu, options, graph.act(), None);
        let (dispatches, owners) = builder.lower(&nodes, &live, &roots)?;
        let slots = builder.allocate()?;
        let (steps, launches, stream) = builder.compile(&nodes, dispatches, &owners, &slots)?;
        let named = |list: Vec<(String, usize)>| -> Vec<(String, Named)> {
            list.into_iter().map(|(name, id)| (name, builder.named(&nodes, id, &slots))).collect()
        };
        let inputs = nodes.iter().enumerate().filter_map(|(id, n)| match &n.home {
            Home::Input(name) => Some((name.clone(), id)),
            _ => None,
        });
        let inputs = named(inputs.filter(|(_, id)| live[*id]).collect()).into_iter().collect();
        let (outputs, taps) = (named(outputs), named(taps));
        let activation_bytes = slots.iter().map(|slot| slot.buffer.bytes()).sum();
        let guarded = match options.guards {
            true => slots.into_iter().zip(builder.slots.sizes.iter().copied()).collect(),
            false => Vec::new(),
        };
        let gpu = gpu.clone();
        Ok(Plan { gpu, steps, launches, inputs, outputs, taps, activation_bytes, stream, guarded })
    }

    /// Writes an input: f32 values are stored as the input's element type.
    pub fn set(&self, name: &str, values: &[f32]) -> Result<()> {
        let input = self.named(name)?;
        check_len(name, input, values.len())?;
        match input.elem {
            Elem::F16 => {
                let half: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
                self.gpu.write(&input.buffer, 0, bytemuck::cast_slice(&half))
            }
            Elem::F32 => self.gpu.write(&input.buffer, 0, bytemuck::cast_slice(values)),
            Elem::U32 => Err(Error::Runtime(format!("input {name} holds integers"))),
        }
    }
    /// Writes an integer input (token ids, positions).
    pub fn set_u32(&self, name: &str, values: &[u32]) -> Result<()> {
        let input = self.named(name)?;
        check_len(name, input, values.len())?;
        self.gpu.write(&input.buffer, 0, bytemuck::cast_slice(values))
    }
    /// The memory of an input or output, to connect plans.
    pub fn buffer(&self, name: &str) -> Result<&Buffer> {
        self.named(name).map(|n| &n.buffer)
    }

    /// The shape of an input or output.
    pub fn shape(&self, name: &str) -> Result<super::Shape> {
        self.named(name).map(|n| n.shape)
    }

    /// Runs everything; returns when the work is submitted (reads wait for it).
    pub fn run(&self) -> Result<()> {
        let last = self.submit_all_but_last()?;
        self.gpu.submit(&last)
    }

    /// As [`Plan::run`], and asks for a range of a buffer as it is then, in the last submission.
    pub fn run_and_read(&self, buffer: &Buffer, offset: u64, bytes: u64) -> Result<PendingRead> {
        let last = self.submit_all_but_last()?;
        self.gpu.submit_and_read(&last, buffer, offset, bytes)
    }

    /// Cuts the work into submissions and sends all but the last.
    fn submit_all_but_last(&self) -> Result<Vec<Command<'_>>> {
        let most = if self.gpu.caps().software {
            FLOPS_PER_SUBMISSION_SOFTWARE
        } else {
            FLOPS_PER_SUBMISSION
        };
        let mut commands = Vec::new();
        let mut flops = 0;
        for (i, (step, launch)) in self.steps.iter().zip(&self.launches).enumerate() {
            let loads = self.stream.as_ref().filter(|stream| stream.begins(i));
            if (flops + launch.flops > most || loads.is_some()) && !commands.is_empty() {
                self.gpu.submit(&commands)?;
                interrupted()?;
                commands.clear();
                flops = 0;
            }
            if let Some(stream) = loads {
                stream.load(&self.gpu, i)?;
            }
            commands.push(Command::Run(step));
            flops += launch.flops;
        }
        Ok(commands)
    }

    /// Reads an output (or input) as f32.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.tensor(self.named(name)?)?.to_f32())
    }
    /// Reads an integer output.
    pub fn read_u32(&self, name: &str) -> Result<Vec<u32>> {
        let named = self.named(name)?;
        let bytes = self.gpu.read(&named.buffer, named.base, named.shape.len() as u64 * 4)?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }
    /// Every tapped value, in recording order. Empty unless the plan was made with taps.
    pub fn taps(&self) -> Result<Vec<(String, Tensor)>> {
        self.taps.iter().map(|(name, n)| Ok((name.clone(), self.tensor(n)?))).collect()
    }
    /// Whether the words around all planned memory are as they were; true for a plan without guards.
    pub fn guards_intact(&self) -> Result<bool> {
        for (region, bytes) in &self.guarded {
            for at in [0, region.base + buffer_bytes(*bytes)] {
                let words = self.gpu.read(&region.buffer, at, GUARD)?;
                let words: Vec<u32> = bytemuck::pod_collect_to_vec(&words);
                if words.iter().any(|word| *word != GUARD_WORD) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
    /// Bytes of activations.
    pub fn activation_bytes(&self) -> u64 {
        self.activation_bytes
    }
    /// Bytes of the pool through which weights are streamed.
    pub fn stream_bytes(&self) -> u64 {
        self.stream.as_ref().map_or(0, Stream::bytes)
    }
    /// Every launch with its kernel and what it binds: what another runtime needs to run the same.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
    /// Where an input or output lies: its memory, the first byte and the number of bytes.
    pub fn place(&self, name: &str) -> Result<(&Buffer, u64, u64)> {
        let named = self.named(name)?;
        Ok((&named.buffer, named.base, named.shape.len() as u64 * named.elem.bytes()))
    }
    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }
    /// Floating-point operations of one run.
    pub fn flops(&self) -> u64 {
        self.launches.iter().map(|l| l.flops).sum()
    }
    /// Bytes of weights that one run reads, each counted once.
    pub fn weight_bytes(&self) -> u64 {
        self.launches.iter().map(|l| l.weight_bytes).sum()
    }
    fn tensor(&self, named: &Named) -> Result<Tensor> {
        let len = named.shape.len() as u64 * named.elem.bytes();
        let bytes = self.gpu.read(&named.buffer, named.base, len)?;
        let data = match named.elem {
            Elem::F32 => Data::F32(bytemuck::pod_collect_to_vec(&bytes)),
            Elem::F16 => Data::F16(bytemuck::pod_collect_to_vec(&bytes)),
            Elem::U32 => Data::U32(bytemuck::pod_collect_to_vec(&bytes)),
        };
        Ok(Tensor { shape: named.shape.dims().to_vec(), data })
    }

    fn named(&self, name: &str) -> Result<&Named> {
        let output = || self.outputs.iter().find(|(n, _)| n == name).map(|(_, n)| n);
        self.inputs.get(name).or_else(output).ok_or_else(|| {
            Error::Runtime(format!("the plan has no live input or output named \"{name}\""))
        })
    }
}

fn check_len(name: &str, named: &Named, len: usize) -> Result<()> {
    if named.shape.len() == len {
        return Ok(());
    }
    Err(Error::Runtime(format!("input {name} has shape {:?}, got {len} values", named.shape)))
}

/// The nodes of a graph that this device can run.
pub(super) fn nodes(gpu: &Gpu, graph: &Graph) -> Result<Vec<Node>> {
    graph.finish()?;
    if graph.act() == Elem::F16 && !gpu.caps().f16 {
        let name = &gpu.adapter().name;
        return Err(Error::Usage(format!("{name} has no f16 in shaders; use f32 activations")));
    }
    Ok(graph.nodes.borrow().clone())
}

pub(super) fn live_nodes(nodes: &mut [Node], roots: &[usize], options: &PlanOptions) -> Vec<bool> {
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
    fuse::fuse(nodes, &kept)
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
        for (id, node) in nodes.iter().enumerate().filter(|(id, _)| live[*id]) {
            self.place(nodes, id)?;
            if let Some(op) = &node.op {
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
                op.lower(&mut cx)?;
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

    /// Finds memory for a node that needs its own.
    fn place(&mut self, nodes: &[Node], id: usize) -> Result<()> {
        let node = &nodes[id];
        if storage::root(nodes, id) != id {
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

    fn named(&self, nodes: &[Node], id: usize, slots: &[Region]) -> Named {
        let operand = self.operand(nodes, id);
        let (buffer, base) = match operand.place {
            Place::Slot(slot) => (slots[slot].buffer.clone(), slots[slot].base),
            Place::Buffer(buffer) => (buffer, 0),
        };
        Named { buffer, base, shape: operand.shape, elem: operand.elem }
    }

    fn allocate(&self) -> Result<Vec<Region>> {
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
    fn compile(
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
