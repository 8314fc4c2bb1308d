//! `inknib doctor`: does this GPU compute right, and how will it be used?

use std::path::PathBuf;

use serde_json::{Value, json};

use super::common::{ActivationChoice, GpuArgs, Ui, table};
use super::devices::describe;
use super::json::round;
use crate::gpu::{Caps, Elem, Gpu, mib};
use crate::graph::MAX_TRIPS;
use crate::probe::selftest::{Case, LONG_LOOP, SelfTest, selftest};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  inknib doctor
  inknib doctor --device 1 --activations f16
  inknib doctor --without f16,subgroups        what a lesser GPU would do
  inknib doctor --json | jq .verdict

Exit code 3: no adapter. 7: a kernel computes wrong numbers on this driver.";

/// Flags of `inknib doctor`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub gpu: GpuArgs,
    /// How values between layers are stored
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    pub activations: ActivationChoice,
    /// Print every case of the self-test, not only the families
    #[arg(short, long)]
    pub all: bool,
}

/// Prints what was found and a verdict with the next step.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    let gpu = args.gpu.open(ui)?;
    let act = args.activations.resolve(&gpu)?;
    if !ui.json() {
        about_the_adapter(&gpu, act, ui)?;
    }
    let bar = ui.bar("self-test", 0);
    let test = selftest(&gpu, act, |case| bar.say(format!("{} {}", case.op, case.what)))?;
    drop(bar);
    let verdict = verdict(&gpu, &test);
    if ui.json() {
        ui.answer(&report(&gpu, act, &test, &verdict))?;
    } else {
        about_the_test(args, &test, ui)?;
        ui.line(&verdict)?;
    }
    match test.passed() {
        true => Ok(()),
        false => {
            Err(Error::OutOfTolerance(format!("{}: {}", gpu.adapter().name, first_failure(&test))))
        }
    }
}

/// The variants that plans will choose here, as `name: choice`.
fn choices(caps: &Caps, act: Elem) -> Vec<(&'static str, String)> {
    let yes_no = |b: bool, yes: &str, no: &str| if b { yes } else { no }.to_string();
    vec![
        ("activations", act.wgsl().to_string()),
        ("accumulation", "f32".to_string()),
        (
            "kernels",
            yes_no(
                caps.software,
                "register tiles without shared memory (a CPU plays the GPU)",
                "tiles with lanes that work together",
            ),
        ),
        ("timing", yes_no(caps.timestamps, "timestamps on the device", "the host's clock only")),
    ]
}

fn about_the_adapter(gpu: &Gpu, act: Elem, ui: &Ui) -> Result<()> {
    let (adapter, caps) = (gpu.adapter(), gpu.caps());
    let mut shown = table(&["adapter", &adapter.name]);
    let mut row = |name: &str, value: String| {
        shown.add_row([name.to_string(), value]);
    };
    row("backend", format!("{}, {}", adapter.backend, adapter.device_type));
    row("driver", adapter.driver.clone());
    let features = [
        ("f16", caps.f16),
        ("subgroups", caps.subgroups),
        ("timestamps", caps.timestamps),
        ("cooperative matrix", caps.coop_matrix),
    ];
    let list = |wanted: bool| -> String {
        let names: Vec<&str> =
            features.iter().filter(|(_, has)| *has == wanted).map(|(name, _)| *name).collect();
        if names.is_empty() { "none".to_string() } else { names.join(", ") }
    };
    row("features", list(true));
    row("missing", list(false));
    row(
        "limits",
        format!(
            "buffer {}, binding {}, workgroup {} invocations and {} KiB of shared memory, {} \
             storage buffers",
            mib(caps.max_buffer_bytes),
            mib(caps.max_binding_bytes),
            caps.max_workgroup_invocations,
            caps.max_workgroup_bytes >> 10,
            caps.max_storage_buffers
        ),
    );
    for (name, choice) in choices(caps, act) {
        row(name, choice);
    }
    for (name, state) in files() {
        row(name, state);
    }
    ui.line(&shown.to_string())
}

/// Folders that the program uses, and whether it can.
fn files() -> Vec<(&'static str, String)> {
    let temporary = std::env::temp_dir();
    let probe = temporary.join(format!("inknib-doctor.{}", std::process::id()));
    let writable = std::fs::write(&probe, b"x").and_then(|()| std::fs::remove_file(&probe));
    let temporary = match writable {
        Ok(()) => format!("{} (writable)", temporary.display()),
        Err(error) => {
            format!("{}: {error}; set TMPDIR to a folder that can be written", temporary.display())
        }
    };
    let models = std::env::var_os("INKNIB_MODELS").map(PathBuf::from);
    let models = match models {
        None => "models/ ($INKNIB_MODELS is not set)".to_string(),
        Some(path) if path.is_dir() => format!("{} ($INKNIB_MODELS)", path.display()),
        Some(path) => format!("{}: $INKNIB_MODELS names no folder", path.display()),
    };
    vec![("temporary files", temporary), ("models", models)]
}

fn mark(passed: bool) -> String {
    if passed { "right" } else { "WRONG" }.to_string()
}

fn about_the_test(args: &Args, test: &SelfTest, ui: &Ui) -> Result<()> {
    ui.line("")?;
    let mut shown = table(&["op", "case", "kernels", "NMSE", "allowed", ""]);
    let row = |op: &str, what: &str, kernels: &str, nmse: f64, case: &Case, passed: bool| {
        [
            op.to_string(),
            what.to_string(),
            kernels.to_string(),
            format!("{nmse:.1e}"),
            format!("{:.0e}", case.tolerance),
            mark(passed),
        ]
    };
    for group in test.cases.chunk_by(|a, b| a.op == b.op) {
        // The worst of a family stands for it; NaN is the worst.
        let worst = group.iter().max_by(|a, b| a.nmse.total_cmp(&b.nmse));
        let Some(worst) = worst else { continue };
        if args.all {
            for case in group {
                let c = case;
                shown.add_row(row(c.op, &c.what, c.kernels, c.nmse, c, c.passed));
            }
        } else {
            let what = format!("{} cases", group.len());
            let passed = group.iter().all(|c| c.passed);
            shown.add_row(row(worst.op, &what, "worst of both", worst.nmse, worst, passed));
        }
    }
    ui.line(&shown.to_string())?;
    for case in test.failures() {
        let why = case.error.clone().unwrap_or_else(|| format!("NMSE {:.1e}", case.nmse));
        ui.line(&format!("WRONG: {} ({}, {}): {why}", case.op, case.what, case.kernels))?;
    }
    let canaries = &test.canaries;
    let limit = match canaries.loop_iterations {
        LONG_LOOP => format!("loops of {LONG_LOOP} iterations run to their end"),
        count => format!(
            "the driver stops loops of {LONG_LOOP} iterations after {count} without an error; plans \
             run at most {MAX_TRIPS}"
        ),
    };
    ui.line(&format!("loops: {}; {limit}", mark(canaries.loops_right)))?;
    ui.line(&format!("infinite and NaN values are seen: {}", mark(canaries.non_finite_right)))?;
    ui.line(&format!(
        "{} cases in {:.1} s, of which {:.1} s compiling {} kernels\n",
        test.cases.len(),
        test.seconds,
        test.compile_seconds,
        test.kernels_compiled
    ))
}

fn first_failure(test: &SelfTest) -> String {
    let count = test.failures().count();
    match test.failures().next() {
        Some(case) => format!(
            "{count} of {} self-test cases are wrong, the first {} ({}, {} kernels); update the \
             driver, or take another --device",
            test.cases.len(),
            case.op,
            case.what,
            case.kernels
        ),
        None if !test.canaries.loops_right => {
            format!(
                "loops of {MAX_TRIPS} iterations do not run to their end; take another --device"
            )
        }
        None => "infinite and NaN values are not seen; take another --device".to_string(),
    }
}

/// One line: can it be used, and what to do next.
fn verdict(gpu: &Gpu, test: &SelfTest) -> String {
    if !test.passed() {
        return format!("Not usable: {}", first_failure(test));
    }
    let next = "`inknib generate --help` and `inknib chat --help` say how to go on";
    match gpu.caps().software {
        true => format!(
            "Computes right, in software and so slowly; a GPU's own driver is faster. {next}."
        ),
        false => format!("Computes right. {next}."),
    }
}

fn report(gpu: &Gpu, act: Elem, test: &SelfTest, verdict: &str) -> Value {
    let choices: serde_json::Map<String, Value> =
        choices(gpu.caps(), act).into_iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
    let files: serde_json::Map<String, Value> =
        files().into_iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
    json!({
        "adapter": describe(gpu.adapter()),
        "uses": choices,
        "files": files,
        "cases": test.cases,
        "failed": test.failures().count(),
        "canaries": test.canaries,
        "kernels_compiled": test.kernels_compiled,
        "compile_seconds": round(test.compile_seconds, 3),
        "seconds": round(test.seconds, 3),
        "passed": test.passed(),
        "verdict": verdict,
    })
}
