//! How a model is loaded, and what its parts are loaded with.

use std::path::PathBuf;
use std::sync::Arc;

use super::embedding::Embedding;
use super::memory::MemoryPlan;
use super::run::Passes;
use super::schedule::ScheduleConfig;
use crate::Result;
use crate::gpu::Elem;
use crate::graph::PlanOptions;
use crate::nets::unet::UnetConfig;
use crate::nets::unet2d::Unet2dConfig;
use crate::nn::Loader;
use crate::quant::Recipe;
use crate::weights::lora::{Adapters, LoraNet};
use crate::weights::{ImageFamily, ImageModel, Part, WeightStore};

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// A recipe's name (int4, int8, fp16, fp32) or file.
    pub weights: String,
    /// How the UNet's and the text encoder's activations are stored; the VAE's are always f32, because
    /// its range exceeds f16 in real models.
    pub act: Elem,
    pub plan: PlanOptions,
    /// How the run is made to fit; None: everything at once.
    pub memory: Option<MemoryPlan>,
    /// Vectors of textual inversion.
    pub embeddings: Vec<Embedding>,
    /// LoRAs, as branches beside the weights.
    pub adapters: Option<Arc<Adapters>>,
    /// Folders or files of ControlNets.
    pub controls: Vec<PathBuf>,
    /// Side in latents of the VAE's tiles where they are asked for, whatever the memory.
    pub tile: Option<usize>,
    /// How guidance asks, where it is not left to the memory plan.
    pub passes: Option<Passes>,
    /// What makes previews while the run goes on, and so has to find memory beside it.
    pub previews: Option<Previews>,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            weights: "int4".into(),
            act: Elem::F32,
            plan: PlanOptions::default(),
            memory: None,
            embeddings: Vec::new(),
            adapters: None,
            controls: Vec::new(),
            tile: None,
            passes: None,
            previews: None,
        }
    }
}

impl LoadOptions {
    /// Whether weights pass through a pool on the GPU, and none but those of the plan stay there.
    pub(super) fn streams(&self) -> bool {
        self.memory.is_some_and(|memory| memory.resident.is_some())
    }
    /// How the parts of a run are planned.
    pub(super) fn plan_options(&self) -> PlanOptions {
        let largest = self.memory.map_or(0, |memory| memory.needs.largest);
        PlanOptions { stream_pool: largest, ..self.plan.clone() }
    }
}

/// What previews are made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Previews {
    /// A linear map, which is found before the run ([`Projection`](super::preview::Projection)).
    Projection,
    /// The model's own VAE, which is an AutoencoderTiny.
    Own,
    /// An AutoencoderTiny in a folder or file.
    Tiny(PathBuf),
}

/// A part's weights and the recipe for them.
pub(super) fn part(model: &ImageModel, part: Part, weights: &str) -> Result<(WeightStore, Recipe)> {
    Ok((model.store(part)?, Recipe::from_argument(weights, part.recipe())?))
}

/// The loader with the low-rank branches of a part.
pub(super) fn with_adapters<'a>(
    loader: Loader<'a>,
    part: Part,
    options: &'a LoadOptions,
) -> Result<Loader<'a>> {
    let net = match part {
        Part::Unet => LoraNet::Unet,
        Part::TextEncoder => LoraNet::TextEncoder,
        Part::TextEncoder2 => LoraNet::TextEncoder2,
        Part::Vae => return Ok(loader),
    };
    match &options.adapters {
        Some(adapters) => loader.with_adapters(adapters, net),
        None => Ok(loader),
    }
}

pub(super) fn schedule(model: &ImageModel) -> Result<ScheduleConfig> {
    let (text, source) = model.scheduler()?;
    ScheduleConfig::from_json(&text, &source.display().to_string())
}

pub(super) fn unet_config(model: &ImageModel) -> Result<UnetConfig> {
    let (fields, source) = model.config(Part::Unet)?;
    match model.kind().family {
        ImageFamily::Unconditional => Ok(Unet2dConfig::from_value(&fields, &source)?.unet),
        _ => UnetConfig::from_value(&fields, &source),
    }
}
