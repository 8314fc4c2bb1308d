//! The commands that take a GGUF file.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{golden, shared};

/// Exit code, standard output and standard error.
fn inknib(args: &[&str], path: &Path) -> (i32, String, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_inknib")).args(args).arg(path).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (run.status.code().unwrap(), text(run.stdout), text(run.stderr))
}

#[test]
fn show_says_what_each_type_becomes() {
    let (code, out, _) = inknib(&["show"], &golden("blocks.gguf"));
    assert_eq!(code, 0);
    for part in ["Q6_K", "int8 g16", "quantized again", "no chat template", "does not run here"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (code, out, _) = inknib(&["--json", "show"], &golden("blocks.gguf"));
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, answer["types"].as_array().unwrap().len()), (0, 11));
    let Some(folder) = shared("data/llm/stories260K") else { return };
    let (_, out, _) = inknib(&["--json", "show"], &folder.join("stories260K-Q4_1.gguf"));
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&answer["obstacle"], &answer["weights"]), (&Value::Null, &260_032.into()));
    // Bytes of the file's tensors, 16 bits for the ragged and 5 for the others.
    assert_eq!(answer["bits_per_weight"], answer["bits_per_weight_resident"]);
}

#[test]
fn what_cannot_be_used_is_refused_with_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["model.ckpt", "model.pt", "model.pth", "model.bin"] {
        let path = folder.path().join(name);
        std::fs::write(&path, b"PK\x03\x04").unwrap();
        let (code, _, error) = inknib(&["chat", "-p", "Hi", "-m"], &path);
        assert!(code == 4 && error.contains("pickle") && error.contains("convert"), "{error}");
    }
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    let (code, _, error) = inknib(&["quantize", "-o", out, "-m"], &golden("blocks.gguf"));
    assert!(code == 4 && error.contains("GGUF file"), "{error}");
    let path = folder.path().join("cut.gguf");
    std::fs::write(&path, &std::fs::read(golden("blocks.gguf")).unwrap()[..3000]).unwrap();
    let (code, _, error) = inknib(&["chat", "-p", "Hi", "-m"], &path);
    assert!(code == 4 && error.contains("incomplete"), "{error}");
}
