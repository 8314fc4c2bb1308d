//! The bytes of a file: mapped, or held in memory.

use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use crate::quant::Held;
use crate::{Error, Result};

/// The bytes of one file, mapped or held.
#[derive(Debug)]
pub(super) enum Bytes {
    Mapped(Mmap),
    Held(Vec<u8>),
}

impl Bytes {
    /// Maps a file; an empty one gives no bytes.
    pub(super) fn map(path: &Path) -> Result<Bytes> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        if file.metadata().map_err(|e| Error::io(path, e))?.len() == 0 {
            return Ok(Bytes::Held(vec![]));
        }
        // SAFETY: the map is read only and private to its owner. Another process that shortens the
        // file while it is mapped would end this one with SIGBUS, as with every program that maps
        // files; weights are not edited while they are in use.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Bytes::Mapped(map))
    }

    pub(super) fn get(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Held(bytes) => bytes,
        }
    }
}

impl Bytes {
    /// Gives the pages of a mapped file that were read back to the system; reading again brings them back.
    pub(super) fn release_all(&self) {
        self.release(0..self.get().len());
    }

    /// Hands over all bytes in parts, each of which is given back to the system before the next is read.
    pub(super) fn read_once(&self, mut read: impl FnMut(&[u8])) {
        const PART: usize = 16 << 20;
        let all = self.get();
        for first in (0..all.len()).step_by(PART) {
            let range = first..all.len().min(first + PART);
            read(&all[range.clone()]);
            self.release(range);
        }
    }
}

impl Held for Bytes {
    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let (Bytes::Mapped(map), true) = (self, range.end <= self.get().len()) {
            // SAFETY: the map is of a file and read only, so that its pages come back from there as they were.
            // Where it fails, the pages stay.
            let advice = memmap2::UncheckedAdvice::DontNeed;
            let _ = unsafe { map.unchecked_advise_range(advice, range.start, range.len()) };
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.get()
    }
}
