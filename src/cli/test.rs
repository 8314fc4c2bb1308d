//! `inknib test`: is this GPU, with this driver, right?

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::common::{GpuArgs, ModelFolder, Ui, table};
use super::devices::describe;
use super::json::round;
use super::recover::once_more;
use crate::files::{ending, write_whole};
use crate::gpu::{Elem, Gpu, GpuOptions, adapters};
use crate::probe::optest::{
    Case, Choice, Known, Level, OpTest, Set, Status, Tier, Whole, export, families, junit,
    markdown, picture, reply, run as run_ops, worst,
};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Every kernel in every form runs against an f64 oracle: at the shapes of real models and at odd ones, with
every format of weights, in every feature tier of the adapter (none, subgroups, f16, all), twice, over memory
full of NaN and between guard words.

Examples:
  inknib test --quick                     20 seconds on a CPU that plays the GPU
  inknib test --adapter all -o test.json  every adapter, for `inknib report`
  inknib test --full -o test.md           to paste into an issue
  inknib test --op matmul,attention --shape ragged,edges --tier none
  inknib test -o junit.xml                for a CI server

Exit code 3: no adapter. 7: a kernel is wrong, or passed though tests/adapters.toml lists it as known to fail.";

/// What results are written as; xml is JUnit.
const FORMS: [&str; 3] = ["json", "md", "xml"];

/// Flags of `inknib test`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A few odd shapes of everything
    #[arg(long, conflicts_with = "full")]
    pub quick: bool,
    /// Whole layers of models too, and what is larger than a binding
    #[arg(long)]
    pub full: bool,
    /// Op families, several with commas: matmul, conv2d, attention, norm …
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub op: Vec<String>,
    /// Where shapes come from, several with commas: small, ragged, edges, sd15, sdxl, llama, qwen, numbers
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = set)]
    pub shape: Vec<Set>,
    /// Feature tiers, several with commas: none (no optional feature), subgroups, f16, all (what the adapter has) [default:
    /// every one of them]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = tier)]
    pub tier: Vec<Tier>,
    /// Write the result to a file: .json, .md or .xml (JUnit); may be given several times
    #[arg(short, long, value_name = "FILE")]
    pub output: Vec<PathBuf>,
    /// A list of known failures in place of the one that inknib ships (tests/adapters.toml)
    #[arg(long, value_name = "FILE")]
    pub known: Option<PathBuf>,
    /// Run nothing; write a page that runs the cases in a browser, through its WebGPU (serve the folder over HTTP)
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output", "all"])]
    pub web: Option<PathBuf>,
    /// Leave out the shipped models from end to end
    #[arg(long)]
    pub no_models: bool,
    /// Print every case, not only the op families
    #[arg(short, long)]
    pub all: bool,
    #[command(flatten)]
    pub gpu: GpuArgs,
}

fn set(word: &str) -> Result<Set> {
    Set::ALL.into_iter().find(|set| set.name() == word).ok_or_else(|| {
        let known = Set::ALL.map(Set::name).join(", ");
        Error::Usage(format!("unknown shapes \"{word}\"; one of {known}"))
    })
}

fn tier(word: &str) -> Result<Tier> {
    Tier::parse(word)?.pop().ok_or_else(|| Error::Usage("an empty tier".into()))
}

/// Tests the adapter, or all of them, and says what is wrong.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    for file in &args.output {
        ending(file, &FORMS)?;
    }
    let level = match (args.quick, args.full) {
        (true, _) => Level::Quick,
        (_, true) => Level::Full,
        _ => Level::Usual,
    };
    let choice =
        Choice { level, ops: args.op.clone(), sets: args.shape.clone(), tiers: args.tier.clone() };
    if let Some(folder) = &args.web {
        return web(&args.gpu.options(), &choice, folder, ui);
    }
    let known = match &args.known {
        None => Known::shipped()?,
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
            Known::parse(&text, &file.display().to_string())?
        }
    };
    let mut tests = Vec::new();
    for options in devices(args)? {
        let mut test = test_one(&options, &choice, &known, ui)?;
        test.models = whole_models(args, &options, ui)?;
        show(args, &test, ui)?;
        tests.push(test);
    }
    for file in &args.output {
        write(file, &tests)?;
        ui.note(&format!("{} written", file.display()));
    }
    if ui.json() {
        ui.answer(&answer(&tests))?;
    }
    verdict(&tests)
}

/// Writes the cases for a browser.
fn web(options: &GpuOptions, choice: &Choice, folder: &Path, ui: &Ui) -> Result<()> {
    let bar = ui.bar("web", 1);
    let count = export(options, choice, folder, |problem, done, total| {
        bar.total(total as u64);
        bar.at(done as u64);
        bar.say(format!("{} {} {}", problem.op, problem.spec, problem.shape));
    })?;
    drop(bar);
    if ui.json() {
        return ui.answer(&json!({ "output": folder, "cases": count }));
    }
    ui.line(&format!(
        "{count} cases in {0}; serve it (`python3 -m http.server -d {0}`) and open it in a browser with WebGPU",
        folder.display()
    ))
}

/// The adapters that are asked for.
fn devices(args: &Args) -> Result<Vec<GpuOptions>> {
    // Kernels are compiled here: what is to be tested is this driver, and few of these are what models run.
    let options = GpuOptions { pipelines: None, ..args.gpu.options() };
    if options.device.as_deref() != Some("all") {
        return Ok(vec![options]);
    }
    let all = adapters();
    let usable = all.iter().filter(|adapter| adapter.backend != "noop");
    let of = |index: usize| GpuOptions { device: Some(index.to_string()), ..options.clone() };
    let found: Vec<GpuOptions> = usable.map(|adapter| of(adapter.index)).collect();
    match found.is_empty() {
        // Opening it says what to install.
        true => Ok(vec![GpuOptions { device: None, ..options }]),
        false => Ok(found),
    }
}

fn test_one(options: &GpuOptions, choice: &Choice, known: &Known, ui: &Ui) -> Result<OpTest> {
    let bar = ui.bar("test", 1);
    run_ops(options, choice, known, |case, done, total| {
        bar.total(total as u64);
        bar.at(done as u64);
        bar.say(format!("{} {} {}", case.op, case.spec, case.shape));
        if matches!(case.status, Status::Failed | Status::Unexpected) {
            bar.hide_while(|| {
                ui.note(&format!("{} {}: {}", mark(case), case.name(), case.trouble()))
            });
        }
    })
}

/// The shipped models from end to end, with each type of activations, where they are found and everything is tested.
fn whole_models(args: &Args, options: &GpuOptions, ui: &Ui) -> Result<Vec<Whole>> {
    if args.no_models || !(args.op.is_empty() && args.shape.is_empty() && args.tier.is_empty()) {
        return Ok(Vec::new());
    }
    once_more(ui, |_| run_models(args, &Gpu::open(options)?, ui))
}

fn run_models(args: &Args, gpu: &Gpu, ui: &Ui) -> Result<Vec<Whole>> {
    let bar = ui.bar("models", 0);
    // Reference kernels take most of a minute where a CPU plays the GPU.
    let acts = match gpu.caps().f16 && !args.quick {
        true => vec![Elem::F32, Elem::F16],
        false => vec![Elem::F32],
    };
    let mut found = Vec::new();
    for (name, run) in
        [("demo-scenes", picture as fn(&Gpu, &Path, Elem, bool) -> _), ("demo-chat", reply)]
    {
        let Ok(folder) = ModelFolder::find(Path::new(name)) else {
            ui.note(&format!("{name} is not here; set INKNIB_MODELS to run it from end to end"));
            continue;
        };
        for act in &acts {
            bar.say(format!("{name} {}", act.wgsl()));
            found.push(run(gpu, &folder.path, *act, !args.quick)?);
        }
    }
    Ok(found)
}

fn mark(case: &Case) -> &'static str {
    case.status.mark()
}

fn show(args: &Args, test: &OpTest, ui: &Ui) -> Result<()> {
    if ui.json() {
        return Ok(());
    }
    let adapter = &test.adapter;
    ui.line(&format!("{} ({}, {})", adapter.name, adapter.backend, adapter.driver))?;
    let mut shown = table(&[
        "op",
        "cases",
        "",
        "case nearest to its tolerance",
        "NMSE",
        "allowed",
        "largest error",
    ]);
    let number = |value: f64| if value == 0.0 { "exact".into() } else { format!("{value:.1e}") };
    let row = |case: &Case, count: String, mark: String| {
        let Case { op, spec, shape, kernels, activations, tolerance, .. } = case;
        let tolerance = if *tolerance == 0.0 { "none".into() } else { format!("{tolerance:.0e}") };
        [
            op.clone(),
            count,
            mark,
            format!("{spec} {shape}, {kernels} {activations}"),
            number(case.nmse),
            tolerance,
            number(case.max_error),
        ]
    };
    for (_, cases) in families(&test.cases) {
        if args.all {
            for case in &cases {
                shown.add_row(row(case, case.tier.name().into(), mark(case).into()));
            }
        } else if let Some(worst) = worst(&cases) {
            let failed = cases.iter().filter(|case| case.status == Status::Failed).count();
            let mark = if failed == 0 { "✓".into() } else { format!("✗ {failed}") };
            shown.add_row(row(worst, cases.len().to_string(), mark));
        }
    }
    ui.line(&shown.to_string())?;
    for case in test.cases.iter().filter(|case| case.status == Status::Known) {
        ui.line(&format!("known to fail: {}: {}", case.name(), case.trouble()))?;
    }
    for whole in &test.models {
        ui.line(&about(whole))?;
    }
    for (tier, why) in &test.missing {
        ui.line(&format!("tier {} was left out: {why}", tier.name()))?;
    }
    ui.line(&summary(test))
}

/// One line about a model that ran from end to end.
fn about(whole: &Whole) -> String {
    let mark = if whole.passed() { "✓" } else { "✗" };
    let Whole { model, activations, allowed, seconds, reply, .. } = whole;
    let apart = match whole.against_reference {
        Some(apart) => {
            format!(": fast kernels are {apart:.1e} from reference kernels, {allowed:.0e} allowed")
        }
        None => String::new(),
    };
    let reply = if reply.is_empty() { String::new() } else { format!(": {reply:?}") };
    format!("{mark} {model} {activations}{apart} ({seconds:.1} s){reply}")
}

/// One line: how many cases, and how they ended.
fn summary(test: &OpTest) -> String {
    let mut parts = vec![format!("{} passed", test.count(Status::Passed))];
    for (status, what) in [
        (Status::Failed, "failed"),
        (Status::Known, "known to fail"),
        (Status::Unexpected, "passed though known to fail"),
        (Status::Skipped, "skipped"),
    ] {
        if test.count(status) > 0 {
            parts.push(format!("{} {what}", test.count(status)));
        }
    }
    format!(
        "{} cases: {}; {:.1} s; compiling {} kernels took {:.1} s, on several threads",
        test.cases.len(),
        parts.join(", "),
        test.seconds,
        test.kernels_compiled,
        test.compile_seconds
    )
}

fn write(file: &Path, tests: &[OpTest]) -> Result<()> {
    let text = match ending(file, &FORMS)? {
        // On one line: a full test has thousands of cases.
        "json" => format!("{}\n", answer(tests)),
        "md" => tests.iter().map(markdown).collect::<Vec<_>>().join("\n"),
        _ => junit(tests),
    };
    write_whole(file, text.as_bytes())
}

/// One object for one adapter, `{"adapters": […]}` for several.
fn answer(tests: &[OpTest]) -> Value {
    match tests {
        [test] => report(test),
        _ => json!({ "adapters": tests.iter().map(report).collect::<Vec<_>>() }),
    }
}

fn report(test: &OpTest) -> Value {
    let missing: serde_json::Map<String, Value> =
        test.missing.iter().map(|(tier, why)| (tier.name().into(), json!(why))).collect();
    json!({
        "inknib": env!("CARGO_PKG_VERSION"),
        "adapter": test.adapter.name,
        "driver": test.adapter.driver,
        "backend": test.adapter.backend,
        "device": describe(&test.adapter),
        "missing_tiers": missing,
        "passed": test.count(Status::Passed),
        "failed": test.count(Status::Failed),
        "known": test.count(Status::Known),
        "unexpected": test.count(Status::Unexpected),
        "skipped": test.count(Status::Skipped),
        "kernels_compiled": test.kernels_compiled,
        "compile_seconds": round(test.compile_seconds, 3),
        "seconds": round(test.seconds, 3),
        "models": test.models,
        "cases": test.cases,
    })
}

fn verdict(tests: &[OpTest]) -> Result<()> {
    let Some(bad) = tests.iter().find(|test| !test.passed()) else { return Ok(()) };
    let name = &bad.adapter.name;
    let failed = bad.count(Status::Failed);
    if let Some(whole) = bad.models.iter().find(|whole| !whole.passed() && failed == 0) {
        return Err(Error::OutOfTolerance(format!(
            "{name}: {}; fast kernels paint or say something else than reference kernels",
            about(whole)
        )));
    }
    Err(Error::OutOfTolerance(match failed {
        0 => format!(
            "{name}: {} cases passed that are listed as known to fail; mend the list (tests/adapters.toml)",
            bad.count(Status::Unexpected)
        ),
        _ => format!(
            "{name}: {failed} of {} cases failed; update the driver, let `inknib doctor` leave out what it finds wrong, \
             take another --device, or report it with `inknib test -o test.md`",
            bad.cases.len()
        ),
    }))
}
