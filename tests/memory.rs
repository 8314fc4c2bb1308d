//! The memory plan holds: what runs really take on the GPU, by its ledger, at every stage of saving; and what
//! pictures share is computed once.

#[path = "common/device.rs"]
mod device;

use std::path::{Path, PathBuf};

use device::{gpu, gpu_with_default_limits};
use inknib::diffusion::autoencoder::Autoencoder;
use inknib::diffusion::image::{Image, read_png};
use inknib::diffusion::image_input::Mask;
use inknib::diffusion::measure;
use inknib::diffusion::memory::MemoryPlan;
use inknib::diffusion::preview::Previewer;
use inknib::diffusion::prompt::PromptSyntax;
use inknib::diffusion::text_to_image::{
    Control, LoadOptions, Passes, Picture, Previews, Request, Start, TextToImage,
};
use inknib::gpu::{Gpu, GpuOptions};
use inknib::graph::PlanOptions;
use inknib::nn::Loader;
use inknib::quant::{Recipe, metrics};
use inknib::weights::{ImageModel, WeightStore, read_tensors};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn model() -> PathBuf {
    root().join("models/demo-scenes")
}

fn fp16() -> LoadOptions {
    LoadOptions { weights: "fp16".into(), ..LoadOptions::default() }
}

fn request() -> Request {
    Request {
        prompt: "a red boat on a calm sea at sunset, snowy mountains behind".into(),
        syntax: PromptSyntax::Plain,
        steps: 2,
        seed: 7,
        width: Some(160),
        height: Some(64),
        ..Request::default()
    }
}

/// So large that a tile saves memory, and two passes save what a tile does not.
fn large() -> Request {
    Request { width: Some(192), height: Some(160), ..request() }
}

fn picture(request: &Request) -> Image {
    let image = read_png(root().join("tests/golden/demo_scenes.png")).unwrap().0;
    image.resized(request.width.unwrap(), request.height.unwrap()).unwrap()
}

/// White on the right half.
fn mask(picture: &Image) -> Mask {
    let (w, h) = (picture.width, picture.height);
    let row = || (0..w).flat_map(|x| [if x >= w / 2 { 255 } else { 0 }; 3]);
    Mask::from_image(&Image::new(w, h, (0..h).flat_map(|_| row()).collect()).unwrap())
}

/// A ControlNet for the shipped model, as training begins one: the UNet's own way down, and new layers (here
/// not zero, so that they do something).
fn control_net(folder: &Path) {
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(model().join("unet/config.json")).unwrap())
            .unwrap();
    config["_class_name"] = "ControlNetModel".into();
    config["conditioning_embedding_out_channels"] = serde_json::json!([16, 32, 32, 32]);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let unet = read_tensors(model().join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let shared = ["conv_in.", "time_embedding.", "down_blocks.", "mid_block."];
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = unet
        .iter()
        .filter(|(name, _)| shared.iter().any(|start| name.starts_with(start)))
        .map(|(name, tensor)| (name.clone(), tensor.shape.clone(), tensor.to_f32()))
        .collect();
    let mut add = |name: String, shape: &[usize]| {
        let n: usize = shape.iter().product();
        let size = 0.3 / (n / shape[0]) as f32;
        let values = (0..n).map(|i| (i as f32 * 0.7).sin() * size).collect();
        tensors.push((format!("{name}.weight"), shape.to_vec(), values));
        tensors.push((format!("{name}.bias"), shape[..1].to_vec(), vec![0.0; shape[0]]));
    };
    let at = |name: &str| format!("controlnet_cond_embedding.{name}");
    add(at("conv_in"), &[16, 3, 3, 3]);
    let pairs = [(16, 16), (16, 32), (32, 32), (32, 32), (32, 32), (32, 32)];
    for (i, (cin, cout)) in pairs.into_iter().enumerate() {
        add(at(&format!("blocks.{i}")), &[cout, cin, 3, 3]);
    }
    add(at("conv_out"), &[64, 32, 3, 3]);
    // conv_in, then two resnets and a convolution that halves for each block but the last.
    for (i, channels) in [64, 64, 64, 64, 64, 64, 64, 128, 128].into_iter().enumerate() {
        add(format!("controlnet_down_blocks.{i}"), &[channels, channels, 1, 1]);
    }
    add("controlnet_mid_block".into(), &[128, 128, 1, 1]);
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.join("diffusion_pytorch_model.safetensors"), bytes).unwrap();
}

fn open(vram_budget: Option<u64>) -> Gpu {
    let device = std::env::var("INKNIB_TEST_DEVICE").ok();
    Gpu::open(&GpuOptions { device, vram_budget, ..Default::default() }).unwrap()
}

/// Paints as `inknib generate` does, with previews where the options ask for them; also says what was taken.
fn paint(options: &LoadOptions, request: &Request, plan: MemoryPlan) -> (Picture, u64) {
    let gpu = open(plan.budget);
    let options = LoadOptions { memory: Some(plan), ..options.clone() };
    let tiny = match &options.previews {
        Some(Previews::Tiny(path)) => {
            let store = WeightStore::open(path).unwrap();
            let recipe = Recipe::from_argument("fp16", "vae").unwrap();
            Some(Autoencoder::load_tiny(&Loader::new(&gpu, &store, &recipe), path).unwrap())
        }
        _ => None,
    };
    let net = TextToImage::load(&gpu, &model(), options, &|_| ()).unwrap();
    let previewer = tiny.as_ref().map(|tiny| Previewer::tae(tiny, plan.vae_tile));
    let picture = net.generate(request, &mut |progress| {
        if let Some(previewer) = &previewer {
            previewer.picture(&gpu, &PlanOptions::default(), progress.run, progress.row)?;
        }
        Ok(())
    });
    (picture.unwrap(), gpu.ledger().peak())
}

/// Goes down the ladder, each time with the budget that the stage just fits, and holds the GPU's ledger to it.
fn the_ladder_holds(name: &str, options: &LoadOptions, request: &Request) {
    let Some(free) = gpu() else { return };
    let on_disk = ImageModel::open(model()).unwrap();
    let needs = measure::needs(free, &on_disk, options, request).unwrap();
    let plan = |budget| MemoryPlan::new(budget, needs, false);
    let mut stages = vec![plan(None).unwrap()];
    while let Some(last) = stages.last().filter(|last| last.resident.is_none()) {
        stages.push(plan(Some(last.peak - 1)).unwrap());
    }
    let least = MemoryPlan::least(needs).peak;
    stages.push(plan(Some(least)).unwrap());
    assert!(plan(Some(least - 1)).unwrap_err().to_string().contains("--vram-budget"));
    assert_eq!(stages[stages.len() - 1].resident, Some(0));
    let (whole, _) = paint(options, request, stages[0]);
    for stage in stages {
        let stage = MemoryPlan { budget: Some(stage.peak), ..stage };
        let (picture, taken) = paint(options, request, stage);
        println!("{name}: {stage}; taken {:.1} MiB", taken as f64 / f64::from(1 << 20));
        // A mebibyte of the plan is for what it does not count; on this small model nothing may hide in it.
        let counted = stage.peak - (1 << 20);
        assert!(taken <= counted, "{name}: {stage}; taken {taken} of {counted}");
        // A plan that asks for far more than is used would refuse what runs.
        assert!(taken as f64 > 0.9 * counted as f64, "{name}: {stage}; taken {taken} of {counted}");
        // Two passes add the same products in another order; the tiles of an encoder have norms of their own.
        let tiled_start = request.start.is_some() && stage.vae_tile.is_some();
        let error = metrics::rel_l2(&picture.latents, &whole.latents);
        assert!(
            error < if tiled_start { 0.5 } else { 1e-4 },
            "{stage}: latents differ by {error:.2e}"
        );
    }
}

#[test]
fn text_to_image_keeps_its_budget() {
    the_ladder_holds("text", &fp16(), &large());
}

#[test]
fn previews_find_their_memory() {
    let tiny = root().join("tests/golden/taesd");
    let options = LoadOptions { previews: Some(Previews::Tiny(tiny)), ..fp16() };
    the_ladder_holds("previews", &options, &Request { batch: 2, ..request() });
}

#[test]
fn pictures_and_masks_keep_their_budget() {
    let start = |mask| Some(Start { image: picture(&request()), strength: 1.0, mask });
    let image = Start { strength: 0.6, ..start(None).unwrap() };
    let steps = 3;
    the_ladder_holds("image", &fp16(), &Request { start: Some(image), steps, ..request() });
    let masked = start(Some(mask(&picture(&request()))));
    the_ladder_holds("mask", &fp16(), &Request { start: masked, ..request() });
}

#[test]
fn control_nets_keep_their_budget() {
    let folder = tempfile::tempdir().unwrap();
    control_net(folder.path());
    let options = LoadOptions { controls: vec![folder.path().into(); 2], ..fp16() };
    let control = |scale| Control { image: picture(&large()), scale };
    let controls = vec![control(0.7), control(0.2)];
    the_ladder_holds("control", &options, &Request { controls, ..large() });
}

/// Pictures of a batch have the prompt, the schedule and so all that depends on them in common.
#[test]
fn pictures_share_what_does_not_depend_on_the_seed() {
    if gpu().is_none() {
        return;
    }
    let gpu = &open(None);
    let load = || TextToImage::load(gpu, &model(), fp16(), &|_| ()).unwrap();
    let paint = |net: &TextToImage, request: &Request| {
        net.generate(request, &mut |_| Ok(())).unwrap().latents
    };
    let (net, first) = (load(), request());
    let second = Request { seed: 8, ..request() };
    let before = gpu.sent().submissions;
    net.prepare(&first).unwrap();
    let (computed, before) = (gpu.sent().submissions - before, gpu.sent().submissions);
    net.prepare(&second).unwrap();
    // Text encoder, tables, keys and values are plans that are submitted; a run that finds them submits nothing
    // before its first step.
    assert!(computed >= 3, "{computed}");
    assert_eq!(gpu.sent().submissions - before, 0);
    // Bit for bit what each gives alone.
    let pictures = [paint(&net, &first), paint(&net, &second)];
    assert_eq!(pictures[0], paint(&load(), &first));
    assert_eq!(pictures[1], paint(&load(), &second));
    assert_ne!(pictures[0], pictures[1]);
    // Whatever else changes is not taken from the last run.
    let others = [
        Request { prompt: "a green tree".into(), ..second.clone() },
        Request { negative: "a green tree".into(), ..second.clone() },
        Request { steps: 3, ..second.clone() },
        Request { guidance: 1.0, ..second.clone() },
        Request { clip_skip: 1, ..second.clone() },
        Request { batch: 2, ..second.clone() },
    ];
    for other in others {
        assert_eq!(paint(&net, &other), paint(&load(), &other), "{other:?}");
    }
    // Pictures at once begin with the noise of a single one, and differ from it by the order of sums alone.
    let batch = paint(&net, &Request { batch: 2, ..first });
    let error = metrics::rel_l2(&batch[..pictures[0].len()], &pictures[0]);
    assert!(error < 1e-4, "{error:.2e}");
    let apart =
        MemoryPlan::new(None, Default::default(), false).unwrap().with_passes(Passes::Apart);
    let options = LoadOptions { memory: Some(apart), ..fp16() };
    let net = TextToImage::load(gpu, &model(), options, &|_| ()).unwrap();
    let error = metrics::rel_l2(&paint(&net, &second), &pictures[1]);
    assert!(error < 1e-4, "{error:.2e}");
}

/// Sizes at which a value of both halves of guidance is larger than the bindings that every adapter has, and at which that of one
/// half is: nothing of it is painted here.
#[test]
fn what_no_binding_holds_is_done_apart_or_refused() {
    let Some(gpu) = gpu_with_default_limits() else { return };
    let on_disk = ImageModel::open(model()).unwrap();
    let options = LoadOptions { weights: "int4".into(), ..Default::default() };
    let plan = |side: usize| {
        let request = Request { width: Some(side), height: Some(side), ..Default::default() };
        measure::plan(&gpu, None, &on_disk, &options, &request)
    };
    assert_eq!(plan(512).unwrap().passes, Passes::Joined);
    // A concatenation of 192 channels: 226 MB for both halves, 113 MB for one.
    assert_eq!(plan(3072).unwrap().passes, Passes::Apart);
    let error = plan(4096).unwrap_err();
    assert!(error.exit_code() == 5 && error.to_string().contains("binds at most"), "{error}");
}
