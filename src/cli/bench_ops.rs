//! `inknib bench --ops`: every op on the shapes of real models, against what the device can do at most.

use serde_json::{Value, json};

use super::bench::Args;
use super::bench_files::{Files, show};
use super::common::Ui;
use super::json;
use crate::Result;
use crate::graph::PlanOptions;
use crate::probe::bench_ops::{Clock, OpsAsked, OpsBench, check_names};
use crate::probe::bench_report::sheets;
use crate::probe::ceilings::Ceilings;

/// Measures the ceilings on a device of their own, so that their buffers do not count among others'.
pub(super) fn ceilings(args: &Args, ui: &Ui) -> Result<Ceilings> {
    let spinner = ui.bar("ceilings", 0);
    spinner.say("copy, FMA, matrices, dot4, latencies");
    Ceilings::measure(&args.gpu.open(ui)?)
}

/// Ceilings in one line below a table.
pub(super) fn in_words(c: &Ceilings) -> String {
    let coop = c.coop_gflop_s.map_or(String::new(), |rate| format!(", matrices {rate:.1} GFLOP/s"));
    format!(
        "ceilings: copy {:.1} GB/s, FMA {:.1} GFLOP/s{coop}, dispatch {:.1} µs, submission {:.0} µs",
        c.copy_gb_s, c.fma_gflop_s, c.dispatch_us, c.submit_us
    )
}

/// Measures the ops that are asked for; tables when all are known.
pub(super) fn run(args: &Args, files: &Files, ui: &Ui) -> Result<()> {
    check_names(&args.op)?;
    let ceilings = ceilings(args, ui)?;
    let gpu = args.gpu.open(ui)?;
    let options = PlanOptions { kernels: args.model.kernels(&gpu), ..Default::default() };
    let bench = OpsBench { gpu: &gpu, ceilings, act: args.model.act(&gpu)?, options: &options };
    let asked = OpsAsked { ops: args.op.clone(), spec: None, quick: args.quick };
    let bar = ui.bar("bench", 1);
    let rows = bench.measure(&asked, &mut |case, done, total| {
        bar.total(total as u64);
        bar.at(done as u64);
        bar.say(format!("{} {}, {}", case.op, case.spec, case.shape));
    })?;
    drop(bar);
    let kernel = |(kernel, seconds): &(String, f64)| json!({ "kernel": kernel, "compile_seconds": json::round(*seconds, 4) });
    let kernels: Vec<Value> = gpu.compiled().iter().map(kernel).collect();
    let activations = bench.act.wgsl();
    let mut report = json!({
        "adapter": gpu.adapter().name,
        "driver": gpu.adapter().driver,
        "backend": gpu.adapter().backend,
        "kernels_from": format!("{:?}", args.model.kernels(&gpu)).to_lowercase(),
        "activations": activations,
        "ceilings": ceilings,
        "ops": rows,
        "models": [],
        "compile_seconds": json::round(gpu.compile_cost().1, 3),
        "kernels": kernels,
    });
    files.finish(&mut report, ui)?;
    if ui.json() {
        return ui.answer(&report);
    }
    let shown = ["Ceilings", "Ops"];
    for sheet in sheets(&report)?.iter().filter(|sheet| shown.contains(&sheet.title)) {
        show(sheet, ui)?;
    }
    let clock = match rows.first().map(|row| row.clock) {
        Some(Clock::Timestamps) => "the device's timestamps",
        _ => "the host's clock, submissions included",
    };
    let (count, seconds) = gpu.compile_cost();
    ui.line(&format!(
        "{} ({}): time by {clock}; activations in {activations}; {count} kernels compiled in {seconds:.1} s",
        gpu.adapter().name,
        gpu.adapter().driver
    ))?;
    files.show_comparison(&report, ui)
}
