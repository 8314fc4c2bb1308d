//! `inknib chat`: a conversation, or one answer with `-p`.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::common::{Family, GpuArgs, ModelArgs, Ui};
use super::{json, repl};
use crate::gpu::{self, Gpu};
use crate::graph::PlanOptions;
use crate::nets::language::{Language, LanguageConfig};
use crate::nn::Loader;
use crate::text::chat::{Answer, Chat, Ended};
use crate::text::decoder::Decoder;
use crate::text::generation_config::{GenerationConfig, Overrides};
use crate::text::template::Message;
use crate::weights::WeightStore;
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  inknib chat -m models/demo-chat                                    a conversation; /help lists its commands
  inknib chat -m models/demo-chat -p \"Tell me a short story about a fox.\"
  echo \"What is 3 plus 4?\" | inknib chat -m models/demo-chat --temp 0.7 --seed 1
  inknib chat -p \"Hello!\" --weights fp16 --kernels reference --json";

/// Flags of `inknib chat`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub gpu: GpuArgs,
    /// One question; without it a conversation begins
    #[arg(short, long)]
    pub prompt: Option<String>,
    /// What the assistant is told first
    #[arg(long, visible_alias = "sys")]
    pub system: Option<String>,
    /// Most new tokens of an answer [default: the model's own]
    #[arg(short = 'n', long, visible_alias = "max-new-tokens", value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Tokens that the conversation may have [default: what the model was trained for, at most 4096]
    #[arg(short = 'c', long, visible_alias = "ctx-size", value_name = "N")]
    pub context: Option<usize>,
    /// 0 takes the likeliest token always [default: the model's own]
    #[arg(long, visible_alias = "temperature", value_name = "T")]
    pub temp: Option<f32>,
    /// Choose among the k likeliest tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Choose among the likeliest tokens that have this probability together
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Choose among tokens at least this likely relative to the likeliest
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Makes tokens that were used less likely; 1 is off
    #[arg(long, visible_alias = "repetition-penalty", value_name = "R")]
    pub repeat_penalty: Option<f32>,
    /// Seed of the choices: the same seed gives the same text
    #[arg(short, long)]
    pub seed: Option<u64>,
}

impl Args {
    fn overrides(&self) -> Overrides {
        Overrides {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repeat_penalty,
            seed: self.seed,
            max_new_tokens: self.max_tokens,
            ..Default::default()
        }
    }
}

/// A loaded model with what it took.
pub struct Loaded {
    pub chat: Chat,
    pub load_seconds: f64,
    pub weights: String,
    pub bits_per_weight: f64,
    pub resident_bytes: u64,
}

/// Context taken without `-c`, at most: the cache of a long one costs memory that few conversations use.
const DEFAULT_CONTEXT: usize = 4096;

/// Loads a language model, with progress.
pub fn load(
    gpu: &Gpu,
    folder: &Path,
    model: &ModelArgs,
    context: Option<usize>,
    overrides: Overrides,
    ui: &Ui,
) -> Result<Loaded> {
    let start = Instant::now();
    let config = LanguageConfig::read(folder)?;
    let (store, recipe) = (WeightStore::open(folder)?, model.recipe("llm")?);
    let bar = ui.bar("loading", 0);
    let progress = |t: &crate::nn::LoadedTensor| bar.say(&t.path);
    let loader = Loader::with_progress(gpu, &store, &recipe, Some(&progress));
    let net = Language::load(&loader, &config)?;
    let report = loader.report();
    let context = context.unwrap_or(config.max_position_embeddings().min(DEFAULT_CONTEXT));
    let options = PlanOptions { kernels: model.kernels(), ..Default::default() };
    let decoder = Decoder::new(gpu, net, context, model.act(gpu)?, options)?;
    let chat = Chat::new(decoder, folder, overrides)?;
    drop(bar);
    Ok(Loaded {
        chat,
        load_seconds: start.elapsed().as_secs_f64(),
        weights: model.weights.clone(),
        bits_per_weight: report.bits_per_weight(),
        resident_bytes: report.resident_bytes(),
    })
}

/// Answers one question, or holds a conversation.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    let folder = args.model.folder(Some("demo-chat"))?.expect(Family::Llm)?;
    GenerationConfig::load(&folder.path)?.sampler_options(&args.overrides()).check()?;
    let gpu = args.gpu.open()?;
    let mut loaded = load(&gpu, &folder.path, &args.model, args.context, args.overrides(), ui)?;
    if let Some(system) = &args.system {
        loaded.chat.set_system(system);
    }
    let Some(prompt) = &args.prompt else {
        if ui.json() {
            let question = std::io::read_to_string(std::io::stdin())
                .map_err(|e| Error::io("standard input", e))?;
            return answer(&gpu, &mut loaded, question.trim(), args, ui);
        }
        ui.note(&format!("{} on {}", folder.path.display(), gpu.adapter().name));
        let mut talker = Conversation { chat: loaded.chat, told: false };
        return repl::run(&mut talker, &repl::ReplOptions::new(gpu::interrupt()));
    };
    answer(&gpu, &mut loaded, prompt, args, ui)
}

fn answer(gpu: &Gpu, loaded: &mut Loaded, prompt: &str, args: &Args, ui: &Ui) -> Result<()> {
    let answer = say(loaded, prompt, ui)?;
    if ui.json() {
        ui.answer(&describe(gpu, loaded, &answer, args))?;
    } else {
        ui.line("")?;
        ui.note(&summary(gpu, loaded, &answer));
    }
    if answer.ended == Ended::Interrupted { Err(Error::Interrupted) } else { Ok(()) }
}

/// Streams one answer to stdout.
pub fn say(loaded: &mut Loaded, prompt: &str, ui: &Ui) -> Result<Answer> {
    let mut broken = Ok(());
    let answer = loaded.chat.say(prompt, &mut |piece| {
        if broken.is_ok() {
            broken = ui.print(piece);
        }
    })?;
    broken.map(|()| answer)
}

fn rate(count: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// One line for people.
pub fn summary(gpu: &Gpu, loaded: &Loaded, answer: &Answer) -> String {
    let g = &answer.generated;
    format!(
        "  {} ({}), {} weights at {:.2} bits, {} resident\n  load {:.1} s, {} prompt tokens in {:.2} s, \
         {} tokens in {:.2} s ({:.1} tokens/s)",
        gpu.adapter().name,
        gpu.adapter().driver,
        loaded.weights,
        loaded.bits_per_weight,
        gpu::mib(loaded.resident_bytes),
        loaded.load_seconds,
        g.prompt_tokens,
        g.prefill_seconds,
        g.tokens.len(),
        g.decode_seconds,
        rate(g.tokens.len().saturating_sub(1), g.decode_seconds),
    )
}

fn describe(gpu: &Gpu, loaded: &Loaded, answer: &Answer, args: &Args) -> Value {
    let g = &answer.generated;
    let s = |v: f64| json::round(v, 4);
    json!({
        "text": answer.text,
        "ended": format!("{:?}", answer.ended).to_lowercase(),
        "prompt_tokens": g.prompt_tokens,
        "generated_tokens": g.tokens.len(),
        "adapter": gpu.adapter().name,
        "driver": gpu.adapter().driver,
        "weights": json::weights(&loaded.weights, loaded.bits_per_weight, loaded.resident_bytes),
        "kernels": format!("{:?}", args.model.kernels()).to_lowercase(),
        "context": loaded.chat.decoder.context(),
        "cache_bytes": loaded.chat.decoder.cache_bytes(),
        "peak_gpu_bytes": gpu.ledger().peak(),
        "compile_seconds": s(gpu.compile_cost().1),
        "kernels_compiled": gpu.compile_cost().0,
        "seconds": { "load": s(loaded.load_seconds), "prefill": s(g.prefill_seconds), "decode": s(g.decode_seconds) },
        "tokens_per_second": {
            "prefill": s(rate(g.prompt_tokens, g.prefill_seconds)),
            "decode": s(rate(g.tokens.len().saturating_sub(1), g.decode_seconds)),
        },
    })
}

/// The conversation as the line editor sees it.
struct Conversation {
    chat: Chat,
    /// Whether the user has been told that old turns are forgotten.
    told: bool,
}

impl repl::Talker for Conversation {
    fn say(&mut self, user: &str, on_text: &mut dyn FnMut(&str)) -> Result<repl::TurnStats> {
        let answer = self.chat.say(user, on_text)?;
        if answer.forgotten > 0 && !self.told {
            self.told = true;
            on_text("\n(the context is full: the oldest turns are forgotten)");
        }
        let g = &answer.generated;
        Ok(repl::TurnStats {
            prompt_tokens: g.prompt_tokens,
            generated_tokens: g.tokens.len(),
            prefill_seconds: g.prefill_seconds,
            decode_seconds: g.decode_seconds,
            interrupted: answer.ended == Ended::Interrupted,
            cut: answer.ended == Ended::Length,
        })
    }
    fn reset(&mut self) {
        self.chat.reset();
    }
    fn set_system(&mut self, text: &str) -> Result<()> {
        self.chat.set_system(text);
        Ok(())
    }
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        fn read<T: std::str::FromStr>(key: &str, value: &str) -> Result<Option<T>> {
            match value.parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(Error::Usage(format!("{key} cannot be \"{value}\""))),
            }
        }
        let mut new = self.chat.overrides.clone();
        match key {
            "temperature" | "temp" => new.temperature = read(key, value)?,
            "top_k" => new.top_k = read(key, value)?,
            "top_p" => new.top_p = read(key, value)?,
            "min_p" => new.min_p = read(key, value)?,
            "repeat_penalty" => new.repetition_penalty = read(key, value)?,
            "seed" => new.seed = read(key, value)?,
            "max_tokens" => new.max_new_tokens = read(key, value)?,
            _ => {
                let names: Vec<String> =
                    self.settings().into_iter().map(|(name, _)| name).collect();
                return Err(Error::Usage(format!(
                    "no setting \"{key}\"; there are {}",
                    names.join(", ")
                )));
            }
        }
        self.chat.generation().sampler_options(&new).check()?;
        self.chat.overrides = new;
        Ok(())
    }
    fn settings(&self) -> Vec<(String, String)> {
        let o = self.chat.generation().sampler_options(&self.chat.overrides);
        let most = self.chat.overrides.max_new_tokens.or(self.chat.generation().max_new_tokens);
        [
            ("temperature", o.temperature.to_string()),
            ("top_k", o.top_k.to_string()),
            ("top_p", o.top_p.to_string()),
            ("min_p", o.min_p.to_string()),
            ("repeat_penalty", o.repetition_penalty.to_string()),
            ("seed", o.seed.to_string()),
            ("max_tokens", most.map_or("unlimited".into(), |n| n.to_string())),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .to_vec()
    }
    fn messages(&self) -> Vec<Message> {
        self.chat.messages.clone()
    }
    fn restore(&mut self, messages: Vec<Message>) -> Result<()> {
        self.chat.messages = messages;
        Ok(())
    }
}
