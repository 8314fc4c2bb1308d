//! [`Numbers`]: the values of a weight as a file holds them, read row by row.

use std::borrow::Cow;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Layout;

/// Floating-point numbers in the type they are stored in, so that only the rows at work are ever f32.
#[derive(Clone, Debug)]
pub enum Numbers<'a> {
    F32(Cow<'a, [f32]>),
    F16(Cow<'a, [f16]>),
    Bf16(Cow<'a, [bf16]>),
}

/// The order of a weight's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `[rows, taps, channels]`, as [`Packed`](super::Packed) has them.
    ChannelsLast,
    /// `[rows, channels, taps]`, PyTorch's `[Cout, Cin, kh, kw]`.
    TapsLast,
}

impl Numbers<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Numbers::F32(v) => v.len(),
            Numbers::F16(v) => v.len(),
            Numbers::Bf16(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number `index` as f32.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Numbers::F32(v) => v[index],
            Numbers::F16(v) => v[index].to_f32(),
            Numbers::Bf16(v) => v[index].to_f32(),
        }
    }

    /// The numbers from `first` on as f32, as many as `out` holds.
    pub fn read(&self, first: usize, out: &mut [f32]) {
        let range = first..first + out.len();
        match self {
            Numbers::F32(v) => out.copy_from_slice(&v[range]),
            Numbers::F16(v) => v[range].convert_to_f32_slice(out),
            Numbers::Bf16(v) => v[range].convert_to_f32_slice(out),
        }
    }

    /// All numbers as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.read(0, &mut out);
        out
    }
}

/// A weight's numbers and how they lie.
pub(super) struct Rows<'a> {
    pub numbers: &'a Numbers<'a>,
    pub layout: Layout,
    pub order: Order,
}

impl Rows<'_> {
    /// Row `row` as `[taps, channels]` in `out`; `scratch` is as long.
    pub fn read(&self, row: usize, scratch: &mut [f32], out: &mut [f32]) {
        let Layout { taps, channels, .. } = self.layout;
        let first = row * self.layout.row_len();
        if self.order == Order::ChannelsLast || taps == 1 {
            return self.numbers.read(first, out);
        }
        self.numbers.read(first, scratch);
        for (tap, out) in out.chunks_exact_mut(channels).enumerate() {
            let source = scratch[tap..].iter().step_by(taps);
            out.iter_mut().zip(source).for_each(|(out, &value)| *out = value);
        }
    }

    /// The channels of one tap from `channel` on, as many as `out` holds.
    pub fn read_channels(&self, row: usize, tap: usize, channel: usize, out: &mut [f32]) {
        let Layout { taps, channels, .. } = self.layout;
        let first = row * self.layout.row_len();
        match self.order {
            Order::ChannelsLast => self.numbers.read(first + tap * channels + channel, out),
            Order::TapsLast => out.iter_mut().enumerate().for_each(|(i, out)| {
                *out = self.numbers.get(first + (channel + i) * taps + tap);
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_are_gathered() {
        let layout = Layout { rows: 2, taps: 3, channels: 5 };
        let values: Vec<f32> = (0..layout.len()).map(|i| i as f32).collect();
        let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
        let brains: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
        let stored = [
            Numbers::F32(Cow::Owned(values.clone())),
            Numbers::F16(Cow::Owned(halves)),
            Numbers::Bf16(Cow::Owned(brains)),
        ];
        let (expected, _) = super::super::conv_to_rows(&values, [2, 5, 3, 1]);
        for numbers in &stored {
            assert_eq!(numbers.to_f32(), values);
            let rows = Rows { numbers, layout, order: Order::TapsLast };
            let (mut scratch, mut row) = ([0.0; 15], [0.0; 15]);
            rows.read(1, &mut scratch, &mut row);
            assert_eq!(row, expected[15..]);
            let mut part = [0.0; 3];
            rows.read_channels(1, 2, 1, &mut part);
            assert_eq!(part, expected[26..29]);
            let rows = Rows { numbers, layout, order: Order::ChannelsLast };
            rows.read(1, &mut scratch, &mut row);
            assert_eq!(row, values[15..]);
            rows.read_channels(1, 2, 1, &mut part);
            assert_eq!(part, values[26..29]);
        }
    }
}
