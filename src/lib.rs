//! inknib: quantized diffusion UNets and language models on any GPU that wgpu reaches.
//!
//! The floors, from the bottom; imports point down only (tests/tidy.rs holds them):
//! [`gpu`] (the only floor that names wgpu) · [`graph`], [`quant`], [`weights`] (the last two do not
//! know the GPU) · [`ops`] and [`nn`] · [`nets`] · the workflows [`diffusion`], [`text`], [`probe`].

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod cli;
pub mod diffusion;
pub mod error;
pub mod files;
pub mod gpu;
pub mod graph;
pub mod nets;
pub mod nn;
pub mod ops;
pub mod probe;
pub mod quant;
pub mod tensor;
pub mod text;
pub mod weights;

pub use error::{Error, Result};
