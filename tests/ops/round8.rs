use inknib::gpu::{Elem, Gpu};
use inknib::graph::{Graph, Kernels, Plan, PlanOptions};
use inknib::ops::round8::{Codes, WORDS, oracle, read, round8};

use crate::harness::*;

/// The words that x `[.., k]` becomes.
fn words(
    gpu: &Gpu,
    kernels: Kernels,
    act: Elem,
    (x, k): (&[f32], usize),
    codes: Codes,
) -> Vec<u32> {
    let graph = Graph::new(act);
    graph.output("y", round8(graph.literal([x.len() / k, k], x.to_vec()), codes));
    let options = PlanOptions { kernels, poison: true, ..Default::default() };
    let plan = Plan::new(gpu, &graph, &options).unwrap();
    plan.run().unwrap();
    plan.read_u32("y").unwrap()
}

/// x as this device rounds it, for ops that do so on the way.
pub fn rounded(gpu: &Gpu, x: &[f32], k: usize) -> Vec<f32> {
    let words = words(gpu, Kernels::Fast, Elem::F32, (x, k), Codes::Plain);
    let pieces = read(&words, Codes::Plain);
    let row = |row: &[([i8; 32], f32, f32)]| -> Vec<f32> {
        let all = row.iter().flat_map(|(codes, scale, _)| codes.map(|q| f32::from(q) * scale));
        all.take(k).collect()
    };
    pieces.chunks_exact(k.div_ceil(32)).flat_map(row).collect()
}

#[test]
fn codes_and_scales_of_odd_rows() {
    for (gpu, kernels, acts) in every_form() {
        for (m, k) in [(1, 32), (3, 40), (2, 33), (5, 172), (4, 1090), (1, 7)] {
            for &act in &acts {
                let x = stored(act, &randn(90 + m as u64, m * k));
                let want = oracle(&x, k);
                for &kernels in kernels {
                    for codes in [Codes::Plain, Codes::Nibbles] {
                        let words = words(gpu, kernels, act, (&x, k), codes);
                        assert!(words.iter().skip(11).step_by(WORDS).all(|pad| *pad == 0));
                        let got = read(&words, codes);
                        assert_eq!(got.len(), want.len());
                        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                            let at = format!("{kernels:?} {act:?} {m}x{k} {codes:?}, piece {i}");
                            let (row, first) = (i / k.div_ceil(32), i % k.div_ceil(32) * 32);
                            close(got, want, &x[row * k..][first..k.min(first + 32)], &at);
                        }
                    }
                }
            }
        }
    }
}

/// Scales within a division's 2.5 units (3e-7); codes the same, but where x / s lies so close to the middle of two that this
/// division and a product, at most 127 · 4 · 2⁻²⁴ = 3e-5, decide; the sum is that of the codes.
fn close((codes, scale, sum): &([i8; 32], f32, f32), want: &([i8; 32], f64), x: &[f32], at: &str) {
    assert!((f64::from(*scale) - want.1).abs() <= 4e-7 * want.1, "{at}: {scale} for {}", want.1);
    assert_eq!(*sum, codes.iter().map(|q| f32::from(*q)).sum::<f32>(), "{at}");
    for (c, (got, want_code)) in codes.iter().zip(&want.0).enumerate() {
        let exact = x.get(c).map_or(0.0, |v| f64::from(*v) / want.1);
        let between = (exact.abs().fract() - 0.5).abs() < 3e-5 && got.abs_diff(*want_code) == 1;
        assert!(got == want_code || between, "{at}, channel {c}: {got} for {exact}");
    }
}

/// A row of zeros, one too small to divide by, and one with numbers that are none: these are seen in the scale.
#[test]
fn numbers_that_cannot_be_rounded() {
    let Some(gpu) = gpu() else { return };
    let mut x = vec![0.0f32; 5 * 32];
    x[32] = 1e-38;
    x[64..96].fill(1.0);
    x[70] = f32::INFINITY;
    x[96..128].fill(-2.0);
    x[100] = f32::NAN;
    x[128..160].fill(-3.0);
    for kernels in [Kernels::Reference, Kernels::Fast, Kernels::Hardware] {
        let words = words(gpu, kernels, Elem::F32, (&x, 32), Codes::Plain);
        let got = read(&words, Codes::Plain);
        for small in &got[..2] {
            assert_eq!((small.0, small.1, small.2), ([0; 32], 0.0, 0.0), "{kernels:?}");
        }
        assert!(!got[2].1.is_finite() && !got[3].1.is_finite(), "{kernels:?}: {got:?}");
        assert_eq!((got[4].0, got[4].2), ([-127; 32], -127.0 * 32.0), "{kernels:?}");
    }
}

#[test]
fn integers_are_refused() {
    let graph = Graph::new(Elem::F32);
    let x = round8(graph.input("x", [2, 9], Elem::U32), Codes::Plain);
    let line = line!() - 1;
    graph.output("y", x);
    let error = graph.finish().unwrap_err().to_string();
    assert!(error.contains(&format!("round8.rs:{line}: round8: x holds integers")), "{error}");
}
