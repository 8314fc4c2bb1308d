//! GPU memory with a length, a label and an entry in the byte ledger.
//!
//! Software drivers never run out of memory (64 GiB of buffers "succeed" on 23 GiB), so the ledger with
//! its budget is the limit that gives an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Counts the bytes of all live buffers against a budget.
#[derive(Debug)]
pub struct Ledger {
    used: AtomicU64,
    peak: AtomicU64,
    budget: u64,
}

impl Ledger {
    pub(super) fn new(budget: Option<u64>) -> Ledger {
        Ledger {
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            budget: budget.unwrap_or(u64::MAX),
        }
    }
    /// Bytes held now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
    /// Most bytes held at once.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Bytes that the budget still allows; without a budget, more than there are.
    pub fn free(&self) -> u64 {
        self.budget.saturating_sub(self.used())
    }

    fn take(&self, label: &str, bytes: u64) -> Result<()> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if used > self.budget {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Error::OutOfMemory(format!(
                "out of the GPU memory budget: \"{label}\" needs {} on top of {}, the budget is {}; \
                 raise --vram-budget, take a smaller picture or context, or --weights int4",
                mib(bytes),
                mib(used - bytes),
                mib(self.budget)
            )));
        }
        self.peak.fetch_max(used, Ordering::Relaxed);
        Ok(())
    }
}

/// Bytes of the buffer that is made where so many are asked for.
pub fn buffer_bytes(bytes: u64) -> u64 {
    bytes.max(16).next_multiple_of(16)
}

/// `12.5 MiB`
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

#[derive(Debug)]
struct Inner {
    raw: wgpu::Buffer,
    bytes: u64,
    ledger: Arc<Ledger>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.ledger.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A shared handle to GPU memory; the memory goes when the last handle does.
#[derive(Clone, Debug)]
pub struct Buffer(Arc<Inner>);

impl Buffer {
    pub(super) fn new(
        device: &wgpu::Device,
        ledger: &Arc<Ledger>,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<Buffer> {
        let bytes = buffer_bytes(bytes);
        let limit = device.limits().max_buffer_size;
        if bytes > limit {
            return Err(Error::OutOfMemory(format!(
                "\"{label}\" needs a buffer of {}, this adapter allows {}",
                mib(bytes),
                mib(limit)
            )));
        }
        ledger.take(label, bytes)?;
        let desc = wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes,
            usage,
            mapped_at_creation: false,
        };
        let raw = device.create_buffer(&desc);
        Ok(Buffer(Arc::new(Inner { raw, bytes, ledger: ledger.clone() })))
    }
    pub(super) fn raw(&self) -> &wgpu::Buffer {
        &self.0.raw
    }
    /// Size in bytes (rounded up to 16).
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }
    /// Whether two handles name the same memory.
    pub fn same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
