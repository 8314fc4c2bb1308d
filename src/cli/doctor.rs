//! `inknib doctor`: does this GPU compute right, and how will it be used?

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::avoid::{self, Entry};
use super::common::{ActivationChoice, GpuArgs, Ui, table};
use super::devices::describe;
use super::doctor_report::{Kept, places};
use super::doctor_tiers::{NEXT, Tier, search};
use super::json::round;
use crate::Result;
use crate::gpu::{Gpu, GpuOptions, Without, mib};
use crate::graph::MAX_TRIPS;
use crate::probe::choices::{Choice, choices};
use crate::probe::driver::{Reported, reported};
use crate::probe::optest::{Case, Status, families, worst};
use crate::probe::selftest::{LONG_LOOP, SelfTest};

const EXAMPLES: &str = "\
Examples:
  inknib doctor
  inknib doctor --device 1 --activations f16
  inknib doctor --without f16,subgroups        what a lesser GPU would do
  inknib doctor --json | jq .verdict
  inknib doctor --forget                       use everything again

Where the self-test fails, it is run again without subgroups, without f16, without both and with the
reference kernels alone. What has to be left out is remembered for this driver, and the other commands
leave it out too.

Exit code 3: no adapter. 7: nothing computes right on this driver.";

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
    /// Forget what earlier self-tests found wrong, and test nothing
    #[arg(long)]
    pub forget: bool,
}

/// Prints what was found and a verdict with the next step.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    if args.forget {
        return forget(ui);
    }
    // Everything that the adapter has, whatever is remembered of it.
    let gpu = Gpu::open(&args.gpu.options())?;
    args.activations.resolve(&gpu)?;
    if !ui.json() {
        about_the_adapter(&gpu, ui)?;
    }
    let tiers = search(args, gpu, ui)?;
    let best = &tiers[tiers.len() - 1];
    let (best, passed) = if best.passed() { (best, true) } else { (&tiers[0], false) };
    let chosen = if passed { choices(&best.gpu, best.act)? } else { Vec::new() };
    let reported = match passed {
        true => Some(reported(again(args, best.without)?)?),
        false => None,
    };
    let remembered = remember(args, &tiers, ui);
    let verdict = verdict(&tiers, reported, remembered);
    if ui.json() {
        ui.answer(&report(args, &tiers, (best, &chosen, reported), &verdict)?)?;
    } else {
        if passed {
            about_the_choices(args, best, &chosen, ui)?;
        }
        if let Ok(test) = &best.outcome {
            about_the_test(args, test, reported, ui)?;
        }
        for tier in &tiers[..tiers.len() - 1] {
            ui.line(&format!("{}: {}", tier.name(), tier.failure()))?;
        }
        ui.line(&verdict)?;
    }
    if passed { Ok(()) } else { Err(best.error()) }
}

/// A device of its own, without what is given.
pub(super) fn again(args: &Args, without: Without) -> Result<Gpu> {
    let options = args.gpu.options();
    Gpu::open(&GpuOptions { without: options.without.and(without), ..options })
}

fn forget(ui: &Ui) -> Result<()> {
    let gone = avoid::forget()?;
    if ui.json() {
        return ui.answer(&json!({ "forgotten": gone }));
    }
    for entry in &gone {
        let avoid = if entry.usable { entry.avoid.join(" and ") } else { "everything".into() };
        ui.line(&format!("{} ({}): {avoid} is used again", entry.of.adapter, entry.of.driver))?;
    }
    match gone.is_empty() {
        true => ui.line("Nothing was remembered."),
        false => Ok(()),
    }
}

/// Keeps what was found for the other commands, unless the user has chosen what to test. Returns whether it is
/// kept.
fn remember(args: &Args, tiers: &[Tier], ui: &Ui) -> bool {
    if args.gpu.without.is_some() || args.activations != ActivationChoice::Auto {
        return false;
    }
    let (first, last) = (&tiers[0], &tiers[tiers.len() - 1]);
    let avoid = last.passed().then_some(last.without);
    let entry = Entry::new(first.gpu.adapter(), avoid, &first.failure());
    let kept = entry.avoid.len() + usize::from(!entry.usable) > 0;
    match avoid::remember(entry) {
        Ok(changed) if changed && !kept => {
            ui.note("What an earlier self-test found wrong is right now, and forgotten.");
            false
        }
        Ok(_) => kept && avoid::file().is_some(),
        Err(error) => {
            ui.warn(&format!("what was found cannot be remembered: {error}"));
            false
        }
    }
}

fn about_the_adapter(gpu: &Gpu, ui: &Ui) -> Result<()> {
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
        ("cooperative matrix", caps.coop_edge > 0),
        ("pipeline cache", caps.pipeline_cache),
    ];
    let list = |wanted: bool| -> String {
        let names: Vec<&str> =
            features.iter().filter(|(_, has)| *has == wanted).map(|(name, _)| *name).collect();
        if names.is_empty() { "none".to_string() } else { names.join(", ") }
    };
    row("features", list(true));
    row("missing", list(false));
    row("subgroup", format!("{} to {} lanes", caps.subgroup_min, caps.subgroup_max));
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
    for place in places() {
        row(place.name, place.describe());
    }
    row("compiled kernels", Kept::by(gpu).describe());
    ui.line(&shown.to_string())
}

/// The variants that plans will choose, as `name: choice`, whatever the family of kernels.
fn general(args: &Args, tier: &Tier) -> Vec<(&'static str, String)> {
    let caps = tier.gpu.caps();
    let kernels = if caps.fast_kernels { "fast" } else { "reference" };
    let timing = if caps.timestamps { "timestamps on the device" } else { "the host's clock only" };
    vec![
        ("activations", tier.act.wgsl().to_string()),
        ("activations_because", args.activations.reason(&tier.gpu).to_string()),
        ("accumulation", "f32".to_string()),
        ("kernels", kernels.to_string()),
        ("timing", timing.to_string()),
    ]
}

fn about_the_choices(args: &Args, tier: &Tier, chosen: &[Choice], ui: &Ui) -> Result<()> {
    ui.line("")?;
    let mut shown = table(&["what runs", "kernel", "because"]);
    let reason = args.activations.reason(&tier.gpu);
    shown.add_row(["activations", tier.act.wgsl(), reason]);
    for choice in chosen {
        let because = match choice.because[..] {
            [] => "every device has the same".to_string(),
            _ => choice.because.join(", "),
        };
        shown.add_row([
            format!("{}, {}", choice.family, choice.case),
            choice.kernels.join(", "),
            because,
        ]);
    }
    ui.line(&shown.to_string())
}

fn mark(passed: bool) -> String {
    if passed { "right" } else { "WRONG" }.to_string()
}

fn about_the_test(args: &Args, test: &SelfTest, reported: Option<Reported>, ui: &Ui) -> Result<()> {
    ui.line("")?;
    let mut shown = table(&["op", "case", "kernels", "NMSE", "allowed", ""]);
    let row = |case: &Case, what: String, kernels: &str, passed: bool| {
        [
            case.op.clone(),
            what,
            kernels.to_string(),
            format!("{:.1e}", case.nmse),
            format!("{:.0e}", case.tolerance),
            mark(passed),
        ]
    };
    let right = |case: &Case| case.status != Status::Failed;
    for (_, cases) in families(&test.cases) {
        if args.all {
            for case in cases {
                let what = format!("{} {}", case.spec, case.shape);
                shown.add_row(row(case, what, &case.kernels, right(case)));
            }
        } else if let Some(worst) = worst(&cases) {
            let (what, all) = (format!("{} cases", cases.len()), cases.iter().all(|c| right(c)));
            shown.add_row(row(worst, what, "worst of both", all));
        }
    }
    ui.line(&shown.to_string())?;
    for case in test.failures() {
        ui.line(&format!("WRONG: {}: {}", case.name(), case.trouble()))?;
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
    if let Some(reported) = reported {
        ui.line(&format!("a lost device is reported: {}", mark(reported.lost_device)))?;
        let time_out = reported.time_out.map_or("too fast to tell".to_string(), mark);
        ui.line(&format!("a wait ends when its time is over: {time_out}"))?;
    }
    ui.line(&format!(
        "{} cases in {:.1} s, of which {:.1} s compiling {} kernels\n",
        test.cases.len(),
        test.seconds,
        test.compile_seconds,
        test.kernels_compiled
    ))
}

/// A few sentences: can it be used, and what to do next.
fn verdict(tiers: &[Tier], reported: Option<Reported>, remembered: bool) -> String {
    let (first, last) = (&tiers[0], &tiers[tiers.len() - 1]);
    if !last.passed() {
        let kept = if remembered { " Other commands refuse this driver." } else { "" };
        return format!("Not usable: {}; {NEXT}.{kept}", first.failure());
    }
    let mut text = match first.passed() {
        true => "Computes right".to_string(),
        false => format!("Computes right only {}", last.name()),
    };
    if last.gpu.caps().software {
        text += ", in software and so slowly; a GPU's own driver is faster";
    }
    text += ". ";
    if !first.passed() {
        let kept = match remembered {
            true => "Other commands leave that out from now on",
            false => "Give the other commands the same with --without",
        };
        let _ = write!(text, "{kept}; after an update of the driver run `inknib doctor` again. ");
    }
    if reported.is_some_and(|r| !r.passed()) {
        text += "A lost device or a hanging one may stay unnoticed here; update the driver. ";
    }
    text + "`inknib generate --help` and `inknib chat --help` say how to go on."
}

fn report(
    args: &Args,
    tiers: &[Tier],
    (best, chosen, reported): (&Tier, &[Choice], Option<Reported>),
    verdict: &str,
) -> Result<Value> {
    let object = |pairs: Vec<(&'static str, String)>| -> serde_json::Map<String, Value> {
        pairs.into_iter().map(|(k, v)| (k.to_string(), json!(v))).collect()
    };
    let mut uses = object(general(args, best));
    uses.insert("families".into(), json!(chosen));
    let places = places();
    let files = object(places.iter().map(|place| (place.name, place.describe())).collect());
    let tried = |tier: &Tier| {
        json!({
            "without": tier.without.words(),
            "activations": tier.act.wgsl(),
            "passed": tier.passed(),
            "failure": Some(tier.failure()).filter(|text| !text.is_empty()),
        })
    };
    let passed = best.passed();
    let mut answer = json!({
        "adapter": describe(tiers[0].gpu.adapter()),
        "uses": uses,
        "avoids": if passed { best.without.words() } else { Vec::new() },
        "tiers": tiers.iter().map(tried).collect::<Vec<_>>(),
        "files": files,
        "compiled_kernels": Kept::by(&tiers[0].gpu),
        "disk": places.iter().map(|place| place.json()).collect::<Vec<_>>(),
    });
    if let Ok(test) = &best.outcome {
        answer["cases"] = json!(test.cases);
        answer["failed"] = json!(test.failures().count());
        answer["canaries"] = json!(test.canaries);
        answer["kernels_compiled"] = json!(test.kernels_compiled);
        answer["compile_seconds"] = json!(round(test.compile_seconds, 3));
        answer["seconds"] = json!(round(test.seconds, 3));
    }
    if let Some(reported) = reported {
        answer["canaries"]["lost_device"] = json!(reported.lost_device);
        answer["canaries"]["time_out"] = json!(reported.time_out);
    }
    answer["passed"] = json!(passed);
    answer["verdict"] = json!(verdict);
    Ok(answer)
}
