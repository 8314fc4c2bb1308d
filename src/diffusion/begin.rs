//! What a run begins with: the first latents and, for inpainting, the picture around the mask, drawn from the
//! generator in diffusers' order.

use super::autoencoder::PictureEncoder;
use super::inpaint;
use super::request::{Request, Start};
use super::rng::Rng;
use super::run::Inpaint;
use super::sampler::StepCoefficients;
use super::sizes::check_size;
use crate::gpu::Gpu;
use crate::graph::PlanOptions;
use crate::weights::ImageFamily;
use crate::{Error, Result};

/// Makes the beginning of a run.
pub(super) struct Beginning<'a> {
    pub gpu: &'a Gpu,
    pub plan: &'a PlanOptions,
    /// `[n, h, w, c]` of the latents.
    pub shape: [usize; 4],
    /// Pixels for one latent.
    pub scale: usize,
    pub family: ImageFamily,
    /// Channels that the UNet takes.
    pub channels: usize,
    /// The schedule's first row, and the spread of the noise before it.
    pub first: &'a StepCoefficients,
    pub sigma: f32,
    /// Side of the VAE's tiles in latents.
    pub tile: Option<usize>,
}

impl Beginning<'_> {
    /// A UNet that reads a mask and a masked picture beside the latents.
    fn nine(&self) -> bool {
        self.channels == 2 * self.shape[3] + 1
    }

    /// Latents `[n, h, w, c]`; `encoder` is asked for where a picture is given.
    pub fn latents(
        &self,
        request: &Request,
        rng: &mut Rng,
        encoder: impl FnOnce() -> Result<PictureEncoder>,
    ) -> Result<(Vec<f32>, Inpaint)> {
        let [n, h, w, c] = self.shape;
        match &request.start {
            Some(start) => {
                let size = [h, w].map(|side| side * self.scale);
                check_size("the picture to start from", &start.image, size)?;
                self.on_picture(start, rng, &encoder()?)
            }
            None if self.nine() => Err(Error::Usage(
                "an inpainting model (9 channels) needs -i PICTURE and --mask MASK".into(),
            )),
            None if self.family == ImageFamily::SdxlRefiner => Err(Error::Usage(
                "SDXL's refiner was trained on the last fifth of the noise levels and works on a picture; give \
                 -i PICTURE, with a strength of about 0.3"
                    .into(),
            )),
            None => Ok((self.scaled(&rng.randn_nhwc(n, h, w, c)), Inpaint::No)),
        }
    }

    fn scaled(&self, noise: &[f32]) -> Vec<f32> {
        noise.iter().map(|v| v * self.sigma).collect()
    }

    fn on_picture(
        &self,
        start: &Start,
        rng: &mut Rng,
        encoder: &PictureEncoder,
    ) -> Result<(Vec<f32>, Inpaint)> {
        let ([n, h, w, c], nine) = (self.shape, self.nine());
        let size = [h, w].map(|side| side * self.scale);
        let encode = |image: &[f32], rng: &mut Rng| {
            encoder.encode(self.gpu, self.plan, image, size, (n, rng), self.tile)
        };
        let whole = start.strength >= 1.0;
        // diffusers does not encode what it will not look at, and so draws no noise for it.
        let clean = match nine && whole {
            true => Vec::new(),
            false => encode(&start.image.to_vae(), rng)?,
        };
        let noise = rng.randn_nhwc(n, h, w, c);
        let masked = start.mask.is_some() || nine;
        let latents = match whole && masked {
            true => self.scaled(&noise),
            false => {
                let [a, b] = self.first.start;
                clean.iter().zip(&noise).map(|(clean, noise)| a * clean + b * noise).collect()
            }
        };
        let Some(mask) = &start.mask else {
            if nine {
                return Err(Error::Usage("an inpainting model (9 channels) needs --mask".into()));
            }
            return Ok((latents, Inpaint::No));
        };
        let mut encode = |image: &[f32]| encode(image, rng);
        inpaint::prepare(mask, &start.image, self.shape, nine, (clean, noise), &mut encode)
            .map(|inpaint| (latents, inpaint))
    }
}
