//! What a run looks like before it is finished: latents turned into small or whole pictures.

use super::autoencoder::Autoencoder;
use super::image::Image;
use super::run::Run;
use super::sampler::StepCoefficients;
use crate::Result;
use crate::gpu::Gpu;
use crate::graph::PlanOptions;

/// How latents become a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreviewKind {
    /// One colour for each latent, a linear map: costs nothing.
    #[default]
    Proj,
    /// An AutoencoderTiny.
    Tae,
}

/// Colours of the four channels and of zero, −1..1, for latents scaled as the sampler has them.
type Factors = [[f32; 3]; 5];

/// Least-squares fits of pictures to the latents of Stable Diffusion 1.x and 2.x and of SDXL, as ComfyUI
/// and others use them (0..1 there, −1..1 here).
const SD: Factors = [
    [0.3512, 0.2297, 0.3227],
    [0.3250, 0.4974, 0.2350],
    [-0.2829, 0.1762, 0.2721],
    [-0.2120, -0.2616, -0.7177],
    [0.0, 0.0, 0.0],
];
const SDXL: Factors = [
    [0.3651, 0.4232, 0.4341],
    [-0.2533, -0.0042, 0.1068],
    [0.1076, 0.1111, -0.0362],
    [-0.3165, -0.2492, -0.2188],
    [0.1084, -0.0175, -0.0011],
];

/// Makes previews of a run.
pub struct Previewer<'a> {
    kind: PreviewKind,
    factors: Factors,
    tiny: Option<&'a Autoencoder>,
}

impl<'a> Previewer<'a> {
    /// With the linear map of a model's VAE.
    pub fn proj(vae: &Autoencoder) -> Previewer<'a> {
        // SDXL's VAE is the only published one with this factor.
        let xl = vae.kl().is_some_and(|config| (config.scaling_factor - 0.13025).abs() < 1e-4);
        let factors = if xl { SDXL } else { SD };
        Previewer { kind: PreviewKind::Proj, factors, tiny: None }
    }
    /// With an AutoencoderTiny.
    pub fn tae(tiny: &'a Autoencoder) -> Previewer<'a> {
        Previewer { kind: PreviewKind::Tae, factors: SD, tiny: Some(tiny) }
    }
    pub fn kind(&self) -> PreviewKind {
        self.kind
    }

    /// The first picture of a run as it is after `row`. Waits for the device, so it is for every few
    /// steps.
    pub fn picture(
        &self,
        gpu: &Gpu,
        plan: &PlanOptions,
        run: &Run,
        row: &StepCoefficients,
    ) -> Result<Image> {
        let [_, h, w, c] = run.shape();
        if let Some(tiny) = self.tiny {
            let decoded = tiny.decode(gpu, plan, run.latent(), [1, h, w, c], None)?;
            return decoded.images.into_iter().next().ok_or_else(nothing);
        }
        let latents = run.latents()?;
        // Samplers that carry noise as Karras et al. do have latents that grow with it.
        let spread = row.sigma.hypot(1.0);
        let scale = if row.start[0] == 1.0 && row.sigma > 1.0 { 1.0 / spread } else { 1.0 };
        let scaled: Vec<f32> = latents[..h * w * c].iter().map(|v| v * scale).collect();
        self.project(&scaled, [h, w, c])
    }

    /// The linear map of latents `[h, w, c]` without noise: one pixel for each.
    pub fn project(&self, latents: &[f32], [h, w, c]: [usize; 3]) -> Result<Image> {
        let mut values = Vec::with_capacity(h * w * 3);
        for cell in latents.chunks_exact(c.max(1)) {
            for rgb in 0..3 {
                let channels = cell.iter().zip(&self.factors);
                let sum: f32 = channels.map(|(v, factor)| v * factor[rgb]).sum();
                values.push(sum + self.factors[4][rgb]);
            }
        }
        Ok(Image::from_vae(&values, w, h)?.0)
    }
}

fn nothing() -> crate::Error {
    crate::Error::Runtime("a preview without a picture".into())
}
