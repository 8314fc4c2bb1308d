//! Checkpoints that other programs quantized: bit-equal to what those programs decode
//! (tests/golden/int4, made by tools/golden_int4.py), a whole model in each format, refusals, damage.

use std::path::{Path, PathBuf};

use inknib::quant::{Format, Offset, QuantSpec, Recipe};
use inknib::weights::{WeightStore, quantize, read_tensors};
use serde_json::{Value, json};

const LAYER: &str = "model.layers.0.mlp.down_proj";
const WEIGHT: &str = "model.layers.0.mlp.down_proj.weight";

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/int4").join(case)
}

const fn q4(group: u32, offset: Offset) -> Format {
    Format::Q4 { group, cubic: 0.0, offset }
}

/// Every folder, what its layer becomes, whether its columns are reordered, and how messages name it.
const CASES: [(&str, Format, bool, &str); 17] = [
    ("gptq_v1_g128_sym", q4(128, Offset::None), false, "GPTQ v1, 4 bits"),
    ("gptq_v1_g32_asym", q4(32, Offset::Zero), false, "GPTQ v1, 4 bits"),
    ("gptq_v2_g32_asym", q4(32, Offset::Zero), false, "GPTQ v2, 4 bits"),
    ("gptq_v1_g64_desc_act", q4(64, Offset::Zero), true, "GPTQ v1, 4 bits"),
    ("gptq_v2_g32_desc_act_sym", q4(32, Offset::None), true, "GPTQ v2, 4 bits"),
    ("gptq_v1_row_asym", q4(256, Offset::Zero), false, "GPTQ v1, 4 bits"),
    ("gptq_v1_int8_g32_sym", Format::Q8 { group: 32 }, false, "GPTQ v1, 8 bits"),
    ("gptq_v1_int8_g64_asym", Format::F16, false, "GPTQ v1, 8 bits"),
    ("awq_g128_asym", q4(128, Offset::Zero), false, "AWQ (GEMM), 4 bits"),
    ("awq_g32_sym", q4(32, Offset::None), false, "AWQ (GEMM), 4 bits"),
    ("awq_row_asym", q4(256, Offset::Zero), false, "AWQ (GEMM), 4 bits"),
    ("ct_g128_sym", q4(128, Offset::None), false, "compressed-tensors, pack-quantized"),
    ("ct_g32_asym_bf16", q4(32, Offset::Zero), false, "compressed-tensors, pack-quantized"),
    ("ct_channel_sym", q4(256, Offset::None), false, "compressed-tensors, pack-quantized"),
    ("ct_channel_asym", q4(256, Offset::Zero), false, "compressed-tensors, pack-quantized"),
    ("ct_g64_act_order", q4(64, Offset::Zero), true, "compressed-tensors, pack-quantized"),
    ("ct_int8_channel_sym", Format::Q8 { group: 256 }, false, "compressed-tensors, pack-quantized"),
];

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn decoded_weights_are_those_of_the_programs_that_made_them() {
    let mut folders: Vec<String> = std::fs::read_dir(golden(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    let mut named: Vec<&str> = CASES.iter().map(|case| case.0).collect();
    named.sort();
    assert_eq!(folders, named, "a case is missing here or there");
    for (case, format, reordered, describe) in CASES {
        let store = WeightStore::open(golden(case)).unwrap();
        let want = read_tensors(golden(case).join("decoded.safetensors")).unwrap().remove(0).1;
        let (shape, want) = (want.shape.clone(), want.to_f32());
        assert_eq!(store.quantized_elsewhere().as_deref(), Some(describe), "{case}");
        let packed = store.pack(WEIGHT, &shape, &QuantSpec::INT4).unwrap();
        assert_eq!((packed.format, packed.columns.is_some()), (format, reordered), "{case}");
        let got = packed.decode();
        if format == Format::F16 {
            // 8-bit codes with zero points have no packed form: rounded once, by 2⁻¹¹ at most.
            assert!(
                got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= b.abs() / 2048.0),
                "{case}"
            );
        } else {
            assert_eq!(bits(&got), bits(&want), "{case}");
            assert_eq!(bits(&store.values(WEIGHT).unwrap()), bits(&want), "{case}");
        }
        // On request it is quantized again, here without loss of its values.
        let again = store.pack_as(WEIGHT, &shape, &QuantSpec::F32, false).unwrap();
        assert_eq!(bits(&again.decode()), bits(&got), "{case}");
        // GPT-2's matrices are transposed in plain checkpoints. GPTQ and AWQ have them like any other;
        // compressed-tensors does not say.
        let same = store.pack_transposed(WEIGHT, [shape[1], shape[0]], &QuantSpec::INT4, true);
        match describe.starts_with("compressed-tensors") {
            false => assert_eq!(same.unwrap(), packed, "{case}"),
            true => assert!(same.unwrap_err().to_string().contains("Conv1D"), "{case}"),
        }
        // Rows alone, as fused projections are cut.
        let (rows, k) = (packed.slice_rows(3..11), shape[1]);
        assert_eq!(rows.decode(), got[3 * k..11 * k], "{case}");
    }
}

#[test]
fn checkpoints_look_plain() {
    for (case, ..) in CASES {
        let store = WeightStore::open(golden(case)).unwrap();
        let names: Vec<&str> = store.names().collect();
        assert_eq!(names, ["lm_head.weight", &format!("{LAYER}.bias"), WEIGHT], "{case}");
        let shape = store.shape(WEIGHT).unwrap().to_vec();
        assert!(store.contains(WEIGHT) && !store.contains(&format!("{LAYER}.qweight")));
        assert_eq!(store.vector(&format!("{LAYER}.bias"), shape[0]).unwrap().len(), shape[0]);
        // Left alone by its program, so left alone here, whatever the recipe says. F16 has all digits
        // of a BF16 weight of ordinary size.
        let plain = store.pack("lm_head.weight", &[8, 16], &QuantSpec::INT4).unwrap();
        assert_eq!(plain.format, Format::F16, "{case}");
        assert_eq!(plain.decode(), store.get("lm_head.weight").unwrap().to_f32().unwrap());
        let e =
            store.pack(WEIGHT, &[shape[1], shape[0]], &QuantSpec::INT4).unwrap_err().to_string();
        assert!(e.contains(WEIGHT) && e.contains(&format!("{shape:?}")), "{e}");
        assert!(e.contains(&format!("[{}, {}]", shape[1], shape[0])), "{e}");
        assert!(store.get(WEIGHT).unwrap_err().to_string().contains("is packed"));
        let recipe = Recipe::builtin("int4", "llm").unwrap();
        let e = quantize(&store, &recipe, "nowhere", |_, _, _| Ok(())).unwrap_err().to_string();
        assert!(e.contains("quantized already") && e.contains("bits") | e.contains("pack"), "{e}");
    }
}

/// The bytes of a case and its configuration.
fn read(case: &str) -> (Vec<u8>, Value) {
    let bytes = std::fs::read(golden(case).join("model.safetensors")).unwrap();
    let config = std::fs::read_to_string(golden(case).join("config.json")).unwrap();
    (bytes, serde_json::from_str(&config).unwrap())
}

/// Everything a store can be asked for; only panics and errors matter.
fn exercise(bytes: &[u8], config: &Value) -> inknib::Result<()> {
    let store = WeightStore::from_bytes_with_config("damaged", bytes.to_vec(), config)?;
    let names: Vec<String> = store.names().map(String::from).collect();
    let mut result = Ok(());
    for name in names {
        let shape = store.shape(&name)?.to_vec();
        if shape.len() == 2 {
            let packed = store.pack(&name, &shape, &QuantSpec::INT4);
            result = result.and(packed.map(|packed| drop(packed.decode())));
        } else {
            result = result.and(store.values(&name).map(drop));
        }
    }
    result
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    for case in ["gptq_v1_g64_desc_act", "awq_row_asym", "ct_g32_asym_bf16", "ct_g64_act_order"] {
        let (good, config) = read(case);
        exercise(&good, &config).unwrap();
        for length in 0..good.len() {
            assert!(exercise(&good[..length], &config).is_err(), "{case} cut to {length} bytes");
        }
        let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        for at in 0..good.len() {
            let values = [0x00, b'0', b'9', b'"', 0xff, good[at] ^ 1, good[at] ^ 0x80];
            // In the data one byte is as good as another.
            let values = if at < header { &values[..] } else { &values[4..5] };
            for &value in values {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = exercise(&bad, &config);
            }
        }
        let text = config.to_string().into_bytes();
        for at in 0..text.len() {
            for value in [b'0', b'9', b'"', b'-', b'a', b'{', text[at] ^ 1] {
                let mut bad = text.clone();
                bad[at] = value;
                if let Ok(config) = serde_json::from_slice(&bad) {
                    let _ = exercise(&good, &config);
                }
            }
        }
    }
}

/// The message for a case whose configuration was changed.
fn message(case: &str, change: impl Fn(&mut Value)) -> String {
    let (bytes, mut config) = read(case);
    change(&mut config["quantization_config"]);
    exercise(&bytes, &config).unwrap_err().to_string()
}

#[test]
fn what_is_not_read_is_refused_by_name_with_advice() {
    for method in ["bitsandbytes", "fp8", "hqq", "quanto", "torchao", "aqlm", "mxfp4", "auto-round"]
    {
        let e = message("awq_g32_sym", |c| c["quant_method"] = json!(method));
        assert!(e.contains(&format!("`{method}`")) && e.contains("FP16 or BF16"), "{e}");
        assert!(e.contains("config.json") && e.contains("compressed-tensors"), "{e}");
    }
    let gptq = |key: &str, value: Value| message("gptq_v1_g32_asym", |c| c[key] = value.clone());
    assert!(gptq("bits", json!(3)).contains("GPTQ at 3 bits"));
    assert!(gptq("checkpoint_format", json!("marlin")).contains("`marlin`"));
    assert!(gptq("is_marlin_format", json!(true)).contains("`marlin`"));
    assert!(gptq("bits", json!("four")).contains("`bits` is \"four\", expected a whole number"));
    assert!(gptq("group_size", json!(0)).contains("expected −1 or a positive number"));
    let awq = |key: &str, value: Value| message("awq_g128_asym", |c| c[key] = value.clone());
    assert!(awq("version", json!("gemv")).contains("`gemv`"));
    assert!(awq("bits", json!(8)).contains("AWQ at 8 bits"));
    let ct = |change: &dyn Fn(&mut Value)| message("ct_g128_sym", change);
    for format in ["float-quantized", "nvfp4-pack-quantized", "int-quantized", "marlin-24"] {
        assert!(ct(&|c| c["format"] = json!(format)).contains(&format!("`{format}`")));
        let group = |c: &mut Value| {
            c["format"] = json!("mixed-precision");
            c["config_groups"]["group_0"]["format"] = json!(format);
        };
        assert!(ct(&group).contains(&format!("`{format}`")));
    }
    let weights = |key: &str, value: Value| {
        ct(&|c| c["config_groups"]["group_0"]["weights"][key] = value.clone())
    };
    assert!(weights("num_bits", json!(3)).contains("type int3"));
    assert!(weights("type", json!("float")).contains("type float4"));
    assert!(
        ct(&|c| c["transform_config"] = json!({"config_groups": {"R1": {}}})).contains("rotations")
    );
}

#[test]
fn what_does_not_fit_together_says_so() {
    let e = message("gptq_v1_g32_asym", |c| c["group_size"] = json!(64));
    assert!(e.contains(WEIGHT) && e.contains("8 scales a row do not cover 256 columns"), "{e}");
    let e = message("awq_g128_asym", |c| c["group_size"] = json!(64));
    assert!(e.contains("has shape [2, 24]") && e.contains("needs [4, 24]"), "{e}");
    // Another program's order: as many words, but packed along the other axis.
    let e = message("awq_g128_asym", |c| c["quant_method"] = json!("gptq"));
    assert!(e.contains("qzeros` has shape") || e.contains("scales` has shape"), "{e}");
    let e = message("ct_g128_sym", |c| c["quant_method"] = json!("gptq"));
    assert!(e.contains("weight_packed` of damaged does not belong"), "{e}");

    let (bytes, _) = read("gptq_v1_g32_asym");
    let e = WeightStore::from_bytes("model.safetensors", bytes).unwrap_err().to_string();
    assert!(e.contains("config.json") && e.contains(&format!("{LAYER}.qweight")), "{e}");
    // Parts that are not there, and codes of another width.
    let renamed = |from: &str, to: &str| {
        let (mut bytes, config) = read("gptq_v1_g32_asym");
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        exercise(&bytes, &config).unwrap_err().to_string()
    };
    let e = renamed("down_proj.scales", "down_proj.scalex");
    assert!(e.contains("`model.layers.0.mlp.down_proj.scales` is missing"), "{e}");
    let e = renamed("\"dtype\":\"I32\"", "\"dtype\":\"F32\"");
    assert!(e.contains("is stored as F32"), "{e}");
}

#[test]
fn configurations_of_older_programs() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, config) = read("gptq_v1_g32_asym");
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    std::fs::write(folder.path().join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
    let mut old = config["quantization_config"].clone();
    old.as_object_mut().unwrap().remove("quant_method");
    // AutoGPTQ before transformers knew of it, and the file itself instead of its folder.
    std::fs::write(folder.path().join("quantize_config.json"), old.to_string()).unwrap();
    for path in [folder.path().to_path_buf(), folder.path().join("model.safetensors")] {
        let store = WeightStore::open(path).unwrap();
        assert_eq!(store.quantized_elsewhere().as_deref(), Some("GPTQ v1, 4 bits"));
    }
    // AutoAWQ's own words.
    let folder = tempfile::tempdir().unwrap();
    let (bytes, _) = read("awq_g128_asym");
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let old = json!({"zero_point": true, "q_group_size": 128, "w_bit": 4, "version": "GEMM"});
    std::fs::write(folder.path().join("quant_config.json"), old.to_string()).unwrap();
    let store = WeightStore::open(folder.path()).unwrap();
    let want = read_tensors(golden("awq_g128_asym").join("decoded.safetensors")).unwrap();
    assert_eq!(bits(&store.values(WEIGHT).unwrap()), bits(&want[0].1.to_f32()));
    // A file of that name beside plain weights means nothing.
    let folder = tempfile::tempdir().unwrap();
    let plain = golden("awq_g128_asym").join("decoded.safetensors");
    std::fs::copy(plain, folder.path().join("model.safetensors")).unwrap();
    std::fs::write(folder.path().join("quantize_config.json"), "{\"bits\": 3}").unwrap();
    assert!(WeightStore::open(folder.path()).unwrap().quantized_elsewhere().is_none());
}
