//! The shipped models from end to end: a picture's latents and a reply's logits, by fast kernels against reference kernels on
//! the same adapter, and kept so that adapters can be held against each other.

use std::path::Path;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::scorer::Scorer;
use crate::diffusion::sampler::Sampler;
use crate::diffusion::text_to_image::{LoadOptions, Request, TextToImage};
use crate::gpu::{Elem, Gpu};
use crate::graph::{Kernels, PlanOptions};
use crate::nets::language::{Language, LanguageConfig};
use crate::nn::Loader;
use crate::quant::{Recipe, metrics};
use crate::text::template::{Message, RenderOptions, Template};
use crate::text::tokenizer::Tokenizer;
use crate::weights::WeightStore;
use crate::{Error, Result};

/// Values that JSON holds as base64 of little-endian f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Values(pub Vec<f32>);

impl Serialize for Values {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|v| v.to_le_bytes()).collect();
        to.serialize_str(&STANDARD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Values, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(Values(bytes.chunks_exact(4).map(value).collect()))
    }
}

/// What a model gave with one type of activations.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Whole {
    /// `demo-scenes` or `demo-chat`.
    pub model: String,
    pub activations: String,
    /// Latents of the last step, or logits of the last tokens of a fixed conversation.
    pub values: Values,
    /// ‖fast − reference‖ / ‖reference‖ of the values, on this adapter; absent where reference kernels did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against_reference: Option<f64>,
    pub allowed: f64,
    /// What the model says to the question; empty for a picture.
    pub reply: String,
    /// Of the run with fast kernels, loading and compiling included.
    pub seconds: f64,
}

impl Whole {
    pub fn passed(&self) -> bool {
        // Not `> allowed`: NaN has to fail.
        self.against_reference.is_none_or(|apart| apart <= self.allowed)
            && self.values.0.iter().all(|value| value.is_finite())
    }
}

/// How far the values of two runs may be apart, as ‖a − b‖ / ‖b‖, by how activations are stored.
///
/// f32: a few hundred kernels follow each other, each within 1e-6 of its reference, and guidance multiplies by four; 2e-6 was
/// measured between kinds of kernels and 1e-6 between three drivers, and fused multiplications may add as much again.
/// f16: each of these kernels rounds by 3e-4 when it stores; 2e-3 was measured.
pub fn allowed(activations: &str) -> f64 {
    if activations == "f16" { 1e-2 } else { 1e-5 }
}

const PROMPT: &str =
    "a large orange house on the left side on the grass under an orange sky, the sun in the center";
const STEPS: usize = 4;
const QUESTION: &str = "What is a lamp?";
const ANSWER: &str = "A lamp is a thing that gives light.";
/// Logits of so many tokens are kept.
const KEPT: usize = 4;
/// Tokens of the reply.
const MOST: usize = 32;

/// The picture: four steps of DDIM with guidance 4 and INT4 weights; `compare`: by reference kernels too.
///
/// # Errors
/// As loading and running do.
pub fn picture(gpu: &Gpu, folder: &Path, act: Elem, compare: bool) -> Result<Whole> {
    let latents = |kernels: Kernels| -> Result<Vec<f32>> {
        let plan = PlanOptions { kernels, ..PlanOptions::default() };
        let options = LoadOptions { act, plan, ..LoadOptions::default() };
        let net = TextToImage::load(gpu, folder, options, &|_| ())?;
        let request = Request {
            prompt: PROMPT.into(),
            seed: 7,
            steps: STEPS,
            guidance: 4.0,
            sampler: Some(Sampler::Ddim { eta: 0.0 }),
            ..Request::default()
        };
        let mut run = net.prepare(&request)?;
        for i in 0..run.steps() {
            run.step(i)?;
        }
        run.latents()
    };
    let start = Instant::now();
    let fast = latents(Kernels::Fast)?;
    let seconds = start.elapsed().as_secs_f64();
    let reference = compare.then(|| latents(Kernels::Reference)).transpose()?;
    Ok(whole("demo-scenes", act, fast, reference.as_deref(), String::new(), seconds))
}

/// The reply, and the logits of a fixed conversation, with INT4 weights; `compare`: by reference kernels too.
///
/// # Errors
/// As loading and running do.
pub fn reply(gpu: &Gpu, folder: &Path, act: Elem, compare: bool) -> Result<Whole> {
    let start = Instant::now();
    let config = LanguageConfig::read(folder)?;
    let store = WeightStore::open(folder)?;
    let recipe = Recipe::from_argument("int4", "llm")?;
    let net = Language::load(&Loader::new(gpu, &store, &recipe), &config)?;
    let tokenizer = Tokenizer::load(folder)?;
    let template = Template::load(folder)?;
    let ids = |messages: &[Message]| -> Result<Vec<u32>> {
        tokenizer.encode(&template.render(messages, &RenderOptions::default())?, false)
    };
    let talk = ids(&[Message::user(QUESTION), Message::assistant(ANSWER)])?;
    let question = ids(&[Message::user(QUESTION)])?;
    let context = config.max_position_embeddings().min(256);
    if talk.len() < KEPT || talk.len().max(question.len() + MOST) > context {
        return Err(Error::Model(format!("{}: no model for this test", folder.display())));
    }
    let logits = |kernels: Kernels| -> Result<Vec<f32>> {
        let mut scorer = Scorer::new(gpu, &net, (context, act, kernels))?;
        scorer.logits(&talk, 0, talk.len() - KEPT)
    };
    let fast = logits(Kernels::Fast)?;
    let mut scorer = Scorer::new(gpu, &net, (context, act, Kernels::Fast))?;
    let said = scorer.greedy(&question, MOST, &tokenizer.end_of_turn_ids())?;
    let said = tokenizer.decode(&said, true)?;
    let seconds = start.elapsed().as_secs_f64();
    let reference = compare.then(|| logits(Kernels::Reference)).transpose()?;
    Ok(whole("demo-chat", act, fast, reference.as_deref(), said, seconds))
}

fn whole(
    model: &str,
    act: Elem,
    fast: Vec<f32>,
    reference: Option<&[f32]>,
    reply: String,
    seconds: f64,
) -> Whole {
    let activations = act.wgsl().to_string();
    Whole {
        model: model.into(),
        against_reference: reference.map(|reference| metrics::rel_l2(&fast, reference)),
        allowed: allowed(&activations),
        activations,
        values: Values(fast),
        reply,
        seconds,
    }
}

/// How far apart two adapters are with the same model and activations.
#[derive(Clone, Debug, Serialize)]
pub struct Distance {
    pub model: String,
    pub activations: String,
    /// ‖a − b‖ / ‖b‖ of latents or logits.
    pub rel_l2: f64,
    pub allowed: f64,
    /// Both say the same: the reply's words; of pictures always true.
    pub same_reply: bool,
}

/// The distances of what both have run.
pub fn distances(a: &[Whole], b: &[Whole]) -> Vec<Distance> {
    let same = |x: &Whole, y: &Whole| x.model == y.model && x.activations == y.activations;
    let pairs = a.iter().filter_map(|x| Some((x, b.iter().find(|y| same(x, y))?)));
    pairs
        .map(|(x, y)| Distance {
            model: x.model.clone(),
            activations: x.activations.clone(),
            rel_l2: match x.values.0.len() == y.values.0.len() {
                true => metrics::rel_l2(&x.values.0, &y.values.0),
                false => f64::NAN,
            },
            allowed: x.allowed,
            same_reply: x.reply == y.reply,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_json() {
        let values = Values(vec![1.5, -0.0, f32::MIN_POSITIVE, 3e38]);
        let text = serde_json::to_string(&values).unwrap();
        assert_eq!(serde_json::from_str::<Values>(&text).unwrap(), values);
    }

    #[test]
    fn distances_pair_models_and_activations() {
        let of = |model: &str, act: Elem, v: f32| {
            whole(model, act, vec![1.0, v], Some(&[1.0, v]), String::new(), 0.0)
        };
        let a = [of("x", Elem::F32, 1.0), of("x", Elem::F16, 1.0), of("y", Elem::F32, 1.0)];
        let b = [of("x", Elem::F32, 0.0), of("z", Elem::F32, 0.0)];
        let found = distances(&a, &b);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].rel_l2, 1.0);
    }
}
