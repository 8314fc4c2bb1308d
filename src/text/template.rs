//! Chat templates: a conversation to the text that a model was trained on.
//!
//! The dialect is the Hub's: Jinja as transformers configures it (utils/chat_template_utils.py,
//! `_cached_compile_jinja_template`) with `trim_blocks`, `lstrip_blocks`, loop controls,
//! `raise_exception`, `strftime_now`, a `tojson` that is `json.dumps`, the `generation` tag, and
//! Python's methods on strings and dictionaries. Templates come with a model file and are not trusted:
//! they see only the conversation, and fuel stops one that never ends.

use std::fmt::Write as _;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, State};
use serde_json::{Map, Value as Json};

use super::gguf_vocab;
use super::python::{strftime, tojson};
use super::tokenizer::{SpecialTokens, read_object};
use crate::weights::{Gguf, gguf_file};
use crate::{Error, Result};

/// The format of models that were never given one, when a user asks for it.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' \
    + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Instructions that one rendering may take. The longest templates of the Hub need some tens of
/// thousands for a hundred turns; this many take well under a second.
const FUEL: u64 = 5_000_000;

/// Marks the message of `raise_exception` among other errors of the template engine.
const RAISED: &str = "raise_exception: ";

/// One turn. Fields beside role and content (`tool_calls`, `name`, `tool_call_id`, …) go to the template
/// as they are, and a `content` among them (a list of parts, or null) replaces the text.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    pub content: String,
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

impl Message {
    /// A turn of plain text.
    pub fn new(role: &str, content: &str) -> Message {
        Message { role: role.to_string(), content: content.to_string(), extra: Map::new() }
    }

    pub fn system(content: &str) -> Message {
        Message::new("system", content)
    }

    pub fn user(content: &str) -> Message {
        Message::new("user", content)
    }

    pub fn assistant(content: &str) -> Message {
        Message::new("assistant", content)
    }
}

/// What a rendering depends on beside the messages.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderOptions {
    /// End with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Tool schemas in OpenAI's form; `None` is what templates know as "no tools".
    pub tools: Option<Json>,
    /// Documents for retrieval templates.
    pub documents: Option<Json>,
    /// Seconds since 1970-01-01 for `strftime_now`; `None` is the present. The zone is UTC.
    pub now: Option<i64>,
    /// More variables, `enable_thinking` for example.
    pub variables: Map<String, Json>,
}

impl Default for RenderOptions {
    fn default() -> RenderOptions {
        RenderOptions {
            add_generation_prompt: true,
            tools: None,
            documents: None,
            now: None,
            variables: Map::new(),
        }
    }
}

/// A compiled chat template. The rendered text holds its special tokens: encode it with
/// `add_special = false`.
#[derive(Clone, Debug)]
pub struct Template {
    environment: Environment<'static>,
    special: SpecialTokens,
    origin: String,
    /// The model has a template of its own for conversations with tools.
    with_tools: bool,
}

impl Template {
    /// The template of a model folder: `chat_template.jinja`, else `tokenizer_config.json`, else
    /// `chat_template.json`. A list of named templates gives `default`, and `tool_use` for
    /// conversations with tools. A GGUF file has its template inside.
    pub fn load(folder: impl AsRef<Path>) -> Result<Template> {
        let folder = folder.as_ref();
        if let Some(file) = gguf_file(folder)? {
            return Template::from_gguf(&Gguf::open(file)?);
        }
        let special = SpecialTokens::load(folder)?;
        let file = folder.join("chat_template.jinja");
        if file.is_file() {
            let source = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
            return Template::new(&source, special, &file.display().to_string());
        }
        for name in ["tokenizer_config.json", "chat_template.json"] {
            let file = folder.join(name);
            let origin = format!("{}: chat_template", file.display());
            match read_object(&file)?.and_then(|mut map| map.remove("chat_template")) {
                Some(Json::String(source)) => return Template::new(&source, special, &origin),
                Some(Json::Array(list)) => return Template::named(&list, special, &origin),
                None | Some(Json::Null) => {}
                Some(_) => {
                    return Err(Error::Model(format!("{origin} is neither a string nor a list")));
                }
            }
        }
        Err(Error::Model(format!(
            "{}: no chat template (looked for chat_template.jinja and for chat_template in \
             tokenizer_config.json and chat_template.json); a base model has none. \
             --chat-template none lets it go on with your text; chatml, or a file, if it was trained on one",
            folder.display()
        )))
    }

    /// The template inside a GGUF file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Template> {
        let special = gguf_vocab::special_tokens(gguf)?;
        let file = gguf.path().display();
        let origin = format!("{file}: tokenizer.chat_template");
        match gguf_vocab::chat_template(gguf)? {
            Some(Json::String(source)) => Template::new(&source, special, &origin),
            Some(Json::Array(list)) => Template::named(&list, special, &origin),
            _ => Err(Error::Model(format!(
                "{file}: no chat template (tokenizer.chat_template); a base model has none. \
                 --chat-template none lets it go on with your text; chatml, or a file, if it was trained \
                 on one"
            ))),
        }
    }

    /// A template from its source. `origin` is named in messages.
    pub fn new(source: &str, special: SpecialTokens, origin: &str) -> Result<Template> {
        let mut template = Template {
            environment: environment(),
            special,
            origin: origin.to_string(),
            with_tools: false,
        };
        template.add("default", source)?;
        Ok(template)
    }

    /// The ChatML format, for models that state none.
    pub fn chatml() -> Result<Template> {
        Template::new(CHATML, SpecialTokens::default(), "ChatML")
    }

    fn named(list: &[Json], special: SpecialTokens, origin: &str) -> Result<Template> {
        let find = |wanted: &str| {
            let entry = list.iter().find(|e| e["name"] == wanted)?;
            entry["template"].as_str()
        };
        let Some(source) = find("default") else {
            let names: Vec<&str> = list.iter().filter_map(|e| e["name"].as_str()).collect();
            return Err(Error::Model(format!(
                "{origin} has no entry named default among {names:?}"
            )));
        };
        let mut template = Template::new(source, special, origin)?;
        if let Some(source) = find("tool_use") {
            template.add("tool_use", source)?;
            template.with_tools = true;
        }
        Ok(template)
    }

    fn add(&mut self, name: &'static str, source: &str) -> Result<()> {
        self.environment
            .add_template_owned(name, without_generation_tags(source))
            .map_err(|e| Error::Model(format!("{}: {}", self.origin, explain(&e))))
    }

    /// The text of a conversation.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let tools = options.tools.as_ref().filter(|tools| !tools.is_null());
        let name = if tools.is_some() && self.with_tools { "tool_use" } else { "default" };
        let mut variables: Vec<(String, Value)> =
            self.special.iter().map(|(k, v)| (k.to_string(), Value::from(v))).collect();
        let now = options.now.unwrap_or_else(unix_now);
        let optional = |json: Option<&Json>| json.map_or_else(|| Value::from(()), to_value);
        let mut set = |key: &str, value: Value| variables.push((key.to_string(), value));
        set("messages", messages.iter().map(message_value).collect());
        set("tools", optional(tools));
        set("documents", optional(options.documents.as_ref()));
        set("add_generation_prompt", Value::from(options.add_generation_prompt));
        set("strftime_now", Value::from_function(move |format: String| strftime(&format, now)));
        for (key, value) in &options.variables {
            set(key, to_value(value));
        }
        let context = Value::from_pairs(variables);
        let rendered = self.environment.get_template(name).and_then(|t| t.render(context));
        rendered.map_err(|e| self.error(&e))
    }

    fn error(&self, error: &minijinja::Error) -> Error {
        if let Some(reason) = raised(error) {
            return Error::Usage(format!("{} refuses this conversation: {reason}", self.origin));
        }
        if error.kind() == ErrorKind::OutOfFuel {
            return Error::Model(format!(
                "{} did not end within {FUEL} instructions; it loops, or the conversation is far too \
                 long",
                self.origin
            ));
        }
        Error::Model(format!("{}: {}", self.origin, explain(error)))
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(method);
    environment.set_formatter(python_format);
    environment.add_filter("tojson", tojson);
    environment.add_function(
        "raise_exception",
        |reason: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{reason}")))
        },
    );
    environment
}

/// Python's methods: those of minijinja-contrib and the few more that templates call.
fn method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, minijinja::Error> {
    if let (Some(text), [arg]) = (value.as_str(), args)
        && let Some(part) = arg.as_str()
    {
        match method {
            "removeprefix" => return Ok(Value::from(text.strip_prefix(part).unwrap_or(text))),
            "removesuffix" => return Ok(Value::from(text.strip_suffix(part).unwrap_or(text))),
            _ => {}
        }
    }
    if let ("title", Some(text), []) = (method, value.as_str(), args) {
        return Ok(Value::from(title(text)));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// `str.title`: a letter is a capital unless a letter stands before it ("o'Neil" gives "O'Neil").
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = c.is_alphabetic();
    }
    out
}

/// `{{ x }}` as Python's `str` writes it.
fn python_format(
    out: &mut minijinja::Output,
    state: &mut State,
    value: &Value,
) -> Result<(), minijinja::Error> {
    use minijinja::value::ValueKind::{Bool, None};
    let word = match value.kind() {
        Bool if value.is_true() => "True",
        Bool => "False",
        None => "None",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(minijinja::Error::from)
}

/// `{% generation %}` marks the assistant's words for training and prints its body unchanged, which is
/// what a block that is always taken does.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        out.push_str(&rest[..at + 2]);
        rest = &rest[at + 2..];
        let Some(end) = rest.find("%}") else { break };
        let tag = &rest[..end];
        match tag.trim_matches(['-', '+', ' ', '\t', '\n']) {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn message_value(message: &Message) -> Value {
    let mut map = Map::new();
    map.insert("role".to_string(), Json::from(message.role.as_str()));
    map.insert("content".to_string(), Json::from(message.content.as_str()));
    map.extend(message.extra.clone());
    to_value(&Json::Object(map))
}

fn to_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (_, Some(u)) => Value::from(u),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(list) => list.iter().map(to_value).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.clone(), to_value(v)))),
    }
}

fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs() as i64)
}

/// The reason given to `raise_exception`, wherever in the chain of errors it is.
fn raised(error: &minijinja::Error) -> Option<&str> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = next {
        let detail = e.downcast_ref::<minijinja::Error>().and_then(|e| e.detail());
        if let Some(reason) = detail.and_then(|d| d.strip_prefix(RAISED)) {
            return Some(reason);
        }
        next = e.source();
    }
    None
}

/// Kind, detail and line of an error, and its causes.
fn explain(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let _ = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}
