//! The input is a safetensors file but for the first eight bytes, which say how long its header is: that
//! is the text before the first zero byte.
#![no_main]

use inknib::weights::WeightStore;
use inknib_fuzz::{Bytes, exercise};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let header = bytes.text();
    let length = (header.len() as u64).to_le_bytes();
    let file = [&length[..], header, bytes.0].concat();
    if let Ok(store) = WeightStore::from_bytes("fuzz", file) {
        let _ = exercise(&store);
    }
    // And as it is, for what looks at the first bytes.
    let _ = WeightStore::from_bytes("fuzz", data.to_vec());
});
