//! Layers quantized and packed as GPTQ, AWQ and compressed-tensors files have them.

use half::f16;
use safetensors::Dtype;

/// How a layer is quantized, whatever the file.
#[derive(Clone, Copy)]
pub struct Scheme {
    pub bits: u32,
    /// 0: one group a row.
    pub group: usize,
    pub symmetric: bool,
    /// Columns of a group lie apart.
    pub scattered: bool,
}

/// `[N, K]` codes, `[N, G]` scales and zero points.
pub struct Quantized {
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
    pub fn new(values: &[f32], n: usize, k: usize, scheme: Scheme) -> Quantized {
        let size = if scheme.group == 0 { k } else { scheme.group };
        let groups = k.div_ceil(size);
        // 7 has no common factor with the sizes of these models.
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

    pub fn decode(&self) -> Vec<f32> {
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
pub fn turn<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| values.iter().skip(c).step_by(columns).copied()).collect()
}

/// Part name, type, shape, bytes.
pub type Part = (String, Dtype, Vec<usize>, Vec<u8>);

pub fn part<T: bytemuck::NoUninit>(name: &str, dtype: Dtype, shape: &[usize], data: &[T]) -> Part {
    (name.to_string(), dtype, shape.to_vec(), bytemuck::cast_slice(data).to_vec())
}

fn index(q: &Quantized) -> Vec<i32> {
    q.group_of.iter().map(|&g| g as i32).collect()
}

pub fn gptq(q: &Quantized, plus: u8) -> Vec<Part> {
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

pub fn awq(q: &Quantized) -> Vec<Part> {
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

pub fn compressed(q: &Quantized, zeros: bool, scattered: bool) -> Vec<Part> {
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
