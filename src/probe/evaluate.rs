//! Runs the net of a golden folder on the folder's inputs. Results have the golden tensors' names and
//! layouts (torch's), so that they can be compared with them or with another run.

use std::path::Path;

use super::verify::Family;
use crate::gpu::{Elem, Gpu};
use crate::graph::{Graph, Kernels, Plan, PlanOptions, Var};
use crate::nets::clip::ClipTextConfig;
use crate::nets::controlnet::ControlNetConfig;
use crate::nets::language::{Language, LanguageConfig};
use crate::nets::taesd::TaesdConfig;
use crate::nets::unet::UnetConfig;
use crate::nets::unet2d::Unet2dConfig;
use crate::nets::vae::VaeConfig;
use crate::nn::Loader;
use crate::quant::Recipe;
use crate::tensor::Tensor;
use crate::weights::lora::{Adapters, LoraNet};
use crate::weights::{WeightStore, read_json};
use crate::{Error, Result};

/// Named tensors.
pub type Named = Vec<(String, Tensor)>;

/// The recipe that the user's word means for a family.
pub fn recipe(weights: &str, family: Family) -> Result<Recipe> {
    Recipe::from_argument(weights, family.recipe())
}

impl Family {
    /// Reads the configuration as the net will, for errors about what is not supported.
    pub(super) fn check(self, dir: &Path) -> Result<()> {
        match self {
            Family::Unet => UnetConfig::read(dir).map(drop),
            Family::Unet2d => Unet2dConfig::read(dir).map(drop),
            Family::ControlNet => ControlNetConfig::read(dir).map(drop),
            Family::Vae => VaeConfig::read(dir).map(drop),
            Family::Taesd => TaesdConfig::read(dir).map(drop),
            Family::ClipText => ClipTextConfig::read(dir).map(drop),
            Family::Language => LanguageConfig::read(dir).map(drop),
        }
    }
}

/// What all families need.
pub(super) struct Case<'a> {
    pub dir: &'a Path,
    pub golden: &'a [(String, Tensor)],
    pub kernels: Kernels,
    pub act: Elem,
    pub gpu: &'a Gpu,
    pub loader: Loader<'a>,
}

/// Every output and tapped value of the net in `dir` for the inputs in `golden`. Outputs come from a
/// plan as it is used, fused and with memory shared; taps from a second one that keeps them.
pub fn evaluate(
    dir: &Path,
    golden: &[(String, Tensor)],
    recipe: &Recipe,
    kernels: Kernels,
    act: Elem,
    gpu: &Gpu,
) -> Result<Named> {
    evaluate_with(dir, golden, recipe, kernels, act, gpu, &Adapters::default())
}

/// As [`evaluate`], with LoRAs beside the net's layers.
pub fn evaluate_with(
    dir: &Path,
    golden: &[(String, Tensor)],
    recipe: &Recipe,
    kernels: Kernels,
    act: Elem,
    gpu: &Gpu,
    adapters: &Adapters,
) -> Result<Named> {
    let config = read_json(dir, "config.json")?;
    let family = Family::detect(&config)
        .map_err(|other| Error::Model(format!("{}: {other} is not supported", dir.display())))?;
    let store = WeightStore::open(dir)?;
    let loader = Loader::new(gpu, &store, recipe);
    let loader = match family {
        Family::Unet => loader.with_adapters(adapters, LoraNet::Unet)?,
        Family::ClipText => loader.with_adapters(adapters, LoraNet::TextEncoder)?,
        _ => loader,
    };
    let case = Case { dir, golden, kernels, act, gpu, loader };
    match family {
        Family::Unet => case.unet(),
        Family::Unet2d => case.unet2d(),
        Family::ControlNet => case.controlnet(),
        Family::Vae => case.vae(),
        Family::Taesd => case.taesd(),
        Family::ClipText => case.clip(),
        Family::Language => case.language(),
    }
}

impl Case<'_> {
    pub(super) fn find(&self, name: &str) -> Option<&Tensor> {
        self.golden.iter().find(|(n, _)| n == name).map(|(_, tensor)| tensor)
    }
    /// A golden tensor of `rank` axes.
    pub(super) fn input(&self, name: &str, rank: usize) -> Result<&Tensor> {
        let missing = || {
            Error::Model(format!("{}: no golden tensor `{name}` to start from", self.dir.display()))
        };
        let tensor = self.find(name).ok_or_else(missing)?;
        match tensor.shape.len() == rank {
            true => Ok(tensor),
            false => Err(Error::Model(format!(
                "{}: golden tensor `{name}` has shape {:?}, needed are {rank} axes",
                self.dir.display(),
                tensor.shape
            ))),
        }
    }

    /// Runs a graph for one output as it is used, and again for its taps. `set` writes the inputs. The
    /// output comes first.
    pub(super) fn run(
        &self,
        graph: &Graph,
        name: &str,
        output: Var<'_>,
        set: impl Fn(&Plan) -> Result<()>,
    ) -> Result<Named> {
        self.run_all(graph, &[(name, output)], set)
    }

    /// As [`Case::run`] for several outputs, in this order.
    pub(super) fn run_all(
        &self,
        graph: &Graph,
        outputs: &[(&str, Var<'_>)],
        set: impl Fn(&Plan) -> Result<()>,
    ) -> Result<Named> {
        let run = |taps: bool| -> Result<Plan> {
            let options =
                PlanOptions { kernels: self.kernels, taps, poison: true, ..Default::default() };
            let plan = Plan::new(self.gpu, graph, &options)?;
            set(&plan)?;
            plan.run()?;
            Ok(plan)
        };
        outputs.iter().for_each(|(name, output)| graph.output(name, *output));
        let plan = run(false)?;
        let value = |(name, output): &(&str, Var<'_>)| -> Result<(String, Tensor)> {
            let value = Tensor::f32(output.shape().dims(), plan.read(name)?);
            Ok((name.to_string(), to_torch(value)))
        };
        let mut all = outputs.iter().map(value).collect::<Result<Named>>()?;
        let taps = run(true)?.taps()?;
        all.extend(taps.into_iter().map(|(name, t)| (format!("tap.{name}"), to_torch(t))));
        Ok(all)
    }

    fn language(&self) -> Result<Named> {
        let config = LanguageConfig::read(self.dir)?;
        let net = Language::load(&self.loader, &config)?;
        let tokens = token_ids(self.input("input_ids", 1)?);
        let cache = config.kv_cache(self.gpu, tokens.len(), self.act)?;
        let graph = Graph::new(self.act);
        let ids = graph.input("ids", [1, tokens.len()], Elem::U32);
        let start = graph.input("start", [1], Elem::U32);
        let logits = net.logits_all(ids, start, &cache);
        let mut all = self.run(&graph, "logits", logits, |plan| {
            plan.set_u32("ids", &tokens)?;
            plan.set_u32("start", &[0])
        })?;
        // transformers' hidden_states[n] is the stream after layer n − 1.
        for (name, _) in &mut all {
            let layer =
                name.strip_prefix("tap.model.layers.").and_then(|n| n.parse::<usize>().ok());
            if let Some(layer) = layer {
                *name = format!("hidden.{}", layer + 1);
            }
        }
        Ok(all)
    }
}

pub(super) fn token_ids(tensor: &Tensor) -> Vec<u32> {
    tensor.to_i64().into_iter().map(|id| u32::try_from(id).unwrap_or(u32::MAX)).collect()
}

/// `[B, C, H, W]` → `[B, H, W, C]`
pub(super) fn to_nhwc(tensor: &Tensor) -> ([usize; 4], Vec<f32>) {
    let (n, c, h, w) = (tensor.shape[0], tensor.shape[1], tensor.shape[2], tensor.shape[3]);
    ([n, h, w, c], swap(&tensor.to_f32(), n, c, h * w))
}

/// `[B, H, W, C]` → `[B, C, H, W]`; other ranks stay.
pub(super) fn to_torch(tensor: Tensor) -> Tensor {
    let [n, h, w, c] = tensor.shape[..] else { return tensor };
    Tensor::f32(&[n, c, h, w], swap(&tensor.to_f32(), n, h * w, c))
}

/// `[n, a, b]` → `[n, b, a]`
fn swap(values: &[f32], n: usize, a: usize, b: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for item in values.chunks_exact((a * b).max(1)).take(n) {
        for j in 0..b {
            out.extend((0..a).map(|i| item[i * b + j]));
        }
    }
    out
}
