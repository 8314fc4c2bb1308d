//! Only-step-i injection: the variant predicts at one step, the baseline at all others. What is left of
//! that one error at the end says when in a schedule errors matter, and whether they add up.

use serde::Serialize;

use super::compare_runs::{Forced, Runs, Trajectory};
use super::spectrum::{BANDS, energy_by_band};
use crate::diffusion::text_to_image::{Request, TextToImage};
use crate::gpu::interrupted;
use crate::quant::metrics::cosine;
use crate::{Error, Result};

/// What became of an error that was made at one step only; means over the pairs. All are relative to the
/// norm of the baseline's final latents.
#[derive(Clone, Debug, Serialize)]
pub struct Injected {
    pub step: usize,
    pub sigma: f64,
    /// gᵢ = ‖eᵢ‖ / ‖x‖: the error that is left in the final latents.
    pub gain: f64,
    /// The same by band of radial frequency, each relative to all of x: their squares add up to gain².
    pub bands: [f64; BANDS],
}

/// The injections of a run, and what they say of all steps together.
#[derive(Clone, Debug, Serialize)]
pub struct Injection {
    pub steps: Vec<Injected>,
    /// ‖e‖ / ‖x‖ where the variant predicts at every step.
    pub all: f64,
    /// Σ gᵢ: what all steps would come to if their errors pointed the same way.
    pub sum_of_gains: f64,
    /// √Σ gᵢ²: what they would come to if they were independent.
    pub root_of_squares: f64,
    /// ‖Σ eᵢ‖ / ‖x‖: what they come to if errors only add up. Near `all`, no error makes another grow.
    pub norm_of_sum: f64,
    /// Cosine of Σ eᵢ and e.
    pub cosine_of_sum: f64,
}

/// One pair's injections: eᵢ for every step, and e.
pub(super) struct Errors {
    /// `[evaluations]`
    one: Vec<Vec<f32>>,
    all: Vec<f32>,
    /// ‖x‖ of the baseline's final latents.
    norm: f64,
    shape: [usize; 4],
    sigmas: Vec<f64>,
}

/// An error for samplers that draw noise on the way: the draws would have to be the same in all runs.
pub(super) fn check(base: &Trajectory) -> Result<()> {
    match base.rows.iter().any(|row| row.needs_noise()) {
        true => Err(Error::Usage(
            "--inject needs a sampler that adds no noise on the way, for instance ddim, euler or \
             dpm++2m"
                .into(),
        )),
        false => Ok(()),
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

impl Runs<'_, '_> {
    /// Goes on with the baseline's weights from where the variant's single steps led. `free` are the
    /// variant's own final latents.
    pub(super) fn inject(
        &mut self,
        net: &TextToImage,
        (request, base): (&Request, &Trajectory),
        (forced, free): (&Forced, &[f32]),
        (turn, turns): (usize, usize),
    ) -> Result<Errors> {
        let last = base.latents.last().map_or(&[][..], Vec::as_slice);
        let error = |x: &[f32]| x.iter().zip(last).map(|(a, b)| a - b).collect::<Vec<f32>>();
        let mut run = net.prepare(request)?;
        let count = run.steps();
        let mut one = Vec::with_capacity(count);
        for (i, state) in forced.states.iter().enumerate() {
            (self.on_stage)("one step at a time", turn * count + i, turns * count);
            run.set_state(state)?;
            for j in i + 1..count {
                interrupted()?;
                run.step(j)?;
            }
            one.push(error(&run.latents()?));
        }
        let sigmas = base.rows.iter().map(|row| f64::from(row.sigma)).collect();
        Ok(Errors { one, all: error(free), norm: norm(last), shape: base.shape, sigmas })
    }
}

impl Injection {
    /// Means over the pairs, which have the same steps; `None` without any.
    pub(super) fn of(pairs: &[Errors]) -> Option<Injection> {
        let first = pairs.first()?;
        let mean =
            |f: &dyn Fn(&Errors) -> f64| pairs.iter().map(f).sum::<f64>() / pairs.len() as f64;
        let bands: Vec<Vec<[f64; BANDS]>> = pairs
            .iter()
            .map(|p| p.one.iter().map(|e| energy_by_band(e, p.shape)).collect())
            .collect();
        let band = |i: usize, b: usize| {
            let of = bands.iter().zip(pairs).map(|(bands, p)| bands[i][b].sqrt() / p.norm);
            of.sum::<f64>() / pairs.len() as f64
        };
        let step = |i: usize| Injected {
            step: i,
            sigma: first.sigmas[i],
            gain: mean(&|p| norm(&p.one[i]) / p.norm),
            bands: std::array::from_fn(|b| band(i, b)),
        };
        let gains = |p: &Errors| p.one.iter().map(|e| norm(e) / p.norm).collect::<Vec<f64>>();
        Some(Injection {
            steps: (0..first.one.len()).map(step).collect(),
            all: mean(&|p| norm(&p.all) / p.norm),
            sum_of_gains: mean(&|p| gains(p).iter().sum()),
            root_of_squares: mean(&|p| gains(p).iter().map(|g| g * g).sum::<f64>().sqrt()),
            norm_of_sum: mean(&|p| norm(&p.sum()) / p.norm),
            cosine_of_sum: mean(&|p| cosine(&p.sum(), &p.all)),
        })
    }
}

impl Errors {
    fn sum(&self) -> Vec<f32> {
        let mut sum = vec![0.0; self.all.len()];
        for error in &self.one {
            sum.iter_mut().zip(error).for_each(|(sum, e)| *sum += e);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_add_up() {
        let (one, two) = (vec![3.0, 0.0, 0.0, 0.0], vec![0.0, 4.0, 0.0, 0.0]);
        let errors = Errors {
            one: vec![one, two],
            all: vec![3.0, 4.0, 0.0, 0.0],
            norm: 10.0,
            shape: [1, 2, 2, 1],
            sigmas: vec![2.0, 1.0],
        };
        let i = Injection::of(&[errors]).unwrap();
        // 1e-12: sums of a few f64.
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(near(i.steps[0].gain, 0.3) && near(i.steps[1].gain, 0.4));
        assert!(near(i.all, 0.5) && near(i.sum_of_gains, 0.7) && near(i.root_of_squares, 0.5));
        assert!(near(i.norm_of_sum, 0.5) && near(i.cosine_of_sum, 1.0));
        for step in &i.steps {
            let squares: f64 = step.bands.iter().map(|b| b * b).sum();
            assert!(near(squares, step.gain * step.gain));
        }
        assert!(Injection::of(&[]).is_none());
    }
}
