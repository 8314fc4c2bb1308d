//! `inknib devices`

use serde_json::{Value, json};

use super::common::{Ui, table};
use crate::gpu::{AdapterSummary, adapters, mib};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  inknib devices
  inknib devices --json | jq '.[0].features'
  inknib doctor --device 1          use the second line of the table";

/// Flags of `inknib devices`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// Lists the adapters; none at all is exit code 3.
pub fn run(_: &Args, ui: &Ui) -> Result<()> {
    let all = adapters();
    if ui.json() {
        ui.answer(&all.iter().map(describe).collect::<Vec<_>>())?;
    }
    if all.is_empty() {
        return Err(Error::NoAdapter(
            "no GPU adapter: install a Vulkan driver (on Debian and Ubuntu a software one is \
             `apt-get install mesa-vulkan-drivers libvulkan1`), or see what WGPU_BACKEND allows"
                .into(),
        ));
    }
    if ui.json() {
        return Ok(());
    }
    let mut shown = table(&["", "name", "backend", "type", "driver", "f16", "subgroups", "buffer"]);
    for a in &all {
        let caps = &a.caps;
        let subgroups = match caps.subgroups {
            true => format!("{}..{}", caps.subgroup_min, caps.subgroup_max),
            false => "no".to_string(),
        };
        shown.add_row([
            a.index.to_string(),
            a.name.clone(),
            a.backend.clone(),
            a.device_type.clone(),
            a.driver.clone(),
            if caps.f16 { "yes" } else { "no" }.to_string(),
            subgroups,
            mib(caps.max_buffer_bytes),
        ]);
    }
    ui.line(&shown.to_string())
}

/// One adapter as `devices --json` and `doctor --json` print it.
pub fn describe(adapter: &AdapterSummary) -> Value {
    let caps = &adapter.caps;
    json!({
        "index": adapter.index,
        "name": adapter.name,
        "backend": adapter.backend,
        "driver": adapter.driver,
        "device_type": adapter.device_type,
        "software": caps.software,
        "features": {
            "f16": caps.f16,
            "subgroups": caps.subgroups,
            "timestamps": caps.timestamps,
            "int_dot": caps.int_dot,
            "coop_matrix": caps.coop_matrix,
        },
        "limits": {
            "max_workgroup_invocations": caps.max_workgroup_invocations,
            "max_workgroup_bytes": caps.max_workgroup_bytes,
            "max_workgroups_per_dimension": caps.max_workgroups_per_dimension,
            "max_storage_buffers": caps.max_storage_buffers,
            "max_binding_bytes": caps.max_binding_bytes,
            "max_buffer_bytes": caps.max_buffer_bytes,
            "subgroup_min": caps.subgroup_min,
            "subgroup_max": caps.subgroup_max,
        },
    })
}
