//! Nets against golden tensors of diffusers and transformers (tests/golden/README.md), fast kernels
//! against reference kernels on packed weights. Language models are in language.rs.

mod autoencoders;
#[path = "../common/device.rs"]
mod device;
mod diffusion;
mod language;
mod lora;
mod textual_inversion;
mod tiling;

use std::path::{Path, PathBuf};

use device::gpu;
use inknib::gpu::Elem;
use inknib::graph::{Graph, Kernels, Plan, PlanOptions};
use inknib::nn::Loader;
use inknib::probe::verify::{Family, VerifyReport, golden, verify, verify_as};
use inknib::probe::{evaluate, recipe};
use inknib::quant::{QuantSpec, Recipe};
use inknib::tensor::Tensor;
use inknib::weights::WeightStore;

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

const BOTH: [Kernels; 2] = [Kernels::Fast, Kernels::Reference];

/// One line per case with its worst value; the test fails with every value that is beyond the limit.
fn expect(report: &VerifyReport, kernels: Kernels, not_compared: &[&str]) {
    let worst = report.outputs.iter().max_by(|a, b| a.rel_l2.total_cmp(&b.rel_l2)).unwrap();
    println!(
        "{} {} {kernels:?}: {} values, worst {} {:.2e} (max abs {:.2e})",
        report.case,
        report.weights,
        report.outputs.len(),
        worst.name,
        worst.rel_l2,
        worst.max_abs
    );
    let bad: Vec<_> = report.outputs.iter().filter(|c| !c.passes(report.limit)).collect();
    assert!(report.passed && bad.is_empty(), "{} {:?}: {bad:#?}", report.case, report.unsupported);
    assert_eq!(report.not_compared, not_compared, "{}", report.case);
}

/// Limits are those of `verify`, with their reasons: 2e-5 in fp32, 2e-3 in fp16.
fn check(case: &str, outputs: usize, not_compared: &[&str]) {
    let Some(gpu) = gpu() else { return };
    for weights in ["fp32", "fp16"] {
        for kernels in BOTH {
            let report = verify(folder(case), weights, kernels, gpu).unwrap();
            expect(&report, kernels, not_compared);
            assert_eq!(report.outputs.len(), outputs, "{case}");
        }
    }
}

#[test]
fn vae() {
    check("vae_kl", 11, &[]);
}

#[test]
fn taesd() {
    check("taesd", 6, &[]);
}

/// f16 activations round every stored value by 2⁻¹¹ (3e-4 in the mean); some tens of stores on the
/// way add up like a random walk, to a few parts in a thousand.
#[test]
fn f16_activations_stay_near() {
    let Some(gpu) = gpu().filter(|gpu| gpu.caps().f16) else {
        println!("skipped: this device stores no f16");
        return;
    };
    let cases =
        ["clip_l", "unet_sd15", "unet_sdxl", "unet_lcm", "controlnet", "unet2d", "vae_kl", "taesd"];
    for case in cases.into_iter().chain(["llama"]) {
        let report = verify_as(folder(case), "fp16", Kernels::Fast, Elem::F16, gpu).unwrap();
        let worst = report.outputs.iter().map(|c| c.rel_l2).fold(0.0, f64::max);
        println!("{case} f16 activations: worst {worst:.2e}");
        assert!(worst <= 1e-2, "{case}: {:#?}", report.outputs);
    }
}

fn nmse(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_f32(), b.to_f32());
    assert_eq!(a.len(), b.len());
    assert!(a.iter().all(|v| v.is_finite()), "a value is not finite");
    let error: f64 = a.iter().zip(&b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    error / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()
}

/// Both kernels decode the same packed weights and differ in the order of f32 sums alone: about 1e-6
/// relative, squared 1e-12. A thousand times that leaves room for a driver's exp and still stands far
/// below the error of four bits themselves (1e-2).
#[test]
fn int4_fast_is_int4_reference() {
    let Some(gpu) = gpu() else { return };
    let cases = [
        ("clip_l", Family::ClipText),
        ("unet_sd15", Family::Unet),
        ("unet_sd21", Family::Unet),
        ("unet_sdxl", Family::Unet),
        ("unet2d", Family::Unet2d),
        ("controlnet", Family::ControlNet),
        ("vae_kl", Family::Vae),
        ("taesd", Family::Taesd),
        ("llama", Family::Language),
    ];
    for (case, family) in cases {
        let (dir, golden) = (folder(case), golden(&folder(case)).unwrap());
        // Every matrix in four bits: the recipes would keep the VAE at 16.
        for weights in [Recipe::uniform(QuantSpec::INT4), recipe("int4", family).unwrap()] {
            let run = |kernels| evaluate(&dir, &golden, &weights, kernels, Elem::F32, gpu).unwrap();
            let (fast, reference) = (run(Kernels::Fast), run(Kernels::Reference));
            let mut worst = 0.0f64;
            for ((name, a), (other, b)) in fast.iter().zip(&reference) {
                assert_eq!(name, other);
                let e = nmse(a, b);
                assert!(e <= 1e-9, "{case} {name}: {e:.2e}");
                worst = worst.max(e);
            }
            let (_, truth) = golden.iter().find(|(name, _)| *name == fast[0].0).unwrap();
            let quantization = nmse(&fast[0].1, truth);
            println!(
                "{case} {}: fast against reference {worst:.1e}, quantization {quantization:.1e}",
                weights.name
            );
            let four_bits = weights.name != "int4" || family == Family::Language;
            assert!(!four_bits || quantization > 1e-5, "{case}: these are not four bits");
        }
    }
}

#[test]
fn int4_is_sane() {
    let Some(gpu) = gpu() else { return };
    for case in ["clip_l", "unet_sd15", "unet_sdxl", "controlnet", "unet2d", "vae_kl", "llama"] {
        let report = verify(folder(case), "int4", Kernels::Fast, gpu).unwrap();
        assert!(report.passed, "{report:#?}");
    }
}

#[test]
fn what_is_not_supported_is_said_and_never_passes() {
    let Some(gpu) = gpu() else { return };
    let report = |config: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        let report = verify(folder.path(), "fp32", Kernels::Fast, gpu).unwrap();
        assert!(!report.passed && report.outputs.is_empty());
        report.unsupported.unwrap()
    };
    let mamba = report("{\"model_type\": \"mamba\"}");
    assert!(mamba.contains("mamba is not supported") && mamba.contains("gemma3"), "{mamba}");
    let text = std::fs::read_to_string(folder("unet_sd15").join("config.json")).unwrap();
    let other = text.replace("\"addition_embed_type\": null", "\"addition_embed_type\": \"text\"");
    assert!(report(&other).contains("`addition_embed_type` is \"text\""));
}

/// More cases of the same form, in the folders under `INKNIB_GOLDEN`. Families that are not supported
/// are listed.
#[test]
fn further_golden_folders() {
    let Some(gpu) = gpu() else { return };
    let Ok(root) = std::env::var("INKNIB_GOLDEN") else {
        println!("skipped: INKNIB_GOLDEN names no folder of further golden cases");
        return;
    };
    let mut dirs: Vec<PathBuf> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    for dir in dirs.iter().filter(|dir| dir.join("config.json").is_file()) {
        for kernels in BOTH {
            let report = verify(dir, "fp32", kernels, gpu).unwrap();
            match &report.unsupported {
                Some(why) => println!("{}: {why}", report.case),
                None => {
                    let left: Vec<&str> = report.not_compared.iter().map(String::as_str).collect();
                    println!("{}: not compared: {left:?}", report.case);
                    expect(&report, kernels, &left);
                }
            }
        }
    }
}
