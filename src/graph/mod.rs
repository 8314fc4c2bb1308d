//! A recorded computation: [`Graph`], the copyable [`Var`], and the [`Plan`] that replays it.
//!
//! Recording never fails. A shape error makes an invalid value, everything computed from it is invalid
//! too, and [`Graph::finish`] (or [`Plan::new`]) returns the first error with the model's own file and
//! line: every operator is `#[track_caller]`.

mod build;
mod footprint;
mod fuse;
mod lower;
mod plan;
mod shape;
mod storage;
mod stream;
mod timing;
mod weight;

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::panic::Location;
use std::rc::Rc;

pub use footprint::{Footprint, Planned};
pub use lower::{Arg, Dispatch, Joint, Kernels, Lower, MAX_TRIPS, Operand};
pub use plan::{Launch, Plan, PlanOptions};
pub use shape::Shape;
pub use storage::Arena;
pub use weight::{
    Chunk, Residence, Several, Vector, Weight, WeightInfo, dot_part, int_dot_part, several_part,
    weight_part,
};

use crate::gpu::{Buffer, Elem};
use crate::{Error, Result};

/// Sees a graph before it is planned, and may record more: how calibration reads what every layer is given.
/// What it records has to be an output, and costs fusions where it reads what would have been absorbed.
pub trait Observe: fmt::Debug + Send + Sync {
    fn observe(&self, graph: &Graph) -> Result<()>;
}

/// What a node computes. One implementation per op, in `src/ops/`.
pub trait Op: fmt::Debug {
    /// The op's name in reports.
    fn name(&self) -> &'static str;
    /// Emits the dispatches that compute the output.
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()>;
    /// The input whose memory the output shares, for views and in-place writes.
    fn in_place(&self) -> Option<usize> {
        None
    }
    /// The op that does the work of this one and of `next` at once, where `next`'s input number `slot`
    /// is this op's output. Its inputs are this op's, then `next`'s without `slot`.
    fn absorb(&self, next: &dyn Op, slot: usize) -> Option<Rc<dyn Op>> {
        let _ = (next, slot);
        None
    }
    /// The op that computes this one and `next`, whose first input is this op's output of so many rows: for ops so cheap that
    /// each of several consumers may compute them. Its inputs are this op's in place of the first of `next`.
    fn fold(&self, next: &dyn Op, rows: usize) -> Option<Rc<dyn Op>> {
        let _ = (next, rows);
        None
    }
    /// The op that computes this one and `next`, which takes this op's output of so many rows in `slot` and, if that is not the first,
    /// has the same first input. Its inputs are this op's, then `next`'s without `slot`.
    fn pair(&self, next: &dyn Op, slot: usize, rows: usize) -> Option<Rc<dyn Op>> {
        let _ = (next, slot, rows);
        None
    }
    /// How many later ops one launch may compute with this one, no less and no more.
    fn partners(&self) -> usize {
        0
    }
    /// Whether they may be such as `other`; `inputs` and `theirs` name what both read.
    fn joins(&self, inputs: &[usize], other: &dyn Op, theirs: &[usize]) -> bool {
        let _ = (inputs, other, theirs);
        false
    }
    /// Emits one launch for this op and its partners; false where there is none for them here.
    fn lower_joint(&self, cx: &mut Lower<'_>, others: &[Joint]) -> Result<bool> {
        let _ = (cx, others);
        Ok(false)
    }
    fn as_any(&self) -> &dyn Any;
}

/// Where a node's memory comes from.
#[derive(Clone, Debug)]
pub(crate) enum Home {
    /// Assigned by the plan.
    Planned,
    /// Written by the host before a run.
    Input(String),
    /// Data fixed when the graph was made.
    Literal(Rc<Vec<f32>>),
    /// Somebody else's buffer.
    External(Buffer),
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub op: Option<Rc<dyn Op>>,
    pub inputs: Vec<usize>,
    pub shape: Shape,
    pub elem: Elem,
    pub home: Home,
    pub at: &'static Location<'static>,
    pub valid: bool,
}

/// A recorded computation.
pub struct Graph {
    act: Elem,
    nodes: RefCell<Vec<Node>>,
    taps: RefCell<Vec<(String, usize)>>,
    outputs: RefCell<Vec<(String, usize)>>,
    error: RefCell<Option<String>>,
}

/// A value in a [`Graph`] being recorded.
#[derive(Clone, Copy)]
pub struct Var<'g> {
    graph: &'g Graph,
    id: usize,
}

impl Graph {
    /// An empty graph whose activations are stored as `act`.
    pub fn new(act: Elem) -> Graph {
        Graph {
            act,
            nodes: RefCell::default(),
            taps: RefCell::default(),
            outputs: RefCell::default(),
            error: RefCell::default(),
        }
    }
    /// How activations are stored.
    pub fn act(&self) -> Elem {
        self.act
    }

    fn push(&self, node: Node) -> Var<'_> {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(node);
        Var { graph: self, id: nodes.len() - 1 }
    }

    #[track_caller]
    fn leaf(&self, shape: Shape, elem: Elem, home: Home) -> Var<'_> {
        let at = Location::caller();
        self.push(Node { op: None, inputs: Vec::new(), shape, elem, home, at, valid: true })
    }
    /// A value that the host writes before each run ([`Plan::set`]).
    #[track_caller]
    pub fn input(&self, name: &str, shape: impl Into<Shape>, elem: Elem) -> Var<'_> {
        self.leaf(shape.into(), elem, Home::Input(name.to_string()))
    }
    /// A value known now; stored in the graph's activation type.
    #[track_caller]
    pub fn literal(&self, shape: impl Into<Shape>, data: Vec<f32>) -> Var<'_> {
        let shape = shape.into();
        if shape.len() != data.len() {
            return self.invalid(format!("literal: shape {shape:?} with {} values", data.len()));
        }
        self.leaf(shape, self.act, Home::Literal(Rc::new(data)))
    }
    /// As [`Graph::literal`], stored as f32 whatever the activations are (tables that f16 would spoil).
    #[track_caller]
    pub fn literal_f32(&self, shape: impl Into<Shape>, data: Vec<f32>) -> Var<'_> {
        let shape = shape.into();
        if shape.len() != data.len() {
            return self.invalid(format!("literal: shape {shape:?} with {} values", data.len()));
        }
        self.leaf(shape, Elem::F32, Home::Literal(Rc::new(data)))
    }
    /// A value in a buffer that outlives the plan (a KV cache, another plan's output).
    #[track_caller]
    pub fn external(&self, buffer: &Buffer, shape: impl Into<Shape>, elem: Elem) -> Var<'_> {
        self.leaf(shape.into(), elem, Home::External(buffer.clone()))
    }

    /// Records an op. `Err` is a shape error.
    #[track_caller]
    pub fn record(
        &self,
        op: impl Op + 'static,
        inputs: &[Var<'_>],
        shape: Result<Shape, String>,
        elem: Elem,
    ) -> Var<'_> {
        let at = Location::caller();
        let name = op.name();
        let known = inputs.iter().all(|v| v.is_valid());
        let (shape, valid) = match shape {
            Ok(shape) => (shape, known),
            Err(_) if !known => (Shape::default(), false),
            Err(message) => return self.invalid(format!("{name}: {message}")),
        };
        let ids = inputs.iter().map(|v| v.id).collect();
        let home = Home::Planned;
        self.push(Node { op: Some(Rc::new(op)), inputs: ids, shape, elem, home, at, valid })
    }

    /// Keeps the first error, with the caller's file and line, and returns an invalid value.
    #[track_caller]
    pub fn invalid(&self, message: String) -> Var<'_> {
        let at = Location::caller();
        self.error
            .borrow_mut()
            .get_or_insert_with(|| format!("{}:{}: {message}", at.file(), at.line()));
        let (shape, home) = (Shape::default(), Home::Planned);
        self.push(Node { op: None, inputs: vec![], shape, elem: self.act, home, at, valid: false })
    }

    /// Every op recorded so far with its inputs, in order.
    pub fn ops(&self) -> Vec<(Rc<dyn Op>, Vec<Var<'_>>)> {
        let nodes = self.nodes.borrow();
        let var = |id: &usize| Var { graph: self, id: *id };
        let read = |n: &Node| Some((n.op.clone()?, n.inputs.iter().map(var).collect()));
        nodes.iter().filter_map(read).collect()
    }

    /// Names a value that the host reads after a run.
    pub fn output(&self, name: &str, var: Var<'_>) {
        self.outputs.borrow_mut().push((name.to_string(), var.id));
    }

    /// The first shape error, if there was one.
    pub fn finish(&self) -> Result<()> {
        match &*self.error.borrow() {
            Some(message) => Err(Error::Runtime(message.clone())),
            None => Ok(()),
        }
    }
}

impl<'g> Var<'g> {
    pub fn graph(self) -> &'g Graph {
        self.graph
    }
    pub fn shape(self) -> Shape {
        self.graph.nodes.borrow()[self.id].shape
    }
    pub fn elem(self) -> Elem {
        self.graph.nodes.borrow()[self.id].elem
    }
    /// Size of dimension `i`; 0 on an invalid value.
    pub fn dim(self, i: usize) -> usize {
        self.shape().dims().get(i).copied().unwrap_or(0)
    }
    /// The same values under another shape: a view, no work.
    #[track_caller]
    pub fn reshape(self, shape: impl Into<Shape>) -> Var<'g> {
        let (from, to) = (self.shape(), shape.into());
        let fits = if from.len() == to.len() {
            Ok(to)
        } else {
            Err(format!("{from:?} has {} elements, {to:?} has {}", from.len(), to.len()))
        };
        self.graph.record(Reshape, &[self], fits, self.elem())
    }
    /// False after a shape error upstream.
    pub fn is_valid(self) -> bool {
        self.graph.nodes.borrow()[self.id].valid
    }
    /// Names this value, so that `compare` and `verify` can read it. Free when nobody asks.
    pub fn tap(self, name: impl Into<String>) -> Var<'g> {
        self.graph.taps.borrow_mut().push((name.into(), self.id));
        self
    }
    /// The inputs of the node if it was recorded with an op of type `T`.
    pub fn made_by<T: 'static>(self) -> Option<Vec<Var<'g>>> {
        let nodes = self.graph.nodes.borrow();
        let node = &nodes[self.id];
        node.op.as_ref()?.as_any().downcast_ref::<T>()?;
        Some(node.inputs.iter().map(|id| Var { graph: self.graph, id: *id }).collect())
    }
}

#[derive(Debug)]
struct Reshape;

impl Node {
    /// Whether it is another value in another shape.
    fn is_view(&self) -> bool {
        self.op.as_deref().is_some_and(|op| op.as_any().is::<Reshape>())
    }
}

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }
    fn in_place(&self) -> Option<usize> {
        Some(0)
    }
    fn lower(&self, _: &mut Lower<'_>) -> Result<()> {
        Ok(())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
