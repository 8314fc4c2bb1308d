//! A compiled Source + Spec, and the cache of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::link::{Linked, Target, link};
use super::spec::Spec;
use crate::{Error, Result};

/// A compute pipeline. Entry point `main`; group 0 is the op's, group 1 the weight's if it has one.
#[derive(Debug)]
pub struct Kernel {
    pub spec: Spec,
    pub(super) pipeline: wgpu::ComputePipeline,
    /// Seconds the driver and naga took.
    pub compile_seconds: f64,
}

/// Kernels by their Spec.
#[derive(Default)]
pub(super) struct Cache {
    kernels: Mutex<HashMap<Spec, Arc<Kernel>>>,
}

impl Cache {
    pub(super) fn get(
        &self,
        device: &wgpu::Device,
        pipelines: Option<&wgpu::PipelineCache>,
        spec: &Spec,
    ) -> Result<Arc<Kernel>> {
        let mut kernels = self.kernels.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(kernel) = kernels.get(spec) {
            return Ok(kernel.clone());
        }
        let kernel = Arc::new(compile(device, pipelines, spec)?);
        kernels.insert(spec.clone(), kernel.clone());
        Ok(kernel)
    }
    /// Description and compile seconds of each kernel.
    pub(super) fn list(&self) -> Vec<(String, f64)> {
        let kernels = self.kernels.lock().unwrap_or_else(|e| e.into_inner());
        let mut list: Vec<(String, f64)> =
            kernels.values().map(|k| (k.spec.describe(), k.compile_seconds)).collect();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    }
    /// Count and total compile seconds.
    pub(super) fn cost(&self) -> (usize, f64) {
        let kernels = self.kernels.lock().unwrap_or_else(|e| e.into_inner());
        (kernels.len(), kernels.values().map(|k| k.compile_seconds).sum())
    }
}

fn compile(
    device: &wgpu::Device,
    pipelines: Option<&wgpu::PipelineCache>,
    spec: &Spec,
) -> Result<Kernel> {
    let start = Instant::now();
    let linked = link(spec, Target::Native);
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let desc = wgpu::ShaderModuleDescriptor {
        label: Some(spec.source.name),
        source: wgpu::ShaderSource::Wgsl(linked.text.as_str().into()),
    };
    // Every loop of ours ends: its trips are counted when a plan is made (`Dispatch::trips`). wgpu would add a counter of 64
    // bits to each. Bounds stay checked, as indices may come from files.
    let checks = wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..Default::default() };
    // SAFETY: no loop without an end, see above.
    let module = unsafe { device.create_shader_module_trusted(desc, checks) };
    if let Some(error) = pollster::block_on(scope.pop()) {
        return Err(explain(spec, &linked, &module, &error));
    }
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(spec.source.name),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            // Kernels write what they read of it.
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        },
        cache: pipelines,
    });
    if let Some(error) = pollster::block_on(scope.pop()) {
        return Err(explain(spec, &linked, &module, &error));
    }
    let compile_seconds = start.elapsed().as_secs_f64();
    tracing::debug!(kernel = spec.describe(), compile_seconds, "compiled");
    Ok(Kernel { spec: spec.clone(), pipeline, compile_seconds })
}

/// The driver's message with lines of our own files in place of lines of the joined text.
fn explain(
    spec: &Spec,
    linked: &Linked,
    module: &wgpu::ShaderModule,
    error: &wgpu::Error,
) -> Error {
    let info = pollster::block_on(module.get_compilation_info());
    let places: Vec<String> = info
        .messages
        .iter()
        .filter_map(|m| m.location.map(|l| (m, l)))
        .map(|(m, l)| {
            let (file, line) = linked.locate(l.line_number as usize);
            format!("shaders/{file}:{line}:{}: {}", l.line_position, m.message)
        })
        .collect();
    let places = if places.is_empty() { error.to_string() } else { places.join("\n") };
    Error::Runtime(format!("kernel {} does not compile:\n{places}", spec.describe()))
}
