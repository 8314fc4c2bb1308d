use inknib::gpu::Elem;
use inknib::ops::pointwise::{Act, activate, gated, geglu, soft_cap};

use crate::harness::*;

#[test]
fn activations_sums_products_and_gates() {
    let Some(gpu) = gpu() else { return };
    for act in acts(gpu) {
        for (rows, c) in [(3, 5), (7, 64), (1, 4), (65, 12)] {
            let a = stored(act, &randn(1, rows * c).iter().map(|v| v * 3.0).collect::<Vec<_>>());
            let b = stored(act, &randn(2, rows * c));
            let v = stored(act, &randn(3, c));
            let both = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
                a.iter().zip(&b).map(|(a, b)| f(f64::from(*a), f64::from(*b))).collect()
            };
            for kernels in BOTH {
                let check = |name: &str, got: Vec<f32>, want: Vec<f64>| {
                    let e = nmse(&got, &want);
                    assert!(e <= tolerance(act), "{name} {kernels:?} {act:?} {rows}x{c}: {e:.2e}");
                };
                for f in [Act::Silu, Act::Gelu, Act::QuickGelu, Act::GeluTanh, Act::Relu] {
                    let y =
                        eval(gpu, kernels, act, |g| activate(g.literal([rows, c], a.clone()), f));
                    check("activation", y, a.iter().map(|x| f.oracle(f64::from(*x))).collect());
                }
                let y = eval(gpu, kernels, act, |g| {
                    g.literal([rows, c], a.clone()) + g.literal([rows, c], b.clone())
                });
                check("add", y, both(&|a, b| a + b));
                let y = eval(gpu, kernels, act, |g| {
                    2.5 * (g.literal([rows, c], a.clone()) * g.literal([c], v.clone()))
                });
                let want =
                    a.iter().enumerate().map(|(i, x)| 2.5 * f64::from(*x) * f64::from(v[i % c]));
                check("broadcast", y, want.collect());
                let y_gate = eval(gpu, kernels, act, |g| {
                    gated(
                        g.literal([rows, c], a.clone()),
                        g.literal([rows, c], b.clone()),
                        Act::Silu,
                    )
                });
                let y = eval(gpu, kernels, act, |g| soft_cap(g.literal([rows, c], a.clone()), 1.5));
                let want = a.iter().map(|x| 1.5 * (f64::from(*x) / 1.5).tanh());
                check("soft cap", y, want.collect());
                check("gate", y_gate, both(&|a, b| Act::Silu.oracle(a) * b));
                let joined = stored(act, &randn(4, rows * 2 * c));
                let y =
                    eval(gpu, kernels, act, |g| geglu(g.literal([rows, 2 * c], joined.clone())));
                let want = joined.chunks(2 * c).flat_map(|row| {
                    (0..c)
                        .map(|i| f64::from(row[i]) * Act::Gelu.oracle(f64::from(row[c + i])))
                        .collect::<Vec<_>>()
                });
                check("geglu", y, want.collect());
            }
        }
    }
}

/// Far out the cap itself, near zero the value itself, and no digits lost where the two formulas meet.
#[test]
fn a_soft_cap_is_exact_at_both_ends() {
    let Some(gpu) = gpu() else { return };
    let x: Vec<f32> = vec![0.0, 1e-4, -0.01, 8.9, 9.1, -30.0, 1e6, -3e38];
    for kernels in BOTH {
        let y = eval(gpu, kernels, Elem::F32, |g| soft_cap(g.literal([8], x.clone()), 30.0));
        for (x, y) in x.iter().zip(y) {
            let want = 30.0 * (f64::from(*x) / 30.0).tanh();
            // exp and the two divisions are a few units of 2⁻²⁴ off.
            assert!((f64::from(y) - want).abs() <= 2e-6 * want.abs(), "{x}: {y}, not {want}");
        }
    }
}
