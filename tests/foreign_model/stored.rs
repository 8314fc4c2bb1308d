//! Plain checkpoints in shards and in other float types, and what `inknib quantize` writes.

use std::path::Path;
use std::process::Command;

use half::{bf16, f16};
use inknib::graph::Kernels;
use inknib::quant::Offset;
use inknib::tensor::{Data, Tensor};
use inknib::weights::WeightStore;
use safetensors::Dtype;
use serde_json::json;

use super::families::NETS;
use super::pack::{Part, part};
use super::{golden, gpu, logits, tensors, write, write_config, write_weights};

fn as_stored((name, tensor): &(String, Tensor)) -> Part {
    let Tensor { shape, data: Data::F16(halves) } = tensor else { unreachable!() };
    part(name, Dtype::F16, shape, halves)
}

#[test]
fn shards_give_the_logits_of_one_file() {
    let Some(gpu) = gpu() else { return };
    for (case, _) in NETS.map(|(net, _)| (net.case, net.layers)) {
        let folder = tempfile::tempdir().unwrap();
        let parts: Vec<Part> = tensors(case).iter().map(as_stored).collect();
        let files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let mut map = serde_json::Map::new();
        for (file, parts) in files.iter().zip(parts.chunks(parts.len().div_ceil(2))) {
            write_weights(&folder.path().join(file), parts);
            map.extend(parts.iter().map(|(name, ..)| (name.clone(), json!(file))));
        }
        let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        write_config(folder.path(), case, None);
        assert_eq!(WeightStore::open(folder.path()).unwrap().files().count(), 2);
        let [one, two] = [golden(case).as_path(), folder.path()]
            .map(|folder| logits(gpu, case, folder, "fp32", Kernels::Fast));
        assert!(one == two, "{case}: the same weights, the same kernels, other logits");
    }
}

/// Weights that every type holds exactly give the same logits in every type.
#[test]
fn floats_of_every_type_give_the_same_logits() {
    let Some(gpu) = gpu() else { return };
    for (case, _) in NETS.map(|(net, _)| (net.case, net.layers)) {
        let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let mut stored: [Vec<Part>; 3] = Default::default();
        for (name, tensor) in tensors(case) {
            // Seven bits after the first one, and no exponent that f16 has not.
            let rounded = |v: f32| if v.abs() < 1e-4 { bf16::ZERO } else { bf16::from_f32(v) };
            let brief: Vec<bf16> = tensor.to_f32().into_iter().map(rounded).collect();
            let single: Vec<f32> = brief.iter().map(|v| v.to_f32()).collect();
            let halves: Vec<f16> = single.iter().map(|&v| f16::from_f32(v)).collect();
            stored[0].push(part(&name, Dtype::F32, &tensor.shape, &single));
            stored[1].push(part(&name, Dtype::BF16, &tensor.shape, &brief));
            stored[2].push(part(&name, Dtype::F16, &tensor.shape, &halves));
        }
        for (folder, parts) in folders.iter().zip(&stored) {
            write(folder.path(), case, parts, None);
        }
        for weights in ["fp32", "int4"] {
            let of = |folder: &Path| logits(gpu, case, folder, weights, Kernels::Fast);
            let all = [0, 1, 2].map(|i| of(folders[i].path()));
            assert!(all[0] == all[1] && all[0] == all[2], "{case} {weights}");
            assert!(all[0] != of(&golden(case)), "{case}: rounding to bf16 must show");
        }
    }
}

fn quantize(from: &Path, to: &Path, weights: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inknib"));
    let command = command.arg("quantize").arg("-m").arg(from).arg("-o").arg(to);
    let output = command.args(["--weights", weights]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What was quantized beforehand is what quantizing on load gives, to the last bit.
#[test]
fn quantized_folders_are_what_quantizing_on_load_gives() {
    let Some(gpu) = gpu() else { return };
    for (case, _) in NETS.map(|(net, _)| (net.case, net.layers)) {
        for weights in ["int4", "int8"] {
            let folder = tempfile::tempdir().unwrap();
            quantize(&golden(case), folder.path(), weights);
            let on_load = logits(gpu, case, &golden(case), weights, Kernels::Fast);
            for asked in ["auto", weights] {
                let from_file = logits(gpu, case, folder.path(), asked, Kernels::Fast);
                assert!(from_file == on_load, "{case} {weights}, asked for {asked}");
            }
        }
    }
}

/// GPT-2's groups run along the inputs, as a kernel needs them, while names, shapes and values are those
/// of the source.
#[test]
fn a_quantized_gpt2_is_packed_as_it_is_multiplied() {
    let folder = tempfile::tempdir().unwrap();
    quantize(&golden("gpt2"), folder.path(), "int4");
    let (file, source) =
        (WeightStore::open(folder.path()).unwrap(), WeightStore::open(golden("gpt2")).unwrap());
    assert!(file.names().eq(source.names()));
    let header = file.quantized().unwrap();
    assert_eq!(header.version, 3, "older readers must refuse the file");
    let name = "transformer.h.0.attn.c_attn.weight";
    let packed = &header.tensors[name];
    assert!(packed.transposed && packed.offset == Offset::None);
    assert_eq!((packed.layout.rows, packed.layout.channels), (192, 64));
    assert!(!header.tensors["transformer.wte.weight"].transposed);
    for name in source.names() {
        assert_eq!(file.shape(name).unwrap(), source.shape(name).unwrap(), "{name}");
        let (a, b) = (file.values(name).unwrap(), source.values(name).unwrap());
        // 4 bits give more than 15 dB; the values in another order would give none.
        let db = inknib::quant::metrics::sqnr_db(&a, &b);
        assert!(db > 15.0, "{name}: {db}");
    }
    let spec = "int4".parse().unwrap();
    let e = file.pack(name, &[64, 192], &spec).unwrap_err().to_string();
    assert!(e.contains("transpose") && e.contains(name), "{e}");
    // A header that does not say so fits none of the words.
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(path).unwrap();
    let (said, other) = (b"transposed", b"transposes");
    while let Some(at) = bytes.windows(said.len()).position(|w| w == said) {
        bytes[at..at + said.len()].copy_from_slice(other);
    }
    let e = WeightStore::from_bytes("changed", bytes).unwrap_err().to_string();
    assert!(e.contains("do not fit"), "{e}");
}
