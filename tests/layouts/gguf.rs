//! GGUF files of image models: stable-diffusion.cpp's, with names of ldm and no metadata, and
//! ComfyUI-GGUF's, whose tensors may be flattened for the sake of their blocks.

use half::f16;
use inknib::quant::{Format, QuantSpec};
use inknib::weights::{
    GgmlType, Gguf, ImageFamily, ImageModel, Part, WeightStore, decode_ggml, is_image_gguf,
};

use crate::writer::{File, Meta, Stored};
use crate::{names, renamed};

const Q4_0: u32 = 2;
const Q8_0: u32 = 8;
const Q4_K: u32 = 12;
const F16: u32 = 1;

/// Small numbers that any generator will do for.
fn bytes(seed: u64, n: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..n).map(next).collect()
}

/// Blocks of random codes with scales of about 1/64.
fn blocks(ty: u32, weights: usize, seed: u64) -> Vec<u8> {
    let (block, size, scales) = match ty {
        Q4_0 => (32, 18, 1),
        Q8_0 => (32, 34, 1),
        Q4_K => (256, 144, 2),
        _ => (1, 2, 1),
    };
    assert_eq!(weights % block, 0);
    let mut out = bytes(seed, weights / block * size);
    for block in out.chunks_mut(size) {
        for scale in block.chunks_mut(2).take(scales) {
            let noise = f32::from(scale[0]) / 256.0;
            let value = if ty == F16 { noise - 0.5 } else { (1.0 + noise) / 64.0 };
            scale.copy_from_slice(&f16::from_f32(value).to_le_bytes());
        }
    }
    out
}

/// UNets that the tests below make files of, with what they are told for: tools/golden_layouts.py.
const UNETS: [(&str, ImageFamily); 4] = [
    ("small_unet", ImageFamily::Sd1),
    ("small_sd21", ImageFamily::Sd2),
    ("small_sdxl", ImageFamily::Sdxl),
    ("small_lcm", ImageFamily::Sd1),
];

/// A small UNet's names with four times its channels, so that rows are whole blocks.
fn wide(lines: &str) -> Vec<(String, Vec<usize>, String)> {
    let widen = |n: &usize| if *n >= 16 { n * 4 } else { *n };
    let line = |(name, shape, to): (String, Vec<usize>, Vec<String>)| {
        (name, shape.iter().map(widen).collect(), to[0].clone())
    };
    names(lines).into_iter().map(line).collect()
}

fn decoded(ty: u32, bytes: &[u8], n: usize) -> Vec<f32> {
    let mut out = vec![0.0; n];
    decode_ggml(GgmlType::from_number(ty).unwrap(), bytes, &mut out);
    out
}

/// stable-diffusion.cpp quantizes matrices and leaves convolutions in F16, vectors in F32.
#[test]
fn files_of_stable_diffusion_cpp() {
    UNETS.iter().for_each(|(lines, family)| of_stable_diffusion_cpp(lines, *family));
}

fn of_stable_diffusion_cpp(lines: &str, family: ImageFamily) {
    let mut file = File::default();
    let mut truth = vec![];
    for (i, (name, shape, to)) in wide(lines).into_iter().enumerate() {
        let n: usize = shape.iter().product();
        let ty = match shape.len() {
            2 if shape[1] % 32 == 0 => {
                if i % 2 == 0 {
                    Q4_0
                } else {
                    Q8_0
                }
            }
            1 => 0,
            _ => F16,
        };
        let bytes = match ty {
            0 => blocks(F16, n, i as u64)
                .chunks(2)
                .flat_map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes())
                .collect(),
            ty => blocks(ty, n, i as u64),
        };
        truth.push((to, shape.clone(), ty, decoded(ty, &bytes, n)));
        file.tensors.push(Stored { name, shape, ty, bytes });
    }
    let file = file.bytes();
    assert!(is_image_gguf(&Gguf::from_bytes("sd", file.clone()).unwrap()).unwrap());
    let model = ImageModel::from_bytes("sd.gguf", file).unwrap();
    assert_eq!(model.kind().family, family);
    assert!(model.describe().contains("GGUF"), "{}", model.describe());
    let store = model.store(Part::Unet).unwrap();
    assert_eq!(store.names().count(), truth.len());
    let (mut packed, mut windows) = (0, 0);
    for (name, shape, ty, values) in &truth {
        assert_eq!(store.shape(name).unwrap(), shape, "{name}");
        assert_eq!(&store.values(name).unwrap(), values, "{name}");
        if shape.len() == 1 {
            continue;
        }
        let kept = store.pack(name, shape, &QuantSpec::INT4).unwrap();
        let format = match *ty {
            Q4_0 => inknib::weights::becomes(GgmlType::Q4_0).unwrap(),
            Q8_0 => Format::Q8 { group: 32 },
            _ => Format::F16,
        };
        assert_eq!(kept.format, format, "{name}");
        // All three are exact: the same codes and scales, or the same halves.
        assert_eq!(&rows_to_pytorch(&kept), values, "{name}");
        packed += usize::from(format != Format::F16);
        windows += usize::from(kept.layout.taps == 9);
    }
    let stored = truth.iter().filter(|(_, _, ty, _)| [Q4_0, Q8_0].contains(ty)).count();
    assert_eq!(packed, stored, "{lines}");
    assert!(packed > 40 && windows > 10, "{lines}: {packed} packed, {windows} convolutions");
}

fn rows_to_pytorch(packed: &inknib::quant::Packed) -> Vec<f32> {
    inknib::quant::rows_to_conv(&packed.decode(), packed.layout)
}

/// ComfyUI-GGUF makes rows of 256 where K blocks would not fit, and notes the shape.
#[test]
fn files_of_comfyui_gguf() {
    UNETS.iter().for_each(|(lines, family)| of_comfyui_gguf(lines, *family));
}

fn of_comfyui_gguf(lines: &str, family: ImageFamily) {
    let mut file = File::default();
    file.text("general.architecture", if family == ImageFamily::Sdxl { "sdxl" } else { "sd1" });
    let mut truth = vec![];
    for (i, (name, shape, to)) in wide(lines).into_iter().enumerate() {
        let name = name.strip_prefix("model.diffusion_model.").unwrap().to_string();
        let n: usize = shape.iter().product();
        let flat = shape.len() > 1 && n.is_multiple_of(256);
        let ty = if flat { Q4_K } else { F16 };
        let bytes = blocks(ty, n, i as u64);
        let stored = match flat && shape[shape.len() - 1] % 256 != 0 {
            true => {
                let sizes = shape.iter().map(|&n| n as i32).collect();
                file.put(&format!("comfy.gguf.orig_shape.{name}"), Meta::I32s(sizes));
                vec![n / 256, 256]
            }
            false => shape.clone(),
        };
        truth.push((to, shape, ty, decoded(ty, &bytes, n)));
        file.tensors.push(Stored { name, shape: stored, ty, bytes });
    }
    let model = ImageModel::from_bytes("unet.gguf", file.bytes()).unwrap();
    assert_eq!(model.parts().collect::<Vec<_>>(), [Part::Unet]);
    assert_eq!(model.kind().family, family);
    let store = model.store(Part::Unet).unwrap();
    let mut cut = 0;
    for (name, shape, ty, values) in &truth {
        assert_eq!(store.shape(name).unwrap(), shape, "{name}");
        assert_eq!(&store.values(name).unwrap(), values, "{name}");
        if *ty != Q4_K {
            continue;
        }
        let kept = store.pack(name, shape, &QuantSpec::F16).unwrap();
        let window = shape.len() == 4 && shape[2] == 3;
        // Rows of windows, and those that are no whole blocks of 32, are quantized again.
        let again = window || shape[1] % 32 != 0;
        let (got, group) = (rows_to_pytorch(&kept), if again { 8 } else { 4 });
        match (again, kept.format) {
            (true, Format::Q8 { group: 32 }) | (false, Format::Q4 { group: 32, .. }) => {}
            other => panic!("{name}: {other:?} for {group} bits"),
        }
        cut += usize::from(!window && shape[1] % 256 != 0);
        // Q4_K's own scales are products of f16 and six bits, rounded to f16 here: 72 dB. Quantized again
        // in eight bits: 48 dB of a flat distribution, some less of these.
        let error: f64 = got.iter().zip(values).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let power: f64 = values.iter().map(|b| f64::from(*b).powi(2)).sum();
        let db = 10.0 * (power / error).log10();
        assert!(db > if again { 40.0 } else { 65.0 }, "{name}: {db:.1} dB");
    }
    assert!(cut > 10, "{lines}: {cut} matrices cut into other rows");
}

#[test]
fn shapes_that_lie_are_refused() {
    for sizes in [vec![1, 1], vec![-4, 64], vec![]] {
        let mut file = File::default();
        file.put("comfy.gguf.orig_shape.input_blocks.0.0.weight", Meta::I32s(sizes));
        file.f32("input_blocks.0.0.weight", &[1, 256], &[0.5; 256]);
        let e = ImageModel::from_bytes("x.gguf", file.bytes()).unwrap_err();
        assert!(e.exit_code() == 4 && e.to_string().contains("orig_shape"), "{e}");
    }
}

/// OpenCLIP's fused matrix and transposed projection out of a GGUF file.
#[test]
fn a_text_encoder_in_gguf() {
    let mut file = File::default();
    for (name, tensor) in
        renamed("unet_sd15", "small_unet").iter().chain(&renamed("clip_g", "small_clip_2"))
    {
        file.f32(name, &tensor.shape, &tensor.to_f32());
    }
    let bytes = file.bytes();
    let model = ImageModel::from_bytes("sd.gguf", bytes.clone()).unwrap();
    let store = model.store(Part::TextEncoder2).unwrap();
    let folder = WeightStore::open(crate::golden("clip_g")).unwrap();
    for name in folder.names().filter(|name| !name.ends_with("position_ids")) {
        let published = match store.contains(name) {
            true => name.to_string(),
            false => format!("text_model.{name}"),
        };
        assert_eq!(store.shape(&published).unwrap(), folder.shape(name).unwrap(), "{name}");
        assert_eq!(store.values(&published).unwrap(), folder.values(name).unwrap(), "{name}");
    }
    // Cut anywhere it is an error or a model.
    for length in (0..bytes.len().min(60_000)).step_by(97) {
        let _ = ImageModel::from_bytes("cut", bytes[..length].to_vec()).map(|m| m.describe());
    }
}
