//! `inknib chat`: a conversation, or one answer with `-p`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::common::{Family, GpuArgs, ModelArgs, Ui, print_json_line};
use super::language::KvChoice;
use super::sampling::SamplingArgs;
use super::session::{Loaded, Session, Setup};
use super::{json, repl};
use crate::gpu;
use crate::probe::perplexity::read_text;
use crate::text::chat::{Answer, Ended};
use crate::text::generation_config::GenerationConfig;
use crate::text::sampler::Chosen;
use crate::text::template::Message;
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  inknib chat -m models/demo-chat                                    a conversation; /help lists its commands
  inknib chat -m models/demo-chat -p \"Tell me a short story about a fox.\"
  echo \"What is 3 plus 4?\" | inknib chat -m models/demo-chat --temp 0.7 --seed 1
  inknib chat -m tinyllama.Q4_0.gguf --chat-template none -p \"Once upon a time\" -n 100
  inknib chat -f question.txt --jsonl | jq -r 'select(.type == \"text\").text'
  inknib chat -p \"Hello!\" --weights fp16 --kernels reference --logprobs 3 --json";

/// Flags of `inknib chat`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// One question; without it a conversation begins
    #[arg(short, long)]
    pub prompt: Option<String>,
    /// The question from a file; - is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// What the assistant is told first
    #[arg(long, visible_alias = "sys")]
    pub system: Option<String>,
    #[command(flatten)]
    pub how: How,
    /// Stream the answer as JSON, one object a line; without -p each line of standard input is a turn
    #[arg(long, conflicts_with = "json")]
    pub jsonl: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub gpu: GpuArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// How a conversation is held in memory and in text.
#[derive(clap::Args, Debug, Clone)]
pub struct How {
    /// Tokens that the conversation may have [default: what the model was trained for, at most 4096]
    #[arg(short = 'c', long, visible_alias = "ctx-size", value_name = "N")]
    pub context: Option<usize>,
    /// How keys and values are cached
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    pub kv: KvChoice,
    /// How turns become text: model, chatml, a Jinja file, or none (a base model goes on writing)
    #[arg(long, value_name = "NAME|FILE", default_value = "model")]
    pub chat_template: String,
}

impl Default for How {
    fn default() -> How {
        How { context: None, kv: KvChoice::Auto, chat_template: "model".into() }
    }
}

/// Answers one question, or holds a conversation.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    let folder = args.model.folder(Some("demo-chat"))?.expect(Family::Llm)?;
    GenerationConfig::load(&folder.path)?.sampler_options(&args.sampling.overrides()).check()?;
    let setup = Setup {
        gpu: &args.gpu,
        folder: &folder.path,
        model: &args.model,
        how: &args.how,
        overrides: args.sampling.overrides(),
    };
    let mut session = Session::open(setup, None, ui)?;
    if let Some(system) = &args.system {
        session.chat_mut().set_system(system);
    }
    for setting in &session.chat().generation().unserved {
        ui.note(&format!(
            "the model's generation_config.json asks for {setting}, which is not followed here"
        ));
    }
    let prompt = match (&args.prompt, &args.file) {
        (Some(prompt), _) => Some(prompt.clone()),
        (None, Some(file)) => Some(read_question(file)?),
        (None, None) if ui.json() => Some(read_question(Path::new("-"))?),
        (None, None) => None,
    };
    match prompt {
        Some(prompt) if args.jsonl => stream(&mut session, &prompt, args).map(drop),
        Some(prompt) => answer(&mut session, &prompt, args, ui),
        None if args.jsonl => stream_turns(&mut session, args),
        None => {
            ui.note(&format!("{} on {}", folder.path.display(), session.gpu.adapter().name));
            let mut talker = Conversation { session, told: false };
            repl::run(&mut talker, &repl::ReplOptions::new(gpu::interrupt()))
        }
    }
}

/// The text of a file, or of standard input for `-`.
fn read_question(file: &Path) -> Result<String> {
    let text = match file == Path::new("-") {
        true => {
            std::io::read_to_string(std::io::stdin()).map_err(|e| Error::io("standard input", e))
        }
        false => read_text(file),
    }?;
    let text = text.trim();
    if text.is_empty() {
        return Err(Error::Usage(format!("{}: there is no question in it", file.display())));
    }
    Ok(text.to_string())
}

fn answer(session: &mut Session, prompt: &str, args: &Args, ui: &Ui) -> Result<()> {
    let answer = say(session, prompt, ui)?;
    if ui.json() {
        ui.answer(&describe(session, &answer, args)?)?;
    } else {
        ui.line("")?;
        ui.note(&summary(session, &answer));
    }
    if answer.ended == Ended::Interrupted { Err(Error::Interrupted) } else { Ok(()) }
}

/// `--jsonl`: `{"type": "text", "text": …}` for each piece as it is certain, then one
/// `{"type": "answer", …}` with all that `--json` prints.
fn stream(session: &mut Session, prompt: &str, args: &Args) -> Result<Answer> {
    let mut broken = Ok(());
    let answer = session.say(prompt, &mut |piece| {
        if broken.is_ok() {
            broken = print_json_line(&json!({ "type": "text", "text": piece }));
        }
    })?;
    broken?;
    let mut last = json!({ "type": "answer" });
    if let (Value::Object(last), Value::Object(all)) =
        (&mut last, describe(session, &answer, args)?)
    {
        last.extend(all);
    }
    print_json_line(&last)?;
    if answer.ended == Ended::Interrupted { Err(Error::Interrupted) } else { Ok(answer) }
}

/// Each line of standard input is a turn: plain text, or a JSON object with `prompt`, or with `messages`
/// that replace the conversation and end with the user's.
fn stream_turns(session: &mut Session, args: &Args) -> Result<()> {
    for line in std::io::stdin().lines() {
        let line = line.map_err(|e| Error::io("standard input", e))?;
        if line.trim().is_empty() {
            continue;
        }
        let prompt = turn(&line, session)?;
        stream(session, &prompt, args)?;
    }
    Ok(())
}

fn turn(line: &str, session: &mut Session) -> Result<String> {
    if !line.trim_start().starts_with('{') {
        return Ok(line.to_string());
    }
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Turn {
        prompt: Option<String>,
        messages: Option<Vec<Message>>,
    }
    let wrong = |why: String| {
        Error::Usage(format!(
            "standard input: {why}; a line is a question, {{\"prompt\": …}} or {{\"messages\": […]}}"
        ))
    };
    let turn: Turn = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
    match (turn.prompt, turn.messages) {
        (Some(prompt), None) => Ok(prompt),
        (None, Some(mut messages)) => match messages.pop() {
            Some(last) if last.role == "user" => {
                session.chat_mut().messages = messages;
                Ok(last.content)
            }
            _ => Err(wrong("the last message is not the user's".into())),
        },
        _ => Err(wrong("give either prompt or messages".into())),
    }
}

/// Streams one answer to stdout.
pub fn say(session: &mut Session, prompt: &str, ui: &Ui) -> Result<Answer> {
    let mut broken = Ok(());
    let answer = session.say(prompt, &mut |piece| {
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
pub fn summary(session: &Session, answer: &Answer) -> String {
    let Session { gpu, loaded, .. } = session;
    let g = &answer.generated;
    format!(
        "  {} ({}), {} weights at {:.2} bits, {} resident\n  load {:.1} s, {} prompt tokens in {:.2} s, \
         {} tokens in {:.2} s ({:.1} tokens/s)",
        gpu.adapter().name,
        gpu.adapter().driver,
        loaded.weights,
        loaded.bits_per_weight,
        gpu::mib(loaded.resident_bytes),
        loaded.seconds,
        g.prompt_tokens,
        g.prefill_seconds,
        g.tokens.len(),
        g.decode_seconds,
        rate(g.tokens.len().saturating_sub(1), g.decode_seconds),
    )
}

fn describe(session: &Session, answer: &Answer, args: &Args) -> Result<Value> {
    let Session { gpu, loaded, .. } = session;
    let g = &answer.generated;
    let s = |v: f64| json::round(v, 4);
    let mut all = json!({
        "text": answer.text,
        "ended": format!("{:?}", answer.ended).to_lowercase(),
        "prompt_tokens": g.prompt_tokens,
        "generated_tokens": g.tokens.len(),
        "adapter": gpu.adapter().name,
        "driver": gpu.adapter().driver,
        "weights": json::weights(&loaded.weights, loaded.bits_per_weight, loaded.resident_bytes),
        "kernels": format!("{:?}", args.model.kernels(gpu)).to_lowercase(),
        "context": loaded.chat.decoder.context(),
        "cache_bytes": loaded.chat.decoder.cache_bytes(),
        "peak_gpu_bytes": gpu.ledger().peak(),
        "compile_seconds": s(gpu.compile_cost().1),
        "kernels_compiled": gpu.compile_cost().0,
        "seconds": { "load": s(loaded.seconds), "prefill": s(g.prefill_seconds), "decode": s(g.decode_seconds) },
        "tokens_per_second": {
            "prefill": s(rate(g.prompt_tokens, g.prefill_seconds)),
            "decode": s(rate(g.tokens.len().saturating_sub(1), g.decode_seconds)),
        },
    });
    if !g.logprobs.is_empty() {
        all["logprobs"] = logprobs(loaded, &g.logprobs)?;
    }
    Ok(all)
}

/// Token, its text, ln p, and the same of the likeliest candidates.
fn logprobs(loaded: &Loaded, chosen: &[Chosen]) -> Result<Value> {
    let one = |token: u32, logprob: f32| -> Result<Value> {
        let text = loaded.chat.tokenizer.decode(&[token], false)?;
        Ok(json!({ "token": token, "text": text, "logprob": json::round(f64::from(logprob), 6) }))
    };
    let entry = |chosen: &Chosen| -> Result<Value> {
        let mut entry = one(chosen.token, chosen.logprob)?;
        let top = chosen.top.iter().map(|(token, p)| one(*token, *p));
        entry["top"] = Value::Array(top.collect::<Result<_>>()?);
        Ok(entry)
    };
    Ok(Value::Array(chosen.iter().map(entry).collect::<Result<_>>()?))
}

/// The conversation as the line editor sees it.
struct Conversation<'a> {
    session: Session<'a>,
    /// Whether the user has been told that old turns are forgotten.
    told: bool,
}

impl repl::Talker for Conversation<'_> {
    fn say(&mut self, user: &str, on_text: &mut dyn FnMut(&str)) -> Result<repl::TurnStats> {
        let answer = self.session.say(user, on_text)?;
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
        self.session.chat_mut().reset();
    }
    fn set_system(&mut self, text: &str) -> Result<()> {
        self.session.chat_mut().set_system(text);
        Ok(())
    }
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        fn read<T: std::str::FromStr>(key: &str, value: &str) -> Result<Option<T>> {
            match value.parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(Error::Usage(format!("{key} cannot be \"{value}\""))),
            }
        }
        let mut new = self.session.chat().overrides.clone();
        match key {
            "temperature" | "temp" => new.temperature = read(key, value)?,
            "top_k" => new.top_k = read(key, value)?,
            "top_p" => new.top_p = read(key, value)?,
            "min_p" => new.min_p = read(key, value)?,
            "typical" => new.typical_p = read(key, value)?,
            "repeat_penalty" => new.repetition_penalty = read(key, value)?,
            "repeat_last_n" => new.penalty_last_n = read(key, value)?,
            "presence_penalty" => new.presence_penalty = read(key, value)?,
            "frequency_penalty" => new.frequency_penalty = read(key, value)?,
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
        self.session.chat().generation().sampler_options(&new).check()?;
        self.session.chat_mut().overrides = new;
        Ok(())
    }
    fn settings(&self) -> Vec<(String, String)> {
        let chat = self.session.chat();
        let o = chat.generation().sampler_options(&chat.overrides);
        let most = chat.overrides.max_new_tokens.or(chat.generation().max_new_tokens);
        [
            ("temperature", o.temperature.to_string()),
            ("top_k", o.top_k.to_string()),
            ("top_p", o.top_p.to_string()),
            ("min_p", o.min_p.to_string()),
            ("typical", o.typical_p.to_string()),
            ("repeat_penalty", o.repetition_penalty.to_string()),
            ("repeat_last_n", o.penalty_last_n.to_string()),
            ("presence_penalty", o.presence_penalty.to_string()),
            ("frequency_penalty", o.frequency_penalty.to_string()),
            ("seed", o.seed.to_string()),
            ("max_tokens", most.map_or("unlimited".into(), |n| n.to_string())),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .to_vec()
    }
    fn messages(&self) -> Vec<Message> {
        self.session.chat().messages.clone()
    }
    fn restore(&mut self, messages: Vec<Message>) -> Result<()> {
        self.session.chat_mut().messages = messages;
        Ok(())
    }
}
