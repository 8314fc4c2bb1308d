//! What one case of [`super::bench_ops`] is made of: a recorded op with random inputs, and the bytes that it cannot help
//! reading and writing.

use std::cell::{Cell, RefCell};

use crate::Result;
use crate::gpu::{Buffer, Elem, Gpu};
use crate::graph::{Graph, Plan, PlanOptions, Shape, Var, Vector, Weight};
use crate::quant::{Layout, Packed, QuantSpec};

/// Records an op with its inputs.
pub type Build = Box<dyn for<'g> Fn(&Recorder<'g>) -> Result<Var<'g>>>;

/// An op on the shapes that a model gives it.
pub struct Case {
    /// The op's file: `matmul`, `conv2d`.
    pub op: &'static str,
    /// Form and number formats: `gemv int4-g64-cubic`.
    pub spec: String,
    pub shape: String,
    /// Where the shape is from.
    pub model: &'static str,
    /// Whether a quick run has it.
    pub quick: bool,
    pub build: Build,
}

impl Case {
    pub fn new(
        op: &'static str,
        spec: impl Into<String>,
        shape: impl Into<String>,
        model: &'static str,
        build: impl for<'g> Fn(&Recorder<'g>) -> Result<Var<'g>> + 'static,
    ) -> Case {
        let (spec, shape, build) = (spec.into(), shape.into(), Box::new(build));
        Case { op, spec, shape, model, quick: false, build }
    }
    pub fn quick(self) -> Case {
        Case { quick: true, ..self }
    }
    /// Plans the op and gives it its inputs. Also returns the bytes.
    pub fn plan(&self, gpu: &Gpu, act: Elem, options: &PlanOptions) -> Result<(Plan, u64)> {
        let graph = Graph::new(act);
        let recorder = Recorder {
            graph: &graph,
            gpu,
            bytes: Cell::new(0),
            written: Cell::new(None),
            inputs: RefCell::default(),
        };
        let y = (self.build)(&recorder)?;
        graph.output("y", y);
        let plan = Plan::new(gpu, &graph, options)?;
        for (name, words) in recorder.inputs.take() {
            match words {
                Some(words) => plan.set_u32(&name, &words)?,
                None => plan.set(&name, &noise(plan.shape(&name)?.len()))?,
            }
        }
        let whole = y.shape().len() as u64 * y.elem().bytes();
        Ok((plan, recorder.bytes.get() + recorder.written.get().unwrap_or(whole)))
    }
}

/// Makes inputs of random numbers and counts the bytes that are read of them.
pub struct Recorder<'g> {
    pub graph: &'g Graph,
    gpu: &'g Gpu,
    bytes: Cell<u64>,
    /// Bytes written, where that is less than the whole value.
    written: Cell<Option<u64>>,
    /// Name, and words where it is not floats.
    inputs: RefCell<Vec<(String, Option<Vec<u32>>)>>,
}

impl<'g> Recorder<'g> {
    fn named(&self, words: Option<Vec<u32>>) -> String {
        let mut inputs = self.inputs.borrow_mut();
        let name = format!("x{}", inputs.len());
        inputs.push((name.clone(), words));
        name
    }
    /// Activations.
    pub fn floats(&self, shape: impl Into<Shape>) -> Var<'g> {
        self.stored(shape, self.graph.act())
    }
    /// Floats that are stored as this type.
    pub fn stored(&self, shape: impl Into<Shape>, elem: Elem) -> Var<'g> {
        let shape = shape.into();
        self.reads(shape.len() as u64 * elem.bytes());
        self.graph.input(&self.named(None), shape, elem)
    }
    /// Token ids, positions.
    pub fn words(&self, words: Vec<u32>, shape: impl Into<Shape>) -> Var<'g> {
        self.reads(words.len() as u64 * 4);
        self.graph.input(&self.named(Some(words)), shape, Elem::U32)
    }
    /// Memory of zeros that is not counted.
    pub fn memory(&self, shape: impl Into<Shape>, elem: Elem) -> Result<Var<'g>> {
        let shape = shape.into();
        let bytes = shape.len() as u64 * elem.bytes();
        let buffer: Buffer = self.gpu.upload("cache", &vec![0; bytes as usize])?;
        Ok(self.graph.external(&buffer, shape, elem))
    }
    /// A weight of which everything is read.
    pub fn weight(&self, layout: Layout, spec: QuantSpec) -> Result<Weight> {
        let weight = self.table(layout, spec)?;
        self.reads(weight.bytes());
        Ok(weight)
    }
    /// A weight that is not counted.
    pub fn table(&self, layout: Layout, spec: QuantSpec) -> Result<Weight> {
        let packed = Packed::pack(&noise(layout.len()), layout, &spec, None)?;
        Weight::upload(self.gpu, "weight", &packed)
    }
    pub fn vector(&self, len: usize) -> Result<Vector> {
        self.reads(len as u64 * 4);
        Vector::upload(self.gpu, "vector", &noise(len))
    }
    /// Counts bytes.
    pub fn reads(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
    }
    /// The result is written in part only.
    pub fn writes(&self, bytes: u64) {
        self.written.set(Some(bytes));
    }
}

/// Numbers between −1 and 1, the same in every run (splitmix64): fast to make, and the time of no kernel depends on them.
fn noise(len: usize) -> Vec<f32> {
    let number = |i: usize| {
        let z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(number).collect()
}
