//! Whole runs of tiny models with random weights against diffusers' pipelines (tools/golden_modes.py):
//! inpainting UNets, LCM, few steps, ControlNet, LoRA, textual inversion, SDXL's refiner, unconditional UNets.

#[path = "common/device.rs"]
mod device;
#[path = "common/latents.rs"]
mod latents;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use device::gpu;
use inknib::diffusion::embedding::Embedding;
use inknib::diffusion::image::{Image, read_png};
use inknib::diffusion::image_input::Mask;
use inknib::diffusion::measure;
use inknib::diffusion::prompt::PromptSyntax;
use inknib::diffusion::sampler::Sampler;
use inknib::diffusion::schedule::SigmaSpacing;
use inknib::diffusion::text_to_image::{Control, LoadOptions, Request, Start, TextToImage};
use inknib::gpu::Gpu;
use inknib::weights::lora::{Adapters, Lora};
use inknib::weights::{ImageFamily, ImageModel, Part};

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn fp32() -> LoadOptions {
    LoadOptions { weights: "fp32".into(), ..LoadOptions::default() }
}

/// The model of a folder, its UNet taken from a folder in it if one is named.
fn load(gpu: &Gpu, folder: &str, unet: Option<&str>, options: LoadOptions) -> TextToImage {
    let model = ImageModel::open(golden(folder)).unwrap();
    let model = match unet {
        Some(unet) => model.with_part(Part::Unet, golden(folder).join(unet)).unwrap(),
        None => model,
    };
    TextToImage::open(gpu, model, options, &|_| ()).unwrap()
}

fn check(net: &TextToImage, folder: &str, name: &str, request: &Request) {
    latents::check(net, &golden(folder).join("golden.safetensors"), name, request);
}

fn request(sampler: &str, steps: usize) -> Request {
    Request {
        prompt: "a red boat on a calm sea".into(),
        negative: "a green tree".into(),
        syntax: PromptSyntax::Plain,
        width: Some(48),
        height: Some(32),
        steps,
        seed: 7,
        sampler: Some(sampler.parse().unwrap()),
        ..Request::default()
    }
}

fn picture() -> Image {
    read_png(golden("sd_tiny/picture.png")).unwrap().0
}

fn mirrored(image: &Image) -> Image {
    let rows = image.rgb.chunks_exact(image.width * 3);
    let rgb = rows.flat_map(|row| row.chunks_exact(3).rev().flatten().copied()).collect();
    Image::new(image.width, image.height, rgb).unwrap()
}

fn start(strength: f64, masked: bool) -> Option<Start> {
    let image = picture();
    let (w, h) = (image.width, image.height);
    let row = || (0..w).flat_map(|x| [if x >= w / 2 { 255 } else { 0 }; 3]);
    let right = Image::new(w, h, (0..h).flat_map(|_| row()).collect()).unwrap();
    Some(Start { image, strength, mask: masked.then(|| Mask::from_image(&right)) })
}

#[test]
fn an_inpainting_unet_of_nine_channels() {
    let Some(gpu) = gpu() else { return };
    let net = load(gpu, "sd_tiny", Some("unet_inpaint"), fp32());
    assert!(net.model().kind().inpaint);
    let masked = |sampler: &str, steps, strength| Request {
        start: start(strength, true),
        ..request(sampler, steps)
    };
    check(&net, "sd_tiny", "inpaint", &masked("ddim", 3, 1.0));
    check(&net, "sd_tiny", "inpaint_part", &masked("euler_a", 5, 0.6));
    let refused = |request: &Request| net.prepare(request).map(drop).unwrap_err().to_string();
    let e = refused(&request("ddim", 3));
    assert!(e.contains("-i PICTURE and --mask"), "{e}");
    let e = refused(&Request { start: start(1.0, false), ..request("ddim", 3) });
    assert!(e.contains("needs --mask"), "{e}");
}

/// The scale is an input of the UNet, which is asked once.
#[test]
fn a_latent_consistency_model_with_the_scale_as_an_input() {
    let Some(gpu) = gpu() else { return };
    let net = load(gpu, "sd_tiny", Some("unet_lcm"), fp32());
    assert!(net.model().kind().lcm);
    let request = Request { guidance: 8.5, ..request("lcm", 3) };
    check(&net, "sd_tiny", "lcm", &request);
}

/// As SD-Turbo and SDXL-Turbo run: one to four steps, trailing, no guidance.
#[test]
fn few_steps_without_guidance() {
    let Some(gpu) = gpu() else { return };
    let net = load(gpu, "sd_tiny", None, fp32());
    for steps in [1, 4] {
        let spacing = Some(SigmaSpacing::Trailing);
        let request = Request { guidance: 1.0, spacing, ..request("euler_a", steps) };
        check(&net, "sd_tiny", &format!("turbo_{steps}"), &request);
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => std::fs::copy(&path, target).map(drop).unwrap(),
        }
    }
}

/// A Turbo's folder says sampler and spacing itself.
#[test]
fn few_steps_as_the_folder_has_them() {
    let Some(gpu) = gpu() else { return };
    let temp = tempfile::tempdir().unwrap();
    copy(&golden("sd_tiny"), temp.path());
    let config = temp.path().join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let turbo = text
        .replace("DDIMScheduler", "EulerAncestralDiscreteScheduler")
        .replace("\"leading\"", "\"trailing\"");
    std::fs::write(&config, &turbo).unwrap();
    let model = ImageModel::open(temp.path()).unwrap();
    assert!(model.kind().turbo, "{turbo}");
    let net = TextToImage::open(gpu, model, fp32(), &|_| ()).unwrap();
    for steps in [1, 4] {
        let request = Request { guidance: 1.0, sampler: None, ..request("euler_a", steps) };
        check(&net, "sd_tiny", &format!("turbo_{steps}"), &request);
    }
}

#[test]
fn controlnets_one_and_two() {
    let Some(gpu) = gpu() else { return };
    let with = |names: &[&str]| {
        let controls = names.iter().map(|name| golden("sd_tiny").join(name)).collect();
        load(gpu, "sd_tiny", None, LoadOptions { controls, ..fp32() })
    };
    let one = Control { image: picture(), scale: 0.8 };
    let two = Control { image: mirrored(&picture()), scale: 0.5 };
    let net = with(&["controlnet_a"]);
    let request = Request { controls: vec![one.clone()], ..request("ddim", 3) };
    check(&net, "sd_tiny", "control", &request);
    let e = net.prepare(&Request { controls: vec![], ..request.clone() }).map(drop).unwrap_err();
    assert!(e.to_string().contains("0 control pictures for 1 ControlNets"), "{e}");
    let net = with(&["controlnet_a", "controlnet_b"]);
    check(&net, "sd_tiny", "control_two", &Request { controls: vec![one, two], ..request });
}

#[test]
fn loras_by_weight() {
    let Some(gpu) = gpu() else { return };
    let with = |loras: &[(&str, f32)]| {
        let mut adapters = Adapters::default();
        for (name, weight) in loras {
            let file = golden("sd_tiny").join(format!("{name}.safetensors"));
            adapters.push(Lora::open(file).unwrap(), *weight);
        }
        load(gpu, "sd_tiny", None, LoadOptions { adapters: Some(Arc::new(adapters)), ..fp32() })
    };
    let request = request("ddim", 3);
    check(&load(gpu, "sd_tiny", None, fp32()), "sd_tiny", "plain", &request);
    check(&with(&[("style", 0.7)]), "sd_tiny", "lora", &request);
    check(&with(&[("style", 0.7), ("detail", -0.5)]), "sd_tiny", "lora_two", &request);
}

#[test]
fn a_textual_inversion_in_the_prompt() {
    let Some(gpu) = gpu() else { return };
    let embedding = Embedding::read(golden("sd_tiny/tidal.safetensors"), None).unwrap();
    assert_eq!((embedding.name.as_str(), embedding.count), ("<tidal>", 2));
    let options = LoadOptions { embeddings: vec![embedding], ..fp32() };
    let net = load(gpu, "sd_tiny", None, options);
    let request = Request { prompt: "a <tidal> boat".into(), ..request("ddim", 3) };
    check(&net, "sd_tiny", "textual_inversion", &request);
}

/// SDXL's second stage: OpenCLIP-G alone, and an aesthetic score where the first has the target size.
#[test]
fn the_refiner_works_on_a_picture() {
    let Some(gpu) = gpu() else { return };
    let net = load(gpu, "refiner_tiny", None, fp32());
    assert_eq!(net.model().kind().family, ImageFamily::SdxlRefiner);
    let request = Request { guidance: 5.0, start: start(0.6, false), ..request("euler", 5) };
    check(&net, "refiner_tiny", "negative", &request);
    let empty = Request { negative: String::new(), ..request.clone() };
    check(&net, "refiner_tiny", "empty_negative", &empty);
    check(&net, "refiner_tiny", "unguided", &Request { guidance: 1.0, ..request.clone() });
    let e = net.prepare(&Request { start: None, ..request }).map(drop).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("works on a picture"), "{e}");
}

fn unprompted(sampler: Option<&str>, steps: usize) -> Request {
    let sampler = sampler.map(|name| name.parse::<Sampler>().unwrap());
    Request { steps, seed: 7, sampler, ..Request::default() }
}

/// The latents are the pixels. diffusers clamps x0 in both runs of the first model, in neither of the second's.
#[test]
fn unconditional_models_of_three_channels_and_of_one() {
    let Some(gpu) = gpu() else { return };
    let net = load(gpu, "ddpm_tiny", None, fp32());
    assert_eq!(net.default_size(), (16, 16));
    check(&net, "ddpm_tiny", "ddpm", &unprompted(None, 6));
    check(&net, "ddpm_tiny", "ddim", &unprompted(Some("ddim"), 6));
    check(&net, "ddpm_tiny", "batch", &Request { batch: 2, ..unprompted(None, 3) });
    let gray = load(gpu, "ddim_tiny", None, fp32());
    check(&gray, "ddim_tiny", "ddim", &unprompted(None, 5));
    check(&gray, "ddim_tiny", "ddpm", &unprompted(Some("ddpm"), 5));
    let picture = gray.generate(&unprompted(None, 2), &mut |_| Ok(())).unwrap();
    let image = &picture.images[0];
    assert!(image.rgb.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]));
    let byte = |v: &f32| ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    let bytes: Vec<u8> = picture.latents.iter().map(byte).collect();
    assert_eq!(image.rgb.iter().step_by(3).copied().collect::<Vec<u8>>(), bytes);
}

/// Other sizes, pictures to start from and masks need nothing of a VAE.
#[test]
fn unconditional_models_do_what_needs_no_prompt() {
    let Some(gpu) = gpu() else { return };
    let model = ImageModel::open(golden("ddpm_tiny")).unwrap();
    let request = Request { width: Some(48), height: Some(32), ..unprompted(Some("ddim"), 4) };
    let plan = measure::plan(gpu, None, &model, &fp32(), &request).unwrap();
    assert!(plan.vae_tile.is_none() && plan.needs.decode == 0 && plan.needs.step_joined > 0);
    let net = TextToImage::open(gpu, model, LoadOptions { memory: Some(plan), ..fp32() }, &|_| ())
        .unwrap();
    let paint = |request: &Request| net.generate(request, &mut |_| Ok(())).unwrap();
    let image = &paint(&request).images[0];
    assert_eq!((image.width, image.height), (48, 32));
    // What is not masked is the picture again, to the byte.
    let start = start(1.0, true);
    let inside = paint(&Request { start: start.clone(), ..request.clone() });
    let original = start.unwrap().image;
    let left = |image: &Image| -> Vec<u8> {
        image.rgb.chunks_exact(48 * 3).flat_map(|row| row[..24 * 3].to_vec()).collect()
    };
    assert_eq!(left(&inside.images[0]), left(&original));
    assert_ne!(inside.images[0].rgb, original.rgb);
    let part = Request { start: self::start(0.5, false), ..request.clone() };
    assert_eq!(paint(&part).steps, 2);
    let refused = |request: Request| {
        let error = net.prepare(&request).map(drop).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    let e = refused(Request { prompt: "a boat".into(), ..request.clone() });
    assert!(e.contains("ddpm_tiny") && e.contains("leave out a prompt"), "{e}");
    let e = refused(Request { width: Some(47), ..request });
    assert!(e.contains("multiples of 2"), "{e}");
}
