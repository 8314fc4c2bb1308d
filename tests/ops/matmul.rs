use inknib::gpu::{Elem, Gpu};
use inknib::graph::{Kernels, Vector, Weight};
use inknib::ops::matmul::{linear, oracle};
use inknib::ops::pointwise::{Act, activate, geglu};
use inknib::quant::{Layout, Packed, QuantSpec};

use crate::device::gpu_with_default_limits;
use crate::harness::*;

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
    let graph = inknib::graph::Graph::new(Elem::F32);
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
