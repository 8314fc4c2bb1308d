//! A conversation with a language model: turns → template → tokens → streamed text.

use std::path::Path;

use super::decoder::{Decoder, Generated};
use super::generation_config::{GenerationConfig, Overrides};
use super::sampler::Sampler;
use super::stop::{Stop, StopMatcher};
use super::template::{Message, RenderOptions, Template};
use super::tokenizer::{Streamer, Tokenizer};
use crate::{Error, Result};

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// An end-of-turn token or a stop string.
    Stop,
    /// The limit of new tokens, or the end of the context.
    Length,
    /// Ctrl-C.
    Interrupted,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub text: String,
    pub ended: Ended,
    pub generated: Generated,
    /// Turns that had to be forgotten because the context was full.
    pub forgotten: usize,
}

/// How a conversation becomes one text.
pub enum Turns {
    /// As the model was trained to hold conversations.
    Template(Box<Template>),
    /// The turns follow each other with nothing between them: a base model goes on writing.
    Plain,
}

impl Turns {
    /// `model`: the template that comes with the model; `none`: [`Turns::Plain`]; `chatml`; else a file
    /// with a Jinja template. The model's folder gives the special tokens' names.
    pub fn choose(name: &str, folder: &Path) -> Result<Turns> {
        let template = match name {
            "model" => Template::load(folder)?,
            "none" => return Ok(Turns::Plain),
            "chatml" => Template::chatml()?,
            file => {
                let source = std::fs::read_to_string(file).map_err(|e| {
                    Error::Usage(format!(
                        "--chat-template {file}: {e}; give model, chatml, none or a file with a Jinja template"
                    ))
                })?;
                let special = Tokenizer::load(folder)?.special().clone();
                Template::new(&source, special, file)?
            }
        };
        Ok(Turns::Template(Box::new(template)))
    }

    fn tokens(&self, messages: &[Message], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        match self {
            Turns::Template(template) => {
                let text = template.render(messages, &RenderOptions::default())?;
                tokenizer.encode(&text, false)
            }
            Turns::Plain => {
                let text: String = messages.iter().map(|m| m.content.as_str()).collect();
                tokenizer.encode(&text, true)
            }
        }
    }
}

/// A conversation.
pub struct Chat {
    pub decoder: Decoder,
    pub tokenizer: Tokenizer,
    turns: Turns,
    generation: GenerationConfig,
    pub overrides: Overrides,
    pub messages: Vec<Message>,
}

/// Tokens kept free for an answer when old turns are dropped.
const ROOM: usize = 64;

impl Chat {
    /// Reads tokenizer and generation settings from the model's folder.
    pub fn new(
        decoder: Decoder,
        folder: &Path,
        turns: Turns,
        overrides: Overrides,
    ) -> Result<Chat> {
        let tokenizer = Tokenizer::load(folder)?;
        let vocab = decoder.net().config().vocab_size();
        if tokenizer.vocab_size() > vocab {
            return Err(Error::Model(format!(
                "{}: the tokenizer has {} entries, the model's embedding {vocab}; they do not belong together",
                folder.display(),
                tokenizer.vocab_size()
            )));
        }
        let generation = GenerationConfig::load(folder)?;
        Ok(Chat { decoder, tokenizer, turns, generation, overrides, messages: Vec::new() })
    }

    /// Replaces the system text and forgets all turns.
    pub fn set_system(&mut self, text: &str) {
        self.messages.clear();
        if !text.is_empty() {
            self.messages.push(Message::system(text));
        }
    }
    /// Forgets all turns but the system text.
    pub fn reset(&mut self) {
        self.messages.retain(|m| m.role == "system");
        self.decoder.reset();
    }
    /// Settings in force.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Answers a user's turn; text is given out as soon as it is certain. The turn and its answer are
    /// remembered, also when the answer was cut short.
    pub fn say(&mut self, user: &str, on_text: &mut dyn FnMut(&str)) -> Result<Answer> {
        self.messages.push(Message::user(user));
        let answer = self.answer(on_text);
        match &answer {
            Ok(answer) => self.messages.push(Message::assistant(&answer.text)),
            Err(_) => {
                self.messages.pop();
            }
        }
        answer
    }

    fn answer(&mut self, on_text: &mut dyn FnMut(&str)) -> Result<Answer> {
        let (ids, forgotten) = self.prompt()?;
        let options = self.generation.sampler_options(&self.overrides);
        let mut sampler = Sampler::new(options)?;
        let most =
            self.generation.new_token_limit(&self.overrides, ids.len(), self.decoder.context());
        let mut stops = StopMatcher::new(
            self.tokenizer.end_of_turn_ids(),
            [&self.generation.stop_strings[..], &self.overrides.stop].concat(),
        );
        let mut streamer = Streamer::after(&self.tokenizer, &ids, true);
        let (mut text, mut stopped) = (String::new(), None::<Stop>);
        let mut show = |piece: &str, text: &mut String| {
            if !piece.is_empty() {
                text.push_str(piece);
                on_text(piece);
            }
        };
        let generated = self.decoder.generate(&ids, most, &mut sampler, &mut |token| {
            stopped = stops.token(token);
            if stopped.is_none()
                && let Some(piece) = streamer.push(token)?
            {
                let (piece, stop) = stops.push(&piece);
                show(&piece, &mut text);
                stopped = stop;
            }
            Ok(stopped.is_none())
        })?;
        if let Some(rest) = streamer.finish()?.filter(|_| stopped.is_none()) {
            let (piece, stop) = stops.push(&rest);
            show(&piece, &mut text);
            stopped = stop;
        }
        if !matches!(stopped, Some(Stop::Text(_))) {
            show(&stops.finish(), &mut text);
        }
        let ended = match stopped {
            _ if generated.interrupted => Ended::Interrupted,
            Some(_) => Ended::Stop,
            None => Ended::Length,
        };
        Ok(Answer { text, ended, generated, forgotten })
    }

    /// The conversation as tokens; the oldest turns are dropped until an answer has room.
    fn prompt(&mut self) -> Result<(Vec<u32>, usize)> {
        let context = self.decoder.context();
        let mut forgotten = 0;
        loop {
            let ids = self.turns.tokens(&self.messages, &self.tokenizer)?;
            if ids.len() + ROOM.min(context / 4) <= context {
                return Ok((ids, forgotten));
            }
            let first = usize::from(self.messages.first().is_some_and(|m| m.role == "system"));
            if self.messages.len() <= first + 1 {
                return Err(Error::Usage(format!(
                    "the prompt has {} tokens, the context holds {context}; shorten it or raise -c",
                    ids.len()
                )));
            }
            // A question goes together with its answer.
            self.messages.drain(first..(first + 2).min(self.messages.len() - 1));
            forgotten += 1;
        }
    }
}
