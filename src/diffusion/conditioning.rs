//! What a run is conditioned on, computed once: prompts → text encoders → keys and values of every cross
//! attention; timesteps, pooled text and sizes → a table per resnet.

use super::chunks::{Chunks, emphasize};
use super::embedding::{Embedding, Placeholders, table_rows};
use super::prompt::{Prompt, PromptSyntax};
use super::request::Request;
use super::sampler::StepCoefficients;
use crate::gpu::{Buffer, Elem, Gpu};
use crate::graph::{Graph, Plan, PlanOptions, Shape, Var};
use crate::nets::clip::{ClipText, ClipTextConfig};
use crate::nets::unet::{TimeConditions, UnetConfig, UnetContext, UnetTime, guidance_embedding};
use crate::nn::Loader;
use crate::text::tokenizer::ClipTokenizer;
use crate::weights::{ImageFamily, ImageModel, Part};
use crate::{Error, Result};

/// A text encoder with what turns prompts into its ids.
pub(super) struct TextEncoder {
    tokenizer: ClipTokenizer,
    placeholders: Placeholders,
    net: ClipText,
    config: ClipTextConfig,
}

/// The prompts as the UNet takes them: without guidance one, else without the prompt, then with it.
#[derive(Clone, Debug)]
pub(super) struct Context {
    /// `[items, tokens, channels]`
    values: Vec<f32>,
    /// `[items, n]`, of models that take pooled text.
    pooled: Vec<f32>,
    pub items: usize,
    tokens: usize,
}

impl Context {
    /// One item without a prompt.
    pub fn none() -> Context {
        Context { values: Vec::new(), pooled: Vec::new(), items: 1, tokens: 0 }
    }
}

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
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.len()
    }
    pub fn var<'g>(&self, graph: &'g Graph, elem: Elem) -> Var<'g> {
        graph.external(&self.buffer, self.shape, elem)
    }
}

/// Keys and values of every cross attention.
pub(super) type KeysValues = Vec<[Stored; 2]>;

impl TextEncoder {
    /// Loads the encoder of a model, with the vectors of embeddings behind its table of tokens.
    pub fn load(
        ld: &Loader<'_>,
        model: &ImageModel,
        part: Part,
        embeddings: &[Embedding],
    ) -> Result<TextEncoder> {
        let (fields, source) = model.config(part)?;
        let config = ClipTextConfig::from_value(&fields, &source)?;
        let tokenizer = ClipTokenizer::of(model, part)?;
        let placeholders = Placeholders::new(embeddings, &tokenizer, config.vocab_size)?;
        let index = usize::from(part == Part::TextEncoder2 && model.has(Part::TextEncoder));
        let extra = table_rows(embeddings, index, config.hidden_size)?;
        let mut net = ClipText::load(ld, &config)?;
        net.set_added_tokens(ld.gpu(), extra.as_ref())?;
        Ok(TextEncoder { tokenizer, placeholders, net, config })
    }

    /// Tokens of the longest of these prompts, whole windows.
    pub fn tokens(&self, prompts: &[Prompt]) -> Result<usize> {
        let chunks = self.chunks(prompts, &mut Vec::new())?;
        Ok(chunks.iter().map(|c| c.windows() * c.length()).max().unwrap_or(0))
    }

    fn chunks(&self, prompts: &[Prompt], warnings: &mut Vec<String>) -> Result<Vec<Chunks>> {
        let chunks = |prompt| Chunks::new(prompt, &self.tokenizer, &self.placeholders);
        let mut all = prompts.iter().map(chunks).collect::<Result<Vec<_>>>()?;
        for cut in all.iter().filter(|c| c.dropped > 0) {
            warnings.push(format!(
                "the prompt is {} tokens too long for this model; not used: \"{}\"",
                cut.dropped, cut.dropped_text
            ));
        }
        Chunks::pad_together(&mut all.iter_mut().collect::<Vec<_>>());
        Ok(all)
    }
}

/// A hidden state `[items, windows · length, channels]` and, where there is a projection, the pooled
/// text `[items, n]` of the first window.
struct Encoded {
    hidden: Vec<f32>,
    channels: usize,
    tokens: usize,
    pooled: Vec<f32>,
}

/// Runs text encoders.
pub(super) struct Encode<'a> {
    pub gpu: &'a Gpu,
    pub act: Elem,
    pub plan: &'a PlanOptions,
    pub family: ImageFamily,
}

impl Encode<'_> {
    /// The prompts of a request; `guided`: the negative one as well.
    pub fn context(
        &self,
        encoders: &[TextEncoder],
        model: &ImageModel,
        request: &Request,
        guided: bool,
        warnings: &mut Vec<String>,
    ) -> Result<Context> {
        let texts = [&request.negative, &request.prompt].into_iter().skip(usize::from(!guided));
        let prompts = texts.map(|text| Prompt::parse(text, request.syntax));
        let prompts = prompts.collect::<Result<Vec<_>>>()?;
        let items = prompts.len();
        prompts.iter().for_each(|prompt| warnings.extend(prompt.warnings.iter().cloned()));
        let encoded = encoders
            .iter()
            .map(|encoder| self.run(encoder, &prompts, request, warnings))
            .collect::<Result<Vec<_>>>()?;
        warnings.dedup();
        let Some(tokens) = encoded.first().map(|e| e.tokens) else {
            return Err(Error::Model(format!("{}: no text encoder", model.path().display())));
        };
        if let Some(other) = encoded.iter().find(|e| e.tokens != tokens) {
            return Err(Error::Model(format!(
                "{}: its text encoders read {tokens} and {} tokens of the same prompt; they belong to \
                 different models",
                model.path().display(),
                other.tokens
            )));
        }
        let mut values = Vec::new();
        for row in 0..items * tokens {
            for e in &encoded {
                values.extend_from_slice(&e.hidden[row * e.channels..][..e.channels]);
            }
        }
        let mut pooled = encoded.iter().map(|e| &e.pooled).find(|p| !p.is_empty()).cloned();
        // SDXL was trained with nothing at all in place of an empty prompt.
        if guided && request.negative.trim().is_empty() && zeroes_empty(model) {
            let (each, pool) = (values.len() / items, pooled.as_mut());
            values[..each].fill(0.0);
            if let Some(pool) = pool {
                let each = pool.len() / items;
                pool[..each].fill(0.0);
            }
        }
        Ok(Context { values, pooled: pooled.unwrap_or_default(), items, tokens })
    }

    fn run(
        &self,
        encoder: &TextEncoder,
        prompts: &[Prompt],
        request: &Request,
        warnings: &mut Vec<String>,
    ) -> Result<Encoded> {
        let chunks = encoder.chunks(prompts, warnings)?;
        let (windows, length) = (chunks[0].windows(), chunks[0].length());
        let all = prompts.len() * windows;
        let graph = Graph::new(self.act);
        let states = encoder.net.states(graph.input("ids", [all, length], Elem::U32));
        let xl = matches!(self.family, ImageFamily::Sdxl | ImageFamily::SdxlRefiner);
        let state = |skip| if xl { states.hidden(1 + skip) } else { states.skipped(skip) };
        let hidden = state(request.clip_skip);
        graph.output("hidden", hidden);
        // diffusers skips no layers for the negative prompt; AUTOMATIC1111 skips them for both.
        let plain = request.syntax == PromptSyntax::Plain && request.clip_skip > 0;
        let negative = plain && prompts.len() == 2;
        if negative {
            graph.output("last", state(0));
        }
        let pools = xl && encoder.net.projects();
        if pools {
            graph.output("pooled", states.text_embeds(graph.input("rows", [all], Elem::U32)));
        }
        let plan = Plan::new(self.gpu, &graph, self.plan)?;
        let ids: Vec<u32> = chunks.iter().flat_map(|c| c.ids.iter().flatten().copied()).collect();
        plan.set_u32("ids", &ids)?;
        if pools {
            plan.set_u32("rows", &encoder.config.eos_rows(&ids, length))?;
        }
        plan.run()?;
        let mut values = plan.read("hidden")?;
        let channels = hidden.dim(2);
        let each = windows * length * channels;
        if negative {
            values[..each].copy_from_slice(&plan.read("last")?[..each]);
        }
        for (chunks, values) in chunks.iter().zip(values.chunks_exact_mut(each.max(1))) {
            if chunks.is_weighted() {
                emphasize(values, &chunks.weights)?;
            }
        }
        let mut pooled = Vec::new();
        if pools {
            let rows = plan.read("pooled")?;
            let n = rows.len() / all;
            (0..prompts.len())
                .for_each(|i| pooled.extend_from_slice(&rows[i * windows * n..][..n]));
        }
        Ok(Encoded { hidden: values, channels, tokens: windows * length, pooled })
    }
}

/// diffusers' `force_zeros_for_empty_prompt`, which only SDXL's pipelines have; true unless the folder
/// says otherwise.
fn zeroes_empty(model: &ImageModel) -> bool {
    let xl = matches!(model.kind().family, ImageFamily::Sdxl | ImageFamily::SdxlRefiner);
    let index = crate::weights::read_json::<serde_json::Value>(model.path(), "model_index.json");
    let said = index.ok().and_then(|i| i.get("force_zeros_for_empty_prompt")?.as_bool());
    xl && said.unwrap_or(true)
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

/// Hoisted computations of a UNet (or of a ControlNet, which has the same).
pub(super) struct Hoisted<'a> {
    pub gpu: &'a Gpu,
    pub act: Elem,
    pub plan: &'a PlanOptions,
    pub config: &'a UnetConfig,
}

impl Hoisted<'_> {
    /// Keys and values for `copies` pictures of each of `items`, all of one item first.
    pub fn keys_values(
        &self,
        net: &UnetContext,
        context: &Context,
        items: std::ops::Range<usize>,
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
        let batch = items.len() * copies;
        let graph = Graph::new(self.act);
        let input = graph.input("context", [batch, context.tokens, channels], self.act);
        let pairs = net.keys_values(input);
        for (i, (k, v)) in pairs.iter().enumerate() {
            graph.output(&format!("k{i}"), *k);
            graph.output(&format!("v{i}"), *v);
        }
        let plan = Plan::new(self.gpu, &graph, self.plan)?;
        let of = |item: usize| &context.values[item * each..][..each];
        let values = items.flat_map(|item| (0..copies).flat_map(move |_| of(item)));
        plan.set("context", &values.copied().collect::<Vec<f32>>())?;
        plan.run()?;
        let stored = |name: String, var: &Var<'_>| -> Result<Stored> {
            Ok(Stored::new(plan.buffer(&name)?.clone(), var.shape()))
        };
        let pairs = pairs.iter().enumerate();
        pairs
            .map(|(i, (k, v))| Ok([stored(format!("k{i}"), k)?, stored(format!("v{i}"), v)?]))
            .collect()
    }

    /// Every resnet's share of the time embedding for every row of the schedule, and how many rows of a
    /// table belong to one of them.
    pub fn time_tables(
        &self,
        net: &UnetTime,
        context: &Context,
        table: &[StepCoefficients],
        about: &About,
    ) -> Result<(Vec<Stored>, usize)> {
        let graph = Graph::new(self.act);
        let steps = graph.input("timesteps", [table.len()], Elem::F32);
        let mut conditions = TimeConditions::default();
        let mut rows = 1;
        if let Some(dim) = self.config.time_cond_proj_dim {
            let embedding = guidance_embedding(about.guidance, dim);
            conditions.timestep_cond = Some(graph.literal([1, dim], embedding));
        }
        if self.config.added().is_some() {
            rows = context.items;
            let n = context.pooled.len() / rows;
            let ids = time_ids(about.family, rows, about.size);
            let count = ids.len() / rows;
            let text = graph.literal([rows, n], context.pooled.clone());
            conditions.text_embeds = Some(text);
            conditions.time_ids = Some(graph.literal_f32([rows, count], ids));
        }
        let vars = net.table(steps, &conditions);
        for (i, var) in vars.iter().enumerate() {
            graph.output(&format!("t{i}"), *var);
        }
        let plan = Plan::new(self.gpu, &graph, self.plan)?;
        plan.set("timesteps", &table.iter().map(|row| row.timestep).collect::<Vec<_>>())?;
        plan.run()?;
        let stored = |(i, var): (usize, &Var<'_>)| {
            Ok(Stored::new(plan.buffer(&format!("t{i}"))?.clone(), var.shape()))
        };
        Ok((vars.iter().enumerate().map(stored).collect::<Result<_>>()?, rows))
    }
}

/// What tables depend on besides the steps and the prompts.
pub(super) struct About {
    pub guidance: f32,
    pub family: ImageFamily,
    /// Height and width in pixels.
    pub size: [usize; 2],
}

/// The text encoders that a model has, in the order in which their channels are joined.
pub(super) fn encoders(model: &ImageModel) -> impl Iterator<Item = Part> + '_ {
    [Part::TextEncoder, Part::TextEncoder2].into_iter().filter(|part| model.has(*part))
}
