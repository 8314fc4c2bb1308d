//! Every op: f64 oracle ↔ FP16 reference shader ↔ fast shader, over random odd shapes. One binary, so that one
//! device serves all. Skips with one line where there is no adapter.
#![allow(clippy::unwrap_used)] // a call that fails is a failed test

mod assign;
mod attention;
mod canary;
mod ceiling;
mod channels;
mod concat;
mod conv2d;
#[path = "../common/device.rs"]
mod device;
mod embed;
mod finite;
mod gather;
mod gram;
mod guidance;
mod harness;
mod kv_cache;
mod matmul;
mod matmul_beside;
mod matmul_gated;
mod matmul_geglu;
mod matmul_joint;
mod matmul_turned;
mod moments;
mod norm;
mod pointwise;
mod rope;
mod round8;
mod sampler;
mod softmax;
mod timestep;
mod topk;
