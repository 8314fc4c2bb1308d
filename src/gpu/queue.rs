//! Prepared dispatches, submissions, waits that can be interrupted, and read-back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use super::buffer::{Buffer, mib};
use super::device::{Gpu, interrupted};
use super::kernel::Kernel;
use super::spec::Spec;
use super::staging::LARGE;
use crate::{Error, Result};

/// A wait that takes longer than this is taken for a hung device.
const WATCHDOG: Duration = Duration::from_secs(300);
/// How long one look at the device may take before Ctrl-C and errors are looked at again, and another
/// thread gets its turn.
const TURN: Duration = Duration::from_millis(20);
/// Bytes of small writes that may wait in the driver's memory for a submission.
const UNSENT: u64 = 64 << 20;
/// Submissions in flight before the host waits for the oldest.
const IN_FLIGHT: usize = 3;

/// A range of a buffer bound to a kernel.
#[derive(Clone, Debug)]
pub struct Bind {
    pub buffer: Buffer,
    pub offset: u64,
    pub bytes: u64,
}

impl Bind {
    pub fn whole(buffer: &Buffer) -> Bind {
        Bind { buffer: buffer.clone(), offset: 0, bytes: buffer.bytes() }
    }
}

/// A dispatch with everything bound, ready to be replayed.
pub struct Step {
    kernel: Arc<Kernel>,
    groups: Vec<wgpu::BindGroup>,
    dims: [u32; 3],
    /// What the groups bind: as long as the step is there its memory is, and the ledger counts it.
    sets: Vec<Vec<Option<Bind>>>,
}

impl Step {
    pub fn spec(&self) -> &Spec {
        &self.kernel.spec
    }
    /// Workgroups in x, y, z.
    pub fn dims(&self) -> [u32; 3] {
        self.dims
    }
    /// For each bind group, in binding order, what is bound.
    pub fn sets(&self) -> &[Vec<Option<Bind>>] {
        &self.sets
    }
}

/// What a submission is made of.
pub enum Command<'a> {
    Run(&'a Step),
    /// Copies bytes from one buffer to another.
    Copy {
        from: &'a Buffer,
        from_offset: u64,
        to: &'a Buffer,
        to_offset: u64,
        bytes: u64,
    },
}

/// Whether the host may use a buffer that it asked for.
pub(super) type Answer = std::result::Result<(), wgpu::BufferAsyncError>;

/// A read-back under way.
pub struct PendingRead {
    gpu: Gpu,
    staging: Buffer,
    index: wgpu::SubmissionIndex,
    receive: mpsc::Receiver<Answer>,
    bytes: usize,
}

impl PendingRead {
    /// Waits for the copy and returns the bytes.
    pub fn finish(self) -> Result<Vec<u8>> {
        self.gpu.wait_for(Some(self.index))?;
        self.gpu.mapped(&self.receive, "read-back")?;
        let padded = (self.bytes as u64).next_multiple_of(4);
        let range = self.staging.raw().get_mapped_range(0..padded);
        let range = range.map_err(|e| Error::DeviceLost(format!("read-back failed: {e}")))?;
        Ok(range[..self.bytes].to_vec())
    }
}

/// How much went to a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    pub submissions: u64,
    pub dispatches: u64,
    /// What the host took to record commands and, on a real GPU, to hand them over; a software adapter computes meanwhile.
    pub host: Duration,
}

impl Sent {
    /// What was sent after `before`.
    pub fn since(self, before: Sent) -> Sent {
        Sent {
            submissions: self.submissions - before.submissions,
            dispatches: self.dispatches - before.dispatches,
            host: self.host - before.host,
        }
    }
}

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, other: Sent) {
        self.submissions += other.submissions;
        self.dispatches += other.dispatches;
        self.host += other.host;
    }
}

/// Milliseconds of one step on the device.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub ms: f64,
}

impl Gpu {
    /// Binds buffers to a kernel. `sets[g]` is bind group g, in binding order; `None` binds a buffer of
    /// zeros (a binding that this Spec never reads still has to be there).
    pub fn bind(
        &self,
        kernel: &Arc<Kernel>,
        sets: &[Vec<Option<Bind>>],
        dims: [u32; 3],
    ) -> Result<Step> {
        self.check()?;
        let device = &self.inner.device;
        let limit = self.caps().max_workgroups_per_dimension;
        if dims.iter().any(|d| *d > limit) {
            return Err(Error::Runtime(format!(
                "{}: {dims:?} workgroups, this adapter allows {limit} in one dimension",
                kernel.spec.source.name
            )));
        }
        let most = self.caps().max_binding_bytes;
        if let Some(bind) = sets.iter().flatten().flatten().find(|bind| bind.bytes > most) {
            return Err(Error::OutOfMemory(format!(
                "{}: {} of one value are needed at once, this adapter binds at most {}; take a smaller picture or \
                 batch, or --activations f16 where the adapter has it",
                kernel.spec.source.name,
                mib(bind.bytes),
                mib(most)
            )));
        }
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let mut groups = Vec::new();
        for (index, set) in sets.iter().enumerate() {
            let entries: Vec<wgpu::BindGroupEntry> = set
                .iter()
                .enumerate()
                .map(|(binding, bind)| wgpu::BindGroupEntry {
                    binding: binding as u32,
                    resource: match bind {
                        Some(b) => wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                            buffer: b.buffer.raw(),
                            offset: b.offset,
                            size: std::num::NonZeroU64::new(b.bytes),
                        }),
                        None => self.inner.dummy.raw().as_entire_binding(),
                    },
                })
                .collect();
            groups.push(device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(kernel.spec.source.name),
                layout: &kernel.pipeline.get_bind_group_layout(index as u32),
                entries: &entries,
            }));
        }
        if let Some(error) = pollster::block_on(scope.pop()) {
            let name = kernel.spec.describe();
            return Err(Error::Runtime(format!("kernel {name}: buffers do not fit: {error}")));
        }
        // A launch of no workgroups leaves the outputs as they were.
        let dims = if self.inner.fault.spoils(&kernel.spec) { [0; 3] } else { dims };
        Ok(Step { kernel: kernel.clone(), groups, dims, sets: sets.to_vec() })
    }

    /// Sends the commands to the device and returns at once, unless too much is in flight already.
    pub fn submit(&self, commands: &[Command]) -> Result<()> {
        let encoder = self.encode(commands);
        self.send(encoder).map(drop)
    }

    /// What was sent since the device was opened.
    pub fn sent(&self) -> Sent {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Sent {
            submissions: read(&self.inner.submissions),
            dispatches: read(&self.inner.dispatches),
            host: Duration::from_nanos(read(&self.inner.host_nanoseconds)),
        }
    }

    fn encode(&self, commands: &[Command]) -> wgpu::CommandEncoder {
        let start = Instant::now();
        let encoder = self.write_down(commands);
        let runs = commands.iter().filter(|command| matches!(command, Command::Run(_))).count();
        self.inner.dispatches.fetch_add(runs as u64, Ordering::Relaxed);
        self.count_host(start);
        encoder
    }

    fn count_host(&self, since: Instant) {
        let nanoseconds = since.elapsed().as_nanos() as u64;
        self.inner.host_nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn write_down(&self, commands: &[Command]) -> wgpu::CommandEncoder {
        let mut encoder = self.inner.device.create_command_encoder(&Default::default());
        let mut rest = commands;
        while let Some(command) = rest.first() {
            match command {
                Command::Copy { from, from_offset, to, to_offset, bytes } => {
                    encoder.copy_buffer_to_buffer(
                        from.raw(),
                        *from_offset,
                        to.raw(),
                        *to_offset,
                        *bytes,
                    );
                    rest = &rest[1..];
                }
                Command::Run(_) => {
                    let mut pass = encoder.begin_compute_pass(&Default::default());
                    while let Some(Command::Run(step)) = rest.first() {
                        record(&mut pass, step);
                        rest = &rest[1..];
                    }
                }
            }
        }
        encoder
    }

    fn send(&self, encoder: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex> {
        let index = {
            let _turn = self.turn();
            let start = Instant::now();
            self.inner.unsent.store(0, Ordering::Relaxed);
            let index = self.inner.queue.submit([encoder.finish()]);
            if !self.caps().software {
                self.count_host(start);
            }
            index
        };
        let count = self.inner.submissions.fetch_add(1, Ordering::Relaxed) + 1;
        if self.inner.fault.lose_after == Some(count) {
            self.lose(&format!("INKNIB_FAULT, submission {count}"));
        }
        self.check()?;
        let oldest = {
            let mut flight = self.inner.submitted.lock().unwrap_or_else(|e| e.into_inner());
            flight.push_back(index.clone());
            if flight.len() > IN_FLIGHT { flight.pop_front() } else { None }
        };
        if let Some(index) = oldest {
            self.wait_for(Some(index))?;
        }
        Ok(index)
    }

    /// Waits until all that was submitted is done; Ctrl-C and a hung device end the wait.
    pub fn wait(&self) -> Result<()> {
        self.inner.submitted.lock().unwrap_or_else(|e| e.into_inner()).clear();
        self.wait_for(None)
    }

    /// As [`Gpu::wait`], but no longer than that: the error is the one of a device that hangs. The work goes on.
    pub fn wait_at_most(&self, limit: Duration) -> Result<()> {
        self.wait_within(None, limit)
    }

    /// One thread at a time submits or waits: wgpu-core 30.0.1 panics ("If the queue is empty, the current
    /// submission index …") when a timed wait ends early while another thread retires that submission.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.inner.turn.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Lets the driver take back what is done with, without waiting.
    pub(super) fn tidy(&self) {
        let _turn = self.turn();
        // What goes wrong here, the next command says.
        let _ = self.inner.device.poll(wgpu::PollType::Poll);
    }

    pub(super) fn wait_for(&self, index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        self.wait_within(index, WATCHDOG)
    }

    /// Waits for the answer to `map_async`, after the work before it is done: another thread's poll may be the one that runs the
    /// callback, a moment after ours returned.
    pub(super) fn mapped(&self, answer: &mpsc::Receiver<Answer>, what: &str) -> Result<()> {
        match answer.recv_timeout(Duration::from_secs(10)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => {
                self.check()?;
                Err(Error::DeviceLost(format!("{what} failed: {e}")))
            }
            Err(_) => Err(Error::DeviceLost(format!("{what} did not finish"))),
        }
    }

    fn wait_within(&self, index: Option<wgpu::SubmissionIndex>, limit: Duration) -> Result<()> {
        let (start, turn) = (Instant::now(), TURN.min(limit));
        loop {
            let poll =
                wgpu::PollType::Wait { submission_index: index.clone(), timeout: Some(turn) };
            let polled = {
                let _turn = self.turn();
                self.inner.device.poll(poll)
            };
            match polled {
                Ok(_) => return self.check(),
                // A mutex is not fair: without a pause the next turn would be ours again.
                Err(wgpu::PollError::Timeout) => std::thread::sleep(Duration::from_micros(50)),
                Err(other) => {
                    self.check()?;
                    return Err(Error::DeviceLost(format!("waiting failed: {other}")));
                }
            }
            self.check()?;
            interrupted()?;
            if start.elapsed() > limit {
                return Err(Error::DeviceLost(format!(
                    "{}: no answer in {} s; the device hangs or the work is far too large for it",
                    self.adapter().name,
                    limit.as_secs()
                )));
            }
        }
    }

    /// Puts bytes into a buffer before the next submission, a large number of them at once. The length is padded to 4 with zeros.
    pub fn write(&self, buffer: &Buffer, offset: u64, data: &[u8]) -> Result<()> {
        if data.len() >= LARGE && data.len().is_multiple_of(4) {
            return self.stage(buffer, offset, data);
        }
        if data.len().is_multiple_of(4) {
            self.inner.queue.write_buffer(buffer.raw(), offset, data);
        } else {
            let mut padded = data.to_vec();
            padded.resize(data.len().next_multiple_of(4), 0);
            self.inner.queue.write_buffer(buffer.raw(), offset, &padded);
        }
        let bytes = data.len() as u64;
        let unsent = self.inner.unsent.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if unsent > UNSENT {
            // Without a submission the driver would hold all that is written a second time.
            self.submit(&[])?;
            self.wait()?;
        }
        self.check()
    }

    /// Asks for a copy of a range of a buffer as it is after all work submitted so far, without waiting:
    /// further work may be submitted before [`PendingRead::finish`]. `bytes` is rounded up to 4.
    pub fn read_later(&self, buffer: &Buffer, offset: u64, bytes: u64) -> Result<PendingRead> {
        self.submit_and_read(&[], buffer, offset, bytes)
    }

    /// Sends the commands and, in the same submission, asks for a range of a buffer as they leave it.
    pub fn submit_and_read(
        &self,
        commands: &[Command],
        buffer: &Buffer,
        offset: u64,
        bytes: u64,
    ) -> Result<PendingRead> {
        let padded = bytes.next_multiple_of(4);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging =
            Buffer::new(&self.inner.device, &self.inner.ledger, "read-back", padded, usage)?;
        let mut encoder = self.encode(commands);
        encoder.copy_buffer_to_buffer(buffer.raw(), offset, staging.raw(), 0, padded);
        let index = self.send(encoder)?;
        let (send, receive) = mpsc::channel();
        staging.raw().map_async(wgpu::MapMode::Read, 0..padded, move |r| {
            let _ = send.send(r);
        });
        Ok(PendingRead { gpu: self.clone(), staging, index, receive, bytes: bytes as usize })
    }

    /// Reads a range of a buffer after all submitted work. `bytes` is rounded up to 4.
    pub fn read(&self, buffer: &Buffer, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        self.read_later(buffer, offset, bytes)?.finish()
    }

    /// Runs each step by itself between two timestamps. None where the adapter has no timestamps.
    pub fn time(&self, steps: &[&Step]) -> Result<Option<Vec<Timing>>> {
        if !self.caps().timestamps {
            return Ok(None);
        }
        let mut times = Vec::with_capacity(steps.len());
        for chunk in steps.chunks(1024) {
            times.extend(self.stamped(2 * chunk.len() as u32, |encoder, set| {
                for (i, step) in (0u32..).zip(chunk) {
                    encoder.write_timestamp(set, 2 * i);
                    record(&mut encoder.begin_compute_pass(&Default::default()), step);
                    encoder.write_timestamp(set, 2 * i + 1);
                }
            })?);
        }
        Ok(Some(times))
    }

    /// Runs all steps `times` times between two timestamps: what the stamps themselves take is spread over all. None
    /// where the adapter has no timestamps.
    pub fn time_all(&self, steps: &[&Step], times: usize) -> Result<Option<Timing>> {
        if !self.caps().timestamps {
            return Ok(None);
        }
        let stamped = self.stamped(2, |encoder, set| {
            encoder.write_timestamp(set, 0);
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for _ in 0..times {
                steps.iter().for_each(|step| record(&mut pass, step));
            }
            drop(pass);
            encoder.write_timestamp(set, 1);
        })?;
        Ok(stamped.first().copied())
    }

    /// Submits what writes `count` timestamps; returns the time from each even one to the next.
    fn stamped(
        &self,
        count: u32,
        write: impl FnOnce(&mut wgpu::CommandEncoder, &wgpu::QuerySet),
    ) -> Result<Vec<Timing>> {
        let (device, queue) = (&self.inner.device, &self.inner.queue);
        let period = f64::from(queue.get_timestamp_period());
        let set = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let bytes = u64::from(count) * 8;
        let stamps = Buffer::new(device, &self.inner.ledger, "timestamps", bytes, usage)?;
        let mut encoder = device.create_command_encoder(&Default::default());
        write(&mut encoder, &set);
        encoder.resolve_query_set(&set, 0..count, stamps.raw(), 0);
        {
            let _turn = self.turn();
            queue.submit([encoder.finish()]);
        }
        let raw: Vec<u64> = bytemuck::pod_collect_to_vec(&self.read(&stamps, 0, bytes)?);
        let pairs = raw.chunks_exact(2).map(|t| t[1].saturating_sub(t[0]) as f64);
        Ok(pairs.map(|ticks| Timing { ms: ticks * period * 1e-6 }).collect())
    }
}

fn record(pass: &mut wgpu::ComputePass, step: &Step) {
    pass.set_pipeline(&step.kernel.pipeline);
    for (index, group) in step.groups.iter().enumerate() {
        pass.set_bind_group(index as u32, group, &[]);
    }
    let [x, y, z] = step.dims;
    pass.dispatch_workgroups(x, y, z);
}
