//! One compressed-tensors layer with parts of any shape and a configuration that is right or of the
//! fuzzer's making.
#![no_main]

use inknib::weights::Dtype;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|data: &[u8]| {
    let floats = [Dtype::F16, Dtype::BF16, Dtype::F32];
    let parts: [(&str, &[Dtype]); 5] = [
        ("l.weight_packed", &[Dtype::I32]),
        ("l.weight_scale", &floats),
        ("l.weight_shape", &[Dtype::I64, Dtype::I32]),
        ("l.weight_zero_point", &[Dtype::I32, Dtype::I8]),
        ("l.weight_g_idx", &[Dtype::I32]),
    ];
    let config = |bits, group| {
        let weights = json!({"num_bits": bits, "type": "int", "group_size": group});
        json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
               "config_groups": {"group_0": {"weights": weights}}})
    };
    let configs = [config(4, json!(32)), config(4, json!(null)), config(8, json!(8))];
    inknib_fuzz::quantized_elsewhere(data, &parts, &configs);
});
