use inknib::gpu::{Elem, Gpu, GpuOptions};
use inknib::graph::{Graph, Kernels, Plan, PlanOptions, Vector, Weight};
use inknib::ops::kv_cache::kv_write;
use inknib::ops::matmul::{linear, linear_rounded, oracle};
use inknib::ops::norm::{oracle as norm_oracle, rms_norm};
use inknib::ops::pointwise::{Act, activate, gated, geglu};
use inknib::quant::{Layout, Packed, QuantSpec};

use crate::device::gpu_with_default_limits;
use crate::harness::*;
use crate::rope::position;
use crate::round8::rounded;

const SPECS: [&str; 6] = [
    "f32",
    "f16",
    "int8-g64",
    "int4-g32-uniform-absmax",
    "int4-g64-cubic-mse",
    "int4-g128-cubic-mse",
];

fn check(m: usize, n: usize, k: usize, spec: &str, seed: u64, window: Option<u64>) {
    let spec: QuantSpec = spec.parse().unwrap();
    let w = randn(seed, n * k);
    let packed = Packed::pack(&w, Layout::linear(n, k), &spec, None).unwrap();
    check_packed(m, &spec.to_string(), &packed, seed, window);
}

fn check_packed(m: usize, spec: &str, packed: &Packed, seed: u64, window: Option<u64>) {
    for (gpu, kernels, acts) in every_form() {
        check_on(gpu, (kernels, &acts), (m, spec), packed, seed, window);
    }
}

fn check_on(
    gpu: &Gpu,
    (kernels, acts): (&[Kernels], &[Elem]),
    (m, spec): (usize, &str),
    packed: &Packed,
    seed: u64,
    window: Option<u64>,
) {
    let (n, k) = (packed.layout.rows, packed.layout.channels);
    let decoded = packed.decode();
    let weight = Weight::upload_windowed(gpu, "w", packed, window.unwrap_or(1 << 27)).unwrap();
    let bias = randn(seed + 1, n);
    let vector = Vector::upload(gpu, "bias", &bias).unwrap();
    for &act in acts {
        let x = stored(act, &randn(seed + 2, m * k));
        let r = stored(act, &randn(seed + 3, m * n));
        let plain = oracle(&x, &decoded, None, None, Act::None, k);
        let full = oracle(&x, &decoded, Some(&bias), Some(&r), Act::QuickGelu, k);
        for &kernels in kernels {
            let y =
                eval(gpu, kernels, act, |g| linear(g.literal([m, k], x.clone()), &weight, None));
            let e = nmse(&y, &plain);
            assert!(e <= tolerance(act), "{kernels:?} {act:?} {m}x{n}x{k} {spec}: {e:.2e}");
            let y = eval(gpu, kernels, act, |g| {
                let y = linear(g.literal([m, k], x.clone()), &weight, Some(&vector));
                g.literal([m, n], r.clone()) + activate(y, Act::QuickGelu)
            });
            let e = nmse(&y, &full);
            assert!(
                e <= tolerance(act),
                "epilogue {kernels:?} {act:?} {m}x{n}x{k} {spec}: {e:.2e}"
            );
        }
    }
}

#[test]
fn every_format_at_odd_shapes() {
    for (i, spec) in SPECS.iter().enumerate() {
        for (m, n, k) in
            [(1, 33, 172), (3, 8, 64), (5, 17, 9), (13, 40, 200), (64, 64, 128), (33, 130, 72)]
        {
            check(m, n, k, spec, 10 + i as u64, None);
        }
    }
}

#[test]
fn forms_of_files_quantized_elsewhere() {
    for (m, n, k) in [(1, 33, 172), (3, 8, 64), (5, 17, 9), (13, 40, 200), (65, 72, 264)] {
        for (name, packed) in foreign(Layout::linear(n, k), 20) {
            check_packed(m, &name, &packed, 21, None);
            // Windows that begin in the middle of a word of scales.
            check_packed(m, &name, &packed, 22, Some(packed.row_words() as u64 * 4 * 7));
        }
    }
}

#[test]
fn a_weight_larger_than_one_binding_is_windowed() {
    // 50 rows of 128 f32 in windows of at most 16 rows.
    check(7, 50, 128, "f32", 3, Some(16 * 128 * 4));
    check(1, 50, 128, "int4-g64-cubic-mse", 4, Some(16 * 128 / 2));
}

#[test]
fn vec_lanes_and_large_sizes_agree_with_the_oracle() {
    check(2, 300, 1024, "int4-g64-cubic-mse", 5, None);
    check(130, 72, 320, "int4-g64-cubic-mse", 6, None);
    // An odd number of blocks of eight, and edges in both directions.
    check(65, 129, 72, "int8-g64", 7, None);
}

#[test]
fn a_shape_error_names_the_line_of_the_model() {
    let Some(gpu) = gpu() else { return };
    let packed = Packed::pack(&randn(1, 64), Layout::linear(8, 8), &QuantSpec::F32, None).unwrap();
    let weight = Weight::upload(gpu, "w", &packed).unwrap();
    let graph = Graph::new(Elem::F32);
    let y = linear(graph.input("x", [2, 9], Elem::F32), &weight, None);
    let line = line!() - 1;
    graph.output("y", y + y);
    let error = graph.finish().unwrap_err().to_string();
    assert!(error.contains(&format!("matmul.rs:{line}: matmul: x [2, 9]")), "{error}");
    assert_ne!(Kernels::Fast, Kernels::Reference);
}

#[test]
fn a_large_product_is_cut_along_its_rows() {
    let Some(gpu) = gpu() else { return };
    // 2·64·512 operations a row: beyond 2^30 in all, where software adapters get a second dispatch.
    let (m, n, k, last) = (16_384 + 70, 64, 512, 100);
    let layout = Layout::linear(n, k);
    let packed = Packed::pack(&randn(8, n * k), layout, &QuantSpec::F16, None).unwrap();
    let weight = Weight::upload(gpu, "w", &packed).unwrap();
    let x = randn(9, m * k);
    let want = oracle(&x[(m - last) * k..], &packed.decode(), None, None, Act::None, k);
    for kernels in [Kernels::Fast, Kernels::Hardware] {
        let y =
            eval(gpu, kernels, Elem::F32, |g| linear(g.literal([m, k], x.clone()), &weight, None));
        let e = nmse(&y[(m - last) * n..], &want);
        assert!(e <= tolerance(Elem::F32), "{kernels:?}: {e:.2e}");
    }
}

/// 143 MB of outputs where the adapter binds 134 MB at once, as a UNet's feed-forward at 1024 pixels has: rows go in
/// windows, and the halves behind them too.
#[test]
fn more_rows_than_a_binding_holds() {
    let Some(gpu) = gpu_with_default_limits() else { return };
    let (m, n, k) = (140_000, 256, 8);
    assert!((m * n * 4) as u64 > gpu.caps().max_binding_bytes);
    let (w, x) = (randn(1, n * k), randn(2, m * k));
    let packed = Packed::pack(&w, Layout::linear(n, k), &"f32".parse().unwrap(), None).unwrap();
    let weight = Weight::upload(&gpu, "w", &packed).unwrap();
    for kernels in BOTH {
        let y = eval(&gpu, kernels, Elem::F32, |g| {
            geglu(linear(g.literal([m, k], x.clone()), &weight, None))
        });
        assert_eq!(y.len(), m * n / 2);
        // Rows at both sides of each window's edge, and the last ones.
        let windows = [0, 130_943, 130_944, 131_071, 131_072, m - 1];
        for row in windows.into_iter().chain((0..m).step_by(9_973)) {
            let full = oracle(&x[row * k..(row + 1) * k], &w, None, None, Act::None, k);
            let (value, gate) = full.split_at(n / 2);
            let expected: Vec<f64> =
                value.iter().zip(gate).map(|(v, g)| v * Act::Gelu.oracle(*g)).collect();
            let e = nmse(&y[row * n / 2..(row + 1) * n / 2], &expected);
            assert!(e <= tolerance(Elem::F32), "{kernels:?}, row {row}: {e:.2e}");
        }
    }
}

/// A gated unit: the gate's product takes in its activation and the other half.
#[test]
fn a_gate_is_multiplied_where_its_product_is_made() {
    for (gpu, kernels, acts) in every_form() {
        for (m, n, k) in [(1, 40, 96), (3, 33, 172), (21, 66, 136), (70, 64, 64)] {
            let spec: QuantSpec = "int4-g64-cubic-mse".parse().unwrap();
            let pack = |seed| {
                Packed::pack(&randn(seed, n * k), Layout::linear(n, k), &spec, None).unwrap()
            };
            let (gate, up) = (pack(31), pack(32));
            let weights = [&gate, &up].map(|w| Weight::upload(gpu, "w", w).unwrap());
            for &act in &acts {
                let x = stored(act, &randn(33, m * k));
                let half = |w: &Packed, act| oracle(&x, &w.decode(), None, None, act, k);
                let pairs = half(&gate, Act::Silu).into_iter().zip(half(&up, Act::None));
                let want: Vec<f64> = pairs.map(|(g, u)| g * u).collect();
                for &kernels in kernels {
                    let y = eval(gpu, kernels, act, |g| {
                        let x = g.literal([m, k], x.clone());
                        gated(linear(x, &weights[0], None), linear(x, &weights[1], None), Act::Silu)
                    });
                    let e = nmse(&y, &want);
                    assert!(e <= tolerance(act), "{kernels:?} {act:?} {m}x{n}x{k}: {e:.2e}");
                }
            }
        }
    }
}

/// Values of new tokens go into their cache without a launch of their own; rows beyond its end are dropped.
#[test]
fn a_product_goes_into_a_cache() {
    const CONTEXT: usize = 11;
    for (gpu, kernels, acts) in every_form() {
        let (n, k) = (24, 72);
        let packed = Packed::pack(&randn(41, n * k), Layout::linear(n, k), &QuantSpec::INT4, None);
        let packed = packed.unwrap();
        let weight = Weight::upload(gpu, "w", &packed).unwrap();
        let bias = randn(42, n);
        let vector = Vector::upload(gpu, "bias", &bias).unwrap();
        for (m, start) in [(1, 0), (1, 10), (3, 9), (9, 1), (2, 11), (1, u32::MAX)] {
            for &act in &acts {
                let (x, old) =
                    (stored(act, &randn(43, m * k)), stored(act, &randn(44, CONTEXT * n)));
                let new = oracle(&x, &packed.decode(), Some(&bias), None, Act::None, k);
                let mut want: Vec<f64> = old.iter().map(|v| f64::from(*v)).collect();
                for (i, v) in new.iter().enumerate() {
                    let at = (start as usize + i / n) * n + i % n;
                    if at < want.len() {
                        want[at] = *v;
                    }
                }
                for &kernels in kernels {
                    let y = cache_after(gpu, kernels, act, ([1, CONTEXT, n], &old), |g, cache| {
                        let x = g.literal([1, m, k], x.clone());
                        kv_write(cache, linear(x, &weight, Some(&vector)), position(gpu, g, start))
                    });
                    let e = nmse(&y, &want);
                    assert!(e <= tolerance(act), "{kernels:?} {act:?} {m} at {start}: {e:.2e}");
                }
            }
        }
    }
}

/// An RMS norm of few rows is computed by each of the products behind it, where the kernels are a real GPU's.
#[test]
fn a_norm_goes_into_the_products_behind_it() {
    let Some(gpu) = gpu() else { return };
    for (m, n, k) in [(1, 40, 96), (1, 33, 172), (4, 9, 1100), (5, 40, 96)] {
        let weights = [51, 52].map(|seed| {
            let layout = Layout::linear(n, k);
            let packed = Packed::pack(&randn(seed, n * k), layout, &QuantSpec::INT4, None).unwrap();
            (Weight::upload(gpu, "w", &packed).unwrap(), packed.decode())
        });
        let gamma = randn(53, k);
        let scale = Vector::upload(gpu, "gamma", &gamma).unwrap();
        for act in acts(gpu) {
            let x = stored(act, &randn(54, m * k));
            let normed: Vec<f32> =
                norm_oracle(&x, &gamma, None, 1, 1, 1e-2).iter().map(|v| *v as f32).collect();
            let each = |w: &[f32]| oracle(&normed, w, None, None, Act::None, k);
            let want: Vec<f64> =
                each(&weights[0].1).iter().zip(each(&weights[1].1)).map(|(a, b)| a + b).collect();
            for kernels in [Kernels::Reference, Kernels::Fast, Kernels::Hardware] {
                let build = |g: &Graph| {
                    let x = rms_norm(g.literal([m, k], x.clone()), &scale, 1e-2);
                    g.output("y", linear(x, &weights[0].0, None) + linear(x, &weights[1].0, None));
                };
                let graph = Graph::new(act);
                build(&graph);
                let options = PlanOptions { kernels, poison: true, ..Default::default() };
                let plan = Plan::new(gpu, &graph, &options).unwrap();
                plan.run().unwrap();
                let y = plan.read("y").unwrap();
                // In f16 the norm is stored before it is multiplied, unless it is folded: one rounding more.
                let e = nmse(&y, &want);
                assert!(e <= tolerance(act), "{kernels:?} {act:?} {m}x{n}x{k}: {e:.2e}");
                if kernels == Kernels::Hardware {
                    let launches = plan.launches().len();
                    assert_eq!(launches, if m <= 4 { 2 } else { 3 }, "{act:?} {m}x{n}x{k}");
                }
            }
        }
    }
}

/// What rounding x to eight bits for each 32 channels may cost: an even error within half of max |x| / 127 has a variance of
/// (max / 127)² / 12; the largest of 32 normal numbers has a mean square of 6, so NMSE 3.1e-5. Outputs are few and share x, hence
/// five times as much at most, and a tenth at least: less would mean that nothing was rounded.
const ROUNDING: std::ops::RangeInclusive<f64> = 3.1e-6..=1.6e-4;

/// Few rows of x in eight bits: exactly the product of what x was rounded to, and near that of x.
#[test]
fn few_rows_are_multiplied_as_integers() {
    for (m, n, k) in [(1, 33, 172), (3, 8, 64), (4, 40, 1100), (2, 24, 33), (1, 300, 1024)] {
        let layout = Layout::linear(n, k);
        let mut weights = foreign(layout, 60);
        for spec in ["int4-g32-uniform-absmax", "int4-g64-uniform-absmax", "int8-g64"] {
            let of = spec.parse().unwrap();
            let packed = Packed::pack(&randn(61, n * k), layout, &of, None).unwrap();
            weights.push((spec.to_string(), packed));
        }
        for (spec, packed) in &weights {
            eight_bits((m, spec), packed);
        }
    }
}

fn eight_bits((m, spec): (usize, &str), packed: &Packed) {
    let (n, k, decoded) = (packed.layout.rows, packed.layout.channels, packed.decode());
    let bias = randn(63, n);
    for (gpu, kernels, acts) in every_form() {
        // Windows that begin in the middle of a word of scales.
        let window = packed.row_words() as u64 * 4 * 7;
        let weight = Weight::upload_windowed(gpu, "w", packed, window).unwrap();
        let vector = Vector::upload(gpu, "bias", &bias).unwrap();
        for &act in &acts {
            let (x, r) = (stored(act, &randn(62, m * k)), stored(act, &randn(64, m * n)));
            let of = |x: &[f32]| oracle(x, &decoded, None, None, Act::None, k);
            let (plain, near) = (of(&x), of(&rounded(gpu, &x, k)));
            let full = oracle(&rounded(gpu, &x, k), &decoded, Some(&bias), Some(&r), Act::Silu, k);
            for &kernels in kernels {
                let at = format!("{kernels:?} {act:?} {m}x{n}x{k} {spec}");
                let y = eval(gpu, kernels, act, |g| {
                    linear_rounded(g.literal([m, k], x.clone()), &weight, None)
                });
                if kernels == Kernels::Reference {
                    let e = nmse(&y, &plain);
                    assert!(e <= tolerance(act), "{at} rounds nothing: {e:.2e}");
                    continue;
                }
                let (e, lost) = (nmse(&y, &near), nmse(&y, &plain));
                assert!(e <= tolerance(act), "{at}: {e:.2e}");
                assert!(ROUNDING.contains(&lost), "{at}, of x as it was: {lost:.2e}");
                let y = eval(gpu, kernels, act, |g| {
                    let y = linear_rounded(g.literal([m, k], x.clone()), &weight, Some(&vector));
                    g.literal([m, n], r.clone()) + activate(y, Act::Silu)
                });
                let e = nmse(&y, &full);
                assert!(e <= tolerance(act), "epilogue {at}: {e:.2e}");
            }
        }
    }
}

/// Many rows, cubic levels and floats are multiplied as ever; on a device that is to round, so is what is not asked to.
#[test]
fn what_is_rounded_and_what_is_not() {
    let Some(gpu) = gpu() else { return };
    let device = Some(gpu.adapter().name.clone());
    let rounding = Gpu::open(&GpuOptions { device, int_dot: true, ..Default::default() }).unwrap();
    let (n, k) = (40, 96);
    let run = |gpu: &Gpu, m: usize, spec: &str, kernels, rounds: bool| {
        let of = spec.parse().unwrap();
        let packed = Packed::pack(&randn(65, n * k), Layout::linear(n, k), &of, None).unwrap();
        let weight = Weight::upload(gpu, "w", &packed).unwrap();
        let record = if rounds { linear_rounded } else { linear };
        let x = randn(66, m * k);
        eval(gpu, kernels, Elem::F32, |g| record(g.literal([m, k], x.clone()), &weight, None))
    };
    for kernels in [Kernels::Fast, Kernels::Hardware, Kernels::Reference] {
        for (m, spec, rounds) in [
            (1, "int4-g32-uniform", true),
            (4, "int8-g64", true),
            (5, "int4-g32-uniform", false),
            (1, "int4-g64-cubic", false),
            (1, "f16", false),
        ] {
            let at = format!("{kernels:?} {m} rows {spec}");
            let (asked, exact) =
                (run(gpu, m, spec, kernels, true), run(gpu, m, spec, kernels, false));
            assert_eq!(asked, run(&rounding, m, spec, kernels, false), "{at}");
            assert_eq!(asked != exact, rounds && kernels != Kernels::Reference, "{at}");
        }
    }
}

/// A norm goes into the rounding, which has its sums of squares as a by-product.
#[test]
fn a_norm_goes_into_the_rounding() {
    let Some(gpu) = gpu() else { return };
    for (m, n, k) in [(1, 40, 96), (3, 33, 172), (4, 9, 1100)] {
        let spec = "int4-g32-uniform-absmax".parse().unwrap();
        let packed = Packed::pack(&randn(67, n * k), Layout::linear(n, k), &spec, None).unwrap();
        let weight = Weight::upload(gpu, "w", &packed).unwrap();
        let gamma = randn(68, k);
        let scale = Vector::upload(gpu, "gamma", &gamma).unwrap();
        for act in acts(gpu) {
            let x = stored(act, &randn(69, m * k));
            let normed = rounded_norm(gpu, &x, &gamma, 1e-2);
            let want = oracle(&normed, &packed.decode(), None, None, Act::None, k);
            let graph = Graph::new(act);
            let x = rms_norm(graph.literal([m, k], x), &scale, 1e-2);
            graph.output("y", linear_rounded(x, &weight, None));
            let kernels = Kernels::Hardware;
            let options = PlanOptions { kernels, poison: true, ..Default::default() };
            let plan = Plan::new(gpu, &graph, &options).unwrap();
            plan.run().unwrap();
            let e = nmse(&plan.read("y").unwrap(), &want);
            assert!(e <= tolerance(act), "{act:?} {m}x{n}x{k}: {e:.2e}");
            assert_eq!(plan.launches().len(), 2, "{act:?} {m}x{n}x{k}");
        }
    }
}

/// x · gamma as this device rounds it, over the root of the mean square of x.
pub fn rounded_norm(gpu: &Gpu, x: &[f32], gamma: &[f32], eps: f64) -> Vec<f32> {
    let k = gamma.len();
    let scaled: Vec<f32> = x.iter().enumerate().map(|(i, v)| v * gamma[i % k]).collect();
    let mut all = rounded(gpu, &scaled, k);
    for (all, x) in all.chunks_exact_mut(k).zip(x.chunks_exact(k)) {
        let square: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
        let inverse = 1.0 / (square / k as f64 + eps).sqrt();
        all.iter_mut().for_each(|v| *v = (f64::from(*v) * inverse) as f32);
    }
    all
}

/// Few rows and columns of a long sum: a GPU divides k among workgroups, and another launch adds the parts up.
#[test]
fn a_long_sum_is_divided() {
    let Some(gpu) = gpu() else { return };
    // The last has sums that do not fill sixteen bytes, to which bindings are rounded up.
    for (m, n, k, spec, parts) in [
        (9, 24, 1024, "int4-g64-cubic-mse", 2),
        (9, 24, 4100, "f32", 8),
        (9, 24, 4096, "int8-g64", 8),
        (9, 24, 96, "f16", 1),
        (9, 7, 1024, "f32", 2),
    ] {
        let spec: QuantSpec = spec.parse().unwrap();
        let packed = Packed::pack(&randn(60, n * k), Layout::linear(n, k), &spec, None).unwrap();
        let weight = Weight::upload(gpu, "w", &packed).unwrap();
        let bias = randn(61, n);
        let vector = Vector::upload(gpu, "bias", &bias).unwrap();
        for act in acts(gpu) {
            let (x, r) = (stored(act, &randn(62, m * k)), stored(act, &randn(63, m * n)));
            let want = oracle(&x, &packed.decode(), Some(&bias), Some(&r), Act::Silu, k);
            let graph = Graph::new(act);
            let y = linear(graph.literal([m, k], x.clone()), &weight, Some(&vector));
            graph.output("y", activate(y, Act::Silu) + graph.literal([m, n], r.clone()));
            let options =
                PlanOptions { kernels: Kernels::Hardware, poison: true, ..Default::default() };
            let plan = Plan::new(gpu, &graph, &options).unwrap();
            plan.run().unwrap();
            let e = nmse(&plan.read("y").unwrap(), &want);
            assert!(e <= tolerance(act), "{act:?} {spec} {k}: {e:.2e}");
            let launches: Vec<&str> =
                plan.launches().iter().map(|l| l.kernel.split(' ').next().unwrap()).collect();
            match parts {
                1 => assert_eq!(launches.len(), 1, "{launches:?}"),
                _ => assert_eq!(launches[1..], ["matmul_merge.wgsl"], "{launches:?}"),
            }
        }
    }
}
