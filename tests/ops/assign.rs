use inknib::gpu::Elem;
use inknib::graph::{Graph, Plan, PlanOptions};
use inknib::ops::assign::assign;

use crate::harness::*;

#[test]
fn the_value_outlives_the_plan() {
    let Some(gpu) = gpu() else { return };
    for act in acts(gpu) {
        for n in [1, 7, 64, 1000, 70_002] {
            for kernels in BOTH {
                let value = stored(act, &randn(n as u64, n));
                // One element more than is written: it must keep its value.
                let bytes = (n as u64 + 1) * act.bytes();
                let memory = gpu.upload("memory", &vec![0x3c; bytes as usize]).unwrap();
                {
                    let graph = Graph::new(act);
                    let dst = graph.external(&memory, [n], act);
                    // A sum, so that the value is a slot of the plan; doubling is exact.
                    let a = graph.literal([n], value.clone());
                    let b = graph.literal([n], value.clone());
                    graph.output("y", assign(dst, a + b));
                    let options = PlanOptions { kernels, poison: true, ..Default::default() };
                    Plan::new(gpu, &graph, &options).unwrap().run().unwrap();
                }
                let graph = Graph::new(act);
                graph.output("y", graph.external(&memory, [n + 1], act));
                let y = Plan::new(gpu, &graph, &PlanOptions::default()).unwrap().read("y").unwrap();
                let want = value.iter().map(|v| v * 2.0);
                assert!(y[..n].iter().copied().eq(want), "{act:?} {kernels:?} {n}");
                let kept = match act {
                    Elem::F16 => half::f16::from_bits(0x3c3c).to_f32(),
                    _ => f32::from_bits(0x3c3c_3c3c),
                };
                assert_eq!(y[n], kept, "{act:?} {kernels:?} {n}");
            }
        }
    }
}

#[test]
fn integers_and_the_bits_of_a_nan_are_kept() {
    let Some(gpu) = gpu() else { return };
    let words: Vec<u32> =
        vec![0x7fc0_1234, 0xff80_0001, 0x7f80_0000, 0x8000_0000, 1, u32::MAX, 0, 9];
    for kernels in BOTH {
        for elem in [Elem::U32, Elem::F32] {
            let memory = gpu.buffer("memory", 32).unwrap();
            let from = gpu.upload("from", bytemuck::cast_slice(&words)).unwrap();
            let graph = Graph::new(Elem::F32);
            let dst = graph.external(&memory, [8], elem);
            graph.output("y", assign(dst, graph.external(&from, [8], elem)));
            let options = PlanOptions { kernels, ..Default::default() };
            Plan::new(gpu, &graph, &options).unwrap().run().unwrap();
            let got = gpu.read(&memory, 0, 32).unwrap();
            assert_eq!(
                bytemuck::pod_collect_to_vec::<u8, u32>(&got),
                words,
                "{kernels:?} {elem:?}"
            );
        }
    }
}

#[test]
fn another_size_or_type_is_a_shape_error() {
    let Some(gpu) = gpu() else { return };
    let memory = gpu.buffer("memory", 64).unwrap();
    for (n, elem) in [(8, Elem::F32), (9, Elem::U32)] {
        let graph = Graph::new(Elem::F32);
        assign(graph.external(&memory, [8], Elem::U32), graph.input("x", [n], elem));
        let error = graph.finish().unwrap_err().to_string();
        assert!(error.contains("assign: [8] of U32"), "{error}");
    }
}
