use inknib::diffusion::sampler::{Sampler, StepCoefficients, apply};
use inknib::diffusion::schedule::ScheduleConfig;
use inknib::gpu::Elem;
use inknib::graph::{Graph, Kernels, Plan, PlanOptions};
use inknib::ops::sampler::{COEFFICIENTS, model_input, predict_x0, step};

use crate::harness::*;

fn coefficients(row: &StepCoefficients, guidance: f32) -> Vec<f32> {
    let mut coef = bytemuck::cast_slice(&[*row]).to_vec();
    assert_eq!(coef.len(), 12);
    coef.push(guidance);
    coef.resize(COEFFICIENTS, 0.0);
    coef
}

struct Case<'a> {
    row: &'a StepCoefficients,
    guidance: f32,
    act: Elem,
    kernels: Kernels,
    shape: [usize; 4],
    x: &'a [f32],
    /// One answer of the network, or two.
    out: &'a [f32],
    x0_prev: &'a [f32],
    noise: &'a [f32],
}

/// Network's input, x0 and the next x.
fn run(case: &Case<'_>) -> Option<[Vec<f32>; 3]> {
    let gpu = gpu()?;
    let graph = Graph::new(case.act);
    let mut both = case.shape;
    both[0] = case.out.len() / case.x.len();
    let x = graph.input("x", case.shape, Elem::F32);
    let out = graph.input("out", both, case.act);
    let coef = graph.input("coef", [COEFFICIENTS], Elem::F32);
    let x0_prev = graph.input("x0_prev", case.shape, Elem::F32);
    let noise = graph.input("noise", case.shape, Elem::F32);
    let x0 = predict_x0(x, out, coef);
    graph.output("input", model_input(x, coef, both[0]));
    graph.output("x0", x0);
    graph.output("next", step(x, x0, x0_prev, noise, coef));
    let options = PlanOptions { kernels: case.kernels, poison: true, ..Default::default() };
    let plan = Plan::new(gpu, &graph, &options).unwrap();
    plan.set("x", case.x).unwrap();
    plan.set("out", case.out).unwrap();
    plan.set("coef", &coefficients(case.row, case.guidance)).unwrap();
    plan.set("x0_prev", case.x0_prev).unwrap();
    plan.set("noise", case.noise).unwrap();
    plan.run().unwrap();
    Some(["input", "x0", "next"].map(|name| plan.read(name).unwrap()))
}

fn f64s(v: &[f32]) -> Vec<f64> {
    v.iter().map(|v| f64::from(*v)).collect()
}

fn check(row: &StepCoefficients, act: Elem, kernels: Kernels, shape: [usize; 4], batch: usize) {
    let n = shape.iter().product();
    let (x, out) = (randn(1, n), stored(act, &randn(2, batch * n)));
    let (x0_prev, noise) = (randn(3, n), randn(4, n));
    let guidance = 7.5;
    let case = Case {
        row,
        guidance,
        act,
        kernels,
        shape,
        x: &x,
        out: &out,
        x0_prev: &x0_prev,
        noise: &noise,
    };
    let Some([input, x0, next]) = run(&case) else { return };
    let joined: Vec<f32> = match batch {
        1 => out.clone(),
        _ => (0..n).map(|i| out[i] + guidance * (out[n + i] - out[i])).collect(),
    };
    let (want_next, want_x0) = apply(row, &x, &joined, Some(&x0_prev), Some(&noise)).unwrap();
    let want_input: Vec<f64> =
        (0..batch * n).map(|i| f64::from(row.input_scale) * f64::from(x[i % n])).collect();
    let at = format!("{act:?} {kernels:?} {shape:?} batch {batch} t {}", row.timestep);
    let e = nmse(&input, &want_input);
    assert!(e <= tolerance(act), "model input {at}: {e:.2e}");
    // A handful of f32 roundings, in an order that fused multiply-adds may change: (2⁻²⁴)² each, against
    // cancellation where x0 is a difference of large terms (a factor of 1e3 at the last training steps).
    for (name, got, want) in [("x0", x0, want_x0), ("next", next, want_next)] {
        let e = nmse(&got, &f64s(&want));
        assert!(e <= 1e-10, "{name} {at}: {e:.2e}");
    }
}

#[test]
fn every_sampler_steps_as_on_the_host() {
    let Some(gpu) = gpu() else { return };
    let config = ScheduleConfig::default();
    for sampler in Sampler::ALL {
        let table = sampler.table(&config, 4).unwrap();
        for row in &table {
            for act in acts(gpu) {
                for kernels in BOTH {
                    check(row, act, kernels, [1, 8, 8, 4], 2);
                }
            }
        }
    }
}

#[test]
fn odd_sizes_and_a_single_answer() {
    let table = Sampler::EulerAncestral.table(&ScheduleConfig::default(), 3).unwrap();
    for kernels in BOTH {
        check(&table[1], Elem::F32, kernels, [1, 5, 3, 3], 2);
        check(&table[1], Elem::F32, kernels, [1, 9, 7, 4], 1);
    }
}

fn plain() -> StepCoefficients {
    StepCoefficients {
        timestep: 1.0,
        input_scale: 1.0,
        x0: [0.0, 1.0],
        next: [0.5, 0.5, 0.0, 0.0],
        sigma: 1.0,
        clip: f32::MAX,
        start: [1.0, 0.0],
    }
}

#[test]
fn parts_with_coefficient_zero_may_hold_anything() {
    let row = plain();
    let rubbish = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0];
    for kernels in BOTH {
        let case = Case {
            row: &row,
            guidance: 1.0,
            act: Elem::F32,
            kernels,
            shape: [1, 1, 1, 4],
            x: &[1.0, 2.0, 3.0, 4.0],
            out: &[3.0, 2.0, 1.0, 0.0],
            x0_prev: &rubbish,
            noise: &rubbish,
        };
        let Some([_, x0, next]) = run(&case) else { return };
        assert_eq!(x0, [3.0, 2.0, 1.0, 0.0]);
        assert_eq!(next, [2.0, 2.0, 2.0, 2.0]);
    }
}

#[test]
fn the_clip_holds_and_does_not_hide_what_is_not_finite() {
    let row = StepCoefficients { clip: 1.0, ..plain() };
    for kernels in BOTH {
        let case = Case {
            row: &row,
            guidance: 1.0,
            act: Elem::F32,
            kernels,
            shape: [1, 1, 1, 4],
            x: &[0.0; 4],
            out: &[5.0, -5.0, f32::INFINITY, f32::NAN],
            x0_prev: &[0.0; 4],
            noise: &[0.0; 4],
        };
        let Some([_, x0, _]) = run(&case) else { return };
        assert_eq!(x0[..2], [1.0, -1.0]);
        assert!(!x0[2].is_finite() && !x0[3].is_finite(), "{x0:?}");
    }
}

#[test]
fn a_coefficient_row_of_another_size_is_a_shape_error() {
    let graph = Graph::new(Elem::F32);
    let x = graph.input("x", [1, 2, 2, 4], Elem::F32);
    model_input(x, graph.input("coef", [12], Elem::F32), 2);
    let error = graph.finish().unwrap_err().to_string();
    assert!(error.contains("model_input: coef [12]"), "{error}");
}
