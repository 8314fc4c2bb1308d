//! Rotary positions as configurations describe them: which channels turn, and how fast (transformers'
//! `modeling_rope_utils.py`, whose spellings of version 4 and 5 are both read).

use std::f64::consts::TAU;

use super::config::Fields;
use crate::Result;
use crate::gpu::Gpu;
use crate::graph::Vector;
use crate::ops::rope::Rotary;

/// Frequencies in radians per position, and the factor of sine and cosine.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RotaryConfig {
    /// `[R/2]` of the R channels of a head that turn.
    inv_freq: Vec<f32>,
    /// LongRoPE has other frequencies for texts longer than so many tokens.
    long: Option<(usize, Vec<f32>)>,
    scale: f32,
}

/// What a net fixes of its rotary positions, and what its configuration may leave out.
#[derive(Clone, Copy)]
pub(super) struct RotaryRules {
    pub head_dim: usize,
    pub theta: f64,
    /// Share of a head's channels that turn, unless the configuration says; `None` where the
    /// architecture turns all.
    pub partial: Option<f64>,
    /// Tokens the model was made for.
    pub positions: usize,
}

impl RotaryConfig {
    /// Reads `rope_parameters` or `rope_scaling` with the fields beside them. `kind` picks one of
    /// several by the kind of layer ("full_attention", "sliding_attention").
    pub fn read(f: Fields<'_>, kind: &str, rules: RotaryRules) -> Result<RotaryConfig> {
        let whole = f.object("rope_scaling").or(f.object("rope_parameters"));
        let own = whole.and_then(|p| p.object(kind)).or(whole);
        let empty = serde_json::json!({});
        let own = own.unwrap_or(Fields { json: &empty, source: f.source });
        let number = |name: &str| match own.opt_number(name)? {
            Some(n) => Ok(Some(n)),
            None => f.opt_number(name),
        };
        let theta = number("rope_theta")?.unwrap_or(rules.theta);
        let partial = number("partial_rotary_factor")?.unwrap_or(rules.partial.unwrap_or(1.0));
        let turning = (rules.head_dim as f64 * partial) as usize;
        let fits = (2..=rules.head_dim).contains(&turning) && turning.is_multiple_of(2);
        if !fits || (rules.partial.is_none() && turning != rules.head_dim) || theta <= 0.0 {
            return Err(f.wrong(format!(
                "`partial_rotary_factor` {partial} of heads of {} channels with `rope_theta` {theta} is \
                 not supported",
                rules.head_dim
            )));
        }
        let original = match f.opt_number("original_max_position_embeddings")? {
            Some(n) => n,
            None => own.number_or("original_max_position_embeddings", rules.positions as f64)?,
        };
        let plain: Vec<f64> =
            (0..turning / 2).map(|i| theta.powf(-2.0 * i as f64 / turning as f64)).collect();
        let scaling = Scaling { own, theta, original, positions: rules.positions as f64 };
        scaling.apply(&plain)
    }

    /// As it lies on the GPU.
    pub fn upload(&self, gpu: &Gpu) -> Result<Rope> {
        let rotary = |inv_freq: &[f32]| -> Result<Rotary> {
            Ok(Rotary { inv_freq: Vector::upload(gpu, "inv_freq", inv_freq)?, scale: self.scale })
        };
        let long = self.long.as_ref();
        let long = long.map(|(from, f)| Ok((*from, rotary(f)?))).transpose()?;
        Ok(Rope { short: rotary(&self.inv_freq)?, long })
    }
}

/// The frequencies on the GPU.
pub(super) struct Rope {
    short: Rotary,
    long: Option<(usize, Rotary)>,
}

impl Rope {
    /// The frequencies for texts of up to `context` tokens. transformers changes to the long ones when
    /// a text outgrows the original context and leaves the keys that it has cached as they were; here
    /// the size of the cache decides (as in llama.cpp and vLLM), so that a text means the same however
    /// it was cut into pieces.
    pub fn for_context(&self, context: usize) -> &Rotary {
        match &self.long {
            Some((original, long)) if context > *original => long,
            _ => &self.short,
        }
    }
}

/// A table `rope_parameters` and what is needed to apply it.
struct Scaling<'a> {
    own: Fields<'a>,
    theta: f64,
    /// Tokens that the model was first trained with, and those it was made for in the end.
    original: f64,
    positions: f64,
}

impl Scaling<'_> {
    fn need(&self, kind: &str, name: &str) -> Result<f64> {
        let value = self.own.opt_number(name)?.filter(|v| *v > 0.0);
        value.ok_or_else(|| {
            self.own.wrong(format!("`{name}` is needed for rope_type {kind} and must be positive"))
        })
    }

    fn apply(&self, plain: &[f64]) -> Result<RotaryConfig> {
        let kind = match self.own.text("rope_type")? {
            Some(kind) => kind,
            None => self.own.text("type")?.unwrap_or("default"),
        };
        let long_lists = self.own.get("long_factor").is_some();
        let done = |inv_freq: Vec<f64>, scale: f64| RotaryConfig {
            inv_freq: inv_freq.into_iter().map(|f| f as f32).collect(),
            long: None,
            scale: scale as f32,
        };
        match kind {
            "default" => Ok(done(plain.to_vec(), 1.0)),
            "linear" => {
                let factor = self.need(kind, "factor")?;
                Ok(done(plain.iter().map(|f| f / factor).collect(), 1.0))
            }
            "llama3" => {
                let factor = self.need(kind, "factor")?;
                let low = self.need(kind, "low_freq_factor")?;
                let high = self.need(kind, "high_freq_factor")?;
                let scale = |f: &f64| llama3(*f, factor, low, high, self.original);
                Ok(done(plain.iter().map(scale).collect(), 1.0))
            }
            // Early files of Phi-3 say `su`, or `yarn` with LongRoPE's lists.
            "longrope" | "su" => self.longrope(kind, plain),
            "yarn" if long_lists => self.longrope(kind, plain),
            "yarn" => self.yarn(plain).map(|(inv_freq, scale)| done(inv_freq, scale)),
            other => Err(self.own.wrong(format!(
                "`rope_type` is \"{other}\"; supported are default, linear, llama3, yarn and longrope"
            ))),
        }
    }

    /// How often the context was made longer.
    fn factor(&self) -> Result<f64> {
        self.own.number_or("factor", self.positions / self.original)
    }

    /// LongRoPE (Ding et al. 2024): a factor for each frequency, two lists of them.
    fn longrope(&self, kind: &str, plain: &[f64]) -> Result<RotaryConfig> {
        let factor = self.factor()?;
        let usual = match factor > 1.0 && self.original > 1.0 {
            true => (1.0 + factor.ln() / self.original.ln()).sqrt(),
            false => 1.0,
        };
        let list = |name: &str| -> Result<Vec<f32>> {
            let factors = self.own.numbers(name)?.unwrap_or_default();
            if factors.len() != plain.len() || factors.iter().any(|f| *f <= 0.0) {
                return Err(self.own.wrong(format!(
                    "`{name}` for rope_type {kind} has {} numbers, needed are {} above 0",
                    factors.len(),
                    plain.len()
                )));
            }
            Ok(plain.iter().zip(factors).map(|(f, by)| (f / by) as f32).collect())
        };
        Ok(RotaryConfig {
            inv_freq: list("short_factor")?,
            long: Some((self.original as usize, list("long_factor")?)),
            scale: self.own.number_or("attention_factor", usual)? as f32,
        })
    }

    /// YaRN (Peng et al. 2023): fast frequencies stay, slow ones are divided, between them a ramp over
    /// the number of the channel.
    fn yarn(&self, plain: &[f64]) -> Result<(Vec<f64>, f64)> {
        let factor = self.factor()?;
        let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let both = [self.own.opt_number("mscale")?, self.own.opt_number("mscale_all_dim")?];
        let usual = match both {
            [Some(m), Some(all)] if m != 0.0 && all != 0.0 => mscale(m) / mscale(all),
            _ => mscale(1.0),
        };
        let dim = 2.0 * plain.len() as f64;
        let channel =
            |turns: f64| dim * (self.original / (turns * TAU)).ln() / (2.0 * self.theta.ln());
        let fast = channel(self.own.opt_number("beta_fast")?.unwrap_or(32.0));
        let slow = channel(self.own.opt_number("beta_slow")?.unwrap_or(1.0));
        let (low, high) = match self.own.flag_or("truncate", true)? {
            true => (fast.floor(), slow.ceil()),
            false => (fast, slow),
        };
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        let width = if low == high { 0.001 } else { high - low };
        let mix = |(i, f): (usize, &f64)| {
            let slowed = ((i as f64 - low) / width).clamp(0.0, 1.0);
            f / factor * slowed + f * (1.0 - slowed)
        };
        let inv_freq = plain.iter().enumerate().map(mix).collect();
        Ok((inv_freq, self.own.number_or("attention_factor", usual)?))
    }
}

/// Llama 3.1's scaling of one frequency: turns longer than the original context are slowed by
/// `factor`, short ones stay, those between are mixed.
fn llama3(f: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let turns = original * f / TAU;
    if turns < low {
        return f / factor;
    }
    if turns > high {
        return f;
    }
    let smooth = (turns - low) / (high - low);
    (1.0 - smooth) * f / factor + smooth * f
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(json: serde_json::Value) -> Result<RotaryConfig, String> {
        let rules = RotaryRules { head_dim: 16, theta: 1e4, partial: Some(1.0), positions: 4096 };
        let f = Fields { json: &json, source: Path::new("config.json") };
        RotaryConfig::read(f, "full_attention", rules).map_err(|e| e.to_string())
    }

    #[test]
    fn both_spellings_mean_the_same() {
        let new =
            serde_json::json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}});
        let old = serde_json::json!({"rope_theta": 500000.0, "rope_scaling": null});
        let layered = serde_json::json!({"rope_parameters": {
            "full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_theta": 1e4}}});
        assert_eq!(read(new.clone()), read(old));
        assert_eq!(read(new.clone()), read(layered));
        assert_eq!(read(new).unwrap().inv_freq.len(), 8);
    }

    #[test]
    fn llama3_has_three_bands() {
        // Original context 8192, factor 8: fast frequencies stay, slow ones are divided.
        assert_eq!(llama3(1.0, 8.0, 1.0, 4.0, 8192.0), 1.0);
        assert_eq!(llama3(1e-5, 8.0, 1.0, 4.0, 8192.0), 1e-5 / 8.0);
        let middle = llama3(2.5 * TAU / 8192.0, 8.0, 1.0, 4.0, 8192.0);
        let expected = 2.5 * TAU / 8192.0 * (0.5 / 8.0 + 0.5);
        assert!((middle / expected - 1.0).abs() < 1e-12);
    }

    /// Numbers of transformers 5.23: `_compute_yarn_parameters` for this table.
    #[test]
    fn yarn_is_that_of_transformers() {
        let yarn = read(serde_json::json!({"rope_parameters": {"rope_type": "yarn", "factor": 4.0,
            "rope_theta": 1e4, "original_max_position_embeddings": 1024}}))
        .unwrap();
        let expected: [f32; 8] = [
            1.0,
            0.316_227_76,
            0.081_25,
            0.019_764_237,
            0.004_375,
            0.000_790_569_47,
            0.000_25,
            7.905_695e-5,
        ];
        for (got, want) in yarn.inv_freq.iter().zip(expected) {
            assert!((got / want - 1.0).abs() < 1e-6, "{:?}", yarn.inv_freq);
        }
        assert!((yarn.scale - 1.138_629_4f32).abs() < 1e-6, "{}", yarn.scale);
    }

    #[test]
    fn longrope_changes_with_the_context() {
        let lists = |n: usize| {
            read(serde_json::json!({"original_max_position_embeddings": 1024, "rope_scaling": {
                "type": "su", "short_factor": vec![1.0; n], "long_factor": vec![2.0; n]}}))
        };
        let rope = lists(8).unwrap();
        let (from, long) = rope.long.clone().unwrap();
        assert_eq!((from, long[0], rope.inv_freq[0]), (1024, 0.5, 1.0));
        // √(1 + ln 4 / ln 1024)
        assert!((rope.scale - 1.2f32.sqrt()).abs() < 1e-6);
        let e = lists(7).unwrap_err();
        assert!(e.contains("short_factor") && e.contains("7 numbers"), "{e}");
    }

    #[test]
    fn refuses_by_field_and_value() {
        let e = read(serde_json::json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4}}));
        let e = e.unwrap_err();
        assert!(e.contains("dynamic") && e.contains("llama3"), "{e}");
        let e = read(serde_json::json!({"rope_scaling": {"type": "linear"}})).unwrap_err();
        assert!(e.contains("`factor`"), "{e}");
        let e = read(serde_json::json!({"partial_rotary_factor": 0.01})).unwrap_err();
        assert!(e.contains("partial_rotary_factor"), "{e}");
    }
}
