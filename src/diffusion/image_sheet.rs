//! Contact sheets: pictures in a grid with a label under each.

use std::convert::Infallible;

use embedded_graphics::Drawable;
use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::iso_8859_1::FONT_7X13;
use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
use embedded_graphics::text::{Alignment, Baseline, Text, TextStyleBuilder};

use super::image::Image;
use crate::{Error, Result};

/// Pixels around every picture.
const GAP: usize = 8;
/// Pixels of a letter, and of a line with the space above it.
const LETTER: usize = 7;
const LINE: usize = 17;

/// Pictures in rows of `columns`, black labels on white; a label that is wider than its picture is cut.
/// Letters are those of Latin-1.
///
/// # Errors
/// `Usage` without pictures or columns.
pub fn contact_sheet(pictures: &[(Image, String)], columns: usize) -> Result<Image> {
    if pictures.is_empty() || columns == 0 {
        return Err(Error::Usage("a contact sheet needs a picture and a column".into()));
    }
    let columns = columns.min(pictures.len());
    let most = |side: fn(&Image) -> usize| pictures.iter().map(|(p, _)| side(p)).max().unwrap_or(0);
    let (cell_width, cell_height) = (most(|p| p.width) + GAP, most(|p| p.height) + LINE + GAP);
    let width = columns * cell_width + GAP;
    let height = pictures.len().div_ceil(columns) * cell_height + GAP;
    let mut sheet = Image::new(width, height, vec![255; width * height * 3])?;
    for (i, (picture, label)) in pictures.iter().enumerate() {
        let (x, y) = (i % columns * cell_width + GAP, i / columns * cell_height + GAP);
        let left = x + (cell_width - GAP - picture.width) / 2;
        paste(&mut sheet, picture, left, y);
        let middle = x + (cell_width - GAP) / 2;
        let below = y + cell_height - GAP - LINE;
        write(&mut sheet, label, (cell_width - GAP) / LETTER, middle, below + LINE / 4);
    }
    Ok(sheet)
}

fn paste(sheet: &mut Image, picture: &Image, x: usize, y: usize) {
    for (row, pixels) in picture.rgb.chunks_exact(picture.width * 3).enumerate() {
        let start = ((y + row) * sheet.width + x) * 3;
        sheet.rgb[start..start + pixels.len()].copy_from_slice(pixels);
    }
}

fn write(sheet: &mut Image, label: &str, letters: usize, middle: usize, top: usize) {
    let label: String = label.chars().take(letters).collect();
    let place = Point::new(middle as i32, top as i32);
    let letter = MonoTextStyle::new(&FONT_7X13, Rgb888::BLACK);
    let style =
        TextStyleBuilder::new().alignment(Alignment::Center).baseline(Baseline::Top).build();
    // Writing into memory cannot fail.
    let Ok(_) = Text::with_text_style(&label, place, letter, style).draw(&mut Canvas(sheet));
}

struct Canvas<'a>(&'a mut Image);

impl OriginDimensions for Canvas<'_> {
    fn size(&self) -> Size {
        Size::new(self.0.width as u32, self.0.height as u32)
    }
}

impl DrawTarget for Canvas<'_> {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Infallible> {
        for Pixel(place, color) in pixels {
            let (Ok(x), Ok(y)) = (usize::try_from(place.x), usize::try_from(place.y)) else {
                continue;
            };
            if x < self.0.width && y < self.0.height {
                let start = (y * self.0.width + x) * 3;
                let rgb = [color.r(), color.g(), color.b()];
                self.0.rgb[start..start + 3].copy_from_slice(&rgb);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: usize, height: usize, byte: u8) -> Image {
        Image::new(width, height, vec![byte; width * height * 3]).unwrap()
    }

    fn at(image: &Image, x: usize, y: usize) -> u8 {
        image.rgb[(y * image.width + x) * 3]
    }

    #[test]
    fn pictures_lie_in_rows_with_labels_below() {
        let pictures = [
            (plain(40, 30, 10), "Euler a".to_string()),
            (plain(40, 30, 20), String::new()),
            (plain(20, 10, 30), "a label much wider than its picture".to_string()),
        ];
        let sheet = contact_sheet(&pictures, 2).unwrap();
        assert_eq!((sheet.width, sheet.height), (2 * 48 + 8, 2 * 55 + 8));
        assert_eq!((at(&sheet, 8, 8), at(&sheet, 47, 37), at(&sheet, 48, 8)), (10, 10, 255));
        assert_eq!(at(&sheet, 56, 8), 20);
        // Smaller pictures stand in the middle of their place.
        assert_eq!((at(&sheet, 17, 63), at(&sheet, 18, 63), at(&sheet, 38, 63)), (255, 30, 255));
        let black = |x: std::ops::Range<usize>, y: std::ops::Range<usize>| {
            let all = y.flat_map(|y| x.clone().map(move |x| (x, y)));
            all.filter(|(x, y)| at(&sheet, *x, *y) == 0).count()
        };
        assert!(black(8..48, 38..55) > 20, "the first label is missing");
        assert_eq!(black(56..104, 0..63), 0, "an empty label is not empty");
        assert!(black(8..48, 93..110) > 20, "the third label is missing");
        assert_eq!(black(49..104, 63..118), 0, "a label leaves its place");
    }

    #[test]
    fn nothing_is_no_sheet() {
        assert!(contact_sheet(&[], 2).is_err());
        assert!(contact_sheet(&[(plain(1, 1, 0), "x".into())], 0).is_err());
        assert!(contact_sheet(&[(plain(1, 1, 0), "é".into())], 9).is_ok());
    }
}
