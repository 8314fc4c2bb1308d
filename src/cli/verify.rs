//! `inknib verify DIR…`: nets against golden tensors of diffusers and transformers.

use std::path::PathBuf;

use super::common::{ActivationChoice, GpuArgs, KernelChoice, Ui, table};
use super::recover::on_device;
use crate::gpu::Gpu;
use crate::graph::Kernels;
use crate::probe::verify::{VerifyReport, verify_as};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  inknib verify tests/golden/unet_sd15
  inknib verify tests/golden/*/ --weights fp16 --kernels reference
  inknib verify my-golden --weights int4 --all --json

A folder holds config.json, weights, and io.safetensors or golden.safetensors with the inputs and outputs
of another implementation; tools/golden_nets.py writes such folders. Exit code 7: beyond the tolerance.";

/// Flags of `inknib verify`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folders of golden tensors
    #[arg(value_name = "DIR", required = true)]
    pub folders: Vec<PathBuf>,
    /// fp32, fp16, int8, int4, a format such as int4-g32-uniform, or a recipe file (*.toml)
    #[arg(long, value_name = "FORMAT", default_value = "fp32")]
    pub weights: String,
    /// Which shaders compute
    #[arg(long, value_enum, value_name = "WHICH", default_value_t)]
    pub kernels: KernelChoice,
    /// How values between layers are stored
    #[arg(long, value_enum, value_name = "TYPE", default_value = "f32")]
    pub activations: ActivationChoice,
    /// Print every tapped value, not only outputs and what is beyond the tolerance
    #[arg(short, long)]
    pub all: bool,
    #[command(flatten)]
    pub gpu: GpuArgs,
}

/// Verifies each folder; a table and a line each, or JSON: an object for one folder, else an array.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    let mut reports = Vec::new();
    on_device(&args.gpu, ui, |gpu| verify_rest(args, gpu, &mut reports, ui))?;
    match &reports[..] {
        _ if !ui.json() => {}
        [one] => ui.answer(one)?,
        all => ui.answer(&all)?,
    }
    let failed: Vec<&str> = reports.iter().filter(|r| !r.passed).map(|r| r.case.as_str()).collect();
    match failed[..] {
        [] => Ok(()),
        _ => Err(Error::OutOfTolerance(format!(
            "{} of {} beyond the tolerance or not supported: {}; --all shows where a net leaves the \
             golden values first",
            failed.len(),
            reports.len(),
            failed.join(", ")
        ))),
    }
}

/// Verifies the folders of which there is no report yet.
fn verify_rest(args: &Args, gpu: &Gpu, reports: &mut Vec<VerifyReport>, ui: &Ui) -> Result<()> {
    let act = args.activations.resolve(gpu)?;
    let kernels = Kernels::from(args.kernels);
    let bar = ui.bar("verify", args.folders.len() as u64);
    for (done, folder) in args.folders.iter().enumerate().skip(reports.len()) {
        bar.say(folder.display().to_string());
        let report = verify_as(folder, &args.weights, kernels, act, gpu)?;
        bar.at(done as u64 + 1);
        if !ui.json() {
            bar.hide_while(|| show(args, &report, ui))?;
        }
        reports.push(report);
    }
    Ok(())
}

/// What decides: the largest error of a value for logits, the relative error else.
fn allowed(report: &VerifyReport) -> String {
    match report.outputs.first().and_then(|c| c.max_abs_limit) {
        Some(limit) => format!("{limit:.1e} (max abs)"),
        None => format!("{:.0e} (relative L2)", report.limit),
    }
}

fn show(args: &Args, report: &VerifyReport, ui: &Ui) -> Result<()> {
    let verdict = if report.passed { "passed" } else { "FAILED" };
    ui.line(&format!(
        "{} ({}, {}): {verdict}, {} values, at most {} allowed",
        report.case,
        report.family,
        report.weights,
        report.outputs.len(),
        allowed(report)
    ))?;
    for line in report.unsupported.iter().chain(&report.note) {
        ui.line(&format!("  {line}"))?;
    }
    let shown: Vec<_> = report
        .outputs
        .iter()
        .filter(|c| args.all || !c.name.starts_with("tap.") || !c.passes(report.limit))
        .collect();
    if !shown.is_empty() {
        let mut rows = table(&["value", "relative L2", "max abs", ""]);
        for c in shown {
            let mark = if c.passes(report.limit) { "" } else { "beyond" };
            rows.add_row([
                c.name.clone(),
                format!("{:.2e}", c.rel_l2),
                format!("{:.2e}", c.max_abs),
                mark.to_string(),
            ]);
        }
        ui.line(&rows.to_string())?;
    }
    if !report.not_compared.is_empty() {
        ui.line(&format!("  not compared: {}", report.not_compared.join(", ")))?;
    }
    ui.line("")
}
