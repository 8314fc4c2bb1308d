//! What a plan takes and does, known before it is made.

use std::collections::HashSet;

use super::build::{Builder, live_nodes, nodes, params};
use super::lower::{Arg, Dispatch};
use super::{Graph, Plan, PlanOptions, storage};
use crate::Result;
use crate::gpu::{Caps, Gpu, Spec, buffer_bytes};

/// Memory that a plan takes besides weights and what other plans hold, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Activations, as [`Plan::activation_bytes`](super::Plan::activation_bytes) counts them.
    pub activations: u64,
    /// Inputs and literals.
    pub inputs: u64,
    /// Parameters of all dispatches.
    pub params: u64,
    /// Of the activations, the buffers that outputs lie in: what stays where somebody keeps the outputs and
    /// drops the plan.
    pub outputs: u64,
    /// The most that a kernel reads or writes through one binding, weights left out.
    pub largest: u64,
    /// The copy through which the host reads a result; 0 unless whoever reads has set it.
    pub read_back: u64,
    /// Floating-point operations of one run; no memory.
    pub flops: u64,
}

/// A launch that a plan would make.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Planned {
    pub spec: Spec,
    /// Workgroups in x, y, z.
    pub groups: [u32; 3],
    pub flops: u64,
    /// Bytes of weights that it reads, each counted once.
    pub weight_bytes: u64,
}

impl Footprint {
    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.activations + self.inputs + self.params + self.read_back
    }
}

impl Plan {
    /// What [`Plan::new`] would take for this graph, found without taking it or compiling anything.
    ///
    /// # Errors
    /// As [`Plan::new`], but for kernels and allocations.
    pub fn footprint(gpu: &Gpu, graph: &Graph, options: &PlanOptions) -> Result<Footprint> {
        let mut nodes = nodes(gpu, graph)?;
        let taps = if options.taps { graph.taps.borrow().clone() } else { Vec::new() };
        let outputs = graph.outputs.borrow();
        let roots: Vec<usize> = outputs.iter().chain(&taps).map(|(_, id)| *id).collect();
        let live = live_nodes(&mut nodes, &roots, options, gpu.caps());
        let nothing = gpu.buffer("nothing", 16)?;
        let mut builder = Builder::new(gpu, options, graph.act(), Some(nothing));
        let (dispatches, _) = builder.lower(&nodes, &live, &roots)?;
        let sizes = || builder.slots.sizes.iter().map(|bytes| buffer_bytes(*bytes));
        let leaves = || builder.leaf_bytes.iter().map(|bytes| buffer_bytes(*bytes));
        let slots = outputs.iter().map(|(_, id)| storage::root(&nodes, *id));
        let slots: HashSet<usize> =
            slots.filter_map(|root| builder.slots.of.get(&root).copied()).collect();
        let bound = dispatches.iter().flat_map(|d| &d.args).map(Arg::bytes);
        Ok(Footprint {
            activations: sizes().sum(),
            inputs: leaves().sum(),
            params: buffer_bytes(params(gpu, &dispatches).0.len() as u64),
            outputs: slots.iter().map(|slot| buffer_bytes(builder.slots.sizes[*slot])).sum(),
            largest: bound.max().unwrap_or(0),
            flops: dispatches.iter().map(|dispatch| dispatch.flops).sum(),
            ..Footprint::default()
        })
    }

    /// What [`Plan::new`] would launch for this graph if the device had these capabilities, in order; nothing is compiled or
    /// taken.
    ///
    /// # Errors
    /// As [`Plan::footprint`].
    pub fn kernels(
        gpu: &Gpu,
        graph: &Graph,
        options: &PlanOptions,
        caps: &Caps,
    ) -> Result<Vec<Planned>> {
        let mut nodes = nodes(gpu, graph)?;
        let roots: Vec<usize> = graph.outputs.borrow().iter().map(|(_, id)| *id).collect();
        let live = live_nodes(&mut nodes, &roots, options, caps);
        let mut builder = Builder::new(gpu, options, graph.act(), Some(gpu.buffer("nothing", 16)?));
        builder.caps = caps;
        let (dispatches, _) = builder.lower(&nodes, &live, &roots)?;
        let planned = |d: Dispatch| {
            let Dispatch { spec, groups, flops, weight_bytes, .. } = d;
            Planned { spec, groups, flops, weight_bytes }
        };
        Ok(dispatches.into_iter().map(planned).collect())
    }
}
