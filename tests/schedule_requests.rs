//! What schedules and samplers are asked for by name, by configuration file, and wrongly.

use inknib::diffusion::sampler::{Sampler, State, apply};
use inknib::diffusion::schedule::{PredictionType, ScheduleConfig, SigmaSpacing, TimestepSpacing};

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
            Sampler::Lcm | Sampler::Tcd { .. } => 50,
            // 1000 of 1001 whole steps among 0 to 999: two are the same.
            Sampler::DpmPlusPlus2S
            | Sampler::DpmPlusPlus2M
            | Sampler::DpmPlusPlus2MSde
            | Sampler::UniPc
            | Sampler::Deis => 999,
            _ => 1000,
        };
        let table = sampler.table(&config, most).unwrap();
        assert_eq!(table.last().unwrap().steps_done as usize, most, "{}", sampler.name());
    }
    let none = ScheduleConfig { lambda_min_clipped: Some(1e9), ..config.clone() };
    for sampler in Sampler::ALL {
        let clips = ["dpm++2s", "dpm++2m", "dpm++2m_sde"].contains(&sampler.name());
        assert_eq!(sampler.table(&none, 8).is_err(), clips, "{}", sampler.name());
    }
    assert!(message(Sampler::DpmPlusPlus2M.table(&config, 1000)).contains("twice"));
    assert!(message(Sampler::Lcm.table(&config, 51)).contains("original_inference_steps = 50"));
    assert!(message("eular".parse::<Sampler>()).contains("euler, euler_a, heun, dpm2, dpm2_a"));
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
        ("pndm", Sampler::Plms),
        ("k_dpm_2_ancestral", Sampler::Dpm2Ancestral),
        ("KDPM2DiscreteScheduler", Sampler::Dpm2),
        ("DPM++ SDE", Sampler::DpmPlusPlusSde),
        ("uni_pc", Sampler::UniPc),
    ] {
        assert_eq!(name.parse::<Sampler>().unwrap(), sampler, "{name}");
    }
    for sampler in Sampler::ALL {
        assert_eq!(sampler.name().parse::<Sampler>().unwrap(), sampler);
        assert_eq!(sampler.label().parse::<Sampler>().unwrap(), sampler);
    }
    let karras = (Sampler::DpmPlusPlus2M, Some(SigmaSpacing::Karras));
    assert_eq!(Sampler::parse_with_spacing("DPM++ 2M Karras").unwrap(), karras);
    let ddim = Sampler::Ddim { eta: 0.0 };
    assert_eq!(Sampler::parse_with_spacing("ddim").unwrap(), (ddim, None));
    let trailing = (ddim, Some(SigmaSpacing::Trailing));
    assert_eq!(Sampler::parse_with_spacing("ddim_trailing").unwrap(), trailing);
    for spacing in SigmaSpacing::ALL {
        assert_eq!(spacing.label().parse::<SigmaSpacing>().unwrap(), spacing);
    }
    for (class, name) in [
        ("PNDMScheduler", "plms"),
        ("HeunDiscreteScheduler", "heun"),
        ("UniPCMultistepScheduler", "unipc"),
        ("TCDScheduler", "tcd"),
    ] {
        let config = ScheduleConfig { class_name: Some(class.into()), ..Default::default() };
        assert_eq!(Sampler::of_config(&config).unwrap().name(), name);
    }
    let unknown =
        ScheduleConfig { class_name: Some("RePaintScheduler".into()), ..Default::default() };
    let error = message(Sampler::of_config(&unknown));
    assert!(error.contains("RePaintScheduler") && error.contains("PNDMScheduler"), "{error}");
}

#[test]
fn configuration_files_are_read_as_diffusers_writes_them() {
    // Stable Diffusion 1.5's own file: null, no spacing.
    let text = r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
        "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
        "clip_sample": false}"#;
    let config = ScheduleConfig::from_json(text, "scheduler_config.json").unwrap();
    let expected = ScheduleConfig::stable_diffusion();
    assert_eq!(ScheduleConfig { class_name: None, ..config.clone() }, expected);
    assert_eq!(Sampler::of_config(&config).unwrap(), Sampler::Plms);

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
        timestep_spacing: Some(TimestepSpacing::Trailing),
        ..ScheduleConfig::stable_diffusion()
    };
    let error = message(Sampler::Ddim { eta: 0.0 }.table(&config, 4));
    assert!(error.contains("v-prediction"), "{error}");
}

#[test]
fn methods_without_a_form_for_pure_noise_say_so() {
    let config = ScheduleConfig {
        rescale_betas_zero_snr: true,
        prediction_type: PredictionType::VPrediction,
        ..ScheduleConfig::stable_diffusion()
    };
    for sampler in Sampler::ALL {
        let Err(error) = sampler.table(&config, 8) else { continue };
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains("use one of euler, euler_a, dpm++2m"), "{error}");
    }
    assert!(Sampler::Heun.table(&config, 8).is_err() && Sampler::UniPc.table(&config, 8).is_ok());
}

#[test]
fn a_step_refuses_slices_that_do_not_fit() {
    let table = Sampler::EulerAncestral.table(&ScheduleConfig::stable_diffusion(), 4).unwrap();
    let (state, x, short) = (State::new(vec![1.0; 8]), [1.0; 8], [1.0; 7]);
    assert!(message(apply(&table[0], &state, &short, Some(&x))).contains("out holds 7"));
    assert!(message(apply(&table[0], &state, &x, None)).contains("noise holds 0"));
    assert!(apply(&table[3], &state, &x, None).is_ok(), "the last step adds no noise");
    let broken = State { saved: Vec::new(), ..state };
    assert!(message(apply(&table[0], &broken, &x, Some(&x))).contains("the kept sample holds 0"));
}
