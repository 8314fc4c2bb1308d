//! What goes wrong with devices, and what is done about it: a lost device, a small budget, no driver, a driver
//! that computes wrong. Faults are made with INKNIB_FAULT (src/gpu/fault.rs).

#[path = "common/device.rs"]
mod device;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use device::gpu;
use inknib::Error;
use inknib::diffusion::image::{Image, read_png};
use inknib::gpu::{Gpu, GpuOptions};
use inknib::graph::Kernels;
use inknib::ops::canary;
use inknib::probe::driver::reported;
use serde_json::Value;
use sha2::{Digest, Sha256};

struct Run {
    code: i32,
    out: String,
    err: String,
}

/// Runs the binary with these variables, `input` on standard input, and a cache folder that cannot be there.
fn inknib(args: &[&str], variables: &[(&str, &str)], input: &str) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inknib"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR")).write_stdin(input);
    command.env_remove("RUST_LOG").env_remove("INKNIB_MODELS").env_remove("INKNIB_FAULT");
    command.env("INKNIB_CACHE", "Cargo.toml/none").envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let code = output.status.code().unwrap_or(-1);
    let run = Run { code, out: text(&output.stdout), err: text(&output.stderr) };
    assert!(!run.err.contains("panicked"), "{args:?}: {}", run.err);
    run
}

const GENERATE: [&str; 13] = [
    "generate",
    "-p",
    "a red boat",
    "--weights",
    "fp16",
    "-s",
    "7",
    "--steps",
    "2",
    "-W",
    "64",
    "-H",
    "64",
];
const CHAT: [&str; 6] = ["chat", "--weights", "fp16", "--temp", "0.8", "--seed=3"];
const LOST: &str = "running once more on a new device";

#[track_caller]
fn well(args: &[&str], variables: &[(&str, &str)], input: &str) -> Run {
    let run = inknib(args, variables, input);
    assert_eq!(run.code, 0, "{args:?}: {}{}", run.out, run.err);
    run
}

/// One line on stderr at the end that holds every word, and this exit code.
#[track_caller]
fn refused(args: &[&str], variables: &[(&str, &str)], code: i32, words: &[&str]) {
    let run = inknib(args, variables, "Hello!\n");
    assert_eq!(run.code, code, "{args:?}: {}{}", run.out, run.err);
    let last = run.err.trim_end().lines().last().unwrap_or_default();
    for word in words {
        assert!(last.contains(word), "{args:?} should name `{word}`: {}", run.err);
    }
}

#[test]
fn a_lost_device_says_so_to_everybody_who_asks() {
    let Some(device) = gpu() else { return };
    let name = &device.adapter().name;
    let gpu = Gpu::open(&GpuOptions { device: Some(name.clone()), ..Default::default() }).unwrap();
    let buffer = gpu.upload("x", &[1; 16]).unwrap();
    let pending = gpu.read_later(&buffer, 0, 16).unwrap();
    let clone = gpu.clone();
    gpu.lose("a test");
    let lost = |what: &str, result: Result<(), Error>| match result {
        Err(error @ Error::DeviceLost(_)) => {
            let text = error.to_string();
            assert!(text.contains("a test") && text.contains(name.as_str()), "{what}: {text}");
            assert_eq!(error.exit_code(), 6);
        }
        other => panic!("{what}: {other:?}"),
    };
    for _ in 0..2 {
        lost("submit", gpu.submit(&[]));
        lost("wait", gpu.wait());
        lost("write", gpu.write(&buffer, 0, &[2; 16]));
        lost("read", clone.read(&buffer, 0, 16).map(drop));
        lost("buffer", clone.buffer("y", 16).map(drop));
        lost("run", canary::count_loop(&gpu, Kernels::Fast, 4, 4).map(drop));
    }
    lost("a read under way", pending.finish().map(drop));
    drop((gpu, clone));
    assert_eq!(canary::count_loop(device, Kernels::Fast, 4, 4).unwrap(), canary::expected(4));
}

fn picture(path: &Path) -> Image {
    read_png(path).unwrap().0
}

#[test]
fn a_picture_is_painted_once_more_on_a_new_device() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let paint = |name: &str, more: &[&str], fault: &[(&str, &str)]| -> Run {
        let out = at(name);
        inknib(&[&GENERATE[..], more, &["-o", out.to_str().unwrap()]].concat(), fault, "")
    };
    assert_eq!(paint("whole.png", &["-b", "2"], &[]).code, 0);
    let run = paint("lost.png", &[], &[("INKNIB_FAULT", "lose-device:2")]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.err.contains("submission 2") && run.err.contains(LOST), "{}", run.err);
    assert_eq!(picture(&at("lost.png")), picture(&at("whole.png")));

    // After the first picture of two, which is not painted again.
    let run = paint("two.png", &["-b", "2"], &[("INKNIB_FAULT", "lose-device:14")]);
    assert!(run.code == 0 && run.err.contains(LOST), "{}", run.err);
    assert_eq!(run.out.matches("two.png").count(), 1, "{}", run.out);
    for (two, whole) in [("two.png", "whole.png"), ("two_2.png", "whole_2.png")] {
        assert_eq!(picture(&at(two)), picture(&at(whole)));
    }

    let run = paint("twice.png", &[], &[("INKNIB_FAULT", "lose-device:2,2")]);
    assert_eq!(run.code, 6, "{}{}", run.out, run.err);
    assert!(run.err.contains("second time") && run.err.contains("--device"), "{}", run.err);
    assert_eq!(run.err.matches(LOST).count(), 1, "{}", run.err);
    assert!(!at("twice.png").exists());
}

#[test]
fn an_answer_is_given_once_more_on_a_new_device() {
    if gpu().is_none() {
        return;
    }
    let lose = [("INKNIB_FAULT", "lose-device:9")];
    let ask = [&CHAT[..], &["-p", "Tell me a short story about a fox.", "-n", "24"]].concat();
    let whole = well(&ask, &[], "");
    let lost = well(&ask, &lose, "");
    assert!(lost.err.contains(LOST), "{}", lost.err);
    assert_eq!(lost.out, whole.out);

    // The answer as JSON, and piece by piece.
    let text = |run: &Run| -> String {
        let value: serde_json::Value = serde_json::from_str(&run.out).unwrap();
        value["text"].as_str().unwrap().to_string()
    };
    let json = well(&[&ask[..], &["--json"]].concat(), &lose, "");
    assert_eq!(text(&json), whole.out.trim_end());
    let pieces = well(&[&ask[..], &["--jsonl"]].concat(), &lose, "");
    let joined: String = pieces
        .out
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|value| value["type"] == "text")
        .map(|value| value["text"].as_str().unwrap().to_string())
        .collect();
    assert_eq!(joined, whole.out.trim_end());

    refused(&ask, &[("INKNIB_FAULT", "lose-device:9,9")], 6, &["second time", "inknib doctor"]);
}

#[test]
fn a_conversation_goes_on_after_a_loss() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let talk = |name: &str, fault: &[(&str, &str)]| -> (Run, String) {
        let saved = folder.path().join(name);
        let turns = format!(
            "/set max_tokens 12\nHello! Who are you?\nWhat is 7 plus 5?\nAnd 2 plus 2?\n/save {}\n",
            saved.display()
        );
        let run = well(&CHAT, fault, &turns);
        (run, std::fs::read_to_string(saved).unwrap())
    };
    let (whole, kept) = talk("whole.json", &[]);
    // About a dozen submissions are a turn: the device goes in the second one.
    let (lost, kept_too) = talk("lost.json", &[("INKNIB_FAULT", "lose-device:18")]);
    assert_eq!(lost.err.matches(LOST).count(), 1, "{}", lost.err);
    assert_eq!((lost.out, kept_too), (whole.out, kept));
}

#[test]
fn a_budget_that_is_too_small_is_told_in_numbers() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out: PathBuf = folder.path().join("p.png");
    let paint = [&GENERATE[..], &["-o", out.to_str().unwrap(), "--vram-budget", "3M"]].concat();
    refused(&paint, &[], 5, &["3.0 MiB", "MiB", "--vram-budget"]);
    assert!(!out.exists());
    let ask = [&CHAT[..], &["-p", "Hello!", "--vram-budget", "3M"]].concat();
    refused(&ask, &[], 5, &["needs", "3.0 MiB", "--vram-budget"]);
}

#[test]
fn without_a_driver_there_is_a_line_to_type() {
    // Vulkan without drivers; Metal where there is no Vulkan to begin with.
    let none = match cfg!(target_os = "macos") {
        true => [("WGPU_BACKEND", "dx12"), ("VK_DRIVER_FILES", "")],
        false => [("WGPU_BACKEND", "vulkan"), ("VK_DRIVER_FILES", "/dev/null")],
    };
    if cfg!(windows) {
        return; // The loader of Vulkan finds drivers in the registry there.
    }
    let line = ["no GPU adapter", "apt-get install mesa-vulkan-drivers"];
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("p.png");
    refused(&[&GENERATE[..], &["-o", out.to_str().unwrap()]].concat(), &none, 3, &line);
    refused(&[&CHAT[..], &["-p", "Hello!"]].concat(), &none, 3, &line);
    refused(&["doctor"], &none, 3, &line);
    refused(&["devices"], &none, 3, &line);
}

#[test]
fn trouble_with_a_device_is_reported() {
    let Some(gpu) = gpu() else { return };
    // On a busy machine the work may be done before this thread comes to wait for it.
    let tries = (0..5).map(|_| {
        let device = Some(gpu.adapter().name.clone());
        let own = Gpu::open(&GpuOptions { device, ..Default::default() }).unwrap();
        let found = reported(own).unwrap();
        assert!(found.lost_device && found.passed(), "{found:?}");
        found.time_out == Some(true)
    });
    let seen = tries.into_iter().any(|seen| seen);
    assert!(seen || !gpu.caps().software);
}

fn json(run: &Run) -> Value {
    serde_json::from_str(&run.out).unwrap_or_else(|e| panic!("{e}: {}{}", run.out, run.err))
}

/// Software that has subgroups of eight lanes runs kernels that use them.
fn has_lanes() -> bool {
    gpu().is_some_and(|gpu| {
        let caps = gpu.caps();
        caps.software && caps.subgroups && (caps.subgroup_min, caps.subgroup_max) == (8, 8)
    })
}

#[test]
fn what_computes_wrong_is_left_out_and_remembered() {
    if !has_lanes() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let cache = ("INKNIB_CACHE", cache.to_str().unwrap());
    let wrong = ("INKNIB_FAULT", "wrong:subgroups");
    let ask = [&CHAT[..], &["-p", "Hello!", "-n", "8"]].concat();
    let right = well(&ask, &[cache], "");
    assert_ne!(inknib(&ask, &[cache, wrong], "").out, right.out, "the fault changes nothing");

    let doctor = json(&well(&["doctor", "--json"], &[cache, wrong], ""));
    assert_eq!(doctor["avoids"], serde_json::json!(["subgroups"]), "{doctor}");
    assert_eq!((&doctor["passed"], &doctor["failed"]), (&true.into(), &0.into()));
    let tiers = doctor["tiers"].as_array().unwrap();
    assert_eq!((tiers.len(), &tiers[0]["passed"]), (2, &false.into()));
    assert!(tiers[0]["failure"].as_str().unwrap().contains("cases are wrong"), "{doctor}");
    assert!(doctor["verdict"].as_str().unwrap().contains("without subgroups"), "{doctor}");
    let families = doctor["uses"]["families"].as_array().unwrap();
    assert!(families.iter().all(|f| !f["kernels"].to_string().contains("_lanes")), "{doctor}");

    // Other commands obey, and say so once.
    let run = well(&ask, &[cache, wrong], "");
    assert_eq!(run.out, right.out);
    let said = run.err.lines().filter(|l| l.contains("subgroups not used")).count();
    assert!(said == 1 && run.err.contains("inknib doctor --forget"), "{}", run.err);
    let devices = json(&well(&["devices", "--json"], &[cache], ""));
    let avoids = devices.as_array().unwrap().iter().map(|d| d["avoids"].to_string());
    assert_eq!(avoids.filter(|a| a.contains("subgroups")).count(), 1, "{devices}");

    // Another version of inknib or of the driver would have to be tested again.
    let file = Path::new(cache.1).join("drivers.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(env!("CARGO_PKG_VERSION"), "0.0.1")).unwrap();
    assert!(!well(&ask, &[cache], "").err.contains("not used"));
    std::fs::write(&file, &text).unwrap();

    let run = well(&["doctor", "--forget"], &[cache], "");
    assert!(run.out.contains("subgroups is used again"), "{}", run.out);
    assert!(!file.exists() && !well(&ask, &[cache], "").err.contains("not used"));
    assert!(well(&["doctor", "--forget"], &[cache], "").out.contains("Nothing"));

    // A driver that has been mended.
    std::fs::write(&file, &text).unwrap();
    let run = well(&["doctor"], &[cache], "");
    assert!(run.err.contains("right now, and forgotten"), "{}", run.err);
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), "[]");
}

#[test]
fn the_reference_kernels_are_left_and_then_nothing() {
    if !has_lanes() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = ("INKNIB_CACHE", folder.path().to_str().unwrap());
    let doctor = well(&["doctor"], &[cache, ("INKNIB_FAULT", "wrong:fast")], "").out;
    assert!(doctor.contains("only with the reference kernels alone"), "{doctor}");
    assert!(doctor.contains("reference/matmul.wgsl"), "{doctor}");
    let ask = [&CHAT[..], &["-p", "Hello!", "-n", "4", "--json"]].concat();
    let run = well(&ask, &[cache, ("INKNIB_FAULT", "wrong:fast")], "");
    assert_eq!(json(&run)["kernels"], "reference");
    assert!(run.err.contains("fast-kernels not used"), "{}", run.err);

    let all = ("INKNIB_FAULT", "wrong:all");
    refused(&["doctor"], &[cache, all], 7, &["cases are wrong", "another --device"]);
    let run = inknib(&["doctor", "--json"], &[cache, all], "");
    let value = json(&run);
    assert_eq!((run.code, &value["passed"]), (7, &false.into()));
    assert!(value["verdict"].as_str().unwrap().starts_with("Not usable"), "{value}");
    refused(&ask, &[cache], 7, &["no kernel computes right", "inknib doctor --forget"]);
    // Without f16 there are no f16 activations to test.
    let half = ["doctor", "--activations", "f16"];
    if gpu().is_some_and(|gpu| gpu.caps().f16) {
        refused(&half, &[cache, ("INKNIB_FAULT", "wrong:f16")], 7, &["cases are wrong"]);
    }
    // What the user has chosen to test says nothing of the rest.
    well(&["doctor", "--without", "subgroups"], &[cache], "");
    refused(&ask, &[cache], 7, &["no kernel computes right"]);
}

#[test]
fn doctor_says_what_runs_and_why() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache = ("INKNIB_CACHE", folder.path().to_str().unwrap());
    let value = json(&well(&["doctor", "--json"], &[cache], ""));
    assert_eq!(value["avoids"], serde_json::json!([]));
    assert_eq!(value["canaries"]["lost_device"], true);
    for field in ["loops_right", "non_finite_right"] {
        assert_eq!(value["canaries"][field], true, "{field}");
    }
    let families = value["uses"]["families"].as_array().unwrap();
    let of = |case: &str| families.iter().find(|f| f["case"] == case).unwrap();
    let rows = of("many rows, INT4");
    assert!(rows["kernels"][0].as_str().unwrap().starts_with("matmul"), "{rows}");
    let because = rows["because"].to_string();
    assert!(because.contains("a CPU plays the GPU") == gpu.caps().software, "{rows}");
    for place in value["disk"].as_array().unwrap() {
        assert!(place["name"].is_string(), "{place}");
        if place["name"] == "temporary files" {
            assert!(place["writable"] == true && place["free_bytes"].as_u64().unwrap() > 0);
        }
    }
    // A loss alone says nothing of what a driver computes.
    let lost = well(&["doctor", "--json"], &[("INKNIB_FAULT", "lose-device:3")], "");
    assert!(lost.err.contains(LOST), "{}", lost.err);
    assert_eq!(json(&lost)["avoids"], serde_json::json!([]));
    // The record is not made where there is nothing to record; what was compiled for the test is kept.
    assert!(!folder.path().join("drivers.json").exists());
    if gpu.caps().pipeline_cache {
        let file = Path::new(value["compiled_kernels"]["file"].as_str().unwrap());
        assert!(file.starts_with(folder.path()) && file.is_file(), "{value}");
    }
    refused(&["doctor"], &[("INKNIB_FAULT", "wrong:colour")], 2, &["wrong:subgroups"]);
}

#[test]
fn devices_say_which_one_is_taken() {
    if gpu().is_none() {
        return;
    }
    let list = json(&well(&["devices", "--json"], &[], ""));
    let list = list.as_array().unwrap();
    let taken: Vec<&Value> = list.iter().filter(|d| d["taken"] == true).collect();
    assert_eq!(taken.len(), 1);
    for device in list {
        assert!(device["driver_version"].is_string() && device["avoids"].is_array(), "{device}");
    }
    let table = well(&["devices"], &[], "").out;
    assert!(table.contains("* is taken without --device"), "{table}");
    assert!(table.contains("lanes") && table.contains("shared memory"), "{table}");
}

/// Compiled kernels are kept for the next run; whatever becomes of the file does no harm, and is put right.
#[test]
fn compiled_kernels_are_kept() {
    let Some(gpu) = gpu().filter(|gpu| gpu.caps().pipeline_cache) else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache = ("INKNIB_CACHE", folder.path().to_str().unwrap());
    let chat = [&CHAT[..], &["-n", "2", "-p", "Hello!"]].concat();
    let left_out = [&chat[..], &["--without", "pipeline-cache"]].concat();
    let answer = well(&left_out, &[cache], "").out;
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "{}", gpu.adapter().name);

    let kept = || {
        let run = well(&chat, &[cache], "");
        assert_eq!((run.out.as_str(), run.err.contains("WARN")), (answer.as_str(), false));
        let files: Vec<_> = std::fs::read_dir(folder.path().join("pipelines")).unwrap().collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let path = files.into_iter().next().unwrap().unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let (digest, data) = bytes.split_at(32);
        assert_eq!(digest, Sha256::digest(data).as_slice());
        assert!(data.starts_with(b"WGPUPLCH"), "wgpu's header");
        (path, data.to_vec())
    };
    let (path, data) = kept();
    let sealed = |data: &[u8]| [Sha256::digest(data).as_slice(), data].concat();
    let whole = sealed(&data);
    let (mut flipped, mut foreign) = (whole.clone(), data.clone());
    *flipped.last_mut().unwrap() ^= 1;
    // Behind magic, version, size of a pointer and backend: whose adapter it is.
    foreign[17..32].fill(0x5a);
    let half = whole.len() / 2;
    let others = [vec![], b"garbage".to_vec(), whole[..half].to_vec(), flipped];
    let sealed_others =
        [sealed(b""), sealed(&[0x5a; 999]), sealed(&data[..half]), sealed(&foreign)];
    for (i, other) in others.into_iter().chain(sealed_others).enumerate() {
        std::fs::write(&path, &other).unwrap();
        assert_eq!(kept().0, path);
        assert_ne!(std::fs::read(&path).unwrap(), other, "file {i}");
    }
}

/// What `tune` measured is remembered for this driver and taken by others, until it is forgotten.
#[test]
fn tune_is_remembered_and_forgotten() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache = ("INKNIB_CACHE", folder.path().to_str().unwrap());
    let tuned = json(&well(&["tune", "--quick", "--json"], &[cache], ""));
    assert_eq!(tuned["adapter"], gpu.adapter().name.as_str());
    for choice in tuned["choices"].as_array().unwrap() {
        let ways = choice["ways"].as_array().unwrap();
        let taken = choice["taken"].as_u64().unwrap() as usize;
        assert!(ways.len() > 1 && ways[0]["of_default"] == 1.0 && taken < ways.len(), "{choice}");
        let time = |way: &Value| way["of_default"].as_f64().unwrap();
        assert!(taken == 0 || ways.iter().all(|way| time(way) >= time(&ways[taken])), "{choice}");
        assert!(ways.iter().all(|way| !way["cases"].as_array().unwrap().is_empty()), "{choice}");
    }
    let file = folder.path().join("tuning.json");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(&gpu.adapter().driver), "{text}");

    // Others take it from there: here a tuning that leaves the lanes alone.
    if has_lanes() {
        let other = text.replace("\"eight_lanes\": true", "\"eight_lanes\": false");
        std::fs::write(&file, other).unwrap();
        let doctor = json(&well(&["doctor", "--json", "--without", "timestamps"], &[cache], ""));
        assert_eq!(doctor["passed"], true);
        let bench = well(&["bench", "--ops", "--op", "matmul", "--quick", "--json"], &[cache], "");
        assert!(!bench.out.contains("_lanes"), "{}", bench.out);
    }
    assert!(well(&["tune", "--forget"], &[cache], "").err.contains("forgotten"));
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), "[]");
    assert!(well(&["tune", "--forget"], &[cache], "").err.contains("nothing was remembered"));
}
