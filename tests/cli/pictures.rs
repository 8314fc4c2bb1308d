//! `inknib generate` from outside.

use std::path::{Path, PathBuf};

use inknib::diffusion::image::read_png;
use serde_json::Value;

use crate::{change, copy_of, cut, files, gpu, inknib, refused, str};

#[test]
fn generate_refuses_bad_input_and_writes_nothing() {
    if !gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out").join("p.png");
    std::fs::create_dir(out.parent().unwrap()).unwrap();
    let generate = |flags: &[&str], code: i32, words: &[&str]| {
        let args = ["generate", "-p", "a boat", "--steps", "1", "-o", str(&out)];
        let args: Vec<&str> = match flags.contains(&"--steps") {
            true => args.iter().filter(|a| !["--steps", "1"].contains(a)).copied().collect(),
            false => args.to_vec(),
        };
        refused(&[&args[..], flags].concat(), code, words);
        assert_eq!(files(out.parent().unwrap()), [] as [PathBuf; 0], "{flags:?}");
    };
    generate(&["-W", "100"], 2, &["100", "multiples"]);
    generate(&["-H", "0"], 2, &["0", "multiples"]);
    generate(&["--steps", "0"], 2, &["--steps 0"]);
    generate(&["--steps", "-3"], 2, &["'-3'"]);
    generate(&["--cfg-scale", "nan"], 2, &["--cfg-scale"]);
    generate(&["--sampling-method", "fast"], 2, &["fast", "euler"]);
    generate(&["--scheduler", "straight"], 2, &["straight", "karras"]);
    generate(&["--weights", "int5"], 2, &["int5", "fp16"]);
    generate(&["--device", "no such GPU"], 3, &["no such GPU", "0 = "]);
    generate(&["--weights", "fp16", "--vram-budget", "1M"], 5, &["budget", "--vram-budget"]);
    generate(&["-m", "no-such-model"], 4, &["no-such-model", "INKNIB_MODELS"]);
    generate(&["-m", "models/demo-chat"], 4, &["models/demo-chat", "inknib chat"]);

    // FP16 as stored, because packing takes longer than finding the damage.
    let model = folder.path().join("model");
    let damaged = ["--weights", "fp16", "-m", str(&model)];
    copy_of("demo-scenes", &model);
    let config = model.join("unet/config.json");
    change(&config, "\"cross_attention_dim\": ", "\"cross_attention_dim\": 1");
    generate(&damaged, 4, &["unet", "shape"]);
    change(&config, "\"cross_attention_dim\": 1", "\"cross_attention_dim\": ");
    change(&model.join("model_index.json"), "StableDiffusionPipeline", "FluxPipeline");
    generate(&damaged, 4, &["model_index.json", "`FluxPipeline`"]);
    change(&model.join("model_index.json"), "FluxPipeline", "StableDiffusionPipeline");
    cut(&model.join("tokenizer/tokenizer.json"));
    generate(&damaged, 4, &["tokenizer.json"]);
    copy_of("demo-scenes", &model);
    cut(&model.join("vae/diffusion_pytorch_model.safetensors"));
    generate(&damaged, 4, &["vae", "diffusion_pytorch_model.safetensors"]);
    let gone = folder.path().join("gone").join("p.png");
    refused(&["generate", "-p", "x", "-o", str(&gone)], 2, &["gone", "existing folder"]);
}

/// A DDPM's folder: no prompt, pixels for latents, the scheduler's own sampler.
#[test]
fn an_unconditional_model_paints_without_a_prompt() {
    if !gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let model = ["generate", "--weights", "fp16", "-m", "tests/golden/ddpm_tiny", "--steps", "3"];
    let paint = |flags: &[&str]| -> Value {
        let run = inknib(&[&["--json"], &model[..], flags].concat());
        assert_eq!(run.code, 0, "{flags:?}: {}{}", run.out, run.err);
        serde_json::from_str(&run.out).unwrap()
    };
    let (first, preview) = (at("first.png"), at("preview.png"));
    let flags = ["-s", "5", "--batch-size", "2", "--preview", "proj", "--preview-path", &preview];
    let answer = paint(&[&flags[..], &["-o", &first]].concat());
    assert_eq!((&answer["sampler"], &answer["width"]), (&"ddpm".into(), &16.into()));
    assert_eq!((&answer["cfg_scale"], &answer["prompt"]), (&1.0.into(), &"".into()));
    assert_eq!(answer["images"].as_array().map(Vec::len), Some(2));
    assert_eq!(answer["memory"]["needs"]["decode"], 0);
    let (second, chunks) = read_png(at("first_2.png")).unwrap();
    assert!(chunks.iter().any(|(k, text)| k == "parameters" && text.contains("Sampler: DDPM")));
    // After the last step a preview of pixels is the picture.
    assert_eq!(read_png(&preview).unwrap().0, read_png(&first).unwrap().0);

    // The second of the batch once more, from what it says of itself alone.
    let run = inknib(&["generate", "--from", &at("first_2.png"), "-o", &at("again.png")]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(read_png(at("again.png")).unwrap().0, second);

    let picture = "tests/golden/demo_scenes.png";
    let part = ["-i", picture, "--strength", "0.7", "-W", "32", "-H", "16"];
    let answer =
        paint(&[&part[..], &["--sampling-method", "ddim", "-o", &at("part.png")]].concat());
    assert_eq!((&answer["width"], &answer["height"]), (&32.into(), &16.into()));

    let before = files(folder.path());
    let refuse = |flags: &[&str], words: &[&str]| {
        let out = at("no.png");
        let all = [&model[..], flags, &["-o", &out]].concat();
        refused(&all, 2, &[words, &["ddpm_tiny"]].concat());
    };
    for flags in [
        ["-p", "a boat"],
        ["-n", "a boat"],
        ["--cfg-scale", "3"],
        ["--lora", "x.safetensors"],
        ["--embedding", "x.safetensors"],
        ["--taesd", "x.safetensors"],
        ["--clip-skip", "2"],
    ] {
        refuse(&flags, &["an unconditional UNet paints without a prompt"]);
    }
    refuse(&["--vae-tiling"], &["--vae-tiling", "without a VAE"]);
    let run = inknib(&[&model[..], &["-W", "31", "-o", &at("no.png")]].concat());
    assert!(run.code == 2 && run.err.contains("multiples of 2"), "{}", run.err);
    assert_eq!(files(folder.path()), before);
}

/// A UNet that predicts a variance besides has no picture's channels.
#[test]
fn an_unconditional_model_with_a_learned_variance_is_refused() {
    if !gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    let from = Path::new(crate::ROOT).join("tests/golden/ddpm_tiny");
    for file in files(&from) {
        let to = model.join(file.strip_prefix(&from).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(&file, to).unwrap();
    }
    let config = model.join("unet/config.json");
    change(&config, "\"out_channels\": 3", "\"out_channels\": 6");
    let out = folder.path().join("p.png");
    let args = ["generate", "--weights", "fp16", "-m", str(&model), "-o", str(&out)];
    refused(&args, 4, &["model", "from 3 to 6 channels", "learned variance"]);
    assert!(!out.exists());
}
