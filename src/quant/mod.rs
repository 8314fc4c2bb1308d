//! Quantization on the host: what a recipe may ask for ([`QuantSpec`], [`Recipe`]), how weights lie
//! in GPU memory and on disk ([`Layout`], [`Packed`]), how scales are found, the quantized file, and
//! the metrics that everything is measured with. Nothing here knows the GPU.

mod absmax;
mod grid;
mod layout;
pub mod metrics;
mod mse;
mod packed;
mod spec;

pub use grid::{CUBIC_CANDIDATES, Grid};
pub use layout::{Layout, conv_to_rows};
pub use packed::{Format, Packed};
pub use spec::{Levels, QuantSpec, Search};
