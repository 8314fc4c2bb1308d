//! From an op to dispatches: what an op sees when the plan asks it to lower itself.

use std::mem::replace;
use std::rc::Rc;

use bytemuck::Pod;

use super::storage::Region;
use super::weight::{Chunk, Vector, weight_part};
use super::{Node, Op, Shape};
use crate::gpu::{Bind, Buffer, Caps, Elem, Spec, buffer_bytes};
use crate::quant::Format;
use crate::{Error, Result};

/// Which shaders a plan is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kernels {
    /// The fast ones.
    #[default]
    Fast,
    /// The fast ones as a real GPU gets them, on any adapter: how a software adapter tests them.
    Hardware,
    /// shaders/reference: one invocation per output element, no shared memory.
    Reference,
}

impl Kernels {
    /// Those that a device with these capabilities runs when it is asked for these.
    pub fn on(self, caps: &Caps) -> Kernels {
        if caps.fast_kernels { self } else { Kernels::Reference }
    }
    /// Whether they are those for a real GPU.
    pub fn for_hardware(self, caps: &Caps) -> bool {
        match self {
            Kernels::Fast => !caps.software,
            Kernels::Hardware => true,
            Kernels::Reference => false,
        }
    }
}

/// Memory of a value: a slot of the plan or a buffer of its own.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Slot(usize),
    Buffer(Buffer),
}

/// An input or the output of an op being lowered.
#[derive(Clone, Debug)]
pub struct Operand {
    pub shape: Shape,
    pub elem: Elem,
    pub(crate) place: Place,
}

/// A storage binding of group 0, in the order of the shader's bindings from 1 on (0 is the params).
#[derive(Clone, Debug)]
pub enum Arg {
    Operand(Operand),
    /// So many rows of an operand, from the first one on.
    Rows(Operand, usize, usize),
    Vector(Vector),
    /// A binding that this Spec never reads.
    Nothing,
}

impl Operand {
    /// Bytes of the value.
    pub fn bytes(&self) -> u64 {
        self.shape.len() as u64 * self.elem.bytes()
    }
    /// Whether both are the same memory.
    pub(crate) fn same(&self, other: &Operand) -> bool {
        match (&self.place, &other.place) {
            (Place::Slot(a), Place::Slot(b)) => a == b,
            (Place::Buffer(a), Place::Buffer(b)) => a.same(b),
            _ => false,
        }
    }
    fn row_bytes(&self) -> u64 {
        self.shape.last() as u64 * self.elem.bytes()
    }
    /// Rows `from..to` of `[.., C]` as a binding of their own; `from` is a multiple of [`WINDOW_ROWS`].
    pub fn window(&self, from: usize, to: usize) -> Arg {
        Arg::Rows(self.clone(), from, to - from)
    }
}

/// Rows after which a binding may begin: whatever their length, as many are a multiple of 256 bytes.
pub const WINDOW_ROWS: usize = 128;

impl From<&Operand> for Arg {
    fn from(operand: &Operand) -> Arg {
        Arg::Operand(operand.clone())
    }
}
impl From<&Vector> for Arg {
    fn from(vector: &Vector) -> Arg {
        Arg::Vector(vector.clone())
    }
}
impl From<Option<&Vector>> for Arg {
    fn from(vector: Option<&Vector>) -> Arg {
        vector.map_or(Arg::Nothing, Arg::from)
    }
}
impl From<Option<&Operand>> for Arg {
    fn from(operand: Option<&Operand>) -> Arg {
        operand.map_or(Arg::Nothing, Arg::from)
    }
}

/// Another op to be computed in the same launch.
pub struct Joint {
    pub op: Rc<dyn Op>,
    pub inputs: Vec<Operand>,
    pub output: Operand,
}

/// One kernel launch.
#[derive(Clone, Debug)]
pub struct Dispatch {
    pub spec: Spec,
    /// Bytes of the op's `Params` (uniform, group 0 binding 0).
    pub params: Vec<u8>,
    pub args: Vec<Arg>,
    /// The window of a weight bound as group 1.
    pub weight: Option<Chunk>,
    /// Workgroups in x, y, z.
    pub groups: [u32; 3],
    /// Loop iterations of the busiest invocation, all loops added up. Software drivers stop at 65,535
    /// and return wrong numbers; the plan refuses more than 32,768.
    pub trips: u64,
    /// Floating-point operations, for reports and for splitting submissions.
    pub flops: u64,
    /// Bytes of weights that are read, each counted once, for reports.
    pub weight_bytes: u64,
}

impl Dispatch {
    /// A launch of `spec` with these params; the rest by the methods below.
    pub fn new<P: Pod>(spec: Spec, params: &P) -> Dispatch {
        Dispatch {
            spec,
            params: bytemuck::bytes_of(params).to_vec(),
            args: Vec::new(),
            weight: None,
            groups: [1, 1, 1],
            trips: 0,
            flops: 0,
            weight_bytes: 0,
        }
    }
    pub fn arg(mut self, arg: impl Into<Arg>) -> Dispatch {
        self.args.push(arg.into());
        self
    }
    /// Binds a window of a weight and joins the part that decodes its format.
    pub fn weight(self, chunk: &Chunk, format: Format) -> Dispatch {
        self.weight_as(chunk, |spec| weight_part(spec, format))
    }
    /// Binds a window of a weight and joins a part of the caller's that decodes it.
    pub fn weight_as(mut self, chunk: &Chunk, join: impl FnOnce(Spec) -> Spec) -> Dispatch {
        self.spec = join(self.spec);
        self.weight = Some(chunk.clone());
        self.weight_bytes = chunk.bytes();
        self
    }
    /// Of the bound weight only so much is read (a few rows of a table).
    pub fn weight_bytes(mut self, bytes: u64) -> Dispatch {
        self.weight_bytes = bytes.min(self.weight_bytes);
        self
    }
    pub fn groups(mut self, x: usize, y: usize, z: usize) -> Dispatch {
        self.groups = [x as u32, y as u32, z as u32];
        self
    }
    /// As many workgroups of `size` invocations as `count` items need, folded into two dimensions so
    /// that none exceeds 65,535. The shader's item is
    /// `id.y * groups.x * size + id.x`, with `@builtin(num_workgroups) groups`.
    pub fn linear(mut self, count: usize, size: usize) -> Dispatch {
        let groups = count.div_ceil(size).max(1);
        let y = groups.div_ceil(65_535);
        self.groups = [groups.div_ceil(y) as u32, y as u32, 1];
        self
    }
    pub fn trips(mut self, trips: usize) -> Dispatch {
        self.trips = trips as u64;
        self
    }
    pub fn flops(mut self, flops: usize) -> Dispatch {
        self.flops = flops as u64;
        self
    }
}

/// Most loop iterations that one invocation may run.
pub const MAX_TRIPS: u64 = 32_768;

/// What an op sees while it is lowered.
pub struct Lower<'a> {
    pub caps: &'a Caps,
    pub kernels: Kernels,
    /// How the graph stores activations.
    pub act: Elem,
    pub(crate) node: &'a Node,
    pub(crate) inputs: Vec<Operand>,
    pub(crate) output: Operand,
    pub(crate) scratch: &'a mut dyn FnMut(u64) -> usize,
    pub(crate) dispatches: Vec<Dispatch>,
}

impl Lower<'_> {
    /// Input number `i`, if the op was recorded with that many.
    pub fn input(&self, i: usize) -> Result<&Operand> {
        self.inputs.get(i).ok_or_else(|| {
            Error::Runtime(format!(
                "{}:{}: the op has no input {i}",
                self.node.at.file(),
                self.node.at.line()
            ))
        })
    }
    pub fn inputs(&self) -> &[Operand] {
        &self.inputs
    }
    pub fn output(&self) -> &Operand {
        &self.output
    }
    /// Memory for this op alone (partial sums and the like).
    pub fn scratch(&mut self, shape: impl Into<Shape>, elem: Elem) -> Operand {
        let shape = shape.into();
        let slot = (self.scratch)(shape.len() as u64 * elem.bytes());
        Operand { shape, elem, place: Place::Slot(slot) }
    }
    /// Rows of the given operands that fit a binding together, of all `rows`: those in one window of an op that goes
    /// row by row.
    pub fn window_rows<'b>(
        &self,
        rows: usize,
        operands: impl IntoIterator<Item = &'b Operand>,
    ) -> usize {
        let longest = operands.into_iter().map(Operand::row_bytes).max().unwrap_or(1).max(1);
        let most = (self.caps.max_binding_bytes / longest) as usize;
        match most >= rows {
            true => rows.max(1),
            false => (most / WINDOW_ROWS).max(1) * WINDOW_ROWS,
        }
    }
    pub fn reference(&self) -> bool {
        self.kernels == Kernels::Reference
    }
    /// Whether to take the variants for a CPU that pretends to be a GPU.
    pub fn software(&self) -> bool {
        self.caps.software && self.kernels != Kernels::Hardware
    }
    /// Whether to take the variants for software whose subgroups are eight lanes: each lane loads something else,
    /// and what all of them need goes around by broadcast.
    pub fn eight_lanes(&self) -> bool {
        let caps = self.caps;
        let eight = caps.subgroups && caps.subgroup_min == 8 && caps.subgroup_max == 8;
        self.software() && eight && caps.tuning.eight_lanes
    }
    /// Lowers another op in this one's place, one that reads `inputs` and makes `output`.
    pub(crate) fn lower_as(
        &mut self,
        op: &dyn Op,
        inputs: Vec<Operand>,
        output: Operand,
    ) -> Result<()> {
        let own = (replace(&mut self.inputs, inputs), replace(&mut self.output, output));
        let done = op.lower(self);
        (self.inputs, self.output) = own;
        done
    }
    /// Emits a launch.
    ///
    /// # Errors
    /// If an invocation would loop more often than software drivers can.
    pub fn dispatch(&mut self, dispatch: Dispatch) -> Result<()> {
        if dispatch.trips > MAX_TRIPS {
            return Err(Error::Runtime(format!(
                "{}:{}: {} would loop {} times in one invocation, at most {MAX_TRIPS} are safe; \
                 take a smaller size",
                self.node.at.file(),
                self.node.at.line(),
                dispatch.spec.source.name,
                dispatch.trips
            )));
        }
        self.dispatches.push(dispatch);
        Ok(())
    }
}

impl Arg {
    /// Bytes that are bound.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Arg::Operand(operand) => operand.bytes(),
            Arg::Rows(operand, _, rows) => *rows as u64 * operand.row_bytes(),
            Arg::Vector(vector) => vector.buffer.bytes(),
            Arg::Nothing => 0,
        }
    }
    pub(crate) fn bind(&self, slots: &[Region]) -> Option<Bind> {
        let (operand, from) = match self {
            Arg::Operand(operand) => (operand, 0),
            Arg::Rows(operand, from, _) => (operand, *from as u64 * operand.row_bytes()),
            Arg::Vector(v) => return Some(Bind::whole(&v.buffer)),
            Arg::Nothing => return None,
        };
        let (buffer, base) = match &operand.place {
            Place::Slot(i) => (&slots[*i].buffer, slots[*i].base),
            Place::Buffer(buffer) => (buffer, 0),
        };
        // A slot may be larger than the value in it, and than what a binding holds.
        let whole = matches!((self, &operand.place), (Arg::Operand(_), Place::Buffer(_)));
        let bytes = if whole { buffer.bytes() } else { buffer_bytes(self.bytes()) };
        let offset = base + from;
        let bytes = bytes.min(buffer.bytes() - offset);
        Some(Bind { buffer: buffer.clone(), offset, bytes })
    }
}
