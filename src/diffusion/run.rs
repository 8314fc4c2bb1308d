//! A request on its way: the plan of one evaluation (scale, UNet, guidance, sampler), its state on the
//! GPU, and the loop that replays it without a read-back.

use super::control::ControlPart;
use super::hoisted::{KeysValues, Stored};
use super::rng::Rng;
use super::sampler::{COEFFICIENTS, Sampler, StepCoefficients};
use crate::gpu::{Buffer, Elem, Gpu};
use crate::graph::{Graph, Launch, Plan, PlanOptions, Var};
use crate::nets::unet::{Residuals, Unet};
use crate::ops::assign::assign;
use crate::ops::concat::cat;
use crate::ops::guidance::Answer;
use crate::ops::sampler::{MEMORY, model_input, predict_value, remember, step};
use crate::{Error, Result};

/// How guidance asks the UNet twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passes {
    /// One batch of twice as many pictures: the weights are read once.
    #[default]
    Joined,
    /// One after the other: half of the activations.
    Apart,
}

/// Items of the context that are asked together.
pub(super) fn groups(items: usize, passes: Passes) -> Vec<std::ops::Range<usize>> {
    match passes {
        Passes::Joined => std::iter::once(0..items).collect(),
        Passes::Apart => (0..items).map(|i| i..i + 1).collect(),
    }
}

/// What stands beside the latents in the UNet's input or in the plan's output.
#[derive(Clone, Debug)]
pub(super) enum Inpaint {
    /// Nothing: the whole picture is painted.
    No,
    /// A UNet of nine channels: mask and masked picture `[n, h, w, 5]` are read with the latents.
    Channels(Vec<f32>),
    /// Any UNet: after each row what lies outside the mask becomes the noised original again.
    Blend(Known),
}

/// The picture outside the mask, all `[n, h, w, c]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub clean: Vec<f32>,
    pub noise: Vec<f32>,
    /// 1 where to paint, 0 where to keep.
    pub mask: Vec<f32>,
}

/// One prompt's (or two joined prompts') share of a plan.
#[derive(Clone)]
pub(super) struct Pass {
    pub keys_values: KeysValues,
    /// Of each picture in the batch, which of the `rows` of its step in the time tables it reads.
    pub items: Vec<u32>,
}

/// What a plan is recorded from.
pub(super) struct Parts<'a> {
    pub gpu: &'a Gpu,
    pub act: Elem,
    pub options: &'a PlanOptions,
    pub unet: &'a Unet,
    pub tables: &'a [Stored],
    pub passes: &'a [Pass],
    pub rescale: bool,
    /// `[n, h, w, c]`
    pub shape: [usize; 4],
    pub controls: &'a [ControlPart<'a>],
}

/// Where the latents and the sampler's memory are; buffers of any size serve to measure a plan.
pub(super) struct State<'a> {
    pub latent: &'a Buffer,
    pub memory: &'a Buffer,
}

impl Parts<'_> {
    /// Records one row of the table: scale, UNet, guidance, sampler.
    pub fn record<'g>(&self, graph: &'g Graph, state: &State<'_>, inpaint: &Inpaint) -> Result<()> {
        let shape = self.shape;
        let [n, h, w, c] = shape;
        let x = graph.external(state.latent, shape, Elem::F32);
        let memory = graph.external(state.memory, [MEMORY * n, h, w, c], Elem::F32);
        let noise = graph.input("noise", shape, Elem::F32);
        let coefficients = graph.input("coefficients", [COEFFICIENTS], Elem::F32);
        let tables: Vec<Var<'g>> = self.tables.iter().map(|t| t.var(graph, self.act)).collect();
        let mut answers = Vec::new();
        for (i, pass) in self.passes.iter().enumerate() {
            let copies = pass.items.len() / n;
            let scaled = model_input(x, coefficients, copies);
            let mut input = scaled;
            if let Inpaint::Channels(_) = inpaint {
                let extra = graph.input("inpaint", [copies * n, h, w, c + 1], self.act);
                input = cat(input, extra);
            }
            let row = graph.input(&format!("row{i}"), [copies * n], Elem::U32);
            let kv: Vec<(Var<'g>, Var<'g>)> = pass
                .keys_values
                .iter()
                .map(|[k, v]| (k.var(graph, self.act), v.var(graph, self.act)))
                .collect();
            let control = |part: &ControlPart<'_>| part.residuals(graph, self.act, scaled, row, i);
            let controls: Vec<Residuals<'g>> = self.controls.iter().map(control).collect();
            answers.push(self.unet.controlled(input, &tables, row, &kv, &controls));
        }
        let answer: Answer<'g> = match answers[..] {
            [one] => {
                graph.output("eps", one.tap("eps"));
                one.into()
            }
            [without, with] => Answer::pair(without, with),
            _ => return Err(Error::Runtime(format!("{} answers, not 1 or 2", answers.len()))),
        };
        let answer = if self.rescale { answer.rescaled(n, coefficients) } else { answer };
        let value = predict_value(x, answer, coefficients);
        let mut next = step(x, value, memory, noise, coefficients);
        if let Inpaint::Blend(_) = inpaint {
            let mask = graph.input("mask", shape, Elem::F32);
            next = mask * next + graph.input("known", shape, Elem::F32);
        }
        graph.output("memory", remember(memory, x, value, coefficients));
        graph.output("next", assign(x, next));
        Ok(())
    }
}

/// Where a run stands between two evaluations.
#[derive(Clone, Debug, Default)]
pub struct RunState {
    /// `[batch, height/8, width/8, channels]`
    pub latents: Vec<f32>,
    /// The sampler's older values and its kept sample.
    memory: Vec<f32>,
}

/// A request on its way.
pub struct Run {
    gpu: Gpu,
    plan: Plan,
    table: Vec<StepCoefficients>,
    rng: Rng,
    latent: Buffer,
    memory: Buffer,
    guidance: [f32; 2],
    /// For each pass, which row of its step each picture reads, and how many rows a step has.
    items: Vec<Vec<u32>>,
    rows: u32,
    inpaint: Inpaint,
    shape: [usize; 4],
    sampler: Sampler,
    pub(super) warnings: Vec<String>,
}

/// What a run starts from besides its plan's parts.
pub(super) struct Begin {
    pub table: Vec<StepCoefficients>,
    pub rng: Rng,
    pub latents: Vec<f32>,
    /// Scale and rescale.
    pub guidance: [f32; 2],
    pub rows: u32,
    pub inpaint: Inpaint,
    pub sampler: Sampler,
    pub warnings: Vec<String>,
}

impl Run {
    pub(super) fn new(parts: &Parts<'_>, begin: Begin) -> Result<Run> {
        let gpu = parts.gpu.clone();
        let latent = gpu.upload("latents", bytemuck::cast_slice(&begin.latents))?;
        let empty = vec![0f32; MEMORY * begin.latents.len()];
        let memory = gpu.upload("sampler", bytemuck::cast_slice(&empty))?;
        let graph = Graph::new(parts.act);
        parts.record(&graph, &State { latent: &latent, memory: &memory }, &begin.inpaint)?;
        let plan = Plan::new(&gpu, &graph, parts.options)?;
        let Begin { table, rng, guidance, rows, inpaint, sampler, warnings, .. } = begin;
        match &inpaint {
            Inpaint::No => {}
            Inpaint::Channels(extra) => {
                let copies = parts.passes[0].items.len() / parts.shape[0];
                plan.set("inpaint", &extra.repeat(copies))?;
            }
            Inpaint::Blend(known) => plan.set("mask", &known.mask)?,
        }
        let items = parts.passes.iter().map(|pass| pass.items.clone()).collect();
        let shape = parts.shape;
        let run = Run {
            gpu,
            plan,
            table,
            rng,
            latent,
            memory,
            guidance,
            items,
            rows,
            inpaint,
            shape,
            sampler,
            warnings,
        };
        Ok(run)
    }

    /// Evaluations of the network; a step of some samplers takes two.
    pub fn steps(&self) -> usize {
        self.table.len()
    }
    /// The schedule's coefficients.
    pub fn table(&self) -> &[StepCoefficients] {
        &self.table
    }
    /// `[batch, height/8, width/8, channels]`
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }
    /// Where the latents are.
    pub fn latent(&self) -> &Buffer {
        &self.latent
    }
    /// The plan of one evaluation.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// Submits evaluation `i`: one submission where nothing is streamed, no wait.
    pub fn step(&mut self, i: usize) -> Result<()> {
        let row = self.table[i];
        let [guidance, rescale] = self.guidance;
        self.plan.set("coefficients", &row.with_guidance(guidance, rescale))?;
        for (pass, items) in self.items.iter().enumerate() {
            let rows: Vec<u32> = items.iter().map(|item| i as u32 * self.rows + item).collect();
            self.plan.set_u32(&format!("row{pass}"), &rows)?;
        }
        if row.needs_noise() {
            let [n, h, w, c] = self.shape;
            self.plan.set("noise", &self.rng.randn_nhwc(n, h, w, c))?;
        }
        if let Inpaint::Blend(known) = &self.inpaint {
            self.plan.set("known", &known.at(self.table.get(i + 1)))?;
        }
        self.plan.run()
    }

    /// Milliseconds of each launch of a step (run once to warm up); empty without timestamps.
    pub fn profile(&mut self) -> Result<Vec<(Launch, f64)>> {
        self.step(0)?;
        Ok(self.plan.profile()?.unwrap_or_default())
    }

    /// Reads the latents, NHWC.
    pub fn latents(&self) -> Result<Vec<f32>> {
        let count: usize = self.shape.iter().product();
        Ok(bytemuck::pod_collect_to_vec(&self.gpu.read(&self.latent, 0, count as u64 * 4)?))
    }
    /// Replaces the latents.
    pub fn set_latents(&self, values: &[f32]) -> Result<()> {
        self.gpu.write(&self.latent, 0, bytemuck::cast_slice(values))
    }
    /// Reads everything that the next evaluation starts from, fresh noise aside.
    pub fn state(&self) -> Result<RunState> {
        let count: usize = self.shape.iter().product();
        let bytes = self.gpu.read(&self.memory, 0, (MEMORY * count * 4) as u64)?;
        Ok(RunState { latents: self.latents()?, memory: bytemuck::pod_collect_to_vec(&bytes) })
    }
    /// Goes on from there: the state of a run of the same request.
    pub fn set_state(&self, state: &RunState) -> Result<()> {
        self.set_latents(&state.latents)?;
        self.gpu.write(&self.memory, 0, bytemuck::cast_slice(&state.memory))
    }
    /// The UNet's output at the last step, `[batch, h, w, c]`: unconditional first under guidance.
    ///
    /// # Errors
    /// `Runtime` where guidance asks in two passes.
    pub fn eps(&self) -> Result<Vec<f32>> {
        self.plan.read("eps")
    }
}

impl Known {
    /// (1 − mask) times the original, noised as much as the next row expects; clean after the last.
    fn at(&self, next: Option<&StepCoefficients>) -> Vec<f32> {
        let [a, b] = next.map_or([1.0, 0.0], |row| row.start);
        let all = self.clean.iter().zip(&self.noise).zip(&self.mask);
        all.map(|((clean, noise), mask)| (1.0 - mask) * (a * clean + b * noise)).collect()
    }
}
