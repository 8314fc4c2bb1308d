//! A whole Llama in each format of other programs, through the path that every checkpoint takes. Its
//! weights are those of tests/golden/llama, quantized here; the packing itself is held against those
//! programs in tests/foreign.rs.

use std::path::{Path, PathBuf};

use half::f16;
use inknib::gpu::{Elem, Gpu, GpuOptions, Without};
use inknib::graph::Kernels;
use inknib::probe::evaluate;
use inknib::quant::{Recipe, metrics};
use inknib::tensor::{Data, Tensor};
use inknib::weights::{WeightStore, has_quantization_config, read_tensors};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// How a layer is quantized, whatever the file.
#[derive(Clone, Copy)]
struct Scheme {
    bits: u32,
    /// 0: one group a row.
    group: usize,
    symmetric: bool,
    /// Columns of a group lie apart.
    scattered: bool,
}

/// `[N, K]` codes, `[N, G]` scales and zero points.
struct Quantized {
    n: usize,
    k: usize,
    bits: u32,
    codes: Vec<u8>,
    scales: Vec<f16>,
    zeros: Vec<u8>,
    group_of: Vec<usize>,
}

impl Quantized {
    /// Least to greatest value on the codes, or the largest magnitude for symmetric ones.
    fn new(values: &[f32], n: usize, k: usize, scheme: Scheme) -> Quantized {
        let size = if scheme.group == 0 { k } else { scheme.group };
        let groups = k.div_ceil(size);
        // 7 has no common factor with the sizes of this model.
        let place = |c: usize| if scheme.scattered { c * 7 % k } else { c };
        let group_of: Vec<usize> = (0..k).map(|c| place(c) / size).collect();
        let top = (1u32 << scheme.bits) - 1;
        let (mut scales, mut zeros, mut codes) = (vec![], vec![], vec![0; n * k]);
        for row in 0..n {
            for group in 0..groups {
                let columns = || (0..k).filter(|&c| group_of[c] == group);
                let fold = |f: fn(f32, f32) -> f32| {
                    columns().fold(0.0f32, |m, c| f(m, values[row * k + c]))
                };
                let (low, high) = (fold(f32::min), fold(f32::max));
                let (scale, zero) = match scheme.symmetric {
                    true => ((high.max(-low)) / (top / 2) as f32, (top / 2 + 1) as f32),
                    false => {
                        ((high - low) / top as f32, (-low * top as f32 / (high - low)).round())
                    }
                };
                let scale = f16::from_f32(scale);
                for c in columns() {
                    let q = (values[row * k + c] / scale.to_f32()).round() + zero;
                    codes[row * k + c] = q.clamp(0.0, top as f32) as u8;
                }
                scales.push(scale);
                zeros.push(zero as u8);
            }
        }
        Quantized { n, k, bits: scheme.bits, codes, scales, zeros, group_of }
    }

    fn groups(&self) -> usize {
        self.scales.len() / self.n
    }

    fn decode(&self) -> Vec<f32> {
        let value = |i: usize| {
            let g = i / self.k * self.groups() + self.group_of[i % self.k];
            self.scales[g].to_f32() * (f32::from(self.codes[i]) - f32::from(self.zeros[g]))
        };
        (0..self.n * self.k).map(value).collect()
    }
}

/// Words of `32 / bits` neighbours along the columns of `[rows, columns]`; `at` gives the place of each
/// in its word.
fn pack(
    values: impl Fn(usize, usize) -> u8,
    [rows, columns]: [usize; 2],
    bits: u32,
    at: impl Fn(usize) -> u32,
) -> Vec<u32> {
    let per = 32 / bits as usize;
    let words = columns.div_ceil(per);
    let mut out = vec![0u32; rows * words];
    for (row, c) in (0..rows).flat_map(|row| (0..columns).map(move |c| (row, c))) {
        out[row * words + c / per] |= u32::from(values(row, c)) << (bits * at(c % per));
    }
    out
}

/// From `[rows, columns]` to `[columns, rows]`.
fn turn<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| values.iter().skip(c).step_by(columns).copied()).collect()
}

/// Part name, type, shape, bytes.
type Part = (String, Dtype, Vec<usize>, Vec<u8>);

fn part<T: bytemuck::NoUninit>(name: &str, dtype: Dtype, shape: &[usize], data: &[T]) -> Part {
    (name.to_string(), dtype, shape.to_vec(), bytemuck::cast_slice(data).to_vec())
}

fn index(q: &Quantized) -> Vec<i32> {
    q.group_of.iter().map(|&g| g as i32).collect()
}

fn gptq(q: &Quantized, plus: u8) -> Vec<Part> {
    let (per, groups) = (32 / q.bits as usize, q.groups());
    let mask = ((1u32 << q.bits) - 1) as u8;
    let words = pack(|n, k| q.codes[n * q.k + k], [q.n, q.k], q.bits, |i| i as u32);
    let zero = |g: usize, n: usize| q.zeros[n * groups + g].wrapping_sub(plus) & mask;
    let zeros = pack(zero, [groups, q.n], q.bits, |i| i as u32);
    vec![
        part("qweight", Dtype::I32, &[q.k / per, q.n], &turn(&words, q.k / per)),
        part("qzeros", Dtype::I32, &[groups, q.n / per], &zeros),
        part("scales", Dtype::F16, &[groups, q.n], &turn(&q.scales, groups)),
        part("g_idx", Dtype::I32, &[q.k], &index(q)),
    ]
}

fn awq(q: &Quantized) -> Vec<Part> {
    let place = |i: usize| [0, 4, 1, 5, 2, 6, 3, 7][i];
    let groups = q.groups();
    let words = pack(|k, n| q.codes[n * q.k + k], [q.k, q.n], 4, place);
    let zeros = pack(|g, n| q.zeros[n * groups + g], [groups, q.n], 4, place);
    vec![
        part("qweight", Dtype::I32, &[q.k, q.n / 8], &words),
        part("qzeros", Dtype::I32, &[groups, q.n / 8], &zeros),
        part("scales", Dtype::F16, &[groups, q.n], &turn(&q.scales, groups)),
    ]
}

fn compressed(q: &Quantized, zeros: bool, scattered: bool) -> Vec<Part> {
    let (per, groups) = (32 / q.bits as usize, q.groups());
    let words = pack(|n, k| q.codes[n * q.k + k], [q.n, q.k], q.bits, |i| i as u32);
    let mut parts = vec![
        part("weight_packed", Dtype::I32, &[q.n, q.k.div_ceil(per)], &words),
        part("weight_scale", Dtype::F16, &[q.n, groups], &q.scales),
        part("weight_shape", Dtype::I64, &[2], &[q.n as i64, q.k as i64]),
    ];
    if zeros {
        let packed = pack(|g, n| q.zeros[n * groups + g], [groups, q.n], q.bits, |i| i as u32);
        let packed = turn(&packed, q.n / per);
        parts.push(part("weight_zero_point", Dtype::I32, &[q.n / per, groups], &packed));
    }
    if scattered {
        parts.push(part("weight_g_idx", Dtype::I32, &[q.k], &index(q)));
    }
    parts
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama")
}

fn write(folder: &Path, parts: &[Part], quantization: Option<&Value>) {
    let views = parts.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    let config = std::fs::read_to_string(golden().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    if let Some(quantization) = quantization {
        config["quantization_config"] = quantization.clone();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// The logits of the checkpoint in a folder. "auto" is what a user has who says nothing about weights.
fn logits(gpu: &Gpu, folder: &Path, weights: &str, kernels: Kernels) -> Vec<f32> {
    let recipe = Recipe::from_argument(weights, "llm").unwrap();
    let ids = read_tensors(golden().join("golden.safetensors")).unwrap();
    let values = evaluate(folder, &ids, &recipe, kernels, Elem::F32, gpu).unwrap();
    values.into_iter().find(|(name, _)| name == "logits").unwrap().1.to_f32()
}

fn check(name: &str, scheme: Scheme, config: &Value, parts: impl Fn(&Quantized) -> Vec<Part>) {
    let without = Without::parse(&std::env::var("INKNIB_WITHOUT").unwrap_or_default()).unwrap();
    let device = std::env::var("INKNIB_TEST_DEVICE").ok();
    let gpu = match Gpu::open(&GpuOptions { device, without, ..Default::default() }) {
        Ok(gpu) => gpu,
        Err(error) => return println!("skipped: {error}"),
    };
    let (packed, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut packed_parts, mut plain_parts) = (vec![], vec![]);
    let mut layers = 0;
    for (name, tensor) in read_tensors(golden().join("model.safetensors")).unwrap() {
        let Tensor { shape, data: Data::F16(halves) } = &tensor else { unreachable!() };
        let Some(layer) = name.strip_suffix(".weight").filter(|n| n.ends_with("_proj")) else {
            let same = part(&name, Dtype::F16, shape, halves);
            packed_parts.push(same.clone());
            plain_parts.push(same);
            continue;
        };
        let quantized = Quantized::new(&tensor.to_f32(), shape[0], shape[1], scheme);
        let named = |(part, ty, shape, bytes): Part| (format!("{layer}.{part}"), ty, shape, bytes);
        packed_parts.extend(parts(&quantized).into_iter().map(named));
        plain_parts.push(part(&name, Dtype::F32, shape, &quantized.decode()));
        layers += 1;
    }
    assert_eq!(layers, 14, "two blocks of seven projections");
    write(packed.path(), &packed_parts, Some(config));
    write(plain.path(), &plain_parts, None);
    assert!(has_quantization_config(packed.path()) && !has_quantization_config(plain.path()));
    let store = WeightStore::open(packed.path()).unwrap();
    assert!(store.quantized_elsewhere().is_some(), "{name}");
    let want = logits(&gpu, plain.path(), "fp32", Kernels::Reference);
    for kernels in [Kernels::Fast, Kernels::Hardware, Kernels::Reference] {
        let got = logits(&gpu, packed.path(), "auto", kernels);
        let error = metrics::nmse(&got, &want).sqrt();
        println!("{name} {kernels:?}: {error:.2e}");
        // The weights are the same numbers; their products are summed in another order. The limit is
        // that of nets in f32 against transformers.
        assert!(error < 2e-5, "{name} {kernels:?}: {error:.2e}");
    }
    // That the weights count at all: int4 must be seen against the original ones.
    let original = logits(&gpu, &golden(), "fp32", Kernels::Reference);
    let loss = metrics::nmse(&want, &original).sqrt();
    let range = if scheme.bits == 4 { 0.01..0.5 } else { 0.0005..0.05 };
    assert!(range.contains(&loss), "{name}: quantization error {loss:.2e}");
}

const PLAIN: Scheme = Scheme { bits: 4, group: 32, symmetric: false, scattered: false };

#[test]
fn gptq_with_act_order() {
    let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true});
    let scheme = Scheme { scattered: true, ..PLAIN };
    check("gptq v1 desc_act", scheme, &config, |q| gptq(q, 1));
}

#[test]
fn gptq_v2_in_eight_bits() {
    let config = json!({"quant_method": "gptq", "bits": 8, "group_size": 16, "sym": true,
                        "checkpoint_format": "gptq_v2"});
    let scheme = Scheme { bits: 8, group: 16, symmetric: true, scattered: false };
    check("gptq v2 int8", scheme, &config, |q| gptq(q, 0));
}

#[test]
fn awq_gemm() {
    let config = json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"});
    check("awq", PLAIN, &config, awq);
}

fn compressed_config(group: Option<usize>, symmetric: bool) -> Value {
    let weights =
        json!({"num_bits": 4, "type": "int", "group_size": group, "symmetric": symmetric});
    json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
           "config_groups": {"group_0": {"weights": weights}}, "ignore": ["lm_head"]})
}

#[test]
fn compressed_tensors_in_groups() {
    check("ct g32", PLAIN, &compressed_config(Some(32), false), |q| compressed(q, true, false));
    let scheme = Scheme { symmetric: true, ..PLAIN };
    check("ct g32 sym", scheme, &compressed_config(Some(32), true), |q| {
        compressed(q, false, false)
    });
    let scheme = Scheme { scattered: true, ..PLAIN };
    check("ct actorder", scheme, &compressed_config(Some(32), false), |q| {
        compressed(q, true, true)
    });
}

#[test]
fn compressed_tensors_in_channels() {
    let scheme = Scheme { group: 0, ..PLAIN };
    check("ct channel", scheme, &compressed_config(None, false), |q| compressed(q, true, false));
}
