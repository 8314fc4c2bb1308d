//! A file that holds a text-to-image model, or a part of one: ldm's and sgm's single checkpoints, UNets
//! and VAEs alone, GGUF.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::WeightStore;
use super::bytes::Bytes;
use super::gguf::Gguf;
use super::image_model::Part;
use super::image_names::{Counts, Names, Place, names};
use super::image_shapes::Shapes;
use super::image_store::{Pick, gguf_shapes};
use super::locate::{is_pickle_name, pickle_error};
use crate::{Error, Result};

#[derive(Debug)]
enum Source {
    Safetensors(Box<WeightStore>),
    Gguf(Arc<Gguf>),
}

/// An opened file and the parts found in it.
#[derive(Debug)]
pub(super) struct ImageFile {
    path: PathBuf,
    source: Source,
    parts: BTreeMap<Part, Vec<Pick>>,
    /// Tensors that no part has and that are no known junk.
    spare: Vec<String>,
    /// Tensors that are known to be of no use; some tell of the model by being there.
    markers: Vec<String>,
}

impl ImageFile {
    /// Opens the file and looks for parts.
    ///
    /// # Errors
    /// `Model` for a damaged file, for one of another family, which is named, and for one without any
    /// part.
    pub(super) fn open(path: &Path) -> Result<ImageFile> {
        if is_pickle_name(path) {
            return Err(pickle_error(path));
        }
        let bytes = Bytes::map(path)?;
        match bytes.get().starts_with(b"GGUF") {
            true => ImageFile::of_gguf(Gguf::new(path, bytes)?),
            false => ImageFile::of_store(WeightStore::open(path)?),
        }
    }

    /// The same over bytes in memory; `name` stands for the file in messages.
    pub(super) fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<ImageFile> {
        match bytes.starts_with(b"GGUF") {
            true => ImageFile::of_gguf(Gguf::from_bytes(name, bytes)?),
            false => ImageFile::of_store(WeightStore::from_bytes(name, bytes)?),
        }
    }

    /// The parts of a GGUF file.
    pub(super) fn of_gguf(gguf: Gguf) -> Result<ImageFile> {
        let shapes = gguf_shapes(&gguf)?;
        let path = gguf.path().to_path_buf();
        ImageFile::new(path, Source::Gguf(Arc::new(gguf)), &shapes)
    }

    /// The parts of a safetensors file.
    pub(super) fn of_store(store: WeightStore) -> Result<ImageFile> {
        let shape = |name: &str| Ok((name.to_string(), store.shape(name)?.to_vec()));
        let shapes = store.names().map(shape).collect::<Result<Shapes>>()?;
        let path = store.path().to_path_buf();
        ImageFile::new(path, Source::Safetensors(Box::new(store)), &shapes)
    }

    /// A file of which only names and shapes are known.
    #[cfg(test)]
    pub(super) fn of_shapes(path: &Path, shapes: &Shapes) -> Result<ImageFile> {
        ImageFile::new(path.into(), Source::Safetensors(Box::new(WeightStore::empty(path))), shapes)
    }

    /// Where the tensors of a part come from.
    #[cfg(test)]
    pub(super) fn picks_of(&self, part: Part) -> &[Pick] {
        self.parts.get(&part).map(Vec::as_slice).unwrap_or_default()
    }

    fn new(path: PathBuf, source: Source, shapes: &Shapes) -> Result<ImageFile> {
        let names = names()?;
        let mut file =
            ImageFile { path, source, parts: BTreeMap::new(), spare: vec![], markers: vec![] };
        let mut claimed = BTreeSet::new();
        for part in Part::ALL {
            let mut places = names.places.iter().filter(|p| p.part == part.folder());
            let there = |p: &&Place| shapes.contains_key(&format!("{}{}", p.prefix, p.proof));
            let Some(place) = places.find(there) else { continue };
            let picks = file.picks(names, place, shapes, &mut claimed)?;
            file.parts.insert(part, drop_last_of_h(part, picks));
        }
        let other = shapes.keys().find_map(|name| Some((names.other(name)?, name)));
        if let (Some((family, name)), false) = (other, file.parts.contains_key(&Part::Unet)) {
            return Err(
                file.refuse(&format!("it is {family} (tensor `{name}`), which does not run here"))
            );
        }
        if file.parts.is_empty() {
            let first: Vec<&str> = shapes.keys().take(3).map(String::as_str).collect();
            return Err(file.refuse(&format!(
                "none of its {} tensors ({} …) is one of a UNet, a VAE or a text encoder under a name \
                 that is known here",
                shapes.len(),
                first.join(", ")
            )));
        }
        let left = shapes.keys().filter(|name| !claimed.contains(name.as_str())).cloned();
        (file.markers, file.spare) = left.partition(|name| names.is_junk(name));
        file.check_packed()?;
        Ok(file)
    }

    /// The tensors of a place under diffusers' names.
    fn picks<'a>(
        &self,
        names: &Names,
        place: &Place,
        shapes: &'a Shapes,
        claimed: &mut BTreeSet<&'a str>,
    ) -> Result<Vec<Pick>> {
        let counts = counts(&place.prefix, shapes);
        let mut picks: BTreeMap<String, Pick> = BTreeMap::new();
        for (name, shape) in shapes {
            let Some(rest) = name.strip_prefix(&place.prefix) else { continue };
            let Some(targets) = names.rename(&place.table, rest, counts) else { continue };
            claimed.insert(name);
            for target in targets {
                let to = target.0.clone();
                let pick = Pick::new(name, shape, target).map_err(|why| self.refuse(&why))?;
                if let Some(other) = picks.insert(to.clone(), pick) {
                    return Err(self.refuse(&format!(
                        "tensors `{}` and `{name}` are both `{to}`",
                        other.from
                    )));
                }
            }
        }
        Ok(picks.into_values().collect())
    }

    /// A file of packed weights can be used as it is, but not taken apart.
    fn check_packed(&self) -> Result<()> {
        let renamed = || self.parts.values().flatten().find(|p| p.from != p.to);
        match (self.is_packed(), renamed()) {
            (true, Some(pick)) => Err(self.refuse(&format!(
                "its weights are packed under names other than diffusers' (`{}`); quantize the \
                 original checkpoint with `inknib quantize`",
                pick.from
            ))),
            _ => Ok(()),
        }
    }

    fn is_packed(&self) -> bool {
        match &self.source {
            Source::Safetensors(store) => {
                store.quantized().is_some() || store.quantized_elsewhere().is_some()
            }
            Source::Gguf(_) => false,
        }
    }

    fn refuse(&self, why: &str) -> Error {
        Error::Model(format!("{}: {why}", self.path.display()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn has(&self, part: Part) -> bool {
        self.parts.contains_key(&part)
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = Part> {
        self.parts.keys().copied()
    }

    /// Names of tensors that nothing here needs.
    pub(super) fn spare(&self) -> &[String] {
        &self.spare
    }

    pub(super) fn gguf(&self) -> Option<&Gguf> {
        match &self.source {
            Source::Gguf(gguf) => Some(gguf),
            Source::Safetensors(_) => None,
        }
    }

    /// A value of a safetensors file's `__metadata__`.
    pub(super) fn metadata(&self, key: &str) -> Option<&str> {
        match &self.source {
            Source::Safetensors(store) => store.metadata(key),
            Source::Gguf(_) => None,
        }
    }

    /// Whether the file has a tensor of this name that is known to be of no use but to tell of the model.
    pub(super) fn has_marker(&self, name: &str) -> bool {
        self.markers.iter().any(|marker| marker == name)
    }

    /// The one number of a tensor, if it is one.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        match &self.source {
            Source::Safetensors(store) => match store.get(name).ok()?.to_i64().ok()?[..] {
                [one] => Some(one),
                _ => None,
            },
            Source::Gguf(_) => None,
        }
    }

    /// Shapes of a part by diffusers' names.
    pub(super) fn shapes(&self, part: Part) -> Shapes {
        let picks = self.parts.get(&part).into_iter().flatten();
        picks.map(|pick| (pick.to.clone(), pick.shape.clone())).collect()
    }

    /// The tensors of a part.
    pub(super) fn store(&self, part: Part) -> Result<WeightStore> {
        let picks = self.parts.get(&part).map(Vec::as_slice).unwrap_or_default();
        match &self.source {
            Source::Safetensors(_) if self.is_packed() => WeightStore::open(&self.path),
            Source::Safetensors(store) => store.pick(&self.path, picks),
            Source::Gguf(gguf) => Ok(WeightStore::pick_gguf(gguf, picks)),
        }
    }
}

/// Whether a GGUF file holds a text-to-image model or a part of one: the files of both kinds have the
/// same ending, and stable-diffusion.cpp's name no architecture.
pub fn is_image_gguf(gguf: &Gguf) -> Result<bool> {
    let has = |place: &Place| {
        // Language models' names are others; only those with a UNet or VAE in them are sure.
        let net = [Part::Unet, Part::Vae].iter().any(|part| part.folder() == place.part);
        net && gguf.tensors().contains_key(&format!("{}{}", place.prefix, place.proof))
    };
    Ok(names()?.places.iter().any(has))
}

/// What the numbering of ldm's blocks depends on.
fn counts(prefix: &str, shapes: &Shapes) -> Counts {
    let has = |name: String| shapes.contains_key(&format!("{prefix}{name}"));
    // The first block with a downsampling ends the first level; a UNet of one level has none.
    let ends = (1..64).find(|i| has(format!("input_blocks.{i}.0.op.weight")));
    let up = |i: &usize| has(format!("decoder.up.{i}.block.0.conv1.weight"));
    Counts { per_level: ends.unwrap_or(64), levels: (0..64).take_while(up).count() }
}

/// Stable Diffusion 2.x reads the last layer but one of OpenCLIP-H and norms it: diffusers' text
/// encoder is that model without its last layer, ldm's file has all 24.
fn drop_last_of_h(part: Part, picks: Vec<Pick>) -> Vec<Pick> {
    let width = |p: &Pick| p.to == "text_model.final_layer_norm.weight" && p.shape == [1024];
    match part == Part::TextEncoder && picks.iter().any(width) {
        true => {
            let last = "text_model.encoder.layers.23.";
            picks.into_iter().filter(|p| !p.to.starts_with(last)).collect()
        }
        false => picks,
    }
}
