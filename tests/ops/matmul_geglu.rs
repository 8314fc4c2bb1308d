use inknib::graph::{Graph, Kernels, Plan, PlanOptions, Vector, Weight};
use inknib::ops::matmul::{linear, oracle};
use inknib::ops::pointwise::{Act, geglu};
use inknib::quant::{Layout, Packed, QuantSpec};

use crate::harness::*;

/// What a feed-forward layer of a UNet begins with: of many rows one launch on a real GPU, where halves are whole rows of tiles.
#[test]
fn a_product_in_halves_is_gated_where_it_is_made() {
    let Some(gpu) = gpu() else { return };
    for (spec, bias) in [
        ("int4-g32-uniform", false),
        ("int4-g64-cubic-mse", true),
        ("int8-g64", true),
        ("f16", true),
    ] {
        let spec: QuantSpec = spec.parse().unwrap();
        for (m, n, k, launches) in [
            (5, 64, 128, 1),
            (70, 192, 172, 1),
            (130, 320, 40, 1),
            // No more than four rows go by vectors, and forty of each half are no whole tiles.
            (4, 64, 128, 2),
            (33, 80, 64, 2),
        ] {
            let w = randn(1, n * k);
            let packed = Packed::pack(&w, Layout::linear(n, k), &spec, None).unwrap();
            let weight = Weight::upload(gpu, "w", &packed).unwrap();
            let biases = randn(2, n);
            let vector = Vector::upload(gpu, "bias", &biases).unwrap();
            for act in acts(gpu) {
                let x = stored(act, &randn(3, m * k));
                let both =
                    oracle(&x, &packed.decode(), bias.then_some(&biases[..]), None, Act::None, k);
                let gated = both.chunks_exact(n).flat_map(|row| {
                    let (value, gate) = row.split_at(n / 2);
                    value.iter().zip(gate).map(|(v, g)| v * Act::Gelu.oracle(*g))
                });
                let want: Vec<f64> = gated.collect();
                for kernels in [Kernels::Reference, Kernels::Fast, Kernels::Hardware] {
                    let graph = Graph::new(act);
                    let x = graph.literal([m, k], x.clone());
                    graph.output("y", geglu(linear(x, &weight, bias.then_some(&vector))));
                    let options =
                        PlanOptions { kernels, poison: true, guards: true, ..Default::default() };
                    let plan = Plan::new(gpu, &graph, &options).unwrap();
                    plan.run().unwrap();
                    let at = format!("{kernels:?} {act:?} {spec} {m} rows by {n} of {k}");
                    let e = nmse(&plan.read("y").unwrap(), &want);
                    // In f16 both halves, or one, are rounded before the result is.
                    assert!(e <= 2.0 * tolerance(act), "{at}: {e:.2e}");
                    assert!(plan.guards_intact().unwrap(), "{at}");
                    if kernels == Kernels::Hardware {
                        assert_eq!(plan.launches().len(), launches, "{at}");
                    }
                }
            }
        }
    }
}
