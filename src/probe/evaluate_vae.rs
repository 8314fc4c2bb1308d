//! The autoencoders of golden folders: both halves.

use super::evaluate::{Case, Named, to_nhwc, to_torch};
use crate::Result;
use crate::diffusion::tiling::{Coder, Pixels};
use crate::graph::{Graph, PlanOptions, Var};
use crate::nets::taesd::{TaesdConfig, TaesdDecoder, TaesdEncoder};
use crate::nets::vae::{Posterior, VaeConfig, VaeDecoder, VaeEncoder};
use crate::tensor::Tensor;

impl Case<'_> {
    pub(super) fn vae(&self) -> Result<Named> {
        let config = VaeConfig::read(self.dir)?;
        let decoder = VaeDecoder::load(&self.loader, &config)?;
        let mut all = self.half("z", "decoded", |z| decoder.forward(z))?;
        if self.find("z_tiled").is_some() {
            let whole = self.half("z_tiled", "decoded_full", |z| decoder.forward(z))?;
            // The taps of the golden file are those of the first run.
            all.extend(whole.into_iter().take(1));
            all.push(("decoded_tiled".into(), self.tiled(&config, &decoder)?));
        }
        if self.find("image").is_some() {
            let encoder = VaeEncoder::load(&self.loader, &config)?;
            let mut values = self.half("image", "moments", |image| encoder.forward(image))?;
            all.extend(moments(&values.remove(0).1)?);
            all.extend(values);
        }
        Ok(all)
    }

    pub(super) fn taesd(&self) -> Result<Named> {
        let config = TaesdConfig::read(self.dir)?;
        let decoder = TaesdDecoder::load(&self.loader, &config)?;
        let mut all = self.half("z", "decoded", |z| decoder.forward(z))?;
        if self.find("image").is_some() {
            let encoder = TaesdEncoder::load(&self.loader, &config)?;
            all.extend(self.half("image", "encoded", |image| encoder.forward(image))?);
        }
        Ok(all)
    }

    /// `z_tiled` in diffusers' tiles.
    fn tiled(&self, config: &VaeConfig, decoder: &VaeDecoder) -> Result<Tensor> {
        let (shape, values) = to_nhwc(self.input("z_tiled", 4)?);
        let mut coder = Coder::decoder(self.gpu, config.scale(), decoder);
        coder.act = self.act;
        coder.plan = PlanOptions { kernels: self.kernels, poison: true, ..Default::default() };
        let picture =
            coder.run(&Pixels { shape, values }, Some(config.tile_side()), &mut |_, _| ())?;
        Ok(to_torch(Tensor::f32(&picture.shape, picture.values)))
    }

    /// A net from a picture or latent to another: its output, then its taps.
    fn half(
        &self,
        input: &str,
        output: &str,
        net: impl for<'g> Fn(Var<'g>) -> Var<'g>,
    ) -> Result<Named> {
        let (shape, values) = to_nhwc(self.input(input, 4)?);
        let graph = Graph::new(self.act);
        let y = net(graph.input(input, shape, self.act));
        self.run(&graph, output, y, |plan| plan.set(input, &values))
    }
}

/// Mean and variance out of `[B, 2C, h, w]`.
fn moments(joined: &Tensor) -> Result<Named> {
    let (shape, values) = to_nhwc(joined);
    let Posterior { shape, mean, logvar } = Posterior::new(shape, &values)?;
    let named = |(name, values): (&str, Vec<f32>)| {
        (name.to_string(), to_torch(Tensor::f32(&shape, values)))
    };
    Ok([("mean", mean), ("logvar", logvar)].map(named).into())
}
