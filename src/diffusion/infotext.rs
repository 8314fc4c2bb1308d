//! AUTOMATIC1111's generation parameters, the text that its PNG files carry under `parameters`:
//! ```text
//! prompt, any number of lines
//! Negative prompt: any number of lines
//! Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model: "a, b"
//! ```
//! Grammar: `create_infotext` in its modules/processing.py, `parse_generation_parameters` and `quote` in
//! modules/infotext_utils.py. The last line counts as fields only if it has at least three.

use std::fmt;

/// Generation parameters: two prompts and fields in order.
///
/// The grammar keeps no blanks at the ends of prompt lines, no blank first or last line, and takes a line
/// of the prompt that begins with `Negative prompt:` for what it says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Infotext {
    pub prompt: String,
    pub negative_prompt: String,
    /// (key, value) in the order of writing: Steps, Sampler, Schedule type, CFG scale, Seed, Size, …
    pub fields: Vec<(String, String)>,
}

const NEGATIVE: &str = "Negative prompt:";
/// Fewer fields in the last line, and it belongs to the prompt.
const MIN_FIELDS: usize = 3;

impl Infotext {
    /// Prompts without fields.
    pub fn new(prompt: impl Into<String>, negative_prompt: impl Into<String>) -> Infotext {
        Infotext {
            prompt: prompt.into(),
            negative_prompt: negative_prompt.into(),
            fields: Vec::new(),
        }
    }

    /// Adds a field at the end. A key is at least two characters, a letter or digit first, then
    /// letters, digits, blanks, `-`, `/` and `_`; any other character becomes `_`, and a key that is too
    /// short is filled up with `_`, because a reader would not find it.
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Infotext {
        let mut key: String = key.trim().chars().map(|c| if is_key(c) { c } else { '_' }).collect();
        if !key.starts_with(is_word) {
            key.insert(0, '_');
        }
        if key.chars().count() < 2 {
            key.push('_');
        }
        self.fields.push((key, value.to_string()));
        self
    }

    /// Value of the first field with this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Value of a field as a number or another type.
    pub fn get_as<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.get(key)?.parse().ok()
    }

    /// Width and height of the `Size` field.
    pub fn size(&self) -> Option<(usize, usize)> {
        let (width, height) = self.get("Size")?.split_once('x')?;
        Some((width.parse().ok()?, height.parse().ok()?))
    }

    /// Reads any text; what is no field is prompt.
    pub fn parse(text: &str) -> Infotext {
        let text = text.trim();
        let (mut lines, last) = match text.rsplit_once('\n') {
            Some((lines, last)) => (lines.split('\n').collect(), last),
            None => (Vec::new(), text),
        };
        let mut fields = parse_fields(last);
        if fields.len() < MIN_FIELDS {
            fields.clear();
            lines.push(last);
        }
        let mut info = Infotext { fields, ..Infotext::default() };
        let mut negative = false;
        for line in lines {
            let mut line = line.trim();
            if let Some(rest) = line.strip_prefix(NEGATIVE) {
                negative = true;
                line = rest.trim();
            }
            let part = if negative { &mut info.negative_prompt } else { &mut info.prompt };
            if !part.is_empty() {
                part.push('\n');
            }
            part.push_str(line);
        }
        info
    }
}

impl fmt::Display for Infotext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.prompt.clone();
        if !self.negative_prompt.is_empty() {
            text.push_str(&format!("\n{NEGATIVE} {}", self.negative_prompt));
        }
        let fields: Vec<String> =
            self.fields.iter().map(|(key, value)| format!("{key}: {}", quote(value))).collect();
        if !fields.is_empty() {
            text.push('\n');
            text.push_str(&fields.join(", "));
        }
        f.write_str(text.trim())
    }
}

/// A JSON string where the reader would not see the whole value. AUTOMATIC1111 quotes commas, colons
/// and newlines; blanks at an end, other control characters and a quotation mark in front are quoted too,
/// because its reader would take them for something else.
fn quote(value: &str) -> String {
    let special = |c: char| matches!(c, ',' | ':') || c.is_control();
    let unsafe_ends = value.starts_with('"') || value.trim() != value;
    if !value.contains(special) && !unsafe_ends {
        return value.to_string();
    }
    serde_json::Value::from(value).to_string()
}

fn unquote(value: &str) -> String {
    serde_json::from_str::<String>(value).unwrap_or_else(|_| value.to_string())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_key(c: char) -> bool {
    is_word(c) || matches!(c, ' ' | '-' | '/')
}

/// All matches of `\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)`, one after the other.
fn parse_fields(line: &str) -> Vec<(String, String)> {
    let (mut fields, mut rest) = (Vec::new(), line);
    while let Some(c) = rest.chars().next() {
        match match_field(rest) {
            Some((key, value, after)) => {
                fields.push((key.to_string(), unquote(value)));
                rest = after;
            }
            None => rest = &rest[c.len_utf8()..],
        }
    }
    fields
}

/// One match at the very beginning: key, raw value, and what follows.
fn match_field(text: &str) -> Option<(&str, &str, &str)> {
    let text = text.trim_start();
    let key = &text[..text.find(|c| !is_key(c))?];
    let value = text[key.len()..].strip_prefix(':')?.trim_start();
    if !key.starts_with(is_word) || key.chars().count() < 2 {
        return None;
    }
    let end = match quoted_end(value) {
        Some(end) if value[end..].is_empty() || value[end..].starts_with(',') => end,
        _ => value.find(',').unwrap_or(value.len()),
    };
    let after = &value[end..];
    Some((key, &value[..end], after.strip_prefix(',').unwrap_or(after)))
}

/// Length of a quoted string with at least one character, if `value` begins with one.
fn quoted_end(value: &str) -> Option<usize> {
    let mut inside = value.strip_prefix('"')?.char_indices();
    while let Some((at, c)) = inside.next() {
        match c {
            '\\' => drop(inside.next()?),
            '"' => return (at > 0).then_some(at + 2),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(info: &Infotext) -> Vec<(&str, &str)> {
        info.fields.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
    }

    #[test]
    fn writes_what_automatic1111_writes() {
        let info = Infotext::new("a cat, (red:1.2)\nsecond line", "blur")
            .with("Steps", 20)
            .with("Sampler", "DPM++ 2M")
            .with("Schedule type", "Karras")
            .with("CFG scale", 7.5)
            .with("Seed", u64::MAX)
            .with("Size", "512x768")
            .with("Model", "a, \"b\": c")
            .with("Note", "two\nlines");
        let text = "a cat, (red:1.2)\nsecond line\nNegative prompt: blur\nSteps: 20, \
                    Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, \
                    Seed: 18446744073709551615, Size: 512x768, Model: \"a, \\\"b\\\": c\", \
                    Note: \"two\\nlines\"";
        assert_eq!(info.to_string(), text);
        assert_eq!(Infotext::parse(text), info);
        assert_eq!(info.size(), Some((512, 768)));
        assert_eq!(info.get_as::<u64>("Seed"), Some(u64::MAX));
    }

    #[test]
    fn reads_as_the_regular_expression_does() {
        // Expected values from Python's re.findall with the expression above `parse_fields`.
        let info = Infotext::parse(
            "p\nSteps: 1, x: 2, Custom Sigmas: [a, b], -Key: 3, Hashes: {\"a\": 1}, last: ",
        );
        let expected = [
            ("Steps", "1"),
            ("Custom Sigmas", "[a"),
            ("Key", "3"),
            ("Hashes", "{\"a\": 1}"),
            ("last", ""),
        ];
        assert_eq!(pairs(&info), expected);
        let info =
            Infotext::parse("p\nab: \"q\" r, cd: \"\", ef: \"open, gh: \"x,\\\"y\", ij:\"k\"");
        let expected =
            [("ab", "\"q\" r"), ("cd", ""), ("ef", "\"open"), ("gh", "x,\"y"), ("ij", "k")];
        assert_eq!(pairs(&info), expected);
    }

    #[test]
    fn short_last_lines_are_prompt() {
        let info = Infotext::parse("time: noon, place: Rome");
        assert_eq!((info.prompt.as_str(), info.fields.len()), ("time: noon, place: Rome", 0));
        let info = Infotext::parse("Negative prompt: only this");
        assert_eq!((info.prompt.as_str(), info.negative_prompt.as_str()), ("", "only this"));
        assert_eq!(Infotext::parse(""), Infotext::default());
    }

    #[test]
    fn odd_keys_are_made_readable() {
        let info = Infotext::new("p", "").with("a", 1).with("x:y,z", 2).with("-k", 3);
        assert_eq!(pairs(&info), [("a_", "1"), ("x_y_z", "2"), ("_-k", "3")]);
        assert_eq!(Infotext::parse(&info.to_string()), info);
    }

    /// Prompts as the grammar can keep them: trimmed lines, none a negative prompt, first and last not
    /// blank.
    fn prompt() -> impl Strategy<Value = String> {
        prop::collection::vec("[^\n\r\t]{0,20}", 0..4).prop_map(|lines| {
            let lines: Vec<&str> = lines.iter().map(|l| l.trim()).collect();
            lines.join("\n").replace(NEGATIVE, "").trim().to_string()
        })
    }

    proptest! {
        #[test]
        fn every_value_survives(
            prompt in prompt(),
            negative in prompt(),
            values in prop::collection::vec("\\PC{0,12}|[\" ,:\\\\\n\t]{0,6}", 3..8),
        ) {
            let mut info = Infotext::new(
                Infotext::parse(&prompt).prompt,
                Infotext::parse(&negative).prompt,
            );
            for (i, value) in values.iter().enumerate() {
                info = info.with(&format!("Key {i}"), value);
            }
            prop_assert_eq!(Infotext::parse(&info.to_string()), info);
        }

        #[test]
        fn any_text_is_read(text in "(?s).{0,80}") {
            let _ = Infotext::parse(&text);
        }
    }
}
