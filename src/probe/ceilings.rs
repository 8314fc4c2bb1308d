//! What the device can do at most, measured on it before anything is held against it.

use serde::Serialize;

use crate::gpu::{Elem, Gpu, interrupted};
use crate::graph::Kernels;
use crate::ops::ceiling::{Kind, LANES, Ready, Work, oracle, prepare};
use crate::{Error, Result};

/// Rates and latencies, each the best of a few samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceilings {
    /// Bytes read and written by a copy of a buffer larger than caches, in 10⁹ a second: by a kernel or by the device's
    /// own command, whichever is faster.
    pub copy_gb_s: f64,
    /// By the kernel alone.
    pub kernel_copy_gb_s: f64,
    /// Multiplications and additions, in 10⁹ a second.
    pub fma_gflop_s: f64,
    /// The same in f16, where the adapter has it.
    pub fma_f16_gflop_s: Option<f64>,
    /// Operations of products of f16 matrices that are added in f32 by subgroups (cooperative matrices), where the adapter
    /// has them.
    pub coop_gflop_s: Option<f64>,
    /// Operations of `dot4I8Packed` and the sum, eight each.
    pub int_dot_gop_s: f64,
    /// Microseconds of a dispatch that does next to nothing and waits for the one before, of many in a submission.
    pub dispatch_us: f64,
    /// Microseconds of a submission of one such dispatch and of waiting for it.
    pub submit_us: f64,
}

/// A sample is at least so many seconds long.
const LONG: f64 = 0.02;
const SAMPLES: usize = 5;

impl Ceilings {
    /// Measures all of them, in a second or two. Open a device of its own for it where memory is to be watched.
    ///
    /// # Errors
    /// As running does; `Runtime` if the device computed something wrong; `Interrupted` on Ctrl-C.
    pub fn measure(gpu: &Gpu) -> Result<Ceilings> {
        let (kernel_copy, command_copy) = copies(gpu)?;
        let f16 = gpu.caps().f16.then(|| operations(gpu, Kind::Fma(Elem::F16)));
        let coop = Kind::coop(gpu.caps()).map(|kind| operations(gpu, kind));
        let (dispatch, submit) = latencies(gpu)?;
        Ok(Ceilings {
            copy_gb_s: kernel_copy.max(command_copy) / 1e9,
            kernel_copy_gb_s: kernel_copy / 1e9,
            fma_gflop_s: operations(gpu, Kind::Fma(Elem::F32))? / 1e9,
            fma_f16_gflop_s: f16.transpose()?.map(|rate| rate / 1e9),
            coop_gflop_s: coop.transpose()?.map(|rate| rate / 1e9),
            int_dot_gop_s: operations(gpu, Kind::Dot)? / 1e9,
            dispatch_us: 1e6 * dispatch,
            submit_us: 1e6 * submit,
        })
    }

    /// The most that arithmetic with sums in f32 reaches, by matrices or by lanes: whatever activations are stored as,
    /// kernels add up in f32.
    pub fn gflop_s(&self) -> f64 {
        self.coop_gflop_s.unwrap_or(0.0).max(self.fma_gflop_s)
    }

    /// Seconds below which neither memory nor arithmetic can be: the roofline (Williams et al. 2009).
    pub fn least_seconds(&self, bytes: f64, flops: f64) -> f64 {
        (bytes / self.copy_gb_s).max(flops / self.gflop_s()) / 1e9
    }

    /// GFLOP/s that so many operations for each byte can reach.
    pub fn attainable(&self, flops_per_byte: f64) -> f64 {
        (flops_per_byte * self.copy_gb_s).min(self.gflop_s())
    }
}

/// Bytes a second of a copy by a kernel and by the device's command.
fn copies(gpu: &Gpu) -> Result<(f64, f64)> {
    /// Cells that one invocation copies.
    const TRIPS: u32 = 16;
    let most = if gpu.caps().software { 64 << 20 } else { 128 << 20 };
    let bytes = most.min(gpu.caps().max_binding_bytes).min(gpu.ledger().free() / 4);
    let work = Work::new(Kind::Copy, (bytes / 16).max(1) as u32, TRIPS);
    let ready = prepare(gpu, Kernels::Fast, work)?;
    let kernel = repeated(work, &|times| ready.run(times))?;
    check(&ready, work)?;
    Ok((kernel, repeated(work, &|times| ready.copy(times))?))
}

/// Operations a second.
fn operations(gpu: &Gpu, kind: Kind) -> Result<f64> {
    /// Iterations after which a dispatch is repeated and no longer made longer.
    const MOST: u32 = 16_384;
    // A real GPU needs many invocations to be busy, a processor a few for each of its threads.
    let count = LANES * if gpu.caps().software { 256 } else { 8192 };
    let count = match kind {
        Kind::Coop { edge, subgroup } => count / subgroup.max(edge),
        _ => count,
    };
    let mut work = Work::new(kind, count, 16);
    loop {
        let ready = prepare(gpu, Kernels::Fast, work)?;
        // The first run may hold what the driver compiles late.
        let seconds = ready.run(1)?.min(ready.run(1)?);
        if seconds >= LONG || work.trips >= MOST {
            let rate = repeated(work, &|times| ready.run(times))?;
            check(&ready, work)?;
            return Ok(rate);
        }
        interrupted()?;
        work.trips *= 2;
    }
}

/// The best rate of a few samples, each with as many runs as make it long.
fn repeated(work: Work, run: &dyn Fn(usize) -> Result<f64>) -> Result<f64> {
    const MOST: usize = 4096;
    let mut times = 1;
    run(times)?;
    while run(times)? < LONG && times < MOST {
        interrupted()?;
        times *= 2;
    }
    let samples = (0..SAMPLES).map(|_| run(times)).collect::<Result<Vec<f64>>>()?;
    let best = samples.into_iter().fold(f64::INFINITY, f64::min);
    Ok(work.amount() * times as f64 / best.max(1e-9))
}

/// The rate of wrong results is none.
fn check(ready: &Ready, work: Work) -> Result<()> {
    const WORDS: u32 = 8;
    if ready.read(WORDS.into())? == oracle(work, WORDS) {
        return Ok(());
    }
    let kind = work.kind;
    Err(Error::Runtime(format!("this device computes {kind:?} wrong; `inknib doctor` says more")))
}

/// Seconds of a dispatch among many, and of a submission with one.
fn latencies(gpu: &Gpu) -> Result<(f64, f64)> {
    const MANY: usize = 512;
    const SUBMISSIONS: usize = 16;
    let ready = prepare(gpu, Kernels::Fast, Work::new(Kind::Fma(Elem::F32), 1, 0))?;
    ready.run(1)?;
    let (mut dispatch, mut submit) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..SAMPLES {
        interrupted()?;
        let alone: f64 = (0..SUBMISSIONS).map(|_| ready.run(1)).sum::<Result<f64>>()?;
        let alone = alone / SUBMISSIONS as f64;
        submit = submit.min(alone);
        dispatch = dispatch.min((ready.run(MANY)? - alone).max(0.0) / (MANY - 1) as f64);
    }
    Ok((dispatch, submit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ceilings with which others can be computed by hand.
    pub fn ceilings() -> Ceilings {
        Ceilings {
            copy_gb_s: 10.0,
            kernel_copy_gb_s: 9.0,
            fma_gflop_s: 100.0,
            fma_f16_gflop_s: None,
            coop_gflop_s: None,
            int_dot_gop_s: 200.0,
            dispatch_us: 5.0,
            submit_us: 50.0,
        }
    }

    #[test]
    fn the_roof_has_two_slopes() {
        let c = ceilings();
        // The ridge is at 10 operations a byte.
        assert_eq!(
            (c.attainable(1.0), c.attainable(10.0), c.attainable(50.0)),
            (10.0, 100.0, 100.0)
        );
        // 1 GB takes 0.1 s, 100 GFLOP take 1 s.
        assert_eq!(c.least_seconds(1e9, 0.0), 0.1);
        assert_eq!(c.least_seconds(1e9, 1e11), 1.0);
        // Both say the same of anything that computes.
        let (bytes, flops) = (3e8, 7e8);
        let by_rate = flops / 1e9 / c.attainable(flops / bytes);
        assert!((c.least_seconds(bytes, flops) - by_rate).abs() < 1e-15);
    }
}
