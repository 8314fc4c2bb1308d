//! `inknib tune`: which kernels are fastest on this device.

use serde_json::json;

use super::avoid;
use super::common::{ActivationChoice, GpuArgs, Ui, table};
use super::tuned;
use crate::Result;
use crate::gpu::{Gpu, Tuning, chosen};
use crate::probe::tune::{Decided, tune};

const EXAMPLES: &str = "\
Where a device has several kernels for one op, properties and rules of thumb choose. This measures them on shapes of real models, in
seconds on a GPU, and remembers what was fastest for this adapter and driver; every other command takes it from there.

Examples:
  inknib tune
  inknib tune --device 1
  inknib tune --forget     back to the rules of thumb";

/// Flags of `inknib tune`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Forget what was measured on this device
    #[arg(long)]
    pub forget: bool,
    /// Small cases and few samples
    #[arg(long)]
    pub quick: bool,
    /// How values between layers are stored
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    pub activations: ActivationChoice,
    #[command(flatten)]
    pub gpu: GpuArgs,
}

/// Measures, prints and remembers.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    let options = avoid::obey(args.gpu.options(), ui)?;
    let adapter = chosen(&options)?;
    if args.forget {
        let changed = tuned::remember(&adapter, None)?;
        let words = if changed { "forgotten" } else { "nothing was remembered" };
        ui.note(&format!("{}: {words}", adapter.name));
        return if ui.json() { ui.answer(&json!({ "forgotten": changed })) } else { Ok(()) };
    }
    let open = |tuning: Tuning| Ok(Gpu::open(&options)?.tuned(tuning));
    let act = args.activations.resolve(&open(Tuning::default())?)?;
    let spinner = ui.bar("tune", 0);
    let (tuning, decided) = tune(&open, act, args.quick, &mut |choice, way| {
        spinner.say(format!("{choice}: {way}"));
    })?;
    drop(spinner);
    let kept = tuned::remember(&adapter, Some(tuning))?;
    if ui.json() {
        return ui.answer(&json!({
            "adapter": adapter.name, "driver": adapter.driver, "tuning": tuning, "choices": decided, "changed": kept,
        }));
    }
    show(&decided, ui)?;
    ui.line(&match tuned::file() {
        Some(file) => {
            format!("remembered in {}; `inknib tune --forget` undoes that", file.display())
        }
        None => "there is no folder to remember it in; set INKNIB_CACHE".into(),
    })
}

fn show(decided: &[Decided], ui: &Ui) -> Result<()> {
    if decided.is_empty() {
        return ui.line("this device has one kernel for each op; there is nothing to choose");
    }
    let mut out = table(&["choice", "way", "time, of the default", ""]);
    for choice in decided {
        for (i, way) in choice.ways.iter().enumerate() {
            let name = if i == 0 { choice.choice } else { "" };
            let taken = if i == choice.taken { "taken" } else { "" };
            out.add_row([name, &way.name, &format!("{:.2}", way.of_default), taken]);
        }
    }
    ui.line(&out.to_string())
}
