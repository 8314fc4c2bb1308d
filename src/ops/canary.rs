//! Whether the driver runs a long loop to its end. Mesa's software driver stops all loops of an invocation
//! after 65,535 iterations and returns wrong numbers without an error; plans stay below
//! [`MAX_TRIPS`](crate::graph::MAX_TRIPS), and `doctor` shows with this kernel how the adapter behaves.

use super::OpInfo;
use crate::gpu::{Bind, Buffer, Command, Gpu, Source, Spec};
use crate::graph::Kernels;
use crate::{Result, params, source};

const CANARY: Source = source!("canary.wgsl");
const REFERENCE: Source = source!("reference/canary.wgsl");

/// Where the chain of numbers starts; any word but zero.
const SEED: u32 = 0x9e37_79b9;

params! {
    pub struct Params {
        pub trips: u32,
        pub pad0: u32,
        pub pad1: u32,
        pub pad2: u32,
    }
}

/// What a canary run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopCount {
    /// Iterations counted.
    pub count: u32,
    /// The last of a chain of numbers, one an iteration (xorshift32, Marsaglia 2003).
    pub state: u32,
}

fn spec(kernels: Kernels) -> Spec {
    Spec::new(if kernels == Kernels::Reference { REFERENCE } else { CANARY })
}

/// Runs a loop of `trips` iterations on the device, `chunk` of them in each invocation, one after the other,
/// and returns what the device counted; compare with [`expected`]. Not an op of a graph on purpose: a plan
/// refuses the very loops that this is to try. With `chunk` at most
/// [`MAX_TRIPS`](crate::graph::MAX_TRIPS) every driver must count right; so must the reference, which
/// writes sixteen steps out in each iteration, up to sixteen times that.
pub fn count_loop(gpu: &Gpu, kernels: Kernels, trips: u32, chunk: u32) -> Result<LoopCount> {
    let y = start_loop(gpu, kernels, trips, chunk)?;
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(&gpu.read(&y, 0, 8)?);
    Ok(LoopCount { count: words[0], state: words[1] })
}

/// Submits that loop, and returns what it writes to.
pub fn start_loop(gpu: &Gpu, kernels: Kernels, trips: u32, chunk: u32) -> Result<Buffer> {
    let kernel = gpu.kernel(&spec(kernels.on(gpu.caps())))?;
    let y = gpu.upload("canary", bytemuck::cast_slice(&[0, SEED]))?;
    let mut left = trips;
    while left > 0 {
        let now = left.min(chunk.max(1));
        left -= now;
        let params = gpu.uniform("canary params", std::mem::size_of::<Params>() as u64)?;
        gpu.write(&params, 0, bytemuck::bytes_of(&Params { trips: now, ..Default::default() }))?;
        let step =
            gpu.bind(&kernel, &[vec![Some(Bind::whole(&params)), Some(Bind::whole(&y))]], [1; 3])?;
        gpu.submit(&[Command::Run(&step)])?;
    }
    Ok(y)
}

/// What [`count_loop`] returns where loops run to their end.
pub fn expected(trips: u32) -> LoopCount {
    let state = (0..trips).fold(SEED, |s, _| {
        let s = s ^ (s << 13);
        let s = s ^ (s >> 17);
        s ^ (s << 5)
    });
    LoopCount { count: trips, state }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let specs = vec![spec(Kernels::Fast), spec(Kernels::Reference)];
    vec![OpInfo { name: "canary", specs, params: Params::FIELDS }]
}
