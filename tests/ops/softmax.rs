use inknib::graph::Kernels;
use inknib::ops::softmax::{oracle, softmax};

use crate::harness::*;

#[test]
fn rows_of_any_length() {
    let Some(gpu) = gpu() else { return };
    for act in acts(gpu) {
        for (rows, c) in [(1, 1), (3, 5), (130, 77), (2, 1000), (2, 5001), (1, 40_000)] {
            // Large values overflow exp unless the maximum is taken off.
            let x = stored(act, &randn(1, rows * c).iter().map(|v| 40.0 * v).collect::<Vec<_>>());
            let want = oracle(&x, c);
            for kernels in [Kernels::Reference, Kernels::Fast, Kernels::Hardware] {
                let y = eval(gpu, kernels, act, |g| softmax(g.literal([rows, c], x.clone())));
                let e = nmse(&y, &want);
                assert!(e <= tolerance(act), "{kernels:?} {act:?} {rows}x{c}: {e:.2e}");
            }
        }
    }
}
