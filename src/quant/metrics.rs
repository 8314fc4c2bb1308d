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
    check_images(a, b, [height, width, channels])?;
    let (similarity, _) = similarity(&widened(a), &widened(b), [height, width, channels]);
    Ok(similarity)
}

/// Side of the window of [`ssim`].
const SIDE: usize = 11;

/// Weights of the scales of [`ms_ssim`], the finest first.
const SCALES: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];

/// Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003) of images as [`ssim`] takes them:
/// Π csⱼ^wⱼ · ssim_M^w_M, where scale j + 1 is the mean of 2×2 pixels of scale j, cs is the second factor
/// of SSIM, both are means over places and channels, and negative ones count as 0. Five scales need 176
/// pixels a side; smaller images have as many as fit, with the weights of these divided by their sum.
pub fn ms_ssim(a: &[f32], b: &[f32], width: usize, height: usize, channels: usize) -> Result<f64> {
    check_images(a, b, [height, width, channels])?;
    let least = width.min(height);
    let scales = (1..=SCALES.len()).take_while(|n| least >> (n - 1) >= SIDE).count();
    let total: f64 = SCALES[..scales].iter().sum();
    let (mut a, mut b, mut shape) = (widened(a), widened(b), [height, width, channels]);
    let mut product = 1.0;
    for (i, weight) in SCALES[..scales].iter().enumerate() {
        let (whole, contrast) = similarity(&a, &b, shape);
        let factor = if i + 1 == scales { whole } else { contrast };
        product *= factor.max(0.0).powf(weight / total);
        (a, b) = (halved(&a, shape), halved(&b, shape));
        shape = [shape[0] / 2, shape[1] / 2, channels];
    }
    Ok(product)
}

fn check_images(a: &[f32], b: &[f32], [height, width, channels]: [usize; 3]) -> Result<()> {
    let expected = width * height * channels;
    let right = a.len() == expected && b.len() == expected;
    if right && width >= SIDE && height >= SIDE && channels > 0 {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "SSIM needs two images of one size and at least {SIDE}x{SIDE} pixels; these are \
         {width}x{height}x{channels} with {} and {} values",
        a.len(),
        b.len()
    )))
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// `[h, w, c]` → `[h/2, w/2, c]`, means of 2×2; an odd last row or column is left out.
fn halved(values: &[f64], [h, w, c]: [usize; 3]) -> Vec<f64> {
    let at = |y: usize, x: usize, k: usize| values[(y * w + x) * c + k];
    let pixel = |i: usize| {
        let (y, x, k) = (i / (c * (w / 2)) * 2, i / c % (w / 2) * 2, i % c);
        (at(y, x, k) + at(y, x + 1, k) + at(y + 1, x, k) + at(y + 1, x + 1, k)) / 4.0
    };
    (0..(h / 2) * (w / 2) * c).map(pixel).collect()
}

/// SSIM and its factor of contrast and structure, means over places and channels.
fn similarity(a: &[f64], b: &[f64], [height, width, channels]: [usize; 3]) -> (f64, f64) {
    let mut window: [f64; SIDE] =
        std::array::from_fn(|i| (-(i as f64 - 5.0).powi(2) / (2.0 * 1.5 * 1.5)).exp());
    let total: f64 = window.iter().sum();
    window.iter_mut().for_each(|w| *w /= total);
    let (mut whole, mut contrast) = (0.0, 0.0);
    for channel in 0..channels {
        let plane = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            let at = (0..width * height).map(|i| i * channels + channel);
            let values: Vec<f64> = at.map(|i| f(a[i], b[i])).collect();
            blur(&values, width, height, &window)
        };
        let (ma, mb) = (plane(&|a, _| a), plane(&|_, b| b));
        let (aa, bb, ab) = (plane(&|a, _| a * a), plane(&|_, b| b * b), plane(&|a, b| a * b));
        let (c1, c2) = (0.01f64 * 0.01, 0.03f64 * 0.03);
        let places = ma.len() as f64;
        for i in 0..ma.len() {
            let (ma, mb) = (ma[i], mb[i]);
            let (va, vb, cov) = (aa[i] - ma * ma, bb[i] - mb * mb, ab[i] - ma * mb);
            let second = (2.0 * cov + c2) / (va + vb + c2);
            whole += (2.0 * ma * mb + c1) / (ma * ma + mb * mb + c1) * second / places;
            contrast += second / places;
        }
    }
    (whole / channels as f64, contrast / channels as f64)
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

/// Pearson's correlation of two lists of numbers: cov(a, b) / (σa·σb). NaN where one does not vary.
pub fn correlation(a: &[f32], b: &[f32]) -> f64 {
    let m = Moments::of(a, b);
    m.ab / (m.aa * m.bb).sqrt()
}

/// The least-squares line y ≈ k·x + b: `(k, b)`. NaN where x does not vary.
pub fn regression(y: &[f32], x: &[f32]) -> (f64, f64) {
    let m = Moments::of(y, x);
    let k = m.ab / m.bb;
    (k, m.a - k * m.b)
}

/// Excess kurtosis: the fourth central moment over the squared variance, less 3; 0 for a normal
/// distribution. NaN where nothing varies.
pub fn kurtosis(values: &[f32]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
    let moment =
        |power: i32| values.iter().map(|v| (f64::from(*v) - mean).powi(power)).sum::<f64>() / count;
    moment(4) / moment(2).powi(2) - 3.0
}

/// Means, and sums of the products of what deviates from them.
struct Moments {
    a: f64,
    b: f64,
    aa: f64,
    bb: f64,
    ab: f64,
}

impl Moments {
    fn of(a: &[f32], b: &[f32]) -> Moments {
        let count = a.len().min(b.len());
        let mean = |v: &[f32]| v[..count].iter().map(|v| f64::from(*v)).sum::<f64>() / count as f64;
        let mut m = Moments { a: mean(a), b: mean(b), aa: 0.0, bb: 0.0, ab: 0.0 };
        for (a, b) in a.iter().zip(b) {
            let (a, b) = (f64::from(*a) - m.a, f64::from(*b) - m.b);
            m.aa += a * a;
            m.bb += b * b;
            m.ab += a * b;
        }
        m
    }
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
    /// Width, height, SSIM, MS-SSIM with 1, 3 and 5 scales.
    const GOLDEN_SIMILARITY: [(usize, usize, f64, f64); 3] = [
        (20, 16, 0.9456708434575256, 0.9456708434575256),
        (64, 48, 0.9461580278020236, 0.9550345386098255),
        (176, 192, 0.946326697422676, 0.9704139922463716),
    ];
    /// Correlation, slope, intercept, excess kurtosis.
    const GOLDEN_STATISTICS: [f64; 4] =
        [0.4525563533896564, 0.5412453398675331, 0.46731685709326765, 0.07225448413960667];

    /// Two images without randomness, which tools/golden_metrics.py computes as well.
    fn images(width: usize, height: usize) -> [Vec<f32>; 2] {
        let at = |i: usize| (i / 3 / width, i / 3 % width, i % 3);
        let a = |i: usize| {
            let (y, x, c) = at(i);
            ((y * (7 + c) + x * 13) % 97) as f32 / 96.0
        };
        let b = |i: usize| {
            let (y, x, _) = at(i);
            0.8 * a(i) + 0.2 * ((y * 5 + x * 3) % 31) as f32 / 30.0
        };
        let count = width * height * 3;
        [(0..count).map(a).collect(), (0..count).map(b).collect()]
    }

    #[test]
    fn similarities_match_numpy() {
        // tools/golden_metrics.py: SSIM and MS-SSIM written with numpy's correlate, in f64. 1e-6: the
        // images are rounded to f32 here.
        for (width, height, single, multiple) in GOLDEN_SIMILARITY {
            let [a, b] = images(width, height);
            let of = |f: fn(&[f32], &[f32], usize, usize, usize) -> Result<f64>| {
                f(&b, &a, width, height, 3).unwrap()
            };
            assert!((of(ssim) - single).abs() < 1e-6, "{width}x{height}: {}", of(ssim));
            assert!((of(ms_ssim) - multiple).abs() < 1e-6, "{width}x{height}: {}", of(ms_ssim));
        }
        let [a, _] = images(64, 48);
        assert!((ms_ssim(&a, &a, 64, 48, 3).unwrap() - 1.0).abs() < 1e-9);
        assert!(ms_ssim(&a, &a, 64, 10, 3).is_err());
    }

    #[test]
    fn statistics_match_scipy() {
        // tools/golden_metrics.py: scipy.stats.pearsonr, linregress and kurtosis of these numbers. 1e-6:
        // the numbers are rounded to f32 here.
        let x: Vec<f32> = (0..50).map(|i| ((i * 37 % 53) as f32 / 53.0).powi(3)).collect();
        let y: Vec<f32> = (0..50).map(|i| ((i * 29 % 47) as f32 / 47.0) + 0.5 * x[i]).collect();
        let [r, k, b, tail] = GOLDEN_STATISTICS;
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert!(near(correlation(&y, &x), r) && near(correlation(&x, &y), r));
        let line = regression(&y, &x);
        assert!(near(line.0, k) && near(line.1, b), "{line:?}");
        assert!(near(kurtosis(&x), tail), "{}", kurtosis(&x));
        assert!(correlation(&x, &[1.0; 50]).is_nan() && kurtosis(&[2.0; 9]).is_nan());
    }
}
