//! Blocks: decoded bit for bit as gguf-py does, and repacked with the loss that the table of
//! src/weights/gguf_repack.rs names.

use inknib::quant::{Format, Offset};
use inknib::weights::{Gguf, WeightStore, becomes, decode_ggml, read_tensors};

use crate::writer::{File, Meta, Stored};
use crate::{golden, shared};

const TYPES: [&str; 11] =
    ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"];

#[test]
fn decodes_as_gguf_py_does() {
    let gguf = Gguf::open(golden("blocks.gguf")).unwrap();
    let golden = WeightStore::open(golden("blocks.safetensors")).unwrap();
    for name in TYPES {
        let tensor = &gguf.tensors()[&format!("{name}.weight")];
        assert_eq!(tensor.ty.to_string(), name);
        let mut values = vec![f32::NAN; tensor.len()];
        decode_ggml(tensor.ty, gguf.data(tensor), &mut values);
        let expected = golden.values(name).unwrap();
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(&values), bits(&expected), "{name}");
    }
}

/// The golden matrices as layers of a model, so that the store packs them.
fn model(ty: &str) -> WeightStore {
    let gguf = Gguf::open(golden("blocks.gguf")).unwrap();
    let mut file = File::default();
    file.text("general.architecture", "qwen2");
    file.put("qwen2.attention.head_count", Meta::U32(1));
    file.put("qwen2.embedding_length", Meta::U32(256));
    for (name, from) in [("blk.0.ffn_up.weight", ty), ("blk.0.ffn_gate.weight", "Q8_0")] {
        let tensor = &gguf.tensors()[&format!("{from}.weight")];
        let number = [0, 1, 30, 2, 3, 6, 7, 8, 12, 13, 14]
            .into_iter()
            .find(|&n| inknib::weights::GgmlType::from_number(n) == Some(tensor.ty));
        file.tensors.push(Stored {
            name: name.into(),
            shape: tensor.shape.clone(),
            ty: number.unwrap(),
            bytes: gguf.data(tensor).to_vec(),
        });
    }
    WeightStore::from_gguf(Gguf::from_bytes("blocks", file.bytes()).unwrap()).unwrap()
}

#[test]
fn repacks_with_the_loss_that_is_said() {
    let golden = WeightStore::open(golden("blocks.safetensors")).unwrap();
    let spec = "int4".parse().unwrap();
    for ty in TYPES {
        let store = model(ty);
        let name = "model.layers.0.mlp.up_proj.weight";
        let packed = store.pack(name, &[3, 256], &spec).unwrap();
        let exact = golden.values(ty).unwrap();
        let measured = packed.sqnr_against(&exact);
        // The least that is promised, in dB: exact where codes and scales are kept, the rounding of
        // the scales to 11 bits, and int8's steps against those of 5 bits.
        let least = match ty {
            "F16" | "Q4_0" | "Q4_1" | "Q5_0" | "Q8_0" => f64::INFINITY,
            "F32" | "BF16" | "Q4_K" | "Q6_K" => 65.0,
            _ => 38.0,
        };
        eprintln!("{ty}: {measured:.1} dB as {:?}", packed.format);
        assert!(measured >= least, "{ty}: {measured} dB");
        let stated = packed.sqnr_db.unwrap();
        // Both are the same sums, in another order.
        assert!(stated == measured || (stated - measured).abs() < 0.01, "{ty}: {stated}");
        // Asked for explicitly, the decoded values are packed as asked.
        let plain = store.pack_as(name, &[3, 256], &"fp32".parse().unwrap(), false).unwrap();
        assert_eq!((plain.format, plain.decode()), (Format::F32, exact.clone()), "{ty}");
        let again = store.pack_as(name, &[3, 256], &spec, false).unwrap();
        assert_eq!(again.format.group(), Some(64), "{ty}");
        assert_eq!(store.values(name).unwrap(), exact, "{ty}");
    }
}

#[test]
fn each_type_becomes_what_the_table_says() {
    let gguf = Gguf::open(golden("blocks.gguf")).unwrap();
    let q4 = |offset| Some(Format::Q4 { group: 32, cubic: 0.0, offset });
    let q8 = |group| Some(Format::Q8 { group });
    for (ty, format) in [
        ("F32", None),
        ("F16", None),
        ("BF16", None),
        ("Q4_0", q4(Offset::None)),
        ("Q4_1", q4(Offset::Min)),
        ("Q4_K", q4(Offset::Min)),
        ("Q5_0", q8(32)),
        ("Q5_1", q8(32)),
        ("Q5_K", q8(32)),
        ("Q8_0", q8(32)),
        ("Q6_K", q8(16)),
    ] {
        assert_eq!(becomes(gguf.tensors()[&format!("{ty}.weight")].ty), format, "{ty}");
        if let Some(format) = format {
            let name = "model.layers.0.mlp.up_proj.weight";
            let packed = model(ty).pack(name, &[3, 256], &"fp16".parse().unwrap()).unwrap();
            assert_eq!(packed.format, format, "{ty}");
        }
    }
}

#[test]
fn a_scale_that_is_no_number_is_refused() {
    let mut file = File::default();
    file.text("general.architecture", "qwen2");
    file.put("qwen2.attention.head_count", Meta::U32(1));
    file.put("qwen2.embedding_length", Meta::U32(32));
    let mut bytes = vec![0x11; 18];
    bytes[..2].copy_from_slice(&[0x00, 0x7c]); // infinity
    let name = "blk.0.ffn_up.weight".to_string();
    file.tensors.push(Stored { name, shape: vec![1, 32], ty: 2, bytes });
    let store = WeightStore::from_gguf(Gguf::from_bytes("x", file.bytes()).unwrap()).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let error = store.pack(name, &[1, 32], &"int4".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("not finite") && error.contains(name), "{error}");
}

#[test]
fn stories_come_out_under_their_own_names_and_in_their_own_order() {
    let Some(folder) = shared("data/llm/stories260K") else { return };
    let original = WeightStore::open(&folder).unwrap();
    // Signal to noise of these formats on these weights, in dB: what rounding to 4 and 8 bits costs.
    // A wrong order of rows gives about -3.
    for (file, least) in [("Q4_0", 18.0), ("Q4_1", 19.0), ("Q8_0", 40.0)] {
        let store = WeightStore::open(folder.join(format!("stories260K-{file}.gguf"))).unwrap();
        assert!(store.names().eq(original.names()), "{file}");
        for name in original.names() {
            assert_eq!(store.shape(name).unwrap(), original.shape(name).unwrap(), "{name}");
            let (a, b) = (store.values(name).unwrap(), original.values(name).unwrap());
            let db = inknib::quant::metrics::sqnr_db(&a, &b);
            assert!(db > least, "{file} {name}: {db} dB");
            let shape = original.shape(name).unwrap();
            if let [rows, columns] = *shape {
                // Packed and decoded is what the file decodes to; its F16 tensors stay as they are.
                let packed = store.pack(name, &[rows, columns], &"int4".parse().unwrap()).unwrap();
                assert_eq!(packed.decode(), a, "{file} {name}");
            }
        }
    }
    assert_eq!(read_tensors(&folder).unwrap().len(), original.names().count());
}
