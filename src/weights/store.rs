//! [`WeightStore`]: tensors by name out of memory-mapped files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use sha2::{Digest, Sha256};

use super::bytes::Bytes;
use super::foreign::{Foreign, config_beside};
use super::gguf::Gguf;
use super::gguf_store::GgufTensors;
use super::locate::{pickle_error, weight_files};
use super::{View, nearest_names};
use crate::quant::Offset;
use crate::quant::file::FileHeader;
use crate::tensor::{Data, Tensor};
use crate::{Error, Result};

#[derive(Clone, Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    /// Shared by the stores of all parts of a single-file checkpoint.
    pub(super) bytes: Arc<Bytes>,
    pub(super) metadata: BTreeMap<String, String>,
    /// Made of another shard's bytes, no file of its own.
    pub(super) derived: bool,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) shard: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) range: Range<usize>,
}

/// The tensors of a checkpoint by name: one safetensors file, several shards, or a GGUF file, mapped
/// into memory, so that only what is read is paged in. The tensors of a GGUF file have Hugging Face's
/// names and shapes here.
#[derive(Debug)]
pub struct WeightStore {
    path: PathBuf,
    pub(super) shards: Vec<Shard>,
    pub(super) entries: BTreeMap<String, Entry>,
    /// The header of a file that `inknib quantize` wrote.
    quantized: Option<FileHeader>,
    /// What takes the place of shards and entries for a GGUF file.
    pub(super) gguf: Option<GgufTensors>,
    /// The packed weights of a checkpoint that another program quantized.
    foreign: Option<Foreign>,
    /// Names as the model knows them: a packed weight once, under its own name.
    pub(super) names: Vec<String>,
}

impl WeightStore {
    /// Opens a `.safetensors` file, an index of shards, or a folder that holds either under one of
    /// the Hub's customary names (`model`, `diffusion_pytorch_model`, `weights`, their `fp16`
    /// variants) or a single file of any name. A `.gguf` file, or a folder without safetensors that
    /// holds exactly one, as well.
    pub fn open(path: impl AsRef<Path>) -> Result<WeightStore> {
        let path = path.as_ref();
        let mut store = WeightStore::empty(path);
        for file in weight_files(path)? {
            let bytes = map(&file)?;
            if bytes.get().starts_with(b"GGUF") {
                return WeightStore::from_gguf(Gguf::new(&file, bytes)?);
            }
            store.add(file, bytes)?;
        }
        let config = config_beside(path);
        store.finish(config.as_ref().map(|(path, value)| (path.as_path(), value)))
    }

    /// A store over an opened GGUF file.
    ///
    /// # Errors
    /// `Model` for an architecture there is no net for, and for types and tensors that are not read.
    pub fn from_gguf(gguf: Gguf) -> Result<WeightStore> {
        let mut store = WeightStore::empty(gguf.path());
        let tensors = GgufTensors::new(Arc::new(gguf))?;
        store.names = tensors.names().cloned().collect();
        store.gguf = Some(tensors);
        Ok(store)
    }

    /// The GGUF file behind this store, if it is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_ref().map(GgufTensors::gguf)
    }

    /// A store over the bytes of a safetensors file held in memory; `name` stands for the file in
    /// messages.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<WeightStore> {
        let mut store = WeightStore::empty(Path::new(name));
        store.add(PathBuf::from(name), Bytes::Held(bytes))?;
        store.finish(None)
    }

    /// As [`WeightStore::from_bytes`] with the `config.json` that lies beside the file, for
    /// checkpoints that other programs quantized.
    pub fn from_bytes_with_config(
        name: &str,
        bytes: Vec<u8>,
        config: &serde_json::Value,
    ) -> Result<WeightStore> {
        let mut store = WeightStore::empty(Path::new(name));
        store.add(PathBuf::from(name), Bytes::Held(bytes))?;
        store.finish(Some((Path::new("config.json"), config)))
    }

    pub(super) fn empty(path: &Path) -> WeightStore {
        WeightStore {
            path: path.to_path_buf(),
            shards: vec![],
            entries: BTreeMap::new(),
            quantized: None,
            gguf: None,
            foreign: None,
            names: vec![],
        }
    }

    /// Reads the header of a quantized file, checks it against what is there, and lists the names.
    /// `config` is the configuration beside the weights, and its path.
    fn finish(mut self, config: Option<(&Path, &serde_json::Value)>) -> Result<WeightStore> {
        self.quantized = self.read_quantized_header()?;
        if self.quantized.is_none() {
            self.foreign = Foreign::find(&self, config)?;
        }
        let foreign = self.foreign.as_ref();
        let packed = self.quantized.as_ref().map(|header| &header.tensors);
        let is_part = |name: &str| {
            if foreign.is_some_and(|foreign| foreign.is_part(name)) {
                return true;
            }
            let Some((owner, part)) = name.rsplit_once('.') else { return false };
            packed.and_then(|p| p.get(owner)).is_some_and(|header| match part {
                "q" | "s" => true,
                "z" => header.offset != Offset::None,
                _ => false,
            })
        };
        let plain = self.entries.keys().filter(|name| !is_part(name));
        let names = plain.chain(packed.iter().flat_map(|p| p.keys()));
        let mut names: Vec<String> =
            names.chain(foreign.iter().flat_map(|f| f.names())).cloned().collect();
        names.sort();
        self.names = names;
        Ok(self)
    }

    /// A store over tensors in memory, for tests and for weights that are made rather than read.
    pub fn from_tensors(tensors: &[(String, Tensor)]) -> Result<WeightStore> {
        let views = tensors.iter().map(|(name, tensor)| {
            let (dtype, bytes): (Dtype, &[u8]) = match &tensor.data {
                Data::F32(v) => (Dtype::F32, bytemuck::cast_slice(v)),
                Data::F16(v) => (Dtype::F16, bytemuck::cast_slice(v)),
                Data::I64(v) => (Dtype::I64, bytemuck::cast_slice(v)),
                Data::U32(v) => (Dtype::U32, bytemuck::cast_slice(v)),
            };
            safetensors::tensor::TensorView::new(dtype, tensor.shape.clone(), bytes)
                .map(|view| (name.as_str(), view))
                .map_err(|e| Error::Model(format!("tensor `{name}`: {e}")))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let bytes = safetensors::serialize(views, None)
            .map_err(|e| Error::Model(format!("tensors in memory: {e}")))?;
        WeightStore::from_bytes("tensors in memory", bytes)
    }

    /// The path the store was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that are mapped, in the order of their shards.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let gguf = self.gguf().map(Gguf::path);
        let files = self.shards.iter().filter(|shard| !shard.derived);
        files.map(|shard| shard.path.as_path()).chain(gguf)
    }

    /// The names of all tensors, sorted; a packed weight once, under its own name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Whether there is a tensor of this name, plain or packed.
    pub fn contains(&self, name: &str) -> bool {
        self.names.binary_search_by(|n| n.as_str().cmp(name)).is_ok()
    }

    /// The header of a quantized file, if this is one.
    pub fn quantized(&self) -> Option<&FileHeader> {
        self.quantized.as_ref()
    }

    /// How the weights were quantized if another program did it (`GPTQ v1, 4 bits`).
    pub fn quantized_elsewhere(&self) -> Option<String> {
        self.foreign.as_ref().map(Foreign::describe)
    }

    pub(super) fn foreign(&self) -> Option<&Foreign> {
        self.foreign.as_ref()
    }

    /// The names of all tensors as they lie in the file, sorted.
    pub(super) fn stored_names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// SHA-256 over the files' bytes in the order of the shards, in hexadecimal.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        let files = self.shards.iter().filter(|shard| !shard.derived);
        files.for_each(|shard| shard.bytes.read_once(|part| hash.update(part)));
        self.gguf().into_iter().for_each(|gguf| hash.update(gguf.file()));
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The tensor of this name as it lies in the file; otherwise an error with the nearest names. A
    /// packed weight has no single tensor: [`WeightStore::pack`] and [`WeightStore::values`] read it.
    pub fn get(&self, name: &str) -> Result<View<'_>> {
        let Some((name, entry)) = self.entries.get_key_value(name) else {
            if self.contains(name) {
                return Err(Error::Model(format!(
                    "{}: tensor `{name}` is packed; it cannot be used where a plain one is needed",
                    self.path.display()
                )));
            }
            return Err(Error::Model(format!(
                "{}: no tensor `{name}` among {}{}",
                self.path.display(),
                self.names.len(),
                nearest_names(name, self.names())
            )));
        };
        let shard = &self.shards[entry.shard];
        Ok(View {
            name,
            shape: &entry.shape,
            dtype: entry.dtype,
            bytes: &shard.bytes.get()[entry.range.clone()],
            file: &shard.path,
        })
    }

    /// A value of the file's `__metadata__`, from the first shard that has the key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.shards.iter().find_map(|s| s.metadata.get(key)).map(String::as_str)
    }

    /// Whether the file itself has a tensor of this name.
    pub(super) fn is_plain(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Gives the pages of mapped files that were read back to the system; tensors that are read again bring them back.
    pub fn release(&self) {
        self.shards.iter().for_each(|shard| shard.bytes.release_all());
        if let Some(gguf) = &self.gguf {
            gguf.release();
        }
    }

    /// Whether the file itself has a tensor of this name, type and shape.
    pub(super) fn entry_is(&self, name: &str, dtype: Dtype, shape: &[usize]) -> bool {
        self.entries.get(name).is_some_and(|e| e.dtype == dtype && e.shape == shape)
    }

    fn add(&mut self, path: PathBuf, bytes: Bytes) -> Result<()> {
        let (start, metadata) = read_header(&path, bytes.get())?;
        for (name, info) in metadata.tensors() {
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            // The header's own check has tied offsets to file length; this keeps `get` from slicing
            // out of bounds should that check ever change.
            if bytes.get().get(range.clone()).is_none() {
                return Err(damaged(&path, &format!("tensor `{name}` lies beyond its end")));
            }
            let entry = Entry {
                shard: self.shards.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                range,
            };
            if let Some(first) = self.entries.insert(name.clone(), entry) {
                let other = self.shards.get(first.shard).map_or(&path, |shard| &shard.path);
                return Err(damaged(
                    &path,
                    &format!("tensor `{name}` is also in {}", other.display()),
                ));
            }
        }
        let metadata = metadata.metadata().iter().flatten();
        let metadata = metadata.map(|(k, v)| (k.clone(), v.clone())).collect();
        self.shards.push(Shard { path, bytes: Arc::new(bytes), metadata, derived: false });
        Ok(())
    }
}

/// All tensors of a safetensors file (or folder) in host memory, sorted by name. For small files:
/// golden tensors, latents, adapters. F16 stays F16, other floats become F32, U32 stays, other
/// integers and booleans become I64.
pub fn read_tensors(path: impl AsRef<Path>) -> Result<Vec<(String, Tensor)>> {
    let store = WeightStore::open(path)?;
    store.names().map(|name| Ok((name.to_string(), store.get(name)?.to_tensor()?))).collect()
}

fn map(path: &Path) -> Result<Bytes> {
    let bytes = Bytes::map(path)?;
    match bytes.get().is_empty() {
        true => Err(damaged(path, "it is empty")),
        false => Ok(bytes),
    }
}

/// The start of the data and the parsed header.
fn read_header(path: &Path, bytes: &[u8]) -> Result<(usize, Metadata)> {
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02}") {
        return Err(pickle_error(path));
    }
    if bytes.starts_with(b"GGUF") {
        return Err(damaged(path, "it is a GGUF file, which is never a part of another one"));
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(damaged(
            path,
            "it is a Git LFS pointer, not the weights; run `git lfs pull` in its repository",
        ));
    }
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| match e {
        SafeTensorError::MetadataIncompleteBuffer => damaged(
            path,
            &format!("its {} bytes do not end where its header says; fetch it again", bytes.len()),
        ),
        SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength => {
            damaged(path, &format!("it ends inside its header ({} bytes)", bytes.len()))
        }
        other => damaged(path, &other.to_string()),
    })?;
    Ok((8 + header, metadata))
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::Model(format!("{}: not a usable safetensors file: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    fn file(tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (*name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let metadata = [("format".to_string(), "pt".to_string())].into();
        safetensors::serialize(views, Some(metadata)).unwrap()
    }

    fn tiny() -> Vec<u8> {
        let halves: Vec<u8> =
            [1.0f32, -0.5].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let brains: Vec<u8> =
            [3.0f32, 1e30].iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        file(&[
            ("a.weight", Dtype::F16, vec![1, 2], halves),
            ("b.weight", Dtype::BF16, vec![2], brains),
            ("ids", Dtype::I64, vec![1], (-5i64).to_le_bytes().to_vec()),
            ("mask", Dtype::BOOL, vec![3], vec![1, 0, 1]),
        ])
    }

    #[test]
    fn reads_every_type_it_promises() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.safetensors"), tiny()).unwrap();
        let store = WeightStore::open(folder.path()).unwrap();
        assert_eq!(store.names().collect::<Vec<_>>(), ["a.weight", "b.weight", "ids", "mask"]);
        assert_eq!(store.get("a.weight").unwrap().to_f32().unwrap(), [1.0, -0.5]);
        assert_eq!(
            store.get("b.weight").unwrap().to_f32().unwrap(),
            [3.0, bf16::from_f32(1e30).to_f32()]
        );
        assert_eq!(store.get("ids").unwrap().to_i64().unwrap(), [-5]);
        assert_eq!(store.metadata("format"), Some("pt"));
        assert!(store.contains("mask") && !store.contains("masks"));
        let tensors = read_tensors(folder.path()).unwrap();
        assert_eq!(tensors[3], ("mask".into(), Tensor::i64(&[3], vec![1, 0, 1])));
        assert_eq!(tensors[0].1.data.len(), 2);
    }

    #[test]
    fn from_tensors_gives_back_the_same() {
        let tensors = vec![
            ("f".to_string(), Tensor::f32(&[2], vec![1.0, 2.0])),
            ("u".to_string(), Tensor::u32(&[1, 1], vec![9])),
        ];
        let store = WeightStore::from_tensors(&tensors).unwrap();
        assert_eq!(store.get("f").unwrap().to_tensor().unwrap(), tensors[0].1);
        assert_eq!(store.get("u").unwrap().to_tensor().unwrap(), tensors[1].1);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let store = WeightStore::from_bytes("tiny.safetensors", tiny()).unwrap();
        let text = store.get("a.wieght").unwrap_err().to_string();
        assert!(text.contains("among 4") && text.contains("nearest: a.weight"), "{text}");
        let view = store.get("a.weight").unwrap();
        let text = view.expect_shape(&[2, 2]).unwrap_err().to_string();
        assert!(text.contains("[1, 2]") && text.contains("[2, 2]"), "{text}");
        let text = view.to_i64().unwrap_err().to_string();
        assert!(text.contains("F16") && text.contains("a.weight"), "{text}");
        assert!(store.get("ids").unwrap().to_f32().is_err());
    }

    #[test]
    fn errors_say_what_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let open = |p: &Path| WeightStore::open(p).unwrap_err().to_string();
        assert!(open(folder.path()).contains("diffusion_pytorch_model.safetensors"));
        assert!(open(&folder.path().join("gone.safetensors")).contains("no such file"));
        std::fs::write(folder.path().join("pytorch_model.bin"), b"PK\x03\x04").unwrap();
        assert!(open(folder.path()).contains("pickle"));
        std::fs::write(folder.path().join("x.safetensors"), b"PK\x03\x04....").unwrap();
        assert!(open(folder.path()).contains("convert"), "a pickle under a wrong name");
        std::fs::write(folder.path().join("x.safetensors"), b"").unwrap();
        assert!(open(folder.path()).contains("empty"));
        std::fs::write(folder.path().join("y.safetensors"), b"").unwrap();
        assert!(open(folder.path()).contains("2 safetensors files"));
    }

    #[test]
    fn opens_shards_behind_an_index() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes);
        let index = |second: &str| {
            format!("{{\"weight_map\": {{\"p\": \"m-1.safetensors\", \"q\": \"{second}\"}}}}")
        };
        write("model.safetensors.index.json", index("m-2.safetensors").as_bytes()).unwrap();
        write("m-1.safetensors", &file(&[("p", Dtype::U8, vec![1], vec![7])])).unwrap();
        let text = WeightStore::open(folder.path()).unwrap_err().to_string();
        assert!(text.contains("m-2.safetensors") && text.contains("incomplete"), "{text}");
        write("m-2.safetensors", &file(&[("q", Dtype::U8, vec![1], vec![8])])).unwrap();
        let store = WeightStore::open(folder.path()).unwrap();
        assert_eq!(store.get("q").unwrap().to_i64().unwrap(), [8]);
        assert_eq!(store.files().count(), 2);
        write("m-2.safetensors", &file(&[("p", Dtype::U8, vec![1], vec![8])])).unwrap();
        let text = WeightStore::open(folder.path()).unwrap_err().to_string();
        assert!(text.contains("also in"), "{text}");
        write("model.safetensors.index.json", index("../m-2.safetensors").as_bytes()).unwrap();
        assert!(WeightStore::open(folder.path()).is_err(), "an index must not leave its folder");
    }

    /// Reads everything a store offers; only panics matter here.
    fn exercise(bytes: Vec<u8>) -> bool {
        let Ok(store) = WeightStore::from_bytes("damaged", bytes) else { return false };
        let names: Vec<String> = store.names().map(String::from).collect();
        for name in names {
            let view = store.get(&name).unwrap();
            let _ = (view.to_tensor(), view.to_f32(), view.to_i64(), view.to_u32());
        }
        true
    }

    #[test]
    fn no_damage_panics() {
        let good = tiny();
        assert!(exercise(good.clone()));
        for length in 0..good.len() {
            assert!(
                !exercise(good[..length].to_vec()),
                "a file cut to {length} bytes was accepted"
            );
        }
        let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        for at in 0..header {
            for value in [0x00, 0x01, 0x22, 0x30, 0x39, 0x5b, 0x7f, 0xff, good[at] ^ 1] {
                let mut bad = good.clone();
                bad[at] = value;
                exercise(bad);
            }
        }
    }
}
