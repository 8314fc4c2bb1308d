use inknib::diffusion::sampler::{COEFFICIENTS, Sampler, State, StepCoefficients, apply};
use inknib::diffusion::schedule::ScheduleConfig;
use inknib::gpu::Elem;
use inknib::graph::{Graph, Kernels, Plan, PlanOptions};
use inknib::ops::guidance::Answer;
use inknib::ops::sampler::{MEMORY, model_input, predict_value, predict_x0, remember, step};

use crate::harness::*;

struct Case<'a> {
    row: &'a StepCoefficients,
    guidance: f32,
    act: Elem,
    kernels: Kernels,
    /// Of x; the first is the number of pictures.
    shape: [usize; 4],
    /// The network's answers, one or two.
    out: &'a [f32],
    /// Two answers come apart.
    apart: bool,
    state: &'a State,
    noise: &'a [f32],
}

struct Result {
    input: Vec<f32>,
    value: Vec<f32>,
    x0: Vec<f32>,
    next: Vec<f32>,
    /// h1, h2, h3, s.
    memory: Vec<f32>,
}

fn memory_of(state: &State) -> Vec<f32> {
    let [h1, h2, h3] = &state.history;
    [h1, h2, h3, &state.saved].into_iter().flatten().copied().collect()
}

fn run(case: &Case<'_>) -> Option<Result> {
    let gpu = gpu()?;
    let graph = Graph::new(case.act);
    let [items, h, w, c] = case.shape;
    let copies = case.out.len() / case.state.x.len();
    let x = graph.input("x", case.shape, Elem::F32);
    let coef = graph.input("coef", [COEFFICIENTS], Elem::F32);
    let noise = graph.input("noise", case.shape, Elem::F32);
    let kept = gpu.upload("memory", bytemuck::cast_slice(&memory_of(case.state))).unwrap();
    let memory = graph.external(&kept, [MEMORY * items, h, w, c], Elem::F32);
    let n = case.state.x.len();
    let answer = match case.apart {
        true => {
            let half = |part: &[f32]| graph.literal(case.shape, part.to_vec());
            Answer::pair(half(&case.out[..n]), half(&case.out[n..]))
        }
        false => graph.literal([copies * items, h, w, c], case.out.to_vec()).into(),
    };
    let value = predict_value(x, answer, coef);
    graph.output("input", model_input(x, coef, copies));
    graph.output("value", value);
    graph.output("x0", predict_x0(x, answer, coef));
    graph.output("next", step(x, value, memory, noise, coef));
    graph.output("memory", remember(memory, x, value, coef));
    let options = PlanOptions { kernels: case.kernels, poison: true, ..Default::default() };
    let plan = Plan::new(gpu, &graph, &options).unwrap();
    plan.set("x", &case.state.x).unwrap();
    plan.set("coef", &case.row.with_guidance(case.guidance, 0.0)).unwrap();
    plan.set("noise", case.noise).unwrap();
    plan.run().unwrap();
    let [input, value, x0, next] =
        ["input", "value", "x0", "next"].map(|name| plan.read(name).unwrap());
    let memory =
        bytemuck::pod_collect_to_vec(&gpu.read(&kept, 0, (MEMORY * n * 4) as u64).unwrap());
    Some(Result { input, value, x0, next, memory })
}

fn f64s(v: &[f32]) -> Vec<f64> {
    v.iter().map(|v| f64::from(*v)).collect()
}

fn random_state(n: usize) -> State {
    State { x: randn(1, n), history: [3, 4, 5].map(|s| randn(s, n)), saved: randn(6, n) }
}

fn check(
    row: &StepCoefficients,
    act: Elem,
    kernels: Kernels,
    shape: [usize; 4],
    (copies, apart): (usize, bool),
) {
    let n = shape.iter().product();
    let (state, noise) = (random_state(n), randn(7, n));
    let out = stored(act, &randn(2, copies * n));
    let guidance = 7.5;
    let (state_ref, noise_ref) = (&state, &noise);
    let case = Case {
        row,
        guidance,
        act,
        kernels,
        shape,
        out: &out,
        apart,
        state: state_ref,
        noise: noise_ref,
    };
    let Some(got) = run(&case) else { return };
    let joined: Vec<f32> = match copies {
        1 => out.clone(),
        _ => (0..n).map(|i| out[i] + guidance * (out[n + i] - out[i])).collect(),
    };
    let (after, value) = apply(row, &state, &joined, Some(&noise)).unwrap();
    let at = format!("{act:?} {kernels:?} {shape:?} {copies} {apart} t {}", row.timestep);
    let input: Vec<f64> =
        (0..copies * n).map(|i| f64::from(row.input_scale) * f64::from(state.x[i % n])).collect();
    let e = nmse(&got.input, &input);
    assert!(e <= tolerance(act), "model input {at}: {e:.2e}");
    let x0: Vec<f64> = joined
        .iter()
        .zip(&state.x)
        .map(|(o, x)| f64::from(row.x0[0] * x) + f64::from(row.x0[1] * o))
        .collect();
    // A handful of f32 roundings, in an order that fused multiply-adds may change: (2⁻²⁴)² each, against
    // cancellation where the value is a difference of large terms (a factor of 1e3 at the last training steps).
    for (name, got, want) in [
        ("value", got.value, f64s(&value)),
        ("x0", got.x0, x0),
        ("next", got.next, f64s(&after.x)),
        ("memory", got.memory, f64s(&memory_of(&after))),
    ] {
        let e = nmse(&got, &want);
        assert!(e <= 1e-10, "{name} {at}: {e:.2e}");
    }
}

#[test]
fn every_sampler_steps_as_on_the_host() {
    let Some(gpu) = gpu() else { return };
    let config = ScheduleConfig::default();
    for sampler in Sampler::ALL {
        for row in &sampler.table(&config, 4).unwrap() {
            for act in acts(gpu) {
                for kernels in BOTH {
                    check(row, act, kernels, [1, 8, 8, 4], (2, false));
                }
            }
        }
    }
}

#[test]
fn odd_sizes_many_pictures_and_answers_apart() {
    let Some(gpu) = gpu() else { return };
    let table = Sampler::EulerAncestral.table(&ScheduleConfig::default(), 3).unwrap();
    for kernels in BOTH {
        for act in acts(gpu) {
            check(&table[1], act, kernels, [1, 5, 3, 3], (2, false));
            check(&table[1], act, kernels, [1, 9, 7, 4], (1, false));
            check(&table[1], act, kernels, [3, 5, 3, 3], (2, false));
            check(&table[1], act, kernels, [2, 4, 6, 4], (1, false));
            check(&table[1], act, kernels, [2, 4, 6, 4], (2, true));
            check(&table[1], act, kernels, [1, 3, 3, 3], (2, true));
        }
    }
}

/// A whole run on the device: the state goes from row to row in place, and nothing is read back between.
#[test]
fn a_run_on_the_device_is_the_run_on_the_host() {
    let Some(gpu) = gpu() else { return };
    let (config, shape, n) = (ScheduleConfig::stable_diffusion(), [1, 4, 4, 4], 64);
    for sampler in Sampler::ALL {
        let table = sampler.table_from(&config, 6, 1).unwrap();
        let start = randn(1, n);
        let mut state = State::new(start.clone());
        let sample = gpu.upload("x", bytemuck::cast_slice(&start)).unwrap();
        let kept = gpu.upload("memory", &vec![0xff; MEMORY * n * 4]).unwrap();
        let graph = Graph::new(Elem::F32);
        let x = graph.external(&sample, shape, Elem::F32);
        let memory = graph.external(&kept, [MEMORY, 4, 4, 4], Elem::F32);
        let coef = graph.input("coef", [COEFFICIENTS], Elem::F32);
        let [out, noise] = ["out", "noise"].map(|name| graph.input(name, shape, Elem::F32));
        let value = predict_value(x, out, coef);
        let next = step(x, value, memory, noise, coef);
        graph.output("memory", remember(memory, x, value, coef));
        graph.output("next", inknib::ops::assign::assign(x, next));
        let plan = Plan::new(gpu, &graph, &PlanOptions::default()).unwrap();
        for (i, row) in table.iter().enumerate() {
            let (out, noise) = (randn(10 + i as u64, n), randn(50 + i as u64, n));
            plan.set("coef", &row.with_guidance(1.0, 0.0)).unwrap();
            plan.set("out", &out).unwrap();
            plan.set("noise", &noise).unwrap();
            plan.run().unwrap();
            state = apply(row, &state, &out, Some(&noise)).unwrap().0;
        }
        // As for one row, and the differences between rows grow with the run.
        let e = nmse(&plan.read("next").unwrap(), &f64s(&state.x));
        assert!(e <= 1e-9, "{}: {e:.2e}", sampler.name());
    }
}

fn plain() -> StepCoefficients {
    StepCoefficients {
        timestep: 1.0,
        input_scale: 1.0,
        value: [0.0, 1.0],
        clip: f32::MAX,
        next: [0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        keep: [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        push: 1.0,
        x0: [0.0, 1.0],
        sigma: 1.0,
        start: [1.0, 0.0],
        step: 0,
        steps_done: 1,
    }
}

#[test]
fn parts_with_coefficient_zero_may_hold_anything() {
    let row = plain();
    let rubbish = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0];
    let x = vec![1.0, 2.0, 3.0, 4.0];
    let history = std::array::from_fn(|_| rubbish.clone());
    let state = State { x: x.clone(), history, saved: rubbish.clone() };
    for kernels in BOTH {
        let case = Case {
            row: &row,
            guidance: 1.0,
            act: Elem::F32,
            kernels,
            shape: [1, 1, 1, 4],
            out: &[3.0, 2.0, 1.0, 0.0],
            apart: false,
            state: &state,
            noise: &rubbish,
        };
        let Some(got) = run(&case) else { return };
        assert_eq!(got.value, [3.0, 2.0, 1.0, 0.0]);
        assert_eq!(got.next, [2.0, 2.0, 2.0, 2.0]);
        assert_eq!(got.memory[..4], got.value);
        assert_eq!(got.memory[12..], x);
    }
}

#[test]
fn the_clip_holds_and_does_not_hide_what_is_not_finite() {
    // Twice the clamped value and once as it was.
    let next = [0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
    let row = StepCoefficients { clip: 1.0, next, ..plain() };
    for kernels in BOTH {
        let case = Case {
            row: &row,
            guidance: 1.0,
            act: Elem::F32,
            kernels,
            shape: [1, 1, 1, 4],
            out: &[5.0, -5.0, f32::INFINITY, f32::NAN],
            apart: false,
            state: &State::new(vec![0.0; 4]),
            noise: &[0.0; 4],
        };
        let Some(Result { next, memory, .. }) = run(&case) else { return };
        assert_eq!((&next[..2], &memory[..2]), (&[7.0, -7.0][..], &[1.0, -1.0][..]));
        assert!(!next[2].is_finite() && !next[3].is_finite(), "{next:?}");
        assert!(!memory[2].is_finite() && !memory[3].is_finite(), "{memory:?}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let error = |record: &dyn for<'g> Fn(&'g Graph)| {
        let graph = Graph::new(Elem::F32);
        record(&graph);
        graph.finish().unwrap_err().to_string()
    };
    let message = error(&|graph| {
        let x = graph.input("x", [1, 2, 2, 4], Elem::F32);
        model_input(x, graph.input("coef", [12], Elem::F32), 2);
    });
    assert!(message.contains("model_input: coef [12]"), "{message}");
    let message = error(&|graph| {
        let x = graph.input("x", [1, 2, 2, 4], Elem::F32);
        let out = graph.input("out", [3, 2, 2, 4], Elem::F32);
        predict_value(x, out, graph.input("coef", [COEFFICIENTS], Elem::F32));
    });
    assert!(message.contains("one or two times 16 values"), "{message}");
    let message = error(&|graph| {
        let x = graph.input("x", [1, 2, 2, 4], Elem::F32);
        step(x, x, x, x, graph.input("coef", [COEFFICIENTS], Elem::F32));
    });
    assert!(message.contains("sampler_step: memory"), "{message}");
}
