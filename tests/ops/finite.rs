use inknib::gpu::Elem;
use inknib::graph::{Graph, Plan, PlanOptions};
use inknib::ops::finite::count_nonfinite;

use crate::harness::*;

#[test]
fn every_infinite_or_nan_value_is_counted() {
    let Some(gpu) = gpu() else { return };
    for act in acts(gpu) {
        for n in [1, 2, 15, 63, 1001, 4096, 70_001, 300_000] {
            let mut x = randn(n as u64, n);
            // The largest and smallest finite values and zeros are no failures.
            let largest = if act == Elem::F16 { 65504.0 } else { f32::MAX };
            for (i, v) in [largest, -largest, 0.0, -0.0, 6e-8].into_iter().enumerate() {
                x[(i * 7) % n] = v;
            }
            for (i, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
                for at in (i..n).step_by(97) {
                    x[at] = bad;
                }
            }
            // The first, the last and the odd half of a word among them.
            x[n - 1] = f32::NAN;
            let want = x.iter().filter(|v| !v.is_finite()).count() as u32;
            for kernels in BOTH {
                let graph = Graph::new(act);
                graph.output("y", count_nonfinite(graph.input("x", [n], act)));
                let options = PlanOptions { kernels, poison: true, ..Default::default() };
                let plan = Plan::new(gpu, &graph, &options).unwrap();
                for _ in 0..2 {
                    plan.set("x", &x).unwrap();
                    plan.run().unwrap();
                    assert_eq!(plan.read_u32("y").unwrap(), [want], "{act:?} {kernels:?} {n}");
                }
                plan.set("x", &vec![largest; n]).unwrap();
                plan.run().unwrap();
                assert_eq!(plan.read_u32("y").unwrap(), [0], "{act:?} {kernels:?} {n}");
            }
        }
    }
}

#[test]
fn memory_beyond_an_odd_number_of_halves_does_not_count() {
    let Some(gpu) = gpu() else { return };
    if !gpu.caps().f16 {
        return;
    }
    for kernels in BOTH {
        // All memory is NaN; five ones lie before it.
        let mut bits = vec![0x7e00u16; 8];
        bits[..5].fill(half::f16::ONE.to_bits());
        let memory = gpu.upload("memory", bytemuck::cast_slice(&bits)).unwrap();
        let graph = Graph::new(Elem::F16);
        graph.output("y", count_nonfinite(graph.external(&memory, [5], Elem::F16)));
        let options = PlanOptions { kernels, ..Default::default() };
        let plan = Plan::new(gpu, &graph, &options).unwrap();
        plan.run().unwrap();
        assert_eq!(plan.read_u32("y").unwrap(), [0], "{kernels:?}");
    }
}
