//! Every op: f64 oracle ↔ FP16 reference shader ↔ fast shader, over random odd shapes. One binary, so that one
//! device serves all. Skips with one line where there is no adapter.

mod harness;
mod matmul;
mod pointwise;
