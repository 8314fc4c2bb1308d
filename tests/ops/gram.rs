use inknib::gpu::{Elem, Gpu};
use inknib::graph::{Graph, Kernels, Plan, PlanOptions, Var};
use inknib::ops::conv2d::{Conv, Pad};
use inknib::ops::gram::{Walk, columns, gram, oracle};

use crate::harness::*;

/// Strides, doubling, zeros on one side, taps, and a linear layer.
pub fn walks() -> Vec<Walk> {
    let conv = |side, stride, upsample, pad| Walk { side, conv: Conv { stride, upsample, pad } };
    vec![
        Walk::LINEAR,
        conv(3, 1, false, Pad::Same),
        conv(3, 2, false, Pad::End),
        conv(3, 1, true, Pad::Same),
    ]
}

/// Runs a plan over x `runs` times and reads what it has added to `sums`.
pub fn accumulate(
    gpu: &Gpu,
    (act, kernels, runs): (Elem, Kernels, usize),
    (x, shape): (&[f32], [usize; 4]),
    sums: [usize; 2],
    record: impl for<'g> Fn(Var<'g>, Var<'g>) -> Var<'g>,
) -> Vec<f32> {
    let start = vec![0.5f32; sums[0] * sums[1]];
    let memory = gpu.upload("sums", bytemuck::cast_slice(&start)).unwrap();
    let graph = Graph::new(act);
    let x = graph.literal(shape, x.to_vec());
    let into = graph.external(&memory, sums, Elem::F32);
    graph.output("sums", record(into, x));
    let options = PlanOptions { kernels, poison: true, ..Default::default() };
    let plan = Plan::new(gpu, &graph, &options).unwrap();
    (0..runs).for_each(|_| plan.run().unwrap());
    plan.read("sums").unwrap().iter().map(|v| v - 0.5).collect()
}

#[test]
fn gram_matrices_add_up() {
    let Some(gpu) = gpu() else { return };
    for act in acts(gpu) {
        for walk in walks() {
            for shape in [[2, 5, 4, 8], [1, 4, 6, 24], [1, 3, 5, 6]] {
                let x = stored(act, &randn(3, shape.iter().product()));
                let rows = columns(&x, shape, walk);
                let all = rows[0].len();
                // A window of the columns that begins behind the first tap, where there are several.
                let ranges =
                    if walk.side == 1 { vec![[0, all]] } else { vec![[0, all], [all / 9, 16]] };
                for [first, k] in ranges {
                    let want: Vec<f64> = oracle(&rows, first, k).iter().map(|v| 2.0 * v).collect();
                    for kernels in BOTH {
                        let got =
                            accumulate(gpu, (act, kernels, 2), (&x, shape), [k, k], |g, x| {
                                gram(g, x, walk, first, 1)
                            });
                        // Sums are f32 whatever the activations; the 0.5 that was there before costs an ulp
                        // of the sum at most.
                        let e = nmse(&got, &want);
                        assert!(
                            e <= 1e-10,
                            "{kernels:?} {act:?} {walk:?} {shape:?} {first}: {e:.2e}"
                        );
                        let above = (0..k * k).filter(|at| at % k > at / k);
                        assert!(above.into_iter().all(|at| got[at] == 0.0), "above the diagonal");
                    }
                }
            }
        }
    }
}

#[test]
fn many_rows_are_several_dispatches() {
    let Some(gpu) = gpu() else { return };
    let shape = [1, 1, 20_001, 8];
    let x = randn(5, shape.iter().product());
    let want = oracle(&columns(&x, shape, Walk::LINEAR), 0, 8);
    let got = accumulate(gpu, (Elem::F32, Kernels::Fast, 1), (&x, shape), [8, 8], |g, x| {
        gram(g, x, Walk::LINEAR, 0, 1)
    });
    // A running f32 sum of 8192 terms loses up to its root in ulps: (90 · 2⁻²⁴)² = 3e-11.
    assert!(nmse(&got, &want) <= 1e-9, "{:.2e}", nmse(&got, &want));
}

#[test]
fn shape_errors_say_what_is_wrong() {
    let message = |g: &[usize], first: usize, elem: Elem| {
        let graph = Graph::new(Elem::F32);
        let x = graph.input("x", [2, 8], Elem::F32);
        gram(graph.input("g", g, elem), x, Walk::LINEAR, first, 1);
        graph.finish().unwrap_err().to_string()
    };
    assert!(message(&[8, 4], 0, Elem::F32).contains("gram: g [8, 4]"));
    assert!(message(&[8, 8], 1, Elem::F32).contains("columns from 1 of 8"));
    assert!(message(&[8, 8], 0, Elem::U32).contains("a square of f32"));
}

#[test]
fn some_rows_alone_count() {
    let Some(gpu) = gpu() else { return };
    for walk in walks() {
        let shape = [2, 6, 7, 8];
        let x = randn(8, shape.iter().product());
        let rows: Vec<Vec<f64>> = columns(&x, shape, walk).into_iter().step_by(3).collect();
        let k = rows[0].len();
        let want = oracle(&rows, 0, k);
        for kernels in BOTH {
            let form = (Elem::F32, kernels, 1);
            let got = accumulate(gpu, form, (&x, shape), [k, k], |g, x| gram(g, x, walk, 0, 3));
            // As above.
            let e = nmse(&got, &want);
            assert!(e <= 1e-10, "{kernels:?} {walk:?}: {e:.2e}");
        }
    }
}
