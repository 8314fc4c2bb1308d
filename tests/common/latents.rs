//! Latents of a run against those that diffusers' pipelines end with.

use std::path::Path;

use inknib::diffusion::text_to_image::{Request, TextToImage};
use inknib::quant::metrics;
use inknib::weights::read_tensors;

/// `[n, h, w, c]` as torch has it.
fn nchw(values: &[f32], [n, h, w, c]: [usize; 4]) -> Vec<f32> {
    let at = |b: usize, k: usize, p: usize| values[(b * h * w + p) * c + k];
    let all = (0..n).flat_map(|b| (0..c).flat_map(move |k| (0..h * w).map(move |p| (b, k, p))));
    all.map(|(b, k, p)| at(b, k, p)).collect()
}

/// Paints and holds the last latents against the tensor `name` `[n, c, h, w]` of a golden file.
pub fn check(net: &TextToImage, file: &Path, name: &str, request: &Request) {
    let golden = read_tensors(file).unwrap();
    let golden = &golden.iter().find(|(n, _)| n == name).unwrap().1;
    let picture = net.generate(request, &mut |_| Ok(())).unwrap();
    let &[n, c, h, w] = golden.shape.as_slice() else { panic!("{name}: {:?}", golden.shape) };
    let ours = nchw(&picture.latents, [n, h, w, c]);
    let error = metrics::rel_l2(&ours, &golden.to_f32());
    println!("{name}: final latents differ by {error:.2e}");
    // A guided evaluation of the UNet errs by about 4e-6 in f32; some steps add that up to about 1e-5. What
    // breaks a rule (another timestep, another draw of noise) changes a tenth and more.
    assert!(error <= 1e-3, "{name}: final latents differ by {error:.2e}");
}
