//! A conversation at the terminal: line editing, commands, streamed answers. Knows no model; what
//! answers is a [`Talker`].
//!
//! Ctrl-C while editing drops the line; Ctrl-C during an answer stops the answer. rustyline takes over
//! SIGINT only inside of `readline` and gives it back to the handler that was there (the one that sets
//! the interrupt flag), so the handler has to be installed before [`run`], never while a line is edited.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustyline::error::{ReadlineError, Signal};
use rustyline::history::History;

use crate::files::{temporary_beside, write_whole};
use crate::text::template::Message;
use crate::{Error, Result};

/// What one answer cost.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TurnStats {
    /// Tokens of the prompt that were computed for this turn (the cached part is not counted).
    pub prompt_tokens: usize,
    pub generated_tokens: usize,
    /// Seconds until the first token was known.
    pub prefill_seconds: f64,
    /// Seconds for the tokens after it.
    pub decode_seconds: f64,
    /// The answer was stopped by the user.
    pub interrupted: bool,
    /// The answer hit the limit of new tokens or the end of the context.
    pub cut: bool,
}

/// Something that holds a conversation.
pub trait Talker {
    /// Answers a user's turn, giving out text as it is certain. When the interrupt flag is set during
    /// the answer it returns soon, with what there is and `interrupted`, or `Error::Interrupted`.
    fn say(&mut self, user: &str, on_text: &mut dyn FnMut(&str)) -> Result<TurnStats>;
    /// Forgets every turn; the system text stays.
    fn reset(&mut self);
    /// Sets the system text, and forgets every turn, because they were answered under the old one.
    /// An empty text removes it.
    fn set_system(&mut self, text: &str) -> Result<()>;
    /// Changes a setting (`temperature`, `seed`, …) for the next answers.
    fn set(&mut self, key: &str, value: &str) -> Result<()>;
    /// Names and values of all settings, for `/set` alone.
    fn settings(&self) -> Vec<(String, String)>;
    /// The conversation so far, the system text first if there is one.
    fn messages(&self) -> Vec<Message>;
    /// Replaces the conversation.
    fn restore(&mut self, messages: Vec<Message>) -> Result<()>;
}

/// How a conversation runs.
pub struct ReplOptions {
    /// Set by the Ctrl-C handler; cleared here before every answer.
    pub interrupt: &'static AtomicBool,
    /// Shown before a line, at a terminal only.
    pub prompt: String,
    /// Where lines are remembered; `None` remembers nothing. See [`history_file`].
    pub history: Option<PathBuf>,
    /// Print a timing line after each answer from the start.
    pub timing: bool,
}

impl ReplOptions {
    /// The usual prompt and history file, no timing.
    pub fn new(interrupt: &'static AtomicBool) -> ReplOptions {
        ReplOptions { interrupt, prompt: "> ".to_string(), history: history_file(), timing: false }
    }
}

/// `$XDG_STATE_HOME/inknib/chat_history`, else `~/.local/state/inknib/chat_history`
/// (`%LOCALAPPDATA%\inknib\chat_history` on Windows).
pub fn history_file() -> Option<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = if cfg!(windows) { absolute("LOCALAPPDATA") } else { absolute("XDG_STATE_HOME") }
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("inknib").join("chat_history"))
}

/// Runs a conversation on standard input and output until `/bye` or the end of the input. At a
/// terminal lines are edited; from a pipe every line is a turn, there is no prompt, and the first
/// error ends it.
pub fn run(talker: &mut dyn Talker, options: &ReplOptions) -> Result<()> {
    let (mut out, mut notes) = (std::io::stdout(), std::io::stderr());
    if std::io::stdin().is_terminal() {
        let mut lines = Edited::open(options.history.as_deref())?;
        let _ = writeln!(notes, "/help lists the commands, Ctrl-D leaves.");
        let ended = converse(talker, options, &mut lines, &mut out, &mut notes);
        if let Err(e) = lines.save() {
            let _ = writeln!(notes, "the lines of this session are not remembered: {e}");
        }
        ended
    } else {
        let mut lines = Piped { input: std::io::stdin().lock() };
        converse(talker, options, &mut lines, &mut out, &mut notes)
    }
}

/// One line of input, or why there is none.
#[derive(Debug, PartialEq)]
pub enum Input {
    Line(String),
    /// Ctrl-C while editing.
    Dropped,
    /// Ctrl-D, or the end of a pipe.
    End,
}

/// Where lines come from.
pub trait Lines {
    fn next(&mut self, prompt: &str) -> Result<Input>;
    /// Remembers a whole entry for the arrow keys.
    fn remember(&mut self, _entry: &str) {}
    /// A person at a terminal, who sees errors and goes on?
    fn interactive(&self) -> bool;
}

struct Edited {
    editor: rustyline::DefaultEditor,
    history: Option<PathBuf>,
}

impl Edited {
    fn open(history: Option<&Path>) -> Result<Edited> {
        let broken = |e: ReadlineError| Error::Runtime(format!("cannot edit lines: {e}"));
        let config = rustyline::Config::builder().history_ignore_space(true);
        let config = config.max_history_size(1000).map_err(broken)?.build();
        let mut editor = rustyline::DefaultEditor::with_config(config).map_err(broken)?;
        if let Some(file) = history {
            // A missing or damaged history is an empty one.
            let _ = editor.load_history(file);
        }
        Ok(Edited { editor, history: history.map(Path::to_path_buf) })
    }

    fn save(&mut self) -> Result<()> {
        let Some(file) = self.history.clone() else { return Ok(()) };
        if self.editor.history().is_empty() {
            return Ok(());
        }
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let temporary = temporary_beside(&file);
        let written = self.editor.save_history(&temporary);
        written.map_err(|e| Error::Runtime(format!("{}: {e}", temporary.display())))?;
        std::fs::rename(&temporary, &file).map_err(|e| Error::io(&file, e))
    }
}

impl Lines for Edited {
    fn next(&mut self, prompt: &str) -> Result<Input> {
        loop {
            return match self.editor.readline(prompt) {
                Ok(line) => Ok(Input::Line(line)),
                Err(ReadlineError::Eof) => Ok(Input::End),
                Err(ReadlineError::Interrupted | ReadlineError::Signal(Signal::Interrupt)) => {
                    Ok(Input::Dropped)
                }
                Err(ReadlineError::Signal(_)) => continue, // the window changed its size
                Err(e) => Err(Error::Runtime(format!("cannot read a line: {e}"))),
            };
        }
    }

    fn remember(&mut self, entry: &str) {
        let _ = self.editor.add_history_entry(entry);
    }

    fn interactive(&self) -> bool {
        true
    }
}

struct Piped<R> {
    input: R,
}

impl<R: BufRead> Lines for Piped<R> {
    fn next(&mut self, _prompt: &str) -> Result<Input> {
        let mut bytes = Vec::new();
        let read = self.input.read_until(b'\n', &mut bytes);
        if read.map_err(|e| Error::io("standard input", e))? == 0 {
            return Ok(Input::End);
        }
        let line = String::from_utf8_lossy(&bytes);
        Ok(Input::Line(line.trim_end_matches(['\n', '\r']).to_string()))
    }

    fn interactive(&self) -> bool {
        false
    }
}

/// Joins lines to entries: a backslash at the end continues on the next line, and `"""` opens a text
/// that ends with the next `"""`.
#[derive(Debug, Default)]
pub struct Joiner {
    text: String,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Open {
    Backslash,
    Quotes,
}

const QUOTES: &str = "\"\"\"";

impl Joiner {
    /// Takes a line; returns the entry when it is whole.
    pub fn push(&mut self, line: &str) -> Option<String> {
        let mut line = line;
        if self.open == Some(Open::Backslash) {
            self.text.push('\n');
            self.open = None;
        } else if self.open.is_none()
            && let Some(rest) = line.trim_start().strip_prefix(QUOTES)
        {
            self.open = Some(Open::Quotes);
            line = rest;
        } else if self.open == Some(Open::Quotes) {
            self.text.push('\n');
        }
        if self.open == Some(Open::Quotes) {
            match line.trim_end().strip_suffix(QUOTES) {
                Some(last) => self.text.push_str(last),
                None => {
                    self.text.push_str(line);
                    return None;
                }
            }
        } else if let Some(part) = line.strip_suffix('\\') {
            self.text.push_str(part);
            self.open = Some(Open::Backslash);
            return None;
        } else {
            self.text.push_str(line);
        }
        self.take()
    }

    /// In the middle of an entry?
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// What there is, when the input ends or the entry is dropped.
    pub fn take(&mut self) -> Option<String> {
        self.open = None;
        let text = std::mem::take(&mut self.text);
        let text = text.trim_matches('\n');
        (!text.trim().is_empty()).then(|| text.to_string())
    }
}

/// An entry as the loop understands it.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    Say(String),
    Help,
    Reset,
    System(String),
    /// Show all settings.
    Settings,
    Set(String, String),
    Save(PathBuf),
    Load(PathBuf),
    Bye,
}

const HELP: &str = "\
/system TEXT     set the system text and start again; without TEXT remove it
/reset           forget the conversation (also /clear)
/set             show the settings
/set KEY VALUE   change one, for example /set temperature 0.7, /set timing on
/save FILE       write the conversation as JSON
/load FILE       read one back
/bye             leave (also /exit, /quit, Ctrl-D)
A line that ends with \\ goes on in the next; \"\"\" opens and closes a longer text.
A line that begins with // is sent with one slash. Ctrl-C stops an answer.";

const COMMANDS: &str = "/help /system /reset /set /save /load /bye";

/// Reads an entry. Only an entry of one line that begins with `/` is a command.
pub fn parse(entry: &str) -> Result<Entry> {
    let Some(command) = entry.strip_prefix('/').filter(|_| !entry.contains('\n')) else {
        return Ok(Entry::Say(entry.to_string()));
    };
    if command.starts_with('/') {
        return Ok(Entry::Say(command.to_string()));
    }
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    let file = || match rest {
        "" => {
            Err(Error::Usage(format!("/{name} needs a file name, for example /{name} talk.json")))
        }
        _ => Ok(PathBuf::from(rest)),
    };
    match name {
        "help" | "?" => Ok(Entry::Help),
        "reset" | "clear" => Ok(Entry::Reset),
        "bye" | "exit" | "quit" => Ok(Entry::Bye),
        "system" => Ok(Entry::System(rest.to_string())),
        "save" => Ok(Entry::Save(file()?)),
        "load" => Ok(Entry::Load(file()?)),
        "set" if rest.is_empty() => Ok(Entry::Settings),
        "set" => match rest.split_once(|c: char| c.is_whitespace() || c == '=') {
            Some((key, value)) => Ok(Entry::Set(key.to_string(), value.trim().to_string())),
            None => {
                Err(Error::Usage(format!("/set {rest} needs a value; /set alone shows them all")))
            }
        },
        _ => Err(Error::Usage(format!(
            "no command /{name} (there are {COMMANDS}); to send the line as it is, begin it with //"
        ))),
    }
}

/// The loop itself, over any input and output: answers go to `out`, everything else to `notes`.
pub fn converse(
    talker: &mut dyn Talker,
    options: &ReplOptions,
    lines: &mut dyn Lines,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<()> {
    let mut timing = options.timing;
    let mut joiner = Joiner::default();
    loop {
        let prompt = if joiner.is_open() { "… " } else { options.prompt.as_str() };
        let entry = match lines.next(prompt)? {
            Input::Line(line) => joiner.push(&line),
            Input::Dropped => {
                if joiner.take().is_none() {
                    note(notes, "/bye or Ctrl-D leaves.");
                }
                continue;
            }
            Input::End => match joiner.take() {
                Some(entry) => Some(entry),
                None => return Ok(()),
            },
        };
        let Some(entry) = entry else { continue };
        lines.remember(&entry);
        let done = match parse(&entry) {
            Ok(Entry::Bye) => return Ok(()),
            Ok(Entry::Say(text)) => answer(talker, &text, options.interrupt, timing, out, notes),
            Ok(command) => act(talker, command, &mut timing, notes),
            Err(e) => Err(e),
        };
        match done {
            Ok(()) => {}
            // A lost device answers nothing any more; from a pipe nobody is there to react.
            Err(e) if !lines.interactive() || matches!(e, Error::DeviceLost(_)) => return Err(e),
            Err(e) => note(notes, &e.to_string()),
        }
    }
}

fn answer(
    talker: &mut dyn Talker,
    text: &str,
    interrupt: &AtomicBool,
    timing: bool,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<()> {
    interrupt.store(false, Ordering::SeqCst);
    let mut written = Ok(());
    let mut line_ended = false;
    let mut on_text = |piece: &str| {
        if written.is_ok() && !piece.is_empty() {
            line_ended = piece.ends_with('\n');
            written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
        }
    };
    let said = talker.say(text, &mut on_text);
    if written.is_ok() && !line_ended {
        written = out.write_all(b"\n").and_then(|()| out.flush());
    }
    interrupt.store(false, Ordering::SeqCst);
    let stats = match said {
        Err(Error::Interrupted) => TurnStats { interrupted: true, ..TurnStats::default() },
        other => other?,
    };
    written.map_err(|e| Error::io("standard output", e))?;
    if stats.interrupted {
        note(notes, "(stopped)");
    } else if stats.cut {
        note(
            notes,
            "(cut at the limit of tokens; /set max_tokens or a larger context allows more)",
        );
    }
    if timing {
        note(notes, &timing_line(&stats));
    }
    Ok(())
}

fn act(
    talker: &mut dyn Talker,
    command: Entry,
    timing: &mut bool,
    notes: &mut dyn Write,
) -> Result<()> {
    match command {
        Entry::Help => note(notes, HELP),
        Entry::Reset => talker.reset(),
        Entry::System(text) => talker.set_system(&text)?,
        Entry::Settings => {
            note(notes, &format!("timing {}", if *timing { "on" } else { "off" }));
            for (key, value) in talker.settings() {
                note(notes, &format!("{key} {value}"));
            }
        }
        Entry::Set(key, value) if key == "timing" => {
            *timing = match value.as_str() {
                "on" => true,
                "off" => false,
                _ => return Err(Error::Usage(format!("timing is on or off, not {value}"))),
            };
        }
        Entry::Set(key, value) => talker.set(&key, &value)?,
        Entry::Save(file) => {
            save(&file, &talker.messages())?;
            note(notes, &format!("{} written", file.display()));
        }
        Entry::Load(file) => {
            let messages = load(&file)?;
            let count = messages.len();
            talker.restore(messages)?;
            note(notes, &format!("{}: {count} messages", file.display()));
        }
        Entry::Say(_) | Entry::Bye => unreachable!("the loop handles what is no command"),
    }
    Ok(())
}

/// Writes a conversation as `{"messages": [{"role": …, "content": …}, …]}`.
pub fn save(file: &Path, messages: &[Message]) -> Result<()> {
    let failed = |e: serde_json::Error| Error::Runtime(format!("{}: {e}", file.display()));
    let json = serde_json::json!({ "messages": messages });
    let text = serde_json::to_string_pretty(&json).map_err(failed)? + "\n";
    write_whole(file, text.as_bytes())
}

/// Reads what [`save`] wrote, or a bare list of messages.
pub fn load(file: &Path) -> Result<Vec<Message>> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
    let bad = |e: serde_json::Error| {
        Error::Usage(format!("{}: not a saved conversation: {e}", file.display()))
    };
    let mut json: serde_json::Value = serde_json::from_str(&text).map_err(bad)?;
    let list = json.get_mut("messages").map(serde_json::Value::take).unwrap_or(json);
    serde_json::from_value(list).map_err(bad)
}

/// Notes are for a person's eyes; a closed standard error is no reason to end a conversation.
fn note(notes: &mut dyn Write, text: &str) {
    let _ = writeln!(notes, "{text}");
}

fn timing_line(stats: &TurnStats) -> String {
    let rate = |n: usize, s: f64| if s > 0.0 { n as f64 / s } else { 0.0 };
    format!(
        "{} prompt tokens in {:.2} s ({:.1}/s), {} generated in {:.2} s ({:.1}/s)",
        stats.prompt_tokens,
        stats.prefill_seconds,
        rate(stats.prompt_tokens, stats.prefill_seconds),
        stats.generated_tokens,
        stats.decode_seconds,
        // The first token comes out of the prompt's own pass.
        rate(stats.generated_tokens.saturating_sub(1), stats.decode_seconds)
    )
}

#[cfg(test)]
#[path = "repl_tests.rs"]
mod tests;
