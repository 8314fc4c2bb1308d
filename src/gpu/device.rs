//! One constructor for the device: error handler, lost callback, interrupt flag, watchdog.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::Serialize;

use super::buffer::{Buffer, Ledger};
use super::caps::{Caps, Tuning, Without};
use super::fault::Fault;
use super::kernel::{Cache, Kernel};
use super::pipelines::Pipelines;
use super::spec::Spec;
use super::staging::Staging;
use crate::{Error, Result};

/// What to open and with how much.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// An index of [`adapters`] or a part of an adapter's name; default: the best one.
    pub device: Option<String>,
    /// Bytes of GPU memory that buffers may take in all.
    pub vram_budget: Option<u64>,
    /// Optional features to leave out.
    pub without: Without,
    /// Few rows of x are rounded to eight bits and multiplied as integers, where weights are INT8 or uniform INT4: lossy.
    pub int_dot: bool,
    /// A folder where compiled kernels are kept from one run to the next. Default: nothing is read or written.
    pub pipelines: Option<PathBuf>,
}

/// One line of `inknib devices`.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterSummary {
    pub index: usize,
    pub name: String,
    pub backend: String,
    /// Name and version of the driver.
    pub driver: String,
    pub driver_name: String,
    /// As the driver writes it; empty where it says nothing.
    pub driver_version: String,
    /// PCI ids of the maker and of the chip, 0 where there are none.
    pub vendor: u32,
    pub device: u32,
    pub device_type: String,
    pub caps: Caps,
}

static INTERRUPT: AtomicBool = AtomicBool::new(false);

/// The flag that Ctrl-C sets; every wait looks at it.
pub fn interrupt() -> &'static AtomicBool {
    &INTERRUPT
}

/// An error if Ctrl-C was pressed.
pub fn interrupted() -> Result<()> {
    if INTERRUPT.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// Mesa prints an error at every start unless XDG_RUNTIME_DIR is set: gives it a private value.
/// Call it first thing in `main`, before any thread is started.
pub fn prepare_environment() {
    if cfg!(unix) && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: called before any other thread exists (first statement of main), so nothing reads
        // the environment at the same time.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
}

fn instance() -> wgpu::Instance {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends =
        wgpu::Backends::from_env().unwrap_or(wgpu::Backends::PRIMARY | wgpu::Backends::GL);
    desc.flags = wgpu::InstanceFlags::empty().with_env();
    desc.backend_options = wgpu::BackendOptions::from_env_or_default();
    wgpu::Instance::new(desc)
}

/// Real GPUs before software, native APIs before GL. The order is stable, so an index means the same
/// thing from one run to the next.
fn ranked(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    let mut all = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    all.sort_by_key(|a| {
        let info = a.get_info();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        };
        (info.backend == wgpu::Backend::Noop, info.backend == wgpu::Backend::Gl, kind)
    });
    all
}

fn summary(index: usize, adapter: &wgpu::Adapter, without: Without) -> AdapterSummary {
    let info = adapter.get_info();
    AdapterSummary {
        index,
        name: info.name,
        backend: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        driver_name: info.driver,
        driver_version: info.driver_info,
        vendor: info.vendor,
        device: info.device,
        device_type: format!("{:?}", info.device_type),
        caps: Caps::read(adapter, without),
    }
}

/// All adapters, best first.
pub fn adapters() -> Vec<AdapterSummary> {
    ranked(&instance()).iter().enumerate().map(|(i, a)| summary(i, a, Without::default())).collect()
}

/// What the driver said that nobody has heard of yet.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// Why the device was lost: this stays.
    lost: Option<String>,
    /// The first error since the last look.
    error: Option<Error>,
}

/// The adapter that [`Gpu::open`] takes, without opening it.
///
/// # Errors
/// `NoAdapter`, as there.
pub fn chosen(options: &GpuOptions) -> Result<AdapterSummary> {
    let all = ranked(&instance());
    let index = choose(&all, options)?;
    Ok(summary(index, &all[index], options.without))
}

pub(super) struct Inner {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) ledger: Arc<Ledger>,
    pub(super) trouble: Arc<Mutex<Trouble>>,
    pub(super) fault: Fault,
    pub(super) dummy: Buffer,
    pub(super) submissions: AtomicU64,
    pub(super) dispatches: AtomicU64,
    pub(super) host_nanoseconds: AtomicU64,
    pub(super) submitted: Mutex<std::collections::VecDeque<wgpu::SubmissionIndex>>,
    /// Held while a thread submits or waits.
    pub(super) turn: Mutex<()>,
    pub(super) staging: Staging,
    /// Bytes written since the last submission.
    pub(super) unsent: AtomicU64,
    summary: AdapterSummary,
    kernels: Cache,
    pipelines: Option<Pipelines>,
}

impl Drop for Inner {
    /// Keeps what was compiled, unless the device was lost on the way.
    fn drop(&mut self) {
        let lost = self.trouble.lock().unwrap_or_else(|e| e.into_inner()).lost.is_some();
        if let Some(pipelines) =
            self.pipelines.as_ref().filter(|_| !lost && self.kernels.cost().0 > 0)
        {
            pipelines.keep();
        }
    }
}

/// Adapter, device and queue, with all that is counted and cached on them. Cheap to clone.
#[derive(Clone)]
pub struct Gpu {
    pub(super) inner: Arc<Inner>,
}

impl Gpu {
    /// Opens the adapter that the options name.
    ///
    /// # Errors
    /// `NoAdapter` if there is none or the name fits none (all are listed), `DeviceLost` if the driver
    /// refuses a device.
    pub fn open(options: &GpuOptions) -> Result<Gpu> {
        let fault = Fault::of_next_device()?;
        let instance = instance();
        let all = ranked(&instance);
        let index = choose(&all, options)?;
        let adapter = &all[index];
        let mut summary = summary(index, adapter, options.without);
        summary.caps.int_products = options.int_dot;
        let caps = &summary.caps;
        let mut features = wgpu::Features::empty();
        features.set(wgpu::Features::SHADER_F16, caps.f16);
        features.set(wgpu::Features::SUBGROUP, caps.subgroups);
        features.set(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, caps.coop_edge > 0);
        let stamps =
            wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
        features.set(stamps, caps.timestamps);
        let folder = options.pipelines.as_deref().filter(|_| caps.pipeline_cache);
        features.set(wgpu::Features::PIPELINE_CACHE, folder.is_some());
        let limits =
            if options.without.limits { wgpu::Limits::default() } else { adapter.limits() };
        let desc = wgpu::DeviceDescriptor {
            label: Some("inknib"),
            required_features: features,
            required_limits: limits,
            // SAFETY: kernels use cooperative matrices as their specification says: by whole subgroups, under uniform control
            // flow, on memory that the tile covers. tests/ops and the op test hold them to the oracle.
            experimental_features: match caps.coop_edge {
                0 => wgpu::ExperimentalFeatures::disabled(),
                _ => unsafe { wgpu::ExperimentalFeatures::enabled() },
            },
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&desc)).map_err(|e| {
            Error::DeviceLost(format!("{}: the driver gives no device: {e}", summary.name))
        })?;
        let trouble = Arc::new(Mutex::new(Trouble::default()));
        watch(&device, &trouble, &summary.name);
        let ledger = Arc::new(Ledger::new(options.vram_budget));
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::UNIFORM;
        let dummy = Buffer::new(&device, &ledger, "nothing", 256, usage)?;
        let info = adapter.get_info();
        let pipelines = folder.and_then(|folder| Pipelines::open(&device, &info, folder));
        let (kernels, submitted) = (Cache::default(), Mutex::default());
        let (submissions, dispatches, host_nanoseconds) = Default::default();
        let inner = Inner {
            device,
            queue,
            ledger,
            trouble,
            fault,
            dummy,
            submissions,
            dispatches,
            host_nanoseconds,
            submitted,
            turn: Mutex::default(),
            staging: Staging::default(),
            unsent: AtomicU64::default(),
            summary,
            kernels,
            pipelines,
        };
        Ok(Gpu { inner: Arc::new(inner) })
    }

    /// The device with what was measured on it, before clones or plans of it are made.
    pub fn tuned(mut self, tuning: Tuning) -> Gpu {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.summary.caps.tuning = tuning;
        }
        self
    }
    pub fn caps(&self) -> &Caps {
        &self.inner.summary.caps
    }
    /// Name, driver, backend of the adapter in use.
    pub fn adapter(&self) -> &AdapterSummary {
        &self.inner.summary
    }
    pub fn ledger(&self) -> &Ledger {
        &self.inner.ledger
    }
    /// The compiled kernel of a Spec, from the cache if it is there.
    pub fn kernel(&self, spec: &Spec) -> Result<Arc<Kernel>> {
        self.check()?;
        let cache = self.inner.pipelines.as_ref().map(Pipelines::cache);
        self.inner.kernels.get(&self.inner.device, cache, spec)
    }
    /// The file in which compiled kernels are kept, if they are.
    pub fn pipelines(&self) -> Option<&Path> {
        self.inner.pipelines.as_ref().map(Pipelines::file)
    }
    /// Number of kernels compiled so far and the seconds that took.
    pub fn compile_cost(&self) -> (usize, f64) {
        self.inner.kernels.cost()
    }
    /// Description and compile seconds of each kernel compiled so far, in alphabetical order.
    pub fn compiled(&self) -> Vec<(String, f64)> {
        self.inner.kernels.list()
    }
    /// A buffer that kernels read and write and the host can fill and read.
    pub fn buffer(&self, label: &str, bytes: u64) -> Result<Buffer> {
        self.check()?;
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC;
        Buffer::new(&self.inner.device, &self.inner.ledger, label, bytes, usage)
    }
    /// A buffer of parameters.
    pub fn uniform(&self, label: &str, bytes: u64) -> Result<Buffer> {
        self.check()?;
        let usage = wgpu::BufferUsages::UNIFORM
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC;
        Buffer::new(&self.inner.device, &self.inner.ledger, label, bytes, usage)
    }
    /// A storage buffer with this content.
    pub fn upload(&self, label: &str, data: &[u8]) -> Result<Buffer> {
        let buffer = self.buffer(label, data.len() as u64)?;
        self.write(&buffer, 0, data)?;
        Ok(buffer)
    }

    /// Gives the device up, as a driver does that loses it: from now on everything asked of this `Gpu` and
    /// its clones is `DeviceLost`.
    pub fn lose(&self, why: &str) {
        note(&self.inner.trouble, |trouble| trouble.lose(&self.adapter().name, why));
        self.destroy();
    }
    /// Destroys the device and leaves it to the driver to report that.
    pub fn destroy(&self) {
        self.inner.device.destroy();
        self.tidy();
    }

    /// A loss, if there was one at any time, else the first thing that went wrong since the last look.
    pub(super) fn check(&self) -> Result<()> {
        let mut trouble = self.inner.trouble.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(lost) = &trouble.lost {
            return Err(Error::DeviceLost(lost.clone()));
        }
        trouble.error.take().map_or(Ok(()), Err)
    }
}

impl Trouble {
    /// The first reason is the one that counts.
    fn lose(&mut self, adapter: &str, why: &str) {
        self.lost.get_or_insert_with(|| format!("{adapter}: the device was lost ({why})"));
    }
}

fn note(trouble: &Mutex<Trouble>, change: impl FnOnce(&mut Trouble)) {
    change(&mut trouble.lock().unwrap_or_else(|e| e.into_inner()));
}

/// Without a handler wgpu panics on an error, and after a lost device submits are silent no-ops.
fn watch(device: &wgpu::Device, trouble: &Arc<Mutex<Trouble>>, name: &str) {
    let shared = trouble.clone();
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        let error = match error {
            wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory(
                "the driver is out of GPU memory; take a smaller picture or context, or --weights int4"
                    .into(),
            ),
            other => Error::Runtime(format!("the GPU refused a command: {other}")),
        };
        note(&shared, |trouble| _ = trouble.error.get_or_insert(error));
    }));
    let (shared, name) = (trouble.clone(), name.to_string());
    device.set_device_lost_callback(move |reason, message| {
        let why = match (reason, message.is_empty()) {
            (wgpu::DeviceLostReason::Destroyed, true) => "it was destroyed",
            (_, true) => "the driver does not say why",
            (_, false) => &message,
        };
        note(&shared, |trouble| trouble.lose(&name, why));
    });
}

/// What to do where there is none.
pub fn no_adapter() -> Error {
    Error::NoAdapter(
        "no GPU adapter: install a Vulkan driver (on Debian and Ubuntu a software one is \
         `apt-get install mesa-vulkan-drivers libvulkan1`), or see what WGPU_BACKEND allows"
            .into(),
    )
}

fn choose(all: &[wgpu::Adapter], options: &GpuOptions) -> Result<usize> {
    if all.is_empty() {
        return Err(no_adapter());
    }
    let wanted = options.device.clone().or_else(|| std::env::var("WGPU_ADAPTER_NAME").ok());
    let Some(wanted) = wanted else { return Ok(0) };
    let names: Vec<String> = all.iter().map(|a| a.get_info().name).collect();
    let found = match wanted.parse::<usize>() {
        Ok(index) => (index < all.len()).then_some(index),
        Err(_) => names.iter().position(|n| n.to_lowercase().contains(&wanted.to_lowercase())),
    };
    found.ok_or_else(|| {
        let list: Vec<String> =
            names.iter().enumerate().map(|(i, n)| format!("{i} = {n}")).collect();
        Error::NoAdapter(format!("no adapter \"{wanted}\"; there are: {}", list.join(", ")))
    })
}
