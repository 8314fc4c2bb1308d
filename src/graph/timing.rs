//! How long a plan takes by the device's own clock.

use super::{Launch, Plan};
use crate::Result;
use crate::gpu::Step;

impl Plan {
    /// Milliseconds of each launch by itself, where the device has timestamps and no weight is streamed. On software
    /// adapters the stamps take longer than small launches; see [`Plan::device_ms`].
    pub fn profile(&self) -> Result<Option<Vec<(Launch, f64)>>> {
        if self.stream.is_some() {
            return Ok(None);
        }
        let steps: Vec<&Step> = self.steps.iter().collect();
        let times = self.gpu.time(&steps)?;
        Ok(times
            .map(|t| self.launches().iter().cloned().zip(t.into_iter().map(|t| t.ms)).collect()))
    }

    /// Milliseconds of one of `times` runs that follow each other in one submission, where the device has timestamps and
    /// no weight is streamed. For plans of a few launches: nothing is cut into several submissions.
    pub fn device_ms(&self, times: usize) -> Result<Option<f64>> {
        if self.stream.is_some() {
            return Ok(None);
        }
        let steps: Vec<&Step> = self.steps.iter().collect();
        let all = self.gpu.time_all(&steps, times)?;
        Ok(all.map(|all| all.ms / times.max(1) as f64))
    }
}
