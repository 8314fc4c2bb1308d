//! The binary from outside: answers, one-line errors that name the thing, exit codes, and no file half
//! written. Tests that need a GPU say so in one line and pass where there is no adapter.

mod pictures;
mod quantize;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

struct Run {
    code: i32,
    out: String,
    err: String,
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inknib"));
    command.args(args).current_dir(ROOT).env_remove("RUST_LOG").env_remove("INKNIB_MODELS");
    command.env("INKNIB_CACHE", "Cargo.toml/none");
    command
}

fn finish(mut command: Command) -> Run {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let run = Run {
        code: output.status.code().unwrap_or(-1),
        out: text(&output.stdout),
        err: text(&output.stderr),
    };
    assert!(!run.err.contains("panicked"), "{}", run.err);
    run
}

fn inknib(args: &[&str]) -> Run {
    finish(command(args))
}

/// One line on stderr that holds every word, this exit code, nothing on stdout; with `--json` the same
/// as an object.
#[track_caller]
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let run = inknib(args);
    assert_eq!(run.code, code, "{args:?}: {}{}", run.out, run.err);
    assert_eq!(run.err.trim_end().lines().count(), 1, "{args:?}: {}", run.err);
    assert!(run.err.starts_with("inknib: "), "{args:?}: {}", run.err);
    for word in words {
        assert!(run.err.contains(word), "{args:?} should name `{word}`: {}", run.err);
    }
    assert_eq!(run.out, "", "{args:?}");
    let mut with_json = vec!["--json"];
    with_json.extend(args);
    let run = inknib(&with_json);
    let value: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((run.code, value["code"].as_i64()), (code, Some(i64::from(code))), "{args:?}");
    assert_eq!(run.err.trim_end(), format!("inknib: {}", value["error"].as_str().unwrap()));
}

/// Whether there is an adapter; says once that there is none.
fn gpu() -> bool {
    static GPU: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *GPU.get_or_init(|| {
        let any = inknib(&["devices"]).code == 0;
        if !any {
            println!("skipped: no GPU adapter");
        }
        any
    })
}

fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn help_of_every_command_has_an_example() {
    let run = inknib(&["--help"]);
    assert_eq!(run.code, 0);
    assert!(run.out.contains("Exit codes") && run.out.contains("Examples"));
    let commands: Vec<&str> = run
        .out
        .lines()
        .skip_while(|l| *l != "Commands:")
        .skip(1)
        .take_while(|l| !l.is_empty())
        .filter(|l| !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.contains(&"devices"), "{commands:?}");
    for name in commands {
        let help = inknib(&[name, "--help"]);
        assert_eq!(help.code, 0);
        assert!(help.out.contains(&format!("  inknib {name} ")), "{name}: {}", help.out);
    }
    assert_eq!(inknib(&["--version"]).code, 0);
    let bare = inknib(&[]);
    assert!(bare.code == 2 && bare.err.contains("Usage"), "{}", bare.err);
}

#[test]
fn usage_errors_are_one_line_and_code_2() {
    refused(&["paint"], 2, &["'paint'", "inknib --help"]);
    refused(&["devices", "--colour"], 2, &["'--colour'", "inknib devices --help"]);
    refused(&["show"], 2, &["<PICTURE>", "inknib show --help"]);
    refused(&["completions", "cobol"], 2, &["'cobol'", "bash", "inknib completions --help"]);
}

#[test]
fn devices_answers_as_table_and_json() {
    let run = inknib(&["devices", "--json"]);
    let list: Value = serde_json::from_str(&run.out).unwrap();
    let list = list.as_array().unwrap();
    assert_eq!(run.code, if list.is_empty() { 3 } else { 0 });
    for (i, device) in list.iter().enumerate() {
        assert_eq!(device["index"], i);
        for field in ["name", "backend", "driver", "device_type"] {
            assert!(device[field].is_string(), "{field}: {device}");
        }
        for feature in ["f16", "subgroups", "timestamps", "int_dot", "coop_matrix"] {
            assert!(device["features"][feature].is_boolean(), "{feature}: {device}");
        }
        assert!(device["limits"]["max_binding_bytes"].as_u64().unwrap() > 0);
    }
    if gpu() {
        let table = inknib(&["devices"]).out;
        assert!(table.contains(list[0]["name"].as_str().unwrap()), "{table}");
    }
}

#[test]
fn without_an_adapter_the_code_is_3() {
    // Metal on Linux, Vulkan on macOS: a backend that is not there.
    let backend = if cfg!(target_os = "macos") { "dx12" } else { "metal" };
    let mut command = command(&["devices", "--json"]);
    command.env("WGPU_BACKEND", backend);
    let run = finish(command);
    assert_eq!((run.code, run.out.trim()), (3, "[]"));
    assert!(run.err.starts_with("inknib: no GPU adapter: install"), "{}", run.err);
}

#[test]
fn doctor_passes_and_says_what_it_did() {
    if !gpu() {
        refused(&["doctor"], 3, &["no GPU adapter"]);
        return;
    }
    let run = inknib(&["doctor", "--json"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    let value: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((&value["passed"], &value["failed"]), (&true.into(), &0.into()));
    let ops: Vec<&str> =
        value["cases"].as_array().unwrap().iter().map(|c| c["op"].as_str().unwrap()).collect();
    for op in ["matmul", "conv2d", "attention", "norm", "kv_cache", "sampler"] {
        assert!(ops.contains(&op), "{op}: {ops:?}");
    }
    assert!(value["canaries"]["loops_right"].as_bool().unwrap());
    let run = inknib(&["doctor", "--without", "all", "--activations", "f32"]);
    assert!(run.code == 0 && run.out.contains("Computes right"), "{}{}", run.out, run.err);
}

#[test]
fn gpu_flags_are_checked() {
    refused(&["doctor", "--without", "colour"], 2, &["colour", "subgroups"]);
    refused(&["doctor", "--vram-budget", "4X"], 2, &["4X", "512MiB"]);
    refused(&["doctor", "--activations", "f8"], 2, &["f8", "f16"]);
    if gpu() {
        refused(&["doctor", "--device", "99"], 3, &["no adapter \"99\"", "0 = "]);
        refused(&["doctor", "--device", "no such GPU"], 3, &["no such GPU", "0 = "]);
        // The adapter has been printed when the first buffer does not fit.
        let run = inknib(&["doctor", "--vram-budget", "1k"]);
        assert_eq!(run.code, 5, "{}", run.err);
        assert!(run.err.contains("out of the GPU memory budget"), "{}", run.err);
        refused(&["doctor", "--without", "f16", "--activations", "f16"], 2, &["f32"]);
    }
}

#[test]
fn a_closed_pipe_is_silent() {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_inknib"))
        .args(["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn completions_name_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let run = inknib(&["completions", shell]);
        assert!(run.code == 0 && run.out.contains("devices"), "{shell}");
    }
}

#[test]
fn show_prints_what_a_picture_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.png");
    let image = inknib::diffusion::image::Image::new(2, 1, vec![0; 6]).unwrap();
    let text = |json: &str| {
        [("parameters", "a boat\nSteps: 2, Seed: 7"), ("inknib", json)]
            .map(|(k, t)| (k.to_string(), t.to_string()))
    };
    image.write_png(&path, &text("{\"seed\":7}")).unwrap();
    let run = inknib(&["show", str(&path)]);
    assert!(run.code == 0 && run.out.contains("Steps: 2, Seed: 7") && run.out.contains("2 x 1"));
    let run = inknib(&["show", "--json", str(&path)]);
    let value: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((&value["inknib"]["seed"], &value["width"]), (&7.into(), &2.into()));
    assert_eq!(
        (&value["settings"]["prompt"], &value["other"]),
        (&"a boat\nSteps: 2, Seed: 7".into(), &serde_json::json!({}))
    );
    // AUTOMATIC1111's and ComfyUI's pictures.
    let pair = |k: &str, t: &str| (k.to_string(), t.to_string());
    let parameters = "a cat\nSteps: 2, Sampler: DPM++ 2M Karras, Seed: 7, Size: 2x1";
    let chunks = [pair("parameters", parameters), pair("workflow", "{}")];
    image.write_png(&path, &chunks).unwrap();
    let run = inknib(&["show", str(&path)]);
    assert!(run.out.contains("also `workflow` of ComfyUI"), "{}", run.out);
    let run = inknib(&["show", "--json", str(&path)]);
    let value: Value = serde_json::from_str(&run.out).unwrap();
    let settings = &value["settings"];
    assert_eq!(
        (&settings["sampler"], &settings["scheduler"]),
        (&"DPM++ 2M".into(), &"Karras".into())
    );
    assert_eq!((&settings["width"], &settings["clip_skip"]), (&2.into(), &Value::Null));
    assert_eq!((&value["other"]["workflow"], &value["inknib"]), (&"{}".into(), &Value::Null));
    image.write_png(&path, &text("{\"seed\":")).unwrap();
    refused(&["show", str(&path)], 2, &["p.png", "no JSON"]);
    std::fs::write(&path, "not a picture").unwrap();
    refused(&["show", str(&path)], 2, &["p.png", "PNG"]);
    refused(&["show", str(&folder.path().join("gone.png"))], 1, &["gone.png"]);
}

#[test]
fn verify_compares_and_judges() {
    if !gpu() {
        return;
    }
    let run = inknib(&["verify", "--json", "tests/golden/clip_l"]);
    let one: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((run.code, &one["passed"], &one["family"]), (0, &true.into(), &"clip_text".into()));
    assert!(one["outputs"][0]["rel_l2"].as_f64().unwrap() <= 2e-5, "{one}");
    let args = ["verify", "tests/golden/clip_l", "tests/golden/llama", "--weights", "fp16"];
    let run = inknib(&[&args[..], &["--json", "--kernels", "reference"]].concat());
    let both: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((run.code, both.as_array().map(Vec::len)), (0, Some(2)));

    // Weights of another net: beyond the tolerance, told apart from a file that cannot be read.
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong");
    std::fs::create_dir(&wrong).unwrap();
    let golden = Path::new(ROOT).join("tests/golden/llama");
    for name in ["config.json", "model.safetensors", "golden.safetensors"] {
        std::fs::copy(golden.join(name), wrong.join(name)).unwrap();
    }
    let weights = wrong.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    // Another sign for some of the last tensor's f16 weights: finite and far off.
    for i in (end - 4096..end).step_by(2) {
        bytes[i + 1] ^= 0x80;
    }
    std::fs::write(&weights, &bytes).unwrap();
    let run = inknib(&["verify", str(&wrong)]);
    assert_eq!(run.code, 7, "{}{}", run.out, run.err);
    assert!(run.out.contains("FAILED") && run.err.contains("wrong"), "{}{}", run.out, run.err);
    let run = inknib(&["verify", "--json", str(&wrong)]);
    let value: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((run.code, &value["passed"]), (7, &false.into()));

    std::fs::write(&weights, &bytes[..end / 2]).unwrap();
    refused(&["verify", str(&wrong)], 4, &["model.safetensors"]);
    std::fs::remove_file(wrong.join("golden.safetensors")).unwrap();
    refused(&["verify", str(&wrong)], 4, &["golden.safetensors"]);
    refused(&["verify", str(&folder.path().join("gone"))], 4, &["gone"]);
    refused(&["verify", "tests/golden/clip_l", "--weights", "int5"], 2, &["int5", "fp16"]);
}

/// A copy of a shipped model, to be damaged.
fn copy_of(model: &str, to: &Path) {
    let from = Path::new(ROOT).join("models").join(model);
    for file in files(&from) {
        let target = to.join(file.strip_prefix(&from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(&file, target).unwrap();
    }
}

/// Replaces a word of a file, which must be there.
fn change(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{}: {from}", file.display());
    std::fs::write(file, text.replace(from, to)).unwrap();
}

fn cut(file: &Path) {
    let bytes = std::fs::read(file).unwrap();
    std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn chat_refuses_bad_input() {
    if !gpu() {
        return;
    }
    let chat = |flags: &[&str], code: i32, words: &[&str]| {
        refused(&[&["chat", "-p", "Hello!"][..], flags].concat(), code, words);
    };
    chat(&["--temp=-1"], 2, &["temp"]);
    chat(&["--top-p", "2"], 2, &["top"]);
    chat(&["-c", "0"], 2, &["context"]);
    chat(&["-m", "models/demo-scenes"], 4, &["models/demo-scenes", "inknib generate"]);
    chat(&["--weights", "fp16", "--vram-budget", "1M"], 5, &["budget", "--vram-budget"]);
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_of("demo-chat", &model);
    let args = ["--weights", "fp16", "-m", str(&model)];
    change(&model.join("config.json"), "\"intermediate_size\": 704", "\"intermediate_size\": 640");
    chat(&args, 4, &["mlp", "[704, 256]", "[640, 256]"]);
    change(&model.join("config.json"), "\"model_type\": \"llama\"", "\"model_type\": \"mamba\"");
    chat(&args, 4, &["`mamba`", "llama"]);
    copy_of("demo-chat", &model);
    cut(&model.join("model.safetensors"));
    chat(&args, 4, &["model.safetensors"]);
    copy_of("demo-chat", &model);
    std::fs::remove_file(model.join("tokenizer.json")).unwrap();
    chat(&args, 4, &["tokenizer.json"]);
}
