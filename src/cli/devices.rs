//! `inknib devices`

use serde_json::{Value, json};

use super::avoid::known;
use super::common::{Ui, table};
use crate::Result;
use crate::gpu::{AdapterSummary, GpuOptions, adapters, chosen, mib, no_adapter};

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
    // $WGPU_ADAPTER_NAME may name one that is not there: then none is taken.
    let taken = chosen(&GpuOptions::default()).ok().map(|adapter| adapter.index);
    if ui.json() {
        let one = |adapter: &AdapterSummary| {
            let mut value = describe(adapter);
            value["taken"] = json!(Some(adapter.index) == taken);
            value["avoids"] = json!(known(adapter).map(|entry| entry.avoid).unwrap_or_default());
            value
        };
        ui.answer(&all.iter().map(one).collect::<Vec<_>>())?;
    }
    if all.is_empty() {
        return Err(no_adapter());
    }
    ui.line(&adapter_table(&all, taken).to_string())?;
    ui.line(&limit_table(&all).to_string())?;
    if let Some(taken) = taken {
        ui.line(&format!(
            "* is taken without --device; `--device {taken}` or a part of its name says so."
        ))?;
    }
    for adapter in &all {
        if let Some(entry) = known(adapter) {
            let what = if entry.usable { entry.avoid.join(" and ") } else { "everything".into() };
            ui.line(&format!(
                "{}: {what} not used, because `inknib doctor` found it wrong ({}).",
                adapter.index, entry.why
            ))?;
        }
    }
    Ok(())
}

fn adapter_table(all: &[AdapterSummary], taken: Option<usize>) -> comfy_table::Table {
    let mut shown = table(&[
        "",
        "name",
        "backend",
        "type",
        "driver",
        "version",
        "f16",
        "subgroups",
        "timestamps",
    ]);
    let yes_no = |b: bool| if b { "yes" } else { "no" }.to_string();
    for a in all {
        let caps = &a.caps;
        let lanes = match caps.subgroup_min == caps.subgroup_max {
            true => format!("{} lanes", caps.subgroup_min),
            false => format!("{} to {} lanes", caps.subgroup_min, caps.subgroup_max),
        };
        shown.add_row([
            format!("{}{}", a.index, if Some(a.index) == taken { " *" } else { "" }),
            a.name.clone(),
            a.backend.clone(),
            a.device_type.clone(),
            a.driver_name.clone(),
            a.driver_version.clone(),
            yes_no(caps.f16),
            if caps.subgroups { lanes } else { yes_no(false) },
            yes_no(caps.timestamps),
        ]);
    }
    shown
}

fn limit_table(all: &[AdapterSummary]) -> comfy_table::Table {
    let mut shown = table(&[
        "",
        "buffer",
        "binding",
        "invocations",
        "shared memory",
        "workgroups",
        "storage buffers",
    ]);
    for a in all {
        let caps = &a.caps;
        shown.add_row([
            a.index.to_string(),
            mib(caps.max_buffer_bytes),
            mib(caps.max_binding_bytes),
            caps.max_workgroup_invocations.to_string(),
            format!("{} KiB", caps.max_workgroup_bytes >> 10),
            caps.max_workgroups_per_dimension.to_string(),
            caps.max_storage_buffers.to_string(),
        ]);
    }
    shown
}

/// One adapter as `devices --json` and `doctor --json` print it.
pub fn describe(adapter: &AdapterSummary) -> Value {
    let caps = &adapter.caps;
    json!({
        "index": adapter.index,
        "name": adapter.name,
        "backend": adapter.backend,
        "driver": adapter.driver,
        "driver_name": adapter.driver_name,
        "driver_version": adapter.driver_version,
        "vendor_id": adapter.vendor,
        "device_id": adapter.device,
        "device_type": adapter.device_type,
        "software": caps.software,
        "features": {
            "f16": caps.f16,
            "subgroups": caps.subgroups,
            "timestamps": caps.timestamps,
            "int_dot": caps.int_dot,
            "pipeline_cache": caps.pipeline_cache,
            "coop_matrix": caps.coop_edge > 0,
            "coop_edge": caps.coop_edge,
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
            "storage_align": caps.storage_align,
            "uniform_align": caps.uniform_align,
        },
    })
}
