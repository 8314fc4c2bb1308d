//! Whole runs of the shipped picture model against diffusers' pipelines (tools/golden_pipelines.py): the
//! final latents of samplers, image to image and inpainting, from the seed alone.

#[path = "common/device.rs"]
mod device;
#[path = "common/latents.rs"]
mod latents;

use std::path::{Path, PathBuf};

use device::gpu;
use inknib::diffusion::image::{Image, read_png};
use inknib::diffusion::image_input::Mask;
use inknib::diffusion::measure;
use inknib::diffusion::memory::MemoryPlan;
use inknib::diffusion::prompt::PromptSyntax;
use inknib::diffusion::sampler::Sampler;
use inknib::diffusion::schedule::SigmaSpacing;
use inknib::diffusion::text_to_image::{LoadOptions, Passes, Request, Start, TextToImage};
use inknib::gpu::Gpu;
use inknib::quant::metrics;
use inknib::weights::ImageModel;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn model() -> PathBuf {
    root().join("models/demo-scenes")
}

fn load(gpu: &Gpu, options: LoadOptions) -> TextToImage {
    TextToImage::load(gpu, &model(), options, &|_| ()).unwrap()
}

fn fp32() -> LoadOptions {
    LoadOptions { weights: "fp32".into(), ..LoadOptions::default() }
}

fn request(sampler: &str, steps: usize) -> Request {
    let (sampler, spacing) = Sampler::parse_with_spacing(sampler).unwrap();
    Request {
        prompt: "a red boat on a calm sea at sunset, snowy mountains behind".into(),
        negative: "a green tree".into(),
        syntax: PromptSyntax::Plain,
        steps,
        seed: 7,
        sampler: Some(sampler),
        spacing,
        ..Request::default()
    }
}

fn picture() -> Image {
    read_png(root().join("tests/golden/demo_scenes.png")).unwrap().0
}

/// White on the right half.
fn mask(picture: &Image) -> Mask {
    let (w, h) = (picture.width, picture.height);
    let row = || (0..w).flat_map(|x| [if x >= w / 2 { 255 } else { 0 }; 3]);
    Mask::from_image(&Image::new(w, h, (0..h).flat_map(|_| row()).collect()).unwrap())
}

fn start(strength: f64, masked: bool) -> Option<Start> {
    let image = picture();
    let mask = masked.then(|| mask(&image));
    Some(Start { image, strength, mask })
}

fn check(net: &TextToImage, name: &str, request: &Request) {
    latents::check(net, &root().join("tests/golden/pipelines.safetensors"), name, request);
}

#[test]
fn samplers_end_where_diffusers_ends() {
    let Some(gpu) = gpu() else { return };
    let net = load(gpu, fp32());
    check(&net, "ddim", &request("ddim", 4));
    check(&net, "dpmpp_2m_karras", &request("dpm++2m karras", 5));
    check(&net, "euler_a", &request("euler_a", 4));
    check(&net, "lcm", &Request { guidance: 1.0, ..request("lcm", 3) });
    check(&net, "heun", &request("heun", 3));
    check(&net, "unipc", &request("unipc", 5));
    check(&net, "plms", &request("plms", 5));
}

/// A tiny model in SDXL's form (tools/golden_sdxl.py): two text encoders, pooled text and sizes beside the
/// timestep, nothing at all in place of an empty negative prompt.
#[test]
fn sdxl_ends_where_diffusers_ends() {
    let Some(gpu) = gpu() else { return };
    let folder = root().join("tests/golden/sdxl_tiny");
    let options = |passes| {
        let model = ImageModel::open(&folder).unwrap();
        let plan = measure::plan(gpu, None, &model, &fp32(), &Request::default()).unwrap();
        LoadOptions { memory: Some(MemoryPlan { passes, ..plan }), ..fp32() }
    };
    for passes in [Passes::Joined, Passes::Apart] {
        let net = TextToImage::load(gpu, &folder, options(passes), &|_| ()).unwrap();
        let request = Request {
            prompt: "a red boat on a calm sea".into(),
            negative: String::new(),
            guidance: 5.0,
            width: Some(48),
            height: Some(32),
            sampler: None,
            ..request("euler", 4)
        };
        let negative = Request { negative: "a green tree".into(), ..request.clone() };
        let unguided = Request { guidance: 1.0, ..request.clone() };
        let batch = Request { batch: 2, ..request.clone() };
        for (name, request) in [
            ("empty_negative", request),
            ("negative", negative),
            ("unguided", unguided),
            ("batch", batch),
        ] {
            println!("{passes:?}");
            latents::check(&net, &folder.join("golden.safetensors"), name, &request);
        }
    }
}

#[test]
fn what_a_request_changes_is_what_diffusers_changes() {
    let Some(gpu) = gpu() else { return };
    let net = load(gpu, fp32());
    let rescaled = Request { guidance: 7.5, guidance_rescale: 0.7, ..request("ddim", 3) };
    check(&net, "rescaled", &rescaled);
    check(&net, "clip_skip", &Request { clip_skip: 1, ..request("ddim", 3) });
    check(&net, "batch", &Request { batch: 2, ..request("euler_a", 2) });
}

#[test]
fn pictures_and_masks_go_in_as_in_diffusers() {
    let Some(gpu) = gpu() else { return };
    let net = load(gpu, fp32());
    let from = |sampler: &str| Request { start: start(0.6, false), ..request(sampler, 5) };
    check(&net, "image_ddim", &from("ddim"));
    check(&net, "image_euler_a", &from("euler_a"));
    check(&net, "image_dpmpp_2m", &from("dpm++2m"));
    check(&net, "mask_ddim", &Request { start: start(1.0, true), ..request("ddim", 3) });
    check(&net, "mask_euler_a", &Request { start: start(0.7, true), ..request("euler_a", 5) });
}

/// What lies outside the mask is the picture's own latents at the end, up to the noise of the posterior,
/// which is drawn anew for each purpose; inside something else is painted.
#[test]
fn outside_the_mask_nothing_is_painted() {
    let Some(gpu) = gpu() else { return };
    let net = load(gpu, LoadOptions::default());
    let paint = |seed: u64| {
        let request = Request { start: start(1.0, true), seed, ..request("ddim", 2) };
        net.generate(&request, &mut |_| Ok(())).unwrap().images.remove(0)
    };
    let (a, b) = (paint(1), paint(2));
    let half = |image: &Image, right: bool| -> Vec<f32> {
        let (w, all) = (image.width, image.to_f32());
        let keep =
            |i: usize| ((i / 3 % w) >= w / 2 + 8) == right && ((i / 3 % w) < w / 2 - 8) != right;
        all.iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, v)| *v).collect()
    };
    let (outside, inside) = (
        metrics::psnr(&half(&a, false), &half(&b, false)),
        metrics::psnr(&half(&a, true), &half(&b, true)),
    );
    assert!(outside > inside + 10.0, "outside {outside:.1} dB, inside {inside:.1} dB");
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let Some(gpu) = gpu() else { return };
    let net = load(gpu, LoadOptions::default());
    let refused = |request: Request| {
        let error = net.prepare(&request).map(drop).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    };
    let e = refused(Request { width: Some(100), ..request("ddim", 4) });
    assert!(e.contains("multiples of"), "{e}");
    let e = refused(Request { width: Some(64), start: start(0.5, false), ..request("ddim", 4) });
    assert!(e.contains("128x128") && e.contains("resize"), "{e}");
    let e = refused(Request { start: start(0.1, false), ..request("ddim", 4) });
    assert!(e.contains("leaves none"), "{e}");
    let e = refused(Request { guidance_rescale: 1.5, ..request("ddim", 4) });
    assert!(e.contains("0 to 1"), "{e}");
    let spacing = Some(SigmaSpacing::Karras);
    let e = refused(Request { spacing, ..request("ddim", 4) });
    assert!(e.contains("karras") || e.contains("Karras"), "{e}");
    assert!(Path::new(&model()).is_dir());
}
