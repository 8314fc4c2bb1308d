//! Weights that stay in host memory and pass through a pool on the GPU while a plan runs: how a model
//! runs that is larger than the memory it may take.
//!
//! The plan's launches are cut into segments whose streamed weights fit into the pool together. Before a
//! segment its weights are written into the pool; writes and submissions of one queue are carried out
//! in order, so a segment never sees another one's weights and nobody has to wait.

use std::collections::HashMap;
use std::sync::Arc;

use super::weight::Chunk;
use crate::gpu::{Bind, Buffer, Gpu};
use crate::quant::Words;
use crate::{Error, Result};

/// Words on the host that take a place in the pool when they are needed. Those of a quantized file stay there, in memory that
/// the system may take back.
pub(crate) type Held = Arc<Words>;

fn bytes_of(held: &Held) -> u64 {
    held.len() as u64 * 4
}

/// What is written into the pool before a launch.
#[derive(Debug)]
struct Segment {
    /// The first launch that needs it.
    first: usize,
    writes: Vec<(u64, Held)>,
}

/// The streamed weights of a plan.
#[derive(Debug)]
pub(super) struct Stream {
    pool: Buffer,
    segments: Vec<Segment>,
}

impl Stream {
    /// Whether launch `i` begins a segment.
    pub fn begins(&self, i: usize) -> bool {
        self.segments.binary_search_by_key(&i, |s| s.first).is_ok()
    }
    /// Writes the weights of the segment that begins with launch `i`.
    pub fn load(&self, gpu: &Gpu, i: usize) -> Result<()> {
        let found = self.segments.binary_search_by_key(&i, |s| s.first);
        let writes = found.map(|at| self.segments[at].writes.as_slice()).unwrap_or_default();
        writes.iter().try_for_each(|(offset, held)| {
            gpu.write(&self.pool, *offset, bytemuck::cast_slice(held))
        })
    }
    /// Bytes of the pool.
    pub fn bytes(&self) -> u64 {
        self.pool.bytes()
    }
}

/// Gives places in the pool to the weights of one launch after another.
pub(super) struct Placer {
    pool: Buffer,
    align: u64,
    used: u64,
    places: HashMap<*const Words, u64>,
    segments: Vec<Segment>,
}

impl Placer {
    /// A pool of `wanted` bytes, or of what the largest of these windows needs if that is more; no more
    /// than all of them need. `None` if nothing is streamed.
    pub fn new<'a>(
        gpu: &Gpu,
        wanted: u64,
        windows: impl Iterator<Item = &'a Chunk>,
    ) -> Result<Option<Placer>> {
        let align = u64::from(gpu.caps().storage_align).max(16);
        let (mut largest, mut all) = (0u64, HashMap::new());
        for window in windows {
            let mut own = 0;
            for held in window.held() {
                let bytes = bytes_of(held).next_multiple_of(align);
                all.insert(Arc::as_ptr(held), bytes);
                own += bytes;
            }
            largest = largest.max(own);
        }
        if all.is_empty() {
            return Ok(None);
        }
        let total: u64 = all.values().sum();
        let pool = gpu.buffer("streamed weights", wanted.max(largest).min(total))?;
        let (places, segments) = (HashMap::new(), Vec::new());
        Ok(Some(Placer { pool, align, used: 0, places, segments }))
    }

    /// Places what launch `launch` streams of this window; a new segment begins where it does not fit
    /// behind what is there.
    pub fn place(&mut self, launch: usize, window: &Chunk) -> Result<Vec<Option<Bind>>> {
        let size = |held: &Held| bytes_of(held).next_multiple_of(self.align);
        let new = |held: &&Held| !self.places.contains_key(&Arc::as_ptr(held));
        let needed: u64 = window.held().filter(new).map(size).sum();
        if self.segments.is_empty() || self.used + needed > self.pool.bytes() {
            self.places.clear();
            self.used = 0;
            self.segments.push(Segment { first: launch, writes: Vec::new() });
        }
        window.binds_with(|held| {
            let bytes = bytes_of(held);
            let offset = match self.places.get(&Arc::as_ptr(held)) {
                Some(offset) => *offset,
                None => {
                    let offset = self.used;
                    self.used += bytes.next_multiple_of(self.align);
                    self.places.insert(Arc::as_ptr(held), offset);
                    self.write(launch, offset, held)?;
                    offset
                }
            };
            Ok(Bind { buffer: self.pool.clone(), offset, bytes: bytes.next_multiple_of(16) })
        })
    }

    /// A write into memory that no earlier launch of the segment reads may come before all of them.
    fn write(&mut self, launch: usize, offset: u64, held: &Held) -> Result<()> {
        let none = || Error::Runtime(format!("launch {launch} streams into no segment"));
        let segment = self.segments.last_mut().ok_or_else(none)?;
        segment.writes.push((offset, held.clone()));
        Ok(())
    }

    pub fn finish(self) -> Stream {
        Stream { pool: self.pool, segments: self.segments }
    }
}
