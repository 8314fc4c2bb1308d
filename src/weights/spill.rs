//! Words of tensors that are done, on the disk until all that go into one file are: a quantized model is not held in memory before it
//! is written.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::MmapOptions;

use super::bytes::Bytes;
use crate::quant::Words;
use crate::{Error, Result};

/// Bytes from which words are worth a mapping of their own.
const LEAST: usize = 1 << 20;

/// A file without a name, which is gone when nobody holds it or its words.
pub(super) struct Spill {
    folder: PathBuf,
    file: File,
    end: u64,
}

impl Spill {
    /// On the disk where `output` is going to be.
    ///
    /// # Errors
    /// `Io` if nothing can be written there.
    pub(super) fn beside(output: &Path) -> Result<Spill> {
        let parent = output.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = parent.unwrap_or(Path::new(".")).to_path_buf();
        let file = tempfile::tempfile_in(&folder).map_err(|e| Error::io(&folder, e))?;
        Ok(Spill { folder, file, end: 0 })
    }

    /// Moves words to the disk; few ones stay where they are.
    ///
    /// # Errors
    /// `Io` if there is no room.
    pub(super) fn take(&mut self, words: &mut Words) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let len = bytes.len();
        if len < LEAST {
            return Ok(());
        }
        self.file.write_all(bytes).map_err(|e| Error::io(&self.folder, e))?;
        // SAFETY: the file has no name, and what is written of it is never written again.
        let map = unsafe { MmapOptions::new().offset(self.end).len(len).map(&self.file) };
        let map = map.map_err(|e| Error::io(&self.folder, e))?;
        self.end += len as u64;
        *words = Words::lying(Arc::new(Bytes::Mapped(map)), 0..len);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_same_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::beside(&folder.path().join("model.safetensors")).unwrap();
        // Neither begins at a page, and the second stays.
        let all = [LEAST / 4 + 3, 5, LEAST / 2 + 1].map(|n| (0..n as u32).collect::<Vec<u32>>());
        let kept = all.clone().map(|words| {
            let mut words = Words::from(words);
            spill.take(&mut words).unwrap();
            words
        });
        assert_eq!(spill.end, 4 * (all[0].len() + all[2].len()) as u64);
        drop(spill);
        for (kept, all) in kept.iter().zip(&all) {
            assert_eq!(kept[..], all[..]);
            kept.release();
            assert_eq!(kept[..], all[..]);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let nowhere = folder.path().join("none").join("model.safetensors");
        let error = Spill::beside(&nowhere).err().unwrap().to_string();
        assert!(error.contains("none"), "{error}");
    }
}
