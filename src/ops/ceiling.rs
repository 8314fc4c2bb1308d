//! Kernels that do one thing as fast as the device can: copy, multiply and add, multiply bytes, multiply matrices. What other
//! kernels reach is held against them. Not ops of a graph: nobody needs their results.

use std::time::Instant;

use super::OpInfo;
use super::matmul::coop::Coop;
use crate::gpu::{Bind, Buffer, Caps, Command, Elem, Gpu, Source, Spec, Step};
use crate::graph::{Kernels, MAX_TRIPS};
use crate::{Error, Result, params, source};

const COPY: Source = source!("ceiling_copy.wgsl");
const FMA: Source = source!("ceiling_fma.wgsl");
const DOT: Source = source!("ceiling_dot.wgsl");
const COOP: Source = source!("ceiling_coop.wgsl");
const REFERENCE: Source = source!("reference/ceiling.wgsl");

/// Invocations of a workgroup.
pub const LANES: u32 = 64;
/// Steps of a chain that one trip writes out.
const FMA_STEPS: u32 = 16;
const DOT_STEPS: u32 = 4;
/// Chains of a subgroup.
const CHAINS: u32 = 8;

params! {
    pub struct Params {
        pub count: u32,
        pub trips: u32,
        pub mul: u32,
        pub add: u32,
    }
}

/// What a kernel does nothing else than.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads and writes memory in cells of 16 bytes.
    Copy,
    /// Multiplies and adds in f32 or f16.
    Fma(Elem),
    /// Multiplies four signed bytes of a word with four of another and adds them up.
    Dot,
    /// Multiplies f16 matrices of this edge and adds the product to one in f32, each by a subgroup of so many invocations.
    Coop { edge: u32, subgroup: u32 },
}

impl Kind {
    /// As the device does it, if it can.
    pub fn coop(caps: &Caps) -> Option<Kind> {
        (caps.coop_edge > 0)
            .then_some(Kind::Coop { edge: caps.coop_edge, subgroup: caps.subgroup_max })
    }
}

/// How much, and with which numbers.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub kind: Kind,
    /// Cells of 16 bytes that are copied, invocations that compute, or subgroups of [`Kind::Coop`].
    pub count: u32,
    /// Iterations of each invocation's loop; at most [`MAX_TRIPS`] (in the reference, of all its loops).
    pub trips: u32,
    /// Bits of the factor: of an f32, or four signed bytes.
    pub mul: u32,
    /// Bits of what is added, an f32.
    pub add: u32,
}

impl Work {
    /// Work on numbers that stay finite however long it takes: a + 1, and a word of small bytes.
    pub fn new(kind: Kind, count: u32, trips: u32) -> Work {
        let one = 1.0f32.to_bits();
        let mul = if kind == Kind::Dot { 0x0302_ff01 } else { one };
        let add = match kind {
            Kind::Coop { edge, .. } => (1.0 / edge as f32).to_bits(),
            _ => one,
        };
        Work { kind, count, trips, mul, add }
    }
    /// Bytes read and written, or operations: two of a multiplication with an addition, eight of a product of four
    /// bytes that is added to a sum.
    pub fn amount(&self) -> f64 {
        let (count, trips) = (f64::from(self.count), f64::from(self.trips));
        match self.kind {
            Kind::Copy => 32.0 * count,
            Kind::Fma(_) => count * trips * f64::from(FMA_STEPS) * 12.0 * 2.0,
            Kind::Dot => count * trips * f64::from(DOT_STEPS) * 8.0 * 8.0,
            Kind::Coop { edge, .. } => {
                count * trips * f64::from(CHAINS) * 2.0 * f64::from(edge).powi(3)
            }
        }
    }
    /// Words of the result.
    fn words(&self) -> u32 {
        match self.kind {
            Kind::Dot => self.count,
            Kind::Coop { edge, .. } => self.count * edge * edge,
            Kind::Copy | Kind::Fma(_) => 4 * self.count,
        }
    }
}

/// Work with everything bound.
pub struct Ready {
    gpu: Gpu,
    step: Step,
    /// What is copied.
    x: Option<Buffer>,
    y: Buffer,
}

fn spec(kernels: Kernels, kind: Kind) -> Spec {
    if kernels == Kernels::Reference {
        let (number, elem, edge) = match kind {
            Kind::Copy => (0, Elem::F32, 0),
            Kind::Fma(elem) => (1, elem, 0),
            Kind::Dot => (2, Elem::F32, 0),
            Kind::Coop { edge, .. } => (3, Elem::F32, edge),
        };
        return Spec::new(REFERENCE).u32("KIND", number).u32("EDGE", edge).alias("T", elem);
    }
    match kind {
        Kind::Copy => Spec::new(COPY),
        Kind::Fma(elem) => Spec::new(FMA).alias4("V", elem),
        Kind::Dot => Spec::new(DOT),
        Kind::Coop { edge, subgroup } => {
            Coop::matrices(Spec::new(COOP), edge).u32("WG_X", subgroup)
        }
    }
}

/// Compiles the kernel and takes the memory.
///
/// # Errors
/// `Runtime` for loops that not every driver runs to their end; as allocating and compiling do.
pub fn prepare(gpu: &Gpu, kernels: Kernels, work: Work) -> Result<Ready> {
    if u64::from(work.trips) > MAX_TRIPS {
        let trips = work.trips;
        return Err(Error::Runtime(format!("{trips} loop trips, at most {MAX_TRIPS} are safe")));
    }
    let reference = kernels == Kernels::Reference;
    let kernel = gpu.kernel(&spec(kernels, work.kind))?;
    let words = work.words();
    let bytes = u64::from(words.max(1)) * 4;
    let x = (work.kind == Kind::Copy).then(|| {
        // Memory that was never written may be one page of zeros.
        let words: Vec<u32> = (0..words).map(content).collect();
        gpu.upload("ceiling x", bytemuck::cast_slice(&words))
    });
    let (x, y) = (x.transpose()?, gpu.buffer("ceiling y", bytes)?);
    let count = if reference { words } else { work.count };
    let values = Params { count, trips: work.trips, mul: work.mul, add: work.add };
    let params = gpu.uniform("ceiling params", std::mem::size_of::<Params>() as u64)?;
    gpu.write(&params, 0, bytemuck::bytes_of(&values))?;
    let mut binds = vec![Some(Bind::whole(&params))];
    if reference || x.is_some() {
        binds.push(x.as_ref().map(Bind::whole));
    }
    binds.push(Some(Bind::whole(&y)));
    let each = match work.kind {
        Kind::Copy if !reference => LANES * work.trips.max(1),
        Kind::Coop { .. } if !reference => 1,
        _ => LANES,
    };
    let step = gpu.bind(&kernel, &[binds], [count.div_ceil(each).max(1), 1, 1])?;
    Ok(Ready { gpu: gpu.clone(), step, x, y })
}

/// Word i of what is copied: any numbers, all different.
fn content(i: u32) -> u32 {
    i.wrapping_mul(2_654_435_761)
}

impl Ready {
    /// Seconds of `times` runs in one submission, which is waited for.
    pub fn run(&self, times: usize) -> Result<f64> {
        self.send((0..times).map(|_| Command::Run(&self.step)).collect())
    }
    /// As [`Ready::run`] with the device's own command for a copy in place of the kernel.
    pub fn copy(&self, times: usize) -> Result<f64> {
        let Some(from) = &self.x else {
            return Err(Error::Runtime("this work copies nothing".into()));
        };
        let to = &self.y;
        let bytes = to.bytes();
        let copy = || Command::Copy { from, from_offset: 0, to, to_offset: 0, bytes };
        self.send((0..times).map(|_| copy()).collect())
    }
    fn send(&self, commands: Vec<Command<'_>>) -> Result<f64> {
        self.gpu.wait()?;
        let start = Instant::now();
        self.gpu.submit(&commands)?;
        self.gpu.wait()?;
        Ok(start.elapsed().as_secs_f64())
    }
    /// The first `words` words of the result: of f32 their bits.
    pub fn read(&self, words: u64) -> Result<Vec<u32>> {
        let bytes = (words * 4).min(self.y.bytes());
        Ok(bytemuck::pod_collect_to_vec(&self.gpu.read(&self.y, 0, bytes)?))
    }
}

/// The first `words` words that [`Ready::read`] gives: of an f16 chain too, which rounds on its way.
pub fn oracle(work: Work, words: u32) -> Vec<u32> {
    let (mul, add) = (f32::from_bits(work.mul), f32::from_bits(work.add));
    let half = work.kind == Kind::Fma(Elem::F16);
    let round = |v: f64| if half { f64::from(half::f16::from_f64(v)) } else { f64::from(v as f32) };
    let affine = |first: u32| {
        let (mul, add) = (round(f64::from(mul)), round(f64::from(add)));
        (0..FMA_STEPS * work.trips).fold(f64::from(first), |a, _| round(a * mul + add))
    };
    let dot = |first: u32| {
        (0..DOT_STEPS * work.trips).fold(first, |s, _| {
            let bytes = s.to_le_bytes().into_iter().zip(work.mul.to_le_bytes());
            let dot: i32 = bytes.map(|(a, b)| i32::from(a as i8) * i32::from(b as i8)).sum();
            s.wrapping_add(dot as u32)
        })
    };
    let word = |i: u32| match work.kind {
        Kind::Copy => content(i),
        Kind::Fma(_) => {
            let sum: f64 = (0..3).map(|j| affine(i / 4 % 8 + 4 * j + i % 4)).sum();
            (sum as f32).to_bits()
        }
        Kind::Coop { edge, .. } => {
            let steps = (0..CHAINS).sum::<u32>() + CHAINS * work.trips;
            (mul * add * edge as f32 * steps as f32).to_bits()
        }
        Kind::Dot => (0..8u32).fold(0, |sum: u32, j| {
            let first = 0x0103_0507u32.wrapping_mul(i % 8 + 1);
            sum.wrapping_add(dot(first.wrapping_add(0x1121_3141u32.wrapping_mul(j))))
        }),
    };
    (0..words.min(work.words())).map(word).collect()
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let coop = Kind::Coop { edge: 16, subgroup: 32 };
    let kinds = [Kind::Copy, Kind::Fma(Elem::F32), Kind::Fma(Elem::F16), Kind::Dot, coop];
    let specs = [Kernels::Fast, Kernels::Reference]
        .into_iter()
        .flat_map(|kernels| kinds.map(|kind| spec(kernels, kind)))
        .collect();
    vec![OpInfo { name: "ceiling", specs, params: Params::FIELDS }]
}
