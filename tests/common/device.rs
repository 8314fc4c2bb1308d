//! The device that tests run on.

use std::sync::OnceLock;

use inknib::gpu::{Gpu, GpuOptions, Without};

/// The device of `INKNIB_TEST_DEVICE` (index or name part; default: the best), without the features in
/// `INKNIB_WITHOUT` (f16, subgroups, timestamps, limits, all). None, said once, if there is no adapter.
pub fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| open(without())).as_ref()
}

/// The same without subgroups, for the kernels that an adapter without them runs.
#[allow(dead_code)] // not every test has such kernels
pub fn gpu_without_subgroups() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| open(Without { subgroups: true, ..without() })).as_ref()
}

/// The same with no larger bindings than every adapter has.
#[allow(dead_code)] // not every test has so much to bind
pub fn gpu_with_default_limits() -> Option<Gpu> {
    open(Without { limits: true, ..without() })
}

fn without() -> Without {
    Without::parse(&std::env::var("INKNIB_WITHOUT").unwrap_or_default()).unwrap()
}

fn open(without: Without) -> Option<Gpu> {
    let device = std::env::var("INKNIB_TEST_DEVICE").ok();
    let gpu = Gpu::open(&GpuOptions { device, without, ..Default::default() });
    gpu.inspect_err(|error| println!("skipped: {error}")).ok()
}
