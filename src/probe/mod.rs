//! Measuring: nets against golden tensors.

mod evaluate;
pub mod verify;

pub use evaluate::{Named, evaluate, recipe};
