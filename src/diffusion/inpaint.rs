//! Painting inside a mask, as diffusers' inpainting pipelines do it: a UNet of nine channels reads the mask
//! and the latents of the picture without its masked part; any other UNet paints everything, and what
//! lies outside the mask is put back after each row.

use super::image::Image;
use super::image_input::Mask;
use super::run::{Inpaint, Known};
use crate::Result;

/// Encodes a picture `[height, width, 3]` in −1..1 to latents `[n, h, w, c]`.
pub(super) type EncodePicture<'a> = dyn FnMut(&[f32]) -> Result<Vec<f32>> + 'a;

/// What a run needs for a mask. `clean` and `noise` are the latents of the whole picture and the noise
/// of the run, `[n, h, w, c]` each.
pub(super) fn prepare(
    mask: &Mask,
    image: &Image,
    [n, h, w, c]: [usize; 4],
    nine: bool,
    (clean, noise): (Vec<f32>, Vec<f32>),
    encode: &mut EncodePicture<'_>,
) -> Result<Inpaint> {
    let cells = mask.latents(image.height / h.max(1))?;
    // Drawn in any case: diffusers encodes the masked picture whether its UNet reads it or not, and what
    // a sampler draws later depends on it.
    let masked = encode(&mask.masked(&image.to_vae())?)?;
    if !nine {
        let mask: Vec<f32> = cells.iter().flat_map(|cell| std::iter::repeat_n(*cell, c)).collect();
        return Ok(Inpaint::Blend(Known { clean, noise, mask: mask.repeat(n) }));
    }
    let mut extra = Vec::with_capacity(n * h * w * (1 + c));
    for item in masked.chunks_exact((h * w * c).max(1)) {
        for (cell, latent) in cells.iter().zip(item.chunks_exact(c)) {
            extra.push(*cell);
            extra.extend_from_slice(latent);
        }
    }
    Ok(Inpaint::Channels(extra))
}
