//! What a run will take, and how it is made to fit: the plan that is made before anything is loaded.

use std::fmt;

use serde::Serialize;

use super::run::Passes;
use crate::gpu::mib;
use crate::{Error, Result};

/// Bytes that a run needs, measured on plans without weights. What is never needed at once is never added up:
/// the peak is `fixed`, the matrices and the largest of what comes before the steps, a step and decoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Needs {
    /// Matrices that can be streamed: UNet, ControlNets, text encoders.
    pub matrices: u64,
    /// What stays in any case: norms, biases, the VAE, tables, keys and values, latents.
    pub fixed: u64,
    /// The largest matrix, which a pool for streaming must hold.
    pub largest: u64,
    /// Before the first step: prompts, tables, keys and values, control pictures, with the weights that
    /// compute them alone; and without those, where they are streamed.
    pub prepare: u64,
    pub prepare_streamed: u64,
    /// The VAE's encoder with its weights for a picture to start from, whole and in tiles.
    pub encode: u64,
    pub encode_tiled: u64,
    /// Activations of a step, guidance joined and in two passes (the same without guidance).
    pub step_joined: u64,
    pub step_apart: u64,
    /// An AutoencoderTiny that decodes previews beside a step, whole and in tiles.
    pub preview: u64,
    pub preview_tiled: u64,
    /// Activations of the VAE for the whole picture and for a tile.
    pub decode: u64,
    pub decode_tiled: u64,
    /// Side of those tiles in latents.
    pub tile: usize,
}

impl Needs {
    /// Bytes of a step, with a preview after it.
    fn step(&self, passes: Passes, tiled: bool) -> u64 {
        let step = match passes {
            Passes::Joined => self.step_joined,
            Passes::Apart => self.step_apart,
        };
        step + if tiled { self.preview_tiled } else { self.preview }
    }
    fn decode(&self, tiled: bool) -> u64 {
        if tiled { self.decode_tiled } else { self.decode }
    }
    /// Bytes of what comes before the first step.
    fn before(&self, tiled: bool, streamed: bool) -> u64 {
        let prepare = if streamed { self.prepare_streamed } else { self.prepare };
        prepare.max(if tiled { self.encode_tiled } else { self.encode })
    }
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

/// What is not counted one by one: the device's own small buffers.
pub(super) const SLACK: u64 = 1 << 20;

impl MemoryPlan {
    fn of(
        needs: Needs,
        budget: Option<u64>,
        (tiled, passes): (bool, Passes),
        resident: Option<u64>,
    ) -> MemoryPlan {
        // Models whose latents are pixels have nothing to tile.
        let vae_tile = tiled.then_some(needs.tile).filter(|tile| *tile > 0);
        let mut plan = MemoryPlan { budget, needs, vae_tile, passes, resident, peak: 0 };
        plan.peak = plan.expected();
        plan
    }

    /// The least that these needs can be met with: everything saved that can be.
    pub fn least(needs: Needs) -> MemoryPlan {
        MemoryPlan::of(needs, None, (true, Passes::Apart), Some(0))
    }

    /// The first of these that fits the budget: everything at once; the VAE in tiles; guidance in two
    /// passes; weights streamed.
    ///
    /// # Errors
    /// `OutOfMemory` with the numbers where nothing fits.
    pub fn new(budget: Option<u64>, needs: Needs, tiles_asked: bool) -> Result<MemoryPlan> {
        let plan =
            |tiled, passes, resident| MemoryPlan::of(needs, budget, (tiled, passes), resident);
        // What cannot be at all has more bytes than this.
        let most = budget.unwrap_or(u64::MAX >> 3);
        let joined = plan(tiles_asked, Passes::Joined, None);
        let tiled = plan(true, Passes::Joined, None);
        let apart = plan(true, Passes::Apart, None);
        if let Some(fits) = [joined, tiled, apart].into_iter().find(|plan| plan.peak <= most) {
            return Ok(fits);
        }
        let least = MemoryPlan::least(needs);
        match most.checked_sub(least.peak) {
            Some(room) => Ok(plan(true, Passes::Apart, Some(room.min(needs.matrices)))),
            None => Err(Error::OutOfMemory(format!(
                "this picture needs at least {} with the VAE in tiles, guidance in two passes and all \
                 weights streamed ({} that stay, {} before the first step, {} for a step, {} for a tile, \
                 {} for the largest matrix); the budget is {}. Raise --vram-budget or take a smaller \
                 picture",
                mib(least.peak),
                mib(needs.fixed),
                mib(needs.before(true, true)),
                mib(needs.step(Passes::Apart, true)),
                mib(needs.decode_tiled),
                mib(needs.largest),
                mib(most)
            ))),
        }
    }

    /// The peak that these choices lead to.
    fn expected(&self) -> u64 {
        let (needs, tiled) = (&self.needs, self.vae_tile.is_some());
        let matrices = self.resident.map_or(needs.matrices, |bytes| bytes + needs.largest);
        let before = needs.before(tiled, self.resident.is_some());
        let most = before.max(needs.step(self.passes, tiled)).max(needs.decode(tiled));
        needs.fixed.saturating_add(matrices).saturating_add(most).saturating_add(SLACK)
    }

    /// The plan with guidance asked so, whatever would fit.
    pub fn with_passes(self, passes: Passes) -> MemoryPlan {
        let mut plan = MemoryPlan { passes, ..self };
        plan.peak = plan.expected();
        plan
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needs = &self.needs;
        let tiled = self.vae_tile.is_some();
        write!(
            f,
            "memory: at most {}: weights {}, before the first step {}, a step {}, decoding {}",
            mib(self.peak),
            mib(needs.fixed + needs.matrices),
            mib(needs.before(tiled, self.resident.is_some())),
            mib(needs.step(self.passes, tiled)),
            mib(needs.decode(tiled))
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
        prepare: 150 << 20,
        prepare_streamed: 10 << 20,
        encode: 700 << 20,
        encode_tiled: 60 << 20,
        step_joined: 199 << 20,
        step_apart: 115 << 20,
        preview: 30 << 20,
        preview_tiled: 8 << 20,
        decode: 900 << 20,
        decode_tiled: 80 << 20,
        tile: 64,
    };

    #[test]
    fn each_way_to_save_is_tried_in_its_turn() {
        let plan = |mib: u64| MemoryPlan::new(Some(mib << 20), NEEDS, false);
        let all = MemoryPlan::new(None, NEEDS, false).unwrap();
        assert!(all.vae_tile.is_none() && all.passes == Passes::Joined && all.resident.is_none());
        // 100 and 400 stay, 900 decode, 1 is spare.
        assert_eq!(all.peak, 1401 << 20);
        assert_eq!(plan(1401).unwrap(), MemoryPlan { budget: Some(1401 << 20), ..all });
        let tiled = plan(1400).unwrap();
        assert!(tiled.vae_tile == Some(64) && tiled.passes == Passes::Joined);
        // A step of 199 with a preview in tiles of 8.
        assert_eq!(tiled.peak, 708 << 20);
        let apart = plan(707).unwrap();
        assert!(apart.passes == Passes::Apart && apart.resident.is_none());
        // The weights of what is done before the steps, 150, are more than a step and its preview, 123.
        assert_eq!(apart.peak, 651 << 20);
        // Streamed, those weights are gone, and a pool of 20 comes in.
        let streamed = plan(400).unwrap();
        assert!(streamed.resident == Some(156 << 20) && streamed.peak == 400 << 20);
        assert!(streamed.to_string().contains("244.0 MiB of the weights streamed"), "{streamed}");
        let e = plan(243).unwrap_err();
        assert!(e.exit_code() == 5 && e.to_string().contains("at least 244.0 MiB"), "{e}");
        let joined = apart.with_passes(Passes::Joined);
        assert_eq!(joined, MemoryPlan { budget: apart.budget, ..tiled });
    }

    #[test]
    fn tiles_can_be_asked_for() {
        let plan = MemoryPlan::new(None, NEEDS, true).unwrap();
        assert!(plan.vae_tile == Some(64) && plan.peak == 708 << 20);
        assert!(plan.to_string().contains("in tiles"));
    }
}
