//! ControlNets beside the UNet: their pictures, tables, keys and values are computed once, their residuals
//! in every step.

use std::path::PathBuf;

use super::conditioning::{About, Context, Hoisted, KeysValues, Stored};
use super::request::{Control, Request};
use super::run::Passes;
use super::sampler::StepCoefficients;
use super::text_to_image::{OnTensor, groups};
use crate::gpu::{Elem, Gpu};
use crate::graph::{Graph, Plan, PlanOptions, Var};
use crate::nets::controlnet::{ControlNet, ControlNetConfig, ControlPicture};
use crate::nets::unet::{Residuals, UnetConfig, UnetContext, UnetTime};
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

/// One ControlNet's share of a run.
pub(super) struct ControlPart<'a> {
    net: &'a ControlNet,
    picture: Stored,
    tables: Vec<Stored>,
    /// For each pass.
    keys_values: Vec<KeysValues>,
    scale: f32,
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
        let tables: Vec<Var<'g>> = self.tables.iter().map(|t| t.var(graph, act)).collect();
        let pairs = self.keys_values[pass].iter();
        let kv: Vec<_> = pairs.map(|[k, v]| (k.var(graph, act), v.var(graph, act))).collect();
        let scale = graph.literal([1], vec![self.scale]);
        self.net.forward(x, self.picture.var(graph, act), &tables, row, &kv, scale)
    }
}

/// What the parts of a run are made with.
pub(super) struct ForRun<'a> {
    pub gpu: &'a Gpu,
    pub act: Elem,
    pub plan: &'a PlanOptions,
    pub context: &'a Context,
    pub table: &'a [StepCoefficients],
    pub about: &'a About,
    pub passes: Passes,
}

impl Controls {
    /// Loads ControlNets from folders with `config.json` and weights.
    ///
    /// # Errors
    /// `Model` for one that belongs to another UNet.
    pub fn load(
        gpu: &Gpu,
        paths: &[PathBuf],
        weights: &str,
        unet: &UnetConfig,
        on_tensor: &OnTensor<'_>,
    ) -> Result<Controls> {
        let mut controls = Controls { weights: weights.to_string(), ..Controls::default() };
        for path in paths {
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
            let (store, recipe) = controls.open(path)?;
            let loader = Loader::with_progress(gpu, &store, &recipe, Some(on_tensor));
            let net = ControlNet::load(&loader, &config)?;
            controls.report.merge(loader.report());
            controls.loaded.push(Loaded { path: path.clone(), net, config });
        }
        Ok(controls)
    }

    fn open(&self, path: &PathBuf) -> Result<(WeightStore, Recipe)> {
        Ok((WeightStore::open(path)?, Recipe::from_argument(&self.weights, "unet")?))
    }

    /// What is resident.
    pub fn report(&self) -> LoadReport {
        self.report.clone()
    }

    /// What each ControlNet computes once for a run.
    ///
    /// # Errors
    /// `Usage` where pictures and ControlNets do not pair up.
    pub fn parts(&self, request: &Request, run: &ForRun<'_>) -> Result<Vec<ControlPart<'_>>> {
        if request.controls.len() != self.loaded.len() {
            return Err(Error::Usage(format!(
                "{} control pictures for {} ControlNets; give one --control-image for each --control-net",
                request.controls.len(),
                self.loaded.len()
            )));
        }
        let pairs = self.loaded.iter().zip(&request.controls);
        pairs.map(|(loaded, control)| self.part(loaded, control, request.batch, run)).collect()
    }

    fn part<'a>(
        &self,
        loaded: &'a Loaded,
        control: &Control,
        batch: usize,
        run: &ForRun<'_>,
    ) -> Result<ControlPart<'a>> {
        let Loaded { path, net, config } = loaded;
        let (store, recipe) = self.open(path)?;
        let loader = Loader::new(run.gpu, &store, &recipe);
        let unet = &config.unet;
        let hoisted = Hoisted { gpu: run.gpu, act: run.act, plan: run.plan, config: unet };
        let time = UnetTime::load(&loader, unet)?;
        let (tables, _) = hoisted.time_tables(&time, run.context, run.table, run.about)?;
        drop(time);
        let net_kv = UnetContext::load(&loader, unet)?;
        let groups = groups(run.context.items, run.passes).into_iter();
        let keys_values = groups
            .map(|items| hoisted.keys_values(&net_kv, run.context, items, batch))
            .collect::<Result<_>>()?;
        let [height, width] = run.about.size;
        super::size::check_size("the control picture", &control.image, [height, width])?;
        let graph = Graph::new(run.act);
        let embed = ControlPicture::load(&loader, config)?;
        let picture = embed.forward(graph.input("picture", [1, height, width, 3], run.act));
        graph.output("embedded", picture);
        let plan = Plan::new(run.gpu, &graph, run.plan)?;
        plan.set("picture", &control.image.to_f32())?;
        plan.run()?;
        let picture = Stored::new(plan.buffer("embedded")?.clone(), picture.shape());
        let scale = control.scale as f32;
        Ok(ControlPart { net, picture, tables, keys_values, scale })
    }
}
