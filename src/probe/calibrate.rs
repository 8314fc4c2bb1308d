//! Calibration: a model paints or reads with its original weights, and what its layers are given is summed up on the
//! GPU ([`Observer`]). Pictures are painted over evenly spread timesteps with both halves of guidance; language models
//! read their own answers, or a text.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::compare::OnStage;
use super::observe::{Observer, blocks};
use super::scorer::Scorer;
use crate::diffusion::text_to_image::{LoadOptions, Request, TextToImage};
use crate::gpu::{Elem, Gpu, interrupted};
use crate::graph::{Graph, Kernels, Plan, PlanOptions};
use crate::nets::language::{Language, LanguageConfig};
use crate::nn::Loader;
use crate::quant::{Layout, Recipe, Statistics};
use crate::text::template::{Message, RenderOptions, Template};
use crate::text::tokenizer::Tokenizer;
use crate::weights::WeightStore;
use crate::{Error, Result};

/// Prompts that pictures are painted for when nobody gives others.
pub const PROMPTS: [&str; 12] = [
    "a small red house on a green field on the left, by day, with clouds",
    "a big blue boat on a calm sea at sunset, snowy mountains behind",
    "a yellow balloon over the desert at night, the moon on the right",
    "a white lighthouse on blue water in a storm",
    "a little green tree in a green meadow in the middle and a pink tent on the right, under a blue sky",
    "an orange tent on the sand on the left side, in the evening light, purple mountains behind",
    "a large purple balloon above the grass on a sunny day, green hills behind, the sun on the left",
    "a small white boat on the sea on the right and a red lighthouse on the left, at night",
    "stormy day, a blue house in the desert",
    "a pink tree on a green field under an orange sky, the sun in the middle, some clouds",
    "a big orange lighthouse on the grass under a grey sky, snowy mountains behind",
    "night with stars, a green boat in the middle on a calm sea",
];

/// Questions that language models answer when nobody gives a text.
pub const QUESTIONS: [&str; 24] = [
    "Hello! Who are you?",
    "Good morning, my name is Anna.",
    "What is 7 plus 5?",
    "What is 18 minus 6?",
    "How much is 6 times 9?",
    "Count from 3 to 9, please.",
    "How many days are in a week?",
    "Which month comes after June?",
    "Which word is the opposite of hot?",
    "How does a cow sound?",
    "What colour is the sky?",
    "Spell the word lamp.",
    "Sort 8, 3, 5.",
    "Repeat after me: I see a red chair.",
    "Tom has a red ball and Mia has a blue hat. What colour is the hat?",
    "The cup is on the table. Where is the cup?",
    "Is a robin a bird?",
    "What can you do?",
    "What is the capital of France?",
    "Tell me a short story about a fox.",
    "Write a short story about a bear and a lamp.",
    "I want a picture of a red boat at sunset.",
    "Tell me a story about a mouse who finds a key.",
    "Thank you, goodbye!",
];

/// What is observed, and where the sums are kept meanwhile.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model with its original weights.
    pub model: PathBuf,
    /// Weights whose inputs are wanted, by name, and their layouts.
    pub layers: Vec<(String, Layout)>,
    /// Sum up XᵀX, too.
    pub gram: bool,
    /// How activations are stored; the sums are f32.
    pub act: Elem,
    /// A file that keeps the sums between runs; a stopped calibration goes on with it.
    pub state: Option<PathBuf>,
    /// Bytes of sums on the GPU at once: more layers than that are observed in several rounds.
    pub memory: u64,
}

/// The weights whose inputs are wanted: those that become packed, or may within a budget of bits.
pub fn layers(store: &WeightStore, recipe: &Recipe) -> Result<Vec<(String, Layout)>> {
    let mut layers = vec![];
    for name in store.names() {
        let layout = match *store.shape(name)? {
            [rows, channels] => Layout::linear(rows, channels),
            [rows, channels, kh, kw] => Layout { rows, taps: kh * kw, channels },
            _ => continue,
        };
        let packed = recipe.spec_for(name).group().is_some();
        if packed || name.contains("time_emb") {
            layers.push((name.to_string(), layout));
        }
    }
    Ok(layers)
}

/// What is painted.
#[derive(Clone, Debug)]
pub struct Paint {
    pub prompts: Vec<String>,
    /// Evaluations of each, spread evenly over the schedule.
    pub steps: usize,
    pub guidance: f64,
}

/// What is read.
#[derive(Clone, Debug)]
pub enum Read {
    /// The model's own greedy answers, of at most so many tokens.
    Answers { questions: Vec<String>, most: usize },
    /// So many windows of a text at most.
    Text { text: String, windows: usize },
}

/// How far a calibration is; kept with its sums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// What the sums are of; another one cannot go on with them.
    about: String,
    round: usize,
    done: usize,
}

/// Calibrates the UNet of a text-to-image model.
///
/// # Errors
/// As loading and running do; `Interrupted` on Ctrl-C, the state being at most 20 seconds old.
pub fn calibrate_image(
    gpu: &Gpu,
    options: &Options,
    paint: &Paint,
    on_stage: &mut OnStage<'_>,
) -> Result<Statistics> {
    on_stage("loading", 0, 0);
    let load = LoadOptions { weights: "fp16".into(), act: options.act, ..Default::default() };
    let mut net = TextToImage::load(gpu, &options.model, load, &|_| ())?;
    let about = format!("{paint:?}");
    let count = paint.prompts.len();
    run(gpu, options, (&about, count), on_stage, &mut |observer, i, on_stage| {
        net.set_plan(PlanOptions { observe: Some(observer), ..Default::default() });
        let request = Request {
            prompt: paint.prompts[i].clone(),
            steps: paint.steps,
            guidance: paint.guidance,
            seed: 1_000_000 + i as u64,
            ..Default::default()
        };
        let mut run = net.prepare(&request)?;
        for step in 0..run.steps() {
            interrupted()?;
            on_stage("painting", i * paint.steps + step, count * paint.steps);
            run.step(step)?;
        }
        gpu.wait()
    })
}

/// Calibrates a language model.
///
/// # Errors
/// As [`calibrate_image`].
pub fn calibrate_text(
    gpu: &Gpu,
    options: &Options,
    read: &Read,
    on_stage: &mut OnStage<'_>,
) -> Result<Statistics> {
    on_stage("loading", 0, 0);
    let (store, recipe) = (WeightStore::open(&options.model)?, Recipe::builtin("fp16", "llm")?);
    let config = LanguageConfig::read(&options.model)?;
    let net = Language::load(&Loader::new(gpu, &store, &recipe), &config)?;
    let passages = passages(gpu, options, &net, read, on_stage)?;
    let count = passages.len();
    run(gpu, options, (&format!("{read:?}"), count), on_stage, &mut |observer, i, on_stage| {
        on_stage("reading", i, count);
        let ids = &passages[i];
        let cache = config.kv_cache(gpu, ids.len(), options.act)?;
        let graph = Graph::new(options.act);
        let input = graph.input("ids", [1, ids.len()], Elem::U32);
        let start = graph.input("start", [1], Elem::U32);
        graph.output("logits", net.logits_all(input, start, &cache));
        let plan = PlanOptions { observe: Some(observer), ..Default::default() };
        let plan = Plan::new(gpu, &graph, &plan)?;
        plan.set_u32("ids", ids)?;
        plan.set_u32("start", &[0])?;
        plan.run()?;
        gpu.wait()
    })
}

/// Token sequences, none longer than the model was made for.
fn passages(
    gpu: &Gpu,
    options: &Options,
    net: &Language,
    read: &Read,
    on_stage: &mut OnStage<'_>,
) -> Result<Vec<Vec<u32>>> {
    /// Tokens of one passage at most: the logits of all are computed.
    const MOST: usize = 512;
    let longest = net.config().max_position_embeddings().min(MOST);
    let tokenizer = Tokenizer::load(&options.model)?;
    let (questions, most) = match read {
        Read::Text { text, windows } => {
            let ids = tokenizer.encode(text, true)?;
            let long = ids.chunks(longest).filter(|ids| ids.len() >= 8).take(*windows);
            let all: Vec<Vec<u32>> = long.map(<[u32]>::to_vec).collect();
            return match all.is_empty() {
                false => Ok(all),
                true => Err(Error::Usage(format!(
                    "the calibration text has {} tokens; give at least 8, better thousands",
                    ids.len()
                ))),
            };
        }
        Read::Answers { questions, most } => (questions, *most),
    };
    let template = Template::load(&options.model)?;
    let (stops, count) = (tokenizer.end_of_turn_ids(), questions.len());
    let mut scorer = Scorer::new(gpu, net, (longest, options.act, Kernels::Fast))?;
    let mut all = vec![];
    for (i, question) in questions.iter().enumerate() {
        interrupted()?;
        on_stage("answering", i, count);
        let text = template.render(&[Message::user(question)], &RenderOptions::default())?;
        let mut ids = tokenizer.encode(&text, false)?;
        let room = longest.saturating_sub(ids.len());
        if room > 0 {
            ids.extend(scorer.greedy(&ids, most.min(room), &stops)?);
        }
        ids.truncate(longest);
        all.push(ids);
    }
    Ok(all)
}

/// Runs one part of the calibration data under an observer.
type Each<'a> = dyn FnMut(Arc<Observer>, usize, &mut OnStage<'_>) -> Result<()> + 'a;

/// Rounds over all parts, each for as many layers as there is memory for.
fn run(
    gpu: &Gpu,
    options: &Options,
    (about, parts): (&str, usize),
    on_stage: &mut OnStage<'_>,
    each: &mut Each<'_>,
) -> Result<Statistics> {
    /// Between two writings of the state.
    const PAUSE: Duration = Duration::from_secs(20);
    let rounds = rounds(gpu, options);
    let (model, count) = (options.model.display(), options.layers.len());
    let about = format!("{model}, {count} layers: {about}");
    let (mut sums, mut state) = resume(options, &about)?;
    for (round, names) in rounds.iter().enumerate().skip(state.round) {
        let fresh = || Arc::new(Observer::new(gpu, names.iter().cloned(), options.gram));
        let mut observer = fresh();
        let mut written = Instant::now();
        let first = if round == state.round { state.done } else { 0 };
        for part in first..parts {
            each(observer.clone(), part, on_stage)?;
            let last = part + 1 == parts;
            if !last && written.elapsed() < PAUSE {
                continue;
            }
            sums.merge(observer.statistics()?);
            observer = fresh();
            state = State {
                about: about.clone(),
                round: if last { round + 1 } else { round },
                done: if last { 0 } else { part + 1 },
            };
            if let Some(path) = &options.state {
                sums.save(path, &serde_json::to_string(&state).unwrap_or_default())?;
            }
            written = Instant::now();
        }
    }
    Ok(sums)
}

/// The sums and the state of an earlier run of the same calibration, or a beginning where there is no file. Sums with XᵀX
/// serve those who do not need it.
///
/// # Errors
/// `Model` for a file of something else, `Usage` for one of another calibration: neither is written over.
fn resume(options: &Options, about: &str) -> Result<(Statistics, State)> {
    let begin = State { about: about.to_string(), round: 0, done: 0 };
    let Some(path) = options.state.as_ref().filter(|path| path.exists()) else {
        return Ok((Statistics::default(), begin));
    };
    let (sums, state) = Statistics::load(path)?;
    let state: State = serde_json::from_str(&state)
        .map_err(|e| Error::Model(format!("{}: its state cannot be read: {e}", path.display())))?;
    let refuse = |why: String| {
        Err(Error::Usage(format!("{}: {why}; name another file, or remove it", path.display())))
    };
    if state.about != about {
        return refuse(format!(
            "sums of another calibration ({}), this one is {about}",
            state.about
        ));
    }
    if options.gram && sums.layers.values().any(|layer| layer.gram.is_empty()) {
        return refuse("sums without the Gram matrices that this method or --bits needs".into());
    }
    Ok((sums, state))
}

/// The layers of each round.
fn rounds(gpu: &Gpu, options: &Options) -> Vec<Vec<String>> {
    let bytes = |layout: &Layout| -> u64 {
        let blocks = blocks(layout.taps, layout.channels, Observer::widest(gpu));
        let squares = || blocks.iter().map(|&w| (w * w) as u64).sum::<u64>();
        4 * (3 * layout.row_len() as u64 + if options.gram { squares() } else { 0 })
    };
    let mut rounds: Vec<Vec<String>> = vec![];
    let mut room = 0;
    for (name, layout) in &options.layers {
        let needed = bytes(layout);
        if needed > room || rounds.is_empty() {
            rounds.push(vec![]);
            room = options.memory;
        }
        room = room.saturating_sub(needed);
        if let Some(round) = rounds.last_mut() {
            round.push(name.clone());
        }
    }
    rounds
}
