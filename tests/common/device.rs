//! The device that tests run on.

use std::sync::OnceLock;

use inknib::gpu::{Gpu, GpuOptions, Without};

/// The device of `INKNIB_TEST_DEVICE` (index or name part; default: the best), without the features in
/// `INKNIB_WITHOUT` (f16, subgroups, timestamps, limits, all). None, said once, if there is no adapter.
pub fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let open = || {
        let without = Without::parse(&std::env::var("INKNIB_WITHOUT").unwrap_or_default()).unwrap();
        let device = std::env::var("INKNIB_TEST_DEVICE").ok();
        let gpu = Gpu::open(&GpuOptions { device, without, ..Default::default() });
        gpu.inspect_err(|error| println!("skipped: {error}")).ok()
    };
    GPU.get_or_init(open).as_ref()
}
