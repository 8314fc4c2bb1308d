//! Pictures that people give: PNG and JPEG files as they are shown (turned by EXIF, transparent parts on
//! a background), resized by the filter that diffusers has Pillow use, and masks for inpainting
//! (`VaeImageProcessor.preprocess` and `prepare_mask_latents`).

use std::path::Path;

use fast_image_resize as resize;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::image::Image;
use crate::{Error, Result};

/// Largest side that is read; a header can claim anything.
const MAX_SIDE: u32 = 1 << 15;
/// Most bytes of a decoded picture: 256 megapixels of four bytes.
const MAX_BYTES: u64 = 1 << 30;

impl Image {
    /// Reads a PNG or JPEG file of any depth and colour type, turned as its EXIF says. Transparent parts
    /// show white, as AUTOMATIC1111's image to image has them.
    ///
    /// # Errors
    /// `Io` for a file that cannot be opened, `Usage` for one that is no picture.
    pub fn read(path: impl AsRef<Path>) -> Result<Image> {
        read_on(path.as_ref(), 255)
    }

    /// The picture in another size by Pillow's Lanczos filter (three lobes, wider when it shrinks). Here the
    /// filter's weights have 16 bits and Pillow's 22, so some bytes differ by a step. Proportions are
    /// not kept.
    pub fn resized(&self, width: usize, height: usize) -> Result<Image> {
        if (width, height) == (self.width, self.height) {
            return Ok(self.clone());
        }
        let failed = |e: &dyn std::fmt::Display| {
            Error::Usage(format!(
                "cannot resize a picture of {} x {} to {width} x {height}: {e}",
                self.width, self.height
            ))
        };
        let side = |n: usize| u32::try_from(n).ok().filter(|n| (1..=MAX_SIDE).contains(n));
        let (Some(w), Some(h)) = (side(width), side(height)) else {
            return Err(failed(&format!("sides are 1 to {MAX_SIDE}")));
        };
        let kind = resize::PixelType::U8x3;
        let pass = |rgb: &[u8], from: [u32; 2], to: [u32; 2]| -> Result<Vec<u8>> {
            let from = resize::images::ImageRef::new(from[0], from[1], rgb, kind);
            let from = from.map_err(|e| failed(&e))?;
            let mut to = resize::images::Image::new(to[0], to[1], kind);
            let how = resize::ResizeAlg::Convolution(resize::FilterType::Lanczos3);
            resize::Resizer::new()
                .resize(&from, &mut to, &resize::ResizeOptions::new().resize_alg(how))
                .map_err(|e| failed(&e))?;
            Ok(to.into_vec())
        };
        // Pillow's order, with bytes in between: first along the rows, then along the columns.
        let (from_w, from_h) = (self.width as u32, self.height as u32);
        let rows = pass(&self.rgb, [from_w, from_h], [w, from_h])?;
        let to = pass(&rows, [w, from_h], [w, h])?;
        Image::new(width, height, to)
    }

    /// `[height, width, 3]` in -1 to 1 after resizing: what the autoencoder's encoder takes.
    pub fn to_vae_sized(&self, width: usize, height: usize) -> Result<Vec<f32>> {
        Ok(self.resized(width, height)?.to_vae())
    }
}

/// Reads a picture onto a background of this brightness.
fn read_on(path: &Path, background: u8) -> Result<Image> {
    let broken = |e: image::ImageError| match e {
        image::ImageError::IoError(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => {
            Error::io(path, e)
        }
        e => Error::Usage(format!("{}: not a readable picture: {e}", path.display())),
    };
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let mut reader = reader.map_err(|e| Error::io(path, e))?;
    if !matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg)) {
        return Err(Error::Usage(format!(
            "{}: neither PNG nor JPEG; convert it to one of them",
            path.display()
        )));
    }
    let mut limits = image::Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    // A broken tag is no reason to refuse the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    if decoder.total_bytes() > MAX_BYTES {
        let (width, height) = decoder.dimensions();
        return Err(Error::Usage(format!(
            "{}: {width} x {height} pixels are too many; make it smaller",
            path.display()
        )));
    }
    let mut picture = DynamicImage::from_decoder(decoder).map_err(broken)?;
    picture.apply_orientation(orientation);
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let rgb = match picture.color().has_alpha() {
        false => picture.into_rgb8().into_raw(),
        true => picture.into_rgba8().pixels().flat_map(|p| flatten(p.0, background)).collect(),
    };
    Image::new(width, height, rgb)
}

/// A pixel over an opaque background, rounded to nearest.
fn flatten([r, g, b, alpha]: [u8; 4], background: u8) -> [u8; 3] {
    let alpha = u32::from(alpha);
    [r, g, b]
        .map(|c| ((u32::from(c) * alpha + u32::from(background) * (255 - alpha) + 127) / 255) as u8)
}

/// Where a picture is painted anew: white in the file. Transparent parts count as black.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    pub width: usize,
    pub height: usize,
    /// `[height, width]`, rows from the top.
    painted: Vec<bool>,
}

impl Mask {
    /// Reads a mask for a picture and brings it to the size of painting: resized, turned to luma and cut
    /// at one half, in diffusers' order.
    ///
    /// # Errors
    /// `Usage` for a mask of another size than the picture's own, or that marks nothing.
    pub fn read(
        path: impl AsRef<Path>,
        picture: &Image,
        width: usize,
        height: usize,
    ) -> Result<Mask> {
        let path = path.as_ref();
        let image = read_on(path, 0)?;
        if (image.width, image.height) != (picture.width, picture.height) {
            return Err(Error::Usage(format!(
                "{}: the mask is {} x {}, its picture {} x {}; a mask has the size of its picture",
                path.display(),
                image.width,
                image.height,
                picture.width,
                picture.height
            )));
        }
        let mask = Mask::from_image(&image.resized(width, height)?);
        match mask.painted.contains(&true) {
            true => Ok(mask),
            false => Err(Error::Usage(format!(
                "{}: the mask marks nothing; what is to be painted anew is white in it",
                path.display()
            ))),
        }
    }

    /// Cuts the luma of a picture at one half.
    pub fn from_image(image: &Image) -> Mask {
        let painted = image.rgb.chunks_exact(3).map(|p| luma([p[0], p[1], p[2]]) >= 128);
        Mask { width: image.width, height: image.height, painted: painted.collect() }
    }

    /// `[height, width]`: 1 where it is painted anew, else 0.
    pub fn values(&self) -> Vec<f32> {
        self.painted.iter().map(|&painted| f32::from(u8::from(painted))).collect()
    }

    /// `[height / factor, width / factor]` of the same, by nearest neighbour (torch's `interpolate`): the
    /// mask of the latents, for UNets of 4 channels and of 9.
    ///
    /// # Errors
    /// `Usage` if the sides are no multiples of the factor.
    pub fn latents(&self, factor: usize) -> Result<Vec<f32>> {
        if factor == 0 || !self.width.is_multiple_of(factor) || !self.height.is_multiple_of(factor)
        {
            return Err(Error::Usage(format!(
                "a mask of {} x {} does not divide by {factor}",
                self.width, self.height
            )));
        }
        let rows = self.painted.chunks_exact(self.width).step_by(factor);
        let picked = rows.flat_map(|row| row.iter().step_by(factor));
        Ok(picked.map(|&painted| f32::from(u8::from(painted))).collect())
    }

    /// The picture `[height, width, 3]` in -1 to 1 with 0 where it is painted anew: what UNets of 9
    /// channels are given of it.
    ///
    /// # Errors
    /// `Runtime` if the picture has another size.
    pub fn masked(&self, picture: &[f32]) -> Result<Vec<f32>> {
        if picture.len() != self.painted.len() * 3 {
            return Err(Error::Runtime(format!(
                "{} values of a picture for a mask of {} x {}",
                picture.len(),
                self.width,
                self.height
            )));
        }
        let pixels = picture.chunks_exact(3).zip(&self.painted);
        Ok(pixels
            .flat_map(|(p, &painted)| if painted { [0.0; 3] } else { [p[0], p[1], p[2]] })
            .collect())
    }

    /// The picture with what was painted put into the masked part; what was not masked keeps its bytes.
    ///
    /// # Errors
    /// `Runtime` if a size differs.
    pub fn overlay(&self, picture: &Image, painted: &Image) -> Result<Image> {
        let size = (self.width, self.height);
        if (picture.width, picture.height) != size || (painted.width, painted.height) != size {
            return Err(Error::Runtime(format!(
                "pictures of {} x {} and {} x {} under a mask of {} x {}",
                picture.width,
                picture.height,
                painted.width,
                painted.height,
                self.width,
                self.height
            )));
        }
        let pixels = picture.rgb.chunks_exact(3).zip(painted.rgb.chunks_exact(3));
        let chosen =
            pixels.zip(&self.painted).flat_map(|((old, new), &mask)| if mask { new } else { old });
        Image::new(self.width, self.height, chosen.copied().collect())
    }
}

/// ITU-R 601 luma in Pillow's integers.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    let [r, g, b] = [r, g, b].map(u32::from);
    ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::tensor::{Data, Tensor};
    use crate::weights::read_tensors;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pictures").join(name)
    }

    fn tensor(name: &str) -> Tensor {
        let tensors = read_tensors(golden("golden.safetensors")).unwrap();
        tensors.into_iter().find(|(n, _)| n == name).unwrap().1
    }

    const SIZES: [(usize, usize); 2] = [(24, 16), (48, 40)];

    #[test]
    fn pictures_are_resized_as_diffusers_does() {
        let picture = Image::read(golden("picture.png")).unwrap();
        assert_eq!((picture.width, picture.height), (31, 21));
        for (width, height) in SIZES {
            let expected = tensor(&format!("picture.{width}x{height}"));
            assert_eq!(expected.shape, [3, height, width]);
            let (expected, own) = (expected.to_f32(), picture.to_vae_sized(width, height).unwrap());
            let mut sum = 0.0;
            for (i, value) in own.iter().enumerate() {
                let other = expected[i % 3 * width * height + i / 3];
                let steps = (value - other).abs() * 127.5;
                // Either pass may round a byte to the other side: one step from the first, which the
                // second carries on, and one of its own.
                assert!(steps < 2.01, "{width}x{height} at {i}: {value}, {other}");
                sum += steps;
            }
            // Most bytes are the same; a shifted or another filter is off by several steps everywhere.
            assert!(sum / own.len() as f32 <= 0.25, "{width}x{height}: {sum} steps");
        }
    }

    #[test]
    fn masks_are_those_of_diffusers() {
        let picture = Image::read(golden("picture.png")).unwrap();
        for name in ["mask_gray", "mask_rgb"] {
            for (width, height) in SIZES {
                let mask = Mask::read(golden(&format!("{name}.png")), &picture, width, height);
                let mask = mask.unwrap();
                let key = format!("{name}.{width}x{height}");
                let expected = tensor(&key).to_f32();
                // A step of luma decides only where it is 127 or 128: below one pixel in a hundred.
                let other = mask.values().iter().zip(&expected).filter(|(a, b)| a != b).count();
                assert!(other * 100 <= width * height, "{key}: {other} pixels differ");
                // What follows the cut is exact.
                let bytes = expected.iter().flat_map(|value| [(value * 255.0) as u8; 3]).collect();
                let same = Mask::from_image(&Image::new(width, height, bytes).unwrap());
                assert_eq!(same.values(), expected, "{key}");
                let small = tensor(&format!("{key}.latents"));
                assert_eq!(small.shape, [height / 8, width / 8]);
                assert_eq!(same.latents(8).unwrap(), small.to_f32(), "{key}");
                let ones = mask.values().iter().sum::<f32>();
                assert!(ones > 0.0 && ones < (width * height) as f32, "{key} shows nothing");
            }
        }
    }

    #[test]
    fn photographs_are_shown_as_they_were_taken() {
        let photo = Image::read(golden("photo.jpg")).unwrap();
        let expected = tensor("photo");
        // Saved as 31 x 21, to be turned by a quarter.
        assert_eq!((photo.width, photo.height), (21, 31));
        assert_eq!(expected.shape, [31, 21, 3]);
        let Data::I64(expected) = expected.data else { panic!("bytes are integers") };
        for (own, other) in photo.rgb.iter().zip(expected) {
            // Decoders round the inverse cosine transform and the colours on their own: one step each.
            assert!((i64::from(*own) - other).abs() <= 2, "{own} {other}");
        }
    }

    fn save(folder: &Path, name: &str, picture: impl Into<DynamicImage>) -> PathBuf {
        let path = folder.join(name);
        picture.into().save(&path).unwrap();
        path
    }

    #[test]
    fn every_colour_type_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let read =
            |picture: DynamicImage| Image::read(save(folder.path(), "p.png", picture)).unwrap().rgb;
        let gray = image::GrayImage::from_raw(1, 1, vec![7]).unwrap();
        assert_eq!(read(gray.into()), [7; 3]);
        let deep = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(1, 1, vec![0x8080u16]);
        assert_eq!(read(deep.unwrap().into()), [0x80; 3]);
        let deep = image::ImageBuffer::<image::Rgb<u16>, _>::from_raw(1, 1, vec![0u16, 257, 65535]);
        assert_eq!(read(deep.unwrap().into()), [0, 1, 255]);
        // Half of red over white; nothing over white.
        let clear = image::RgbaImage::from_raw(2, 1, vec![255, 0, 0, 128, 9, 9, 9, 0]).unwrap();
        assert_eq!(read(clear.into()), [255, 127, 127, 255, 255, 255]);
    }

    #[test]
    fn masks_say_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let picture = Image::new(2, 1, vec![0; 6]).unwrap();
        let mask = |w, h, rgba: Vec<u8>| {
            let raw = image::RgbaImage::from_raw(w, h, rgba).unwrap();
            Mask::read(save(folder.path(), "m.png", raw), &picture, 2, 1)
        };
        // White strokes on nothing are a mask.
        let good = mask(2, 1, vec![255, 255, 255, 255, 255, 255, 255, 0]).unwrap();
        assert_eq!(good.values(), [1.0, 0.0]);
        let error = mask(1, 1, vec![255; 4]).unwrap_err().to_string();
        assert!(error.contains("m.png: the mask is 1 x 1, its picture 2 x 1"), "{error}");
        let error = mask(2, 1, vec![0; 8]).unwrap_err().to_string();
        assert!(error.contains("marks nothing"), "{error}");
        assert!(good.latents(2).is_err() && good.masked(&[0.0; 3]).is_err());
        let masked = good.masked(&[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).unwrap();
        assert_eq!(masked, [0.0, 0.0, 0.0, 0.4, 0.5, 0.6]);
        let white = Image::new(2, 1, vec![255; 6]).unwrap();
        let both = good.overlay(&picture, &white).unwrap();
        assert_eq!(both.rgb, [255, 255, 255, 0, 0, 0]);
        assert!(good.overlay(&picture, &Image::new(1, 1, vec![0; 3]).unwrap()).is_err());
    }

    #[test]
    fn broken_files_are_errors_that_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.png");
        for file in ["picture.png", "photo.jpg"] {
            let bytes = std::fs::read(golden(file)).unwrap();
            for end in [0, 4, 20, bytes.len() / 4, bytes.len() / 2] {
                std::fs::write(&path, &bytes[..end]).unwrap();
                // A JPEG that ends early is shown as far as it goes by some decoders; no panic either way.
                match Image::read(&path) {
                    Ok(_) => assert!(file.ends_with("jpg"), "{file} of {end} bytes was read"),
                    Err(error) => assert!(error.to_string().contains("cut.png"), "{error}"),
                }
            }
        }
        std::fs::write(&path, "GIF89a and more").unwrap();
        assert!(Image::read(&path).unwrap_err().to_string().contains("neither PNG nor JPEG"));
        assert!(matches!(Image::read("/nowhere/at.png"), Err(Error::Io { .. })));
        let picture = Image::read(golden("picture.png")).unwrap();
        assert!(picture.resized(0, 5).is_err() && picture.resized(5, 1 << 20).is_err());
        assert_eq!(picture.resized(31, 21).unwrap(), picture);
    }
}
