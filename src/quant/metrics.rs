//! The measures that errors are reported in. All sums are in f64. In each, `a` is what is judged and
//! `b` what it is judged against; both have the same length (the shorter one counts otherwise).

use crate::{Error, Result};

fn squares(a: &[f32], b: &[f32]) -> (f64, f64) {
    let mut noise = 0.0;
    let mut signal = 0.0;
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        noise += (a - b) * (a - b);
        signal += b * b;
    }
    (noise, signal)
}

/// Normalised mean squared error: Σ(a−b)² / Σb². Zero when both are zero everywhere, infinite when
/// only `b` is.
pub fn nmse(a: &[f32], b: &[f32]) -> f64 {
    let (noise, signal) = squares(a, b);
    if noise == 0.0 { 0.0 } else { noise / signal }
}

/// Relative L2 error: ‖a−b‖ / ‖b‖ = √nmse.
pub fn rel_l2(a: &[f32], b: &[f32]) -> f64 {
    nmse(a, b).sqrt()
}

/// Signal to quantization noise ratio in dB: 10·log10(Σb² / Σ(a−b)²). Infinite when nothing differs.
pub fn sqnr_db(a: &[f32], b: &[f32]) -> f64 {
    -10.0 * nmse(a, b).log10()
}

/// Cosine of the angle between a and b: Σab / (‖a‖·‖b‖). 1 when both are zero, 0 when one is.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    match (aa == 0.0, bb == 0.0) {
        (true, true) => 1.0,
        (true, false) | (false, true) => 0.0,
        _ => ab / (aa.sqrt() * bb.sqrt()),
    }
}

/// Largest absolute difference: max|a−b|; NaN when any difference is NaN.
pub fn max_abs(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).fold(0.0, |max, (&a, &b)| {
        let d = (f64::from(a) - f64::from(b)).abs();
        if d > max || d.is_nan() || max.is_nan() { d + max * 0.0 } else { max }
    })
}

/// Peak signal to noise ratio in dB of images with values in [0, 1]: −10·log10(mean (a−b)²).
/// Infinite for equal images. A mean over several images is the mean of their dB.
pub fn psnr(a: &[f32], b: &[f32]) -> f64 {
    let (noise, _) = squares(a, b);
    -10.0 * (noise / a.len().min(b.len()).max(1) as f64).log10()
}

/// Structural similarity (Wang et al. 2004) of two images with values in [0, 1], interleaved
/// `[height, width, channels]`: Gaussian window of 11×11 with σ = 1.5, K1 = 0.01, K2 = 0.03, the
/// window wholly inside the image, per channel
/// `(2·μa·μb + C1)(2·σab + C2) / ((μa² + μb² + C1)(σa² + σb² + C2))`, C = K², averaged over places
/// and channels. An error for images under 11 pixels a side or of another size than said.
pub fn ssim(a: &[f32], b: &[f32], width: usize, height: usize, channels: usize) -> Result<f64> {
    const SIDE: usize = 11;
    let expected = width * height * channels;
    if width < SIDE || height < SIDE || channels == 0 || a.len() != expected || b.len() != expected
    {
        return Err(Error::Usage(format!(
            "SSIM needs two images of one size and at least {SIDE}x{SIDE} pixels; these are \
             {width}x{height}x{channels} with {} and {} values",
            a.len(),
            b.len()
        )));
    }
    let mut window: [f64; SIDE] =
        std::array::from_fn(|i| (-(i as f64 - 5.0).powi(2) / (2.0 * 1.5 * 1.5)).exp());
    let total: f64 = window.iter().sum();
    window.iter_mut().for_each(|w| *w /= total);
    let mut sum = 0.0;
    for channel in 0..channels {
        let plane = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            let values: Vec<f64> = (0..width * height)
                .map(|i| i * channels + channel)
                .map(|i| f(f64::from(a[i]), f64::from(b[i])))
                .collect();
            blur(&values, width, height, &window)
        };
        let (ma, mb) = (plane(&|a, _| a), plane(&|_, b| b));
        let (aa, bb, ab) = (plane(&|a, _| a * a), plane(&|_, b| b * b), plane(&|a, b| a * b));
        let (c1, c2) = (0.01f64 * 0.01, 0.03f64 * 0.03);
        let places = ma.len() as f64;
        for i in 0..ma.len() {
            let (ma, mb) = (ma[i], mb[i]);
            let (va, vb, cov) = (aa[i] - ma * ma, bb[i] - mb * mb, ab[i] - ma * mb);
            sum += (2.0 * ma * mb + c1) * (2.0 * cov + c2)
                / ((ma * ma + mb * mb + c1) * (va + vb + c2))
                / places;
        }
    }
    Ok(sum / channels as f64)
}

/// `values` `[height, width]` under a separable window, only where it lies wholly inside.
fn blur(values: &[f64], width: usize, height: usize, window: &[f64]) -> Vec<f64> {
    let inner = width - window.len() + 1;
    let rows: Vec<f64> = (0..height * inner)
        .map(|i| (i / inner * width, i % inner))
        .map(|(row, x)| window.iter().enumerate().map(|(k, w)| w * values[row + x + k]).sum())
        .collect();
    let column = |y: usize, x: usize| -> f64 {
        window.iter().enumerate().map(|(k, w)| w * rows[(y + k) * inner + x]).sum()
    };
    (0..(height - window.len() + 1) * inner).map(|i| column(i / inner, i % inner)).collect()
}

/// Natural logarithms of softmax(logits): x − max − ln Σ exp(x − max).
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x) - max - sum.ln()).collect()
}

/// Kullback-Leibler divergence of the distribution of `logits_q` (judged) from that of `logits_p`
/// (the reference), in nats, as llama.cpp's `perplexity --kl-divergence` takes it:
/// Σ p·(ln p − ln q) over the tokens with ln p > −16.
pub fn kl_divergence(logits_p: &[f32], logits_q: &[f32]) -> f64 {
    kl_divergence_of(&log_softmax(logits_p), &log_softmax(logits_q))
}

/// The same from the logarithms of both distributions.
pub fn kl_divergence_of(log_p: &[f64], log_q: &[f64]) -> f64 {
    let pairs = log_p.iter().zip(log_q).filter(|&(&p, _)| p > -16.0);
    pairs.map(|(&p, &q)| p.exp() * (p - q)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1e-12: sums of a few f64 terms.
    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn small_cases_by_hand() {
        let (a, b) = ([1.0, 2.0, 3.0], [1.0, 2.0, 5.0]);
        assert!(close(nmse(&a, &b), 4.0 / 30.0));
        assert!(close(rel_l2(&a, &b), (4.0f64 / 30.0).sqrt()));
        assert!(close(sqnr_db(&a, &b), 10.0 * (7.5f64).log10()));
        assert!(close(cosine(&a, &b), 20.0 / (14.0f64 * 30.0).sqrt()));
        assert_eq!(max_abs(&a, &b), 2.0);
        assert!(close(psnr(&a, &b), -10.0 * (4.0f64 / 3.0).log10()));
        assert_eq!(
            (nmse(&[0.0], &[0.0]), sqnr_db(&b, &b), psnr(&a, &a)),
            (0.0, f64::INFINITY, f64::INFINITY)
        );
        assert_eq!((cosine(&[0.0], &[0.0]), cosine(&[0.0], &[1.0])), (1.0, 0.0));
        assert!(max_abs(&[f32::NAN, 0.0], &[0.0, 1.0]).is_nan());
        assert!(max_abs(&[0.0, f32::NAN], &[7.0, 0.0]).is_nan());
    }

    #[test]
    fn kl_matches_the_sum() {
        let (p, q) = ([0.0f32, (3.0f32).ln()], [0.0f32, 0.0]);
        let expected = 0.25 * (0.25f64 / 0.5).ln() + 0.75 * (0.75f64 / 0.5).ln();
        // 1e-7: ln 3 was rounded to f32.
        assert!((kl_divergence(&p, &q) - expected).abs() < 1e-7);
        assert_eq!(kl_divergence(&p, &p), 0.0);
        assert!(
            kl_divergence(&[0.0, -30.0], &[0.0, -80.0]).abs() < 1e-12,
            "rare tokens do not count"
        );
    }

    #[test]
    fn ssim_knows_equality_and_constants() {
        let (w, h) = (13, 12);
        let a: Vec<f32> = (0..w * h * 3).map(|i| (i * 37 % 101) as f32 / 100.0).collect();
        assert!((ssim(&a, &a, w, h, 3).unwrap() - 1.0).abs() < 1e-9);
        // Two constant images have no variance: only the first factor remains.
        let (x, y) = (vec![0.25f32; w * h], vec![0.75f32; w * h]);
        let expected = (2.0 * 0.25 * 0.75 + 1e-4) / (0.0625 + 0.5625 + 1e-4);
        assert!((ssim(&x, &y, w, h, 1).unwrap() - expected).abs() < 1e-9);
        assert!(ssim(&x, &y, 10, 12, 1).is_err() && ssim(&x, &y[1..], w, h, 1).is_err());
        let noisy: Vec<f32> = a.iter().enumerate().map(|(i, v)| v + (i % 2) as f32 * 0.2).collect();
        assert!(ssim(&noisy, &a, w, h, 3).unwrap() < 0.97);
    }
}
