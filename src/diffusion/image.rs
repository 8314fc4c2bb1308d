//! Pictures: from the autoencoder's output to 8-bit RGB, and PNG files with text chunks.

use std::path::Path;

use crate::files::write_whole;
use crate::{Error, Result};

/// Keyword of the text chunk that holds AUTOMATIC1111's generation parameters; see
/// [`super::infotext`].
pub const PARAMETERS_CHUNK: &str = "parameters";
/// Keyword of the text chunk that holds the JSON that reproduces a run.
pub const INKNIB_CHUNK: &str = "inknib";

/// Largest picture that is read: 256 megapixels. A header can claim anything.
const MAX_PIXELS: u64 = 1 << 28;

/// An 8-bit RGB picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub width: usize,
    pub height: usize,
    /// [height, width, 3], rows from the top.
    pub rgb: Vec<u8>,
}

impl Image {
    /// Checks that `rgb` holds `height * width * 3` bytes.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Image> {
        check_size("picture", width, height, rgb.len())?;
        Ok(Image { width, height, rgb })
    }

    /// From the autoencoder's output, [height, width, 3] in -1 to 1: x/2 + 0.5, clamped to 0..1, times
    /// 255, rounded half to even (diffusers' `VaeImageProcessor`). Returns the number of values that
    /// are not finite as well; NaN becomes 0, infinities the nearest bound.
    pub fn from_vae(values: &[f32], width: usize, height: usize) -> Result<(Image, usize)> {
        check_size("decoded picture", width, height, values.len())?;
        let mut broken = 0;
        let byte = |&v: &f32| {
            broken += usize::from(!v.is_finite());
            // `as u8` of NaN is 0.
            ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
        };
        let rgb = values.iter().map(byte).collect();
        Ok((Image { width, height, rgb }, broken))
    }

    /// [height, width, 3] in 0 to 1, for metrics.
    pub fn to_f32(&self) -> Vec<f32> {
        self.rgb.iter().map(|&b| f32::from(b) / 255.0).collect()
    }

    /// [height, width, 3] in -1 to 1, as the autoencoder's encoder takes it.
    pub fn to_vae(&self) -> Vec<f32> {
        self.rgb.iter().map(|&b| f32::from(b) / 127.5 - 1.0).collect()
    }

    /// The PNG file's bytes with text chunks (keyword, text) in the given order. A text within Latin-1
    /// becomes a `tEXt` chunk and any other an `iTXt` chunk, as Pillow and so AUTOMATIC1111 write them.
    pub fn encode_png(&self, text: &[(String, String)]) -> Result<Vec<u8>> {
        let failed = |e: png::EncodingError| Error::Runtime(format!("cannot encode the PNG: {e}"));
        let side = |n: usize| {
            u32::try_from(n).map_err(|_| {
                Error::Usage(format!("a picture of {} x {} is too large", self.width, self.height))
            })
        };
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, side(self.width)?, side(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (keyword, text) in text {
            if text.chars().all(|c| u32::from(c) < 256) {
                encoder.add_text_chunk(keyword.clone(), text.clone()).map_err(failed)?;
            } else {
                encoder.add_itxt_chunk(keyword.clone(), text.clone()).map_err(failed)?;
            }
        }
        let mut writer = encoder.write_header().map_err(failed)?;
        writer.write_image_data(&self.rgb).map_err(failed)?;
        writer.finish().map_err(failed)?;
        Ok(bytes)
    }

    /// Writes a PNG file with text chunks: to a temporary name beside the target, then renamed.
    pub fn write_png(&self, path: impl AsRef<Path>, text: &[(String, String)]) -> Result<()> {
        write_whole(path, &self.encode_png(text)?)
    }

    /// Decodes a PNG of any colour type to RGB; transparency is dropped. Returns its text chunks
    /// (keyword, text) as well. `name` is for messages.
    pub fn decode_png(bytes: &[u8], name: &str) -> Result<(Image, Vec<(String, String)>)> {
        let broken =
            |e: png::DecodingError| Error::Usage(format!("{name}: not a readable PNG: {e}"));
        let mut decoder = png::Decoder::new(std::io::Cursor::new(bytes));
        decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
        let header = decoder.read_header_info().map_err(broken)?;
        let (width, height) = (header.width, header.height);
        if u64::from(width) * u64::from(height) > MAX_PIXELS {
            return Err(Error::Usage(format!(
                "{name}: {width} x {height} pixels; at most {MAX_PIXELS} are read"
            )));
        }
        let mut reader = decoder.read_info().map_err(broken)?;
        let size = reader.output_buffer_size().ok_or_else(|| {
            Error::Usage(format!("{name}: {width} x {height} pixels do not fit in memory"))
        })?;
        let mut raw = vec![0; size];
        let frame = reader.next_frame(&mut raw).map_err(broken)?;
        raw.truncate(frame.buffer_size());
        // Text chunks may follow the picture.
        reader.finish().map_err(broken)?;
        let rgb = match frame.color_type {
            png::ColorType::Rgb => raw,
            png::ColorType::Rgba => raw.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
            png::ColorType::Grayscale => raw.iter().flat_map(|&g| [g; 3]).collect(),
            png::ColorType::GrayscaleAlpha => raw.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
            png::ColorType::Indexed => {
                return Err(Error::Usage(format!("{name}: the palette of the PNG is missing")));
            }
        };
        let image = Image::new(width as usize, height as usize, rgb)?;
        let text = text_chunks(reader.info()).map_err(broken)?;
        Ok((image, text))
    }
}

/// Reads a PNG file and its text chunks (keyword, text); see [`Image::decode_png`].
pub fn read_png(path: impl AsRef<Path>) -> Result<(Image, Vec<(String, String)>)> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    Image::decode_png(&bytes, &path.display().to_string())
}

/// The text of the first chunk with this keyword.
pub fn chunk<'a>(text: &'a [(String, String)], keyword: &str) -> Option<&'a str> {
    text.iter().find(|(k, _)| k == keyword).map(|(_, t)| t.as_str())
}

fn text_chunks(info: &png::Info<'_>) -> Result<Vec<(String, String)>, png::DecodingError> {
    let mut chunks: Vec<(String, String)> =
        info.uncompressed_latin1_text.iter().map(|c| (c.keyword.clone(), c.text.clone())).collect();
    for c in &info.compressed_latin1_text {
        chunks.push((c.keyword.clone(), c.get_text()?));
    }
    for c in &info.utf8_text {
        chunks.push((c.keyword.clone(), c.get_text()?));
    }
    Ok(chunks)
}

fn check_size(what: &str, width: usize, height: usize, held: usize) -> Result<()> {
    let expected = width.checked_mul(height).and_then(|n| n.checked_mul(3));
    if width == 0 || height == 0 || expected != Some(held) {
        return Err(Error::Runtime(format!(
            "{what} of {width} x {height} x 3 holds {held} values; they must agree and not be 0"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: usize, height: usize) -> Image {
        let rgb = (0..width * height * 3).map(|i| (i * 7 % 256) as u8).collect();
        Image::new(width, height, rgb).unwrap()
    }

    fn text(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, t)| (k.to_string(), t.to_string())).collect()
    }

    #[test]
    fn vae_values_become_bytes_as_in_diffusers() {
        // 0 is 127.5, which rounds to 128; what lies beyond the range is clamped.
        let values = [-1.0, 1.0, 0.0, -3.0, 2.0, 0.5, -0.25, -0.999, 0.999];
        let (image, broken) = Image::from_vae(&values, 3, 1).unwrap();
        assert_eq!(image.rgb, [0, 255, 128, 0, 255, 191, 96, 0, 255]);
        assert_eq!(broken, 0);
    }

    #[test]
    fn values_that_are_not_finite_are_counted() {
        let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 0.0, 0.0];
        let (image, broken) = Image::from_vae(&values, 1, 2).unwrap();
        assert_eq!((broken, image.rgb), (3, vec![0, 255, 0, 128, 128, 128]));
        assert!(Image::from_vae(&values, 2, 2).is_err());
    }

    #[test]
    fn png_round_trip_keeps_pixels_and_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a picture.png");
        let image = gradient(17, 5);
        let chunks = text(&[
            (PARAMETERS_CHUNK, "a café\nNegative prompt: blur\nSteps: 2, Seed: 1, Size: 17x5"),
            (INKNIB_CHUNK, "{\"prompt\":\"猫 🐱\"}"),
        ]);
        image.write_png(&path, &chunks).unwrap();
        assert_eq!(read_png(&path).unwrap(), (image.clone(), chunks.clone()));
        // Writing again replaces the file and leaves nothing else behind.
        image.write_png(&path, &[]).unwrap();
        assert_eq!(read_png(&path).unwrap(), (image, Vec::new()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(chunk(&chunks, INKNIB_CHUNK), Some("{\"prompt\":\"猫 🐱\"}"));
    }

    #[test]
    fn latin1_text_is_a_text_chunk_and_other_text_is_itxt() {
        let image = gradient(2, 2);
        let has = |bytes: &[u8], kind: &[u8; 4]| bytes.windows(4).any(|w| w == kind);
        let latin = image.encode_png(&text(&[("parameters", "café")])).unwrap();
        assert!(has(&latin, b"tEXt") && !has(&latin, b"iTXt"));
        let other = image.encode_png(&text(&[("parameters", "猫")])).unwrap();
        assert!(!has(&other, b"tEXt") && has(&other, b"iTXt"));
    }

    #[test]
    fn other_colour_types_become_rgb() {
        for (color, data, rgb) in [
            (png::ColorType::Grayscale, vec![7], [7, 7, 7]),
            (png::ColorType::GrayscaleAlpha, vec![7, 0], [7, 7, 7]),
            (png::ColorType::Rgba, vec![1, 2, 3, 0], [1, 2, 3]),
        ] {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
            encoder.set_color(color);
            encoder.set_depth(png::BitDepth::Eight);
            encoder.write_header().unwrap().write_image_data(&data).unwrap();
            assert_eq!(Image::decode_png(&bytes, "x").unwrap().0.rgb, rgb, "{color:?}");
        }
    }

    #[test]
    fn broken_files_are_errors_that_name_the_file() {
        let image = gradient(9, 9);
        let bytes = image.encode_png(&text(&[("parameters", "x")])).unwrap();
        for end in 0..bytes.len() - 12 {
            let error = Image::decode_png(&bytes[..end], "cut.png").unwrap_err();
            assert!(error.to_string().starts_with("cut.png: "), "{error}");
        }
        assert!(Image::decode_png(b"not a picture", "x").is_err());
        assert!(image.write_png("/nowhere/at/all.png", &[]).is_err());
    }

    #[test]
    fn floats_are_the_bytes() {
        let image = Image::new(1, 1, vec![0, 51, 255]).unwrap();
        assert_eq!(image.to_f32(), [0.0, 0.2, 1.0]);
        let (back, _) = Image::from_vae(&image.to_vae(), 1, 1).unwrap();
        assert_eq!(back, image);
    }
}
