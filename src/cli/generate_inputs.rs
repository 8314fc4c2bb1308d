//! What `inknib generate` was asked for: flags, over the record of a picture (`--from`), over defaults.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::common::{ActivationChoice, KernelChoice, ModelArgs};
use super::generate::{Args, WatchArgs, assemble, model_path};
use crate::diffusion::autoencoder::Autoencoder;
use crate::diffusion::embedding::Embedding;
use crate::diffusion::image::{INKNIB_CHUNK, Image, PARAMETERS_CHUNK, chunk, read_png};
use crate::diffusion::image_input::Mask;
use crate::diffusion::preview::PreviewKind;
use crate::diffusion::prompt::Prompt;
use crate::diffusion::record::{
    ControlNet as ControlRecord, InitImage, Lora as LoraRecord, Record, Source, fingerprint,
};
use crate::diffusion::sampler::Sampler;
use crate::diffusion::settings::Settings;
use crate::diffusion::text_to_image::{Control, LoadOptions, Passes, Previews, Request, Start};
use crate::quant::AUTO;
use crate::weights::lora::{Adapters, Lora, Strength};
use crate::weights::{ImageFamily, ImageModel};
use crate::{Error, Result};

/// Everything that a run needs, read and checked.
pub struct Inputs {
    pub model: ImageModel,
    /// The model's path as it was given, for records.
    pub model_name: String,
    pub request: Request,
    pub options: LoadOptions,
    pub kernels: KernelChoice,
    pub activations: ActivationChoice,
    pub watch: WatchArgs,
    /// Files that went in, for records.
    pub init_image: Option<InitImage>,
    pub mask: Option<Source>,
    pub controls: Vec<ControlRecord>,
    pub embeddings: Vec<Source>,
    pub loras: Vec<LoraRecord>,
    pub vae: Option<Source>,
    /// The place of the picture to keep, where a record names one of a batch.
    pub only: Option<usize>,
}

impl Inputs {
    /// Reads what the flags name.
    ///
    /// # Errors
    /// `Usage` for flags that do not go together, and as reading the files has them.
    pub fn new(args: &Args) -> Result<Inputs> {
        let from = args.from.as_deref().map(record_of).transpose()?;
        let from_ref = from.as_ref();
        let mut model_args = args.model.clone();
        if let (None, Some(record)) = (&model_args.model, from_ref) {
            model_args.model =
                Some(PathBuf::from(&record.model)).filter(|_| !record.model.is_empty());
        }
        let path = model_path(&model_args)?;
        let model = ImageModel::open(&path)?;
        let unprompted = model.kind().family == ImageFamily::Unconditional;
        if unprompted {
            args.refuse_prompted(&path)?;
        }
        let mut parts = args.parts.clone();
        if let (None, Some(vae)) = (&parts.vae, from_ref.and_then(|r| r.vae.as_ref())) {
            parts.vae = Some(PathBuf::from(&vae.path));
        }
        if parts.vae.is_none() {
            parts.vae = parts.taesd.clone();
        }
        let model = assemble(model, &parts)?;
        let mut request = request(args, from_ref, unprompted)?;
        let batch = from_ref.and_then(|r| r.batch).filter(|_| args.batch_size == 1);
        if let Some(batch) = batch {
            request.batch = batch.size;
        }
        let mut inputs = Inputs {
            model_name: model_args
                .model
                .unwrap_or_else(|| "demo-scenes".into())
                .display()
                .to_string(),
            kernels: args.model.kernels,
            activations: args.model.activations,
            watch: args.watch.clone(),
            init_image: None,
            mask: None,
            controls: Vec::new(),
            embeddings: Vec::new(),
            loras: Vec::new(),
            vae: parts.vae.as_deref().map(source).transpose()?,
            options: LoadOptions {
                weights: args.model.weights_for(&path).to_string(),
                ..LoadOptions::default()
            },
            request: Request::default(),
            model,
            only: batch.map(|batch| batch.index),
        };
        inputs.repeat(args, from_ref)?;
        inputs.previews(args)?;
        inputs.pictures(args, from_ref, &mut request)?;
        inputs.read_embeddings(args, from_ref)?;
        inputs.read_loras(args, from_ref, &request)?;
        request.check()?;
        inputs.request = request;
        Ok(inputs)
    }

    /// The picture of `inknib demo`.
    pub fn demo(model: &ModelArgs, path: &Path, prompt: &str) -> Result<Inputs> {
        let weights = model.weights_for(path).to_string();
        let request = Request { prompt: prompt.into(), seed: 7, ..Request::default() };
        Ok(Inputs {
            model: ImageModel::open(path)?,
            model_name: "demo-scenes".into(),
            request,
            options: LoadOptions { weights, ..LoadOptions::default() },
            kernels: model.kernels,
            activations: model.activations,
            watch: WatchArgs::default(),
            init_image: None,
            mask: None,
            controls: Vec::new(),
            embeddings: Vec::new(),
            loras: Vec::new(),
            vae: None,
            only: None,
        })
    }

    /// What a record says of the computation itself, where no flag says otherwise.
    fn repeat(&mut self, args: &Args, from: Option<&Record>) -> Result<()> {
        if args.parts.vae_tiling || args.parts.vae_tile_size.is_some() {
            let pixels = args.parts.vae_tile_size.unwrap_or(512);
            self.options.tile = Some((pixels / 8).next_multiple_of(4).max(4));
        }
        let Some(record) = from else { return Ok(()) };
        if args.model.weights == AUTO && !record.weights.format.is_empty() {
            self.options.weights = record.weights.format.clone();
        }
        if record.kernels == "reference" {
            self.kernels = KernelChoice::Reference;
        }
        if self.activations == ActivationChoice::Auto {
            self.activations = match record.activations.as_str() {
                "f32" => ActivationChoice::F32,
                "f16" => ActivationChoice::F16,
                _ => ActivationChoice::Auto,
            };
        }
        if let (None, Some(tiling)) = (self.options.tile, record.vae_tiling) {
            self.options.tile = Some((tiling.tile / 8).max(4));
        }
        if record.split_guidance {
            self.options.passes = Some(Passes::Apart);
        }
        Ok(())
    }

    /// What makes the previews.
    fn previews(&mut self, args: &Args) -> Result<()> {
        self.options.previews = match (args.watch.preview, &args.parts.taesd) {
            (None, _) => None,
            (Some(PreviewKind::Proj), _) => Some(Previews::Projection),
            // Then it is the VAE as well, unless another one is.
            (Some(PreviewKind::Tae), Some(tiny)) => Some(match &self.vae {
                Some(vae) if Path::new(&vae.path) != tiny => Previews::Tiny(tiny.clone()),
                _ => Previews::Own,
            }),
            (Some(PreviewKind::Tae), None) if Autoencoder::is_tiny(&self.model)? => {
                Some(Previews::Own)
            }
            (Some(PreviewKind::Tae), None) => {
                return Err(Error::Usage("--preview tae needs --taesd PATH".into()));
            }
        };
        Ok(())
    }

    /// The pictures that go in, each in the size that is painted.
    fn pictures(
        &mut self,
        args: &Args,
        from: Option<&Record>,
        request: &mut Request,
    ) -> Result<()> {
        let given = &args.pictures;
        let init = given.init_img.clone().or_else(|| {
            from.and_then(|r| r.init_image.as_ref()).map(|i| PathBuf::from(&i.file.path))
        });
        let mask = given
            .mask
            .clone()
            .or_else(|| from.and_then(|r| r.mask.as_ref()).map(|m| PathBuf::from(&m.path)));
        if let Some(path) = &init {
            let picture = Image::read(path)?;
            let step = self.size_step()?;
            let fit = |side: usize| (side / step).max(1) * step;
            let width = request.width.unwrap_or(fit(picture.width));
            let height = request.height.unwrap_or(fit(picture.height));
            (request.width, request.height) = (Some(width), Some(height));
            let mask = mask.map(|path| -> Result<Mask> {
                self.mask = Some(source(&path)?);
                Mask::read(&path, &picture, width, height)
            });
            let mask = mask.transpose()?;
            let usual = if mask.is_some() { 1.0 } else { 0.75 };
            let before = from.and_then(|r| r.init_image.as_ref()).map(|i| i.strength);
            let strength = given.strength.or(before).unwrap_or(usual);
            let image = picture.resized(width, height)?;
            request.start = Some(Start { image, strength, mask });
            self.init_image = Some(InitImage { file: source(path)?, strength });
        } else if given.strength.is_some() {
            return Err(Error::Usage("--strength needs a picture to start from: -i FILE".into()));
        }
        self.control_pictures(args, from, request)
    }

    fn control_pictures(
        &mut self,
        args: &Args,
        from: Option<&Record>,
        request: &mut Request,
    ) -> Result<()> {
        let given = &args.pictures;
        let mut all: Vec<(PathBuf, PathBuf, f64)> = Vec::new();
        if given.control_net.is_empty() && given.control_image.is_empty() {
            let before = from.map(|r| r.controlnets.as_slice()).unwrap_or_default();
            let one = |c: &ControlRecord| {
                (PathBuf::from(&c.model.path), PathBuf::from(&c.image.path), c.scale)
            };
            all.extend(before.iter().map(one));
        } else if given.control_net.len() != given.control_image.len() {
            return Err(Error::Usage(format!(
                "{} --control-net with {} --control-image; they go in pairs",
                given.control_net.len(),
                given.control_image.len()
            )));
        } else {
            let pairs = given.control_net.iter().zip(&given.control_image).enumerate();
            all.extend(pairs.map(|(i, (net, image))| {
                (net.clone(), image.clone(), given.control_strength.get(i).copied().unwrap_or(1.0))
            }));
        }
        if all.is_empty() {
            return Ok(());
        }
        let (width, height) = match (request.width, request.height) {
            (Some(width), Some(height)) => (width, height),
            (width, height) => {
                let (h, w) = self.default_size()?;
                (width.unwrap_or(w), height.unwrap_or(h))
            }
        };
        (request.width, request.height) = (Some(width), Some(height));
        for (net, picture, scale) in all {
            let image = Image::read(&picture)?.resized(width, height)?;
            request.controls.push(Control { image, scale });
            self.controls.push(ControlRecord {
                model: source_of_model(&net)?,
                image: source(&picture)?,
                scale,
                start: 0.0,
                end: 1.0,
            });
            self.options.controls.push(net);
        }
        Ok(())
    }

    fn read_embeddings(&mut self, args: &Args, from: Option<&Record>) -> Result<()> {
        let mut all: Vec<(Option<String>, PathBuf)> = Vec::new();
        for text in &args.parts.embedding {
            match text.split_once('=') {
                Some((name, path)) => all.push((Some(name.to_string()), PathBuf::from(path))),
                None => all.push((None, PathBuf::from(text))),
            }
        }
        if let (true, Some(record)) = (all.is_empty(), from) {
            let one = |s: &Source| (Some(s.name.clone()), PathBuf::from(&s.path));
            all.extend(record.embeddings.iter().map(one));
        }
        for (name, path) in all {
            let embedding = Embedding::read(&path, name.as_deref())?;
            self.embeddings.push(Source { name: embedding.name.clone(), ..source(&path)? });
            self.options.embeddings.push(embedding);
        }
        Ok(())
    }

    /// LoRAs of flags and of the prompt's `<lora:name:weight>`.
    fn read_loras(&mut self, args: &Args, from: Option<&Record>, request: &Request) -> Result<()> {
        let mut all: Vec<LoraRecord> = Vec::new();
        for text in &args.parts.lora {
            let (path, weight) = match text.rsplit_once(':') {
                Some((path, weight)) if weight.parse::<f64>().is_ok() => {
                    (path, weight.parse().unwrap_or(1.0))
                }
                _ => (text.as_str(), 1.0),
            };
            let file = source(Path::new(path))?;
            all.push(LoraRecord { file, unet: weight, text_encoder: weight });
        }
        let tags = Prompt::parse(&request.prompt, request.syntax)?.loras;
        let shelf = args.parts.lora_model_dir.as_deref();
        match (from, all.is_empty()) {
            (Some(record), true) if shelf.is_none() => all.extend(record.loras.iter().cloned()),
            _ => {
                for tag in tags {
                    let file =
                        Source { name: tag.name.clone(), ..source(&on_shelf(shelf, &tag.name)?)? };
                    all.push(LoraRecord { file, unet: tag.unet, text_encoder: tag.text_encoder });
                }
            }
        }
        if all.is_empty() {
            return Ok(());
        }
        let mut adapters = Adapters::default();
        for lora in &all {
            let (unet, text_encoder) = (lora.unet as f32, lora.text_encoder as f32);
            adapters.push_strength(Lora::open(&lora.file.path)?, Strength { unet, text_encoder });
        }
        self.options.adapters = Some(Arc::new(adapters));
        self.loras = all;
        Ok(())
    }

    /// Sides of pictures are multiples of this.
    fn size_step(&self) -> Result<usize> {
        crate::diffusion::text_to_image::size_step(&self.model)
    }
    fn default_size(&self) -> Result<(usize, usize)> {
        crate::diffusion::text_to_image::trained_size(&self.model)
    }
}

/// The record in a picture's chunks: ours, or as much as AUTOMATIC1111's text tells.
fn record_of(path: &Path) -> Result<Record> {
    let (_, text) = read_png(path)?;
    if let Some(own) = chunk(&text, INKNIB_CHUNK) {
        return Record::parse(own, path);
    }
    match chunk(&text, PARAMETERS_CHUNK) {
        Some(parameters) => {
            let mut record = Record::of_settings(&Settings::parse(parameters));
            // The name of a model in that text is no path.
            record.model = String::new();
            Ok(record)
        }
        None => Err(Error::Usage(format!(
            "--from {}: this picture does not say how it was made (no `inknib` and no `parameters` chunk)",
            path.display()
        ))),
    }
}

/// The request of the flags over a record; `unprompted`: for a model without a text encoder.
fn request(args: &Args, from: Option<&Record>, unprompted: bool) -> Result<Request> {
    let default = Request::default();
    if args.steps == Some(0) {
        return Err(Error::Usage("--steps 0 paints nothing; 20 to 30 are usual".into()));
    }
    if let Some(scale) = args.cfg_scale.filter(|scale| !scale.is_finite() || *scale < 0.0) {
        return Err(Error::Usage(format!("--cfg-scale {scale}: give 1 to 15")));
    }
    let text = |given: &Option<String>, before: fn(&Record) -> &String| {
        given.clone().or_else(|| from.map(|r| before(r).clone()))
    };
    let prompt = text(&args.prompt, |r| &r.prompt).or(unprompted.then(String::new));
    let Some(prompt) = prompt else {
        return Err(Error::Usage(
            "what shall be painted? give -p \"…\", or --from a picture".into(),
        ));
    };
    let name = args
        .sampling_method
        .clone()
        .or_else(|| from.map(|r| r.sampler.clone()).filter(|name| !name.is_empty()));
    let (sampler, spacing) = match name {
        Some(name) => {
            let (sampler, spacing) = Sampler::parse_with_spacing(&name)?;
            (Some(sampler), spacing)
        }
        None => (None, None),
    };
    let before = from.and_then(|r| r.scheduler.clone()).filter(|_| args.sampling_method.is_none());
    let before = before.map(|name| name.parse()).transpose()?;
    let positive = |n: usize| (n > 0).then_some(n);
    let clip = args.clip_skip.or_else(|| from.and_then(|r| r.clip_skip)).unwrap_or(1);
    let rng = match (args.rng, from.map(|r| r.rng.as_str()).filter(|rng| !rng.is_empty())) {
        (Some(rng), _) => rng,
        (None, Some(name)) => name.parse()?,
        (None, None) => default.rng,
    };
    Ok(Request {
        prompt,
        negative: text(&args.negative_prompt, |r| &r.negative_prompt).unwrap_or_default(),
        syntax: args.prompt_syntax.or(from.map(|r| r.prompt_syntax)).unwrap_or_default(),
        width: args.width.or_else(|| from.and_then(|r| positive(r.width))),
        height: args.height.or_else(|| from.and_then(|r| positive(r.height))),
        steps: args.steps.or_else(|| from.and_then(|r| positive(r.steps))).unwrap_or(default.steps),
        guidance: match unprompted {
            true => 1.0,
            false => args.cfg_scale.or(from.map(|r| r.cfg_scale)).unwrap_or(default.guidance),
        },
        guidance_rescale: args
            .guidance_rescale
            .or_else(|| from.and_then(|r| r.cfg_rescale))
            .unwrap_or(default.guidance_rescale),
        seed: args.seed.or(from.map(|r| r.seed)).unwrap_or(default.seed),
        rng,
        batch: args.batch_size,
        sampler,
        spacing: args.scheduler.or(before).or(spacing),
        prediction: args.prediction,
        clip_skip: clip.max(1) - 1,
        ..default
    })
}

/// The file of a LoRA that a prompt names.
fn on_shelf(shelf: Option<&Path>, name: &str) -> Result<PathBuf> {
    let Some(shelf) = shelf else {
        return Err(Error::Usage(format!(
            "the prompt asks for <lora:{name}>; say where it lies with --lora-model-dir DIR"
        )));
    };
    let path = shelf.join(format!("{name}.safetensors"));
    match path.is_file() {
        true => Ok(path),
        false => {
            let files = std::fs::read_dir(shelf).map_err(|e| Error::io(shelf, e))?;
            let names = files.filter_map(|f| f.ok()?.file_name().into_string().ok());
            let names: Vec<String> =
                names.filter_map(|n| Some(n.strip_suffix(".safetensors")?.to_string())).collect();
            Err(Error::Usage(format!(
                "{}: there is no such LoRA{}",
                path.display(),
                crate::weights::nearest_names(name, names.iter().map(String::as_str))
            )))
        }
    }
}

/// A file with its fingerprint.
pub(super) fn source(path: &Path) -> Result<Source> {
    let hash = match path.is_file() {
        true => fingerprint([path])?,
        false => String::new(),
    };
    Ok(Source { name: String::new(), path: path.display().to_string(), hash })
}

/// A folder of a net with the fingerprint of its weights.
fn source_of_model(path: &Path) -> Result<Source> {
    let store = crate::weights::WeightStore::open(path)?;
    let hash = fingerprint(store.files())?;
    Ok(Source { name: String::new(), path: path.display().to_string(), hash })
}

/// `picture.png`, `picture_2.png`, …
pub(super) fn numbered(output: &Path, index: usize) -> PathBuf {
    if index == 0 {
        return output.to_path_buf();
    }
    let stem = output.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let name = match output.extension() {
        Some(ending) => format!("{stem}_{}.{}", index + 1, ending.to_string_lossy()),
        None => format!("{stem}_{}", index + 1),
    };
    output.with_file_name(name)
}
