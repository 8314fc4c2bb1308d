//! Sizes of pictures: what a model was trained at, what a request asks for, what fits.

use super::autoencoder::Autoencoder;
use super::image::Image;
use super::request::Request;
use super::text_to_image::unet_config;
use crate::nets::unet::UnetConfig;
use crate::weights::ImageModel;
use crate::{Error, Result};

/// Height and width in pixels that a model on disk was trained at.
pub fn trained_size(model: &ImageModel) -> Result<(usize, usize)> {
    Ok(default_size(&unet_config(model)?, Autoencoder::scale_of(model)?))
}
/// Sides of the pictures of a model on disk are multiples of this.
pub fn size_step(model: &ImageModel) -> Result<usize> {
    Ok(Autoencoder::scale_of(model)? * unet_config(model)?.multiple())
}

/// Height and width in pixels that a model was trained at.
pub(super) fn default_size(config: &UnetConfig, scale: usize) -> (usize, usize) {
    let (h, w) = config.sample_size().unwrap_or((64, 64));
    (h * scale, w * scale)
}

/// Width and height of a request in pixels.
pub(super) fn size(request: &Request, config: &UnetConfig, scale: usize) -> Result<(usize, usize)> {
    let step = scale * config.multiple();
    let check = |name: &str, size: usize| {
        if size > 0 && size.is_multiple_of(step) {
            return Ok(size);
        }
        let down = (size / step).max(1) * step;
        let up = down + step;
        Err(Error::Usage(format!(
            "{name} {size}: this model paints multiples of {step}; {down} or {up} would do"
        )))
    };
    let (mut height, mut width) = default_size(config, scale);
    if let Some(start) = &request.start {
        (height, width) = (start.image.height, start.image.width);
    }
    let width = check("width", request.width.unwrap_or(width))?;
    Ok((width, check("height", request.height.unwrap_or(height))?))
}

/// Refuses a picture of another size than what is to be painted.
pub(super) fn check_size(what: &str, image: &Image, [height, width]: [usize; 2]) -> Result<()> {
    if (image.width, image.height) == (width, height) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{what} has {}x{} pixels, {width}x{height} are to be painted; resize it or give -W {} -H {}",
        image.width, image.height, image.width, image.height
    )))
}
