//! `inknib compare` from outside, on the models that ship with the program: few steps, small pictures
//! and short answers, so that a software adapter takes seconds. Without an adapter the tests say so in
//! one line and pass.

use assert_cmd::Command;
use serde_json::Value;

fn inknib(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inknib"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.env_remove("RUST_LOG").env_remove("INKNIB_MODELS").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn gpu() -> bool {
    let any = inknib(&["devices"]).0 == 0;
    if !any {
        println!("skipped: no GPU adapter");
    }
    any
}

/// The answer of a comparison that must end with this code.
#[track_caller]
fn compare(args: &[&str], code: i32) -> (Value, String) {
    let all: Vec<&str> = ["compare", "--json"].iter().chain(args).copied().collect();
    let (got, out, err) = inknib(&all);
    assert_eq!(got, code, "{args:?}: {err}");
    (serde_json::from_str(&out).unwrap(), err)
}

const SCENES: [&str; 9] =
    ["-m", "models/demo-scenes", "--steps", "2", "-W", "64", "-H", "64", "--activations=f32"];
const CHAT: [&str; 7] = [
    "-m",
    "models/demo-chat",
    "-p",
    "What is 7 plus 5?",
    "--max-tokens",
    "12",
    "--activations=f32",
];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

#[test]
fn a_picture_in_int4_and_the_exit_code_of_an_impossible_tolerance() {
    if !gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let png = folder.path().join("compare.png");
    let mut args = SCENES.to_vec();
    args.extend(["--min-psnr", "200", "-o", png.to_str().unwrap()]);
    let (answer, err) = compare(&args, 7);
    // The report is there although it failed, and the message names the figure.
    assert!(err.contains("picture PSNR") && err.contains("2.0000e2"), "{err}");
    assert_eq!(answer["verdict"], "fail");
    assert!(answer["adapter"].is_string());
    let layers = answer["layers"].as_array().unwrap();
    assert!(layers.len() > 50);
    for name in ["conv_in", "mid_block", "up_blocks.1.attentions.0", "eps"] {
        let layer = layers.iter().find(|l| l["name"] == name).unwrap_or_else(|| panic!("{name}"));
        // Int4 weights leave some 20 dB; 5 and 60 are far from what anything sensible gives. conv_in
        // stays fp16 and reads the same latents: only rounding differs.
        let (low, high) = if name == "conv_in" { (90.0, f64::INFINITY) } else { (5.0, 60.0) };
        let db = layer["sqnr_db"].as_f64().unwrap_or(f64::INFINITY);
        assert!(db >= low && db <= high, "{name}: {db}");
    }
    let steps = answer["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 2);
    assert!(number(&steps[0]["sigma"]) > number(&steps[1]["sigma"]));
    for step in steps {
        let of = |name: &str| number(&step[name]);
        let (quantization, kernel) = (of("quantization_rel_l2"), of("kernel_rel_l2"));
        // A thousandth: kernel error must vanish beside quantization error; it is some 1e-5 of it.
        assert!(kernel < 1e-3 * quantization && quantization > 1e-3, "{kernel} {quantization}");
        // Both kernels see the same quantized weights.
        assert!((of("eps_rel_l2_teacher_forced") / quantization - 1.0).abs() < 1e-2);
        // The shipped weights are stored as fp16, so nothing is lost by taking them as fp16.
        assert!(of("floor_rel_l2") < 1e-5);
        assert!(of("latent_rel_l2") > 0.0);
    }
    // The first step starts from the same noise: free-running and teacher-forced are one.
    let (free, forced) =
        (&steps[0]["eps_rel_l2_free_running"], &steps[0]["eps_rel_l2_teacher_forced"]);
    assert_eq!(free, forced);
    assert!(number(&answer["image"]["psnr_db"]) > 15.0 && number(&answer["image"]["ssim"]) < 1.0);
    let picture = image::open(&png).unwrap();
    assert_eq!((picture.width(), picture.height()), (3 * 64, 64));
}

#[test]
fn fp16_against_itself_differs_by_rounding_only() {
    if !gpu() {
        return;
    }
    let mut args = SCENES.to_vec();
    args.extend(["--weights", "fp16", "--cfg-scale", "1", "--no-floor"]);
    let (answer, _) = compare(&args, 0);
    assert_eq!(answer["verdict"], "pass");
    for step in answer["steps"].as_array().unwrap() {
        // The same weights under the same kernels: the same bits.
        assert_eq!(number(&step["quantization_rel_l2"]), 0.0);
        // 1e-5: sums in another order; see Limits::of.
        assert!(number(&step["kernel_rel_l2"]) < 1e-5, "{step}");
        assert!(step.get("floor_rel_l2").is_none());
    }
    // null: not one pixel differs. 45 dB is the tolerance for float weights.
    assert!(answer["image"]["psnr_db"].as_f64().is_none_or(|db| db > 45.0));
}

#[test]
fn a_conversation_in_int4() {
    if !gpu() {
        return;
    }
    let (answer, _) = compare(&CHAT, 0);
    let llm = &answer["llm"];
    let of = |name: &str| number(&llm[name]);
    assert!(of("tokens") >= 2.0 && of("tokens") <= 12.0);
    // A thousandth: as for pictures.
    assert!(of("kernel_rel_l2") < 1e-3 * of("quantization_rel_l2"), "{llm}");
    assert!(of("quantization_rel_l2") > 1e-3);
    // 1e-5: the rarest tokens are left out of the sum, so that it can be slightly negative.
    assert!(of("kl_mean") >= -1e-5 && of("kl_mean") <= of("kl_max"));
    assert!(of("kl_p99") <= of("kl_max"));
    assert!((0.0..=1.0).contains(&of("same_top")) && of("ppl_ratio") > 0.5);
    let passage = &answer["passages"][0];
    assert!(passage["text"].as_str().unwrap().contains("12"), "{passage}");
    assert!(answer["layers"].as_array().unwrap().iter().any(|l| l["name"] == "model.layers.0"));

    let mut args = CHAT.to_vec();
    args.extend(["--no-floor", "--max-kl=-1"]);
    let (answer, err) = compare(&args, 7);
    assert!(answer["verdict"] == "fail" && err.contains("mean KL divergence"), "{err}");
}

#[test]
fn a_text_is_scored_in_windows() {
    if !gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    std::fs::write(&file, "Tom has a red ball and Mia has a blue hat. They play. ".repeat(3))
        .unwrap();
    let file = file.to_str().unwrap();
    let chat = ["-m", "models/demo-chat", "--no-floor", "--weights", "fp16", "--activations=f32"];
    let mut args = chat.to_vec();
    args.extend(["-f", file]);
    let (answer, _) = compare(&args, 0);
    let llm = &answer["llm"];
    assert_eq!(number(&llm["quantization_rel_l2"]), 0.0);
    // Only the order of sums differs: 1e-5 as in Limits::of, and the same token everywhere.
    assert!(number(&llm["kernel_rel_l2"]) < 1e-5 && number(&llm["same_top"]) == 1.0, "{llm}");
    assert!(answer["passages"][0]["first_divergence"].is_null());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |args: &[&str], word: &str| {
        let all: Vec<&str> = ["compare"].iter().chain(args).copied().collect();
        let (code, out, err) = inknib(&all);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.contains(word) && err.trim_end().lines().count() == 1, "{args:?}: {err}");
    };
    refused(&["-m", "models/demo-chat", "--steps", "3"], "--steps");
    refused(&["-m", "models/demo-scenes", "--max-tokens", "3"], "--max-tokens");
    refused(&["--steps", "0"], "--steps 0");
    refused(&["-p", "a", "-p", "b"], "one picture");
    refused(&["--layers", "few"], "few");
    refused(&["-o", "no/such/folder/x.png"], "no/such/folder");
}
