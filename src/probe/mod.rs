//! Measuring: does this GPU compute right, and how far is a net from the truth.

mod evaluate;
pub mod selftest;
mod selftest_cases;
pub mod verify;

pub use evaluate::{Named, evaluate, recipe};
