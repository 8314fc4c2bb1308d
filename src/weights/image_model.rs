//! [`ImageModel`]: a text-to-image model on disk in diffusers' terms, whatever layout it has.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::image_expect::{complaint, expected};
use super::image_file::ImageFile;
use super::image_kind::{ImageFamily, Kind};
use super::image_names::{Counts, names};
use super::image_shapes::{config, family_of};
use super::{WeightStore, read_json};
use crate::{Error, Result};

/// A net of a text-to-image model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Unet,
    Vae,
    /// CLIP-L of Stable Diffusion 1.x and SDXL, OpenCLIP-H of 2.x.
    TextEncoder,
    /// OpenCLIP-G of SDXL; the only text encoder of its refiner.
    TextEncoder2,
}

impl Part {
    /// All parts.
    pub const ALL: [Part; 4] = [Part::TextEncoder, Part::TextEncoder2, Part::Unet, Part::Vae];

    /// Its subfolder in diffusers' layout.
    pub fn folder(self) -> &'static str {
        match self {
            Part::Unet => "unet",
            Part::Vae => "vae",
            Part::TextEncoder => "text_encoder",
            Part::TextEncoder2 => "text_encoder_2",
        }
    }

    /// The recipe's name of it: both text encoders have the same.
    pub fn recipe(self) -> &'static str {
        match self {
            Part::Unet => "unet",
            Part::Vae => "vae",
            Part::TextEncoder | Part::TextEncoder2 => "text_encoder",
        }
    }

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Unet => "UNet",
            Part::Vae => "VAE",
            Part::TextEncoder => "text encoder",
            Part::TextEncoder2 => "second text encoder",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a part lies.
#[derive(Clone, Debug)]
enum Origin {
    /// A folder with `config.json` and weights.
    Folder(PathBuf),
    /// A single file.
    File(Arc<ImageFile>),
}

/// Where the ids of a prompt come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Vocabulary {
    /// A tokenizer's folder, with `tokenizer.json` or `vocab.json` and `merges.txt`.
    Folder(PathBuf),
    /// CLIP's own, which this program carries; the text of the token that fills a prompt up.
    Clip { pad: &'static str },
}

/// A text-to-image model on disk. Its weights are mapped when they are asked for; nothing is copied.
#[derive(Clone, Debug)]
pub struct ImageModel {
    path: PathBuf,
    parts: BTreeMap<Part, Origin>,
    /// The root of a diffusers folder.
    folder: Option<PathBuf>,
    kind: Kind,
}

/// Pipelines of diffusers whose nets are these. One checkpoint serves them all: what differs is what
/// the program does with it.
pub const PIPELINES: [&str; 14] = [
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionInpaintPipelineLegacy",
    "DDPMPipeline",
    "DDIMPipeline",
    "PNDMPipeline",
];

impl ImageModel {
    /// Opens a diffusers folder (`model_index.json`, nets in subfolders), or a single file: ldm's and
    /// sgm's checkpoints in safetensors, a UNet alone under their or diffusers' names, stable-diffusion.cpp's
    /// and ComfyUI's GGUF.
    ///
    /// # Errors
    /// `Model` for a path that holds no such model, a pipeline that there are no nets for, a folder
    /// that lacks a part, and a file without a UNet.
    pub fn open(path: impl AsRef<Path>) -> Result<ImageModel> {
        let path = path.as_ref();
        if path.is_dir() {
            return ImageModel::open_folder(path);
        }
        ImageModel::of_file(path, ImageFile::open(path)?)
    }

    /// A single file held in memory; `name` stands for it in messages.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<ImageModel> {
        ImageModel::of_file(Path::new(name), ImageFile::from_bytes(name, bytes)?)
    }

    fn of_file(path: &Path, file: ImageFile) -> Result<ImageModel> {
        let file = Arc::new(file);
        let parts = file.parts().map(|part| (part, Origin::File(file.clone()))).collect();
        let kind = Kind::default();
        let mut model = ImageModel { path: path.to_path_buf(), parts, folder: None, kind };
        if !model.has(Part::Unet) {
            return Err(model.lacks(Part::Unet));
        }
        model.kind = model.find_kind()?;
        Ok(model)
    }

    fn open_folder(path: &Path) -> Result<ImageModel> {
        let index: Value = read_json(path, "model_index.json")?;
        let class = class_of(&index);
        if !PIPELINES.contains(&class) {
            return Err(Error::Model(format!(
                "{}: the pipeline `{class}` is not one that runs here; there is {}",
                path.join("model_index.json").display(),
                PIPELINES.join(", ")
            )));
        }
        let has = |part: &Part| path.join(part.folder()).join("config.json").is_file();
        let parts = Part::ALL.into_iter().filter(has);
        let parts = parts.map(|p| (p, Origin::Folder(path.join(p.folder())))).collect();
        let mut model = ImageModel {
            path: path.to_path_buf(),
            parts,
            folder: Some(path.to_path_buf()),
            kind: Kind::default(),
        };
        model.check_parts(&index)?;
        model.kind = model.find_kind()?;
        Ok(model)
    }

    /// Refuses a folder that lacks a net which its `model_index.json` names, or which every model has.
    fn check_parts(&self, index: &Value) -> Result<()> {
        let unconditional = ["DDPMPipeline", "DDIMPipeline", "PNDMPipeline"];
        let whole = !unconditional.contains(&class_of(index));
        for part in Part::ALL {
            let entry = index.get(part.folder()).and_then(Value::as_array);
            let named = entry.is_some_and(|e| e.iter().any(|v| !v.is_null()));
            // The refiner has the second text encoder only, and its index says so.
            let absent = entry.is_some_and(|e| e.iter().all(Value::is_null));
            let usual = part != Part::TextEncoder2 && (whole || part == Part::Unet);
            if (named || usual && !absent) && !self.has(part) {
                return Err(Error::Model(format!(
                    "{}: there is no {}/config.json; the download is incomplete",
                    self.path.display(),
                    part.folder()
                )));
            }
        }
        Ok(())
    }

    /// The same model with `part` taken from another place: a folder with the net's `config.json` and
    /// weights, a file that holds the part (alone or not), or a whole diffusers folder.
    ///
    /// # Errors
    /// `Model` where nothing of that kind lies at `path`.
    pub fn with_part(mut self, part: Part, path: impl AsRef<Path>) -> Result<ImageModel> {
        let path = path.as_ref();
        let origin = match (path.is_dir(), path.join("model_index.json").is_file()) {
            (true, false) => Origin::Folder(path.to_path_buf()),
            (true, true) => {
                let other = ImageModel::open_folder(path)?;
                other.parts.get(&part).cloned().ok_or_else(|| other.lacks(part))?
            }
            (false, _) => {
                let file = ImageFile::open(path)?;
                if !file.has(part) {
                    let there: Vec<&str> = file.parts().map(Part::name).collect();
                    return Err(Error::Model(format!(
                        "{}: there is no {part} in it, only {}",
                        path.display(),
                        there.join(", ")
                    )));
                }
                Origin::File(Arc::new(file))
            }
        };
        self.parts.insert(part, origin);
        self.kind = self.find_kind()?;
        Ok(self)
    }

    fn lacks(&self, part: Part) -> Error {
        let there: Vec<&str> = self.parts.keys().map(|p| p.name()).collect();
        Error::Model(format!(
            "{}: there is no {part} in it, only {}; name another file or folder for it",
            self.path.display(),
            there.join(", ")
        ))
    }

    fn origin(&self, part: Part) -> Result<&Origin> {
        self.parts.get(&part).ok_or_else(|| self.lacks(part))
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is such a part.
    pub fn has(&self, part: Part) -> bool {
        self.parts.contains_key(&part)
    }

    /// The parts there are, in the order in which a prompt goes through them.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        Part::ALL.into_iter().filter(|part| self.has(*part))
    }

    /// The tensors of a part under diffusers' (UNet, VAE) or transformers' (text encoders) names and
    /// in their shapes.
    ///
    /// # Errors
    /// `Model` for a part that is not there, and for weights that cannot be read.
    pub fn store(&self, part: Part) -> Result<WeightStore> {
        let store = match self.origin(part)? {
            Origin::Folder(folder) => WeightStore::open(folder)?,
            Origin::File(file) => file.store(part)?,
        };
        self.check(part, &store)?;
        Ok(store)
    }

    /// Holds the names of a part's tensors against its configuration.
    fn check(&self, part: Part, store: &WeightStore) -> Result<()> {
        let (config, source) = self.config(part)?;
        let Some(expected) = expected(part, &config) else { return Ok(()) };
        let map = names()?;
        let table = match part {
            Part::Unet => "diffusers_unet",
            Part::Vae => "diffusers_vae",
            _ if store.contains("embeddings.token_embedding.weight") => "clip_bare",
            _ => "clip",
        };
        // Counts matter for ldm's numbering alone.
        let counts = Counts { per_level: 1, levels: 0 };
        let usual = |name: &str| match map.rename(table, name, counts) {
            Some(targets) => targets.into_iter().map(|(to, _)| to).collect(),
            None if map.is_junk(name) => vec![],
            None => vec![name.to_string()],
        };
        let there: Vec<String> = store.names().flat_map(usual).collect();
        complaint(&expected, &there).map_or(Ok(()), |why| {
            let path = store.path().display();
            let spare = self.spare();
            let left = match spare.first() {
                Some(first) => {
                    format!("; of no use here are {} tensors (`{first}` …)", spare.len())
                }
                None => String::new(),
            };
            let source = source.display();
            Err(Error::Model(format!("{path}: the {part} {why} (configuration: {source}){left}")))
        })
    }

    /// Names of tensors in single files that no part has, beside what is known to be of no use.
    pub fn spare(&self) -> Vec<String> {
        let mut spare: Vec<String> = self.files().flat_map(|file| file.spare().to_vec()).collect();
        spare.sort();
        spare.dedup();
        spare
    }

    fn files(&self) -> impl Iterator<Item = &Arc<ImageFile>> {
        self.parts.values().filter_map(|origin| match origin {
            Origin::File(file) => Some(file),
            Origin::Folder(_) => None,
        })
    }

    /// `config.json` of a part, or what it would be, and where it comes from (for messages).
    pub fn config(&self, part: Part) -> Result<(Value, PathBuf)> {
        match self.origin(part)? {
            Origin::Folder(folder) => {
                Ok((read_json(folder, "config.json")?, folder.join("config.json")))
            }
            Origin::File(file) => {
                let second = match self.parts.get(&Part::TextEncoder2) {
                    Some(Origin::File(file)) => Some(file.shapes(Part::TextEncoder2)),
                    _ => None,
                };
                let projection = second.as_ref().and_then(|s| s.get("text_projection.weight"));
                let pooled = projection.and_then(|shape| shape.first()).copied();
                let value = config(self.kind.family, part, &file.shapes(part), pooled);
                let mut value = value.map_err(|why| {
                    Error::Model(format!(
                        "{}: the {part} is not one of Stable Diffusion's: {why}",
                        file.path().display()
                    ))
                })?;
                if part == Part::Unet {
                    value["sample_size"] = self.kind.sample_size().into();
                }
                Ok((value, file.path().to_path_buf()))
            }
        }
    }

    /// The text of `scheduler_config.json`, or what it would be, and where it comes from.
    /// [`ScheduleConfig::from_json`](crate::diffusion::schedule::ScheduleConfig::from_json) takes both.
    pub fn scheduler(&self) -> Result<(String, PathBuf)> {
        match &self.folder {
            Some(folder) => {
                let file = folder.join("scheduler/scheduler_config.json");
                let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
                Ok((text, file))
            }
            None => Ok((self.kind.schedule().to_string(), self.path.clone())),
        }
    }

    /// Where the ids of a prompt for a text encoder come from: the model's own tokenizer, else CLIP's
    /// vocabulary, which all these models share.
    pub fn vocabulary(&self, part: Part) -> Vocabulary {
        let folder = if part == Part::TextEncoder2 { "tokenizer_2" } else { "tokenizer" };
        let folder = self.folder.iter().map(|root| root.join(folder)).find(|f| f.is_dir());
        let bang = part == Part::TextEncoder2 || self.kind.family == ImageFamily::Sd2;
        match folder {
            Some(folder) => Vocabulary::Folder(folder),
            None => Vocabulary::Clip { pad: if bang { "!" } else { "<|endoftext|>" } },
        }
    }

    /// What kind of model it is.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    fn find_kind(&self) -> Result<Kind> {
        let encoders = [self.has(Part::TextEncoder), self.has(Part::TextEncoder2)];
        match self.origin(Part::Unet)? {
            Origin::Folder(_) => {
                let unet = self.config(Part::Unet)?.0;
                let scheduler = self.scheduler().ok().map(|(text, _)| text);
                Ok(Kind::of(&unet, scheduler.as_deref(), encoders))
            }
            Origin::File(file) => {
                let shapes = file.shapes(Part::Unet);
                Kind::of_file(file, family_of(&shapes, encoders), &shapes)
            }
        }
    }

    /// The `model_index.json` of a folder with these parts.
    pub fn index(&self) -> Value {
        let (kind, xl) = (&self.kind, self.has(Part::TextEncoder2));
        let class = match (xl, kind.inpaint, kind.lcm) {
            (true, _, _) if kind.family == ImageFamily::SdxlRefiner => {
                "StableDiffusionXLImg2ImgPipeline"
            }
            (true, true, _) => "StableDiffusionXLInpaintPipeline",
            (true, false, _) => "StableDiffusionXLPipeline",
            (false, true, _) => "StableDiffusionInpaintPipeline",
            (false, false, true) => "LatentConsistencyModelPipeline",
            (false, false, false) => "StableDiffusionPipeline",
        };
        let schedule = kind.schedule();
        let mut index = json!({
            "_class_name": class,
            "scheduler": ["diffusers", schedule["_class_name"]],
        });
        for part in Part::ALL {
            let class = match part {
                Part::Unet => ["diffusers", "UNet2DConditionModel"],
                Part::Vae => ["diffusers", "AutoencoderKL"],
                Part::TextEncoder => ["transformers", "CLIPTextModel"],
                Part::TextEncoder2 => ["transformers", "CLIPTextModelWithProjection"],
            };
            index[part.folder()] = if self.has(part) { json!(class) } else { json!([null, null]) };
        }
        index
    }

    /// One line about the model: family, parts, layout.
    pub fn describe(&self) -> String {
        let parts: Vec<&str> = self.parts.keys().map(|p| p.name()).collect();
        let gguf = self.files().any(|file| file.gguf().is_some());
        let layout = match (&self.folder, gguf) {
            (Some(_), _) => "diffusers folder",
            (None, true) => "GGUF",
            (None, false) => "single file",
        };
        format!("{} ({layout}: {})", self.kind, parts.join(", "))
    }
}

/// `_class_name`, which is `[module, class]` for pipelines with code of their own.
fn class_of(index: &Value) -> &str {
    match index.get("_class_name") {
        Some(Value::String(name)) => name,
        Some(Value::Array(list)) => list.last().and_then(Value::as_str).unwrap_or_default(),
        _ => "",
    }
}
