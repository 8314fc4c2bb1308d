//! One AWQ layer with parts of any shape and a configuration that is right or of the fuzzer's making.
#![no_main]

use inknib::weights::Dtype;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|data: &[u8]| {
    let floats = [Dtype::F16, Dtype::BF16, Dtype::F32];
    let parts: [(&str, &[Dtype]); 4] = [
        ("l.qweight", &[Dtype::I32]),
        ("l.qzeros", &[Dtype::I32]),
        ("l.scales", &floats),
        ("l.bias", &floats),
    ];
    let config = |group, zero_point| json!({"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": zero_point});
    let configs = [config(32, true), config(-1, true), config(8, false), config(12, true)];
    inknib_fuzz::quantized_elsewhere(data, &parts, &configs);
});
