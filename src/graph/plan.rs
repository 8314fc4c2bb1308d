//! A graph after fusion, buffer assignment and kernel compilation: replayed as often as wanted.

use std::collections::HashMap;
use std::sync::Arc;

use half::f16;

use super::build::{Builder, live_nodes, nodes};
use super::lower::Kernels;
use super::storage::{GUARD, GUARD_WORD, Region};
use super::stream::Stream;
use super::{Arena, Graph, Home, Observe};
use crate::gpu::{Buffer, Command, Elem, Gpu, PendingRead, Step, buffer_bytes, interrupted};
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
    /// Products whose weights lie side by side are launches of their own all the same, as where weights are streamed.
    pub apart: bool,
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
pub(super) struct Named {
    pub(super) buffer: Buffer,
    /// Where the value begins in it.
    pub(super) base: u64,
    pub(super) shape: super::Shape,
    pub(super) elem: Elem,
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
        let live = live_nodes(&mut nodes, &roots, options, gpu.caps());

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
