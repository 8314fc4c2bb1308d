//! `inknib test --quick` on every driver that is here: the machine's own adapter, SwiftShader (another Vulkan, without f16) and
//! OpenGL (without subgroups); and what they paint and say held against each other. `./x drivers` fetches what is missing.
#![allow(clippy::unwrap_used)] // a call that fails is a failed test

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A driver and the environment that chooses it.
struct Stack {
    name: &'static str,
    variables: Vec<(&'static str, String)>,
}

/// Where SwiftShader lies: `./x drivers` puts it into target/drivers, Chromium's package brings it along.
fn swiftshader() -> Option<PathBuf> {
    let named = std::env::var_os("INKNIB_SWIFTSHADER").map(PathBuf::from);
    let places = [
        "target/drivers/swiftshader/libvk_swiftshader.so",
        "/usr/lib/chromium/libvk_swiftshader.so",
    ];
    let places = places.into_iter().map(|place| Path::new(ROOT).join(place));
    named.into_iter().chain(places).find(|path| path.is_file())
}

fn stacks(folder: &Path) -> Vec<Stack> {
    let mut stacks = vec![Stack { name: "default", variables: Vec::new() }];
    match swiftshader() {
        None => println!("skipped: no SwiftShader; `./x drivers` fetches it"),
        Some(library) => {
            let icd = folder.join("swiftshader.json");
            let text = format!(
                "{{\"file_format_version\": \"1.0.0\", \"ICD\": {{\"library_path\": {library:?}, \"api_version\": \"1.3.0\"}}}}"
            );
            std::fs::write(&icd, text).unwrap();
            let icd = icd.to_str().unwrap().to_string();
            let variables = vec![("VK_DRIVER_FILES", icd), ("WGPU_BACKEND", "vulkan".into())];
            stacks.push(Stack { name: "swiftshader", variables });
        }
    }
    stacks.push(Stack { name: "gl", variables: vec![("WGPU_BACKEND", "gl".into())] });
    stacks
}

fn inknib(stack: &Stack, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("inknib").unwrap();
    command.env("INKNIB_CACHE", "Cargo.toml/none");
    for (name, value) in &stack.variables {
        command.env(name, value);
    }
    let output = command.current_dir(ROOT).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn every_driver_passes_the_quick_test() {
    let folder = tempfile::tempdir().unwrap();
    let (mut files, mut stacks_run) = (Vec::new(), 0);
    for stack in stacks(folder.path()) {
        let file = folder.path().join(format!("{}.json", stack.name)).to_str().unwrap().to_string();
        let (code, _, err) = inknib(&stack, &["test", "--quick", "-o", &file]);
        if code == 3 {
            println!("skipped: {}: no adapter", stack.name);
            continue;
        }
        assert_eq!(code, 0, "{}: {err}", stack.name);
        let result: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        println!(
            "{}: {} cases in {} s, {} kernels",
            result["adapter"], result["passed"], result["seconds"], result["kernels_compiled"]
        );
        assert!(result["passed"].as_u64().unwrap() > 300, "{}", stack.name);
        assert!(
            result["models"].as_array().unwrap().len() >= 2,
            "{}: no models were run",
            stack.name
        );
        files.push(file);
        stacks_run += 1;
    }
    if stacks_run < 2 {
        println!("skipped: one driver alone has nothing to be compared with");
        return;
    }
    let page = folder.path().join("page.html").to_str().unwrap().to_string();
    let md = folder.path().join("page.md").to_str().unwrap().to_string();
    let args: Vec<&str> = ["report"]
        .into_iter()
        .chain(files.iter().map(String::as_str))
        .chain(["-o", &page, "-o", &md])
        .collect();
    let (code, _, err) = inknib(&Stack { name: "report", variables: Vec::new() }, &args);
    assert_eq!(code, 0, "{err}");
    let text = std::fs::read_to_string(&md).unwrap();
    let section = text.split("## What they paint and say").nth(1).unwrap();
    println!("{section}");
    assert!(
        section.contains("✓") && !section.contains("✗") && !section.contains("other words"),
        "{section}"
    );
    assert!(std::fs::read_to_string(&page).unwrap().contains("What they paint and say"));
}
