use inknib::gpu::Elem;
use inknib::graph::{Graph, Plan, PlanOptions};
use inknib::ops::timestep::{oracle, timestep_embedding};

use crate::harness::*;

/// Largest error against sine and cosine in f64 of the same f32 angles.
fn worst(act: Elem, dim: usize, flip: bool, shift: f32, t: &[f32]) -> Option<f64> {
    let gpu = gpu()?;
    let want = oracle(t, dim, flip, shift);
    let mut worst = 0.0f64;
    for kernels in BOTH {
        let graph = Graph::new(act);
        let y = timestep_embedding(graph.input("t", [t.len()], Elem::F32), dim, flip, shift);
        graph.output("y", y);
        let options = PlanOptions { kernels, poison: true, ..Default::default() };
        let plan = Plan::new(gpu, &graph, &options).unwrap();
        plan.set("t", t).unwrap();
        plan.run().unwrap();
        let y = plan.read("y").unwrap();
        assert_eq!(y.len(), want.len());
        for (i, (a, b)) in y.iter().zip(&want).enumerate() {
            let e = (f64::from(*a) - b).abs();
            assert!(e <= 1e-3, "{kernels:?} {act:?} dim {dim} flip {flip} at {i}: {a} for {b}");
            worst = worst.max(e);
        }
    }
    Some(worst)
}

#[test]
fn sines_and_cosines_hold_for_every_training_step() {
    let mut t: Vec<f32> = (0..1000).map(|t| t as f32).collect();
    // Fractional steps of Karras spacings, and what is far beyond any schedule.
    t.extend([0.25, 1e-3, 499.87, 998.999, 3.0e4, 123_456.7, 8.0e6]);
    for (dim, flip, shift) in [(320, true, 0.0), (64, false, 1.0), (33, true, 0.0)] {
        let Some(e) = worst(Elem::F32, dim, flip, shift, &t) else { return };
        // The reduced angle is within 2⁻³² of a turn and 2⁻²⁴ relative, the series within 3e-8 at π/4, and
        // four roundings of 6e-8 follow: 3e-7 in all.
        assert!(e <= 3e-7, "dim {dim}: {e:.2e}");
    }
}

#[test]
fn half_precision_adds_only_its_rounding() {
    let Some(gpu) = gpu() else { return };
    if gpu.caps().f16 {
        let t: Vec<f32> = (0..1000).step_by(37).map(|t| t as f32).collect();
        // Storing a number below 1 as f16 rounds by 2⁻¹² at most.
        assert!(worst(Elem::F16, 320, true, 0.0, &t).unwrap() <= 2.5e-4);
    }
}

#[test]
fn the_order_is_that_of_diffusers() {
    // flip_sin_to_cos puts cosines first: at t = 0 they are ones.
    assert_eq!(oracle(&[0.0], 4, true, 0.0), [1.0, 1.0, 0.0, 0.0]);
    assert_eq!(oracle(&[0.0], 5, false, 0.0), [0.0, 0.0, 1.0, 1.0, 0.0]);
    // get_timestep_embedding(torch.tensor([999.]), 4, True, downscale_freq_shift=0): cos and sin of 999 and 9.99.
    let y = oracle(&[999.0], 4, true, 0.0);
    let want = [999f64.cos(), 9.99f64.cos(), 999f64.sin(), 9.99f64.sin()];
    // The second frequency is 0.01 rounded to f32 from a rounded exponent, a few units of 1e-9 away.
    assert!(y.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{y:?} {want:?}");
}
