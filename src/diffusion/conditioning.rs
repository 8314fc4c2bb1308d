//! Prompts → text encoders → what a UNet is conditioned on.

use super::chunks::{Chunks, emphasize};
use super::embedding::{Embedding, Placeholders, table_rows};
use super::prompt::{Prompt, PromptSyntax};
use super::request::Request;
use crate::gpu::{Elem, Gpu};
use crate::graph::{Graph, Plan, PlanOptions};
use crate::nets::clip::{ClipText, ClipTextConfig};
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
    /// Bytes of the vectors of embeddings.
    added: u64,
}

/// The prompts as the UNet takes them: without guidance one, else without the prompt, then with it.
#[derive(Clone, Debug)]
pub(super) struct Context {
    /// `[items, tokens, channels]`
    pub values: Vec<f32>,
    /// `[items, n]`, of models that take pooled text.
    pub pooled: Vec<f32>,
    pub items: usize,
    pub tokens: usize,
}

impl Context {
    /// One item without a prompt.
    pub fn none() -> Context {
        Context { values: Vec::new(), pooled: Vec::new(), items: 1, tokens: 0 }
    }
}

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
        let added = extra.map_or(0, |rows| rows.shape.iter().product::<usize>() as u64 * 4);
        Ok(TextEncoder { tokenizer, placeholders, net, config, added })
    }

    /// Bytes of the vectors of textual inversion.
    pub fn added_bytes(&self) -> u64 {
        self.added
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

/// What a recorded encoder gives.
struct Asked {
    channels: usize,
    /// The negative prompt's state is another.
    negative: bool,
    pools: bool,
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
        let prompts = prompts(request, guided)?;
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
        let Asked { channels, negative, pools } =
            self.record(&graph, encoder, request, [prompts.len(), windows, length]);
        let plan = Plan::new(self.gpu, &graph, self.plan)?;
        let ids: Vec<u32> = chunks.iter().flat_map(|c| c.ids.iter().flatten().copied()).collect();
        plan.set_u32("ids", &ids)?;
        if pools {
            plan.set_u32("rows", &encoder.config.eos_rows(&ids, length))?;
        }
        plan.run()?;
        let mut values = plan.read("hidden")?;
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

    /// Records an encoder over `[prompts, windows, length]` tokens.
    fn record(
        &self,
        graph: &Graph,
        encoder: &TextEncoder,
        request: &Request,
        [prompts, windows, length]: [usize; 3],
    ) -> Asked {
        let all = prompts * windows;
        let states = encoder.net.states(graph.input("ids", [all, length], Elem::U32));
        let xl = matches!(self.family, ImageFamily::Sdxl | ImageFamily::SdxlRefiner);
        let state = |skip| if xl { states.hidden(1 + skip) } else { states.skipped(skip) };
        let hidden = state(request.clip_skip);
        graph.output("hidden", hidden);
        // diffusers skips no layers for the negative prompt; AUTOMATIC1111 skips them for both.
        let plain = request.syntax == PromptSyntax::Plain && request.clip_skip > 0;
        let negative = plain && prompts == 2;
        if negative {
            graph.output("last", state(0));
        }
        let pools = xl && encoder.net.projects();
        if pools {
            graph.output("pooled", states.text_embeds(graph.input("rows", [all], Elem::U32)));
        }
        Asked { channels: hidden.dim(2), negative, pools }
    }

    /// Bytes that an encoder of outlines takes for the prompts of a request besides its weights, and the
    /// tokens that they become.
    pub fn measure(
        &self,
        encoder: &TextEncoder,
        request: &Request,
        guided: bool,
    ) -> Result<(u64, usize)> {
        let prompts = prompts(request, guided)?;
        let chunks = encoder.chunks(&prompts, &mut Vec::new())?;
        let (windows, length) = (chunks[0].windows(), chunks[0].length());
        let graph = Graph::new(self.act);
        let shape = [prompts.len(), windows, length];
        let asked = self.record(&graph, encoder, request, shape);
        let read = (shape.iter().product::<usize>() * asked.channels) as u64 * self.act.bytes();
        let footprint = Plan::footprint(self.gpu, &graph, self.plan)?;
        Ok((footprint.bytes() + read, windows * length))
    }
}

/// The prompts of a request; `guided`: the negative one first.
fn prompts(request: &Request, guided: bool) -> Result<Vec<Prompt>> {
    let texts = [&request.negative, &request.prompt].into_iter().skip(usize::from(!guided));
    texts.map(|text| Prompt::parse(text, request.syntax)).collect()
}

/// diffusers' `force_zeros_for_empty_prompt`, which only SDXL's pipelines have; true unless the folder
/// says otherwise.
fn zeroes_empty(model: &ImageModel) -> bool {
    let xl = matches!(model.kind().family, ImageFamily::Sdxl | ImageFamily::SdxlRefiner);
    let index = crate::weights::read_json::<serde_json::Value>(model.path(), "model_index.json");
    let said = index.ok().and_then(|i| i.get("force_zeros_for_empty_prompt")?.as_bool());
    xl && said.unwrap_or(true)
}

/// The text encoders that a model has, in the order in which their channels are joined.
pub(super) fn encoders(model: &ImageModel) -> impl Iterator<Item = Part> + '_ {
    [Part::TextEncoder, Part::TextEncoder2].into_iter().filter(|part| model.has(*part))
}
