//! What a driver made of kernels, on disk from one run to the next: a digest, then the bytes that the driver gave.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::files::write_whole;
use crate::{Error, Result};

/// Bytes of the digest.
const DIGEST: usize = 32;

/// The cache of one kind of adapter, and its file.
pub(super) struct Pipelines {
    cache: wgpu::PipelineCache,
    file: PathBuf,
    /// What the file held, where that was whole.
    before: Option<Vec<u8>>,
}

impl Pipelines {
    /// The cache with what the folder has for this adapter. None where the backend has no such thing.
    pub(super) fn open(
        device: &wgpu::Device,
        info: &wgpu::AdapterInfo,
        folder: &Path,
    ) -> Option<Pipelines> {
        let file = folder.join(wgpu::util::pipeline_cache_key(info)?);
        let before = std::fs::read(&file).ok().and_then(unseal);
        let create = |data: Option<&[u8]>| {
            let desc =
                wgpu::PipelineCacheDescriptor { label: Some("pipelines"), data, fallback: true };
            // SAFETY: the data is what `get_data` gave, as its digest shows; that it is of this adapter and this version of its
            // driver wgpu reads from the header.
            unsafe { device.create_pipeline_cache(&desc) }
        };
        // Another adapter's data is an error even so, and what is out of date an empty cache.
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let cache = create(before.as_deref());
        let cache = match pollster::block_on(scope.pop()) {
            Some(_) => create(None),
            None => cache,
        };
        Some(Pipelines { cache, file, before })
    }
    pub(super) fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }
    pub(super) fn file(&self) -> &Path {
        &self.file
    }
    /// Writes the file if the driver has something else than what is in it.
    pub(super) fn keep(&self) {
        let Some(data) = self.cache.get_data().filter(|data| self.before.as_ref() != Some(data))
        else {
            return;
        };
        match write(&self.file, data) {
            Ok(bytes) => tracing::debug!(file = %self.file.display(), bytes, "kept pipelines"),
            // The next run compiles again; `doctor` says what is wrong with the folder.
            Err(error) => tracing::info!("compiled kernels are not kept: {error}"),
        }
    }
}

fn write(file: &Path, data: Vec<u8>) -> Result<usize> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    let sealed = seal(data);
    write_whole(file, &sealed)?;
    Ok(sealed.len())
}

/// With its digest in front: wgpu looks at a header alone, and drivers trust what follows.
fn seal(data: Vec<u8>) -> Vec<u8> {
    let mut sealed = Sha256::digest(&data).to_vec();
    sealed.extend(data);
    sealed
}

/// The data, if every bit of it is as it was.
fn unseal(mut sealed: Vec<u8>) -> Option<Vec<u8>> {
    if sealed.len() < DIGEST {
        return None;
    }
    let data = sealed.split_off(DIGEST);
    (Sha256::digest(&data).as_slice() == sealed).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_it_was_is_not_taken() {
        let data = b"what a driver made".to_vec();
        let sealed = seal(data.clone());
        assert_eq!(unseal(sealed.clone()), Some(data));
        for length in 0..sealed.len() {
            assert_eq!(unseal(sealed[..length].to_vec()), None, "{length} bytes of it");
        }
        for bit in 0..8 * sealed.len() {
            let mut other = sealed.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(other), None, "bit {bit} flipped");
        }
        let longer = [&sealed[..], b"!"].concat();
        assert_eq!(unseal(longer), None);
    }
}
