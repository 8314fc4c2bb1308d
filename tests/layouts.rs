//! Image models in every layout that people have them in.

#[path = "common/device.rs"]
mod device;
#[path = "layouts/families.rs"]
mod families;
#[path = "layouts/folders.rs"]
mod folders;
#[path = "layouts/gguf.rs"]
mod gguf;
#[path = "layouts/single.rs"]
mod single;
#[path = "gguf/writer.rs"]
#[allow(dead_code)]
mod writer;

use std::path::PathBuf;

use inknib::quant::QuantSpec;
use inknib::tensor::Tensor;
use inknib::weights::{WeightStore, read_tensors};
use serde_json::Value;

/// A tensor of a file: name, shape, diffusers' names.
pub type Line = (String, Vec<usize>, Vec<String>);

/// A folder of tests/golden.
pub fn golden(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

/// What diffusers' converters make of a file's names (tools/golden_layouts.py).
pub fn names(case: &str) -> Vec<Line> {
    let text = std::fs::read_to_string(golden(&format!("layouts/{case}.json"))).unwrap();
    let lines: Vec<Vec<Value>> = serde_json::from_str(&text).unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_string();
    let line = |line: Vec<Value>| {
        let shape = serde_json::from_value(line[1].clone()).unwrap();
        (text(&line[0]), shape, line[2..].iter().map(text).collect())
    };
    lines.into_iter().map(line).collect()
}

/// The tensors of a golden net under the names of a single file.
pub fn renamed(case: &str, lines: &str) -> Vec<(String, Tensor)> {
    let tensors = read_tensors(golden(case)).unwrap();
    let find = |name: &String| {
        let bare = name.strip_prefix("text_model.").unwrap_or(name);
        let found = tensors.iter().find(|(n, _)| n == name || n == bare);
        found.map(|(_, t)| t.clone()).unwrap_or_else(|| panic!("{case} has no {name}"))
    };
    let made = names(lines).into_iter().map(|(name, shape, from)| {
        let mut parts: Vec<Tensor> = from.iter().map(find).collect();
        let values: Vec<f32> = parts.iter().flat_map(|t| t.to_f32()).collect();
        let values = match from[0].as_str() {
            "text_projection.weight" => {
                let (n, k) = (shape[1], shape[0]);
                (0..n * k).map(|i| values[i % n * k + i / n]).collect()
            }
            _ => values,
        };
        let mut tensor = parts.remove(0);
        // All of these are F16 on disk; the numbers are the same in either type.
        tensor.data = inknib::tensor::Data::F32(values);
        tensor.shape = shape;
        (name, tensor)
    });
    made.collect()
}

/// The bytes of a safetensors file.
pub fn safetensors(tensors: &[(String, Tensor)]) -> Vec<u8> {
    let bytes: Vec<(&str, &[usize], Vec<u8>)> = tensors
        .iter()
        .map(|(name, t)| {
            let half = t.to_f32().into_iter().flat_map(|v| half::f16::from_f32(v).to_le_bytes());
            (name.as_str(), t.shape.as_slice(), half.collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(
            inknib::weights::Dtype::F16,
            shape.to_vec(),
            bytes,
        );
        (*name, view.unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// Every tensor of the folder is in the single file's part: same name, shape, numbers and packed words.
pub fn same_tensors(single: &WeightStore, case: &str) {
    same_tensors_but(single, case, "nothing");
}

/// The same for a file without the tensor `gone`.
pub fn same_tensors_but(single: &WeightStore, case: &str, gone: &str) {
    let folder = WeightStore::open(golden(case)).unwrap();
    let mut count = 0;
    // A numbering that old files carry and no net asks for.
    let expected = |name: &&str| !name.ends_with("position_ids") && *name != gone;
    for name in folder.names().filter(expected) {
        let published = match single.contains(name) {
            true => name.to_string(),
            false => format!("text_model.{name}"),
        };
        assert_eq!(single.shape(&published).unwrap(), folder.shape(name).unwrap(), "{name}");
        assert_eq!(single.values(&published).unwrap(), folder.values(name).unwrap(), "{name}");
        let shape = folder.shape(name).unwrap().to_vec();
        if matches!(shape.len(), 2 | 4) {
            let spec = QuantSpec::INT4;
            let packed = [(single, published.as_str()), (&folder, name)]
                .map(|(store, name)| store.pack(name, &shape, &spec).unwrap());
            assert_eq!(packed[0], packed[1], "{name}");
        }
        count += 1;
    }
    assert_eq!(single.names().count(), count, "{case}");
}
