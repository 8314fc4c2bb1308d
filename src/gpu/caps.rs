//! The capability record: everything that kernel variants are chosen by. Never a vendor's name.

use serde::{Deserialize, Serialize};

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
    /// Products of few rows are to round x to eight bits (`GpuOptions::int_dot`).
    pub int_products: bool,
    /// What the driver compiles can be kept on disk.
    pub pipeline_cache: bool,
    /// Edge of the square f16 matrices that a subgroup multiplies and adds to one in f32: 16 or 8; 0 without.
    pub coop_edge: u32,
    /// False where a self-test found that only the reference kernels compute right.
    pub fast_kernels: bool,
    pub max_workgroup_invocations: u32,
    pub max_workgroup_bytes: u32,
    pub max_workgroups_per_dimension: u32,
    pub max_storage_buffers: u32,
    /// Largest range of one storage binding, bytes.
    pub max_binding_bytes: u64,
    pub max_buffer_bytes: u64,
    pub storage_align: u32,
    pub uniform_align: u32,
    pub tuning: Tuning,
}

/// What no property of a device says: which of the kernels that it has are fastest on it. The defaults are for a large GPU;
/// `inknib tune` measures (`probe/tune.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tuning {
    /// Whether products and convolutions use cooperative matrices, where the adapter has them.
    pub matrices: bool,
    /// Whether attention does.
    pub attention_matrices: bool,
    /// Invocations of a workgroup that attends for one token; 0 for the rule, 8 on a software adapter and 128 on others.
    pub attention_lanes: u32,
    /// Large tiles of matrices from which they are taken instead of small ones, which spread over more of a GPU.
    pub wide_tiles: u32,
    /// Lanes that a product of few rows should have before each takes more than one row of the weight: with sixteen bytes under
    /// way each, half a megabyte, what a fast GPU has between a request and its answer.
    pub busy_lanes: u32,
    /// Workgroups that a product should have before each goes through all of k.
    pub split_tiles: u32,
    /// Whether a software adapter whose subgroups have eight lanes hands values around among them.
    pub eight_lanes: bool,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            matrices: true,
            attention_matrices: true,
            attention_lanes: 0,
            wide_tiles: 128,
            busy_lanes: 32_768,
            split_tiles: 128,
            eight_lanes: true,
        }
    }
}

/// Optional features that can be switched off, to test what remains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without {
    pub f16: bool,
    pub subgroups: bool,
    pub timestamps: bool,
    /// Cooperative matrices.
    pub coop: bool,
    /// Nothing but WebGPU's default limits.
    pub limits: bool,
    /// All but the reference kernels: what is left where a driver compiles nothing else right.
    pub fast_kernels: bool,
    /// Compiled kernels that an earlier run left on disk.
    pub pipeline_cache: bool,
}

impl Without {
    /// Reads `f16,subgroups,timestamps,coop,limits,pipeline-cache,fast-kernels`; unknown words are an error. `all` is what hardware may lack,
    /// so not the kernels.
    pub fn parse(list: &str) -> crate::Result<Without> {
        let mut without = Without::default();
        for word in list.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match word {
                "f16" => without.f16 = true,
                "subgroups" => without.subgroups = true,
                "timestamps" => without.timestamps = true,
                "coop" => without.coop = true,
                "limits" => without.limits = true,
                "pipeline-cache" => without.pipeline_cache = true,
                "fast-kernels" => without.fast_kernels = true,
                "all" => {
                    let fast_kernels = without.fast_kernels;
                    let [f16, subgroups, timestamps, coop, limits, pipeline_cache] = [true; 6];
                    without = Without {
                        f16,
                        subgroups,
                        timestamps,
                        coop,
                        limits,
                        fast_kernels,
                        pipeline_cache,
                    }
                }
                other => {
                    return Err(crate::Error::Usage(format!(
                        "unknown feature \"{other}\"; one of f16, subgroups, timestamps, coop, limits, pipeline-cache, fast-kernels, all"
                    )));
                }
            }
        }
        Ok(without)
    }
    /// What either leaves out.
    pub fn and(self, other: Without) -> Without {
        Without {
            f16: self.f16 || other.f16,
            subgroups: self.subgroups || other.subgroups,
            timestamps: self.timestamps || other.timestamps,
            coop: self.coop || other.coop,
            limits: self.limits || other.limits,
            fast_kernels: self.fast_kernels || other.fast_kernels,
            pipeline_cache: self.pipeline_cache || other.pipeline_cache,
        }
    }
    /// The words that [`Without::parse`] reads.
    pub fn words(self) -> Vec<&'static str> {
        let all = [
            ("f16", self.f16),
            ("subgroups", self.subgroups),
            ("timestamps", self.timestamps),
            ("coop", self.coop),
            ("limits", self.limits),
            ("pipeline-cache", self.pipeline_cache),
            ("fast-kernels", self.fast_kernels),
        ];
        all.into_iter().filter(|(_, out)| *out).map(|(word, _)| word).collect()
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
            int_products: false,
            pipeline_cache: !without.pipeline_cache
                && features.contains(wgpu::Features::PIPELINE_CACHE),
            coop_edge: if without.coop || without.f16 || without.subgroups {
                0
            } else {
                coop_edge(adapter, &limits)
            },
            fast_kernels: !without.fast_kernels,
            max_workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            storage_align: limits.min_storage_buffer_offset_alignment,
            uniform_align: limits.min_uniform_buffer_offset_alignment,
            tuning: Tuning::default(),
        }
    }
}

/// Workgroup memory of the largest tile of shaders/parts/coop.wgsl.
pub const COOP_BYTES: u32 = 25_088;

/// The largest square f16 matrix that a subgroup of a fixed size multiplies into f32: kernels give every subgroup its own part
/// of a tile, so its size must be known. 0 where a tile of four subgroups does not fit a workgroup.
fn coop_edge(adapter: &wgpu::Adapter, limits: &wgpu::Limits) -> u32 {
    use wgpu::CooperativeScalarType::{F16, F32};
    let info = adapter.get_info();
    let offered = adapter.features().contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
    let known = info.subgroup_min_size == info.subgroup_max_size;
    let room = limits.max_compute_workgroup_storage_size >= COOP_BYTES
        && limits.max_compute_invocations_per_workgroup >= 4 * info.subgroup_max_size;
    if !offered || !known || !room {
        return 0;
    }
    let all = adapter.cooperative_matrix_properties();
    let fits = |edge: &u32| {
        all.iter().any(|p| {
            [p.m_size, p.n_size, p.k_size] == [*edge; 3] && p.ab_type == F16 && p.cr_type == F32
        })
    };
    [16, 8].into_iter().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_written() {
        let two = Without::parse("subgroups, f16").unwrap();
        assert_eq!(two.words(), ["f16", "subgroups"]);
        assert_eq!(Without::parse(&two.words().join(",")).unwrap(), two);
        let kernels = Without::parse("fast-kernels").unwrap();
        assert_eq!(two.and(kernels).words(), ["f16", "subgroups", "fast-kernels"]);
        let all = Without::parse("all").unwrap();
        assert!(all.limits && all.timestamps && !all.fast_kernels);
        assert_eq!(Without::default().words(), [""; 0]);
        assert_eq!(Without::parse("colour").unwrap_err().exit_code(), 2);
    }
}
