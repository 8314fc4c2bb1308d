//! What one run of a problem came to.

use serde::{Deserialize, Serialize};

use super::problem::Set;
use super::tier::Tier;

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Passed,
    Failed,
    /// Failed, and the list of known failures has it.
    Known,
    /// Passed, though the list of known failures has it: the list is to be mended.
    Unexpected,
    /// Not run: the adapter has no room for it.
    Skipped,
}

impl Status {
    pub fn mark(self) -> &'static str {
        match self {
            Status::Passed => "✓",
            Status::Failed => "✗",
            Status::Known => "known",
            Status::Unexpected => "✓, known to fail",
            Status::Skipped => "skipped",
        }
    }
}

/// One problem with one kind of kernels in one tier.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    pub op: String,
    pub spec: String,
    pub shape: String,
    pub set: Set,
    pub tier: Tier,
    /// `reference`, `fast`, or `hardware` for the fast ones of a real GPU on one that a CPU plays.
    pub kernels: String,
    pub activations: String,
    /// Σ(got − oracle)² / Σ oracle²; null in JSON where it is not finite.
    #[serde(deserialize_with = "or_nan")]
    pub nmse: f64,
    /// The largest error over the larger of the value there and the root mean square of all.
    #[serde(deserialize_with = "or_nan")]
    pub max_error: f64,
    /// The NMSE that is allowed.
    pub tolerance: f64,
    pub max_tolerance: f64,
    pub status: Status,
    /// With compilation.
    pub seconds: f64,
    /// Why it failed or was skipped, where numbers do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Reads null as NaN: JSON has no other word for it.
fn or_nan<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

impl Case {
    /// `matmul int4-g64-cubic 5x17x9, fast f32 in tier none`
    pub fn name(&self) -> String {
        let Case { op, spec, shape, kernels, activations, tier, .. } = self;
        format!("{op} {spec} {shape}, {kernels} {activations} in tier {}", tier.name())
    }
    /// What is wrong with it, in a few words.
    pub fn trouble(&self) -> String {
        self.why.clone().unwrap_or_else(|| {
            format!(
                "NMSE {:.1e} of {:.0e} allowed, largest error {:.1e} of {:.0e}",
                self.nmse, self.tolerance, self.max_error, self.max_tolerance
            )
        })
    }
}
