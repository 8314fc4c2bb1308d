//! What other programs call the methods.

use std::str::FromStr;

use super::Sampler;
use crate::diffusion::schedule::{Grid, ScheduleConfig, SigmaSpacing};
use crate::{Error, Result};

/// diffusers' classes.
const CLASSES: [(&str, Sampler); 16] = [
    ("DDIMScheduler", Sampler::Ddim { eta: 0.0 }),
    ("DDPMScheduler", Sampler::Ddpm),
    ("PNDMScheduler", Sampler::Plms),
    ("LMSDiscreteScheduler", Sampler::Lms),
    ("EulerDiscreteScheduler", Sampler::Euler),
    ("EulerAncestralDiscreteScheduler", Sampler::EulerAncestral),
    ("HeunDiscreteScheduler", Sampler::Heun),
    ("KDPM2DiscreteScheduler", Sampler::Dpm2),
    ("KDPM2AncestralDiscreteScheduler", Sampler::Dpm2Ancestral),
    ("DPMSolverSinglestepScheduler", Sampler::DpmPlusPlus2S),
    ("DPMSolverMultistepScheduler", Sampler::DpmPlusPlus2M),
    ("DPMSolverSDEScheduler", Sampler::DpmPlusPlusSde),
    ("UniPCMultistepScheduler", Sampler::UniPc),
    ("DEISMultistepScheduler", Sampler::Deis),
    ("LCMScheduler", Sampler::Lcm),
    ("TCDScheduler", Sampler::Tcd { eta: 0.3 }),
];

impl Sampler {
    /// stable-diffusion.cpp's name, as `--sampling-method` takes it; for what it lacks, a name of that kind.
    pub fn name(self) -> &'static str {
        match self {
            Sampler::Ddim { .. } => "ddim",
            Sampler::Ddpm => "ddpm",
            Sampler::Plms => "plms",
            Sampler::Lms => "lms",
            Sampler::Euler => "euler",
            Sampler::EulerAncestral => "euler_a",
            Sampler::Heun => "heun",
            Sampler::Dpm2 => "dpm2",
            Sampler::Dpm2Ancestral => "dpm2_a",
            Sampler::DpmPlusPlus2S => "dpm++2s",
            Sampler::DpmPlusPlus2M => "dpm++2m",
            Sampler::DpmPlusPlus2MSde => "dpm++2m_sde",
            Sampler::DpmPlusPlusSde => "dpm++_sde",
            Sampler::UniPc => "unipc",
            Sampler::Deis => "deis",
            Sampler::Lcm => "lcm",
            Sampler::Tcd { .. } => "tcd",
        }
    }

    /// AUTOMATIC1111's word for the `Sampler` field; for what it lacks, a word of that kind.
    pub fn label(self) -> &'static str {
        match self {
            Sampler::Ddim { .. } => "DDIM",
            Sampler::Ddpm => "DDPM",
            Sampler::Plms => "PLMS",
            Sampler::Lms => "LMS",
            Sampler::Euler => "Euler",
            Sampler::EulerAncestral => "Euler a",
            Sampler::Heun => "Heun",
            Sampler::Dpm2 => "DPM2",
            Sampler::Dpm2Ancestral => "DPM2 a",
            Sampler::DpmPlusPlus2S => "DPM++ 2S",
            Sampler::DpmPlusPlus2M => "DPM++ 2M",
            Sampler::DpmPlusPlus2MSde => "DPM++ 2M SDE",
            Sampler::DpmPlusPlusSde => "DPM++ SDE",
            Sampler::UniPc => "UniPC",
            Sampler::Deis => "DEIS",
            Sampler::Lcm => "LCM",
            Sampler::Tcd { .. } => "TCD",
        }
    }

    /// The method that the class in a model's `scheduler_config.json` stands for; Euler where the file names
    /// no class.
    ///
    /// # Errors
    /// `Model` for a class that is not here, with those that are.
    pub fn of_config(config: &ScheduleConfig) -> Result<Sampler> {
        let Some(class) = config.class_name.as_deref() else { return Ok(Sampler::Euler) };
        let Some((_, sampler)) = CLASSES.iter().find(|(name, _)| *name == class) else {
            return Err(Error::Model(format!(
                "the model's scheduler is {class:?}, which is not supported; choose a sampling \
                 method among {}, or name one of {} in scheduler_config.json",
                names(),
                CLASSES.map(|(name, _)| name).join(", ")
            )));
        };
        match (sampler, config.algorithm_type.as_deref()) {
            (Sampler::DpmPlusPlus2M, Some("sde-dpmsolver++")) => Ok(Sampler::DpmPlusPlus2MSde),
            // diffusers takes DEIS's word for DPM-Solver++.
            (
                Sampler::DpmPlusPlus2M | Sampler::DpmPlusPlus2S,
                None | Some("dpmsolver++" | "deis"),
            ) => Ok(*sampler),
            (Sampler::DpmPlusPlus2M | Sampler::DpmPlusPlus2S, Some(word)) => {
                Err(Error::Model(format!(
                    "algorithm_type of {class} is {word:?}; valid here: dpmsolver++, and \
                     sde-dpmsolver++ with DPMSolverMultistepScheduler; or choose a sampling method"
                )))
            }
            _ => Ok(*sampler),
        }
    }

    /// Parses a name that may carry its spacing, as AUTOMATIC1111 wrote them: `DPM++ 2M Karras`; or as
    /// stable-diffusion.cpp does: `ddim_trailing`.
    pub fn parse_with_spacing(s: &str) -> Result<(Sampler, Option<SigmaSpacing>)> {
        let lower = s.trim().to_ascii_lowercase().replace(['_', '-'], " ");
        for spacing in SigmaSpacing::ALL.into_iter().filter(|s| *s != SigmaSpacing::Discrete) {
            let word = format!(" {}", spacing.label().to_ascii_lowercase());
            if let Some(name) = lower.strip_suffix(&word) {
                return Ok((name.parse()?, Some(spacing)));
            }
        }
        Ok((s.parse()?, None))
    }

    /// Refuses a spacing that this sampler has no use for.
    pub fn check_spacing(self, spacing: SigmaSpacing) -> Result<()> {
        if self.takes_spacing(spacing) {
            return Ok(());
        }
        let able = Sampler::ALL.into_iter().filter(|s| s.takes_spacing(spacing));
        Err(Error::Usage(format!(
            "sampler {} visits fixed training steps and takes no {} spacing; use discrete, or one \
             of {}",
            self.name(),
            spacing.label(),
            able.map(Sampler::name).collect::<Vec<_>>().join(", ")
        )))
    }

    fn takes_spacing(self, spacing: SigmaSpacing) -> bool {
        match self.grid() {
            Grid::Lcm => spacing == SigmaSpacing::Discrete,
            Grid::Ddim => !matches!(spacing, SigmaSpacing::Karras | SigmaSpacing::Exponential),
            _ => true,
        }
    }
}

fn names() -> String {
    Sampler::ALL.map(Sampler::name).join(", ")
}

impl FromStr for Sampler {
    type Err = Error;
    /// Takes stable-diffusion.cpp's names, AUTOMATIC1111's, k-diffusion's and diffusers' class names.
    fn from_str(s: &str) -> Result<Sampler> {
        let plain = |s: &str| -> String {
            let lower = s.to_ascii_lowercase().replace("++", "pp");
            lower.chars().filter(|c| !matches!(c, ' ' | '_' | '-')).collect()
        };
        let given = plain(s);
        let class = CLASSES.iter().find(|(class, _)| {
            let class = class.to_ascii_lowercase();
            given == class || class.strip_suffix("scheduler") == Some(&given)
        });
        if let Some((_, sampler)) = class {
            return Ok(*sampler);
        }
        let given = given.strip_prefix("k").unwrap_or(&given);
        let alias = match given {
            "pndm" => Some(Sampler::Plms),
            "eulerancestral" => Some(Sampler::EulerAncestral),
            "dpm2ancestral" => Some(Sampler::Dpm2Ancestral),
            "dpmsolverpp" => Some(Sampler::DpmPlusPlus2M),
            "sdedpmsolverpp" => Some(Sampler::DpmPlusPlus2MSde),
            _ => None,
        };
        let named = || Sampler::ALL.into_iter().find(|s| plain(s.name()) == given);
        alias.or_else(named).ok_or_else(|| {
            Error::Usage(format!("unknown sampling method {s:?}; valid names: {}", names()))
        })
    }
}
