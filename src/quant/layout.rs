//! How a weight matrix lies in memory: rows of taps of channels, channels fastest.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A weight matrix `[rows, taps, channels]`: `rows` outputs, `taps` places of a convolution window
/// in (ky, kx) order (1 for a linear layer), `channels` inputs, channels fastest. K = taps·channels.
///
/// In memory each tap is padded to [`Layout::tap_stride`] elements and each row to
/// [`Layout::row_stride`]; a quantization group is `g` channels of one tap and never straddles taps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Layout {
    pub rows: usize,
    pub taps: usize,
    pub channels: usize,
}

impl Layout {
    /// The layout of a linear layer's `[rows, channels]`.
    pub fn linear(rows: usize, channels: usize) -> Layout {
        Layout { rows, taps: 1, channels }
    }

    /// Elements of one tap in memory: channels rounded up to 8, so that a tap begins a new word of
    /// nibbles.
    pub fn tap_stride(&self) -> usize {
        self.channels.next_multiple_of(8)
    }

    /// Elements of one row in memory: all taps, rounded up to 32, which is 16 bytes of nibbles.
    pub fn row_stride(&self) -> usize {
        (self.taps * self.tap_stride()).next_multiple_of(32)
    }

    /// Scales of one tap for groups of `g` channels, the last group possibly short.
    pub fn groups_per_tap(&self, g: u32) -> usize {
        self.channels.div_ceil(g as usize)
    }

    /// Scales of one row for groups of `g` channels.
    pub fn row_groups(&self, g: u32) -> usize {
        self.taps * self.groups_per_tap(g)
    }

    /// K, the weights of one row without padding.
    pub fn row_len(&self) -> usize {
        self.taps * self.channels
    }

    /// Weights without padding.
    pub fn len(&self) -> usize {
        self.rows * self.row_len()
    }

    /// Whether there are no weights.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An error when a size overflows: 2^40 elements is far beyond any model and still leaves room
    /// for every product made from it.
    pub fn check(&self) -> Result<()> {
        let stride = self
            .channels
            .checked_next_multiple_of(8)
            .and_then(|n| n.checked_mul(self.taps))
            .and_then(|n| n.checked_next_multiple_of(32));
        match stride.and_then(|n| n.checked_mul(self.rows)) {
            Some(n) if n <= 1 << 40 => Ok(()),
            _ => Err(Error::Model(format!(
                "a weight of {} rows, {} taps and {} channels is too large",
                self.rows, self.taps, self.channels
            ))),
        }
    }
}

/// Reorders a convolution's weight from PyTorch's `[Cout, Cin, kh, kw]` to `[Cout, kh·kw, Cin]`.
/// `values` must hold the product of `shape`.
pub fn conv_to_rows(values: &[f32], shape: [usize; 4]) -> (Vec<f32>, Layout) {
    let [rows, channels, kh, kw] = shape;
    let layout = Layout { rows, taps: kh * kw, channels };
    debug_assert_eq!(values.len(), layout.len());
    if layout.taps == 1 || layout.is_empty() {
        return (values.to_vec(), layout);
    }
    let mut out = vec![0.0; values.len()];
    let rows = out.par_chunks_mut(layout.row_len()).zip(values.par_chunks(layout.row_len()));
    rows.for_each(|(out, row)| {
        for (tap, out) in out.chunks_exact_mut(channels).enumerate() {
            for (channel, out) in out.iter_mut().enumerate() {
                *out = row[channel * layout.taps + tap];
            }
        }
    });
    (out, layout)
}

/// The inverse of [`conv_to_rows`]: from `[rows, taps, channels]` to PyTorch's
/// `[Cout, Cin, taps]`, whose taps are (ky, kx).
pub fn rows_to_conv(values: &[f32], layout: Layout) -> Vec<f32> {
    debug_assert_eq!(values.len(), layout.len());
    // Exchanging the two inner axes back is the same operation with their sizes exchanged.
    conv_to_rows(values, [layout.rows, layout.taps, 1, layout.channels]).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_follow_the_design() {
        let l = Layout { rows: 5, taps: 9, channels: 20 };
        assert_eq!((l.tap_stride(), l.row_stride()), (24, 224));
        assert_eq!((l.groups_per_tap(64), l.row_groups(64), l.row_groups(8)), (1, 9, 27));
        assert_eq!((l.row_len(), l.len()), (180, 900));
        assert_eq!(Layout::linear(2, 320).row_stride(), 320);
        assert!(l.check().is_ok());
        assert!(Layout { rows: usize::MAX, taps: 2, channels: 8 }.check().is_err());
        assert!(Layout { rows: 1, taps: 1, channels: usize::MAX }.check().is_err());
    }

    #[test]
    fn convolutions_get_channels_last() {
        let (cout, cin, kh, kw) = (2, 3, 3, 2);
        let at = |o, c, y, x| ((o * cin + c) * kh + y) * kw + x;
        let values: Vec<f32> = (0..cout * cin * kh * kw).map(|i| i as f32).collect();
        let (rows, layout) = conv_to_rows(&values, [cout, cin, kh, kw]);
        assert_eq!(layout, Layout { rows: 2, taps: 6, channels: 3 });
        for (o, c, y, x) in [(0, 0, 0, 0), (0, 2, 1, 1), (1, 1, 2, 0), (1, 2, 2, 1)] {
            let there = (o * 6 + y * kw + x) * cin + c;
            assert_eq!(rows[there], values[at(o, c, y, x)]);
        }
        assert_eq!(rows_to_conv(&rows, layout), values);
    }
}
