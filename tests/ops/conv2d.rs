use inknib::gpu::{Elem, Gpu};
use inknib::graph::{Graph, Kernels, Plan, PlanOptions, Vector, Weight};
use inknib::ops::channels::add_channels;
use inknib::ops::concat::cat;
use inknib::ops::conv2d::{Conv, Pad, conv2d, oracle};
use inknib::ops::pointwise::{Act, silu};
use inknib::quant::{Layout, Packed, QuantSpec};

use crate::harness::*;

const ALL: [Kernels; 3] = [Kernels::Reference, Kernels::Fast, Kernels::Hardware];
const SPECS: [&str; 8] = [
    "f32",
    "f16",
    "int8-g64",
    "int4-g32-uniform-absmax",
    "int4-g64-uniform-mse",
    "int4-g64-cubic-mse",
    "int4-g32-cubic-mse",
    "int4-g128-cubic-mse",
];
const SAME: Conv = Conv { stride: 1, upsample: false, pad: Pad::Same };
const DOWN: Conv = Conv { stride: 2, upsample: false, pad: Pad::Same };
const DOWN_END: Conv = Conv { stride: 2, upsample: false, pad: Pad::End };
const UP: Conv = Conv { stride: 1, upsample: true, pad: Pad::Same };

/// What follows the convolution.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Nothing,
    Silu,
    Residual,
    Time,
    /// Time embedding, then SiLU, then the residual.
    Everything,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    /// Batch, height, width of the input.
    size: [usize; 3],
    /// Channels of the first and the second input; 0 for no second.
    channels: [usize; 2],
    rows: usize,
    side: usize,
    conv: Conv,
    spec: &'static str,
    then: Then,
    /// Bytes of one window of the weight.
    window: u64,
}

const CASE: Case = Case {
    size: [1, 5, 7],
    channels: [16, 0],
    rows: 8,
    side: 3,
    conv: SAME,
    spec: "f32",
    then: Then::Nothing,
    window: 1 << 27,
};

/// Joins two pictures along their channels.
fn join(a: &[f32], b: &[f32], [ca, cb]: [usize; 2]) -> Vec<f32> {
    if cb == 0 {
        return a.to_vec();
    }
    a.chunks(ca).zip(b.chunks(cb)).flat_map(|(a, b)| [a, b].concat()).collect()
}

fn layout(Case { channels: [ca, cb], rows, side, .. }: Case) -> Layout {
    Layout { rows, taps: side * side, channels: ca + cb }
}

fn check(case: Case, seed: u64) {
    let spec: QuantSpec = case.spec.parse().unwrap();
    let layout = layout(case);
    let packed = Packed::pack(&randn(seed, layout.len()), layout, &spec, None).unwrap();
    check_packed(case, &packed, seed);
}

fn check_packed(case: Case, packed: &Packed, seed: u64) {
    for (gpu, kernels, acts) in every_form() {
        check_on(gpu, (kernels, &acts), case, packed, seed);
    }
}

/// Everything fuses, except a time embedding into a kernel that has two inputs already.
fn check_launches(plan: &Plan, (kernels, windows): (Kernels, usize), case: Case) {
    let Case { channels: [ca, cb], side, then, .. } = case;
    let time = matches!(then, Then::Time | Then::Everything);
    let separate = cb > 0 && time || side == 1 && cb == 0 && time;
    let launches = plan.launches();
    let merges = launches.iter().filter(|l| l.kernel.starts_with("conv2d_merge")).count();
    assert!(separate || launches.len() - merges == windows, "{kernels:?} {case:?}: {launches:?}");
    // One sum of many products on a real GPU; a window of a weight is one of several.
    let long = (ca + cb) * side * side >= 1024 && windows == 1;
    assert_eq!(merges, usize::from(long && kernels == Kernels::Hardware), "{case:?}");
}

fn check_on(
    gpu: &Gpu,
    (kernels, acts): (&[Kernels], &[Elem]),
    case: Case,
    packed: &Packed,
    seed: u64,
) {
    let Case { size: [b, h, w], channels: [ca, cb], rows, side, conv, then, .. } = case;
    let weight = Weight::upload_windowed(gpu, "w", packed, case.window).unwrap();
    let bias = randn(seed + 1, rows);
    let vector = Vector::upload(gpu, "bias", &bias).unwrap();
    let row: Vec<u32> = (0..b as u32).map(|i| (2 * i + 1) % 5).collect();
    for &act in acts {
        let x = stored(act, &randn(seed + 2, b * h * w * ca));
        let x2 = stored(act, &randn(seed + 3, b * h * w * cb));
        let plain =
            oracle(&join(&x, &x2, [ca, cb]), [b, h, w, ca + cb], &packed.decode(), side, conv);
        let r = stored(act, &randn(seed + 4, plain.len()));
        let table = stored(act, &randn(seed + 5, 5 * rows));
        let (time, unary) = (
            matches!(then, Then::Time | Then::Everything),
            matches!(then, Then::Silu | Then::Everything),
        );
        let added = matches!(then, Then::Residual | Then::Everything);
        let item = plain.len() / b;
        let want: Vec<f64> = plain
            .iter()
            .enumerate()
            .map(|(i, v)| {
                let mut v = v + f64::from(bias[i % rows]);
                v += if time {
                    f64::from(table[row[i / item] as usize * rows + i % rows])
                } else {
                    0.
                };
                v = if unary { Act::Silu.oracle(v) } else { v };
                v + if added { f64::from(r[i]) } else { 0. }
            })
            .collect();
        for &kernels in kernels {
            let graph = Graph::new(act);
            let g = &graph;
            let mut y = g.literal([b, h, w, ca], x.clone());
            if cb > 0 {
                y = cat(y, g.literal([b, h, w, cb], x2.clone()));
            }
            y = conv2d(y, &weight, Some(&vector), conv);
            if time {
                let table = g.literal([5, rows], table.clone());
                y = add_channels(y, table, g.input("row", [b], Elem::U32));
            }
            y = if unary { silu(y) } else { y };
            y = if added { g.literal(y.shape(), r.clone()) + y } else { y };
            g.output("y", y);
            let options = PlanOptions { kernels, poison: true, ..Default::default() };
            let plan = Plan::new(gpu, g, &options).unwrap();
            if time {
                plan.set_u32("row", &row).unwrap();
            }
            plan.run().unwrap();
            let e = nmse(&plan.read("y").unwrap(), &want);
            assert!(e <= tolerance(act), "{kernels:?} {act:?} {case:?}: {e:.2e}");
            check_launches(&plan, (kernels, weight.chunks().len()), case);
        }
    }
}

#[test]
fn every_format() {
    for (i, spec) in SPECS.into_iter().enumerate() {
        for (channels, rows) in [([64, 0], 40), ([12, 0], 9), ([136, 0], 8)] {
            check(Case { spec, channels, rows, then: Then::Silu, ..CASE }, 20 + i as u64);
        }
        check(Case { spec, channels: [64, 32], side: 1, ..CASE }, 40 + i as u64);
    }
}

#[test]
fn odd_sizes_strides_and_upsampling() {
    for conv in [SAME, DOWN, DOWN_END, UP] {
        for size in [[1, 3, 3], [2, 9, 5], [1, 2, 17], [3, 8, 8]] {
            for (channels, rows) in [([4, 0], 11), ([24, 0], 21), ([10, 0], 75)] {
                check(Case { conv, size, channels, rows, ..CASE }, 3);
            }
        }
    }
    for side in [1, 2, 5] {
        check(Case { side, conv: DOWN, size: [2, 6, 7], rows: 5, ..CASE }, 4);
        check(Case { side, conv: SAME, size: [1, 6, 7], rows: 5, ..CASE }, 5);
    }
    check(Case { size: [1, 1, 1], rows: 1, channels: [1, 0], ..CASE }, 6);
}

#[test]
fn forms_of_files_quantized_elsewhere() {
    // With everything fused, and with a second input: the most bindings that a kernel has.
    for channels in [[16, 0], [20, 0], [16, 8], [12, 20]] {
        let then = if channels[1] == 0 { Then::Everything } else { Then::Residual };
        let case = Case { channels, rows: 19, then, ..CASE };
        for (spec, packed) in foreign(layout(case), 30) {
            let spec: &'static str = spec.leak(); // a few names in the messages of one test
            check_packed(Case { spec, ..case }, &packed, 31);
            let window = packed.row_words() as u64 * 4 * 7;
            check_packed(Case { spec, window, ..case }, &packed, 32);
        }
    }
}

#[test]
fn two_inputs_are_read_where_they_lie() {
    for channels in [[16, 8], [8, 40], [12, 20], [16, 3], [5, 16], [64, 64]] {
        for side in [1, 3] {
            for conv in [SAME, DOWN, UP] {
                check(Case { channels, side, conv, size: [2, 4, 5], rows: 10, ..CASE }, 7);
                check(Case { channels, side, conv, size: [2, 3, 5], rows: 18, ..CASE }, 7);
            }
        }
        let spec = "int4-g32-cubic-mse";
        check(Case { channels, spec, size: [1, 6, 3], then: Then::Everything, ..CASE }, 8);
    }
}

#[test]
fn what_follows_is_fused() {
    for then in [Then::Silu, Then::Residual, Then::Time, Then::Everything] {
        for (channels, rows) in [([32, 0], 24), ([6, 0], 7)] {
            check(Case { channels, rows, then, size: [3, 4, 6], ..CASE }, 9);
            check(Case { channels, rows, then, conv: UP, size: [2, 3, 3], ..CASE }, 10);
            check(Case { channels, rows, then, side: 1, size: [2, 3, 3], ..CASE }, 11);
        }
    }
}

#[test]
fn a_weight_larger_than_one_binding_is_windowed() {
    // 50 rows of 9 taps of 16 f32 in windows of 16 rows, then of INT4.
    let case = Case { rows: 50, then: Then::Everything, size: [2, 4, 4], ..CASE };
    check(Case { window: 16 * 9 * 16 * 4 + 600, ..case }, 12);
    check(Case { window: 16 * 80, spec: "int4-g64-cubic-mse", ..case }, 13);
}

#[test]
fn sizes_of_a_real_unet() {
    let spec = "int4-g64-cubic-mse";
    check(Case { size: [2, 16, 16], channels: [64, 0], rows: 64, spec, ..CASE }, 14);
    check(Case { size: [1, 24, 40], channels: [64, 0], rows: 96, spec, ..CASE }, 15);
}

/// Few pixels of many channels, as in the middle of a UNet: a GPU divides the taps among workgroups.
#[test]
fn taps_are_divided() {
    for (channels, then, side, spec) in [
        ([640, 0], Then::Everything, 3, "int4-g64-cubic-mse"),
        ([200, 120], Then::Residual, 3, "f32"),
        ([600, 0], Then::Time, 3, "int8-g64"),
        ([44, 0], Then::Silu, 5, "f16"),
    ] {
        check(Case { size: [2, 3, 3], channels, rows: 20, side, then, spec, ..CASE }, 16);
    }
    // One sum, which does not fill the sixteen bytes of a binding.
    check(Case { size: [1, 1, 1], channels: [128, 0], rows: 1, ..CASE }, 17);
}

#[test]
fn paddings_by_hand() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout { rows: 1, taps: 9, channels: 1 };
    let ones = Packed::pack(&[1.0; 9], layout, &QuantSpec::F32, None).unwrap();
    let ones = Weight::upload(gpu, "w", &ones).unwrap();
    let corner = [0., 0., 0., 0., 0., 0., 0., 0., 1.];
    let corner = Packed::pack(&corner, layout, &QuantSpec::F32, None).unwrap();
    let corner = Weight::upload(gpu, "w", &corner).unwrap();
    let x: Vec<f32> = (1..=16).map(|v| v as f32).collect();
    for kernels in ALL {
        let run = |weight: &Weight, size: usize, conv: Conv| {
            let x = x[..size * size].to_vec();
            eval(gpu, kernels, Elem::F32, |g| {
                conv2d(g.literal([1, size, size, 1], x.clone()), weight, None, conv)
            })
        };
        // torch.nn.functional.conv2d of arange(1, 17) as 4x4 with a window of ones.
        assert_eq!(run(&ones, 4, DOWN), [14., 30., 57., 99.]);
        assert_eq!(run(&ones, 4, DOWN_END), [54., 45., 72., 54.]);
        // The last tap alone picks the pixel below and to the right.
        assert_eq!(run(&corner, 2, SAME), [4., 0., 0., 0.]);
        let up = [1., 2., 2., 0., 3., 4., 4., 0., 3., 4., 4., 0., 0., 0., 0., 0.];
        assert_eq!(run(&corner, 2, UP), up);
    }
}

#[test]
fn infinities_next_to_the_border_stay_where_they_are() {
    let Some(gpu) = gpu() else { return };
    for rows in [1, 20] {
        let layout = Layout { rows, taps: 9, channels: 8 };
        // Only the first tap counts, so that the pixels of the first row and column see nothing but padding.
        let mut w = vec![0.0; 72 * rows];
        w[..8].fill(1.0);
        let w = Packed::pack(&w, layout, &QuantSpec::F32, None).unwrap();
        let w = Weight::upload(gpu, "w", &w).unwrap();
        let mut x = vec![0.0; 9 * 8];
        x[0] = f32::INFINITY;
        for kernels in ALL {
            let y = eval(gpu, kernels, Elem::F32, |g| {
                conv2d(g.literal([1, 3, 3, 8], x.clone()), &w, None, DOWN)
            });
            // Outputs (0, 1) and (1, 0) have only zeros and padding under taps with a weight, output (0, 0)
            // multiplies the infinity with a zero of the window.
            assert_eq!((y[rows], y[2 * rows]), (0.0, 0.0), "{kernels:?}");
        }
    }
}

#[test]
fn shape_errors_say_what_is_wrong() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout { rows: 4, taps: 9, channels: 8 };
    let w = Packed::pack(&randn(1, layout.len()), layout, &QuantSpec::F16, None).unwrap();
    let w = Weight::upload(gpu, "w", &w).unwrap();
    let message = |shape: &[usize], conv: Conv| {
        let graph = Graph::new(Elem::F32);
        conv2d(graph.input("x", shape, Elem::F32), &w, None, conv);
        graph.finish().unwrap_err().to_string()
    };
    assert!(message(&[1, 4, 4, 9], SAME).contains("conv2d: x [1, 4, 4, 9] against a weight of 4"));
    assert!(message(&[4, 4, 8], SAME).contains("no picture"));
    assert!(message(&[1, 1, 4, 8], DOWN_END).contains("smaller than the window"));
    assert!(message(&[1, 4, 4, 8], Conv { stride: 0, ..SAME }).contains("stride of 0"));
}

#[test]
fn a_large_convolution_is_cut_along_its_pixels() {
    let Some(gpu) = gpu() else { return };
    // 2·9·64·64 operations a pixel: beyond 2^30 in all, where software adapters get a second dispatch that
    // begins in the middle of the last picture.
    let (b, side, c) = (4, 64, 64);
    let layout = Layout { rows: c, taps: 9, channels: c };
    let packed = Packed::pack(&randn(1, layout.len()), layout, &QuantSpec::INT4, None).unwrap();
    let weight = Weight::upload(gpu, "w", &packed).unwrap();
    let x = randn(2, b * side * side * c);
    let item = side * side * c;
    let want = oracle(&x[(b - 1) * item..], [1, side, side, c], &packed.decode(), 3, SAME);
    let graph = Graph::new(Elem::F32);
    graph.output("y", conv2d(graph.literal([b, side, side, c], x.clone()), &weight, None, SAME));
    let options = PlanOptions { poison: true, ..Default::default() };
    let plan = Plan::new(gpu, &graph, &options).unwrap();
    assert_eq!(plan.launches().len(), if gpu.caps().software { 2 } else { 1 });
    plan.run().unwrap();
    let e = nmse(&plan.read("y").unwrap()[(b - 1) * item..], &want);
    assert!(e <= tolerance(Elem::F32), "{e:.2e}");
}
