//! Random numbers in the order of torch's generators, so that a seed gives the picture that it gives elsewhere, on every
//! GPU: that of the CPU as in diffusers and ComfyUI, or that of CUDA as in AUTOMATIC1111 and stable-diffusion.cpp.

use std::str::FromStr;

mod mt19937;
mod philox;

pub use mt19937::Mt19937;
pub use philox::Philox;

use crate::{Error, Result};

/// Whose random numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RngKind {
    /// torch on the CPU: mt19937.
    #[default]
    Cpu,
    /// torch on CUDA: Philox 4x32-10.
    Cuda,
}

impl RngKind {
    /// The name that `--rng` takes.
    pub fn name(self) -> &'static str {
        match self {
            RngKind::Cpu => "cpu",
            RngKind::Cuda => "cuda",
        }
    }
}

impl FromStr for RngKind {
    type Err = Error;
    fn from_str(s: &str) -> Result<RngKind> {
        match s.trim().to_ascii_lowercase().as_str() {
            "cpu" => Ok(RngKind::Cpu),
            // AUTOMATIC1111's word for the GPU is nv.
            "cuda" | "gpu" | "nv" => Ok(RngKind::Cuda),
            _ => Err(Error::Usage(format!("unknown rng {s:?}; valid names: cpu, cuda"))),
        }
    }
}

/// One of torch's generators.
#[derive(Debug, Clone)]
pub enum Rng {
    Cpu(Mt19937),
    Cuda(Philox),
}

impl Rng {
    /// Seeds a generator. Of the CPU's only the low 32 bits count, as in torch.
    pub fn new(kind: RngKind, seed: u64) -> Rng {
        match kind {
            RngKind::Cpu => Rng::Cpu(Mt19937::new(seed)),
            RngKind::Cuda => Rng::Cuda(Philox::new(seed)),
        }
    }

    /// `torch.randn(n)` of f32: n standard normal values, continuing the generator.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        match self {
            Rng::Cpu(rng) => rng.randn(n),
            Rng::Cuda(rng) => rng.randn(n),
        }
    }

    /// `torch.randn(batch, channels, height, width)`, laid out [batch, height, width, channels]: the
    /// latents that diffusers would draw, in the order that the networks here take.
    pub fn randn_nhwc(
        &mut self,
        batch: usize,
        height: usize,
        width: usize,
        channels: usize,
    ) -> Vec<f32> {
        let planes = self.randn(batch * channels * height * width);
        let mut values = Vec::with_capacity(planes.len());
        for n in 0..batch {
            for pixel in 0..height * width {
                values.extend(
                    (0..channels).map(|c| planes[(n * channels + c) * height * width + pixel]),
                );
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nhwc_is_a_permutation_of_torchs_order() {
        for kind in [RngKind::Cpu, RngKind::Cuda] {
            let plain = Rng::new(kind, 3).randn(2 * 4 * 3 * 5);
            let nhwc = Rng::new(kind, 3).randn_nhwc(2, 3, 5, 4);
            for (n, c, y, x) in [(0, 0, 0, 0), (1, 3, 2, 4), (1, 0, 1, 2), (0, 2, 2, 0)] {
                let at = ((n * 4 + c) * 3 + y) * 5 + x;
                assert_eq!(nhwc[((n * 3 + y) * 5 + x) * 4 + c], plain[at]);
            }
            assert_eq!(kind.name().parse::<RngKind>().unwrap(), kind);
        }
    }

    #[test]
    fn normal_values_are_normal() {
        for kind in [RngKind::Cpu, RngKind::Cuda] {
            let values = Rng::new(kind, 5).randn(100_000);
            let moment = |p: i32| values.iter().map(|v| f64::from(v.powi(p))).sum::<f64>() / 1e5;
            // Five standard errors of 100,000 draws: √(Var xᵖ / n) is 0.0032, 0.0045 and 0.031.
            assert!(moment(1).abs() < 0.016 && (moment(2) - 1.0).abs() < 0.023, "{kind:?}");
            assert!((moment(4) - 3.0).abs() < 0.16, "{kind:?}");
        }
    }
}
