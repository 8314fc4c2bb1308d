//! A text-to-image model with several weights on many prompts: noise of ε on the latents of the fp16 runs, and whole pictures,
//! which are kept so that others can mark them:
//! `cargo run --release --example evaluate -- models/demo-scenes prompts.txt 2 25 out int4 examples/recipes/q4_0.toml
//! int8-channel scenes-4.6` (model, prompts, seeds of each, steps, folder, then weights: what --weights takes, a quantized
//! folder, or int8-channel: 8 bits with one scale for each row). Weights that have a result in the folder are left out.

use std::path::Path;
use std::rc::Rc;

use inknib::diffusion::image::Image;
use inknib::diffusion::sampler::Sampler;
use inknib::diffusion::text_to_image::{LoadOptions, Request, TextToImage};
use inknib::gpu::{Gpu, GpuOptions};
use inknib::probe::compare::Estimate;
use inknib::probe::study::{Change, Imitation, Span, imitated};
use inknib::quant::Recipe;
use inknib::quant::metrics::{nmse, psnr, ssim};
use inknib::weights::{ImageModel, Part};

/// ε is compared at every so manieth step.
const EVERY: usize = 5;

/// Latents and ε at the steps that are compared, and the picture.
struct Run {
    at: Vec<(usize, Vec<f32>, Vec<f32>)>,
    image: Image,
}

fn main() -> inknib::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompts, seeds, steps, out, variants @ ..] = &args[..] else {
        println!("MODEL PROMPTS.txt SEEDS STEPS OUT WEIGHTS...");
        return Ok(());
    };
    let (seeds, steps) = (seeds.parse().unwrap_or(2), steps.parse().unwrap_or(25));
    let text = std::fs::read_to_string(prompts).map_err(|e| inknib::Error::io(prompts, e))?;
    let requests: Vec<Request> = text
        .lines()
        .flat_map(|prompt| (0..seeds).map(move |seed| (prompt, seed)))
        .enumerate()
        .map(|(i, (prompt, _))| Request {
            prompt: prompt.into(),
            seed: 7000 + i as u64,
            steps,
            guidance: 4.0,
            sampler: Some(Sampler::Ddim { eta: 0.0 }),
            ..Request::default()
        })
        .collect();
    let (gpu, out) = (Gpu::open(&GpuOptions::default())?, Path::new(out));
    let net = load(&gpu, model, "fp16")?;
    let base: Vec<Run> = requests.iter().map(|r| record(&net, r)).collect::<inknib::Result<_>>()?;
    save(out, "fp16", base.iter().map(|run| &run.image))?;
    drop(net);
    println!("{:24} {:>8} {:>14} {:>14} {:>8}", "weights", "ε, dB", "PSNR, dB", "SSIM", "bits");
    for variant in variants {
        let name = name(variant);
        if out.join(format!("{name}.txt")).exists() {
            continue;
        }
        let line = measure(&gpu, (model, variant), &requests, &base, out)?;
        println!("{line}");
        let file = out.join(format!("{name}.txt"));
        std::fs::write(&file, line + "\n").map_err(|e| inknib::Error::io(&file, e))?;
    }
    Ok(())
}

fn load(gpu: &Gpu, model: &str, weights: &str) -> inknib::Result<TextToImage> {
    let options = LoadOptions { weights: weights.into(), ..LoadOptions::default() };
    TextToImage::load(gpu, Path::new(model), options, &|_| ())
}

/// The model with the weights of a variant, and the bits per weight of its UNet.
fn variant(gpu: &Gpu, model: &str, weights: &str) -> inknib::Result<(TextToImage, f64)> {
    if Path::new(weights).is_dir() {
        let mut net = load(gpu, weights, "auto")?;
        let report = net.set_unet(Recipe::from_argument("auto", "unet")?, &Rc::default())?;
        return Ok((net, report.bits_per_weight()));
    }
    let mut net = load(gpu, model, "fp16")?;
    let store = ImageModel::open(Path::new(model))?.store(Part::Unet)?;
    if weights == "int8-channel" {
        let format = Imitation::plain(8, Span::Channel);
        let int4 = Recipe::builtin("int4", "unet")?;
        let (store, bits) = imitated(&store, &int4, &Change::Imitation(&format, None))?;
        net.set_unet_from(Rc::new(store), Recipe::builtin("fp32", "unet")?)?;
        return Ok((net, bits));
    }
    let report = net.set_unet(Recipe::from_argument(weights, "unet")?, &Rc::default())?;
    Ok((net, report.bits_per_weight()))
}

fn record(net: &TextToImage, request: &Request) -> inknib::Result<Run> {
    let mut run = net.prepare(request)?;
    let mut at = Vec::new();
    for i in 0..run.steps() {
        let before = if i % EVERY == EVERY / 2 { Some(run.latents()?) } else { None };
        run.step(i)?;
        if let Some(latents) = before {
            at.push((i, latents, run.eps()?));
        }
    }
    let decoded = net.decode(run.latent(), run.shape())?;
    let image = decoded.images.into_iter().next();
    let image = image.ok_or_else(|| inknib::Error::Runtime("no picture".into()))?;
    Ok(Run { at, image })
}

fn measure(
    gpu: &Gpu,
    (model, weights): (&str, &str),
    requests: &[Request],
    base: &[Run],
    out: &Path,
) -> inknib::Result<String> {
    let (net, bits) = variant(gpu, model, weights)?;
    let (mut noise, mut count, mut images) = (0.0, 0.0, Vec::new());
    let (mut psnrs, mut ssims) = (Vec::new(), Vec::new());
    for (request, base) in requests.iter().zip(base) {
        let mut run = net.prepare(request)?;
        for (step, latents, eps) in &base.at {
            run.set_latents(latents)?;
            run.step(*step)?;
            noise += nmse(&run.eps()?, eps);
            count += 1.0;
        }
        let image = record(&net, request)?.image;
        let (a, b) = (image.to_f32(), base.image.to_f32());
        psnrs.push(psnr(&a, &b));
        ssims.push(ssim(&a, &b, image.width, image.height, 3)?);
        images.push(image);
    }
    let name = name(weights);
    save(out, &name, images.iter())?;
    let of = |values: Vec<f64>, digits: usize| {
        let estimate = Estimate::of(values.into_iter());
        format!("{:.digits$} ± {:.digits$}", estimate.mean, estimate.standard_error)
    };
    let db = -10.0 * (noise / f64::max(count, 1.0)).log10();
    Ok(format!("{name:24} {db:8.2} {:>14} {:>14} {bits:8.2}", of(psnrs, 2), of(ssims, 4)))
}

/// What a variant is called: a folder's whole name, which may have dots in it; a file's without `.toml`.
fn name(weights: &str) -> String {
    let path = Path::new(weights);
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.unwrap_or_default().display().to_string()
}

fn save<'a>(out: &Path, name: &str, images: impl Iterator<Item = &'a Image>) -> inknib::Result<()> {
    let folder = out.join(name);
    std::fs::create_dir_all(&folder).map_err(|e| inknib::Error::io(&folder, e))?;
    for (i, image) in images.enumerate() {
        image.write_png(folder.join(format!("{i:03}.png")), &[])?;
    }
    Ok(())
}
