use super::*;

/// Answers with what it was told, in pieces; some words make it do more.
#[derive(Default)]
struct Parrot {
    system: String,
    turns: Vec<Message>,
    settings: Vec<(String, String)>,
    interrupt: Option<&'static AtomicBool>,
}

impl Talker for Parrot {
    fn say(&mut self, user: &str, on_text: &mut dyn FnMut(&str)) -> Result<TurnStats> {
        on_text("you said ");
        match user {
            "fail" => return Err(Error::Runtime("no more".into())),
            "lose" => return Err(Error::DeviceLost("gone".into())),
            "long" => {
                let flag = self.interrupt.unwrap();
                assert!(!flag.load(Ordering::SeqCst), "the flag of the last Ctrl-C is still set");
                flag.store(true, Ordering::SeqCst); // the user's Ctrl-C
                return Err(Error::Interrupted);
            }
            _ => on_text(user),
        }
        self.turns.extend([Message::user(user), Message::assistant("you said")]);
        Ok(TurnStats {
            prompt_tokens: 4,
            generated_tokens: 3,
            prefill_seconds: 0.5,
            decode_seconds: 1.0,
            ..TurnStats::default()
        })
    }

    fn reset(&mut self) {
        self.turns.clear();
    }

    fn set_system(&mut self, text: &str) -> Result<()> {
        self.system = text.to_string();
        self.turns.clear();
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        if key == "nonsense" {
            return Err(Error::Usage("no setting nonsense".into()));
        }
        self.settings.push((key.to_string(), value.to_string()));
        Ok(())
    }

    fn settings(&self) -> Vec<(String, String)> {
        self.settings.clone()
    }

    fn messages(&self) -> Vec<Message> {
        self.turns.clone()
    }

    fn restore(&mut self, messages: Vec<Message>) -> Result<()> {
        self.turns = messages;
        Ok(())
    }
}

struct Script {
    inputs: std::vec::IntoIter<Input>,
    prompts: Vec<String>,
    remembered: Vec<String>,
}

impl Lines for Script {
    fn next(&mut self, prompt: &str) -> Result<Input> {
        self.prompts.push(prompt.to_string());
        Ok(self.inputs.next().unwrap_or(Input::End))
    }

    fn remember(&mut self, entry: &str) {
        self.remembered.push(entry.to_string());
    }

    fn interactive(&self) -> bool {
        true
    }
}

struct Run {
    out: String,
    notes: String,
    script: Script,
    ended: Result<()>,
}

fn flag() -> &'static AtomicBool {
    Box::leak(Box::new(AtomicBool::new(false)))
}

fn options(interrupt: &'static AtomicBool) -> ReplOptions {
    ReplOptions { interrupt, prompt: "> ".into(), history: None, timing: false }
}

fn play(talker: &mut Parrot, inputs: Vec<Input>) -> Run {
    let interrupt = flag();
    talker.interrupt = Some(interrupt);
    let mut script = Script { inputs: inputs.into_iter(), prompts: vec![], remembered: vec![] };
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let ended = converse(talker, &options(interrupt), &mut script, &mut out, &mut notes);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { out: text(out), notes: text(notes), script, ended }
}

fn lines(text: &str) -> Vec<Input> {
    text.lines().map(|line| Input::Line(line.to_string())).collect()
}

#[test]
fn answers_go_to_out_and_commands_do_not() {
    let mut parrot = Parrot::default();
    let run = play(&mut parrot, lines("hello\n/set temperature 0.7\n/set\n//slash\n/bye\nnever"));
    assert_eq!(run.out, "you said hello\nyou said /slash\n");
    assert_eq!(run.notes, "timing off\ntemperature 0.7\n");
    assert_eq!(run.script.remembered.len(), 5);
    assert!(run.ended.is_ok());
}

#[test]
fn lines_join_and_the_prompt_says_so() {
    let mut parrot = Parrot::default();
    let run =
        play(&mut parrot, lines("one \\\ntwo\n\"\"\"a\n/bye\n\nb\"\"\"\n\n   \n\"\"\"whole\"\"\""));
    assert_eq!(run.out, "you said one \ntwo\nyou said a\n/bye\n\nb\nyou said whole\n");
    assert_eq!(run.script.prompts[..6], ["> ", "… ", "> ", "… ", "… ", "… "]);
}

#[test]
fn ctrl_c_while_editing_drops_the_line_and_ctrl_d_leaves() {
    let mut parrot = Parrot::default();
    let mut inputs = lines("half \\");
    inputs.extend([Input::Dropped, Input::Line("new".into()), Input::Dropped, Input::End]);
    let run = play(&mut parrot, inputs);
    assert_eq!(run.out, "you said new\n");
    assert_eq!(run.notes, "/bye or Ctrl-D leaves.\n");
    assert_eq!(run.script.prompts, ["> ", "… ", "> ", "> ", "> "]);
}

#[test]
fn ctrl_c_during_an_answer_stops_the_answer_only() {
    let mut parrot = Parrot::default();
    let run = play(&mut parrot, lines("long\nlong\nhi"));
    assert_eq!(run.out, "you said \nyou said \nyou said hi\n");
    assert_eq!(run.notes, "(stopped)\n(stopped)\n");
    assert!(run.ended.is_ok());
}

#[test]
fn errors_are_told_and_only_a_lost_device_ends() {
    let mut parrot = Parrot::default();
    let run = play(&mut parrot, lines("fail\n/nope\n/set nonsense 1\n/save\nhi\nlose\nnever"));
    assert_eq!(run.out, "you said \nyou said hi\nyou said \n");
    let notes: Vec<&str> = run.notes.lines().collect();
    assert_eq!(notes[0], "no more");
    assert!(notes[1].starts_with("no command /nope"), "{notes:?}");
    assert_eq!(notes[2], "no setting nonsense");
    assert!(notes[3].contains("needs a file name"), "{notes:?}");
    assert!(matches!(run.ended, Err(Error::DeviceLost(_))));
}

#[test]
fn timing_is_told_on_request() {
    let mut parrot = Parrot::default();
    let run =
        play(&mut parrot, lines("a\n/set timing on\nb\n/set timing off\nc\n/set timing maybe"));
    let line = "4 prompt tokens in 0.50 s (8.0/s), 3 generated in 1.00 s (2.0/s)\n";
    assert_eq!(run.notes, format!("{line}timing is on or off, not maybe\n"));
}

#[test]
fn a_conversation_is_saved_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk one.json");
    let name = file.display();
    let mut parrot = Parrot::default();
    play(&mut parrot, lines(&format!("hello\n/save {name}\n/reset")));
    assert!(parrot.turns.is_empty());
    let run = play(&mut parrot, lines(&format!("/load {name}\n/load {name}x")));
    assert_eq!(parrot.turns, [Message::user("hello"), Message::assistant("you said")]);
    assert!(run.notes.contains("2 messages") && run.notes.contains("jsonx"), "{}", run.notes);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left");
    std::fs::write(&file, "[{\"role\": \"user\", \"content\": \"bare\"}]").unwrap();
    assert_eq!(load(&file).unwrap(), [Message::user("bare")]);
    std::fs::write(&file, "{}").unwrap();
    assert!(load(&file).unwrap_err().to_string().contains("not a saved conversation"));
}

#[test]
fn a_pipe_gives_one_answer_per_line_and_stops_at_an_error() {
    let mut parrot = Parrot::default();
    let mut lines = Piped { input: "one\r\ntwo\n\nfail\nnever".as_bytes() };
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let ended = converse(&mut parrot, &options(flag()), &mut lines, &mut out, &mut notes);
    assert_eq!(String::from_utf8(out).unwrap(), "you said one\nyou said two\nyou said \n");
    assert_eq!(notes, b"");
    assert!(matches!(ended, Err(Error::Runtime(_))));
}

#[test]
fn an_entry_that_the_input_cuts_off_is_still_said() {
    let mut parrot = Parrot::default();
    let run = play(&mut parrot, lines("\"\"\"first\nsecond"));
    assert_eq!(run.out, "you said first\nsecond\n");
}

#[test]
fn commands_parse() {
    let parsed = |text: &str| parse(text).unwrap();
    assert_eq!(parsed("/system  Be brief. "), Entry::System("Be brief.".into()));
    assert_eq!(parsed("/system"), Entry::System(String::new()));
    assert_eq!(parsed("/set top_k=5"), Entry::Set("top_k".into(), "5".into()));
    assert_eq!(parsed("/load  a b.json"), Entry::Load("a b.json".into()));
    assert_eq!(parsed("/?"), Entry::Help);
    assert_eq!(parsed("/clear"), Entry::Reset);
    assert_eq!(parsed("/quit"), Entry::Bye);
    assert_eq!(parsed("/two\nlines"), Entry::Say("/two\nlines".into()));
    assert!(parse("/set temperature").is_err());
}
