use inknib::gpu::Elem;
use inknib::graph::{Graph, Plan, PlanOptions, Weight};
use inknib::ops::embed::{embed, embed_range, embed_stacked, oracle, take_row};
use inknib::quant::{Layout, Packed, QuantSpec};

use crate::harness::*;
use crate::rope::position;

const SPECS: [&str; 6] = [
    "f32",
    "f16",
    "int8-g64",
    "int4-g32-uniform-absmax",
    "int4-g64-cubic-mse",
    "int4-g128-cubic-mse",
];

fn check(rows: usize, channels: usize, spec: &str, window: u64) {
    let spec: QuantSpec = spec.parse().unwrap();
    let packed =
        Packed::pack(&randn(1, rows * channels), Layout::linear(rows, channels), &spec, None)
            .unwrap();
    check_packed(&spec.to_string(), &packed, window);
}

fn check_packed(spec: &str, packed: &Packed, window: u64) {
    let Some(gpu) = gpu() else { return };
    let (rows, channels) = (packed.layout.rows, packed.layout.channels);
    let weight = Weight::upload_windowed(gpu, "w", packed, window).unwrap();
    // Every row, some twice, and ids that no window holds.
    let mut ids: Vec<u32> = (0..rows as u32).rev().chain([3, 3, 0]).collect();
    ids.extend([rows as u32, u32::MAX, 1 << 31]);
    let want = oracle(&ids, &packed.decode(), channels);
    for act in acts(gpu) {
        for kernels in BOTH {
            let graph = Graph::new(act);
            graph.output("y", embed(graph.input("ids", [1, ids.len()], Elem::U32), &weight));
            let options = PlanOptions { kernels, poison: true, ..Default::default() };
            let plan = Plan::new(gpu, &graph, &options).unwrap();
            assert_eq!(plan.launches().len(), weight.chunks().len());
            plan.set_u32("ids", &ids).unwrap();
            plan.run().unwrap();
            let e = nmse(&plan.read("y").unwrap(), &want);
            assert!(e <= tolerance(act), "{kernels:?} {act:?} {rows}x{channels} {spec}: {e:.2e}");
        }
    }
}

#[test]
fn every_format_gives_its_rows_and_zeros_for_unknown_ids() {
    for spec in SPECS {
        check(37, 128, spec, 1 << 27);
        check(19, 20, spec, 1 << 27);
    }
    for channels in [128, 20] {
        for (name, packed) in foreign(Layout::linear(37, channels), 3) {
            check_packed(&name, &packed, packed.row_words() as u64 * 4 * 9);
        }
    }
}

#[test]
fn windows_together_hold_every_row() {
    // Windows of 8 rows: 128 f32, or 128 nibbles, to the row.
    check(50, 128, "f32", 8 * 128 * 4);
    check(50, 128, "int4-g64-cubic-mse", 8 * 128 / 2);
}

/// Four-bit rows in two windows above f32 rows; every id of both, and those that neither holds.
#[test]
fn stacked_tables_are_one_table() {
    let Some(gpu) = gpu() else { return };
    for channels in [128, 20] {
        let pack = |seed, rows, spec: &str| {
            let values = randn(seed, rows * channels);
            let spec: QuantSpec = spec.parse().unwrap();
            Packed::pack(&values, Layout::linear(rows, channels), &spec, None).unwrap()
        };
        let (above, below) = (pack(1, 13, "int4-g32-uniform-absmax"), pack(2, 5, "f32"));
        let window = above.row_words() as u64 * 4 * 7;
        let tables = [
            Weight::upload_windowed(gpu, "above", &above, window).unwrap(),
            Weight::upload(gpu, "below", &below).unwrap(),
        ];
        let ids: Vec<u32> = (0..20).rev().chain([u32::MAX, 0]).collect();
        let want = oracle(&ids, &[above.decode(), below.decode()].concat(), channels);
        for act in acts(gpu) {
            for kernels in BOTH {
                let graph = Graph::new(act);
                let input = graph.input("ids", [1, ids.len()], Elem::U32);
                graph.output("y", embed_stacked(input, &[&tables[0], &tables[1]]));
                let options = PlanOptions { kernels, poison: true, ..Default::default() };
                let plan = Plan::new(gpu, &graph, &options).unwrap();
                assert_eq!(plan.launches().len(), 3);
                plan.set_u32("ids", &ids).unwrap();
                plan.run().unwrap();
                let e = nmse(&plan.read("y").unwrap(), &want);
                assert!(e <= tolerance(act), "{kernels:?} {act:?} {channels}: {e:.2e}");
            }
        }
    }
}

#[test]
fn a_range_is_its_rows_and_zeros_beyond_the_table() {
    let Some(gpu) = gpu() else { return };
    for channels in [64, 12] {
        let layout = Layout::linear(20, channels);
        let packed = Packed::pack(&randn(1, 20 * channels), layout, &QuantSpec::F16, None).unwrap();
        // Windows of seven rows.
        let weight = Weight::upload_windowed(gpu, "w", &packed, 7 * channels as u64 * 2).unwrap();
        for (start, count) in [(0, 20), (5, 1), (13, 9)] {
            let ids: Vec<u32> = (start..start + count).collect();
            let want = oracle(&ids, &packed.decode(), channels);
            for act in acts(gpu) {
                for kernels in BOTH {
                    let y = eval(gpu, kernels, act, |g| {
                        embed_range(position(gpu, g, start), count as usize, &weight)
                    });
                    let e = nmse(&y, &want);
                    assert!(e <= tolerance(act), "{kernels:?} {act:?} {start}: {e:.2e}");
                }
            }
        }
    }
}

#[test]
fn one_token_of_each_item_is_a_copy() {
    let Some(gpu) = gpu() else { return };
    for act in acts(gpu) {
        for c in [64, 7] {
            let (b, s) = (3, 11);
            let x = stored(act, &randn(2, b * s * c));
            // The last row does not exist.
            let rows = [10, 0, s as u32];
            for kernels in BOTH {
                let graph = Graph::new(act);
                let row = graph.input("row", [b], Elem::U32);
                graph.output("y", take_row(graph.literal([b, s, c], x.clone()), row));
                let options = PlanOptions { kernels, poison: true, ..Default::default() };
                let plan = Plan::new(gpu, &graph, &options).unwrap();
                plan.set_u32("row", &rows).unwrap();
                plan.run().unwrap();
                let y = plan.read("y").unwrap();
                for i in 0..b * c {
                    let (item, row) = (i / c, rows[i / c] as usize);
                    let want = if row < s { x[(item * s + row) * c + i % c] } else { 0.0 };
                    assert_eq!(y[i], want, "{kernels:?} {act:?} item {item} channel {}", i % c);
                }
            }
        }
    }
}
