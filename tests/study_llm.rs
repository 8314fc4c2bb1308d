//! `inknib study llm` from outside: every claim on a part of the model that ships with the program, with few questions and
//! short answers. Without an adapter the tests say so and pass.

use std::path::Path;

use assert_cmd::Command;
use safetensors::SafeTensors;
use serde_json::Value;

fn inknib(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inknib"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.env_remove("RUST_LOG").env_remove("INKNIB_MODELS").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// The first layer of demo-chat as a model of its own: what it answers makes no sense, but all of the experiments take a fourth
/// of the time.
fn one_layer(folder: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-chat");
    for name in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(name), folder.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["num_hidden_layers"] = 1.into();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let late = |name: &str| (1..6).any(|i| name.contains(&format!("layers.{i}.")));
    let kept = all.tensors().into_iter().filter(|(name, _)| !late(name));
    safetensors::serialize_to_file(kept, None, &folder.join("model.safetensors")).unwrap();
}

const FEW: [&str; 6] = ["study", "llm", "--questions", "2", "--max-tokens", "8"];

#[test]
fn every_claim_gets_a_number_and_a_verdict() {
    if inknib(&["devices"]).0 != 0 {
        println!("skipped: no GPU adapter");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("model"), folder.path().join("study"));
    std::fs::create_dir(&model).unwrap();
    one_layer(&model);
    let study = |more: &[&str]| {
        let places = ["-m", model.to_str().unwrap(), "-o", out.to_str().unwrap()];
        let args: Vec<&str> = FEW.iter().chain(&places).chain(more).copied().collect();
        inknib(&args)
    };
    let (code, answer, err) = study(&["--json"]);
    assert_eq!(code, 0, "{err}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let sections = answer["sections"].as_array().unwrap();
    let ids: Vec<&str> = sections.iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["L1", "L2", "L3", "L4", "L5", "L6", "L7", "L8", "L9", "M"]);
    for section in sections {
        let id = &section["id"];
        assert!(section["finding"].as_str().unwrap().len() > 40, "{id}");
        let numbers = section["numbers"].as_object().unwrap();
        assert!(!numbers.is_empty() && numbers.values().all(Value::is_number), "{id}: {numbers:?}");
    }
    let of = |id: &str, name: &str| -> f64 {
        let section = sections.iter().find(|s| s["id"] == id).unwrap();
        section["numbers"][name].as_f64().unwrap_or_else(|| panic!("{id} {name}"))
    };
    // The same weights over the same memory: only the cut differs, which kernels may round otherwise.
    assert!(of("L2", "kl_none_nats") < 1e-9);
    assert!(of("L2", "kl_memory_int4_pass_fp16_nats") > of("L2", "kl_none_nats"));
    // What holds of any weights: more bits are better, and eight are close to sixteen.
    assert!(of("L5", "int2_kl_nats") > of("L5", "int3_kl_nats"));
    assert!(of("L5", "int3_kl_nats") > of("L5", "int8_g64_kl_nats"));
    assert!(of("M", "int8: kl_nats") < of("M", "int4: kl_nats"));
    assert!((of("M", "Q4_0: bits") - 4.5).abs() < 0.05);
    let weights = of("L7", "weights_millions");
    // 2,048 · 256, a sixth of 4,423,680, and three norms of 256.
    assert!((weights - 1.262_336).abs() < 1e-9, "{weights}");

    // Nothing is left to do: no number, no time and no verdict changes.
    let read = || std::fs::read(out.join("study.json")).unwrap();
    let before = read();
    let (code, words, _) = study(&[]);
    assert!(code == 0 && words.contains("L9") && words.contains("index.html"), "{words}");
    assert_eq!(read(), before);
    let page = std::fs::read_to_string(out.join("index.html")).unwrap();
    for id in ids {
        assert!(page.contains(&format!("<h2 id=\"{id}\">")), "{id}");
    }
    assert!(!page.contains("http:") && !page.contains("https:"), "the page must need no network");
    assert!(!page.contains("NaN"));
    assert!(!out.join("study-llm.partial.safetensors").exists());

    // Other conditions are another study.
    let [model, out] = [&model, &out].map(|path| path.to_str().unwrap());
    let (code, _, err) = inknib(&["study", "llm", "--questions", "3", "-m", model, "-o", out]);
    assert!(code == 2 && err.contains("2 questions, now"), "{err}");
}

#[test]
fn a_text_is_scored_in_windows() {
    if inknib(&["devices"]).0 != 0 {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (text, out) = (folder.path().join("text.txt"), folder.path().join("study"));
    std::fs::write(&text, "A fox was walking in the forest and saw a red lamp. ".repeat(12))
        .unwrap();
    let [text, out] = [&text, &out].map(|path| path.to_str().unwrap());
    let (code, answer, err) = inknib(&[
        "study",
        "llm",
        "-f",
        text,
        "--windows",
        "1",
        "-o",
        out,
        "--only",
        "runs",
        "--json",
    ]);
    assert_eq!(code, 0, "{err}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["sections"].as_array().unwrap().len(), 3);
    let conditions = answer["setup"].to_string();
    for said in ["1 windows of a text", "text.txt (SHA-256 "] {
        assert!(conditions.contains(said), "{said} is not in {conditions}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (args, word) in [
        (&["llm", "--only", "U1"][..], "no experiment of that name; there are runs"),
        (&["llm", "--steps", "20"], "--steps means nothing to a study of a language model"),
        (&["unet", "--questions", "2"], "--questions means nothing to a study of a UNet"),
        (&["llm", "--questions", "0"], "give 1 to 24"),
        (&["llm", "--max-tokens", "1"], "2 at the least"),
        (&["llm", "-f", "nowhere.txt"], "nowhere.txt"),
        (&["llm", "-m", "models/demo-scenes"], "text-to-image"),
    ] {
        let all: Vec<&str> =
            ["study"].iter().chain(args).chain(&["-o", "nowhere-study-llm"]).copied().collect();
        let (code, _, err) = inknib(&all);
        assert!(code != 0 && err.contains(word), "{args:?}: {err}");
        assert!(!std::path::Path::new("nowhere-study-llm").exists());
    }
}
