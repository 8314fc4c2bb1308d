//! Measuring: does this GPU compute right, how far is a net from the truth, and what do
//! low-bit weights and fast kernels change.

pub mod attention_kl;
pub mod bench;
pub mod bench_formats;
pub mod bench_image;
pub mod calibrate;
pub mod choices;
pub mod compare;
pub mod compare_image;
pub mod compare_reports;
mod compare_runs;
pub mod compare_steps;
pub mod compare_text;
pub mod compare_tokens;
pub mod driver;
mod evaluate;
mod evaluate_image;
mod evaluate_vae;
pub mod inject;
pub mod observe;
pub mod page;
pub mod perplexity;
pub mod plot;
mod plot_axis;
pub mod plot_grid;
pub mod report;
pub mod report_image;
pub mod report_text;
pub mod scorer;
pub mod selftest;
mod selftest_cases;
pub mod singular;
pub mod spectrum;
pub mod study;
pub mod sweep;
pub mod sweep_image;
pub mod sweep_text;
pub mod verify;

pub use evaluate::{Named, evaluate, evaluate_with, recipe};
