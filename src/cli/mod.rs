//! cli
pub mod repl;
