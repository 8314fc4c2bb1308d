//! What weights cost a UNet: noise of ε against fp16 on the same latents, for as many number formats or quantized folders
//! as are named: `cargo run --release --example quantizers -- models/demo-scenes 4 5 int4 int4-g32-uniform scenes-int4`
//! (model, prompts, steps, then weights).

use std::path::Path;

use inknib::diffusion::text_to_image::{LoadOptions, Request, TextToImage};
use inknib::gpu::{Gpu, GpuOptions};
use inknib::probe::study::PROMPTS;

/// ε, and the latents it is of, for each step.
type Steps = Vec<(Vec<f32>, Vec<f32>)>;

fn main() -> inknib::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompts, steps, variants @ ..] = &args[..] else {
        println!("MODEL PROMPTS STEPS WEIGHTS...");
        return Ok(());
    };
    let (prompts, steps) = (prompts.parse().unwrap_or(4), steps.parse().unwrap_or(5));
    let gpu = Gpu::open(&GpuOptions::default())?;
    let requests: Vec<Request> = (0..2 * prompts)
        .map(|i| Request {
            prompt: PROMPTS[i / 2 % PROMPTS.len()].into(),
            seed: 7 + i as u64,
            steps,
            ..Request::default()
        })
        .collect();
    let load = |path: &str, weights: &str| {
        let options = LoadOptions { weights: weights.into(), ..LoadOptions::default() };
        TextToImage::load(&gpu, Path::new(path), options, &|_| ())
    };
    let net = load(model, "fp16")?;
    let base: Vec<Steps> =
        requests.iter().map(|r| trajectory(&net, r)).collect::<inknib::Result<_>>()?;
    drop(net);
    println!("{:32} {:>8} {:>8}", "weights", "dB", "first/last step");
    for variant in variants {
        let net = match Path::new(variant).is_dir() {
            true => load(variant, "auto")?,
            false => load(model, variant)?,
        };
        let mut noise = vec![[0.0f64; 2]; steps];
        for (request, base) in requests.iter().zip(&base) {
            let mut run = net.prepare(request)?;
            for (i, (latents, eps)) in base.iter().enumerate() {
                run.set_latents(latents)?;
                run.step(i)?;
                for (a, b) in run.eps()?.iter().zip(eps) {
                    let (a, b) = (f64::from(*a), f64::from(*b));
                    noise[i][0] += (a - b) * (a - b);
                    noise[i][1] += b * b;
                }
            }
        }
        let db = |[noise, signal]: [f64; 2]| -10.0 * (noise / signal).log10();
        let mean = noise.iter().map(|n| n[0] / n[1]).sum::<f64>() / steps as f64;
        let (first, last) = (db(noise[0]), db(noise[steps - 1]));
        println!("{variant:32} {:8.2} {first:8.2} {last:8.2}", -10.0 * mean.log10());
    }
    Ok(())
}

fn trajectory(net: &TextToImage, request: &Request) -> inknib::Result<Steps> {
    let mut run = net.prepare(request)?;
    let each = (0..run.steps()).map(|i| {
        let latents = run.latents()?;
        run.step(i)?;
        Ok((latents, run.eps()?))
    });
    each.collect()
}
