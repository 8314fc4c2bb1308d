//! `inknib bench` and `inknib perplexity` from outside, on the shipped model: the JSON that scripts may rely
//! on, and errors for sizes that cannot be.

use assert_cmd::Command;
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn run(args: &[&str]) -> (i32, Value, String) {
    let model = format!("{ROOT}/models/demo-chat");
    let mut command = Command::cargo_bin("inknib").unwrap();
    command.env("INKNIB_CACHE", "Cargo.toml/none");
    let output = command.args(args).args(["-m", &model, "--json"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value = serde_json::from_str(&text).unwrap_or(Value::Null);
    (output.status.code().unwrap(), value, String::from_utf8(output.stderr).unwrap())
}

/// Exit code 3: no adapter on this machine.
fn skipped(code: i32) -> bool {
    if code == 3 {
        println!("skipped: no adapter");
    }
    code == 3
}

#[test]
fn bench_prints_speed_and_memory() {
    let (code, answer, error) = run(&["bench", "-p", "24", "-n", "8", "-d", "0,40", "-r", "1"]);
    if skipped(code) {
        return;
    }
    assert_eq!(code, 0, "{error}");
    let rows = answer["models"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|r| r["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp24", "tg8", "pp24 @ d40", "tg8 @ d40"]);
    for name in ["copy_gb_s", "fma_gflop_s", "int_dot_gop_s", "dispatch_us", "submit_us"] {
        assert!(answer["ceilings"][name].as_f64().unwrap() > 0.0, "{name}: {answer}");
    }
    for row in rows {
        assert!(row["tokens_per_second"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["fraction_of_ceiling"].as_f64().unwrap() > 0.0, "{row}");
        let memory = |name: &str| row["memory"][name].as_u64().unwrap();
        // A token reads every matrix once, and of the embedding (tied: once more as the head) one row.
        let (read, weights) = (memory("weights_read_per_token"), memory("weights"));
        assert!(read as f64 <= 1.05 * weights as f64 && read * 2 > weights, "{read} of {weights}");
        let resident = weights + memory("cache") + memory("activations");
        // Besides: parameters of the plans, token ids, the literal tables, staging for read-back.
        assert!(memory("peak") < resident + (1 << 20), "{} over {resident}", memory("peak"));
    }
    // A step and the read-back of its token are one submission.
    for row in [&rows[1], &rows[3]] {
        assert_eq!(row["submissions_per_token"], 1.0);
    }
}

#[test]
fn a_cache_of_eight_bits_is_small() {
    let cache = |kv: &str| {
        let (code, answer, error) = run(&["bench", "-p", "0", "-n", "4", "-r", "1", "--kv", kv]);
        (!skipped(code)).then(|| {
            assert_eq!(code, 0, "{error}");
            answer["models"][0]["memory"]["cache"].as_f64().unwrap()
        })
    };
    let (Some(float), Some(eight)) = (cache("auto"), cache("int8")) else { return };
    // 32 channels of a head: 36 bytes with the scale, against 64 or 128.
    assert!(eight < 0.6 * float, "{eight} of {float}");
    let (code, _, error) = run(&["bench", "-p", "8", "--kv", "f16", "--activations", "f32"]);
    assert!(code == 2 && error.contains("--kv int8"), "{code}: {error}");
}

#[test]
fn bench_refuses_what_does_not_fit() {
    let (code, answer, error) = run(&["bench", "-p", "512", "-n", "64", "-d", "4096"]);
    if skipped(code) {
        return;
    }
    assert_eq!((code, answer["code"].as_u64()), (2, Some(2)));
    assert!(error.contains("4610") && error.contains("512"), "{error}");
    let (code, _, error) = run(&["bench", "-p", "0", "-n", "0"]);
    assert!(code == 2 && error.contains("nothing to measure"), "{code}: {error}");
}

#[test]
fn perplexity_prints_what_scripts_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    std::fs::write(&file, "Once there was a fox who lived near a quiet river. ".repeat(8)).unwrap();
    let file = file.to_str().unwrap();
    let (code, answer, error) = run(&["perplexity", "-f", file, "--kl-divergence", "-c", "64"]);
    if skipped(code) {
        return;
    }
    assert_eq!(code, 0, "{error}");
    for path in ["/perplexity", "/stderr", "/kl/mean", "/kl/p99", "/kl/max", "/same_top"] {
        assert!(answer.pointer(path).is_some_and(Value::is_number), "{path}: {answer}");
    }
    assert_eq!(answer["tokens"], 63);
    let (code, _, error) = run(&["perplexity", "-f", "/nowhere/text.txt"]);
    assert!(code == 1 && error.contains("/nowhere/text.txt"), "{code}: {error}");
    let (code, _, error) = run(&["perplexity", "-f", file, "--chunk", "9999"]);
    assert!(code == 2 && error.contains("9999") && error.contains("512"), "{code}: {error}");
    let binary = folder.path().join("binary.txt");
    std::fs::write(&binary, [0x66, 0xff, 0xfe]).unwrap();
    let (code, _, error) = run(&["perplexity", "-f", binary.to_str().unwrap()]);
    assert!(code == 2 && error.contains("UTF-8") && error.contains("byte 1"), "{code}: {error}");
}

/// The VAE alone, which takes 32 MiB in one piece, in a budget that holds it in tiles only.
#[test]
fn a_large_picture_is_decoded_in_tiles() {
    let mut command = Command::cargo_bin("inknib").unwrap();
    command.env("INKNIB_CACHE", "Cargo.toml/none");
    let model = format!("{ROOT}/models/demo-scenes");
    let args = ["bench", "--decode", "256", "--vram-budget", "30M", "-r", "1", "--json", "-m"];
    let output = command.args(args).arg(&model).output().unwrap();
    if skipped(output.status.code().unwrap()) {
        return;
    }
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = answer["models"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{answer}");
    let row = &rows[0];
    assert_eq!(row["test"], "vae 256x256");
    let tile = row["tile"].as_u64().unwrap();
    assert!(tile < 256 && tile.is_multiple_of(32), "{row}");
    assert!(row["memory"]["peak"].as_u64().unwrap() <= 30 << 20, "{row}");
}

#[test]
fn an_image_model_is_measured_step_by_step() {
    let mut command = Command::cargo_bin("inknib").unwrap();
    command.env("INKNIB_CACHE", "Cargo.toml/none");
    let model = format!("{ROOT}/models/demo-scenes");
    let args = ["bench", "--size", "64", "--weights", "int4,fp16", "-r", "1", "--json", "-m"];
    let output = command.args(args).arg(&model).output().unwrap();
    if skipped(output.status.code().unwrap()) {
        return;
    }
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = answer["models"].as_array().unwrap();
    let tests: Vec<&str> = rows.iter().map(|r| r["test"].as_str().unwrap()).collect();
    let of_one = ["unet 64x64", "unet 64x64 b2", "vae 64x64"];
    assert_eq!(tests, [of_one, of_one].concat());
    let number = |row: &Value, name: &str| row[name].as_f64().unwrap();
    for row in rows {
        assert!(
            number(row, "seconds_per_step") > 0.0 && number(row, "gemm_gflop_s") > 0.0,
            "{row}"
        );
        let product = number(row, "gflop_s") * number(row, "seconds_per_step");
        // The mean of one sample: nothing but the rounding of a division lies between.
        assert!((product - number(row, "gflop")).abs() < 1e-6 * product, "{row}");
        let memory = |name: &str| row["memory"][name].as_u64().unwrap();
        assert!(memory("peak") >= memory("weights") + memory("activations"), "{row}");
    }
    // The process has read at least the weights of both formats.
    #[cfg(target_os = "linux")]
    assert!(rows.iter().all(|row| row["memory"]["host_peak"].as_u64().unwrap() > 10 << 20));
    // Guidance doubles everything that is computed.
    assert_eq!(2.0 * number(&rows[0], "gflop"), number(&rows[1], "gflop"));
    let resident = |row: &Value| row["weights"]["resident_bytes"].as_f64().unwrap();
    // 16 bits against 4.25 and what stays at 16.
    assert!(resident(&rows[3]) > 3.0 * resident(&rows[0]));
}

#[test]
fn sizes_that_a_model_cannot_paint_are_refused() {
    let mut command = Command::cargo_bin("inknib").unwrap();
    command.env("INKNIB_CACHE", "Cargo.toml/none");
    let model = format!("{ROOT}/models/demo-scenes");
    let output = command.args(["bench", "--size", "60", "-r", "1", "-m", &model]).output().unwrap();
    if skipped(output.status.code().unwrap()) {
        return;
    }
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("multiples of"));
}

#[test]
fn forms_of_four_bits_side_by_side() {
    let (code, answer, error) = run(&["bench", "--formats", "-r", "1"]);
    if skipped(code) {
        return;
    }
    assert_eq!(code, 0, "{error}");
    let formats = answer["formats"].as_array().unwrap();
    assert_eq!(formats.len(), 8);
    for cost in formats {
        assert!(cost["ms"].as_f64().unwrap() > 0.0, "{cost}");
        // What is held against itself costs nothing; the others are measured, not judged, on a shared machine.
        let plain = cost["format"] == "int4-g64-uniform";
        assert_eq!(plain, cost["over_plain"] == 0.0, "{cost}");
    }
}

/// As `run`, of ops: there is no model.
fn run_ops(args: &[&str]) -> (i32, Value, String) {
    let mut command = Command::cargo_bin("inknib").unwrap();
    command.env("INKNIB_CACHE", "Cargo.toml/none");
    let output = command.args(["bench", "--quick", "--json"]).args(args).output().unwrap();
    let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), value, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn ops_are_held_against_ceilings_and_saved_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
    let outputs: Vec<String> =
        ["a.json", "a.csv", "a.md", "a.html", "a.svg"].into_iter().map(path).collect();
    let mut args = vec!["--ops", "--op", "softmax,topk"];
    outputs.iter().for_each(|file| args.extend(["-o", file]));
    let (code, answer, error) = run_ops(&args);
    if skipped(code) {
        return;
    }
    assert_eq!(code, 0, "{error}");
    let ops = answer["ops"].as_array().unwrap();
    assert_eq!(
        ops.iter().map(|op| op["op"].as_str().unwrap()).collect::<Vec<_>>(),
        ["softmax", "topk"]
    );
    let ceiling = |name: &str| answer["ceilings"][name].as_f64().unwrap();
    let coop = answer["ceilings"]["coop_gflop_s"].as_f64().unwrap_or(0.0);
    let peak = ceiling("fma_gflop_s").max(coop);
    for op in ops {
        let number = |name: &str| op[name].as_f64().unwrap_or_else(|| panic!("{name}: {op}"));
        let (ms, fraction) = (number("ms"), number("fraction_of_ceiling"));
        assert!(op["spec"].is_string() && op["shape"].is_string() && ms > 0.0, "{op}");
        assert!(op["samples"].as_array().unwrap().len() >= 3 && number("compile_seconds") > 0.0);
        // Rates and fractions are those of the numbers beside them; 1e-6 is for the JSON's digits.
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b;
        assert!(near(number("gb_s") * ms * 1e6, number("bytes")), "{op}");
        let of_copy = number("gb_s") / ceiling("copy_gb_s");
        let of_fma = op["gflop_s"].as_f64().unwrap_or(0.0) / peak;
        assert!(near(fraction, of_copy.max(of_fma)), "{op}");
    }
    // 512 rows of 77 numbers of four bytes (f16: two), read and written.
    let bytes = ops[0]["bytes"].as_u64().unwrap();
    assert!([2, 4].map(|size| 2 * 512 * 77 * size).contains(&bytes), "{bytes}");
    assert_eq!(ops[1]["gflop_s"], Value::Null);
    assert_eq!(serde_json::from_str::<Value>(&read("a.json")).unwrap(), answer);
    assert_eq!(read("a.csv").lines().count(), 3);
    assert!(read("a.md").contains("| softmax | rows | 512x77 |"));
    assert!(read("a.html").contains("Roofline") && read("a.svg").contains("rope, softmax"));

    // A baseline that was a hundred times slower, and knew another op.
    let slower = |op: &mut Value, factor: f64| {
        for sample in op["samples"].as_array_mut().unwrap() {
            *sample = (sample.as_f64().unwrap() * factor).into();
        }
    };
    let mut before = answer.clone();
    slower(&mut before["ops"][0], 100.0);
    before["ops"][1]["shape"] = "3".into();
    std::fs::write(path("before.json"), before.to_string()).unwrap();
    let baseline = path("before.json");
    let (code, answer, error) = run_ops(&["--op", "softmax", "--compare", &baseline]);
    assert_eq!(code, 0, "{error}");
    let comparison = &answer["comparison"];
    assert_eq!(comparison["same_device"], true);
    assert_eq!(comparison["only_before"][0], "topk · argmax · 3");
    let row = &comparison["rows"][0];
    assert!(
        row["ratio"].as_f64().unwrap() < 1.0 && row["noise"].as_f64().unwrap() >= 0.03,
        "{row}"
    );
    // Samples that scatter by more than that are possible on a busy machine; slower they cannot be.
    assert!(["faster", "within_noise"].contains(&row["verdict"].as_str().unwrap()), "{row}");
}

#[test]
fn what_bench_cannot_write_or_compare_is_said_before_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.json");
    std::fs::write(&broken, "{\"adapter\": \"a\", \"ops\": [{\"op\": \"norm\"}]}").unwrap();
    let broken = broken.to_str().unwrap();
    let cases: [(&[&str], i32, &[&str]); 7] = [
        (&["--ops", "--compare", broken], 2, &["broken.json", "ops[0]", "inknib bench"]),
        (&["--ops", "--compare", "/nowhere/b.json"], 1, &["/nowhere/b.json"]),
        (&["--ops", "-o", "a.png"], 2, &["a.png", ".svg"]),
        (&["--op", "convolution"], 2, &["convolution", "conv2d"]),
        (&["-m", "models/demo-chat", "-o", "a.svg"], 2, &["a.svg", "--ops"]),
        (&["-m", "models/demo-chat"], 2, &["--quick"]),
        (&["--formats", "--op", "norm"], 2, &["--formats"]),
    ];
    for (args, want, words) in cases {
        let (code, _, error) = run_ops(args);
        assert!(code == want && words.iter().all(|word| error.contains(word)), "{code}: {error}");
    }
}
