//! `inknib quantize` from outside.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{ROOT, files, gpu, inknib, refused, str};

/// A copy of the small Llama of tests/golden, which is a model folder but for its tokenizer.
fn small_model(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    std::fs::create_dir_all(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(ROOT).join("tests/golden/llama").join(name), model.join(name))
            .unwrap();
    }
    std::fs::write(model.join("tokenizer.json"), "{}").unwrap();
    std::fs::write(model.join("pytorch_model.bin"), "weights of another kind").unwrap();
    model
}

#[test]
fn quantize_writes_a_model_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (small_model(folder.path()), folder.path().join("out"));
    let args = ["quantize", "-m", str(&model), "-o", str(&out)];
    let run = inknib(&[&["--json"], &args[..]].concat());
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    let value: Value = serde_json::from_str(&run.out).unwrap();
    let bits = value["bits_per_weight"].as_f64().unwrap();
    assert!((4.0..16.0).contains(&bits), "{value}");
    assert!(value["sqnr_db"].as_f64().unwrap() > 15.0, "{value}");
    assert_eq!((&value["scheme"], &value["group"]), (&"int4".into(), &64.into()));
    let first = &value["tensors"][0];
    assert!(first["name"].is_string() && first["bits"].is_number(), "{first}");
    let names: Vec<String> =
        files(&out).iter().map(|p| str(p.strip_prefix(&out).unwrap()).to_string()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    let store = inknib::weights::WeightStore::open(&out).unwrap();
    assert_eq!(store.quantized().unwrap().recipe, "int4");

    refused(&args, 2, &["out", "not empty", "--force"]);
    let before = std::fs::read(out.join("model.safetensors")).unwrap();
    assert_eq!(inknib(&[&args[..], &["--force"]].concat()).code, 0);
    let again = std::fs::read(out.join("model.safetensors")).unwrap();
    assert!(before == again, "the same weights and recipe gave another file");
    let onto = folder.path().join("again");
    refused(&["quantize", "-m", str(&out), "-o", str(&onto)], 4, &["quantized already"]);
}

/// Ctrl-C while the UNet is packed: nothing half-written, and the same command goes on.
#[cfg(unix)]
#[test]
fn quantize_goes_on_where_ctrl_c_stopped_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let args = ["quantize", "-m", "models/demo-scenes", "-o", str(&out)];
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_inknib"))
        .args(args)
        .current_dir(ROOT)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let state = out.join("inknib-quantize.partial.json");
    // The UNet takes a tenth of a second or two, so a shell that runs already has to be quick.
    let wait_and_kill = format!(
        "i=0; until grep -q text_encoder '{}' 2>/dev/null || [ $i = 20000 ]; do i=$((i+1)); done; \
         kill -INT {}",
        str(&state),
        child.id()
    );
    let shell = std::process::Command::new("sh").args(["-c", &wait_and_kill]).status();
    assert!(shell.unwrap().success());
    let mut err = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(130), "inknib: interrupted\n"));
    let left = files(&out);
    assert_eq!(left, [state.clone(), out.join("text_encoder/model.safetensors")]);

    refused(&[&args[..], &["--weights", "int8"]].concat(), 2, &["not empty"]);
    let run = inknib(&args);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(run.err, "text_encoder/model.safetensors: finished before\n");
    assert!(out.join("model_index.json").is_file() && !state.exists());
    assert!(out.join("scheduler/scheduler_config.json").is_file());
    assert!(out.join("tokenizer/tokenizer.json").is_file());
}

#[test]
fn a_budget_of_bits_is_kept_or_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let with = |bits| ["quantize", "-m", "models/demo-scenes", "-o", str(&out), "--bits", bits];
    for (bits, words) in
        [("nan", ["--bits", "4.6"]), ("2", ["--bits 2", "bits per weight together"])]
    {
        refused(&with(bits), 2, &words);
        assert!(!out.join("text_encoder").exists());
    }
    // The same folder serves for what fits.
    let run = inknib(&[&["--json"], &with("4.6")[..]].concat());
    assert_eq!(run.code, 0, "{}", run.err);
    let answer: Value = serde_json::from_str(&run.out).unwrap();
    let unet = answer["nets"].as_array().unwrap().iter().find(|net| net["net"] == "unet").unwrap();
    let bits = unet["bits_per_weight"].as_f64().unwrap();
    // Scales and rows are whole words, so that nothing is counted twice; the last step of the budget leaves some over.
    assert!(bits <= 4.6 && bits > 4.5, "{bits}");
}

#[test]
fn quantize_refuses_bad_input_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (small_model(folder.path()), folder.path().join("out"));
    let quantize = |model: &Path, weights: &str, code: i32, words: &[&str]| {
        let args = ["quantize", "-m", str(model), "-o", str(&out), "--weights", weights];
        refused(&args, code, words);
        let left = if out.exists() { files(&out) } else { Vec::new() };
        let only_state = left.iter().all(|p| p.ends_with("inknib-quantize.partial.json"));
        assert!(only_state, "{left:?}");
    };
    quantize(&folder.path().join("gone"), "int4", 4, &["gone", "no such model folder"]);
    quantize(folder.path(), "int4", 4, &["model_index.json", "config.json"]);
    quantize(&model, "int5", 2, &["int5", "fp16"]);
    quantize(&model, "gone.toml", 1, &["gone.toml"]);
    let inside = model.join("inside");
    let args = ["quantize", "-m", str(&model), "-o", str(&inside)];
    refused(&args, 2, &["inside", "somewhere else"]);
    assert!(!inside.exists());
    let weights = model.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    for cut in [0, 5, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&weights, &bytes[..cut]).unwrap();
        quantize(&model, "int4", 4, &["model.safetensors"]);
    }
    std::fs::write(model.join("config.json"), "{\"model_type\": \"mamba\"}").unwrap();
    quantize(&model, "int4", 4, &["config.json", "`mamba`", "llama"]);
    std::fs::write(model.join("config.json"), "{").unwrap();
    quantize(&model, "int4", 4, &["config.json"]);
}

/// What `quantize` writes is what the same recipe makes on load: the same answer, token for token.
#[test]
fn a_quantized_folder_answers_like_its_original() {
    if !gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let run = inknib(&["quantize", "-m", "models/demo-chat", "-o", str(&out)]);
    assert_eq!(run.code, 0, "{}", run.err);
    let answer = |model: &str| -> Value {
        let prompt = "What is 7 plus 5?";
        let run = inknib(&["chat", "--json", "-m", model, "-p", prompt, "--temp", "0", "-n", "12"]);
        assert_eq!(run.code, 0, "{}", run.err);
        serde_json::from_str(&run.out).unwrap()
    };
    let (original, quantized) = (answer("models/demo-chat"), answer(str(&out)));
    assert_eq!(original["text"], quantized["text"]);
    assert_eq!(original["weights"]["resident_bytes"], quantized["weights"]["resident_bytes"]);
}
