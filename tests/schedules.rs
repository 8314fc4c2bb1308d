//! Schedules, samplers and random numbers against tables made from diffusers and torch by
//! tools/golden_schedules.py. The configurations are read from the table's metadata, so they take the
//! same way through the reader as a file from a checkpoint.

use std::collections::BTreeMap;
use std::path::PathBuf;

use inknib::diffusion::rng::Rng;
use inknib::diffusion::sampler::{Sampler, apply, first_step};
use inknib::diffusion::schedule::{ScheduleConfig, SigmaSpacing};
use safetensors::SafeTensors;
use serde::Deserialize;

/// A noise level is one f32 of the table's; its inputs (ᾱ, log sigma) are rounded to f32 at the same
/// places as diffusers rounds them, so a few roundings of 6e-8 remain.
const SIGMA_TOLERANCE: f64 = 1e-5;
/// Relative L2 of the sample after every step of a free-running denoising. diffusers computes the
/// coefficients in f32 (1 - ᾱ at t = 0 carries 3.5e-5 relative rounding, damped by its small weight);
/// ours are f64 rounded once. A wrong coefficient shows at 1e-3 or more.
const SAMPLE_TOLERANCE: f64 = 1e-5;
/// Euler from pure noise falls from sigma 4096 to 23 in one step. diffusers adds derivative * dt to x
/// there, so an f32 rounding of 4096 stays in a sample of size 23: the same run in f64 is 7.7e-6 away
/// from its table after that step, and 1.2e-5 after the last.
const PURE_NOISE_TOLERANCE: f64 = 2e-5;
/// Fractional timesteps come from log sigma by interpolation: half an f32 step of log sigma (1.2e-7 at
/// its largest) over the spacing of neighbouring levels (0.0048 at its smallest) is 2.5e-5 of a step.
const FRACTIONAL_TIMESTEP_TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Case {
    config: serde_json::Value,
    step: BTreeMap<String, serde_json::Value>,
    steps: usize,
}

fn read(file: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

struct Golden<'a> {
    tensors: SafeTensors<'a>,
    metadata: BTreeMap<String, String>,
}

impl<'a> Golden<'a> {
    fn new(bytes: &'a [u8]) -> Golden<'a> {
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let metadata = header.metadata().clone().unwrap().into_iter().collect();
        Golden { tensors: SafeTensors::deserialize(bytes).unwrap(), metadata }
    }

    fn get(&self, name: &str) -> Option<Vec<f32>> {
        let view = self.tensors.tensor(name).ok()?;
        let value = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
        Some(view.data().chunks_exact(4).map(value).collect())
    }

    fn cases(&self) -> impl Iterator<Item = (&String, Case)> {
        self.metadata.iter().map(|(name, text)| (name, serde_json::from_str(text).unwrap()))
    }
}

fn sampler_of(case: &Case) -> (Sampler, ScheduleConfig) {
    let config = ScheduleConfig::from_json(&case.config.to_string(), "golden").unwrap();
    let sampler = match Sampler::of_config(&config) {
        Sampler::Ddim { .. } => {
            Sampler::Ddim { eta: case.step.get("eta").and_then(|e| e.as_f64()).unwrap_or(0.0) }
        }
        other => other,
    };
    (sampler, config)
}

fn relative_l2(ours: &[f32], golden: &[f32]) -> f64 {
    assert_eq!(ours.len(), golden.len());
    let square = |v: f64| v * v;
    let error: f64 =
        ours.iter().zip(golden).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let size: f64 = golden.iter().map(|&b| square(f64::from(b))).sum();
    (error / size.max(1e-30)).sqrt()
}

#[test]
fn alphas_cumprod_are_torchs() {
    let bytes = read("schedules.safetensors");
    let golden = Golden::new(&bytes);
    let sd = r#""beta_start":0.00085,"beta_end":0.012,"beta_schedule":"scaled_linear""#;
    for (name, json) in [
        ("linear", "{}".to_string()),
        ("scaled_linear", format!("{{{sd}}}")),
        ("cosine", r#"{"beta_schedule":"squaredcos_cap_v2"}"#.to_string()),
        ("zero_snr", format!(r#"{{{sd},"rescale_betas_zero_snr":true}}"#)),
    ] {
        let expected = golden.get(&format!("alphas_cumprod.{name}")).unwrap();
        let ours = ScheduleConfig::from_json(&json, name).unwrap().alphas_cumprod();
        assert_eq!(ours.len(), expected.len(), "{name}");
        for (t, (a, &b)) in ours.iter().zip(&expected).enumerate() {
            // One f32 step of ᾱ is 6e-8. torch's vectorised linspace may differ by one f32 step of
            // beta, which turns the rounding of a few of the 1000 factors. Rescaling to zero SNR
            // rounds every factor once more: 1000 roundings of 3e-8 in random walk are 1e-6; and near
            // ᾱ = 0 the subtraction of the last root (0.068) leaves 4e-9 absolute.
            let relative = if name == "zero_snr" { 1e-6 } else { 2e-7 };
            let limit = relative * f64::from(b) + 1e-9;
            assert!((a - f64::from(b)).abs() <= limit, "{name} at {t}: {a} and {b}");
        }
    }
}

#[test]
fn timesteps_and_sigmas_are_diffusers() {
    let bytes = read("schedules.safetensors");
    let golden = Golden::new(&bytes);
    let mut checked = 0;
    for (name, case) in golden.cases() {
        let (sampler, config) = sampler_of(&case);
        let counts = [(case.steps, String::new())]
            .into_iter()
            .chain([1, 5, 25, 50].map(|n| (n, format!(".{n}"))));
        for (steps, suffix) in counts {
            let schedule = sampler.schedule(&config, steps).unwrap();
            let expected = golden.get(&format!("{name}/timesteps{suffix}")).unwrap();
            assert_eq!(schedule.timesteps.len(), expected.len(), "{name} with {steps} steps");
            for (i, (&a, &b)) in schedule.timesteps.iter().zip(&expected).enumerate() {
                let fractional = name.starts_with("euler")
                    && (config.use_karras_sigmas || config.use_exponential_sigmas);
                let limit = if fractional { FRACTIONAL_TIMESTEP_TOLERANCE } else { 0.0 };
                let error = (f64::from(a as f32) - f64::from(b)).abs();
                assert!(error <= limit, "{name} with {steps} steps, timestep {i}: {a} and {b}");
            }
            if let Some(expected) = golden.get(&format!("{name}/sigmas{suffix}")) {
                assert_eq!(schedule.sigmas.len(), expected.len(), "{name} with {steps} steps");
                for (i, (&a, &b)) in schedule.sigmas.iter().zip(&expected).enumerate() {
                    let error = (a - f64::from(b)).abs();
                    assert!(
                        error <= SIGMA_TOLERANCE * f64::from(b),
                        "{name} with {steps} steps, sigma {i}: {a} and {b}"
                    );
                }
            }
            checked += 1;
        }
    }
    assert!(checked >= 5 * 30, "only {checked} schedules in the table");
}

#[test]
fn every_step_of_every_sampler_is_diffusers() {
    let bytes = read("schedules.safetensors");
    let golden = Golden::new(&bytes);
    let mut worst = (0.0, String::new());
    for (name, case) in golden.cases() {
        let (sampler, config) = sampler_of(&case);
        let table = sampler.table(&config, case.steps).unwrap();
        assert_eq!(table.len(), case.steps);
        let of = |key: &str| golden.get(&format!("{name}/{key}")).unwrap();
        let (inputs, outputs, noises, samples) = (of("in"), of("out"), of("noise"), of("x"));
        let starts = of("start");
        let clean = golden.get("start.clean").unwrap();
        let fresh = golden.get("start.noise").unwrap();
        let n = clean.len();

        let unit = Rng::new(11).randn(n);
        let scale = sampler.init_noise_sigma(&config, case.steps).unwrap();
        let mut x: Vec<f32> = unit.iter().map(|u| u * scale).collect();
        let mut check = |what: &str, i: usize, ours: &[f32], expected: &[f32]| {
            let error = relative_l2(ours, expected);
            let limit =
                if name == "euler_vpred_zsnr" { PURE_NOISE_TOLERANCE } else { SAMPLE_TOLERANCE };
            assert!(error <= limit, "{name}: {what} {i} is off by {error:.2e}");
            if error > worst.0 {
                worst = (error, format!("{name} {what} {i}"));
            }
        };
        check("init", 0, &x, &of("init"));
        let mut x0_prev: Option<Vec<f32>> = None;
        for (i, row) in table.iter().enumerate() {
            let at = i * n..(i + 1) * n;
            let input: Vec<f32> = x.iter().map(|v| v * row.input_scale).collect();
            check("in", i, &input, &inputs[at.clone()]);
            let start: Vec<f32> = clean
                .iter()
                .zip(&fresh)
                .map(|(c, f)| row.start[0] * c + row.start[1] * f)
                .collect();
            check("start", i, &start, &starts[at.clone()]);
            let noise = &noises[at.clone()];
            let drawn = noise.iter().any(|&v| v != 0.0);
            assert!(
                drawn || !row.needs_noise(),
                "{name}: step {i} adds noise, diffusers drew none"
            );
            let out = &outputs[at.clone()];
            let (next, x0) = apply(row, &x, out, x0_prev.as_deref(), Some(noise)).unwrap();
            check("x", i, &next, &samples[at]);
            (x, x0_prev) = (next, Some(x0));
        }
    }
    println!("worst relative L2 {:.2e} at {}", worst.0, worst.1);
}

#[test]
fn random_numbers_are_torchs() {
    let bytes = read("schedules_rng.safetensors");
    let golden = Golden::new(&bytes);
    let mut worst = 0.0f32;
    for (seed, sizes) in &golden.metadata {
        let sizes: Vec<usize> = serde_json::from_str(sizes).unwrap();
        let mut rng = Rng::new(seed.parse().unwrap());
        for (call, &size) in sizes.iter().enumerate() {
            let expected = golden.get(&format!("{seed}/{call}")).unwrap();
            let ours = rng.randn(size);
            assert_eq!(ours.len(), size);
            for (i, (a, b)) in ours.iter().zip(&expected).enumerate() {
                // The uniforms are bit-equal; torch's vectorised log, sin and cos of f32 differ from
                // correctly rounded ones by a few units in the last place of values up to 5.
                let error = (a - b).abs();
                assert!(error <= 1e-6, "seed {seed} call {call} ({size}) at {i}: {a} and {b}");
                worst = worst.max(error);
            }
        }
    }
    println!("worst difference {worst:.2e}");
}

fn message<T: std::fmt::Debug>(result: inknib::Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn requests_that_cannot_be_served_are_usage_errors() {
    let config = ScheduleConfig::stable_diffusion();
    for sampler in Sampler::ALL {
        for (steps, word) in [(0, "zero steps"), (1001, "1001 steps"), (usize::MAX, "steps")] {
            let error = sampler.table(&config, steps).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
        // Past the table by one training step, or at its very end, is no reason to fail.
        let most = match sampler {
            Sampler::Lcm => 50,
            // 1000 of 1001 whole steps among 0 to 999: two are the same.
            Sampler::DpmPlusPlus2M | Sampler::DpmPlusPlus2MSde => 999,
            _ => 1000,
        };
        assert_eq!(sampler.table(&config, most).unwrap().len(), most, "{}", sampler.name());
    }
    let none = ScheduleConfig { lambda_min_clipped: Some(1e9), ..config.clone() };
    for sampler in Sampler::ALL {
        assert_eq!(sampler.table(&none, 8).is_err(), sampler.name().starts_with("dpm++"));
    }
    assert!(message(Sampler::DpmPlusPlus2M.table(&config, 1000)).contains("twice"));
    assert!(message(Sampler::Lcm.table(&config, 51)).contains("original_inference_steps = 50"));
    assert!(message("eular".parse::<Sampler>()).contains("euler, euler_a, ddim, ddpm, dpm++2m"));
    assert!(message("karas".parse::<SigmaSpacing>()).contains("discrete (default"));
    assert!(message(Sampler::Lcm.check_spacing(SigmaSpacing::Karras)).contains("dpm++2m"));
    assert!(Sampler::Euler.check_spacing(SigmaSpacing::Karras).is_ok());
}

#[test]
fn names_of_other_programs_are_understood() {
    for (name, sampler) in [
        ("euler_a", Sampler::EulerAncestral),
        ("Euler a", Sampler::EulerAncestral),
        ("k_euler", Sampler::Euler),
        ("DPM++ 2M", Sampler::DpmPlusPlus2M),
        ("dpmpp_2m", Sampler::DpmPlusPlus2M),
        ("DPMSolverMultistepScheduler", Sampler::DpmPlusPlus2M),
        ("dpm++2m_sde", Sampler::DpmPlusPlus2MSde),
        ("LCM", Sampler::Lcm),
    ] {
        assert_eq!(name.parse::<Sampler>().unwrap(), sampler, "{name}");
    }
    for sampler in Sampler::ALL {
        assert_eq!(sampler.name().parse::<Sampler>().unwrap(), sampler);
        assert_eq!(sampler.label().parse::<Sampler>().unwrap(), sampler);
    }
    let karras = (Sampler::DpmPlusPlus2M, Some(SigmaSpacing::Karras));
    assert_eq!(Sampler::parse_with_spacing("DPM++ 2M Karras").unwrap(), karras);
    assert_eq!(Sampler::parse_with_spacing("ddim").unwrap(), (Sampler::Ddim { eta: 0.0 }, None));
}

#[test]
fn configuration_files_are_read_as_diffusers_writes_them() {
    // Stable Diffusion 1.5's own file: a class that is not here, null, no spacing.
    let text = r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
        "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
        "clip_sample": false}"#;
    let config = ScheduleConfig::from_json(text, "scheduler_config.json").unwrap();
    let expected = ScheduleConfig::stable_diffusion();
    assert_eq!(ScheduleConfig { class_name: None, ..config.clone() }, expected);
    assert_eq!(Sampler::of_config(&config), Sampler::Euler);

    let text = r#"{"lambda_min_clipped": -Infinity, "x": "a \" -Infinity", "prediction_type": "v_prediction"}"#;
    let config = ScheduleConfig::from_json(text, "x").unwrap();
    assert_eq!(config.lambda_min_clipped, None);

    for (text, words) in [
        (
            r#"{"beta_schedule": "cosine"}"#,
            "f.json: `linear`, `scaled_linear`, `squaredcos_cap_v2`",
        ),
        (r#"{"prediction_type": "flow"}"#, "f.json: `epsilon`, `v_prediction`, `sample`"),
        (r#"{"timestep_spacing": "even"}"#, "f.json: `leading`, `trailing`, `linspace`"),
        (r#"{"num_train_timesteps": 0}"#, "f.json: num_train_timesteps valid:"),
        (r#"{"clip_sample_range": -1}"#, "f.json: clip_sample_range above"),
        (r#"{"use_flow_sigmas": true}"#, "f.json: use_flow_sigmas karras"),
        (r#"{"trained_betas": [0.1]}"#, "f.json: trained_betas 1000"),
        ("[]", "f.json: not a scheduler configuration"),
        ("{", "f.json: not a scheduler configuration"),
    ] {
        let error = ScheduleConfig::from_json(text, "f.json").unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
        for word in words.split_inclusive(' ') {
            assert!(error.to_string().contains(word.trim()), "{error} lacks {word}");
        }
    }
}

#[test]
fn pure_noise_and_epsilon_do_not_go_together() {
    let config = ScheduleConfig {
        rescale_betas_zero_snr: true,
        timestep_spacing: Some(inknib::diffusion::schedule::TimestepSpacing::Trailing),
        ..ScheduleConfig::stable_diffusion()
    };
    let error = message(Sampler::Ddim { eta: 0.0 }.table(&config, 4));
    assert!(error.contains("v-prediction"), "{error}");
}

#[test]
fn a_run_from_a_picture_starts_without_history() {
    let config = ScheduleConfig::stable_diffusion();
    assert_eq!(first_step(20, 0.6).unwrap(), 8);
    assert_eq!((first_step(20, 1.0).unwrap(), first_step(20, 0.0).unwrap()), (0, 20));
    assert!(first_step(20, f64::NAN).is_err() && first_step(20, 1.5).is_err());
    let whole = Sampler::DpmPlusPlus2M.table(&config, 20).unwrap();
    let part = Sampler::DpmPlusPlus2M.table_from(&config, 20, 8).unwrap();
    assert!(!part[0].needs_history() && whole[8].needs_history());
    assert_eq!(part[1..], whole[9..]);
    // The sample holds clean and noise in proportions that give the level.
    for row in &part {
        assert!((row.start[1] / row.start[0] - row.sigma).abs() <= 1e-6 * row.sigma);
    }
}

#[test]
fn a_step_refuses_slices_that_do_not_fit() {
    let table = Sampler::EulerAncestral.table(&ScheduleConfig::stable_diffusion(), 4).unwrap();
    let (x, short) = ([1.0; 8], [1.0; 7]);
    assert!(message(apply(&table[0], &x, &short, None, Some(&x))).contains("out holds 7"));
    assert!(message(apply(&table[0], &x, &x, None, None)).contains("noise holds 0"));
    assert!(apply(&table[3], &x, &x, None, None).is_ok(), "the last step adds no noise");
}
