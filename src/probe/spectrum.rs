//! Where in frequency a picture's (or latent's) energy lies: low frequencies are its composition, high ones
//! its texture.

use rustfft::FftPlanner;
use rustfft::num_complex::Complex;

/// Bands of radial frequency.
pub const BANDS: usize = 5;

/// The edges of the bands in cycles a sample: equal widths up to the half, the corners of the plane
/// (0.5 to 0.707) in the last.
pub const EDGES: [f64; BANDS + 1] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5];

/// Energy by band of radial frequency √(fy² + fx²) of `[n, h, w, c]`, every plane by itself, summed over
/// pictures and channels. The sum over the bands is Σ x² (Parseval); the mean counts in the first band.
/// Zeros where the shape does not fit the values.
pub fn energy_by_band(values: &[f32], shape: [usize; 4]) -> [f64; BANDS] {
    let [n, h, w, c] = shape;
    let mut energy = [0.0; BANDS];
    if h * w == 0 || values.len() != n * h * w * c {
        return energy;
    }
    let mut planner = FftPlanner::<f64>::new();
    let (rows, columns) = (planner.plan_fft_forward(w), planner.plan_fft_forward(h));
    for plane in 0..n * c {
        let (picture, channel) = (plane / c, plane % c);
        let value = |i: usize| values[(picture * h * w + i) * c + channel];
        let mut grid: Vec<Complex<f64>> =
            (0..h * w).map(|i| Complex::new(f64::from(value(i)), 0.0)).collect();
        rows.process(&mut grid);
        let mut turned: Vec<Complex<f64>> = (0..h * w).map(|i| grid[i % h * w + i / h]).collect();
        columns.process(&mut turned);
        for (i, v) in turned.iter().enumerate() {
            energy[band(frequency(i % h, h).hypot(frequency(i / h, w)))] +=
                v.norm_sqr() / (h * w) as f64;
        }
    }
    energy
}

/// Relative error by band: ‖(a−b) in the band‖ / ‖b in the band‖ for `[n, h, w, c]`.
pub fn rel_l2_by_band(a: &[f32], b: &[f32], shape: [usize; 4]) -> [f64; BANDS] {
    let error: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let (noise, signal) = (energy_by_band(&error, shape), energy_by_band(b, shape));
    std::array::from_fn(|i| if noise[i] == 0.0 { 0.0 } else { (noise[i] / signal[i]).sqrt() })
}

/// Cycles a sample of coefficient `k` of `n`, without its sign.
fn frequency(k: usize, n: usize) -> f64 {
    k.min(n - k) as f64 / n as f64
}

fn band(radius: f64) -> usize {
    ((radius * 2.0 * BANDS as f64) as usize).min(BANDS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_lies_in_its_band() {
        let (h, w) = (20, 20);
        for (cycles, expected) in [(0, 0), (1, 0), (3, 1), (5, 2), (7, 3), (9, 4)] {
            let wave = |i: usize| {
                let phase = cycles as f64 * (i / 2 % w) as f64 / w as f64;
                if i.is_multiple_of(2) { (std::f64::consts::TAU * phase).cos() as f32 } else { 0.0 }
            };
            let values: Vec<f32> = (0..h * w * 2).map(wave).collect();
            let total: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
            let energy = energy_by_band(&values, [1, h, w, 2]);
            // 1e-4: the cosine is rounded to f32, which leaves some 1e-7 elsewhere.
            assert!((energy[expected] / total - 1.0).abs() < 1e-4, "{cycles}: {energy:?}");
        }
    }

    #[test]
    fn bands_match_numpy() {
        let (h, w) = (12, 10);
        let values: Vec<f32> =
            (0..h * w).map(|i| ((i / w * 7 + i % w * 3) % 11) as f32 - 4.0).collect();
        // tools/golden_metrics.py
        let expected = [
            114.35004295646786,
            12.341355343955533,
            140.86119786921606,
            152.86767001075512,
            894.5797338196055,
        ];
        let energy = energy_by_band(&values, [1, h, w, 1]);
        for (a, b) in energy.iter().zip(expected) {
            // 1e-9: both in f64, from integers.
            assert!((a - b).abs() < 1e-9 * b, "{energy:?}");
        }
        let total: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
        assert!((energy.iter().sum::<f64>() - total).abs() < 1e-9 * total);
        assert_eq!(energy_by_band(&values, [1, h, w, 2]), [0.0; BANDS]);
        let twice: Vec<f32> = values.iter().map(|v| v * 1.5).collect();
        for error in rel_l2_by_band(&twice, &values, [1, h, w, 1]) {
            assert!((error - 0.5).abs() < 1e-6);
        }
    }
}
