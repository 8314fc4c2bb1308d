use inknib::diffusion::sampler::{COEFFICIENTS, StepCoefficients};
use inknib::gpu::Elem;
use inknib::graph::{Graph, Kernels, Var};
use inknib::ops::guidance::{Answer, oracle};
use inknib::ops::sampler::predict_value;

use crate::harness::*;

/// v is the answer itself.
fn answer_row() -> StepCoefficients {
    let mut row: StepCoefficients = bytemuck::Zeroable::zeroed();
    (row.value, row.clip) = ([0.0, 1.0], f32::MAX);
    row
}

struct Case {
    act: Elem,
    kernels: Kernels,
    shape: [usize; 4],
    guidance: f32,
    rescale: f32,
    apart: bool,
}

/// The guided answer of u and c, as a step reads it.
fn guided(case: &Case, u: &[f32], c: &[f32]) -> Option<Vec<f32>> {
    let gpu = gpu()?;
    let [n, h, w, channels] = case.shape;
    Some(eval(gpu, case.kernels, case.act, |graph: &Graph| -> Var<'_> {
        let coef = answer_row().with_guidance(case.guidance, case.rescale).to_vec();
        let coef = graph.literal_f32([COEFFICIENTS], coef);
        let answer = match case.apart {
            true => Answer::pair(
                graph.literal(case.shape, u.to_vec()),
                graph.literal(case.shape, c.to_vec()),
            ),
            false => graph.literal([2 * n, h, w, channels], [u, c].concat()).into(),
        };
        let x = graph.literal_f32(case.shape, vec![0.0; u.len()]);
        predict_value(x, answer.rescaled(n, coef), coef)
    }))
}

#[test]
fn a_guided_answer_has_the_strength_of_the_prompted_one() {
    let Some(gpu) = gpu() else { return };
    for act in acts(gpu) {
        for kernels in BOTH {
            for (shape, guidance, rescale, apart) in [
                ([1, 8, 8, 4], 7.5, 0.7, false),
                ([3, 5, 3, 3], 7.5, 1.0, false),
                ([2, 4, 6, 4], 3.0, 0.5, true),
                // More than one slice, and a last one that is not full.
                ([2, 37, 41, 4], 7.5, 0.7, false),
                ([1, 37, 41, 3], 7.5, 0.7, true),
                ([1, 8, 8, 4], 7.5, 0.0, false),
            ] {
                let n: usize = shape.iter().product();
                // Means far from 0, as latents have them by channel.
                let drawn = |seed| -> Vec<f32> { randn(seed, n).iter().map(|v| v + 3.0).collect() };
                let (u, c) = (stored(act, &drawn(1)), stored(act, &drawn(2)));
                let case = Case { act, kernels, shape, guidance, rescale, apart };
                let Some(got) = guided(&case, &u, &c) else { return };
                let want = oracle(&u, &c, n / shape[0], guidance, rescale);
                let e = nmse(&got, &want);
                assert!(e <= tolerance(Elem::F32), "{act:?} {kernels:?} {shape:?}: {e:.2e}");
            }
        }
    }
}

/// `torch.std` and diffusers' `rescale_noise_cfg(u + 7.5 * (c - u), c, guidance_rescale=0.7)` for two pictures.
#[test]
fn it_is_diffusers() {
    let u = [0.5, -1.25, 2.0, 0.75, -0.5, 1.0, 0.25, -2.0, 1.5, 0.125, -0.75, 3.0];
    let c = [1.0, -0.5, 1.75, 1.25, -1.0, 0.5, 0.75, -1.5, 1.0, 0.625, -1.25, 2.5];
    let want = [
        2.0812712, 2.1424849, 0.0612139, 2.2036989, -2.0812712, -1.3467048, 2.4213011, 1.0593193,
        -1.3619819, 2.3456354, -2.7239637, -0.453994,
    ];
    let close = |got: &[f64]| {
        for (got, want) in got.iter().zip(want) {
            // Printed to seven digits; the sums behind them are f32 in torch.
            assert!((got - want).abs() <= 2e-6 * want.abs().max(1.0), "{got} and {want}");
        }
    };
    close(&oracle(&u, &c, 6, 7.5, 0.7));
    for kernels in BOTH {
        let shape = [2, 1, 2, 3];
        let case =
            Case { act: Elem::F32, kernels, shape, guidance: 7.5, rescale: 0.7, apart: false };
        let Some(got) = guided(&case, &u, &c) else { return };
        close(&got.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
    }
}

#[test]
fn an_answer_that_does_not_vary_keeps_its_strength() {
    let (u, c) = ([1.0; 16], [2.0; 16]);
    for kernels in BOTH {
        let shape = [1, 2, 2, 4];
        let case =
            Case { act: Elem::F32, kernels, shape, guidance: 3.0, rescale: 0.7, apart: false };
        let Some(got) = guided(&case, &u, &c) else { return };
        assert_eq!(got, [4.0; 16]);
    }
}

#[test]
fn pictures_that_do_not_divide_the_answer_are_a_shape_error() {
    let graph = Graph::new(Elem::F32);
    let coef = graph.input("coef", [COEFFICIENTS], Elem::F32);
    let [u, c] = ["u", "c"].map(|name| graph.input(name, [1, 2, 2, 4], Elem::F32));
    let _ = Answer::pair(u, c).rescaled(3, coef);
    let error = graph.finish().unwrap_err().to_string();
    assert!(error.contains("guidance_rescale: [1, 2, 2, 4] of 3 pictures"), "{error}");
}
