//! One error type for the library. Every message names the thing that is wrong (file, tensor, both
//! shapes) and the next step; the kind decides the exit code of the binary (README, "Exit codes").

use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself cannot be served: a bad flag value, zero steps, a size that is no multiple of 8.
    #[error("{0}")]
    Usage(String),
    /// No adapter fits the request, or none exists.
    #[error("{0}")]
    NoAdapter(String),
    /// A model file is missing, truncated, of the wrong architecture or holds a tensor of the wrong shape.
    #[error("{0}")]
    Model(String),
    /// The byte ledger refuses an allocation.
    #[error("{0}")]
    OutOfMemory(String),
    /// The device was lost or did not answer in time.
    #[error("{0}")]
    DeviceLost(String),
    /// A comparison came out beyond its tolerance.
    #[error("{0}")]
    OutOfTolerance(String),
    #[error("interrupted")]
    Interrupted,
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// Anything else that went wrong while running, a shape error in a graph included.
    #[error("{0}")]
    Runtime(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Error {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// Exit code of the binary for this kind of error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Runtime(_) | Error::Io { .. } => 1,
            Error::Usage(_) => 2,
            Error::NoAdapter(_) => 3,
            Error::Model(_) => 4,
            Error::OutOfMemory(_) => 5,
            Error::DeviceLost(_) => 6,
            Error::OutOfTolerance(_) => 7,
            Error::Interrupted => 130,
        }
    }
}
