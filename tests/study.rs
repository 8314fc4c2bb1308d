//! `inknib study unet` from outside: every experiment on a tiny Stable Diffusion XL with random weights. What it finds there
//! means nothing; that it is found, kept and written is what is tested. Without an adapter the test says so and passes.

use assert_cmd::Command;
use serde_json::Value;

fn inknib(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inknib"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.env_remove("RUST_LOG").env_remove("INKNIB_MODELS").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

const TINY: [&str; 8] =
    ["study", "unet", "-m", "tests/golden/sdxl_tiny", "--pairs", "1", "--steps", "5"];

#[test]
fn every_claim_gets_a_number_and_a_verdict() {
    if inknib(&["devices"]).0 != 0 {
        println!("skipped: no GPU adapter");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("study");
    let study = |more: &[&str]| {
        let args: Vec<&str> =
            TINY.iter().chain(&["-o", out.to_str().unwrap()]).chain(more).copied().collect();
        inknib(&args)
    };
    let (code, _, err) = study(&["--only", "U13", "--json"]);
    assert_eq!(code, 0, "{err}");
    let read = || -> Value {
        serde_json::from_str(&std::fs::read_to_string(out.join("study.json")).unwrap()).unwrap()
    };
    let first = read();
    let done = |study: &Value| {
        study["experiments"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(done(&first), ["guidance"]);

    let (code, answer, err) = study(&["--json"]);
    assert_eq!(code, 0, "{err}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let sections = answer["sections"].as_array().unwrap();
    let ids: Vec<&str> = sections.iter().map(|s| s["id"].as_str().unwrap()).collect();
    let expected: Vec<String> = (1..=18).map(|i| format!("U{i}")).chain(["M".into()]).collect();
    assert_eq!(ids, expected);
    for section in sections {
        let id = &section["id"];
        assert!(!section["finding"].as_str().unwrap().is_empty(), "{id}");
        let numbers = section["numbers"].as_object().unwrap();
        // A picture that does not differ at all has no finite PSNR, and weights of 16 bits lose nothing in 16 bits.
        let finite =
            numbers.iter().filter(|(name, value)| !name.contains("fp16") && value.is_number());
        assert!(finite.count() > 0, "{id}: {numbers:?}");
    }
    // What was there is not measured again.
    let second = read();
    assert_eq!(first["seconds"]["guidance"], second["seconds"]["guidance"]);
    let page = std::fs::read_to_string(out.join("index.html")).unwrap();
    for id in ids {
        assert!(page.contains(&format!("<h2 id=\"{id}\">")), "{id}");
    }
    assert!(!page.contains("http:") && !page.contains("https:"), "the page must need no network");
    assert!(!out.join("study-unet.partial.safetensors").exists());

    // Nothing is left to do, so only the words come; and other conditions are another study.
    let (code, words, _) = study(&[]);
    assert!(code == 0 && words.contains("U18") && words.contains("index.html"), "{words}");
    let before = std::fs::read(out.join("study.json")).unwrap();
    let (code, _, err) = study(&["--seed", "9"]);
    assert!(code == 2 && err.contains("seed of the first pair: 7, now 9"), "{err}");
    assert_eq!(std::fs::read(out.join("study.json")).unwrap(), before);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (args, word) in [
        (
            &["--only", "U99", "-o", "nowhere-study"][..],
            "no experiment of that name; there are runs",
        ),
        (&["--steps", "2", "-o", "nowhere-study"], "5 steps at the least"),
        (&["--pairs", "0", "-o", "nowhere-study"], "give 1 to"),
        (&["-m", "models/demo-chat", "-o", "nowhere-study"], "language model"),
        (&["--prompts", "nowhere.txt", "-o", "nowhere-study"], "nowhere.txt"),
        (&["--cfg-scale", "nan", "-o", "nowhere-study"], "give 1 to 15"),
        (&["-m", "tests/golden/ddpm_tiny", "-o", "nowhere-study"], "paints without a prompt"),
    ] {
        let all: Vec<&str> = ["study", "unet"].iter().chain(args).copied().collect();
        let (code, _, err) = inknib(&all);
        assert!(code != 0 && err.contains(word), "{args:?}: {err}");
        assert!(!std::path::Path::new("nowhere-study").exists());
    }
}

#[test]
fn weights_and_prompts_are_those_that_were_studied() {
    if inknib(&["devices"]).0 != 0 {
        println!("skipped: no GPU adapter");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (packed, out, prompts) = (path("packed"), path("study"), path("prompts.txt"));
    let (code, _, err) = inknib(&["quantize", "-m", "tests/golden/sdxl_tiny", "-o", &packed]);
    assert_eq!(code, 0, "{err}");
    let (code, _, err) = inknib(&["study", "unet", "-m", &packed, "-o", &out]);
    assert!(code == 2 && err.contains("quantized already"), "{err}");

    let study = || {
        let more = ["--prompts", &prompts, "--only", "U13", "-o", &out];
        inknib(&TINY.iter().copied().chain(more).collect::<Vec<_>>())
    };
    std::fs::write(&prompts, "a fox\n").unwrap();
    let (code, _, err) = study();
    assert_eq!(code, 0, "{err}");
    assert_eq!(study().0, 0);
    // The same name with other words in it is another study.
    std::fs::write(&prompts, "a hen\n").unwrap();
    let (code, _, err) = study();
    assert!(code == 2 && err.contains("prompts: prompts.txt (SHA-256"), "{err}");
    // Neither is a file written over that is no study.
    std::fs::write(folder.path().join("study/study.json"), "{\"study\":1").unwrap();
    let (code, _, err) = study();
    assert!(code == 2 && err.contains("no study"), "{err}");
}
