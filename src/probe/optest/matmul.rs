//! Products of matrices: every format of weights at odd shapes, at the edges of tiles, groups, windows and loops, with what is
//! fused behind, and the layers of models.

use super::problem::{Level, Prepared, Problem, Set, Site, normal, packed};
use crate::Result;
use crate::graph::Weight;
use crate::ops::matmul::{linear, linear_rounded, oracle};
use crate::ops::pointwise::{Act, activate, geglu};
use crate::quant::{Layout, Offset, Packed};

/// Formats that recipes make, those of most use first.
pub(super) const FORMATS: [&str; 9] = [
    "int4-g64-cubic",
    "fp16",
    "int8-g64",
    "fp32",
    "int4-g32-uniform-absmax",
    "int4-g128-cubic-absmax",
    "int4-g32-cubic-absmax",
    "int4-g64-uniform-absmax",
    "int4-g128-uniform-absmax",
];
/// Forms of files that were quantized elsewhere.
pub(super) const FOREIGN: [&str; 4] =
    ["int4-g128-zero", "int4-g32-min", "int4-row-zero", "int8-g16"];

/// A random weight of one of [`FORMATS`] or [`FOREIGN`], with a standard deviation near 1.
pub(super) fn weight(seed: u64, layout: Layout, spec: &str) -> Result<Packed> {
    let whole = layout.channels.next_multiple_of(8) as u32;
    match spec {
        "int4-g128-zero" => with_offsets(seed, layout, 128, Offset::Zero),
        "int4-g32-min" => with_offsets(seed, layout, 32, Offset::Min),
        "int4-row-zero" => with_offsets(seed, layout, whole, Offset::Zero),
        "int8-g16" => {
            let noise = normal(seed, layout.len());
            let codes: Vec<i8> =
                noise.iter().map(|v| (v * 40.0).clamp(-128.0, 127.0) as i8).collect();
            let count = layout.rows * layout.row_groups(16);
            let scales = normal(seed + 1, count);
            let scales: Vec<_> =
                scales.iter().map(|v| half::f16::from_f32(0.025 + 0.002 * v)).collect();
            Packed::from_q8_codes(layout, 16, &codes, &scales)
        }
        _ => packed(seed, layout, spec),
    }
}

fn with_offsets(seed: u64, layout: Layout, group: u32, offset: Offset) -> Result<Packed> {
    let half = half::f16::from_f32;
    let noise = normal(seed, layout.len());
    let codes: Vec<u8> = noise.iter().map(|v| (v * 3.0 + 8.0).clamp(0.0, 15.0) as u8).collect();
    let count = layout.rows * layout.row_groups(group);
    let scales: Vec<_> = normal(seed + 1, count).iter().map(|v| half(0.3 + 0.02 * v)).collect();
    let offsets = normal(seed + 2, count).into_iter().map(|v| match offset {
        Offset::Min => half(v - 2.4),
        _ => half((8.0 + 2.0 * v).round().clamp(0.0, 16.0)),
    });
    let offsets: Vec<_> = offsets.collect();
    Packed::from_q4_codes_with_offsets(layout, group, offset, &codes, &scales, &offsets)
}

/// What follows the product.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Nothing,
    Bias,
    Silu,
    /// Bias, quick GELU, and a residual.
    Everything,
    Geglu,
}

impl Then {
    fn name(self) -> &'static str {
        match self {
            Then::Nothing => "",
            Then::Bias => " bias",
            Then::Silu => " silu",
            Then::Everything => " bias quickgelu residual",
            Then::Geglu => " geglu",
        }
    }
}

pub fn add(all: &mut Vec<Problem>) {
    let mut add = |size, spec: &'static str, then, level: (Set, Level)| {
        all.push(problem(size, spec, then, level));
    };
    let small = [13, 72, 192];
    for spec in &FORMATS[..4] {
        add(small, spec, Then::Silu, (Set::Small, Level::Smoke));
    }
    // One row goes through lanes that share a row of the weight, many through tiles.
    add([1, 72, 192], FORMATS[0], Then::Silu, (Set::Small, Level::Smoke));
    for (i, size) in
        [[1, 33, 172], [13, 40, 200], [3, 8, 64], [5, 17, 9], [64, 64, 128], [33, 130, 72]]
            .into_iter()
            .enumerate()
    {
        for spec in FORMATS.into_iter().chain(FOREIGN) {
            // One row and many, in the formats that recipes make most, and one with zero points.
            let quick = i < 2 && (FORMATS[..5].contains(&spec) || spec == FOREIGN[1]);
            let level = if quick { Level::Quick } else { Level::Usual };
            add(size, spec, Then::Bias, (Set::Ragged, level));
        }
    }
    for then in [Then::Everything, Then::Geglu] {
        for spec in ["int4-g64-cubic", "fp16", "fp32", "int4-g32-min"] {
            for size in [[1, 34, 72], [21, 66, 136]] {
                let quick = spec == "int4-g64-cubic";
                let level = if quick { Level::Quick } else { Level::Usual };
                add(size, spec, then, (Set::Ragged, level));
            }
        }
    }
    for m in [1, 2, 8, 9, 16, 17, 63, 64, 65] {
        for (n, k) in [(8, 8), (63, 127), (64, 64), (65, 129), (128, 256)] {
            let spec = FORMATS[(m + n) % 5];
            add([m, n, k], spec, Then::Nothing, (Set::Edges, Level::Usual));
        }
    }
    // Loops near the limit of software drivers, and groups of every size at their ends.
    for spec in ["int4-g64-cubic", "fp16", "int8-g64"] {
        add([9, 8, 32_768], spec, Then::Nothing, (Set::Edges, Level::Usual));
    }
    // Sums that real GPUs divide, as many as do not fill the sixteen bytes that a binding is rounded up to.
    for (size, level) in [([9, 7, 1024], Level::Quick), ([5, 3, 1032], Level::Usual)] {
        add(size, "fp16", Then::Nothing, (Set::Edges, level));
    }
    for k in [31, 32, 33, 63, 65, 127, 128, 136] {
        for spec in &FORMATS[4..] {
            add([2, 24, k], spec, Then::Nothing, (Set::Edges, Level::Usual));
        }
    }
    for spec in ["int4-g64-cubic", "fp16", "int8-g64"] {
        for size in [[1, 8, 65_536], [9, 8, 65_544]] {
            let level = (Set::Edges, Level::Usual);
            all.push(problem(size, spec, Then::Nothing, level).fast_only());
        }
    }
    for (i, size) in [[1, 33, 172], [4, 40, 200], [3, 8, 64], [2, 24, 33]].into_iter().enumerate() {
        for spec in ["int4-g32-uniform-absmax", "int8-g64"].into_iter().chain(FOREIGN) {
            let level = if i < 2 { Level::Quick } else { Level::Usual };
            all.push(in_eight_bits(size, spec, (Set::Ragged, level)));
        }
    }
    gates(all);
    models(all);
    all.extend([windowed("int4-g64-cubic"), windowed("fp32"), windowed("int4-g32-min")]);
}

/// Halves that real GPUs gate in their tiles.
fn gates(all: &mut Vec<Problem>) {
    for spec in ["int4-g64-cubic", "fp16", "int8-g64", "int4-g32-min"] {
        let level = if spec == "int4-g64-cubic" { Level::Quick } else { Level::Usual };
        for size in [[21, 128, 136], [77, 192, 72]] {
            all.push(problem(size, spec, Then::Geglu, (Set::Edges, level)));
        }
        all.push(problem([256, 2560, 320], spec, Then::Geglu, (Set::Sd15, Level::Full)));
    }
}

/// Sizes of layers: rows of x, rows of w, their length.
fn models(all: &mut Vec<Problem>) {
    let layers: [(Set, &[[usize; 3]]); 4] = [
        // SmolLM2-135M, Llama-3.2-1B and Llama-2-7B.
        (
            Set::Llama,
            &[
                [1, 576, 576],
                [1, 1536, 576],
                [1, 2048, 8192],
                [1, 4096, 4096],
                [37, 576, 1536],
                [128, 2048, 2048],
            ],
        ),
        // Qwen2.5-0.5B: 896 and 4864 are not powers of two.
        (
            Set::Qwen,
            &[[1, 896, 896], [1, 4864, 896], [1, 896, 4864], [19, 1152, 896], [128, 896, 4864]],
        ),
        (
            Set::Sd15,
            &[
                [77, 320, 768],
                [256, 1280, 1280],
                [1024, 640, 640],
                [4096, 320, 320],
                [1, 1280, 320],
            ],
        ),
        (
            Set::Sdxl,
            &[
                [77, 640, 2048],
                [256, 1280, 1280],
                [1024, 1280, 1280],
                [4096, 640, 640],
                [1, 1280, 2816],
            ],
        ),
    ];
    for (set, sizes) in layers {
        for size in sizes {
            let flops = 2 * size.iter().product::<usize>();
            for spec in &FORMATS[..3] {
                let level = if flops < 1 << 27 { Level::Usual } else { Level::Full };
                let problem = problem(*size, spec, Then::Bias, (set, level));
                all.push(if flops > 1 << 28 { problem.heavy() } else { problem });
            }
        }
    }
    // A weight beyond the 128 MiB that every adapter binds at once: Qwen's head, and Llama-2-7B's feed-forward in f32.
    all.push(problem([1, 151_936, 896], "fp16", Then::Nothing, (Set::Qwen, Level::Full)).heavy());
    all.push(problem([1, 11_008, 4096], "fp32", Then::Nothing, (Set::Llama, Level::Full)).heavy());
    all.push(
        problem([1, 11_008, 4096], FORMATS[0], Then::Nothing, (Set::Llama, Level::Full)).heavy(),
    );
    // Outputs beyond a binding: rows go in windows.
    let many = problem([140_000, 256, 8], "fp32", Then::Geglu, (Set::Edges, Level::Full));
    all.push(many.heavy().f32_only());
}

/// Rows of x that are looked at where all would be a test of the oracle's patience: the first, the last, and some between.
fn looked_at(m: usize, n: usize, k: usize) -> Vec<usize> {
    const MOST: usize = 1 << 26;
    let rows = (MOST / (n * k).max(1)).clamp(1, m);
    if rows == m {
        return (0..m).collect();
    }
    let mut chosen: Vec<usize> = (0..rows).map(|i| i * (m - 1) / (rows - 1).max(1)).collect();
    chosen.dedup();
    chosen
}

fn problem(size: [usize; 3], spec: &'static str, then: Then, level: (Set, Level)) -> Problem {
    let [m, n, k] = size;
    let name = format!("{spec}{}", then.name());
    Problem::new("matmul", name, format!("{m}x{n}x{k}"), level, move |site| {
        let packed = weight(1, Layout::linear(n, k), spec)?;
        prepare(site, &packed, site.upload(&packed)?, m, then)
    })
}

/// Few rows of x in eight bits, which loses nothing of these: whole numbers up to 127, which each thirty-two channels have, times a
/// power of two. So every kind of kernels has to give the same.
fn in_eight_bits([m, n, k]: [usize; 3], spec: &'static str, level: (Set, Level)) -> Problem {
    let name = format!("{spec}, x in eight bits");
    Problem::new("matmul", name, format!("{m}x{n}x{k}"), level, move |site| {
        let packed = weight(1, Layout::linear(n, k), spec)?;
        let uploaded = site.upload(&packed)?;
        let noise = normal(3, m * k);
        let code = |(i, v): (usize, &f32)| match i % k % 32 {
            0 => 127.0,
            _ => (40.0 * v).round().clamp(-127.0, 127.0),
        };
        let x: Vec<f32> = noise.iter().enumerate().map(code).map(|q| q / 32.0).collect();
        let want = site.want(|| oracle(&x, &packed.decode(), None, None, Act::None, k));
        Ok(Prepared::new(want, move |g| {
            linear_rounded(g.literal([m, k], x.clone()), &uploaded, None)
        }))
    })
}

/// Windows of seven rows, which begin in the middle of a word of scales.
fn windowed(spec: &'static str) -> Problem {
    let [m, n, k] = [5, 50, 136];
    let level = (Set::Edges, Level::Quick);
    Problem::new("matmul", spec, format!("{m}x{n}x{k} in windows of 7 rows"), level, move |site| {
        let packed = weight(1, Layout::linear(n, k), spec)?;
        let window = packed.row_words() as u64 * 4 * 7;
        let weight = Weight::upload_windowed(site.gpu, "op test", &packed, window)?;
        prepare(site, &packed, weight, m, Then::Bias)
    })
}

fn prepare(
    site: &Site<'_>,
    packed: &Packed,
    weight: Weight,
    m: usize,
    then: Then,
) -> Result<Prepared> {
    let (n, k) = (packed.layout.rows, packed.layout.channels);
    let bias = normal(2, n);
    let vector = site.vector(&bias)?;
    let (x, residual) =
        (site.data(3, m * k), site.data(4, if then == Then::Everything { m * n } else { 0 }));
    let rows = looked_at(m, n, k);
    let biased = !matches!(then, Then::Nothing);
    let act = match then {
        Then::Silu => Act::Silu,
        Then::Everything => Act::QuickGelu,
        _ => Act::None,
    };
    let want = site.want(|| {
        let pick = |of: &[f32], width: usize| -> Vec<f32> {
            rows.iter().flat_map(|row| of[row * width..][..width].iter().copied()).collect()
        };
        let added = (then == Then::Everything).then(|| pick(&residual, n));
        let bias = biased.then_some(&bias[..]);
        let y = oracle(&pick(&x, k), &packed.decode(), bias, added.as_deref(), act, k);
        match then {
            Then::Geglu => y.chunks_exact(n).flat_map(gate).collect(),
            _ => y,
        }
    });
    let width = if then == Then::Geglu { n / 2 } else { n };
    let at: Vec<usize> = rows.iter().flat_map(|row| row * width..(row + 1) * width).collect();
    let prepared = Prepared::new(want, move |g| {
        let y = linear(g.literal([m, k], x.clone()), &weight, biased.then_some(&vector));
        match then {
            Then::Everything => g.literal([m, n], residual.clone()) + activate(y, act),
            Then::Geglu => geglu(y),
            Then::Silu => activate(y, act),
            Then::Nothing | Then::Bias => y,
        }
    });
    Ok(if rows.len() < m { prepared.at(at) } else { prepared })
}

/// The first half of a row times GELU of the second.
fn gate(row: &[f64]) -> Vec<f64> {
    let (value, gate) = row.split_at(row.len() / 2);
    value.iter().zip(gate).map(|(v, g)| v * Act::Gelu.oracle(*g)).collect()
}
