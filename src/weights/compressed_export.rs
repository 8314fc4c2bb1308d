//! Writing language models for transformers and vLLM: compressed-tensors in the format "pack-quantized", as
//! [`super::compressed`] reads it. Its levels are even and symmetric, which INT4 without curvature is code for code.

use std::collections::HashMap;
use std::path::Path;

use half::f16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::quant::file::write_whole;
use crate::quant::{Format, Offset, Packed, Stored};
use crate::tensor::Data;
use crate::{Error, Result};

/// A tensor's name, type, shape and bytes.
type Piece = (String, Dtype, Vec<usize>, Vec<u8>);

/// Writes tensors, and returns the `quantization_config` that `config.json` needs beside them. INT8 weights, which this form
/// would have to treat as one scheme of all layers, become F16.
///
/// # Errors
/// `Usage` for cubic levels and groups of different sizes.
pub(super) fn write_compressed(path: &Path, tensors: &[(String, Stored)]) -> Result<Value> {
    let (mut pieces, mut group, mut ignored): (Vec<Piece>, Option<u32>, Vec<String>) =
        Default::default();
    for (name, stored) in tensors {
        let layer = name.strip_suffix(".weight").unwrap_or(name);
        match stored {
            Stored::Packed { packed, .. } if matches!(packed.format, Format::Q4 { .. }) => {
                let found = evenly(name, packed)?;
                if *group.get_or_insert(found) != found {
                    return Err(Error::Usage(format!(
                        "`{name}` has groups of {found} channels, others of {}; compressed-tensors is written with one \
                         group size, for instance --weights int4-g64-uniform",
                        group.unwrap_or_default()
                    )));
                }
                pieces.extend(packed_pieces(layer, packed));
            }
            Stored::Transposed { .. } => {
                return Err(Error::Usage(format!(
                    "`{name}` is a Conv1D (GPT-2), which compressed-tensors has no word for"
                )));
            }
            Stored::Packed { shape, packed } => {
                let halves = packed.decode().into_iter().map(f16::from_f32);
                let bytes = halves.flat_map(f16::to_le_bytes).collect();
                pieces.push((name.clone(), Dtype::F16, shape.clone(), bytes));
                ignored.push(layer.to_string());
            }
            Stored::Plain(tensor) => {
                let (dtype, bytes): (Dtype, &[u8]) = match &tensor.data {
                    Data::F32(v) => (Dtype::F32, bytemuck::cast_slice(v)),
                    Data::F16(v) => (Dtype::F16, bytemuck::cast_slice(v)),
                    Data::I64(v) => (Dtype::I64, bytemuck::cast_slice(v)),
                    Data::U32(v) => (Dtype::U32, bytemuck::cast_slice(v)),
                };
                if tensor.shape.len() == 2 {
                    ignored.push(layer.to_string());
                }
                pieces.push((name.clone(), dtype, tensor.shape.clone(), bytes.to_vec()));
            }
        }
    }
    let Some(group) = group else {
        return Err(Error::Usage(
            "nothing is in four bits; give --weights int4-g64-uniform".into(),
        ));
    };
    save(path, &pieces)?;
    // Tied output layers have no tensor of their own and are Linear all the same.
    if !tensors.iter().any(|(name, _)| name.starts_with("lm_head")) {
        ignored.push("lm_head".into());
    }
    Ok(config(group, &ignored))
}

/// The group size of a weight whose levels compressed-tensors has.
fn evenly(name: &str, packed: &Packed) -> Result<u32> {
    match packed.format {
        Format::Q4 { group, cubic, offset: Offset::None }
            if cubic == 0.0 && packed.layout.taps == 1 =>
        {
            Ok(group)
        }
        _ => Err(Error::Usage(format!(
            "`{name}` has levels that compressed-tensors has not; give --weights int4-g64-uniform"
        ))),
    }
}

/// `weight_packed` i32 `[N, ⌈K/8⌉]`, `weight_scale` f16 `[N, G]`, `weight_shape` i64 `[2]`.
fn packed_pieces(layer: &str, packed: &Packed) -> [Piece; 3] {
    let layout = packed.layout;
    let (n, k, row) = (layout.rows, layout.channels, packed.row_words());
    let used = k.div_ceil(8);
    let words: Vec<u32> =
        packed.words.chunks(row.max(1)).flat_map(|w| &w[..used]).copied().collect();
    let groups = packed.scale_count() / n.max(1);
    let scales = (0..packed.scale_count()).map(|i| f16::from_f32(packed.scale(i)));
    let shape: Vec<u8> = [n as i64, k as i64].into_iter().flat_map(i64::to_le_bytes).collect();
    [
        (
            format!("{layer}.weight_packed"),
            Dtype::I32,
            vec![n, used],
            bytemuck::cast_slice(&words).to_vec(),
        ),
        (
            format!("{layer}.weight_scale"),
            Dtype::F16,
            vec![n, groups],
            scales.flat_map(f16::to_le_bytes).collect(),
        ),
        (format!("{layer}.weight_shape"), Dtype::I64, vec![2], shape),
    ]
}

fn save(path: &Path, pieces: &[Piece]) -> Result<()> {
    let failed = |e| Error::Runtime(format!("{}: {e}", path.display()));
    let views = pieces.iter().map(|(name, dtype, shape, bytes)| {
        Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(failed)?))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    write_whole(path, |temporary| safetensors::serialize_to_file(views, Some(metadata), temporary))
}

fn config(group: u32, ignored: &[String]) -> Value {
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": true,
                    "strategy": "group",
                    "group_size": group,
                    "dynamic": false,
                },
                "input_activations": null,
                "output_activations": null,
            },
        },
        "ignore": ignored,
    })
}
