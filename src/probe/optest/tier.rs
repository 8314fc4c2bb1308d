//! Feature tiers: one adapter opened with everything, and again as lesser adapters would be.

use serde::{Deserialize, Serialize};

use crate::gpu::{Elem, Gpu, GpuOptions, Without};
use crate::graph::Kernels;
use crate::{Error, Result};

/// What of the adapter's optional features is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// No optional feature, and nothing above WebGPU's default limits.
    None,
    /// Subgroups alone.
    Subgroups,
    /// f16 alone.
    F16,
    /// All that the adapter has.
    All,
}

impl Tier {
    pub const ALL: [Tier; 4] = [Tier::None, Tier::Subgroups, Tier::F16, Tier::All];

    /// The word that `--tier` takes.
    pub fn name(self) -> &'static str {
        match self {
            Tier::None => "none",
            Tier::Subgroups => "subgroups",
            Tier::F16 => "f16",
            Tier::All => "all",
        }
    }

    /// Reads `none,f16`; unknown words are an error that lists the known ones.
    pub fn parse(list: &str) -> Result<Vec<Tier>> {
        let words = list.split(',').map(str::trim).filter(|word| !word.is_empty());
        words
            .map(|word| {
                Tier::ALL.into_iter().find(|tier| tier.name() == word).ok_or_else(|| {
                    let known = Tier::ALL.map(Tier::name).join(", ");
                    Error::Usage(format!("unknown tier \"{word}\"; one of {known}"))
                })
            })
            .collect()
    }

    pub(super) fn without(self) -> Without {
        match self {
            Tier::None => Without {
                f16: true,
                subgroups: true,
                timestamps: true,
                coop: true,
                limits: true,
                ..Without::default()
            },
            Tier::Subgroups => Without { f16: true, ..Without::default() },
            Tier::F16 => Without { subgroups: true, ..Without::default() },
            Tier::All => Without::default(),
        }
    }
}

/// The adapter opened for a tier.
pub struct TierDevice {
    pub tier: Tier,
    pub gpu: Gpu,
    /// Types of activations that are tested.
    pub acts: Vec<Elem>,
    /// Kinds of kernels that are tested.
    pub kernels: Vec<Kernels>,
}

impl TierDevice {
    /// All that the device can run; beyond what is its own, where a CPU plays the GPU, also what a GPU would get
    /// (`hardware`).
    pub fn new(tier: Tier, gpu: Gpu, hardware: bool) -> TierDevice {
        let acts = if gpu.caps().f16 { vec![Elem::F32, Elem::F16] } else { vec![Elem::F32] };
        let mut kernels = vec![Kernels::Reference, Kernels::Fast];
        if gpu.caps().software && hardware {
            kernels.push(Kernels::Hardware);
        }
        TierDevice { tier, gpu, acts, kernels }
    }
}

/// Opens the adapter once for each tier that it has; those that it lacks come as a reason.
///
/// # Errors
/// As opening does: no such adapter, a driver that gives no device.
pub fn open(
    options: &GpuOptions,
    tiers: &[Tier],
    hardware: bool,
) -> Result<(Vec<TierDevice>, Vec<(Tier, String)>)> {
    let (mut devices, mut missing) = (Vec::new(), Vec::new());
    for &tier in tiers {
        let without = tier.without().and(options.without);
        let gpu = match Gpu::open(&GpuOptions { without, ..options.clone() }) {
            Ok(gpu) => gpu,
            // An adapter whose own limits are below WebGPU's defaults has no such tier.
            Err(Error::DeviceLost(why)) if tier == Tier::None => {
                missing.push((tier, why));
                continue;
            }
            Err(error) => return Err(error),
        };
        let caps = gpu.caps();
        let lacks = match tier {
            Tier::Subgroups if !caps.subgroups => Some("subgroups"),
            Tier::F16 if !caps.f16 => Some("f16"),
            _ => None,
        };
        match lacks {
            Some(feature) => missing.push((tier, format!("the adapter has no {feature}"))),
            None => devices.push(TierDevice::new(tier, gpu, hardware)),
        }
    }
    Ok((devices, missing))
}
