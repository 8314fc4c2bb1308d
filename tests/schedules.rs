//! Schedules, samplers and random numbers against tables made from diffusers and torch by
//! tools/golden_schedules.py. The configurations are read from the table's metadata, so they take the
//! same way through the reader as a file from a checkpoint.

use std::collections::BTreeMap;
use std::path::PathBuf;

use inknib::diffusion::rng::{Rng, RngKind};
use inknib::diffusion::sampler::{Sampler, State, StepCoefficients, apply, first_step};
use inknib::diffusion::schedule::{PredictionType, ScheduleConfig, SigmaSpacing};
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
/// A midpoint's level goes through log and exp in f32 before that: four such roundings, and one of the step itself.
const MIDPOINT_TIMESTEP_TOLERANCE: f64 = 2e-4;

#[derive(Deserialize)]
struct Case {
    config: serde_json::Value,
    step: BTreeMap<String, serde_json::Value>,
    steps: usize,
    /// Step at which the run begins.
    first: usize,
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
    let eta = |default| case.step.get("eta").and_then(|e| e.as_f64()).unwrap_or(default);
    let sampler = match Sampler::of_config(&config).unwrap() {
        Sampler::Ddim { eta: default } => Sampler::Ddim { eta: eta(default) },
        Sampler::Tcd { eta: default } => Sampler::Tcd { eta: eta(default) },
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

/// diffusers tells the network fractional steps where levels are spaced by themselves, and at the midpoints of DPM2
/// and DPM++ SDE.
fn timestep_tolerance(sampler: Sampler, config: &ScheduleConfig) -> f64 {
    let midpoints = [Sampler::Dpm2, Sampler::Dpm2Ancestral, Sampler::DpmPlusPlusSde];
    let fractional = [Sampler::Euler, Sampler::EulerAncestral, Sampler::Lms, Sampler::Heun];
    if midpoints.contains(&sampler) {
        return MIDPOINT_TIMESTEP_TOLERANCE;
    }
    let spaced = config.use_karras_sigmas || config.use_exponential_sigmas;
    if spaced && fractional.contains(&sampler) { FRACTIONAL_TIMESTEP_TOLERANCE } else { 0.0 }
}

#[test]
fn timesteps_and_sigmas_are_diffusers() {
    let bytes = read("schedules.safetensors");
    let golden = Golden::new(&bytes);
    let mut checked = 0;
    for (name, case) in golden.cases() {
        let (sampler, config) = sampler_of(&case);
        let counts = [(case.steps, case.first, String::new())]
            .into_iter()
            .chain([1, 5, 25, 50].map(|n| (n, 0, format!(".{n}"))));
        for (steps, first, suffix) in counts {
            let Some(expected) = golden.get(&format!("{name}/timesteps{suffix}")) else {
                assert!(!suffix.is_empty(), "{name}");
                continue;
            };
            let at = format!("{name} with {steps} steps");
            let table = sampler.table_from(&config, steps, first).unwrap();
            assert_eq!(table.len(), expected.len(), "{at}");
            let limit = timestep_tolerance(sampler, &config);
            for (i, (row, &b)) in table.iter().zip(&expected).enumerate() {
                let error = (f64::from(row.timestep) - f64::from(b)).abs();
                assert!(error <= limit, "{at}, timestep {i}: {} and {b}", row.timestep);
            }
            if let Some(expected) = golden.get(&format!("{name}/sigmas{suffix}")) {
                let sigmas = sampler.schedule(&config, steps).unwrap().sigmas;
                assert_eq!(sigmas.len(), expected.len(), "{at}");
                for (i, (&a, &b)) in sigmas.iter().zip(&expected).enumerate() {
                    let error = (a - f64::from(b)).abs();
                    let limit = SIGMA_TOLERANCE * f64::from(b);
                    assert!(error <= limit, "{at}, sigma {i}: {a} and {b}");
                }
            }
            checked += 1;
        }
    }
    assert!(checked >= 5 * 60, "only {checked} schedules in the table");
}

fn begins_a_step(table: &[StepCoefficients], i: usize) -> bool {
    i == 0 || table[i].step != table[i - 1].step
}

#[test]
fn every_step_of_every_sampler_is_diffusers() {
    let bytes = read("schedules.safetensors");
    let golden = Golden::new(&bytes);
    let (mut worst, mut seen) = ((0.0, String::new()), Vec::new());
    for (name, case) in golden.cases() {
        let (sampler, config) = sampler_of(&case);
        seen.push(sampler.name());
        let table = sampler.table_from(&config, case.steps, case.first).unwrap();
        assert_eq!(table.last().unwrap().steps_done as usize, case.steps - case.first, "{name}");
        let of = |key: &str| golden.get(&format!("{name}/{key}")).unwrap();
        let (inputs, outputs, noises, samples) = (of("in"), of("out"), of("noise"), of("x"));
        let starts = of("start");
        let clean = golden.get("start.clean").unwrap();
        let fresh = golden.get("start.noise").unwrap();
        let n = clean.len();
        let noisy = |row: &StepCoefficients| -> Vec<f32> {
            let pairs = clean.iter().zip(&fresh);
            pairs.map(|(c, f)| row.start[0] * c + row.start[1] * f).collect()
        };

        let unit = Rng::new(RngKind::Cpu, 11).randn(n);
        let scale = sampler.init_noise_sigma(&config, case.steps).unwrap();
        let x = match case.first {
            0 => unit.iter().map(|u| u * scale).collect(),
            _ => noisy(&table[0]),
        };
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
        let mut state = State::new(x);
        for (i, row) in table.iter().enumerate() {
            let at = i * n..(i + 1) * n;
            let input: Vec<f32> = state.x.iter().map(|v| v * row.input_scale).collect();
            check("in", i, &input, &inputs[at.clone()]);
            if begins_a_step(&table, i) {
                check("start", i, &noisy(row), &starts[at.clone()]);
            }
            let noise = &noises[at.clone()];
            let drawn = noise.iter().any(|&v| v != 0.0);
            assert!(drawn || !row.needs_noise(), "{name}: row {i} adds noise, diffusers drew none");
            state = apply(row, &state, &outputs[at.clone()], Some(noise)).unwrap().0;
            check("x", i, &state.x, &samples[at]);
        }
    }
    println!("worst relative L2 {:.2e} at {}", worst.0, worst.1);
    for sampler in Sampler::ALL {
        assert!(seen.contains(&sampler.name()), "no case of {}", sampler.name());
    }
}

#[test]
fn random_numbers_are_torchs() {
    let bytes = read("schedules_rng.safetensors");
    let golden = Golden::new(&bytes);
    let mut worst = 0.0f32;
    for (seed, sizes) in &golden.metadata {
        let sizes: Vec<usize> = serde_json::from_str(sizes).unwrap();
        let mut rng = Rng::new(RngKind::Cpu, seed.parse().unwrap());
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

#[test]
fn a_run_from_a_picture_starts_without_history() {
    let config = ScheduleConfig::stable_diffusion();
    assert_eq!(first_step(20, 0.6).unwrap(), 8);
    assert_eq!((first_step(20, 1.0).unwrap(), first_step(20, 0.0).unwrap()), (0, 20));
    assert!(first_step(20, f64::NAN).is_err() && first_step(20, 1.5).is_err());
    let whole = Sampler::DpmPlusPlus2M.table(&config, 20).unwrap();
    let part = Sampler::DpmPlusPlus2M.table_from(&config, 20, 8).unwrap();
    assert!(!part[0].needs_history() && whole[8].needs_history());
    let coefficients = |rows: &[StepCoefficients]| -> Vec<StepCoefficients> {
        rows.iter().map(|row| StepCoefficients { steps_done: 0, ..*row }).collect()
    };
    assert_eq!(coefficients(&part[1..]), coefficients(&whole[9..]));
    for sampler in Sampler::ALL {
        let table = sampler.table_from(&config, 20, 8).unwrap();
        assert!(!table[0].needs_history(), "{}", sampler.name());
        let done: Vec<u32> = table.iter().map(|row| row.steps_done).collect();
        assert!(done.is_sorted() && done.last() == Some(&12), "{}: {done:?}", sampler.name());
        for row in &table {
            // The sample holds clean and noise in proportions that give the level.
            assert!((row.start[1] / row.start[0] - row.sigma).abs() <= 1e-6 * row.sigma);
            assert!(row.step >= 8 && row.step < 20 && row.steps_done <= row.step - 7);
        }
    }
    assert!(Sampler::Heun.table_from(&config, 20, 20).unwrap().is_empty());
    assert!(Sampler::Plms.table_from(&config, 20, 20).unwrap().is_empty());
}

/// A network that always knows the clean picture leads every method to it, wherever the run begins. Where x0 is
/// always the same, the methods without noise are exact, so the error is that of f32 and of the noise that a schedule
/// leaves at its end (training step 0: sigma 0.029).
#[test]
fn a_network_that_knows_the_picture_leads_to_it() {
    for prediction_type in
        [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample]
    {
        for spacing in SigmaSpacing::ALL {
            for (sampler, first) in
                Sampler::ALL.into_iter().flat_map(|s| [0, 1, 3, 7].map(|f| (s, f)))
            {
                // DDIM and PNDM of diffusers step by num_train_timesteps / n whatever the spacing, and so do ours:
                // with linspace they do not land where they ask next.
                let by_stride = [Sampler::Plms, Sampler::Ddim { eta: 0.0 }].contains(&sampler);
                let unserved = by_stride && spacing == SigmaSpacing::Linspace
                    || sampler == Sampler::Plms && prediction_type == PredictionType::Sample;
                if unserved || sampler.check_spacing(spacing).is_err() {
                    continue;
                }
                let config =
                    ScheduleConfig { prediction_type, ..ScheduleConfig::stable_diffusion() };
                let config = config.with_sigma_spacing(spacing);
                let clean = Rng::new(RngKind::Cpu, 1).randn(16);
                let error = relative_l2(&perfect_run(sampler, &config, first, &clean), &clean);
                let at = format!("{} {spacing:?} {prediction_type:?} from {first}", sampler.name());
                assert!(error <= 0.05, "{at}: off by {error:.2e}");
            }
        }
    }
}

fn perfect_run(sampler: Sampler, config: &ScheduleConfig, first: usize, clean: &[f32]) -> Vec<f32> {
    let table = sampler.table_from(config, 9, first).unwrap();
    let mut rng = Rng::new(RngKind::Cpu, 2);
    let noise = rng.randn(clean.len());
    let [signal, sigma] = table[0].start;
    let x = clean.iter().zip(&noise).map(|(c, n)| signal * c + sigma * n).collect();
    let mut state = State::new(x);
    for row in &table {
        let [a, b] = row.x0;
        let out: Vec<f32> = clean.iter().zip(&state.x).map(|(c, x)| (c - a * x) / b).collect();
        let noise = rng.randn(clean.len());
        state = apply(row, &state, &out, Some(&noise)).unwrap().0;
    }
    state.x
}

#[test]
fn sgm_uniform_is_k_diffusions() {
    // t_to_sigma over linspace(999, 0, 5)[:-1]: log sigma, interpolated between training steps.
    let config = ScheduleConfig::stable_diffusion().with_sigma_spacing(SigmaSpacing::SgmUniform);
    let schedule = Sampler::Euler.schedule(&config, 4).unwrap();
    assert_eq!(schedule.timesteps, [999.0, 749.25, 499.5, 249.75]);
    let level = |t: usize| {
        let alpha = schedule.alphas_cumprod[t];
        ((1.0 - alpha) / alpha).sqrt().ln()
    };
    let want = [level(999), 0.75 * level(749) + 0.25 * level(750)];
    for (sigma, want) in schedule.sigmas.iter().zip(want) {
        // The table of log sigma is f32, as in k-diffusion: half a step at 2.7 is 1.2e-7.
        assert!((sigma.ln() - want).abs() <= 2e-7, "{sigma}");
    }
}
