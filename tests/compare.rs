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
    let tokens = |list: &str| {
        answer[list].as_array().unwrap().iter().map(|part| number(&part["tokens"])).sum::<f64>()
    };
    assert_eq!((tokens("by_position"), tokens("by_margin")), (of("tokens"), of("tokens")));
    for attention in answer["attention"].as_array().unwrap() {
        let kl = number(&attention["kl_mean"]);
        assert!(kl > 0.0 && kl < 0.5 && number(&attention["entropy"]) < 64f64.ln(), "{attention}");
    }
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
fn pairs_of_prompts_and_seeds() {
    if !gpu() {
        return;
    }
    let mut args = SCENES.to_vec();
    args.extend(["-p", "a red boat on a calm sea", "-p", "a house in a desert", "--seeds", "2"]);
    args.extend(["--inject", "--baseline-kernels", "fast", "--no-floor"]);
    let folder = tempfile::tempdir().unwrap();
    let [page, report, other] =
        ["page.html", "a.json", "b.json"].map(|name| folder.path().join(name));
    args.extend(["--html", page.to_str().unwrap()]);
    let (answer, _) = compare(&args, 0);

    let html = std::fs::read_to_string(&page).unwrap();
    // Four pairs with two steps and the finished pictures, three columns each.
    assert_eq!(html.matches("<img ").count(), 4 * 3 * 3);
    assert!(html.matches("<svg ").count() >= 8 && html.contains("Which steps matter"));
    // Nothing is fetched, and nothing that is no number is drawn. The letters of a picture may say anything.
    let outside = |(i, part): (usize, &'_ str)| match i {
        0 => part.to_string(),
        _ => part.split_once('"').map_or(String::new(), |(_, rest)| rest.to_string()),
    };
    let text: String = html.split("base64,").enumerate().map(outside).collect();
    assert!(!text.contains("http") && !text.contains("NaN"), "an address or NaN in the page");

    against_another(&answer, [&report, &other]);
    of_pairs_and_steps(&answer);
    of_injection(&answer["injection"]);
    assert!(!answer["attention"].as_array().unwrap().is_empty());

    // Samplers that draw noise on the way would draw other noise in every run.
    let mut args = SCENES.to_vec();
    args.extend(["--inject", "--sampling-method", "euler_a", "--baseline-kernels", "fast"]);
    let all: Vec<&str> = ["compare"].iter().chain(&args).copied().collect();
    let (code, _, err) = inknib(&all);
    assert!(code == 2 && err.contains("--inject needs a sampler"), "{err}");
}

/// A report against one of another adapter with twice the error.
fn against_another(answer: &Value, [report, other]: [&std::path::Path; 2]) {
    std::fs::write(report, answer.to_string()).unwrap();
    let mut changed = answer.clone();
    changed["injection"]["all"] = (2.0 * number(&answer["injection"]["all"])).into();
    changed["adapter"] = "another".into();
    std::fs::write(other, changed.to_string()).unwrap();
    let (two, _) = compare(&[report.to_str().unwrap(), other.to_str().unwrap()], 0);
    assert_eq!(two["differences"][0]["name"], "adapter");
    let figures = two["figures"].as_array().unwrap();
    assert!(figures.len() > 50);
    for figure in figures.iter().filter(|f| !f["ratio"].is_null()) {
        let expected = if figure["name"] == "injection.all" { 2.0 } else { 1.0 };
        assert_eq!(number(&figure["ratio"]), expected, "{figure}");
    }
}

fn of_pairs_and_steps(answer: &Value) {
    let pairs = answer["pairs"].as_array().unwrap();
    let of = |name: &str| pairs.iter().map(|p| number(&p[name])).collect::<Vec<f64>>();
    assert_eq!(of("seed"), [7.0, 8.0, 7.0, 8.0]);
    let mean = of("psnr_db").iter().sum::<f64>() / 4.0;
    // 1e-9: a mean of four numbers.
    assert!((number(&answer["image"]["psnr_db"]) - mean).abs() < 1e-9);
    let estimate = &answer["estimates"]["eps_rel_l2"];
    assert!(number(&estimate["standard_error"]) > 0.0 && number(&estimate["standard_error"]) < 0.1);
    for step in answer["steps"].as_array().unwrap() {
        // The kernels are the same, so there is nothing to tell apart.
        assert!(step.get("kernel_rel_l2").is_none());
        assert!(
            number(&step["rho"]).abs() <= 1.0 && number(&step["error_correlation"]).abs() <= 1.0
        );
        // The bands are parts of the whole: an error in all of them lies between the least and the most.
        let bands: Vec<f64> = step["bands"].as_array().unwrap().iter().map(number).collect();
        let whole = number(&step["eps_rel_l2_teacher_forced"]);
        assert!(bands.iter().any(|b| *b <= whole) && bands.iter().any(|b| *b >= whole), "{step}");
    }
}

fn of_injection(injection: &Value) {
    let gains: Vec<f64> =
        injection["steps"].as_array().unwrap().iter().map(|s| number(&s["gain"])).collect();
    let sum: f64 = gains.iter().sum();
    // 1e-9: the same sum, in f64.
    assert!((number(&injection["sum_of_gains"]) - sum).abs() < 1e-9 * sum);
    // A norm of a sum is at most the sum of norms; 1e-6: the sum of errors is in f32.
    assert!(number(&injection["norm_of_sum"]) <= sum * (1.0 + 1e-6));
    // The last step's error is only added, and the two steps make all of it but what the first changed in
    // the second: within a third here, where a quantized step moves the latents by a few hundredths.
    let all = number(&injection["all"]);
    assert!((number(&injection["norm_of_sum"]) / all - 1.0).abs() < 0.33, "{injection}");
}

#[test]
fn a_sweep_goes_on_after_an_interruption() {
    if !gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sweep.json");
    let path = file.to_str().unwrap();
    let args = ["-m", "models/demo-chat", "-p", "What is 7 plus 5?", "--max-tokens", "3"];
    let args: Vec<&str> = args.iter().chain(&["--sweep", path]).copied().collect();
    let (whole, _) = compare(&args, 0);
    assert_eq!(whole["complete"], true);
    let layers = whole["layers"].as_array().unwrap();
    let find = |name: &str| layers.iter().find(|l| l["layer"] == name).unwrap();
    let head = find("model.layers.0.mlp.down_proj.weight");
    // 4.25 bits against 16; 21.8 dB is what a normal distribution has, trained weights have some more or less.
    let ratio = number(&head["bytes"]) / number(&head["bytes_fp16"]);
    assert!((ratio - 4.25 / 16.0).abs() < 0.01, "{head}");
    assert!((18.0..26.0).contains(&number(&head["weight_sqnr_db"])), "{head}");
    for layer in layers {
        // One layer of many in four bits leaves a trace, and not a ruin.
        let noise = number(&layer["noise"]);
        assert!(noise > 0.0 && noise < 0.3 && number(&layer["kl_mean"]) > -1e-5, "{layer}");
    }

    // Half of the file, as after Ctrl-C: the rest is measured again, to the same bits.
    let mut half = whole.clone();
    half["complete"] = false.into();
    half["layers"].as_array_mut().unwrap().truncate(layers.len() / 2);
    std::fs::write(&file, half.to_string()).unwrap();
    let (again, _) = compare(&args, 0);
    assert_eq!(again, whole);
    let written: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(written, whole);

    // Another question is another sweep.
    let mut other = args.clone();
    other[3] = "What is the opposite of hot?";
    let all: Vec<&str> = ["compare"].iter().chain(&other).copied().collect();
    let (code, _, err) = inknib(&all);
    assert!(code == 2 && err.contains("another `tokens`"), "{err}");
}

#[test]
fn a_sweep_over_a_unet() {
    if !gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sweep.json");
    let args =
        ["-m", "tests/golden/sdxl_tiny", "-p", "a fox", "--steps", "2", "--sweep-steps", "1"];
    let more = ["--sweep-formats", "int4-g32,int8-g32", "--sweep", file.to_str().unwrap()];
    let args: Vec<&str> = args.iter().chain(&more).copied().collect();
    let (sweep, _) = compare(&args, 0);
    let layers = sweep["layers"].as_array().unwrap();
    let noise = |name: &str, format: &str| {
        let found = layers.iter().find(|l| l["layer"] == name && l["format"] == format);
        number(&found.unwrap_or_else(|| panic!("{name} {format}"))["noise"])
    };
    // What depends on the timestep or the prompt alone is swept as well.
    for name in [
        "conv_in.weight",
        "mid_block.resnets.0.conv1.weight",
        "mid_block.resnets.0.time_emb_proj.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    ] {
        let (int4, int8) = (noise(name, "int4-g32-cubic"), noise(name, "int8-g32"));
        // Four bits more are some 22 dB less noise; a factor of ten is far from chance.
        assert!(int8 > 0.0 && int4 > 10.0 * int8, "{name}: {int4} {int8}");
    }
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
    refused(&["--seeds", "0"], "--seeds 0");
    refused(&["a.json"], "two reports");
    refused(&["tests/compare.rs", "a.json"], "tests/compare.rs");
    refused(&["-m", "models/demo-chat", "--inject"], "--inject");
    refused(&["--sweep", "s.json", "--weights", "some.toml"], "--sweep-formats");
    refused(&["--layers", "few"], "few");
    refused(&["-o", "no/such/folder/x.png"], "no/such/folder");
}
