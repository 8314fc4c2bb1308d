//! Quantization on the host: what a recipe may ask for ([`QuantSpec`], [`Recipe`]), how weights lie
//! in GPU memory and on disk ([`Layout`], [`Packed`]), how scales are found, the quantized file, and
//! the metrics that everything is measured with. Nothing here knows the GPU.

mod absmax;
mod budget;
mod cholesky;
pub mod file;
mod gptq;
mod grid;
mod hqq;
mod layout;
pub mod metrics;
mod mse;
mod numbers;
mod pack;
mod packed;
mod parts;
mod recipe;
mod spec;
mod statistics;
mod words;

pub use budget::{Choice, allocate};
pub use file::{Stored, write_quantized};
pub use gptq::{DAMPING, gptq};
pub use grid::{CUBIC_CANDIDATES, Grid};
pub use layout::{Layout, conv_to_rows, rows_to_conv};
pub use numbers::{Numbers, Order};
pub use packed::{Format, Offset, Packed};
pub use recipe::{AUTO, Recipe, Rule};
pub use spec::{Levels, QuantSpec, Search};
pub use statistics::{GramBlock, LayerStatistics, Statistics};
pub use words::{Held, SharedBytes, Words};

pub(crate) use packed::pair_halves;
