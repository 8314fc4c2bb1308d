//! A file that `inknib quantize` might have written: the header of its metadata is the fuzzer's text, the
//! tensors `w.q`, `w.s`, `w.z` and `v` have sizes of its choice.
#![no_main]

use inknib::quant::file::METADATA_KEY;
use inknib::weights::{Dtype, WeightStore};
use inknib_fuzz::{Bytes, exercise};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let choice = bytes.byte();
    let json = match choice {
        128.. => String::from_utf8_lossy(bytes.text()).into_owned(),
        _ => {
            let [rows, taps, channels, group] = [0; 4].map(|_| u64::from(bytes.byte()));
            let scheme = if choice & 1 == 0 { "int4" } else { "int8" };
            let offset = ["none", "zero", "min"][usize::from(choice >> 1) % 3];
            let c = f64::from(choice >> 5) / 64.0;
            let (side, shape) = (taps.isqrt(), [rows, channels]);
            let shape = match taps {
                1 => shape.to_vec(),
                _ => vec![rows, channels, side, side],
            };
            serde_json::json!({
                "version": 1 + choice % 2, "recipe": "", "source_sha256": "",
                "tensors": {"w": {
                    "scheme": scheme, "group": group, "c": c, "offset": offset, "shape": shape,
                    "layout": {"rows": rows, "taps": taps, "channels": channels},
                }},
            })
            .to_string()
        }
    };
    let parts: [(&str, &[Dtype]); 4] = [
        ("w.q", &[Dtype::U32]),
        ("w.s", &[Dtype::F16]),
        ("w.z", &[Dtype::F16]),
        ("v", &[Dtype::F32]),
    ];
    let file = bytes.file(&parts, Some((METADATA_KEY, &json)));
    if let Ok(store) = WeightStore::from_bytes("fuzz", file) {
        let _ = exercise(&store);
    }
});
