//! What a run looks like before it is finished: latents turned into small or whole pictures.

use super::autoencoder::Autoencoder;
use super::image::Image;
use super::rng::{Rng, RngKind};
use super::run::Run;
use super::sampler::StepCoefficients;
use crate::gpu::Gpu;
use crate::graph::PlanOptions;
use crate::nets::vae::VaeConfig;
use crate::{Error, Result};

/// How latents become a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreviewKind {
    /// One colour for each latent, a linear map: costs nothing.
    #[default]
    Proj,
    /// An AutoencoderTiny.
    Tae,
}

/// A linear map from latents, scaled as the sampler has them, to colours in −1..1.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// A colour for one of each channel, and last the colour of zero.
    factors: Vec<[f32; 3]>,
}

/// Least-squares fits of pictures to the latents of Stable Diffusion 1.x and 2.x and of SDXL, as ComfyUI
/// and others use them (0..1 there, −1..1 here).
const SD: [[f32; 3]; 5] = [
    [0.3512, 0.2297, 0.3227],
    [0.3250, 0.4974, 0.2350],
    [-0.2829, 0.1762, 0.2721],
    [-0.2120, -0.2616, -0.7177],
    [0.0, 0.0, 0.0],
];
const SDXL: [[f32; 3]; 5] = [
    [0.3651, 0.4232, 0.4341],
    [-0.2533, -0.0042, 0.1068],
    [0.1076, 0.1111, -0.0362],
    [-0.3165, -0.2492, -0.2188],
    [0.1084, -0.0175, -0.0011],
];

/// The published map of a VAE's latents, where it has the form and the scale of a published one.
fn published(vae: &VaeConfig) -> Option<&'static [[f32; 3]]> {
    let near = |scale: f64| (vae.scaling_factor - scale).abs() < 1e-4;
    let form = vae.latent_channels == 4 && vae.block_out_channels == [128, 256, 512, 512];
    match form {
        true if near(0.18215) => Some(&SD),
        true if near(0.13025) => Some(&SDXL),
        _ => None,
    }
}

/// The map of latents that are pixels: red, green and blue, or gray.
fn pixels(channels: usize) -> Vec<[f32; 3]> {
    let colour =
        |channel: usize| [0, 1, 2].map(|rgb| f32::from(u8::from(channels == 1 || rgb == channel)));
    (0..channels).map(colour).chain([[0.0; 3]]).collect()
}

impl Projection {
    /// Pictures of noise that a map is fitted to, and their sides in latents: far more colours than
    /// there are numbers to be found.
    const FIT: [usize; 2] = [1, 16];

    /// What a fit decodes at once, for VAEs of so many channels of latents.
    pub(super) fn fit_shape(channels: usize) -> [usize; 4] {
        [1, Projection::FIT[1], Projection::FIT[1], channels]
    }

    /// The map for a VAE: the published one of Stable Diffusion 1.x and 2.x or of SDXL; for any other VAE the
    /// one that comes nearest, in least squares, to what it makes of white noise.
    ///
    /// # Errors
    /// As decoding has them.
    pub fn of(vae: &Autoencoder, gpu: &Gpu, plan: &PlanOptions) -> Result<Projection> {
        if vae.is_pixels() {
            return Ok(Projection { factors: pixels(vae.latent_channels()) });
        }
        match vae.kl().and_then(published) {
            Some(factors) => Ok(Projection { factors: factors.to_vec() }),
            None => Projection::fit(vae, gpu, plan),
        }
    }

    fn fit(vae: &Autoencoder, gpu: &Gpu, plan: &PlanOptions) -> Result<Projection> {
        let ([n, side], c) = (Projection::FIT, vae.latent_channels());
        let latents = Rng::new(RngKind::Cpu, 0).randn_nhwc(n, side, side, c);
        let decoded = vae.decode_values(gpu, plan, &latents, [n, side, side, c], None)?;
        let colours = decoded.images.iter().flat_map(|image| cells(image, vae.scale()));
        let rows: Vec<Vec<f64>> = latents
            .chunks_exact(c)
            .map(|cell| cell.iter().map(|v| f64::from(*v)).chain([1.0]).collect())
            .collect();
        let factors = least_squares(&rows, &colours.collect::<Vec<_>>()).ok_or_else(|| {
            let why = "--preview proj: this VAE makes nothing of noise that a linear map could follow; \
                       --preview tae takes an AutoencoderTiny";
            Error::Usage(why.into())
        })?;
        Ok(Projection { factors })
    }

    /// Latents `[h, w, c]` → a picture of a pixel for each.
    ///
    /// # Errors
    /// `Usage` for latents of another number of channels.
    pub fn picture(&self, latents: &[f32], [h, w, c]: [usize; 3]) -> Result<Image> {
        let Some((zero, factors)) = self.factors.split_last().filter(|(_, own)| own.len() == c)
        else {
            return Err(Error::Usage(format!(
                "a map of {} channels for latents of {c}",
                self.factors.len().saturating_sub(1)
            )));
        };
        let mut values = Vec::with_capacity(h * w * 3);
        for cell in latents.chunks_exact(c).take(h * w) {
            for rgb in 0..3 {
                let sum: f32 = cell.iter().zip(factors).map(|(v, factor)| v * factor[rgb]).sum();
                values.push(sum + zero[rgb]);
            }
        }
        Ok(Image::from_vae(&values, w, h)?.0)
    }
}

/// The mean colour, −1..1, of each square of `side` pixels.
fn cells(image: &Image, side: usize) -> Vec<[f64; 3]> {
    let (values, width) = (image.to_vae(), image.width / side);
    let mut cells = vec![[0.0; 3]; width * (image.height / side)];
    for (i, rgb) in values.chunks_exact(3).enumerate() {
        let (x, y) = (i % image.width / side, i / image.width / side);
        for (sum, v) in cells[y * width + x].iter_mut().zip(rgb) {
            *sum += f64::from(*v) / (side * side) as f64;
        }
    }
    cells
}

/// x that makes |rows · x − targets|² least, by the normal equations; None where they have no single solution.
fn least_squares(rows: &[Vec<f64>], targets: &[[f64; 3]]) -> Option<Vec<[f32; 3]>> {
    let n = rows.first()?.len();
    // Rows of [AᵀA | Aᵀb].
    let mut system = vec![vec![0.0; n + 3]; n];
    for (row, target) in rows.iter().zip(targets) {
        for (i, line) in system.iter_mut().enumerate() {
            let right = row.iter().chain(target);
            line.iter_mut().zip(right).for_each(|(sum, v)| *sum += row[i] * v);
        }
    }
    // Gauss and Jordan; a symmetric positive matrix needs no exchange of rows.
    for i in 0..n {
        let pivot = system[i].clone();
        if pivot[i].is_nan() || pivot[i] <= 1e-9 {
            return None;
        }
        for (k, line) in system.iter_mut().enumerate() {
            let factor = if k == i { 1.0 - 1.0 / pivot[i] } else { line[i] / pivot[i] };
            line.iter_mut().zip(&pivot).for_each(|(v, p)| *v -= factor * p);
        }
    }
    Some(system.iter().map(|line| [0, 1, 2].map(|rgb| line[n + rgb] as f32)).collect())
}

enum How<'a> {
    Projection(&'a Projection),
    /// With the side of its tiles in latents, where it is tiled.
    Tiny(&'a Autoencoder, Option<usize>),
}

/// Makes previews of a run.
pub struct Previewer<'a> {
    how: How<'a>,
}

impl<'a> Previewer<'a> {
    /// With a linear map.
    pub fn proj(projection: &'a Projection) -> Previewer<'a> {
        Previewer { how: How::Projection(projection) }
    }
    /// With an AutoencoderTiny, in tiles of `tile` latents where that is given.
    pub fn tae(tiny: &'a Autoencoder, tile: Option<usize>) -> Previewer<'a> {
        Previewer { how: How::Tiny(tiny, tile) }
    }

    /// The first picture of a run as it is after `row`. Waits for the device, so it is for every few
    /// steps.
    pub fn picture(
        &self,
        gpu: &Gpu,
        plan: &PlanOptions,
        run: &Run,
        row: &StepCoefficients,
    ) -> Result<Image> {
        let [_, h, w, c] = run.shape();
        let mut latents = run.latents()?;
        latents.truncate(h * w * c);
        // Samplers that carry noise as Karras et al. do have latents that grow with it.
        let spread = row.sigma.hypot(1.0);
        if row.start[0] == 1.0 && row.sigma > 1.0 {
            latents.iter_mut().for_each(|v| *v /= spread);
        }
        match self.how {
            How::Projection(projection) => projection.picture(&latents, [h, w, c]),
            How::Tiny(tiny, tile) => {
                let decoded = tiny.decode_values(gpu, plan, &latents, [1, h, w, c], tile)?;
                let nothing = || Error::Runtime("a preview without a picture".into());
                decoded.images.into_iter().next().ok_or_else(nothing)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_map_is_found_again() {
        // Sines of different frequencies are nearly independent, so nothing but rounding (f64, and f32 at the
        // end) is lost.
        let rows: Vec<Vec<f64>> = (0..50)
            .map(|i| (1..4).map(|k| f64::from(i * k).sin()).chain([1.0]).collect())
            .collect();
        let map = [[0.5, -1.0, 0.25], [2.0, 0.0, 1.0], [-0.75, 0.5, 0.0], [0.1, 0.2, 0.3]];
        let target = |row: &Vec<f64>| {
            [0, 1, 2].map(|rgb| row.iter().zip(&map).map(|(v, m)| v * m[rgb]).sum::<f64>())
        };
        let targets: Vec<[f64; 3]> = rows.iter().map(target).collect();
        let found = least_squares(&rows, &targets).unwrap();
        for (found, map) in found.iter().flatten().zip(map.iter().flatten()) {
            assert!((f64::from(*found) - map).abs() < 1e-6, "{found} for {map}");
        }
        assert!(least_squares(&[vec![1.0, 1.0], vec![2.0, 2.0]], &[[0.0; 3]; 2]).is_none());
    }

    #[test]
    fn published_maps_are_for_published_vaes() {
        let config = |blocks: &str, scale: f64| -> VaeConfig {
            let json = format!(
                r#"{{"block_out_channels": {blocks}, "scaling_factor": {scale}, "up_block_types":
                    ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}}"#
            );
            let json = serde_json::from_str(&json).unwrap();
            VaeConfig::from_value(&json, std::path::Path::new("config.json")).unwrap()
        };
        let sd = "[128, 256, 512, 512]";
        assert_eq!(published(&config(sd, 0.18215)), Some(&SD[..]));
        assert_eq!(published(&config(sd, 0.13025)), Some(&SDXL[..]));
        assert_eq!(published(&config(sd, 0.31651)), None);
        assert_eq!(published(&config("[32, 32, 64, 128]", 0.18215)), None);
    }
}
