//! Prompts as AUTOMATIC1111 reads them: `(word)` weighs 1.1 times as much, `[word]` 1.1 times less,
//! `(word:1.2)` as much as it says, brackets nest, `\(` is a bracket, `BREAK` begins a new window of
//! tokens, `<lora:name:0.8>` asks for an adapter and is no text.
//!
//! Grammar: `parse_prompt_attention` in its modules/prompt_parser.py, `parse_prompt` in
//! modules/extra_networks.py. One thing differs: `BREAK` inside brackets is a break here, where
//! AUTOMATIC1111 multiplies its mark of -1 and then reads a word of negative weight.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How a prompt's text is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptSyntax {
    /// Weights, breaks, adapters; as many windows of tokens as the prompt needs.
    #[default]
    A1111,
    /// Every character is text, and what exceeds one window is cut, as in diffusers.
    Plain,
}

impl PromptSyntax {
    /// Names that `FromStr` takes, for messages and help.
    pub const NAMES: &str = "a1111, plain";
}

impl FromStr for PromptSyntax {
    type Err = Error;
    fn from_str(s: &str) -> Result<PromptSyntax> {
        match s.trim().to_ascii_lowercase().as_str() {
            "a1111" | "automatic1111" => Ok(PromptSyntax::A1111),
            "plain" | "diffusers" | "none" => Ok(PromptSyntax::Plain),
            _ => Err(Error::Usage(format!(
                "unknown prompt syntax {s:?}; valid names: {}",
                PromptSyntax::NAMES
            ))),
        }
    }
}

impl fmt::Display for PromptSyntax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PromptSyntax::A1111 => "a1111",
            PromptSyntax::Plain => "plain",
        })
    }
}

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text whose tokens all weigh the same.
    Text { text: String, weight: f64 },
    /// What follows begins a new window.
    Break,
}

/// `<lora:name:text_encoder:unet>`; one number counts for both, none is 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraTag {
    /// The file's name without its ending, as AUTOMATIC1111 looks it up.
    pub name: String,
    /// Weight of the branches in the text encoder.
    pub text_encoder: f64,
    /// Weight of the branches in the UNet.
    pub unet: f64,
}

/// A prompt in parts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    pub syntax: PromptSyntax,
    pub pieces: Vec<Piece>,
    pub loras: Vec<LoraTag>,
    /// What was read in another sense than its writer may have meant; each is one sentence for the user.
    pub warnings: Vec<String>,
}

impl Prompt {
    /// Reads a prompt. AUTOMATIC1111 looks for adapters in the positive prompt alone; whether those of a
    /// negative prompt count is the caller's business.
    ///
    /// # Errors
    /// `Usage` where a weight is no number.
    pub fn parse(text: &str, syntax: PromptSyntax) -> Result<Prompt> {
        if syntax == PromptSyntax::Plain {
            let pieces = vec![Piece::Text { text: text.to_string(), weight: 1.0 }];
            return Ok(Prompt { syntax, pieces, ..Prompt::default() });
        }
        let mut warnings = Vec::new();
        let (text, loras) = take_extra_networks(text, &mut warnings)?;
        warnings.extend(unsupported(&text));
        let pieces = Attention::default().parse(&text)?;
        Ok(Prompt { syntax, pieces, loras, warnings })
    }
}

/// The text without `<kind:arguments>`, and the adapters among them.
fn take_extra_networks(text: &str, warnings: &mut Vec<String>) -> Result<(String, Vec<LoraTag>)> {
    let (mut kept, mut loras, mut rest) = (String::new(), Vec::new(), text);
    while let Some(start) = rest.find('<') {
        kept.push_str(&rest[..start]);
        rest = &rest[start..];
        let Some((tag, kind, arguments)) = extra_network(rest) else {
            kept.push('<');
            rest = &rest[1..];
            continue;
        };
        match kind {
            "lora" | "lyco" => loras.push(lora_tag(tag, arguments)?),
            _ => warnings.push(format!("{tag} was left out: there is nothing of the kind {kind}")),
        }
        rest = &rest[tag.len()..];
    }
    kept.push_str(rest);
    Ok((kept, loras))
}

/// `<(\w+):([^>]+)>` at the very beginning: the whole, the kind, the arguments.
fn extra_network(text: &str) -> Option<(&str, &str, &str)> {
    let end = text.find('>')?;
    let (kind, arguments) = text[1..end].split_once(':')?;
    let word = !kind.is_empty() && kind.chars().all(is_word);
    (word && !arguments.is_empty()).then_some((&text[..=end], kind, arguments))
}

/// The arguments by place (`name:text encoder:unet`) and by name (`te=`, `unet=`).
fn lora_tag(tag: &str, arguments: &str) -> Result<LoraTag> {
    let number = |text: &str| match text.trim().parse::<f64>() {
        Ok(weight) if weight.is_finite() => Ok(weight),
        _ => Err(Error::Usage(format!("{tag}: {text:?} is no weight; write <lora:name:0.8>"))),
    };
    let (mut placed, mut text_encoder, mut unet) = (Vec::new(), None, None);
    for argument in arguments.split(':') {
        match argument.split_once('=') {
            Some(("te", value)) => text_encoder = Some(number(value)?),
            Some(("unet", value)) => unet = Some(number(value)?),
            Some((name, _)) => {
                let known = "te and unet are known";
                return Err(Error::Usage(format!("{tag}: an unknown argument {name:?}; {known}")));
            }
            None => placed.push(argument),
        }
    }
    let name = placed.first().filter(|name| !name.trim().is_empty());
    let Some(name) = name.map(|name| name.trim().to_string()) else {
        return Err(Error::Usage(format!("{tag}: no name; write <lora:name:0.8>")));
    };
    if placed.len() > 3 {
        return Err(Error::Usage(format!("{tag}: at most a name and two weights are read")));
    }
    let at = |i: usize| placed.get(i).map(|text| number(text)).transpose();
    let text_encoder = text_encoder.or(at(1)?).unwrap_or(1.0);
    Ok(LoraTag { name, text_encoder, unet: unet.or(at(2)?).unwrap_or(text_encoder) })
}

/// A sentence for each notation of AUTOMATIC1111's that is read as text here.
fn unsupported(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if text.split(|c| !is_word(c)).any(|word| word == "AND") {
        found.push("AND is read as a word; prompts are not composed here".to_string());
    }
    let bytes = text.as_bytes();
    let escaped =
        |at: usize| bytes[..at].iter().rev().take_while(|b| **b == b'\\').count() % 2 == 1;
    let mut open = Vec::new();
    for (at, c) in text.char_indices().filter(|(at, c)| matches!(c, '[' | ']') && !escaped(*at)) {
        if c == '[' {
            open.push(at);
            continue;
        }
        let Some(start) = open.pop() else { continue };
        let inside = &text[start + 1..at];
        let when = inside.rsplit_once(':').map(|(_, when)| when.trim().parse::<f64>().is_ok());
        if inside.contains('|') || when == Some(true) {
            let whole = &text[start..=at];
            found.push(format!(
                "{whole} is read as text of less weight; prompts do not change here"
            ));
        }
    }
    found
}

/// A token of the grammar.
#[derive(Debug, PartialEq)]
enum Mark<'t> {
    /// A character behind a backslash; nothing behind one that escapes nothing.
    Escaped(&'t str),
    Round,
    Square,
    EndRound,
    EndSquare,
    /// `:number)` and the number.
    Weight(&'t str, &'t str),
    Text(&'t str),
}

/// The first mark of a text that is not empty, and what follows.
fn mark(text: &str) -> (Mark<'_>, &str) {
    const SPECIAL: [char; 6] = ['\\', '(', ')', '[', ']', ':'];
    let rest = text.get(1..).unwrap_or_default();
    match text.as_bytes().first() {
        Some(b'\\') => {
            let escapes = rest.starts_with(['(', ')', '[', ']', '\\']);
            let (escaped, rest) = rest.split_at(usize::from(escapes));
            (Mark::Escaped(escaped), rest)
        }
        Some(b'(') => (Mark::Round, rest),
        Some(b'[') => (Mark::Square, rest),
        Some(b')') => (Mark::EndRound, rest),
        Some(b']') => (Mark::EndSquare, rest),
        Some(b':') => match weight(text) {
            Some((number, after)) => {
                (Mark::Weight(&text[..text.len() - after.len()], number), after)
            }
            None => (Mark::Text(&text[..1]), rest),
        },
        _ => {
            let (run, rest) = text.split_at(text.find(SPECIAL).unwrap_or(text.len()));
            (Mark::Text(run), rest)
        }
    }
}

/// `:\s*([+-]?[.\d]+)\s*\)` at the very beginning: the number, and what follows.
fn weight(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix(':')?.trim_start();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let after = digits.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let number = &text[..text.len() - after.len()];
    let rest = after.trim_start().strip_prefix(')')?;
    (after.len() < digits.len()).then_some((number, rest))
}

/// The pieces so far and where the open brackets began.
#[derive(Default)]
struct Attention {
    pieces: Vec<Piece>,
    round: Vec<usize>,
    square: Vec<usize>,
}

impl Attention {
    const MORE: f64 = 1.1;
    const LESS: f64 = 1.0 / 1.1;

    fn parse(mut self, text: &str) -> Result<Vec<Piece>> {
        let mut rest = text;
        while !rest.is_empty() {
            let (mark, after) = mark(rest);
            let whole = &rest[..rest.len() - after.len()];
            rest = after;
            match mark {
                Mark::Escaped(text) => self.push(text),
                Mark::Round => self.round.push(self.pieces.len()),
                Mark::Square => self.square.push(self.pieces.len()),
                Mark::Weight(_, number) if !self.round.is_empty() => {
                    let factor = number.parse().map_err(|_| {
                        Error::Usage(format!(
                            "the prompt's weight `{whole}` is no number; write (word:1.2), or \
                             \\( for a bracket that is text"
                        ))
                    })?;
                    let start = self.round.pop();
                    self.multiply(start, factor);
                }
                Mark::EndRound if !self.round.is_empty() => {
                    let start = self.round.pop();
                    self.multiply(start, Attention::MORE);
                }
                Mark::EndSquare if !self.square.is_empty() => {
                    let start = self.square.pop();
                    self.multiply(start, Attention::LESS);
                }
                _ => self.push_with_breaks(whole),
            }
        }
        for start in std::mem::take(&mut self.round) {
            self.multiply(Some(start), Attention::MORE);
        }
        for start in std::mem::take(&mut self.square) {
            self.multiply(Some(start), Attention::LESS);
        }
        Ok(merged(self.pieces))
    }

    fn push(&mut self, text: &str) {
        self.pieces.push(Piece::Text { text: text.to_string(), weight: 1.0 });
    }

    /// Splits at `\s*\bBREAK\b\s*`.
    fn push_with_breaks(&mut self, text: &str) {
        const WORD: &str = "BREAK";
        let (mut start, mut from) = (0, 0);
        while let Some(found) = text[from..].find(WORD) {
            let (at, end) = (from + found, from + found + WORD.len());
            from = end;
            let joined = text[..at].ends_with(is_word) || text[end..].starts_with(is_word);
            if !joined {
                self.push(text[start..at].trim_end());
                self.pieces.push(Piece::Break);
                start = text.len() - text[end..].trim_start().len();
                from = start;
            }
        }
        self.push(&text[start..]);
    }

    fn multiply(&mut self, start: Option<usize>, factor: f64) {
        for piece in self.pieces.iter_mut().skip(start.unwrap_or(0)) {
            if let Piece::Text { weight, .. } = piece {
                *weight *= factor;
            }
        }
    }
}

/// Joins neighbours of the same weight; an empty prompt is one empty text.
fn merged(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut merged: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (merged.last_mut(), piece) {
            (Some(Piece::Text { text, weight }), Piece::Text { text: more, weight: other })
                if *weight == other =>
            {
                text.push_str(&more)
            }
            (_, piece) => merged.push(piece),
        }
    }
    if merged.is_empty() {
        merged.push(Piece::Text { text: String::new(), weight: 1.0 });
    }
    merged
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Text and weight of every piece; a break is ("BREAK", -1), as in AUTOMATIC1111.
    fn pieces(text: &str) -> Vec<(String, f64)> {
        let pieces = Prompt::parse(text, PromptSyntax::A1111).unwrap().pieces;
        let pair = |piece| match piece {
            Piece::Text { text, weight } => (text, weight),
            Piece::Break => ("BREAK".to_string(), -1.0),
        };
        pieces.into_iter().map(pair).collect()
    }

    fn check(text: &str, expected: &[(&str, f64)]) {
        let expected: Vec<(String, f64)> =
            expected.iter().map(|(text, weight)| (text.to_string(), *weight)).collect();
        assert_eq!(pieces(text), expected, "{text:?}");
    }

    /// The examples in the documentation of `parse_prompt_attention`, to the last bit.
    #[test]
    fn automatic1111s_examples() {
        check("normal text", &[("normal text", 1.0)]);
        check("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        check("(unbalanced", &[("unbalanced", 1.1)]);
        check(r"\(literal\]", &[("(literal]", 1.0)]);
        check("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        check(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        );
    }

    /// Cases whose result follows from the regular expression: what closes nothing is text, a lone
    /// backslash vanishes, a weight belongs to round brackets alone.
    #[test]
    fn the_grammars_corners() {
        check("", &[("", 1.0)]);
        check("()", &[("", 1.0)]);
        check("a) b] c:1.2)", &[("a) b] c:1.2)", 1.0)]);
        check(r"a\b \\ c\", &[(r"ab \ c", 1.0)]);
        check("[[less]", &[("less", 1.0 / 1.1 * (1.0 / 1.1))]);
        check("(x : +1.5 ) y", &[("x ", 1.5), (" y", 1.0)]);
        check("(x:-.5)", &[("x", -0.5)]);
        check("[x:1.5]", &[("x:1.5", 1.0 / 1.1)]);
        check("time 12:30 (a:b)", &[("time 12:30 ", 1.0), ("a:b", 1.1)]);
        check("(é猫:1.2)", &[("é猫", 1.2)]);
        check("(a [b) c]", &[("a ", 1.1), ("b", 1.0), (" c", 1.0 / 1.1)]);
    }

    #[test]
    fn breaks_are_words_of_their_own() {
        check("a BREAK b", &[("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]);
        check("BREAK", &[("", 1.0), ("BREAK", -1.0), ("", 1.0)]);
        check("aBREAK BREAKs break", &[("aBREAK BREAKs break", 1.0)]);
        check(
            "a\nBREAK, BREAK b",
            &[("a", 1.0), ("BREAK", -1.0), (",", 1.0), ("BREAK", -1.0), ("b", 1.0)],
        );
        // In brackets: AUTOMATIC1111 reads a word of weight -1.2 here.
        check("(a BREAK b:1.2)", &[("a", 1.2), ("BREAK", -1.0), ("b", 1.2)]);
    }

    #[test]
    fn adapters_are_taken_out() {
        let text =
            "a <lora:one:0.5>cat<lora:two>, <lyco:three:0.5:0.25>(x<lora:f:te=2:unet=-1>:1.2)";
        let prompt = Prompt::parse(text, PromptSyntax::A1111).unwrap();
        let tag =
            |name: &str, text_encoder, unet| LoraTag { name: name.to_string(), text_encoder, unet };
        let expected = [
            tag("one", 0.5, 0.5),
            tag("two", 1.0, 1.0),
            tag("three", 0.5, 0.25),
            tag("f", 2.0, -1.0),
        ];
        assert_eq!(prompt.loras, expected);
        check(text, &[("a cat, ", 1.0), ("x", 1.2)]);
        // `<name>` is a word of diffusers' textual inversion, not an adapter.
        check("<cat-toy> <a:> 1 < 2", &[("<cat-toy> <a:> 1 < 2", 1.0)]);
        let prompt = Prompt::parse("<hypernet:x:1>a", PromptSyntax::A1111).unwrap();
        assert!(prompt.warnings[0].contains("hypernet"), "{:?}", prompt.warnings);
    }

    #[test]
    fn what_is_no_number_is_an_error() {
        for text in ["<lora:a:b>", "<lora::1>", "<lora:a:1:1:8>", "<lora:a:dyn=3>", "(a:1.2.3)"] {
            let error = Prompt::parse(text, PromptSyntax::A1111).unwrap_err();
            assert!(matches!(error, Error::Usage(_)), "{text}: {error}");
        }
    }

    #[test]
    fn other_notations_are_reported() {
        let warnings = |text| Prompt::parse(text, PromptSyntax::A1111).unwrap().warnings.len();
        assert_eq!(warnings("a cat AND a dog"), 1);
        assert_eq!(warnings("a [cat:dog:0.5] in [blue|red] [snow] [a:b]"), 2);
        assert_eq!(warnings(r"SAND \[cat:0.5\] (cat:1.5)"), 0);
    }

    #[test]
    fn plain_text_stays_as_it_is() {
        let text = r"a (b:1.2) BREAK <lora:x:1> \(";
        let prompt = Prompt::parse(text, PromptSyntax::Plain).unwrap();
        assert_eq!(prompt.pieces, [Piece::Text { text: text.to_string(), weight: 1.0 }]);
        assert!(prompt.loras.is_empty());
        assert_eq!("diffusers".parse::<PromptSyntax>().unwrap(), PromptSyntax::Plain);
        assert!("x".parse::<PromptSyntax>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[a-c BREAK()\\[\\]:.\\\\<>1é\n|]{0,40}") {
            // Errors are fine, panics are not; without marks nothing changes.
            let _ = Prompt::parse(&text, PromptSyntax::A1111);
        }

        #[test]
        fn text_without_marks_stays(text in "[a-z, .!?0-9é猫]{0,40}") {
            let prompt = Prompt::parse(&text, PromptSyntax::A1111).unwrap();
            prop_assert_eq!(prompt.pieces, vec![Piece::Text { text, weight: 1.0 }]);
        }
    }
}
