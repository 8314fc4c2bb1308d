//! `inknib chat` from outside: where the question may come from, what is streamed, and that a seed decides.

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

struct Run {
    code: i32,
    out: String,
    err: String,
}

/// Runs `inknib chat` on the shipped model; None (and a line) where there is no adapter.
fn chat(flags: &[&str], input: &str) -> Option<Run> {
    let mut command = Command::cargo_bin("inknib").unwrap();
    command.env("INKNIB_CACHE", "Cargo.toml/none");
    // fp16: quantizing at each of many starts would take longer than the answers.
    let model = format!("{ROOT}/models/demo-chat");
    command.args(["chat", "--weights", "fp16", "-m", &model]).args(flags);
    let output = command.write_stdin(input).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let run = Run {
        code: output.status.code().unwrap(),
        out: text(output.stdout),
        err: text(output.stderr),
    };
    if run.code == 3 {
        println!("skipped: {}", run.err.trim());
        return None;
    }
    Some(run)
}

fn json(flags: &[&str], input: &str) -> Option<Value> {
    let run = chat(&[flags, &["--json"]].concat(), input)?;
    assert_eq!(run.code, 0, "{}", run.err);
    Some(serde_json::from_str(&run.out).unwrap())
}

fn text(answer: &Value) -> &str {
    answer["text"].as_str().unwrap()
}

#[test]
fn a_question_comes_from_a_flag_a_file_or_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("q.txt");
    std::fs::write(&file, "What is 7 plus 5?\n").unwrap();
    let file = file.to_str().unwrap();
    let Some(flag) = json(&["-p", "What is 7 plus 5?"], "") else { return };
    assert!(text(&flag).contains("12"), "{flag}");
    let from_file = json(&["-f", file], "").unwrap();
    let from_dash = json(&["-f", "-"], "What is 7 plus 5?").unwrap();
    let from_pipe = json(&[], "What is 7 plus 5?\n").unwrap();
    for other in [&from_file, &from_dash, &from_pipe] {
        assert_eq!(text(&flag), text(other));
    }
    let piped = chat(&[], "What is 7 plus 5?\n").unwrap();
    assert_eq!(piped.out.trim(), text(&flag));
    for (flags, code, word) in [
        (&["-f", "/nowhere/q.txt"][..], 1, "/nowhere/q.txt"),
        (&["-f", "-"][..], 2, "no question"),
        (&["-f", "-", "-p", "x"][..], 2, "cannot be used with"),
        (&["-p", "x", "-l", "nonsense"][..], 2, "ID=BIAS"),
        (&["-p", "x", "--typical", "0"][..], 2, "typical"),
    ] {
        let run = chat(flags, "").unwrap();
        assert!(run.code == code && run.err.contains(word), "{flags:?}: {} {}", run.code, run.err);
    }
}

#[test]
fn lines_of_json_stream_the_answer() {
    let turns = "My name is Anna.\n{\"prompt\": \"What is 3 plus 4?\"}\n\
                 {\"messages\": [{\"role\": \"user\", \"content\": \"What is 7 plus 5?\"}]}\n";
    let Some(run) = chat(&["--jsonl", "--temp", "0"], turns) else { return };
    assert_eq!(run.code, 0, "{}", run.err);
    let lines: Vec<Value> = run.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let answers: Vec<&Value> = lines.iter().filter(|l| l["type"] == "answer").collect();
    assert_eq!(answers.len(), 3);
    let mut streamed = String::new();
    let mut pieces = 0;
    for line in &lines {
        if line["type"] == "text" {
            streamed.push_str(line["text"].as_str().unwrap());
            pieces += 1;
        } else {
            assert_eq!(streamed, text(line));
            streamed.clear();
        }
    }
    assert!(pieces > 6, "{pieces} pieces for three answers is no streaming");
    assert!(text(answers[2]).contains("12"), "{}", answers[2]);
    let bad = chat(&["--jsonl"], "{\"question\": 1}\n").unwrap();
    assert!(bad.code == 2 && bad.err.contains("prompt"), "{}", bad.err);
}

#[test]
fn a_seed_decides_and_a_bias_forbids() {
    let ask = |more: &[&str]| {
        let flags = ["-p", "Tell me a short story about a fox.", "-n", "24", "--temp", "1.3"];
        json(&[&flags[..], more].concat(), "")
    };
    let Some(first) = ask(&["--seed", "11"]) else { return };
    assert_eq!(text(&first), text(&ask(&["--seed", "11"]).unwrap()));
    assert_ne!(text(&first), text(&ask(&["--seed", "12"]).unwrap()));
    for more in [&["--typical", "0.5"][..], &["--presence-penalty", "1"], &["--min-p", "0.2"]] {
        assert_ne!(text(&ask(&[more, &["--seed", "11"]].concat()).unwrap()), "");
    }
    // Greedy with log-probabilities: the chosen token is the likeliest, and forbidden it does not come.
    let greedy = ["-p", "What is 7 plus 5?", "--temp", "0", "-n", "4", "--logprobs", "3"];
    let answer = json(&greedy, "").unwrap();
    let tokens = answer["logprobs"].as_array().unwrap();
    assert_eq!(tokens.len(), answer["generated_tokens"].as_u64().unwrap() as usize);
    for token in tokens {
        assert_eq!(token["top"].as_array().unwrap().len(), 3);
        assert_eq!(token["top"][0]["token"], token["token"]);
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
    }
    let banned = tokens[0]["token"].as_u64().unwrap();
    let bias = format!("{banned}=-inf");
    let other = json(&[&greedy[..], &["-l", &bias]].concat(), "").unwrap();
    assert_eq!(other["logprobs"][0]["token"], tokens[0]["top"][1]["token"]);
}

#[test]
fn a_stop_text_ends_the_answer_unseen() {
    let ask =
        |more: &[&str]| json(&[&["-p", "Count from 1 to 10.", "--temp", "0"], more].concat(), "");
    let Some(whole) = ask(&[]) else { return };
    let (before, _) = text(&whole).split_once("5").expect("the model counts");
    let cut = ask(&["--stop", "5"]).unwrap();
    assert_eq!((text(&cut), cut["ended"].as_str()), (before, Some("stop")));
}

#[test]
fn settings_that_are_not_followed_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(Path::new(ROOT).join("models/demo-chat")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let file = folder.path().join("generation_config.json");
    let settings = "{\"eos_token_id\": 2, \"num_beams\": 4, \"min_new_tokens\": 3, \"no_repeat_ngram_size\": 4, \"top_p\": 1.0}";
    std::fs::write(&file, settings).unwrap();
    let mut command = Command::cargo_bin("inknib").unwrap();
    command.env("INKNIB_CACHE", "Cargo.toml/none");
    let model = folder.path().to_str().unwrap();
    let output = command.args(["chat", "-m", model, "-p", "Hello!", "-n", "4"]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    if output.status.code() == Some(3) {
        println!("skipped: {err}");
        return;
    }
    assert!(output.status.success() && err.contains("num_beams 4"), "{err}");
    assert!(!err.contains("min_new_tokens") && !err.contains("ngram"), "{err}");
}

/// A token's step is planned otherwise where the kernels are a real GPU's (norms folded, three products in a launch): the words
/// are the same, and the log-probabilities nearly.
#[test]
fn every_kind_of_kernel_says_the_same() {
    let ask = |kernels: &str| {
        let flags = ["-p", "What is a lamp?", "--temp", "0", "-n", "16", "--logprobs", "1"];
        json(&[&flags[..], &["--kernels", kernels, "--activations", "f32"]].concat(), "")
    };
    let Some(reference) = ask("reference") else { return };
    let scores = |answer: &Value| -> Vec<f64> {
        let tokens = answer["logprobs"].as_array().unwrap().iter();
        tokens.map(|token| token["logprob"].as_f64().unwrap()).collect()
    };
    for kernels in ["fast", "hardware"] {
        let answer = ask(kernels).unwrap();
        assert_eq!(text(&answer), text(&reference), "{kernels}");
        for (a, b) in scores(&answer).iter().zip(scores(&reference)) {
            // Logits are near 10 and agree to 1e-6 of that, in sums of a thousand products.
            assert!((a - b).abs() < 1e-3, "{kernels}: {a} and {b}");
        }
    }
}
