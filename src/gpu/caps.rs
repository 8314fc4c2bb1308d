//! The capability record: everything that kernel variants are chosen by. Never a vendor's name.

use serde::Serialize;

/// What the adapter offers and what its limits are, after what the user switched off.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Caps {
    /// A CPU pretends to be a GPU: no shared memory tiles, small workgroups.
    pub software: bool,
    pub f16: bool,
    pub subgroups: bool,
    pub subgroup_min: u32,
    pub subgroup_max: u32,
    pub timestamps: bool,
    pub int_dot: bool,
    pub coop_matrix: bool,
    pub max_workgroup_invocations: u32,
    pub max_workgroup_bytes: u32,
    pub max_workgroups_per_dimension: u32,
    pub max_storage_buffers: u32,
    /// Largest range of one storage binding, bytes.
    pub max_binding_bytes: u64,
    pub max_buffer_bytes: u64,
    pub storage_align: u32,
    pub uniform_align: u32,
}

/// Optional features that can be switched off, to test what remains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without {
    pub f16: bool,
    pub subgroups: bool,
    pub timestamps: bool,
    /// Nothing but WebGPU's default limits.
    pub limits: bool,
}

impl Without {
    /// Reads `f16,subgroups,timestamps,limits`; unknown words are an error.
    pub fn parse(list: &str) -> crate::Result<Without> {
        let mut without = Without::default();
        for word in list.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match word {
                "f16" => without.f16 = true,
                "subgroups" => without.subgroups = true,
                "timestamps" => without.timestamps = true,
                "limits" => without.limits = true,
                "all" => {
                    without = Without { f16: true, subgroups: true, timestamps: true, limits: true }
                }
                other => {
                    return Err(crate::Error::Usage(format!(
                        "unknown feature \"{other}\"; one of f16, subgroups, timestamps, limits, all"
                    )));
                }
            }
        }
        Ok(without)
    }
}

impl Caps {
    pub(super) fn read(adapter: &wgpu::Adapter, without: Without) -> Caps {
        let (features, info) = (adapter.features(), adapter.get_info());
        let limits = if without.limits { wgpu::Limits::default() } else { adapter.limits() };
        Caps {
            software: info.device_type == wgpu::DeviceType::Cpu,
            f16: !without.f16 && features.contains(wgpu::Features::SHADER_F16),
            subgroups: !without.subgroups && features.contains(wgpu::Features::SUBGROUP),
            subgroup_min: info.subgroup_min_size,
            subgroup_max: info.subgroup_max_size,
            timestamps: !without.timestamps
                && features.contains(
                    wgpu::Features::TIMESTAMP_QUERY
                        | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS,
                ),
            int_dot: true,
            coop_matrix: features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
            max_workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            storage_align: limits.min_storage_buffer_offset_alignment,
            uniform_align: limits.min_uniform_buffer_offset_alignment,
        }
    }
}
