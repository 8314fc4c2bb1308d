//! Measuring: does this GPU compute right, how far is a net from the truth, and what do
//! low-bit weights and fast kernels change.

pub mod bench;
pub mod bench_image;
pub mod calibrate;
pub mod compare;
pub mod compare_image;
pub mod compare_text;
mod evaluate;
mod evaluate_image;
mod evaluate_vae;
pub mod observe;
pub mod perplexity;
pub mod scorer;
pub mod selftest;
mod selftest_cases;
pub mod verify;

pub use evaluate::{Named, evaluate, evaluate_with, recipe};
