//! ControlNets beside the UNet: their pictures, tables, keys and values are computed once, their residuals
//! in every step.

use std::path::{Path, PathBuf};

use super::conditioning::Context;
use super::hoisted::{About, Hoisted, KeysValues, Stored};
use super::request::{Control, Request};
use super::run::{Passes, groups};
use super::sampler::StepCoefficients;
use super::sizes::check_size;
use super::text_to_image::OnTensor;
use crate::gpu::{Elem, Gpu};
use crate::graph::{Graph, Plan, PlanOptions, Var};
use crate::nets::controlnet::{ControlNet, ControlNetConfig, ControlPicture};
use crate::nets::unet::{Residuals, UnetConfig};
use crate::nn::{LoadReport, Loader};
use crate::quant::Recipe;
use crate::weights::WeightStore;
use crate::{Error, Result};

/// A ControlNet that is loaded.
struct Loaded {
    path: PathBuf,
    net: ControlNet,
    config: ControlNetConfig,
}

/// The ControlNets of a model.
#[derive(Default)]
pub(super) struct Controls {
    loaded: Vec<Loaded>,
    report: LoadReport,
    weights: String,
}

/// What a ControlNet computes once for a picture, a prompt and a schedule.
#[derive(Clone)]
pub(super) struct ControlStored {
    pub picture: Stored,
    pub tables: Vec<Stored>,
    /// For each pass.
    pub keys_values: Vec<KeysValues>,
}

/// One ControlNet's share of a run.
pub(super) struct ControlPart<'a> {
    pub net: &'a ControlNet,
    pub stored: &'a ControlStored,
    pub scale: f32,
}

impl ControlPart<'_> {
    /// Records what it adds in pass `pass` to a UNet that reads `x`.
    pub fn residuals<'g>(
        &self,
        graph: &'g Graph,
        act: Elem,
        x: Var<'g>,
        row: Var<'g>,
        pass: usize,
    ) -> Residuals<'g> {
        let ControlStored { picture, tables, keys_values } = self.stored;
        let tables: Vec<Var<'g>> = tables.iter().map(|t| t.var(graph, act)).collect();
        let pairs = keys_values[pass].iter();
        let kv: Vec<_> = pairs.map(|[k, v]| (k.var(graph, act), v.var(graph, act))).collect();
        let scale = graph.literal([1], vec![self.scale]);
        self.net.forward(x, picture.var(graph, act), &tables, row, &kv, scale)
    }
}

/// What a ControlNet is given to compute what is the same in every step.
pub(super) struct ForRun<'a> {
    pub gpu: &'a Gpu,
    pub act: Elem,
    pub plan: &'a PlanOptions,
    pub context: &'a Context,
    pub table: &'a [StepCoefficients],
    pub about: &'a About,
    pub passes: Passes,
    /// Weights pass through the plan's pool.
    pub streams: bool,
}

/// The configuration and the checkpoint of a ControlNet that fits a UNet.
///
/// # Errors
/// `Model` for one that belongs to another UNet.
pub(super) fn open(path: &Path, unet: &UnetConfig) -> Result<(ControlNetConfig, WeightStore)> {
    let config = ControlNetConfig::read(path)?;
    let (ours, theirs) = (unet.cross_attention_dim, config.unet.cross_attention_dim);
    let (own, other) = (&unet.block_out_channels, &config.unet.block_out_channels);
    if ours != theirs || own != other {
        return Err(Error::Model(format!(
            "{}: a ControlNet for a UNet of {other:?} channels and a context of {theirs}; this UNet \
             has {own:?} and {ours}: it belongs to another base model",
            path.display()
        )));
    }
    Ok((config, WeightStore::open(path)?))
}

/// The recipe of ControlNets is that of UNets.
pub(super) fn recipe(weights: &str) -> Result<Recipe> {
    Recipe::from_argument(weights, "unet")
}

impl Controls {
    /// Loads ControlNets from folders with `config.json` and weights. Of `room` bytes of matrices that may
    /// become resident it leaves what it does not take; without a limit all do.
    ///
    /// # Errors
    /// As [`open`].
    pub fn load(
        gpu: &Gpu,
        paths: &[PathBuf],
        weights: &str,
        unet: &UnetConfig,
        room: &mut Option<u64>,
        on_tensor: &OnTensor<'_>,
    ) -> Result<Controls> {
        let mut controls = Controls { weights: weights.to_string(), ..Controls::default() };
        for path in paths {
            let (config, store) = open(path, unet)?;
            let recipe = recipe(weights)?;
            let loader = Loader::with_progress(gpu, &store, &recipe, Some(on_tensor));
            if let Some(room) = room {
                loader.limit_resident(*room);
            }
            let net = ControlNet::load(&loader, &config)?;
            *room = room.map(|room| room.saturating_sub(loader.report().resident_bytes()));
            controls.report.merge(loader.report());
            controls.loaded.push(Loaded { path: path.clone(), net, config });
        }
        Ok(controls)
    }

    /// What is resident, and what is streamed.
    pub fn report(&self) -> LoadReport {
        self.report.clone()
    }

    /// What each ControlNet computes once for a run.
    ///
    /// # Errors
    /// `Usage` where pictures and ControlNets do not pair up.
    pub fn store(&self, request: &Request, run: &ForRun<'_>) -> Result<Vec<ControlStored>> {
        if request.controls.len() != self.loaded.len() {
            return Err(Error::Usage(format!(
                "{} control pictures for {} ControlNets; give one --control-image for each --control-net",
                request.controls.len(),
                self.loaded.len()
            )));
        }
        let pairs = self.loaded.iter().zip(&request.controls);
        pairs.map(|(loaded, control)| self.store_one(loaded, control, request.batch, run)).collect()
    }

    fn store_one(
        &self,
        loaded: &Loaded,
        control: &Control,
        batch: usize,
        run: &ForRun<'_>,
    ) -> Result<ControlStored> {
        let Loaded { path, config, .. } = loaded;
        let (store, recipe) = (WeightStore::open(path)?, recipe(&self.weights)?);
        let loader = || {
            let loader = Loader::new(run.gpu, &store, &recipe);
            if run.streams {
                loader.limit_resident(0);
            }
            Ok(loader)
        };
        let unet = &config.unet;
        let hoisted = Hoisted { gpu: run.gpu, act: run.act, plan: run.plan, config: unet };
        let groups = groups(run.context.items, run.passes);
        let (tables, _, keys_values) =
            hoisted.all(&loader, run.context, (&groups, batch), run.table, run.about)?;
        check_size("the control picture", &control.image, run.about.size)?;
        let graph = Graph::new(run.act);
        let embedded = record_picture(&graph, &loader()?, config, run.about.size)?;
        let plan = Plan::new(run.gpu, &graph, run.plan)?;
        plan.set("picture", &control.image.to_f32())?;
        plan.run()?;
        let picture = Stored::new(plan.buffer("embedded")?.clone(), embedded.shape());
        Ok(ControlStored { picture, tables, keys_values })
    }

    /// Each ControlNet's share of a run.
    pub fn parts<'a>(
        &'a self,
        request: &Request,
        stored: &'a [ControlStored],
    ) -> Vec<ControlPart<'a>> {
        let all = self.loaded.iter().zip(stored).zip(&request.controls);
        let part = |((loaded, stored), control): ((&'a Loaded, &'a ControlStored), &Control)| {
            ControlPart { net: &loaded.net, stored, scale: control.scale as f32 }
        };
        all.map(part).collect()
    }
}

/// Records the way of a control picture to the size of the latents, `picture` → `embedded`.
pub(super) fn record_picture<'g>(
    graph: &'g Graph,
    loader: &Loader<'_>,
    config: &ControlNetConfig,
    [height, width]: [usize; 2],
) -> Result<Var<'g>> {
    let net = ControlPicture::load(loader, config)?;
    let embedded = net.forward(graph.input("picture", [1, height, width, 3], graph.act()));
    graph.output("embedded", embedded);
    Ok(embedded)
}
