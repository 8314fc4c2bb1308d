//! What depends on the prompt or on the step alone, computed once for all steps and pictures: keys and values
//! of every cross attention, and a table of the time embedding for every resnet.

use std::ops::Range;

use super::conditioning::Context;
use super::sampler::StepCoefficients;
use crate::gpu::{Buffer, Command, Elem, Gpu};
use crate::graph::{Graph, Plan, PlanOptions, Shape, Var};
use crate::nets::unet::{TimeConditions, UnetConfig, UnetContext, UnetTime, guidance_embedding};
use crate::nn::Loader;
use crate::weights::ImageFamily;
use crate::{Error, Result};

/// A value that one plan leaves for another.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    buffer: Buffer,
    shape: Shape,
}

impl Stored {
    pub fn new(buffer: Buffer, shape: impl Into<Shape>) -> Stored {
        Stored { buffer, shape: shape.into() }
    }
    pub fn var<'g>(&self, graph: &'g Graph, elem: Elem) -> Var<'g> {
        graph.external(&self.buffer, self.shape, elem)
    }
}

/// Keys and values of every cross attention.
pub(super) type KeysValues = Vec<[Stored; 2]>;

/// What tables depend on besides the steps and the prompts.
pub(super) struct About {
    pub guidance: f32,
    pub family: ImageFamily,
    /// Height and width in pixels.
    pub size: [usize; 2],
}

/// Something hoisted that was measured, not computed: its values have shapes and no memory.
pub(super) struct Measured<T> {
    pub values: T,
    /// Bytes while it is computed, weights aside.
    pub taken: u64,
    /// Bytes of what remains.
    pub kept: u64,
}

/// Hoisted computations of a UNet (or of a ControlNet, which has the same).
pub(super) struct Hoisted<'a> {
    pub gpu: &'a Gpu,
    pub act: Elem,
    pub plan: &'a PlanOptions,
    pub config: &'a UnetConfig,
}

/// Tables, how many of their rows belong to one step, and keys and values for each pass.
pub(super) type All = (Vec<Stored>, usize, Vec<KeysValues>);

impl Hoisted<'_> {
    /// Everything that `copies` pictures need in passes over these items. `loader` is asked for the root of
    /// the checkpoint twice: the nets are on the GPU one after the other.
    pub fn all<'l>(
        &self,
        loader: &dyn Fn() -> Result<Loader<'l>>,
        context: &Context,
        (groups, copies): (&[Range<usize>], usize),
        table: &[StepCoefficients],
        about: &About,
    ) -> Result<All> {
        let net = UnetTime::load(&loader()?, self.config)?;
        let (tables, rows) = self.time_tables(&net, context, table, about)?;
        drop(net);
        let net = UnetContext::load(&loader()?, self.config)?;
        let passes =
            groups.iter().map(|items| self.keys_values(&net, context, items.clone(), copies));
        Ok((tables, rows, passes.collect::<Result<_>>()?))
    }

    /// Keys and values for `copies` pictures of each of `items`, all of one item first. They are computed
    /// once for each item and copied.
    fn keys_values(
        &self,
        net: &UnetContext,
        context: &Context,
        items: Range<usize>,
        copies: usize,
    ) -> Result<KeysValues> {
        if net.is_empty() {
            return Ok(Vec::new());
        }
        let channels = self.config.cross_attention_dim;
        let each = context.values.len() / context.items;
        if each != context.tokens * channels {
            return Err(Error::Model(format!(
                "the text encoder gives {} channels, the UNet takes {channels} (`cross_attention_dim`); \
                 they belong to different models",
                each / context.tokens.max(1)
            )));
        }
        let graph = Graph::new(self.act);
        let pairs = self.record_keys_values(&graph, net, context.tokens, items.len());
        let plan = Plan::new(self.gpu, &graph, self.plan)?;
        plan.set("context", &context.values[items.start * each..items.end * each])?;
        plan.run()?;
        let stored = |name: String, var: &Var<'_>| -> Result<Stored> {
            self.repeated(plan.buffer(&name)?, var.shape(), copies)
        };
        let pairs = pairs.iter().enumerate();
        pairs
            .map(|(i, [k, v])| Ok([stored(format!("k{i}"), k)?, stored(format!("v{i}"), v)?]))
            .collect()
    }

    fn record_keys_values<'g>(
        &self,
        graph: &'g Graph,
        net: &UnetContext,
        tokens: usize,
        items: usize,
    ) -> Vec<[Var<'g>; 2]> {
        let shape = [items, tokens, self.config.cross_attention_dim];
        let pairs = net.keys_values(graph.input("context", shape, self.act));
        for (i, (k, v)) in pairs.iter().enumerate() {
            graph.output(&format!("k{i}"), *k);
            graph.output(&format!("v{i}"), *v);
        }
        pairs.into_iter().map(|(k, v)| [k, v]).collect()
    }

    /// `[items, ..]` → `[items · copies, ..]`, all copies of an item together.
    fn repeated(&self, buffer: &Buffer, shape: Shape, copies: usize) -> Result<Stored> {
        if copies == 1 {
            return Ok(Stored::new(buffer.clone(), shape));
        }
        let bytes = (shape.len() / shape.dims()[0].max(1)) as u64 * self.act.bytes();
        let (all, shape) = (shape.dims()[0] * copies, many(shape, copies));
        let to = self.gpu.buffer("keys and values", all as u64 * bytes)?;
        let copy = |i: usize| Command::Copy {
            from: buffer,
            from_offset: (i / copies) as u64 * bytes,
            to: &to,
            to_offset: i as u64 * bytes,
            bytes,
        };
        self.gpu.submit(&(0..all).map(copy).collect::<Vec<_>>())?;
        Ok(Stored::new(to, shape))
    }

    /// [`Hoisted::keys_values`] of so many items, measured.
    pub fn measure_keys_values(
        &self,
        net: &UnetContext,
        tokens: usize,
        items: usize,
        copies: usize,
    ) -> Result<Measured<KeysValues>> {
        if net.is_empty() {
            return Ok(Measured { values: Vec::new(), taken: 0, kept: 0 });
        }
        let graph = Graph::new(self.act);
        let pairs = self.record_keys_values(&graph, net, tokens, items);
        let footprint = Plan::footprint(self.gpu, &graph, self.plan)?;
        let nothing = self.gpu.buffer("nothing", 16)?;
        let numbers: usize = pairs.iter().flatten().map(|var| var.shape().len()).sum();
        let copied = numbers as u64 * copies as u64 * self.act.bytes();
        let stored = |var: Var<'_>| Stored::new(nothing.clone(), many(var.shape(), copies));
        let values = pairs.into_iter().map(|pair| pair.map(stored)).collect();
        Ok(match copies {
            1 => Measured { values, taken: footprint.bytes(), kept: footprint.outputs },
            _ => Measured { values, taken: footprint.bytes() + copied, kept: copied },
        })
    }

    /// Every resnet's share of the time embedding for every row of the schedule, and how many rows of a
    /// table belong to one of them.
    fn time_tables(
        &self,
        net: &UnetTime,
        context: &Context,
        table: &[StepCoefficients],
        about: &About,
    ) -> Result<(Vec<Stored>, usize)> {
        let graph = Graph::new(self.act);
        let vars = self.record_tables(&graph, net, context, table.len(), about);
        let plan = Plan::new(self.gpu, &graph, self.plan)?;
        plan.set("timesteps", &table.iter().map(|row| row.timestep).collect::<Vec<_>>())?;
        plan.run()?;
        let stored = |(i, var): (usize, &Var<'_>)| {
            Ok(Stored::new(plan.buffer(&format!("t{i}"))?.clone(), var.shape()))
        };
        let tables = vars.iter().enumerate().map(stored).collect::<Result<_>>()?;
        Ok((tables, self.rows(context)))
    }

    /// Rows of a table for one step.
    fn rows(&self, context: &Context) -> usize {
        if self.config.added().is_some() { context.items } else { 1 }
    }

    fn record_tables<'g>(
        &self,
        graph: &'g Graph,
        net: &UnetTime,
        context: &Context,
        steps: usize,
        about: &About,
    ) -> Vec<Var<'g>> {
        let mut conditions = TimeConditions::default();
        if let Some(dim) = self.config.time_cond_proj_dim {
            let embedding = guidance_embedding(about.guidance, dim);
            conditions.timestep_cond = Some(graph.literal([1, dim], embedding));
        }
        if self.config.added().is_some() {
            let rows = context.items;
            let n = context.pooled.len() / rows;
            let ids = time_ids(about.family, rows, about.size);
            let count = ids.len() / rows;
            let text = graph.literal([rows, n], context.pooled.clone());
            conditions.text_embeds = Some(text);
            conditions.time_ids = Some(graph.literal_f32([rows, count], ids));
        }
        let vars = net.table(graph.input("timesteps", [steps], Elem::F32), &conditions);
        for (i, var) in vars.iter().enumerate() {
            graph.output(&format!("t{i}"), *var);
        }
        vars
    }

    /// [`Hoisted::time_tables`] of so many evaluations, measured.
    pub fn measure_tables(
        &self,
        net: &UnetTime,
        items: usize,
        evaluations: usize,
        about: &About,
    ) -> Result<Measured<Vec<Stored>>> {
        let pooled = self.config.added().map_or(0, |added| {
            let sizes = time_ids(about.family, 1, about.size).len() * added.time_channels;
            added.channels.saturating_sub(sizes)
        });
        let pooled = vec![0.0; items * pooled];
        let context = Context { values: Vec::new(), pooled, items, tokens: 0 };
        let graph = Graph::new(self.act);
        let vars = self.record_tables(&graph, net, &context, evaluations, about);
        let footprint = Plan::footprint(self.gpu, &graph, self.plan)?;
        let nothing = self.gpu.buffer("nothing", 16)?;
        let values = vars.iter().map(|var| Stored::new(nothing.clone(), var.shape())).collect();
        Ok(Measured { values, taken: footprint.bytes(), kept: footprint.outputs })
    }
}

/// The shape of `copies` times as many items.
fn many(shape: Shape, copies: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    if let Some(items) = dims.first_mut() {
        *items *= copies;
    }
    Shape::new(&dims)
}

/// What SDXL is told of sizes besides the pooled text: the picture is a whole one of its own size. The
/// refiner gets an aesthetic score, as diffusers has it.
fn time_ids(family: ImageFamily, items: usize, [height, width]: [usize; 2]) -> Vec<f32> {
    let (h, w) = (height as f32, width as f32);
    let item = |i: usize| match family {
        ImageFamily::SdxlRefiner if i + 1 < items => vec![h, w, 0.0, 0.0, 2.5],
        ImageFamily::SdxlRefiner => vec![h, w, 0.0, 0.0, 6.0],
        _ => vec![h, w, 0.0, 0.0, h, w],
    };
    (0..items).flat_map(item).collect()
}
