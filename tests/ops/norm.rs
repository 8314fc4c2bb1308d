use inknib::gpu::{Elem, Gpu};
use inknib::graph::{Graph, Kernels, Plan, PlanOptions, Vector};
use inknib::ops::concat::{cat, oracle as joined};
use inknib::ops::norm::{group_norm, layer_norm, oracle, rms_norm};
use inknib::ops::pointwise::{Act, silu};

use crate::harness::*;

const KERNELS: [Kernels; 3] = [Kernels::Reference, Kernels::Fast, Kernels::Hardware];

/// Normal numbers around an offset: a variance computed as E[x²] − E[x]² would lose digits.
fn shifted(act: Elem, seed: u64, n: usize) -> Vec<f32> {
    stored(act, &randn(seed, n).iter().map(|v| 1.5 * v + 3.0).collect::<Vec<_>>())
}

/// The harness's tolerance, times 10 in f32: x − mean cancels a digit, since the mean is twice the deviation.
fn allowed(act: Elem) -> f64 {
    if act == Elem::F32 { 1e-9 } else { tolerance(act) }
}

#[test]
fn rows_of_layer_and_rms_norm() {
    let Some(gpu) = gpu() else { return };
    for (rows, c) in [(1, 4), (3, 5), (70, 64), (5, 320), (2, 4096), (1, 5000)] {
        let (gamma, beta) = (randn(1, c), randn(2, c));
        let vg = Vector::upload(gpu, "gamma", &gamma).unwrap();
        let vb = Vector::upload(gpu, "beta", &beta).unwrap();
        for act in acts(gpu) {
            let x = shifted(act, 3, rows * c);
            let layer = oracle(&x, &gamma, Some(&beta), 1, 1, 1e-5);
            let rms = oracle(&x, &gamma, None, 1, 1, 1e-6);
            for kernels in KERNELS {
                let y = eval(gpu, kernels, act, |g| {
                    layer_norm(g.literal([1, rows, c], x.clone()), &vg, &vb, 1e-5)
                });
                let e = nmse(&y, &layer);
                assert!(e <= allowed(act), "layer {kernels:?} {act:?} {rows}x{c}: {e:.2e}");
                let y = eval(gpu, kernels, act, |g| {
                    rms_norm(g.literal([1, rows, c], x.clone()), &vg, 1e-6)
                });
                let e = nmse(&y, &rms);
                assert!(e <= allowed(act), "rms {kernels:?} {act:?} {rows}x{c}: {e:.2e}");
                added(gpu, (&x, &vg, &rms), kernels, act);
            }
        }
    }
}

/// What stands before or behind the sum goes into the norm's launch.
fn added(gpu: &Gpu, (x, gamma, rms): (&[f32], &Vector, &[f64]), kernels: Kernels, act: Elem) {
    let c = gamma.len;
    let other = stored(act, &randn(5, x.len()));
    let want: Vec<f64> = rms.iter().zip(&other).map(|(y, r)| y + f64::from(*r)).collect();
    for swapped in [false, true] {
        let graph = Graph::new(act);
        let r = graph.literal([1, x.len() / c, c], other.clone());
        let y = rms_norm(graph.literal([1, x.len() / c, c], x.to_vec()), gamma, 1e-6);
        graph.output("y", if swapped { y + r } else { r + y });
        let options = PlanOptions { kernels, poison: true, ..Default::default() };
        let plan = Plan::new(gpu, &graph, &options).unwrap();
        let names: Vec<&str> = plan.launches().iter().map(|l| l.op).collect();
        assert!(names.iter().all(|name| *name == "rms_norm"), "{kernels:?}: {names:?}");
        plan.run().unwrap();
        let e = nmse(&plan.read("y").unwrap(), &want);
        assert!(e <= allowed(act), "added {swapped} {kernels:?} {act:?} {c}: {e:.2e}");
    }
}

#[test]
fn groups_of_pictures_with_and_without_silu() {
    let Some(gpu) = gpu() else { return };
    for (b, h, w, c, groups) in
        [(1, 1, 1, 8, 2), (2, 3, 5, 20, 2), (1, 16, 16, 320, 32), (2, 9, 7, 12, 3), (1, 4, 4, 6, 3)]
    {
        let (gamma, beta) = (randn(1, c), randn(2, c));
        let vg = Vector::upload(gpu, "gamma", &gamma).unwrap();
        let vb = Vector::upload(gpu, "beta", &beta).unwrap();
        for act in acts(gpu) {
            let x = shifted(act, 3, b * h * w * c);
            let want = oracle(&x, &gamma, Some(&beta), h * w, groups, 1e-5);
            for kernels in KERNELS {
                let at = format!("{kernels:?} {act:?} {b}x{h}x{w}x{c} in {groups}");
                let y = eval(gpu, kernels, act, |g| {
                    group_norm(g.literal([b, h, w, c], x.clone()), &vg, &vb, groups, 1e-5)
                });
                let e = nmse(&y, &want);
                assert!(e <= allowed(act), "{at}: {e:.2e}");
                let y = eval(gpu, kernels, act, |g| {
                    silu(group_norm(g.literal([b, h, w, c], x.clone()), &vg, &vb, groups, 1e-5))
                });
                let e = nmse(&y, &want.iter().map(|v| Act::Silu.oracle(*v)).collect::<Vec<_>>());
                assert!(e <= allowed(act), "silu {at}: {e:.2e}");
            }
        }
    }
}

/// With the kernels of a real GPU a group that one workgroup goes over is one launch, a larger one three, and one that is no fours
/// of channels, too.
#[test]
fn small_groups_are_one_launch() {
    let Some(gpu) = gpu() else { return };
    for (side, c, groups, launches) in
        [(16, 1280, 32, 1), (32, 640, 32, 1), (33, 640, 32, 3), (16, 320, 32, 3)]
    {
        let vector = |v: f32| Vector::upload(gpu, "norm", &vec![v; c]).unwrap();
        let graph = Graph::new(Elem::F32);
        let x = graph.input("x", [1, side, side, c], Elem::F32);
        graph.output("y", group_norm(x, &vector(1.0), &vector(0.0), groups, 1e-5));
        let options = PlanOptions { kernels: Kernels::Hardware, ..Default::default() };
        let plan = Plan::new(gpu, &graph, &options).unwrap();
        assert_eq!(plan.launches().len(), launches, "{side}x{side}x{c}");
    }
}

#[test]
fn two_parts_are_read_where_they_lie() {
    let Some(gpu) = gpu() else { return };
    // In the first a group straddles the seam; the second has no vectors of four.
    for (ca, cb, groups) in [(20, 12, 4), (5, 7, 3), (64, 32, 8)] {
        let (c, pixels) = (ca + cb, 35);
        let (gamma, beta) = (randn(1, c), randn(2, c));
        let vg = Vector::upload(gpu, "gamma", &gamma).unwrap();
        let vb = Vector::upload(gpu, "beta", &beta).unwrap();
        for act in acts(gpu) {
            let a = shifted(act, 3, 2 * pixels * ca);
            let b = shifted(act, 4, 2 * pixels * cb);
            let x: Vec<f32> = joined(&a, &b, ca, cb).into_iter().map(|v| v as f32).collect();
            let want = oracle(&x, &gamma, Some(&beta), pixels, groups, 1e-6);
            for kernels in KERNELS {
                let graph = Graph::new(act);
                let x = cat(
                    graph.literal([2, 5, 7, ca], a.clone()),
                    graph.literal([2, 5, 7, cb], b.clone()),
                );
                graph.output("y", group_norm(x, &vg, &vb, groups, 1e-6));
                let options = PlanOptions { kernels, ..Default::default() };
                let plan = Plan::new(gpu, &graph, &options).unwrap();
                assert!(
                    plan.launches().iter().all(|l| l.op == "group_norm"),
                    "the parts are copied"
                );
                plan.run().unwrap();
                let e = nmse(&plan.read("y").unwrap(), &want);
                assert!(e <= allowed(act), "{kernels:?} {act:?} {ca}+{cb} in {groups}: {e:.2e}");
            }
        }
    }
}

#[test]
fn a_group_of_a_large_picture_stays_within_the_loop_limit() {
    let Some(gpu) = gpu() else { return };
    // 512 x 512 positions, four channels a group as in the decoder of a 512-pixel picture, two groups of them.
    let (pixels, c) = (512, 8);
    let (gamma, beta) = (vec![1.0; c], vec![0.0; c]);
    let vg = Vector::upload(gpu, "gamma", &gamma).unwrap();
    let vb = Vector::upload(gpu, "beta", &beta).unwrap();
    let x = shifted(Elem::F32, 3, pixels * pixels * c);
    let want = oracle(&x, &gamma, Some(&beta), pixels * pixels, 2, 1e-6);
    for kernels in KERNELS {
        let y = eval(gpu, kernels, Elem::F32, |g| {
            group_norm(g.literal([1, pixels, pixels, c], x.clone()), &vg, &vb, 2, 1e-6)
        });
        let e = nmse(&y, &want);
        assert!(e <= allowed(Elem::F32), "{kernels:?}: {e:.2e}");
    }
}

#[test]
fn groups_that_do_not_divide_the_channels_are_refused() {
    let Some(gpu) = gpu() else { return };
    let v = Vector::upload(gpu, "v", &[0.0; 10]).unwrap();
    let graph = Graph::new(Elem::F32);
    group_norm(graph.literal([1, 10], vec![0.0; 10]), &v, &v, 3, 1e-6);
    let error = graph.finish().unwrap_err().to_string();
    assert!(error.contains("x [1, 10] in 3 groups"), "{error}");
}
