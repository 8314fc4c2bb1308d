//! A diffusers `scheduler_config.json`: its fields, words and defaults, and the ᾱ of training.
//!
//! Conventions: `alphas_cumprod[t]` is the paper's ᾱ_t (DDPM, arXiv 2006.11239), `sigma` is the noise
//! level of Karras et al. (arXiv 2206.00364), `sigma = sqrt((1 - ᾱ) / ᾱ)`. Values are f64, but the
//! three quantities that diffusers keeps in f32 (β, ᾱ and the training sigmas) are rounded to f32 at
//! the same places: at t = 0, where 1 - ᾱ is 0.00085, that rounding alone moves sigma by 2e-5.

use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How β grows over the training steps (diffusers' `beta_schedule`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// β from `beta_start` to `beta_end` in equal steps.
    Linear,
    /// sqrt(β) in equal steps (latent diffusion).
    ScaledLinear,
    /// ᾱ = cos²: Nichol and Dhariwal, arXiv 2102.09672.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
}

/// Which training steps n inference steps visit: table 2 of arXiv 2305.08891.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    Leading,
    Trailing,
    Linspace,
    /// The first n of n + 1 fractional steps from the last training step to the first: k-diffusion under Stable
    /// Diffusion XL's own code, AUTOMATIC1111's "SGM Uniform". Trailing rounds nearly the same steps. No file of
    /// diffusers has this word.
    #[serde(skip)]
    SgmUniform,
}

/// What the network's answer stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise: x = sqrt(ᾱ) x0 + sqrt(1-ᾱ) out.
    Epsilon,
    /// The velocity of arXiv 2202.00512: out = sqrt(ᾱ) noise - sqrt(1-ᾱ) x0.
    VPrediction,
    /// The clean sample x0 itself.
    Sample,
}

/// Second-order rule of DPM-Solver++ (arXiv 2211.01095), or B(h) of UniPC (arXiv 2302.04867). A class takes another
/// class's word for its own default (midpoint, bh2), as diffusers does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    Midpoint,
    Heun,
    Bh1,
    Bh2,
    /// DEIS has this one only.
    Logrho,
}

/// Noise level after the last step: none, or that of training step 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    Zero,
    SigmaMin,
}

/// Which noise levels a run visits, as a user chooses it: how levels lie between the largest and the smallest, or
/// which training steps are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SigmaSpacing {
    /// The levels of the visited training steps, spaced as the file says.
    Discrete,
    /// Equal steps of sigma^(1/7): arXiv 2206.00364, equation 5.
    Karras,
    /// Equal steps of log sigma.
    Exponential,
    /// The levels of training steps, see [`TimestepSpacing`].
    Leading,
    Trailing,
    Linspace,
    SgmUniform,
}

impl SigmaSpacing {
    /// Every spacing, in the order of help.
    pub const ALL: [SigmaSpacing; 7] = [
        SigmaSpacing::Discrete,
        SigmaSpacing::Karras,
        SigmaSpacing::Exponential,
        SigmaSpacing::Trailing,
        SigmaSpacing::Leading,
        SigmaSpacing::Linspace,
        SigmaSpacing::SgmUniform,
    ];

    /// Names that `FromStr` takes, for messages and help.
    pub const NAMES: &str = "discrete (default, normal, uniform), karras, exponential, trailing, \
                             leading, linspace, sgm_uniform";

    /// AUTOMATIC1111's word for the `Schedule type` field; for what it lacks, a word of that kind.
    pub fn label(self) -> &'static str {
        match self {
            SigmaSpacing::Discrete => "Uniform",
            SigmaSpacing::Karras => "Karras",
            SigmaSpacing::Exponential => "Exponential",
            SigmaSpacing::Trailing => "Trailing",
            SigmaSpacing::Leading => "Leading",
            SigmaSpacing::Linspace => "Linspace",
            SigmaSpacing::SgmUniform => "SGM Uniform",
        }
    }

    /// The training steps that this spacing asks for, if it does.
    fn timesteps(self) -> Option<TimestepSpacing> {
        match self {
            SigmaSpacing::Trailing => Some(TimestepSpacing::Trailing),
            SigmaSpacing::Leading => Some(TimestepSpacing::Leading),
            SigmaSpacing::Linspace => Some(TimestepSpacing::Linspace),
            SigmaSpacing::SgmUniform => Some(TimestepSpacing::SgmUniform),
            _ => None,
        }
    }
}

impl FromStr for SigmaSpacing {
    type Err = Error;
    fn from_str(s: &str) -> Result<SigmaSpacing> {
        let word = s.trim().to_ascii_lowercase().replace([' ', '-'], "_");
        match word.as_str() {
            "discrete" | "default" | "normal" | "uniform" | "automatic" => {
                Ok(SigmaSpacing::Discrete)
            }
            "karras" => Ok(SigmaSpacing::Karras),
            "exponential" => Ok(SigmaSpacing::Exponential),
            "trailing" => Ok(SigmaSpacing::Trailing),
            "leading" => Ok(SigmaSpacing::Leading),
            "linspace" => Ok(SigmaSpacing::Linspace),
            "sgm_uniform" => Ok(SigmaSpacing::SgmUniform),
            _ => Err(Error::Usage(format!(
                "unknown sigma spacing {s:?}; valid names: {}",
                SigmaSpacing::NAMES
            ))),
        }
    }
}

/// A diffusers `scheduler_config.json`; fields, words and defaults are diffusers' own. Fields that no
/// sampler here reads are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScheduleConfig {
    /// The scheduler class that wrote the file.
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    pub num_train_timesteps: usize,
    pub beta_start: f64,
    pub beta_end: f64,
    pub beta_schedule: BetaSchedule,
    /// β given one by one; then the three fields above are not used.
    pub trained_betas: Option<Vec<f64>>,
    pub prediction_type: PredictionType,
    /// None: the default of the sampler's own class (leading for DDIM and DDPM, linspace for others).
    pub timestep_spacing: Option<TimestepSpacing>,
    pub steps_offset: usize,
    /// DDIM and PNDM: ᾱ after the last step is 1, else ᾱ_0. None: false if PNDM wrote the file, else true.
    pub set_alpha_to_one: Option<bool>,
    /// PNDM: begin with linear multistep. None: false if PNDM wrote the file, else true.
    pub skip_prk_steps: Option<bool>,
    /// Clamp x0 to ±`clip_sample_range`. None: true if DDIM or DDPM wrote the file, as in diffusers.
    pub clip_sample: Option<bool>,
    pub clip_sample_range: f64,
    pub thresholding: bool,
    /// DDPM: `fixed_small`, `fixed_small_log` (the same) or `fixed_large`.
    pub variance_type: Option<String>,
    pub rescale_betas_zero_snr: bool,
    pub use_karras_sigmas: bool,
    pub use_exponential_sigmas: bool,
    pub use_beta_sigmas: bool,
    pub use_lu_lambdas: bool,
    pub use_flow_sigmas: bool,
    /// Euler: bounds of the Karras and exponential spacings, instead of the visited levels.
    pub sigma_min: Option<f64>,
    pub sigma_max: Option<f64>,
    pub final_sigmas_type: FinalSigma,
    pub interpolation_type: String,
    pub timestep_type: String,
    /// DPM-Solver: `dpmsolver++` or `sde-dpmsolver++`.
    pub algorithm_type: Option<String>,
    pub solver_type: SolverType,
    /// DPM-Solver, DEIS, UniPC: 1 to 3. None: 2.
    pub solver_order: Option<usize>,
    /// UniPC.
    pub predict_x0: Option<bool>,
    /// UniPC: steps that are not corrected.
    pub disable_corrector: Vec<usize>,
    /// None: false if singlestep DPM-Solver wrote the file, else true.
    pub lower_order_final: Option<bool>,
    pub euler_at_final: bool,
    /// DPM-Solver: training steps with log(α/σ) below this are left out; None: none are.
    pub lambda_min_clipped: Option<f64>,
    /// LCM: steps of the distilled schedule, of which the visited ones are a subset.
    pub original_inference_steps: usize,
    pub timestep_scaling: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        ScheduleConfig {
            class_name: None,
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: None,
            steps_offset: 0,
            set_alpha_to_one: None,
            skip_prk_steps: None,
            clip_sample: None,
            clip_sample_range: 1.0,
            thresholding: false,
            variance_type: None,
            rescale_betas_zero_snr: false,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            use_lu_lambdas: false,
            use_flow_sigmas: false,
            sigma_min: None,
            sigma_max: None,
            final_sigmas_type: FinalSigma::Zero,
            interpolation_type: "linear".into(),
            timestep_type: "discrete".into(),
            algorithm_type: None,
            solver_type: SolverType::Midpoint,
            solver_order: None,
            predict_x0: None,
            disable_corrector: Vec::new(),
            lower_order_final: None,
            euler_at_final: false,
            lambda_min_clipped: None,
            original_inference_steps: 50,
            timestep_scaling: 10.0,
        }
    }
}

/// ᾱ of a zero-SNR schedule's last step where a finite sigma is needed: diffusers' 2^-24.
pub const SMALLEST_ALPHA_CUMPROD: f64 = 1.0 / (1 << 24) as f64;

/// More training steps than any model has; a larger number is a broken file, not a request for memory.
const MAX_TRAIN_TIMESTEPS: usize = 1_000_000;

impl ScheduleConfig {
    /// Stable Diffusion 1.x: scaled linear β from 0.00085 to 0.012, no clipping.
    pub fn stable_diffusion() -> ScheduleConfig {
        ScheduleConfig {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            steps_offset: 1,
            set_alpha_to_one: Some(false),
            skip_prk_steps: Some(true),
            clip_sample: Some(false),
            ..ScheduleConfig::default()
        }
    }

    /// Reads the text of a `scheduler_config.json`; `name` is the file's name for messages.
    ///
    /// diffusers writes `-Infinity` without quotes (`lambda_min_clipped`), which is no JSON; it and
    /// `null` count as absent.
    pub fn from_json(text: &str, name: &str) -> Result<ScheduleConfig> {
        let broken = |e: serde_json::Error| {
            Error::Model(format!("{name}: not a scheduler configuration of diffusers: {e}"))
        };
        let mut value: serde_json::Value =
            serde_json::from_str(&without_bare_infinity(text)).map_err(broken)?;
        let fields = value.as_object_mut().ok_or_else(|| {
            Error::Model(format!("{name}: not a scheduler configuration of diffusers: no object"))
        })?;
        fields.retain(|_, v| !v.is_null());
        let config: ScheduleConfig = serde_json::from_value(value).map_err(broken)?;
        config.check().map_err(|e| Error::Model(format!("{name}: {e}")))?;
        Ok(config)
    }

    /// Reads a `scheduler_config.json`.
    pub fn read(path: impl AsRef<Path>) -> Result<ScheduleConfig> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        ScheduleConfig::from_json(&text, &path.display().to_string())
    }

    /// The same schedule with the sigma spacing that the user asked for.
    pub fn with_sigma_spacing(mut self, spacing: SigmaSpacing) -> ScheduleConfig {
        self.use_karras_sigmas = spacing == SigmaSpacing::Karras;
        self.use_exponential_sigmas = spacing == SigmaSpacing::Exponential;
        self.use_beta_sigmas = false;
        self.use_lu_lambdas = false;
        self.timestep_spacing = spacing.timesteps().or(self.timestep_spacing);
        self
    }

    /// Whether ᾱ after the last step is 1.
    pub fn set_alpha_to_one(&self) -> bool {
        self.set_alpha_to_one.unwrap_or(!self.is_class("PNDMScheduler"))
    }

    /// Whether PNDM begins with linear multistep.
    pub fn skip_prk_steps(&self) -> bool {
        self.skip_prk_steps.unwrap_or(!self.is_class("PNDMScheduler"))
    }

    /// Whether a short run ends with steps of lower order.
    pub fn lower_order_final(&self) -> bool {
        self.lower_order_final.unwrap_or(!self.is_class("DPMSolverSinglestepScheduler"))
    }

    fn is_class(&self, name: &str) -> bool {
        self.class_name.as_deref() == Some(name)
    }

    /// The spacing that the file asks for.
    pub fn sigma_spacing(&self) -> SigmaSpacing {
        match (self.use_karras_sigmas, self.use_exponential_sigmas) {
            (true, _) => SigmaSpacing::Karras,
            (_, true) => SigmaSpacing::Exponential,
            _ => SigmaSpacing::Discrete,
        }
    }

    /// Bound of |x0| where the sampler honours `clip_sample` (DDIM, DDPM, LCM), else none.
    pub fn clip(&self) -> Option<f64> {
        let class = self.class_name.as_deref();
        let default = matches!(class, Some("DDIMScheduler" | "DDPMScheduler"));
        self.clip_sample.unwrap_or(default).then_some(self.clip_sample_range)
    }

    /// Refuses what no sampler here computes, with the field and the valid words.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Model(what));
        if self.num_train_timesteps == 0 || self.num_train_timesteps > MAX_TRAIN_TIMESTEPS {
            return refuse(format!(
                "num_train_timesteps is {}; valid: 1 to {MAX_TRAIN_TIMESTEPS}",
                self.num_train_timesteps
            ));
        }
        if let Some(betas) = &self.trained_betas
            && betas.len() != self.num_train_timesteps
        {
            return refuse(format!(
                "trained_betas holds {} values, num_train_timesteps is {}; they must be equal",
                betas.len(),
                self.num_train_timesteps
            ));
        }
        if self.clip_sample_range.is_nan() || self.clip_sample_range <= 0.0 {
            return refuse(format!(
                "clip_sample_range is {}; it must be above 0",
                self.clip_sample_range
            ));
        }
        for (field, set) in [
            ("use_beta_sigmas", self.use_beta_sigmas),
            ("use_lu_lambdas", self.use_lu_lambdas),
            ("use_flow_sigmas", self.use_flow_sigmas),
            ("thresholding", self.thresholding),
        ] {
            if set {
                return refuse(format!(
                    "{field} is true, which is not supported; set it to false, or choose a sigma \
                     spacing among {}",
                    SigmaSpacing::NAMES
                ));
            }
        }
        if self.use_karras_sigmas && self.use_exponential_sigmas {
            return refuse(
                "use_karras_sigmas and use_exponential_sigmas are both true; set one to false"
                    .into(),
            );
        }
        for (field, word, only) in [
            ("interpolation_type", &self.interpolation_type, "linear"),
            ("timestep_type", &self.timestep_type, "discrete"),
        ] {
            if word != only {
                return refuse(format!("{field} is {word:?}; the only one supported is {only:?}"));
            }
        }
        Ok(())
    }

    /// ᾱ per training step, [num_train_timesteps]; with `rescale_betas_zero_snr` the last one is 0.
    pub fn alphas_cumprod(&self) -> Vec<f64> {
        let betas = self.betas();
        let betas = if self.rescale_betas_zero_snr { zero_terminal_snr(&betas) } else { betas };
        cumulative_product(betas.iter().map(|b| 1.0 - b)).into_iter().map(f64::from).collect()
    }

    /// ᾱ and sigma per training step, with the floor that keeps sigma finite.
    pub(crate) fn training_sigmas(&self) -> (Vec<f64>, Vec<f64>) {
        let mut alphas = self.alphas_cumprod();
        if let (true, Some(last)) = (self.rescale_betas_zero_snr, alphas.last_mut()) {
            *last = SMALLEST_ALPHA_CUMPROD;
        }
        let sigmas = alphas.iter().map(|a| f64::from(((1.0 - a) / a).sqrt() as f32)).collect();
        (alphas, sigmas)
    }

    fn betas(&self) -> Vec<f32> {
        let n = self.num_train_timesteps;
        if let Some(betas) = &self.trained_betas {
            return betas.iter().map(|&b| b as f32).collect();
        }
        match self.beta_schedule {
            BetaSchedule::Linear => torch_linspace(self.beta_start, self.beta_end, n),
            BetaSchedule::ScaledLinear => {
                let roots = torch_linspace(self.beta_start.sqrt(), self.beta_end.sqrt(), n);
                roots.iter().map(|r| r * r).collect()
            }
            BetaSchedule::SquaredcosCapV2 => {
                let alpha_bar = |i: usize| {
                    let t = i as f64 / n as f64;
                    ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
                };
                (0..n).map(|i| (1.0 - alpha_bar(i + 1) / alpha_bar(i)).min(0.999) as f32).collect()
            }
        }
    }
}

/// `torch.linspace` in f32: from both ends towards the middle.
fn torch_linspace(start: f64, end: f64, n: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (n.max(2) - 1) as f32;
    let value = |i: usize| {
        if i < n / 2 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 }
    };
    if n == 1 { vec![start] } else { (0..n).map(value).collect() }
}

/// `torch.cumprod` of f32 values: accumulated in f64, stored in f32.
fn cumulative_product(values: impl Iterator<Item = f32>) -> Vec<f32> {
    values
        .scan(1.0f64, |product, v| {
            *product *= f64::from(v);
            Some(*product as f32)
        })
        .collect()
}

/// Algorithm 1 of arXiv 2305.08891: shifts and scales sqrt(ᾱ) so that the last one is 0.
fn zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let product = cumulative_product(betas.iter().map(|b| 1.0 - b));
    let roots: Vec<f32> = product.iter().map(|a| a.sqrt()).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return Vec::new() };
    let scale = first / (first - last);
    let bars: Vec<f32> = roots.iter().map(|r| (r - last) * scale).map(|r| r * r).collect();
    let ratio = |i: usize| if i == 0 { bars[0] } else { bars[i] / bars[i - 1] };
    (0..bars.len()).map(|i| 1.0 - ratio(i)).collect()
}

/// Replaces `Infinity`, `-Infinity` and `NaN` outside of strings by `null`.
fn without_bare_infinity(text: &str) -> String {
    let (mut result, mut rest, mut quoted) = (String::with_capacity(text.len()), text, false);
    while let Some(c) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|w| rest.starts_with(w));
        let taken = match (quoted, c, word) {
            (false, _, Some(word)) => {
                result.push_str("null");
                rest = &rest[word.len()..];
                continue;
            }
            // An escape takes the next character with it, so that \" does not end the string.
            (true, '\\', _) => c.len_utf8() + rest.chars().nth(1).map_or(0, char::len_utf8),
            _ => c.len_utf8(),
        };
        quoted ^= c == '"';
        result.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    result
}
