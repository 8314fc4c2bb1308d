//! `inknib bench` of an image model: seconds per UNet step and VAE decode, memory, and how near that is to the
//! adapter's own matrix products.

use serde_json::{Value, json};

use super::bench::Args;
use super::bench_files::Files;
use super::bench_ops::{ceilings, in_words};
use super::common::{ModelFolder, Ui, table};
use super::json;
use super::recover::on_device;
use crate::gpu::{self, Gpu};
use crate::graph::PlanOptions;
use crate::probe::bench_image::{
    ImageBench, ImageMeasured, ImageNets, ImageTest, What, gemm_ceiling, host_peak_bytes,
};
use crate::probe::ceilings::Ceilings;
use crate::weights::ImageModel;
use crate::{Error, Result};

/// What one weight format gave.
struct Outcome {
    weights: String,
    parts: Vec<Value>,
    resident: u64,
    unet_resident: u64,
    unet_bits: f64,
    load_seconds: f64,
    /// GFLOP/s of the fastest matrix product.
    ceiling: f64,
    peak: u64,
    /// Of the process, all formats together.
    host_peak: Option<u64>,
    compiled: (usize, f64),
    rows: Vec<ImageMeasured>,
}

/// Measures every size with every weight format; each format has the device for itself, so that its peak of
/// memory is its own.
pub(super) fn run(args: &Args, folder: &ModelFolder, files: &Files, ui: &Ui) -> Result<()> {
    let model = ImageModel::open(&folder.path)?;
    let ceilings = ceilings(args, ui)?;
    let mut adapter = None;
    let mut outcomes = Vec::new();
    for weights in args.model.weights.split(',') {
        let weights = if weights == crate::quant::AUTO { "int4" } else { weights };
        on_device(&args.gpu, ui, |gpu| {
            let options = PlanOptions { kernels: args.model.kernels(gpu), ..Default::default() };
            let outcome = measure(args, (&model, weights), gpu, (&options, &ceilings), ui)?;
            show(gpu, &outcome, ui)?;
            outcomes.push(outcome);
            adapter = Some(gpu.adapter().clone());
            Ok(())
        })?;
    }
    let Some(adapter) = adapter else {
        return Err(Error::Usage("nothing to measure: give --weights".into()));
    };
    let name = folder.path.file_name().map_or("model".into(), |n| n.to_string_lossy().into_owned());
    let models: Vec<Value> = outcomes.iter().flat_map(|o| describe(&name, o)).collect();
    let mut report = json!({
        "adapter": adapter.name,
        "driver": adapter.driver,
        "backend": adapter.backend,
        "ceilings": ceilings,
        "models": models,
    });
    files.finish(&mut report, ui)?;
    match ui.json() {
        true => ui.answer(&report),
        false => ui.line(&in_words(&ceilings)).and_then(|()| files.show_comparison(&report, ui)),
    }
}

fn measure(
    args: &Args,
    (model, weights): (&ImageModel, &str),
    gpu: &Gpu,
    (options, ceilings): (&PlanOptions, &Ceilings),
    ui: &Ui,
) -> Result<Outcome> {
    let spinner = ui.bar("load", 0);
    let nets = ImageNets::load(gpu, model, weights, &|tensor| spinner.say(tensor.path.clone()))?;
    drop(spinner);
    let decode = args.decode.clone().unwrap_or_default();
    let usual = || if decode.is_empty() { vec![nets.usual_size()] } else { Vec::new() };
    let sizes = args.size.clone().unwrap_or_else(usual);
    let test = |what, side: usize, batch| ImageTest { what, width: side, height: side, batch };
    let mut tests = Vec::new();
    for &side in &sizes {
        tests.extend(args.batch.iter().map(|batch| test(What::Unet, side, *batch)));
        tests.extend((!args.no_vae).then(|| test(What::Vae, side, 1)));
    }
    tests.extend(decode.iter().map(|side| test(What::Vae, *side, 1)));
    // Before anything that takes long.
    tests.iter().try_for_each(|test| nets.check(*test))?;
    let act = args.model.act(gpu)?;
    let ceiling = gemm_ceiling(gpu, options)?;
    let repetitions = args.repetitions as usize;
    let bench = ImageBench {
        gpu,
        nets: &nets,
        ceiling,
        fma: ceilings.fma_gflop_s,
        act,
        options,
        repetitions,
    };
    let bar = ui.bar("bench", tests.len() as u64);
    let mut rows = Vec::new();
    for (done, test) in tests.iter().enumerate() {
        bar.at(done as u64);
        bar.say(format!("{} {weights}", test.name()));
        rows.push(bench.measure(*test, &mut |tile, tiles| {
            if tiles > 1 {
                bar.say(format!("{} {weights}, tile {tile} of {tiles}", test.name()));
            }
        })?);
    }
    drop(bar);
    let parts = &nets.parts;
    let unet = parts.iter().find(|part| part.part == "unet");
    Ok(Outcome {
        weights: weights.to_string(),
        resident: parts.iter().map(|part| part.resident_bytes).sum(),
        unet_resident: unet.map_or(0, |part| part.resident_bytes),
        unet_bits: unet.map_or(0.0, |part| part.bits_per_weight),
        load_seconds: parts.iter().map(|part| part.seconds).sum(),
        parts: parts.iter().map(|part| json!(part)).collect(),
        ceiling,
        peak: gpu.ledger().peak(),
        host_peak: host_peak_bytes(),
        compiled: gpu.compile_cost(),
        rows,
    })
}

fn describe(name: &str, outcome: &Outcome) -> Vec<Value> {
    let entry = |row: &ImageMeasured| {
        let mut entry = json!({
            "model": format!("{name} {}", outcome.weights),
            "family": "text-to-image",
            "weights": json::weights(&outcome.weights, outcome.unet_bits, outcome.unet_resident),
            "parts": outcome.parts,
            "memory": {
                "weights": outcome.resident,
                "activations": row.activations,
                "peak": outcome.peak,
                "host_peak": outcome.host_peak,
            },
            "gemm_gflop_s": json::round(outcome.ceiling, 2),
            "load_seconds": json::round(outcome.load_seconds, 3),
            "compile_seconds": json::round(outcome.compiled.1, 3),
        });
        if let (Value::Object(entry), Value::Object(row)) = (&mut entry, json!(row)) {
            entry.extend(row);
        }
        entry
    };
    outcome.rows.iter().map(entry).collect()
}

fn show(gpu: &Gpu, outcome: &Outcome, ui: &Ui) -> Result<()> {
    let mut out =
        table(&["weights", "test", "s", "GFLOP", "GFLOP/s", "of GEMM", "of FMA", "activations"]);
    for row in &outcome.rows {
        out.add_row([
            outcome.weights.clone(),
            match row.tile {
                Some(tile) => format!("{} in tiles of {tile}", row.test),
                None => row.test.clone(),
            },
            format!("{:.3} ± {:.3}", row.seconds_per_step, row.stddev),
            format!("{:.1}", row.gflop),
            format!("{:.1}", row.gflop_s),
            format!("{:.0} %", 100.0 * row.fraction_of_ceiling),
            format!("{:.0} %", 100.0 * row.fraction_of_fma),
            gpu::mib(row.activations),
        ]);
    }
    ui.line(&out.to_string())?;
    ui.line(&format!(
        "{} ({}): GEMM in f32 {:.1} GFLOP/s",
        gpu.adapter().name,
        gpu.adapter().driver,
        outcome.ceiling
    ))?;
    ui.line(&format!(
        "UNet {} ({:.2} bits each), all weights {}, peak {} on the GPU{}; load {:.1} s, {} kernels \
         compiled in {:.1} s",
        gpu::mib(outcome.unet_resident),
        outcome.unet_bits,
        gpu::mib(outcome.resident),
        gpu::mib(outcome.peak),
        outcome.host_peak.map_or(String::new(), |b| format!(", {} on the host", gpu::mib(b))),
        outcome.load_seconds,
        outcome.compiled.0,
        outcome.compiled.1
    ))
}
