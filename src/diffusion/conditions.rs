//! Everything of a run that does not depend on its seed, computed once and kept for the next run that asks for
//! the same: what pictures of a batch share.

use std::sync::{Arc, Mutex, MutexGuard};

use super::conditioning::{Context, Encode, TextEncoder};
use super::control::{ControlStored, Controls, ForRun};
use super::hoisted::{About, Hoisted, Stored};
use super::image::Image;
use super::load_options::{LoadOptions, part, with_adapters};
use super::prompt::PromptSyntax;
use super::request::Request;
use super::run::{Pass, Passes, groups};
use super::sampler::StepCoefficients;
use super::variant::Variant;
use crate::Result;
use crate::gpu::Gpu;
use crate::graph::PlanOptions;
use crate::nets::unet::UnetConfig;
use crate::nn::Loader;
use crate::weights::{ImageModel, Part};

/// What the steps of a run read.
pub(super) struct Conditions {
    pub tables: Vec<Stored>,
    /// Rows of a table for one step.
    pub rows: usize,
    pub passes: Vec<Pass>,
    pub controls: Vec<ControlStored>,
    pub warnings: Vec<String>,
}

/// What they depend on, besides the model and how it is loaded.
#[derive(PartialEq)]
pub(super) struct Key {
    prompts: [String; 2],
    syntax: PromptSyntax,
    clip_skip: usize,
    guided: bool,
    guidance: u64,
    size: [usize; 2],
    batch: usize,
    timesteps: Vec<u32>,
    controls: Vec<Image>,
}

impl Key {
    pub fn new(
        request: &Request,
        guided: bool,
        table: &[StepCoefficients],
        size: [usize; 2],
    ) -> Key {
        Key {
            prompts: [request.negative.clone(), request.prompt.clone()],
            syntax: request.syntax,
            clip_skip: request.clip_skip,
            guided,
            guidance: request.guidance.to_bits(),
            size,
            batch: request.batch,
            timesteps: table.iter().map(|row| row.timestep.to_bits()).collect(),
            controls: request.controls.iter().map(|control| control.image.clone()).collect(),
        }
    }
}

/// The conditions of the last run.
#[derive(Default)]
pub(super) struct LastConditions(Mutex<Option<(Key, Arc<Conditions>)>>);

impl LastConditions {
    fn last(&self) -> MutexGuard<'_, Option<(Key, Arc<Conditions>)>> {
        // A panic elsewhere leaves conditions that are still true, or none.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Those of `key`; `compute` is called where the last run had others.
    pub fn get(
        &self,
        key: Key,
        compute: impl FnOnce() -> Result<Conditions>,
    ) -> Result<Arc<Conditions>> {
        let mut last = self.last();
        if let Some((_, conditions)) = last.as_ref().filter(|(old, _)| *old == key) {
            return Ok(conditions.clone());
        }
        // Old and new ones are never in memory together.
        *last = None;
        let conditions = Arc::new(compute()?);
        *last = Some((key, conditions.clone()));
        Ok(conditions)
    }

    /// Forgets them, where what they were computed with changes.
    pub fn clear(&self) {
        *self.last() = None;
    }
}

/// Computes conditions.
pub(super) struct Conditioner<'a> {
    pub gpu: &'a Gpu,
    pub model: &'a ImageModel,
    pub options: &'a LoadOptions,
    pub plan: &'a PlanOptions,
    pub config: &'a UnetConfig,
    pub encoders: &'a [TextEncoder],
    pub controls: &'a Controls,
    /// The UNet's weights where they are not those of the options.
    pub variant: Option<&'a Variant>,
}

impl Conditioner<'_> {
    /// The conditions of a request, on whose `table` the run will go.
    ///
    /// # Errors
    /// `Usage` for prompts and control pictures that cannot be read, `Model` where parts do not fit together.
    pub fn compute(
        &self,
        request: &Request,
        guided: bool,
        table: &[StepCoefficients],
        about: &About,
    ) -> Result<Conditions> {
        let Conditioner { gpu, plan, .. } = *self;
        let act = self.options.act;
        let mut warnings = Vec::new();
        let context = match self.config.takes_prompt() {
            true => {
                let encode = Encode { gpu, act, plan, family: self.model.kind().family };
                encode.context(self.encoders, self.model, request, guided, &mut warnings)?
            }
            false => Context::none(),
        };
        let (tables, rows, passes) = self.hoist(&context, table, about, request.batch)?;
        if let Some(unused) = self.options.adapters.as_ref().map(|a| a.unused())
            && let Some(first) = unused.first()
        {
            let n = unused.len();
            warnings.push(format!("{n} modules of LoRAs have no layer here, for instance {first}"));
        }
        let (passes_of, streams) = (self.passes(&context), self.options.streams());
        let context = &context;
        let run = ForRun { gpu, act, plan, context, table, about, passes: passes_of, streams };
        let controls = self.controls.store(request, &run)?;
        // The driver frees what was needed on the way when its work is done.
        gpu.wait()?;
        Ok(Conditions { tables, rows, passes, controls, warnings })
    }

    fn passes(&self, context: &Context) -> Passes {
        match context.items {
            2 => self.options.memory.map_or(Passes::Joined, |memory| memory.passes),
            _ => Passes::Joined,
        }
    }

    /// Time tables, rows of a step in them, and the passes of a step with their keys and values.
    fn hoist(
        &self,
        context: &Context,
        table: &[StepCoefficients],
        about: &About,
        batch: usize,
    ) -> Result<(Vec<Stored>, usize, Vec<Pass>)> {
        let Conditioner { gpu, plan, config, options, .. } = *self;
        let hoisted = Hoisted { gpu, act: options.act, plan, config };
        let (store, recipe) = part(self.model, Part::Unet, &options.weights)?;
        let recipe = self.variant.map_or(recipe, |variant| variant.recipe.clone());
        let other = self.variant.and_then(|variant| variant.store.as_deref());
        let store = other.unwrap_or(&store);
        let loader = || {
            let loader = Loader::new(gpu, store, &recipe);
            let loader = match self.variant {
                Some(variant) => loader.sharing(&variant.cache),
                None => loader,
            };
            if options.streams() {
                loader.limit_resident(0);
            }
            with_adapters(loader, Part::Unet, options)
        };
        let groups = groups(context.items, self.passes(context));
        let (tables, rows, keys_values) =
            hoisted.all(&loader, context, (&groups, batch), table, about)?;
        let of_table = |item: usize| if rows == 1 { 0 } else { item as u32 };
        let passes = keys_values.into_iter().zip(groups).map(|(keys_values, items)| Pass {
            keys_values,
            items: items.flat_map(|i| std::iter::repeat_n(of_table(i), batch)).collect(),
        });
        Ok((tables, rows, passes.collect()))
    }
}
