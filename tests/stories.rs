//! A base model: greedy text as torch writes it, and `inknib chat` that goes on with a text, from a folder and
//! from a GGUF file; the template of another published model.

#[path = "common/shared.rs"]
mod shared_data;

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;
use shared_data::shared;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs `inknib chat --json`; None (and a line) where there is no adapter.
fn chat(model: &str, flags: &[&str]) -> Option<Value> {
    let mut command = Command::cargo_bin("inknib").unwrap();
    command.env("INKNIB_CACHE", "Cargo.toml/none");
    let output = command.args(["chat", "--json", "-m", model]).args(flags).output().unwrap();
    if output.status.code() == Some(3) {
        println!("skipped: no adapter");
        return None;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn golden(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("ref_greedy.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// As far as the two best logits are 0.1 or more apart; beyond, the smallest gap is 0.0009 and another order of
/// sums may decide otherwise.
#[test]
fn greedy_text_is_torch_s() {
    let Some(folder) = shared("data/llm/stories260K") else { return };
    let golden = golden(&folder);
    let mut cases = 0;
    for case in ["bos", "once", "lily"].map(|name| &golden[name]) {
        let ids = |name: &str| -> Vec<u64> {
            case[name].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect()
        };
        let certain = case["safe_new_tokens_margin_ge_0p1"].as_u64().unwrap() as usize;
        let want = &ids("greedy_ids")[ids("prompt_ids").len()..][..certain];
        let (prompt, count) = (case["prompt"].as_str().unwrap(), certain.to_string());
        for weights in ["fp32", "fp16"] {
            let flags = ["--chat-template", "none", "--weights", weights, "-p", prompt];
            let more = ["-n", &count, "--temp", "0", "--logprobs", "1"];
            let Some(answer) = chat(folder.to_str().unwrap(), &[&flags[..], &more].concat()) else {
                return;
            };
            let tokens = answer["logprobs"].as_array().unwrap();
            let got: Vec<u64> = tokens.iter().map(|t| t["token"].as_u64().unwrap()).collect();
            assert_eq!(got, want, "{weights}: {prompt:?}");
            cases += 1;
        }
    }
    assert_eq!(cases, 6);
}

/// The text that torch wrote with the weights that gguf-py decodes from the same files, 60 tokens with the prompt.
#[test]
fn a_gguf_file_goes_on_with_a_story() {
    let Some(folder) = shared("data/llm/stories260K") else { return };
    let golden = golden(&folder);
    for kind in ["Q8_0", "Q4_1", "Q4_0"] {
        let want = golden["gguf"][kind]["greedy60"].as_str().unwrap();
        let file = folder.join(format!("stories260K-{kind}.gguf"));
        let flags =
            ["--chat-template", "none", "-p", "Once upon a time", "-n", "60", "--temp", "0"];
        let Some(answer) = chat(file.to_str().unwrap(), &flags) else { return };
        let text = format!("Once upon a time{}", answer["text"].as_str().unwrap());
        assert!(text.starts_with(want), "{kind}: {text}");
    }
    let mut command = Command::cargo_bin("inknib").unwrap();
    command.env("INKNIB_CACHE", "Cargo.toml/none");
    let output = command.args(["chat", "-p", "Hello", "-m", folder.to_str().unwrap()]).output();
    let output = output.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    if output.status.code() != Some(3) {
        let said = error.contains("--chat-template none");
        assert!(output.status.code() == Some(4) && said, "{error}");
    }
}

/// The shipped model was trained on ChatML, which Qwen 2.5's published template writes, with a system text of its
/// own.
#[test]
fn the_template_of_a_published_model() {
    let Some(template) = shared("data/chat-templates/Qwen-Qwen2.5-7B-Instruct.jinja") else {
        return;
    };
    let model = format!("{ROOT}/models/demo-chat");
    let flags = ["--chat-template", template.to_str().unwrap(), "-p", "What is 7 plus 5?"];
    let Some(answer) = chat(&model, &[&flags[..], &["--temp", "0", "--weights", "fp16"]].concat())
    else {
        return;
    };
    assert!(answer["text"].as_str().unwrap().contains("12"), "{answer}");
    let plain = ["-p", "What is 7 plus 5?", "--temp", "0", "--weights", "fp16"];
    let own = chat(&model, &plain).unwrap();
    // Qwen's template puts its own system text before the question.
    let count = |answer: &Value| answer["prompt_tokens"].as_u64().unwrap();
    assert!(count(&answer) > count(&own), "{answer}");
}
