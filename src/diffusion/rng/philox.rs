//! Random numbers in the order of torch's CUDA generator.
//!
//! Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (Philox 4x32-10); curand's
//! `curand_normal.h`; torch's `Distributions.cuh`, whose kernel gives every value of a tensor a subsequence of its
//! own, as long as the GPU has as many threads as the tensor has values (43,008 on a small card, 270,336 on a large
//! one: a latent of Stable Diffusion has 16,384). Beyond that torch's numbers depend on the GPU, and ours go on with
//! subsequences, as AUTOMATIC1111's and stable-diffusion.cpp's do.

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: usize = 10;

/// curand's constants: 2⁻³² and 2π · 2⁻³², in f32.
const UNIT: f32 = 2.328_306_4e-10;
const TURN: f32 = UNIT * std::f32::consts::TAU;

/// `torch.Generator("cuda").manual_seed(seed)`.
#[derive(Debug, Clone)]
pub struct Philox {
    key: [u32; 2],
    /// Calls so far: each advances every subsequence by one block of four words.
    calls: u32,
}

impl Philox {
    /// Seeds the generator; all 64 bits count.
    pub fn new(seed: u64) -> Philox {
        Philox { key: [seed as u32, (seed >> 32) as u32], calls: 0 }
    }

    /// `torch.randn(n, device="cuda")` of f32: n standard normal values, continuing the generator.
    ///
    /// The words are curand's; its fast sine on the GPU differs from the correct one by up to 4e-7, so the
    /// last places of the values do too.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        let calls = self.calls;
        self.calls = calls.wrapping_add(1);
        let value = |i: usize| {
            let [x, y, ..] = block([calls, 0, i as u32, (i as u64 >> 32) as u32], self.key);
            box_muller(x, y)
        };
        (0..n).map(value).collect()
    }
}

/// The first of the two values that curand makes of two words: the one with the sine.
fn box_muller(x: u32, y: u32) -> f32 {
    let u = x as f32 * UNIT + UNIT / 2.0;
    let angle = y as f32 * TURN + TURN / 2.0;
    let radius = (-2.0 * f64::from(u).ln()).sqrt();
    (radius * f64::from(angle).sin()) as f32
}

/// Four random words of a counter under a key.
fn block(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..ROUNDS {
        let left = u64::from(c0) * u64::from(MULTIPLIERS[0]);
        let right = u64::from(c2) * u64::from(MULTIPLIERS[1]);
        (c0, c1) = ((right >> 32) as u32 ^ c1 ^ k0, right as u32);
        (c2, c3) = ((left >> 32) as u32 ^ c3 ^ k1, left as u32);
        (k0, k1) = (k0.wrapping_add(WEYL[0]), k1.wrapping_add(WEYL[1]));
    }
    [c0, c1, c2, c3]
}

#[cfg(test)]
#[allow(clippy::excessive_precision)] // digits as they were printed
mod tests {
    use super::*;

    #[test]
    fn words_are_random123s() {
        // philox4x32-10 in the known answers that Random123 comes with: zeros, ones, digits of pi.
        for (counter, key, want) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(block(counter, key), want);
        }
    }

    #[test]
    fn values_are_those_that_are_known_of_cuda() {
        // `torch.randn((3, 4), device="cuda")` after `manual_seed(0)`, as AUTOMATIC1111's rng_philox.py states it. The
        // words behind it are certain (see above). This test has been held to no GPU of our own.
        let want = [
            -0.924_662_6,
            -0.425_344_15,
            -2.643_845_8,
            0.145_183_88,
            -0.120_866_47,
            -0.579_725_64,
            -0.622_851_2,
            -0.328_387_1,
            -1.074_542_3,
            -0.363_144_07,
            -1.671_050_7,
            2.265_505,
        ];
        let mut rng = Philox::new(0);
        for (got, want) in rng.randn(12).iter().zip(want) {
            // The angle is f32, up to 6.3: half a step of 4.8e-7 times a radius of up to 3; and the last place of
            // curand's own sine.
            assert!((got - want).abs() <= 2e-6, "{got} and {want}");
        }
        // The same formula in f64 (Python) for the second call, and for a seed beyond 32 bits.
        let close = |got: &[f32], want: [f32; 4]| {
            got.iter().zip(want).all(|(got, want)| (got - want).abs() <= 2e-6)
        };
        assert!(close(&rng.randn(4), [0.180_825_94, -0.552_262_75, 0.923_813_4, -0.734_970_45]));
        let mut far = Philox::new((1 << 40) + 7);
        assert!(close(&far.randn(4), [-0.479_049_94, -1.278_250_6, -0.241_566_41, -0.384_999_5]));
    }
}
