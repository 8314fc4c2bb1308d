//! What the op tests share: one device, a way to evaluate a recorded expression, random data, error norms.

pub use crate::device::gpu;
use crate::device::gpu_without_subgroups;
use inknib::gpu::{Elem, Gpu};
use inknib::graph::{Graph, Kernels, Plan, PlanOptions, Var};
use inknib::quant::{Layout, Offset, Packed};

/// Activation types that the device can store.
pub fn acts(gpu: &Gpu) -> Vec<Elem> {
    if gpu.caps().f16 { vec![Elem::F32, Elem::F16] } else { vec![Elem::F32] }
}

pub const BOTH: [Kernels; 2] = [Kernels::Reference, Kernels::Fast];

/// Every form of a kernel that this adapter can run: the device with all kernels and types of activations, and
/// the fast ones in f32 again as an adapter without subgroups gets them.
pub fn every_form() -> Vec<(&'static Gpu, &'static [Kernels], Vec<Elem>)> {
    const ALL: [Kernels; 3] = [Kernels::Reference, Kernels::Fast, Kernels::Hardware];
    let Some(gpu) = gpu() else { return Vec::new() };
    let mut forms = vec![(gpu, &ALL[..], acts(gpu))];
    if gpu.caps().subgroups {
        forms.extend(gpu_without_subgroups().map(|gpu| (gpu, &ALL[1..2], vec![Elem::F32])));
    }
    forms
}

/// Records an expression, runs it twice over poisoned memory, checks that both runs agree bit for bit, and
/// returns its value.
pub fn eval(
    gpu: &Gpu,
    kernels: Kernels,
    act: Elem,
    build: impl for<'g> Fn(&'g Graph) -> Var<'g>,
) -> Vec<f32> {
    let graph = Graph::new(act);
    let y = build(&graph);
    graph.output("y", y);
    let plan = Plan::new(gpu, &graph, &PlanOptions { kernels, poison: true, ..Default::default() })
        .unwrap();
    plan.run().unwrap();
    let first = plan.read("y").unwrap();
    plan.run().unwrap();
    let second = plan.read("y").unwrap();
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&first), bits(&second), "two runs on one device differ");
    first
}

/// A cache `[1, context, width]` that held `old`, after one run of a plan that writes into it in one launch.
pub fn cache_after(
    gpu: &Gpu,
    kernels: Kernels,
    act: Elem,
    (shape, old): ([usize; 3], &[f32]),
    build: impl for<'g> Fn(&'g Graph, Var<'g>) -> Var<'g>,
) -> Vec<f32> {
    let bytes = match act {
        Elem::F16 => {
            let half: Vec<half::f16> = old.iter().map(|v| half::f16::from_f32(*v)).collect();
            bytemuck::cast_slice(&half).to_vec()
        }
        _ => bytemuck::cast_slice(old).to_vec(),
    };
    let buffer = gpu.upload("cache", &bytes).unwrap();
    let graph = Graph::new(act);
    let y = build(&graph, graph.external(&buffer, shape, act));
    graph.output("y", y);
    let plan = Plan::new(gpu, &graph, &PlanOptions { kernels, ..Default::default() }).unwrap();
    assert_eq!(plan.launches().len(), 1, "the write is a launch of its own");
    plan.run().unwrap();
    plan.read("y").unwrap()
}

/// Standard normal numbers from a seed (Box-Muller over splitmix64).
pub fn randn(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..n)
        .map(|_| {
            ((-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos())
                as f32
        })
        .collect()
}

/// What the device will hold: rounded to f16 where activations are f16.
pub fn stored(act: Elem, values: &[f32]) -> Vec<f32> {
    match act {
        Elem::F16 => values.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect(),
        _ => values.to_vec(),
    }
}

/// Normalised mean squared error: Σ(a−b)² / Σb².
pub fn nmse(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let error: f64 = got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let power: f64 = want.iter().map(|b| b * b).sum();
    assert!(error.is_finite(), "non-finite values came out");
    error / power.max(1e-30)
}

/// NMSE allowed by how a result is stored.
/// f32: sums of a few thousand products in another order, each step within 2⁻²⁴: (2⁻²⁴)²·K ≈ 1e-12, times 100
/// for drivers whose exp and sqrt are a few units off.
/// f16: one store rounds by 2⁻¹¹/√3 relative: NMSE 8e-8, times 4 for fused epilogues.
pub fn tolerance(act: Elem) -> f64 {
    match act {
        Elem::F16 => 3.2e-7,
        _ => 1e-10,
    }
}

/// Forms that no recipe makes, as files that were quantized elsewhere have them: INT4 with zero points, with
/// least values, with one group to a row, and INT8 in groups of 16. The weights have a standard deviation
/// near 1.
pub fn foreign(layout: Layout, seed: u64) -> Vec<(String, Packed)> {
    let half = |v: f32| half::f16::from_f32(v);
    let noise = randn(seed, layout.len());
    let whole = layout.channels.next_multiple_of(8) as u32;
    let form = |offset: Offset, group: u32| {
        let count = layout.rows * layout.row_groups(group);
        let codes: Vec<u8> = noise.iter().map(|v| (v * 3.0 + 8.0).clamp(0.0, 15.0) as u8).collect();
        let scales: Vec<_> = randn(seed + 1, count).iter().map(|v| half(0.3 + 0.02 * v)).collect();
        let offsets = randn(seed + 2, count).into_iter().map(|v| match offset {
            Offset::Min => half(v - 2.4),
            _ => half((8.0 + 2.0 * v).round().clamp(0.0, 16.0)),
        });
        let offsets: Vec<_> = offsets.collect();
        let packed =
            Packed::from_q4_codes_with_offsets(layout, group, offset, &codes, &scales, &offsets);
        (format!("int4 {offset:?} g{group}"), packed.unwrap())
    };
    let count = layout.rows * layout.row_groups(16);
    let codes: Vec<i8> = noise.iter().map(|v| (v * 40.0).clamp(-128.0, 127.0) as i8).collect();
    let scales: Vec<_> = randn(seed + 3, count).iter().map(|v| half(0.025 + 0.002 * v)).collect();
    let q8 = Packed::from_q8_codes(layout, 16, &codes, &scales).unwrap();
    let mut all = vec![("int8 g16".to_string(), q8)];
    all.extend(
        [(Offset::Zero, 128), (Offset::Min, 32), (Offset::Zero, whole)].map(|(o, g)| form(o, g)),
    );
    all
}
