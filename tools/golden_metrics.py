"""Prints the constants of the tests of src/quant/metrics.rs and src/probe/spectrum.rs: the same measures with numpy
2.3 and scipy 1.17, on numbers that need no random generator.

    python tools/golden_metrics.py
"""

import numpy as np
from scipy import stats
from scipy.signal import correlate

SCALES = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])


def images(width, height):
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    a = (y * (7 + c) + x * 13) % 97 / 96
    return a, 0.8 * a + 0.2 * ((y * 5 + x * 3) % 31) / 30


def similarity(a, b):
    """SSIM and its factor of contrast and structure (Wang et al. 2004)."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    blur = lambda v: np.stack([correlate(v[..., i], window, "valid") for i in range(3)], -1)
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    contrast = (2 * cov + 0.03**2) / (va + vb + 0.03**2)
    luminance = (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
    return (luminance * contrast).mean(), contrast.mean()


def ms_ssim(a, b):
    scales = sum(min(a.shape[:2]) >> n >= 11 for n in range(5))
    weights = SCALES[:scales] / SCALES[:scales].sum()
    product = 1.0
    for i, weight in enumerate(weights):
        whole, contrast = similarity(a, b)
        product *= max(whole if i + 1 == scales else contrast, 0.0) ** weight
        halve = lambda v: v.reshape(v.shape[0] // 2, 2, v.shape[1] // 2, 2, 3).mean((1, 3))
        if i + 1 < scales:
            a, b = halve(a), halve(b)
    return product


def bands(values, count=5):
    """Energy of `[h, w]` by radial frequency: bands of equal width up to half a cycle a sample, the last with the corners."""
    h, w = values.shape
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None, :])
    energy = np.abs(np.fft.fft2(values)) ** 2 / (h * w)
    band = np.minimum((radius * 2 * count).astype(int), count - 1)
    return [energy[band == i].sum() for i in range(count)]


for width, height in [(20, 16), (64, 48), (176, 192)]:
    a, b = images(width, height)
    print(f"({width}, {height}, {float(similarity(b, a)[0])!r}, {float(ms_ssim(b, a))!r}),")
i = np.arange(50)
x = (i * 37 % 53 / 53) ** 3
y = i * 29 % 47 / 47 + 0.5 * x
line = stats.linregress(x, y)
print([float(v) for v in (stats.pearsonr(x, y)[0], line.slope, line.intercept, stats.kurtosis(x))])
rows, columns = np.meshgrid(np.arange(12), np.arange(10), indexing="ij")
print([float(v) for v in bands((rows * 7 + columns * 3) % 11 - 4.0)])
