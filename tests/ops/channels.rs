use inknib::gpu::Elem;
use inknib::graph::{Graph, Plan, PlanOptions};
use inknib::ops::channels::{add_channels, oracle};

use crate::harness::*;

#[test]
fn each_item_takes_its_own_row() {
    let Some(gpu) = gpu() else { return };
    for act in acts(gpu) {
        for (b, pixels, c) in [(1, 9, 8), (3, 5, 12), (2, 4, 5), (4, 1, 1)] {
            let x = stored(act, &randn(1, b * pixels * c));
            let row: Vec<u32> = (0..b as u32).map(|i| (3 * i + 2) % 4).collect();
            for table_elem in [act, Elem::F32] {
                let table = stored(table_elem, &randn(2, 4 * c));
                let want = oracle(&x, &table, &row, c);
                for kernels in BOTH {
                    let graph = Graph::new(act);
                    let y = add_channels(
                        graph.literal([b, pixels, c], x.clone()),
                        graph.input("table", [4, c], table_elem),
                        graph.input("row", [b], Elem::U32),
                    );
                    graph.output("y", y);
                    let options = PlanOptions { kernels, poison: true, ..Default::default() };
                    let plan = Plan::new(gpu, &graph, &options).unwrap();
                    plan.set("table", &table).unwrap();
                    plan.set_u32("row", &row).unwrap();
                    plan.run().unwrap();
                    let e = nmse(&plan.read("y").unwrap(), &want);
                    assert!(e <= tolerance(act), "{kernels:?} {act:?} {b}x{pixels}x{c}: {e:.2e}");
                }
            }
        }
    }
}

#[test]
fn a_row_beyond_the_table_is_its_last() {
    let Some(gpu) = gpu() else { return };
    for kernels in BOTH {
        let graph = Graph::new(Elem::F32);
        let y = add_channels(
            graph.literal([1, 1, 4], vec![0.0; 4]),
            graph.literal([2, 4], (0..8).map(|v| v as f32).collect()),
            graph.input("row", [1], Elem::U32),
        );
        graph.output("y", y);
        let options = PlanOptions { kernels, ..Default::default() };
        let plan = Plan::new(gpu, &graph, &options).unwrap();
        plan.set_u32("row", &[u32::MAX]).unwrap();
        plan.run().unwrap();
        assert_eq!(plan.read("y").unwrap(), [4.0, 5.0, 6.0, 7.0], "{kernels:?}");
    }
}

#[test]
fn shape_errors_say_what_is_wrong() {
    let message = |x: &[usize], table: &[usize], row: &[usize], elem: Elem| {
        let graph = Graph::new(Elem::F32);
        let x = graph.input("x", x, Elem::F32);
        let table = graph.input("table", table, Elem::F32);
        add_channels(x, table, graph.input("row", row, elem));
        graph.finish().unwrap_err().to_string()
    };
    let u = Elem::U32;
    assert!(
        message(&[2, 3, 8], &[5, 7], &[2], u).contains("with a table [5, 7]; it takes [steps, 8]")
    );
    assert!(message(&[2, 3, 8], &[5, 8], &[3], u).contains("with rows [3] of U32; it takes [2]"));
    assert!(message(&[2, 3, 8], &[5, 8], &[2], Elem::F32).contains("[2] of F32"));
    assert!(message(&[0, 3, 8], &[5, 8], &[0], u).contains("with a table"));
}
