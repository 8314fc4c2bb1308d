//! Adapter, device, queue, capability record, kernel cache, byte ledger and read-back.
//! The only floor that names wgpu.

mod buffer;
mod caps;
mod device;
mod fault;
mod kernel;
mod link;
mod pipelines;
mod queue;
mod spec;
mod staging;

pub use buffer::{Buffer, Ledger, buffer_bytes, mib};
pub use caps::{COOP_BYTES, Caps, Tuning, Without};
pub use device::{
    AdapterSummary, Gpu, GpuOptions, adapters, chosen, interrupt, interrupted, no_adapter,
    prepare_environment,
};
pub use kernel::Kernel;
pub use link::{Linked, Target, link};
pub use queue::{Bind, Command, PendingRead, Sent, Step, Timing};
pub use spec::{Elem, Role, Source, Spec, Value};
