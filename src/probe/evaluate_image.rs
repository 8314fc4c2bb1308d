//! The nets of text to image on golden inputs, the VAE aside: UNets and text encoders.

use super::evaluate::{Case, Named, to_nhwc, token_ids};
use crate::Result;
use crate::gpu::Elem;
use crate::graph::{Graph, Plan, Var};
use crate::nets::clip::{ClipText, ClipTextConfig};
use crate::nets::controlnet::{ControlNet, ControlNetConfig, ControlPicture};
use crate::nets::unet::{TimeConditions, Unet, UnetConfig, UnetContext, UnetTime};
use crate::nets::unet2d::{Unet2d, Unet2dConfig};
use crate::tensor::Tensor;

/// The golden inputs of a time embedding in a graph.
struct TimeInputs<'g> {
    tables: Vec<Var<'g>>,
    row: Var<'g>,
    rows: Vec<u32>,
    /// What the plan is to be given.
    values: Vec<(&'static str, Vec<f32>)>,
}

impl TimeInputs<'_> {
    fn set(&self, plan: &Plan) -> Result<()> {
        for (name, values) in &self.values {
            plan.set(name, values)?;
        }
        plan.set_u32("row", &self.rows)
    }

    /// Tables hold every step for every item; the golden run has one step for each item.
    fn select(&self, named: &mut Named) {
        for (_, tensor) in named.iter_mut().filter(|(name, _)| name == "tap.time_embedding") {
            if let [_, items, channels] = tensor.shape[..] {
                let values = tensor.to_f32();
                let row = |row: &u32| values[*row as usize * channels..][..channels].to_vec();
                let rows: Vec<f32> = self.rows.iter().flat_map(row).collect();
                *tensor = Tensor::f32(&[items, channels], rows);
            }
        }
    }
}

impl Case<'_> {
    fn time<'g>(
        &self,
        graph: &'g Graph,
        config: &UnetConfig,
        batch: usize,
    ) -> Result<TimeInputs<'g>> {
        let net = UnetTime::load(&self.loader, config)?;
        let steps = match self.find("timestep") {
            None if self.find("cond").is_some() => vec![981.0],
            _ => self.input("timestep", 1)?.to_f32(),
        };
        let count = steps.len();
        let mut values = vec![("timestep", steps)];
        let mut input = |name: &'static str, elem: Elem| -> Result<Var<'g>> {
            let tensor = self.input(name, 2)?;
            values.push((name, tensor.to_f32()));
            Ok(graph.input(name, tensor.shape.as_slice(), elem))
        };
        let mut conditions = TimeConditions::default();
        if config.time_cond_proj_dim.is_some() {
            conditions.timestep_cond = Some(input("timestep_cond", self.act)?);
        }
        if config.added().is_some() {
            conditions.text_embeds = Some(input("text_embeds", self.act)?);
            conditions.time_ids = Some(input("time_ids", Elem::F32)?);
        }
        let items = [conditions.timestep_cond, conditions.text_embeds];
        let items = items.into_iter().flatten().map(|v| v.dim(0)).max().unwrap_or(1);
        // A single timestep, or a single item, serves the whole batch.
        let row = |b: usize| b.min(count - 1) * items + b.min(items - 1);
        let t = graph.input("timestep", [count], Elem::F32);
        Ok(TimeInputs {
            tables: net.table(t, &conditions),
            row: graph.input("row", [batch], Elem::U32),
            rows: (0..batch).map(|b| row(b) as u32).collect(),
            values,
        })
    }

    pub(super) fn unet(&self) -> Result<Named> {
        let config = UnetConfig::read(self.dir)?;
        let context = UnetContext::load(&self.loader, &config)?;
        let unet = Unet::load(&self.loader, &config)?;
        let (sample, prompt) = (self.input("sample", 4)?, self.input("encoder_hidden_states", 3)?);
        let graph = Graph::new(self.act);
        let (x_shape, x) = to_nhwc(sample);
        let x_in = graph.input("sample", x_shape, self.act);
        let ctx = graph.input("context", prompt.shape.as_slice(), self.act);
        let time = self.time(&graph, &config, sample.shape[0])?;
        let eps = unet.forward(x_in, &time.tables, time.row, &context.keys_values(ctx));
        let mut all = self.run_all(&graph, &[("out", eps)], |plan| {
            plan.set("sample", &x)?;
            plan.set("context", &prompt.to_f32())?;
            time.set(plan)
        })?;
        time.select(&mut all);
        Ok(all)
    }

    pub(super) fn unet2d(&self) -> Result<Named> {
        let config = Unet2dConfig::read(self.dir)?;
        let unet = Unet2d::load(&self.loader, &config)?;
        let sample = self.input("sample", 4)?;
        let graph = Graph::new(self.act);
        let (x_shape, x) = to_nhwc(sample);
        let x_in = graph.input("sample", x_shape, self.act);
        let time = self.time(&graph, &config.unet, sample.shape[0])?;
        let eps = unet.forward(x_in, &time.tables, time.row);
        self.run_all(&graph, &[("out", eps)], |plan| {
            plan.set("sample", &x)?;
            time.set(plan)
        })
    }

    /// Residuals as `down.0` and so on and `mid`. Scripts that keep neither step nor scale have run
    /// step 981 at 0.8.
    pub(super) fn controlnet(&self) -> Result<Named> {
        let config = ControlNetConfig::read(self.dir)?;
        let context = UnetContext::load(&self.loader, &config.unet)?;
        let embedding = ControlPicture::load(&self.loader, &config)?;
        let net = ControlNet::load(&self.loader, &config)?;
        let (sample, prompt) = (self.input("sample", 4)?, self.input("encoder_hidden_states", 3)?);
        let graph = Graph::new(self.act);
        let ((x_shape, x), (seen_shape, seen)) = (to_nhwc(sample), to_nhwc(self.input("cond", 4)?));
        let x_in = graph.input("sample", x_shape, self.act);
        let ctx = graph.input("context", prompt.shape.as_slice(), self.act);
        let picture = embedding.forward(graph.input("cond", seen_shape, self.act));
        let scale = graph.input("scale", [1], self.act);
        let time = self.time(&graph, &config.unet, sample.shape[0])?;
        let kv = context.keys_values(ctx);
        let residuals = net.forward(x_in, picture, &time.tables, time.row, &kv, scale);
        let names: Vec<String> = (0..residuals.down.len()).map(|i| format!("down.{i}")).collect();
        let outputs = names.iter().map(String::as_str).zip(residuals.down);
        let outputs: Vec<_> = outputs.chain([("mid", residuals.mid)]).collect();
        let wanted = self.find("conditioning_scale").map_or(vec![0.8], Tensor::to_f32);
        let mut all = self.run_all(&graph, &outputs, |plan| {
            plan.set("sample", &x)?;
            plan.set("context", &prompt.to_f32())?;
            plan.set("cond", &seen)?;
            plan.set("scale", &wanted)?;
            time.set(plan)
        })?;
        time.select(&mut all);
        Ok(all)
    }

    pub(super) fn clip(&self) -> Result<Named> {
        let config = ClipTextConfig::read(self.dir)?;
        let clip = ClipText::load(&self.loader, &config)?;
        let ids = self.input("input_ids", 2)?;
        let tokens = token_ids(ids);
        let graph = Graph::new(self.act);
        let states = clip.states(graph.input("ids", ids.shape.as_slice(), Elem::U32));
        let rows = graph.input("rows", [ids.shape[0]], Elem::U32);
        let mut outputs = vec![
            ("last_hidden_state", states.last()),
            ("penultimate", states.hidden(1)),
            ("skipped", states.skipped(1)),
            ("pooled", states.pooled(rows)),
        ];
        if clip.projects() {
            outputs.push(("text_embeds", states.text_embeds(rows)));
        }
        self.run_all(&graph, &outputs, |plan| {
            plan.set_u32("ids", &tokens)?;
            plan.set_u32("rows", &config.eos_rows(&tokens, ids.shape[1]))
        })
    }
}
