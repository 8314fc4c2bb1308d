//! Latents to pictures and back: AutoencoderKL or AutoencoderTiny, whole or in tiles; or nothing at all for
//! models whose latents are pixels.

use super::image::Image;
use super::rng::Rng;
use super::tiling::{Coder, Half, Pixels};
use crate::gpu::{Buffer, Gpu};
use crate::graph::{Footprint, PlanOptions};
use crate::nets::taesd::{TaesdConfig, TaesdDecoder, TaesdEncoder};
use crate::nets::unet::UnetConfig;
use crate::nets::vae::{Posterior, VaeConfig, VaeDecoder, VaeEncoder};
use crate::nn::Loader;
use crate::weights::{ImageFamily, ImageModel, Part};
use crate::{Error, Result};

enum Decoder {
    Kl(Box<VaeDecoder>, VaeConfig),
    Tiny(TaesdDecoder, TaesdConfig),
    /// There is none: latents are pixels of so many channels.
    Pixels(usize),
}

/// The encoder is loaded when a picture is given to start from.
enum Encoder {
    Kl(Box<VaeEncoder>, VaeConfig),
    Tiny(TaesdEncoder),
    Pixels(usize),
}

/// An autoencoder of a model, its decoder on the GPU.
pub struct Autoencoder {
    decoder: Decoder,
}

/// Pictures that were decoded, and how many of their values were not finite.
#[derive(Debug)]
pub struct Decoded {
    pub images: Vec<Image>,
    pub not_finite: usize,
}

/// Whether a configuration is AutoencoderTiny's.
fn is_tiny(fields: &serde_json::Value) -> bool {
    let class = fields.get("_class_name").and_then(|name| name.as_str());
    match class {
        Some(name) => name == "AutoencoderTiny",
        None => fields.get("encoder_block_out_channels").is_some(),
    }
}

impl Autoencoder {
    /// Loads the decoder of a model's VAE.
    pub fn load(ld: &Loader<'_>, model: &ImageModel) -> Result<Autoencoder> {
        let (fields, source) = model.config(Part::Vae)?;
        let decoder = match is_tiny(&fields) {
            true => {
                let config = TaesdConfig::from_value(&fields, &source)?;
                Decoder::Tiny(TaesdDecoder::load(ld, &config)?, config)
            }
            false => {
                let config = VaeConfig::from_value(&fields, &source)?;
                Decoder::Kl(Box::new(VaeDecoder::load(ld, &config)?), config)
            }
        };
        Ok(Autoencoder { decoder })
    }

    /// Loads the decoder of an AutoencoderTiny that lies by itself: a folder, or a file without a
    /// configuration, which then has the published form.
    pub fn load_tiny(ld: &Loader<'_>, path: &std::path::Path) -> Result<Autoencoder> {
        let config = match path.is_dir() {
            true => TaesdConfig::read(path)?,
            false => TaesdConfig::from_value(&serde_json::json!({}), path)?,
        };
        Ok(Autoencoder { decoder: Decoder::Tiny(TaesdDecoder::load(ld, &config)?, config) })
    }

    /// In place of an autoencoder for an unconditional UNet: its latents are pixels in −1..1, gray or RGB.
    /// None for any other UNet.
    ///
    /// # Errors
    /// `Model` for an unconditional UNet of other channels.
    pub fn pixels(model: &ImageModel, config: &UnetConfig) -> Result<Option<Autoencoder>> {
        if config.takes_prompt() {
            return Ok(None);
        }
        match (config.in_channels, config.out_channels) {
            (channels @ (1 | 3), out) if channels == out => {
                Ok(Some(Autoencoder { decoder: Decoder::Pixels(channels) }))
            }
            (channels, out) => Err(Error::Model(format!(
                "{}: a UNet from {channels} to {out} channels without a VAE; pictures have 1 or 3, and a \
                 learned variance is not read here",
                model.path().display()
            ))),
        }
    }

    /// Whether latents are pixels.
    pub fn is_pixels(&self) -> bool {
        matches!(self.decoder, Decoder::Pixels(_))
    }

    /// [`Autoencoder::scale`] of a model on disk.
    pub fn scale_of(model: &ImageModel) -> Result<usize> {
        if model.kind().family == ImageFamily::Unconditional {
            return Ok(1);
        }
        let (fields, source) = model.config(Part::Vae)?;
        Ok(match is_tiny(&fields) {
            true => TaesdConfig::from_value(&fields, &source)?.scale(),
            false => VaeConfig::from_value(&fields, &source)?.scale(),
        })
    }

    /// Pixels of the picture for one of the latent, along each side.
    pub fn scale(&self) -> usize {
        match &self.decoder {
            Decoder::Kl(_, config) => config.scale(),
            Decoder::Tiny(_, config) => config.scale(),
            Decoder::Pixels(_) => 1,
        }
    }
    pub fn latent_channels(&self) -> usize {
        match &self.decoder {
            Decoder::Kl(_, config) => config.latent_channels,
            Decoder::Tiny(_, config) => config.latent_channels,
            Decoder::Pixels(channels) => *channels,
        }
    }
    /// Whether the VAE of a model on disk is an AutoencoderTiny.
    pub fn is_tiny(model: &ImageModel) -> Result<bool> {
        Ok(is_tiny(&model.config(Part::Vae)?.0))
    }
    /// The configuration of an AutoencoderKL.
    pub fn kl(&self) -> Option<&VaeConfig> {
        match &self.decoder {
            Decoder::Kl(_, config) => Some(config),
            Decoder::Tiny(..) | Decoder::Pixels(_) => None,
        }
    }

    /// What the decoder takes of a latent as the sampler has it.
    fn unscaled(&self, z: &[f32]) -> Vec<f32> {
        match &self.decoder {
            Decoder::Kl(_, config) => config.unscaled(z),
            Decoder::Tiny(_, config) => {
                z.iter().map(|v| v / config.scaling_factor as f32).collect()
            }
            Decoder::Pixels(_) => z.to_vec(),
        }
    }

    /// None where latents are pixels.
    fn coder<'a>(&'a self, gpu: &'a Gpu, plan: &PlanOptions) -> Option<Coder<'a>> {
        let net: &dyn Half = match &self.decoder {
            Decoder::Kl(decoder, _) => decoder.as_ref(),
            Decoder::Tiny(decoder, _) => decoder,
            Decoder::Pixels(_) => return None,
        };
        let mut coder = Coder::decoder(gpu, self.scale(), net);
        coder.plan = plan.clone();
        Some(coder)
    }

    /// Memory that latents of this shape take when they are decoded in one piece.
    pub fn footprint(&self, gpu: &Gpu, plan: &PlanOptions, shape: [usize; 4]) -> Result<Footprint> {
        self.coder(gpu, plan).map_or(Ok(Footprint::default()), |coder| coder.footprint(shape))
    }
    /// As [`Autoencoder::footprint`], in tiles of `side` latents.
    pub fn tiled_footprint(
        &self,
        gpu: &Gpu,
        plan: &PlanOptions,
        shape: [usize; 4],
        side: usize,
    ) -> Result<Footprint> {
        let coder = self.coder(gpu, plan);
        coder.map_or(Ok(Footprint::default()), |coder| coder.tiled_footprint(shape, side))
    }
    /// The side of tiles for latents of this shape, see [`Coder::tile_side`]; 0 where latents are pixels.
    pub fn tile_side(
        &self,
        gpu: &Gpu,
        plan: &PlanOptions,
        shape: [usize; 4],
        want: u64,
    ) -> Result<usize> {
        self.coder(gpu, plan).map_or(Ok(0), |coder| coder.tile_side(shape, want))
    }

    /// Latents `[n, h, w, c]` in a buffer → pictures, in tiles of `tile` latents where that is given. A
    /// batch is decoded one picture after another.
    pub fn decode(
        &self,
        gpu: &Gpu,
        plan: &PlanOptions,
        latent: &Buffer,
        shape: [usize; 4],
        tile: Option<usize>,
    ) -> Result<Decoded> {
        let bytes = gpu.read(latent, 0, shape.iter().product::<usize>() as u64 * 4)?;
        self.decode_values(gpu, plan, &bytemuck::pod_collect_to_vec::<u8, f32>(&bytes), shape, tile)
    }

    /// As [`Autoencoder::decode`], for latents of the host.
    pub fn decode_values(
        &self,
        gpu: &Gpu,
        plan: &PlanOptions,
        latents: &[f32],
        [_, h, w, c]: [usize; 4],
        tile: Option<usize>,
    ) -> Result<Decoded> {
        let values = self.unscaled(latents);
        let mut decoded = Decoded { images: Vec::new(), not_finite: 0 };
        for item in values.chunks_exact((h * w * c).max(1)) {
            let x = Pixels { shape: [1, h, w, c], values: item.to_vec() };
            let y = match self.coder(gpu, plan) {
                Some(coder) => coder.run(&x, tile, &mut |_, _| ())?,
                None => rgb(x),
            };
            let (image, bad) = Image::from_vae(&y.values, y.shape[2], y.shape[1])?;
            decoded.images.push(image);
            decoded.not_finite += bad;
        }
        Ok(decoded)
    }
}

/// Gray pixels as red, green and blue.
fn rgb(x: Pixels) -> Pixels {
    let [b, h, w, c] = x.shape;
    match c {
        1 => {
            Pixels { shape: [b, h, w, 3], values: x.values.iter().flat_map(|v| [*v; 3]).collect() }
        }
        _ => x,
    }
}

/// Encodes pictures with a model's VAE, whose encoder is loaded for it and dropped with it.
pub struct PictureEncoder {
    encoder: Encoder,
    scale: usize,
}

impl PictureEncoder {
    /// Loads the encoder of a model's VAE.
    pub fn load(ld: &Loader<'_>, model: &ImageModel) -> Result<PictureEncoder> {
        let (fields, source) = model.config(Part::Vae)?;
        Ok(match is_tiny(&fields) {
            true => {
                let config = TaesdConfig::from_value(&fields, &source)?;
                let scale = config.scale();
                PictureEncoder { encoder: Encoder::Tiny(TaesdEncoder::load(ld, &config)?), scale }
            }
            false => {
                let config = VaeConfig::from_value(&fields, &source)?;
                let (encoder, scale) = (Box::new(VaeEncoder::load(ld, &config)?), config.scale());
                PictureEncoder { encoder: Encoder::Kl(encoder, config), scale }
            }
        })
    }

    /// For a model whose latents are pixels of 1 (gray) or 3 channels.
    pub fn pixels(channels: usize) -> PictureEncoder {
        PictureEncoder { encoder: Encoder::Pixels(channels), scale: 1 }
    }

    /// A picture `[height, width, 3]` in −1..1 → latents `[n, h, w, c]` as the sampler has them. Those of
    /// an AutoencoderKL are drawn from its posterior, as in diffusers' pipelines.
    pub fn encode(
        &self,
        gpu: &Gpu,
        plan: &PlanOptions,
        image: &[f32],
        [height, width]: [usize; 2],
        (n, rng): (usize, &mut Rng),
        tile: Option<usize>,
    ) -> Result<Vec<f32>> {
        let x = Pixels { shape: [1, height, width, 3], values: image.to_vec() };
        let Some(coder) = self.coder(gpu, plan) else { return Ok(self.as_pixels(image).repeat(n)) };
        let y = coder.run(&x, tile, &mut |_, _| ())?;
        let Encoder::Kl(_, config) = &self.encoder else { return Ok(y.values.repeat(n)) };
        let [_, h, w, c2] = y.shape;
        let posterior = Posterior::new([n, h, w, c2], &y.values.repeat(n))?;
        let noise = rng.randn_nhwc(n, h, w, c2 / 2);
        Ok(config.scaled(&posterior.sample(&noise)?))
    }

    /// Pixels `[height, width, 3]` as the latents of a model without a VAE.
    fn as_pixels(&self, image: &[f32]) -> Vec<f32> {
        match self.encoder {
            Encoder::Pixels(1) => {
                // Luma of ITU-R BT.601, as Pillow makes gray pictures.
                let gray = |p: &[f32]| 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2];
                image.chunks_exact(3).map(gray).collect()
            }
            _ => image.to_vec(),
        }
    }

    /// None where latents are pixels.
    fn coder<'a>(&'a self, gpu: &'a Gpu, plan: &PlanOptions) -> Option<Coder<'a>> {
        let net: &dyn Half = match &self.encoder {
            Encoder::Kl(encoder, _) => encoder.as_ref(),
            Encoder::Tiny(encoder) => encoder,
            Encoder::Pixels(_) => return None,
        };
        let mut coder = Coder::encoder(gpu, self.scale, net);
        coder.plan = plan.clone();
        Some(coder)
    }

    /// Memory that a picture takes, besides weights; in tiles of `tile` latents where that is given.
    pub fn footprint(
        &self,
        gpu: &Gpu,
        plan: &PlanOptions,
        [height, width]: [usize; 2],
        tile: Option<usize>,
    ) -> Result<Footprint> {
        let shape = [1, height, width, 3];
        let Some(coder) = self.coder(gpu, plan) else { return Ok(Footprint::default()) };
        tile.map_or_else(|| coder.footprint(shape), |side| coder.tiled_footprint(shape, side))
    }
}
