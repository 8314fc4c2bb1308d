//! One picture by every sampler, on one sheet: `cargo run --release --example samplers -- docs/samplers.png`.

use std::path::Path;

use inknib::diffusion::image_sheet::contact_sheet;
use inknib::diffusion::sampler::Sampler;
use inknib::diffusion::text_to_image::{LoadOptions, Request, TextToImage};
use inknib::gpu::{Gpu, GpuOptions};

fn main() -> inknib::Result<()> {
    let output = std::env::args().nth(1).unwrap_or_else(|| "samplers.png".into());
    let gpu = Gpu::open(&GpuOptions::default())?;
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-scenes");
    let net = TextToImage::load(&gpu, &model, LoadOptions::default(), &|_| ())?;
    let mut sheet = Vec::new();
    for sampler in Sampler::ALL {
        // What was distilled for few steps gets few; the model was not, so these two show what they cost.
        let few = matches!(sampler, Sampler::Lcm | Sampler::Tcd { .. });
        let request = Request {
            prompt: "a red boat on a calm sea at sunset, snowy mountains behind".into(),
            steps: if few { 4 } else { 12 },
            guidance: if few { 1.0 } else { 4.0 },
            seed: 7,
            sampler: Some(sampler),
            ..Request::default()
        };
        let picture = net.generate(&request, &mut |_| Ok(()))?;
        let label = format!("{}, {}", sampler.label(), request.steps);
        sheet.extend(picture.images.into_iter().map(|image| (image, label.clone())));
        println!("{}: {:.1} s", sampler.label(), picture.seconds.denoise);
    }
    contact_sheet(&sheet, 6)?.write_png(&output, &[])
}
