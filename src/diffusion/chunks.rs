//! Prompts in windows of tokens with a weight for each, as AUTOMATIC1111 cuts and weighs them
//! (`tokenize_line` and `process_tokens` in its modules/sd_hijack_clip.py, `EmphasisOriginal` in
//! modules/sd_emphasis.py). A window is what the text encoder takes at once, 77 tokens with both ends; the
//! hidden states of all windows, one behind the other, are the UNet's context.

use super::embedding::{Item, Placeholders};
use super::prompt::{Piece, Prompt, PromptSyntax};
use crate::text::tokenizer::{ClipMarks, ClipTokenizer};
use crate::{Error, Result};

/// A window that is full is cut behind its last comma if that is at most so many tokens back
/// (AUTOMATIC1111's default).
const COMMA_BACKTRACK: usize = 20;

/// A prompt in windows of the text encoder's length. At least one.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunks {
    /// bos, tokens, eos, padding: [`Chunks::length`] ids in each window. Ids from the encoder's
    /// `vocab_size` on are the vectors of embeddings.
    pub ids: Vec<Vec<u32>>,
    /// A weight for each id.
    pub weights: Vec<Vec<f32>>,
    /// Tokens of the prompt that were kept, without ends and padding.
    pub kept: usize,
    /// Tokens of a plain prompt that did not fit.
    pub dropped: usize,
    /// The part of a plain prompt that did not fit, as the user wrote it.
    pub dropped_text: String,
    /// Names of the embeddings that were used, each once.
    pub embeddings: Vec<String>,
    marks: ClipMarks,
    length: usize,
}

impl Chunks {
    /// Cuts a prompt into windows of the tokenizer's length. Plain prompts have one window and give
    /// exactly the ids of diffusers.
    ///
    /// # Errors
    /// `Usage` for an embedding with more vectors than a window has places.
    pub fn new(
        prompt: &Prompt,
        tokenizer: &ClipTokenizer,
        placeholders: &Placeholders,
    ) -> Result<Chunks> {
        let length = tokenizer.length();
        if length < 3 {
            return Err(Error::Model(format!(
                "the tokenizer's model_max_length is {length}; a prompt needs 3 or more"
            )));
        }
        let chunks = Chunks {
            ids: Vec::new(),
            weights: Vec::new(),
            kept: 0,
            dropped: 0,
            dropped_text: String::new(),
            embeddings: Vec::new(),
            marks: tokenizer.marks(),
            length,
        };
        match prompt.syntax {
            PromptSyntax::A1111 => chunks.cut(prompt, tokenizer, placeholders),
            PromptSyntax::Plain => chunks.truncate(prompt, tokenizer, placeholders),
        }
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.ids.len()
    }

    /// Ids in a window.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether any weight is not 1, so that [`emphasize`] changes something.
    pub fn is_weighted(&self) -> bool {
        self.weights.iter().flatten().any(|weight| *weight != 1.0)
    }

    /// Adds empty windows, those of an empty prompt, until there are so many.
    pub fn pad_to(&mut self, windows: usize) {
        while self.windows() < windows {
            self.close(Window::default());
        }
    }

    /// Gives all prompts as many windows as the longest has, so that they are one batch.
    pub fn pad_together(prompts: &mut [&mut Chunks]) {
        let most = prompts.iter().map(|prompt| prompt.windows()).max().unwrap_or(0);
        prompts.iter_mut().for_each(|prompt| prompt.pad_to(most));
    }

    /// Places of a window for tokens of the prompt.
    fn room(&self) -> usize {
        self.length - 2
    }

    fn cut(
        mut self,
        prompt: &Prompt,
        tokenizer: &ClipTokenizer,
        placeholders: &Placeholders,
    ) -> Result<Chunks> {
        let comma = tokenizer.inner().token_id(",</w>");
        let mut window = Window::default();
        for piece in &prompt.pieces {
            let Piece::Text { text, weight } = piece else {
                self.close(std::mem::take(&mut window));
                continue;
            };
            for (item, _) in placeholders.encode(text, tokenizer)? {
                let full = window.ids.len() == self.room();
                if Some(&item) == comma.map(Item::Token).as_ref() {
                    window.comma = Some(window.ids.len());
                } else if full && let Some(rest) = window.split_behind_comma() {
                    self.close(std::mem::replace(&mut window, rest));
                }
                if window.ids.len() == self.room() {
                    self.close(std::mem::take(&mut window));
                }
                if let Item::Vectors { name, count, .. } = item {
                    self.check_room(name, count)?;
                    self.note(name);
                    if window.ids.len() + count > self.room() {
                        self.close(std::mem::take(&mut window));
                    }
                }
                window.push(&item, *weight as f32);
            }
        }
        if !window.ids.is_empty() || self.ids.is_empty() {
            self.close(window);
        }
        Ok(self)
    }

    /// One window; what does not fit is cut off, in the middle of an embedding too.
    fn truncate(
        mut self,
        prompt: &Prompt,
        tokenizer: &ClipTokenizer,
        placeholders: &Placeholders,
    ) -> Result<Chunks> {
        let mut window = Window::default();
        for piece in &prompt.pieces {
            let Piece::Text { text, .. } = piece else { continue };
            for (item, start) in placeholders.encode(text, tokenizer)? {
                if let Item::Vectors { name, .. } = item {
                    self.note(name);
                }
                let before = window.ids.len();
                window.push(&item, 1.0);
                if window.ids.len() > self.room() && self.dropped_text.is_empty() {
                    self.dropped_text = text[start..].to_string();
                }
                self.dropped += window.ids.len() - before.max(self.room()).min(window.ids.len());
            }
        }
        window.truncate(self.room());
        self.close(window);
        Ok(self)
    }

    fn check_room(&self, name: &str, count: usize) -> Result<()> {
        match count <= self.room() {
            true => Ok(()),
            false => Err(Error::Usage(format!(
                "the embedding {name:?} has {count} vectors; a window of this model has room for {}",
                self.room()
            ))),
        }
    }

    fn note(&mut self, name: &str) {
        if !self.embeddings.iter().any(|other| other == name) {
            self.embeddings.push(name.to_string());
        }
    }

    /// Frames a window and adds it. Behind the first eos comes padding, which is eos itself in SD 1.x.
    fn close(&mut self, window: Window) {
        let ClipMarks { bos, eos, pad } = self.marks;
        self.kept += window.ids.len();
        let mut ids = vec![bos];
        ids.extend(window.ids);
        ids.push(eos);
        if let Some(end) = ids.iter().position(|id| *id == eos).filter(|_| pad != eos) {
            ids[end + 1..].fill(pad);
        }
        ids.resize(self.length, pad);
        let mut weights = vec![1.0];
        weights.extend(window.weights);
        weights.resize(self.length, 1.0);
        self.ids.push(ids);
        self.weights.push(weights);
    }
}

/// A window that is being filled.
#[derive(Debug, Default)]
struct Window {
    ids: Vec<u32>,
    weights: Vec<f32>,
    /// Place of the last comma.
    comma: Option<usize>,
}

impl Window {
    fn push(&mut self, item: &Item<'_>, weight: f32) {
        match *item {
            Item::Token(id) => self.ids.push(id),
            Item::Vectors { first, count, .. } => self.ids.extend(first..first + count as u32),
        }
        self.weights.resize(self.ids.len(), weight);
    }

    fn truncate(&mut self, count: usize) {
        self.ids.truncate(count);
        self.weights.truncate(count);
    }

    /// Takes off what follows the last comma, if that is near the end.
    fn split_behind_comma(&mut self) -> Option<Window> {
        let comma = self.comma.filter(|at| self.ids.len() - at <= COMMA_BACKTRACK)?;
        let (ids, weights) = (self.ids.split_off(comma + 1), self.weights.split_off(comma + 1));
        Some(Window { ids, weights, comma: None })
    }
}

/// Multiplies each token's hidden state by its weight, then every value of a window so that the mean of
/// the window is what it was: AUTOMATIC1111's "Original" emphasis. `hidden` is
/// `[windows, length, channels]` of one prompt and one text encoder, `weights` those of its [`Chunks`].
/// SDXL weighs the states of its two encoders apart, before they are joined; pooled states are not
/// weighed. Sums are in f64.
///
/// # Errors
/// `Runtime` if the sizes disagree.
pub fn emphasize(hidden: &mut [f32], weights: &[Vec<f32>]) -> Result<()> {
    let tokens: usize = weights.iter().map(Vec::len).sum();
    if tokens == 0 || !hidden.len().is_multiple_of(tokens) {
        return Err(Error::Runtime(format!(
            "{} hidden values for {tokens} weights; each token has as many channels",
            hidden.len()
        )));
    }
    let channels = hidden.len() / tokens;
    let mut rest = hidden;
    for weights in weights {
        let (window, after) = rest.split_at_mut(weights.len() * channels);
        rest = after;
        if weights.iter().all(|weight| *weight == 1.0) {
            continue;
        }
        let sum = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>();
        let before = sum(window);
        for (token, weight) in window.chunks_exact_mut(channels.max(1)).zip(weights) {
            token.iter_mut().for_each(|value| *value *= weight);
        }
        let factor = before / sum(window);
        // Sums of 0 leave nothing to restore.
        if factor.is_finite() {
            window.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "chunks_tests.rs"]
mod tests;
