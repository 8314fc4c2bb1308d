//! Random numbers in the order of torch's CPU generator.
//!
//! Sources: Matsumoto and Nishimura's mt19937; torch's `CPUGeneratorImpl`, `DistributionsHelper.h` and
//! `normal_fill` of its CPU distribution kernels.

/// Words of mt19937's state, and the distance of its recurrence.
const WORDS: usize = 624;
const DISTANCE: usize = 397;

/// `torch.Generator().manual_seed(seed)` on the CPU.
#[derive(Debug, Clone)]
pub struct Mt19937 {
    state: Vec<u32>,
    next: usize,
    /// Second value of a scalar Box-Muller pair; torch's generator keeps it between calls.
    cached: Option<f64>,
}

impl Mt19937 {
    /// Seeds the generator; as in torch, only the low 32 bits of the seed count.
    pub fn new(seed: u64) -> Mt19937 {
        let mut state = vec![seed as u32; WORDS];
        for i in 1..WORDS {
            let before = state[i - 1];
            state[i] =
                1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Mt19937 { state, next: WORDS, cached: None }
    }

    /// Next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == WORDS {
            self.renew();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn renew(&mut self) {
        for i in 0..WORDS {
            let joined =
                (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
            let twist = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + DISTANCE) % WORDS] ^ (joined >> 1) ^ twist;
        }
        self.next = 0;
    }

    /// Uniform in [0, 1) with 24 bits, as `torch.rand` of f32.
    pub fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// Uniform in [0, 1) with 53 bits; the first word is the high one.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32());
        let bits = (high << 32) | u64::from(self.next_u32());
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// `torch.randn(n)` of f32: n standard normal values, continuing the generator.
    ///
    /// From 16 values on, torch fills everything with uniforms and turns each block of 16 into
    /// normals; a ragged end is drawn anew over the last 16. Fewer than 16 are drawn one by one in f64.
    /// Equal to torch up to the last places of its vectorised log, sin and cos.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < 16 {
            return (0..n).map(|_| self.normal_f64() as f32).collect();
        }
        let mut values: Vec<f32> = (0..n).map(|_| self.uniform_f32()).collect();
        values.chunks_exact_mut(16).for_each(box_muller_16);
        if !n.is_multiple_of(16) {
            let tail = &mut values[n - 16..];
            tail.iter_mut().for_each(|v| *v = self.uniform_f32());
            box_muller_16(tail);
        }
        values
    }

    fn normal_f64(&mut self) -> f64 {
        if let Some(value) = self.cached.take() {
            return value;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * u1).sin_cos();
        self.cached = Some(radius * sin);
        radius * cos
    }
}

/// The first 8 uniforms give radii, the other 8 angles; cosines come first, sines second.
fn box_muller_16(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(8);
    for (u1, u2) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * f64::from(1.0 - *u1).ln()).sqrt();
        // torch's vectorised path multiplies in f32; its rounding is worth up to 1e-6 of the result.
        let theta = f64::from(std::f32::consts::TAU * *u2);
        *u1 = (radius * theta.cos()) as f32;
        *u2 = (radius * theta.sin()) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_mt19937s() {
        // The 10000th word of mt19937 with the default seed, as the C++ standard states it.
        let mut rng = Mt19937::new(5489);
        let word = (0..10_000).map(|_| rng.next_u32()).last();
        assert_eq!(word, Some(4_123_659_995));
    }

    #[test]
    fn high_bits_of_the_seed_do_not_count() {
        assert_eq!(Mt19937::new(7).randn(20), Mt19937::new((1 << 40) + 7).randn(20));
    }
}
