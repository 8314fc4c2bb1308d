//! What a run will take, and how it is made to fit: the plan that is made before anything is loaded.

use std::fmt;

use serde::Serialize;

use super::run::Passes;
use crate::gpu::mib;
use crate::{Error, Result};

/// Bytes that a run needs, measured on plans without weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Needs {
    /// Matrices that can be streamed: text encoders, UNet, ControlNets.
    pub matrices: u64,
    /// What stays in any case: norms, biases, the VAE, tables, keys and values, latents.
    pub fixed: u64,
    /// The largest matrix, which a pool for streaming must hold.
    pub largest: u64,
    /// Activations of a step, guidance joined and in two passes (the same without guidance).
    pub step_joined: u64,
    pub step_apart: u64,
    /// Activations of the VAE for the whole picture and for a tile.
    pub decode: u64,
    pub decode_tiled: u64,
    /// Side of those tiles in latents.
    pub tile: usize,
}

/// How a run is made to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    pub budget: Option<u64>,
    pub needs: Needs,
    /// The picture is decoded in tiles of so many latents along a side.
    pub vae_tile: Option<usize>,
    #[serde(skip)]
    pub passes: Passes,
    /// Bytes of matrices that stay on the GPU; the others are streamed. None: all stay.
    pub resident: Option<u64>,
    /// What the run takes at most.
    pub peak: u64,
}

/// Rounding of buffers, parameters and read-backs.
const SLACK: u64 = 4 << 20;

impl MemoryPlan {
    /// The first of these that fits the budget: everything at once; the VAE in tiles; guidance in two
    /// passes; weights streamed.
    ///
    /// # Errors
    /// `OutOfMemory` with the numbers where nothing fits.
    pub fn new(budget: Option<u64>, needs: Needs, tiles_asked: bool) -> Result<MemoryPlan> {
        let plan = |vae_tiling: bool, passes: Passes, resident: Option<u64>| {
            let step = if passes == Passes::Joined { needs.step_joined } else { needs.step_apart };
            let decode = if vae_tiling { needs.decode_tiled } else { needs.decode };
            let matrices = resident.map_or(needs.matrices, |bytes| bytes + needs.largest);
            let peak = needs.fixed + matrices + step.max(decode) + SLACK;
            // Models whose latents are pixels have nothing to tile.
            let vae_tile = vae_tiling.then_some(needs.tile).filter(|tile| *tile > 0);
            MemoryPlan { budget, needs, vae_tile, passes, resident, peak }
        };
        let most = budget.unwrap_or(u64::MAX);
        let joined = plan(tiles_asked, Passes::Joined, None);
        let tiled = plan(true, Passes::Joined, None);
        let apart = plan(true, Passes::Apart, None);
        if let Some(fits) = [joined, tiled, apart].into_iter().find(|plan| plan.peak <= most) {
            return Ok(fits);
        }
        let least = plan(true, Passes::Apart, Some(0));
        match most.checked_sub(least.peak) {
            Some(room) => Ok(plan(true, Passes::Apart, Some(room.min(needs.matrices)))),
            None => Err(Error::OutOfMemory(format!(
                "this picture needs at least {} with the VAE in tiles, guidance in two passes and all \
                 weights streamed ({} that stay, {} for a step, {} for a tile, {} for the largest \
                 matrix); the budget is {}. Raise --vram-budget or take a smaller picture",
                mib(least.peak),
                mib(needs.fixed),
                mib(needs.step_apart),
                mib(needs.decode_tiled),
                mib(needs.largest),
                mib(most)
            ))),
        }
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needs = &self.needs;
        let step = match self.passes {
            Passes::Joined => needs.step_joined,
            Passes::Apart => needs.step_apart,
        };
        let decode = if self.vae_tile.is_some() { needs.decode_tiled } else { needs.decode };
        write!(
            f,
            "memory: at most {}: weights {}, a step {}, decoding {}",
            mib(self.peak),
            mib(needs.fixed + needs.matrices),
            mib(step),
            mib(decode)
        )?;
        if let Some(tile) = self.vae_tile {
            write!(f, " (in tiles of {tile} latents)")?;
        }
        if self.passes == Passes::Apart {
            write!(f, "; guidance in two passes")?;
        }
        if let Some(resident) = self.resident {
            let streamed = needs.matrices.saturating_sub(resident);
            write!(f, "; {} of the weights streamed", mib(streamed))?;
        }
        match self.budget {
            Some(budget) => write!(f, "; the budget is {}", mib(budget)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: Needs = Needs {
        matrices: 400 << 20,
        fixed: 100 << 20,
        largest: 20 << 20,
        step_joined: 200 << 20,
        step_apart: 120 << 20,
        decode: 900 << 20,
        decode_tiled: 80 << 20,
        tile: 64,
    };

    #[test]
    fn each_way_to_save_is_tried_in_its_turn() {
        let plan = |mib: u64| MemoryPlan::new(Some(mib << 20), NEEDS, false);
        let all = MemoryPlan::new(None, NEEDS, false).unwrap();
        assert!(all.vae_tile.is_none() && all.passes == Passes::Joined && all.resident.is_none());
        assert_eq!(all.peak, 1404 << 20);
        assert_eq!(plan(1404).unwrap(), MemoryPlan { budget: Some(1404 << 20), ..all });
        let tiled = plan(1403).unwrap();
        assert!(
            tiled.vae_tile == Some(64) && tiled.passes == Passes::Joined && tiled.peak == 704 << 20
        );
        let apart = plan(703).unwrap();
        assert!(apart.passes == Passes::Apart && apart.resident.is_none());
        assert_eq!(apart.peak, 624 << 20);
        let streamed = plan(400).unwrap();
        assert!(streamed.resident == Some(156 << 20) && streamed.peak == 400 << 20);
        assert!(streamed.to_string().contains("244.0 MiB of the weights streamed"), "{streamed}");
        let e = plan(243).unwrap_err();
        assert!(e.exit_code() == 5 && e.to_string().contains("at least 244.0 MiB"), "{e}");
    }

    #[test]
    fn tiles_can_be_asked_for() {
        let plan = MemoryPlan::new(None, NEEDS, true).unwrap();
        assert!(plan.vae_tile == Some(64) && plan.peak == 704 << 20);
        assert!(plan.to_string().contains("in tiles"));
    }
}
