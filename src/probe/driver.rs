//! Whether trouble with a device reaches us: a driver whose lost device looks like a working one, or a wait that never
//! ends, would be worse than one that computes wrong.

use std::time::Duration;

use serde::Serialize;

use crate::gpu::Gpu;
use crate::graph::{Kernels, MAX_TRIPS};
use crate::ops::canary;
use crate::{Error, Result};

/// What was seen of a device that was made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Reported {
    /// A submission to a destroyed device was refused as lost.
    pub lost_device: bool,
    /// A wait for less time than the work takes ended with an error; none where the work was done first.
    pub time_out: Option<bool>,
}

impl Reported {
    pub fn passed(&self) -> bool {
        self.lost_device && self.time_out != Some(false)
    }
}

/// Makes a device fail. It has to be one of its own: nothing can be done with it afterwards.
///
/// # Errors
/// What goes wrong before it is made to.
pub fn reported(gpu: Gpu) -> Result<Reported> {
    let most = MAX_TRIPS as u32;
    // Before the clock starts: some drivers compile at the first launch.
    canary::count_loop(&gpu, Kernels::Fast, 1, 1)?;
    canary::start_loop(&gpu, Kernels::Fast, 3 * most, most)?;
    let time_out = match gpu.wait_at_most(Duration::ZERO) {
        Err(Error::DeviceLost(_)) => Some(true),
        Ok(()) => None,
        Err(other) => return Err(other),
    };
    gpu.wait()?;
    gpu.destroy();
    let lost_device = matches!(gpu.submit(&[]), Err(Error::DeviceLost(_)))
        && matches!(gpu.submit(&[]), Err(Error::DeviceLost(_)));
    Ok(Reported { lost_device, time_out })
}
