//! One GPTQ layer with parts of any shape and a configuration that is right or of the fuzzer's making.
#![no_main]

use inknib::weights::Dtype;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|data: &[u8]| {
    let floats = [Dtype::F16, Dtype::BF16, Dtype::F32];
    let parts: [(&str, &[Dtype]); 5] = [
        ("l.qweight", &[Dtype::I32]),
        ("l.qzeros", &[Dtype::I32]),
        ("l.scales", &floats),
        ("l.g_idx", &[Dtype::I32, Dtype::I64]),
        ("l.weight", &[Dtype::F16]),
    ];
    let config = |bits, group, format| json!({"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": format});
    let configs = [
        config(4, 32, "gptq"),
        config(4, -1, "gptq_v2"),
        config(8, 8, "gptq"),
        config(4, 12, "gptq_v2"),
    ];
    inknib_fuzz::quantized_elsewhere(data, &parts, &configs);
});
