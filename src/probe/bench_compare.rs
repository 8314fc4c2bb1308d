//! Two reports of `inknib bench`: what became faster or slower by more than both runs scatter.

use serde::Serialize;
use serde_json::Value;

use super::bench_rows::{Row, rows};
use crate::{Error, Result};

/// A difference of medians counts beyond so many spreads of both runs together.
const SPREADS: f64 = 3.0;
/// And beyond so much in any case: clocks and neighbours change from one run to the next.
const LEAST: f64 = 0.03;
/// Below so many samples the spread says nothing.
const SAMPLES: usize = 3;

/// The rule in words.
pub const RULE: &str = "marked where the medians differ by more than 3 times the combined relative spread \
                        (1.4826 x median absolute deviation) of both runs and by more than 3 %; not with fewer than 3 \
                        samples";

/// What two medians say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Faster,
    Slower,
    WithinNoise,
    /// Too few samples to tell.
    NoiseUnknown,
}

impl Verdict {
    /// In a table.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Faster => "faster",
            Verdict::Slower => "slower",
            Verdict::WithinNoise => "",
            Verdict::NoiseUnknown => "too few samples",
        }
    }
}

/// One row of both reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    pub kind: &'static str,
    pub name: String,
    pub spec: String,
    pub shape: String,
    pub before_ms: f64,
    pub now_ms: f64,
    /// Now over before: below 1 is faster.
    pub ratio: f64,
    /// What the ratio may differ from 1 by, in either direction, before it is marked.
    pub noise: f64,
    pub verdict: Verdict,
}

/// A report against a baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub baseline: String,
    pub rule: &'static str,
    /// Adapter, driver and backend of the baseline.
    pub baseline_device: String,
    pub same_device: bool,
    /// Copy bandwidth and FMA rate, now over before: whether the device itself was as fast.
    pub copy_ratio: Option<f64>,
    pub fma_ratio: Option<f64>,
    pub rows: Vec<Change>,
    /// Rows that the other report lacks.
    pub only_before: Vec<String>,
    pub only_now: Vec<String>,
}

/// Adapter, driver and backend.
fn device(report: &Value) -> String {
    let words = ["adapter", "driver", "backend"].map(|name| report[name].as_str().unwrap_or(""));
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(", ")
}

/// Holds `now` against `before`, which was read from `baseline`.
///
/// # Errors
/// `Runtime` if one of them is no report.
pub fn compare(now: &Value, before: &Value, baseline: &str) -> Result<Comparison> {
    let read = |report| rows(report).map_err(Error::Runtime);
    let (ours, theirs) = (read(now)?, read(before)?);
    let pair = |row: &Row| theirs.iter().find(|other| other.same(row)).map(|o| change(row, o));
    let lacking = |list: &[Row], other: &[Row]| {
        let lone = list.iter().filter(|row| !other.iter().any(|o| o.same(row)));
        lone.map(Row::title).collect()
    };
    let ratio = |name: &str| {
        let of = |report: &Value| report["ceilings"][name].as_f64();
        Some(of(now)? / of(before)?).filter(|ratio| ratio.is_finite())
    };
    Ok(Comparison {
        baseline: baseline.to_string(),
        rule: RULE,
        baseline_device: device(before),
        same_device: device(now) == device(before),
        copy_ratio: ratio("copy_gb_s"),
        fma_ratio: ratio("fma_gflop_s"),
        rows: ours.iter().filter_map(pair).collect(),
        only_before: lacking(&theirs, &ours),
        only_now: lacking(&ours, &theirs),
    })
}

fn change(now: &Row, before: &Row) -> Change {
    let (ratio, spread) = (now.ms / before.ms, |row: &Row| row.spread_ms / row.ms);
    let noise = (SPREADS * spread(now).hypot(spread(before))).max(LEAST);
    let verdict = match () {
        () if now.samples.min(before.samples) < SAMPLES => Verdict::NoiseUnknown,
        () if ratio > 1.0 + noise => Verdict::Slower,
        () if 1.0 / ratio > 1.0 + noise => Verdict::Faster,
        () => Verdict::WithinNoise,
    };
    Change {
        kind: now.kind,
        name: now.name.clone(),
        spec: now.spec.clone(),
        shape: now.shape.clone(),
        before_ms: before.ms,
        now_ms: now.ms,
        ratio,
        noise,
        verdict,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(adapter: &str, shape: &str, samples: &[f64]) -> Value {
        let row = json!({ "op": "norm", "spec": "RMS", "shape": shape, "samples": samples });
        json!({ "adapter": adapter, "ceilings": { "copy_gb_s": 8.0 }, "ops": [row] })
    }

    /// The verdict and the noise of one row against another.
    fn held(now: &[f64], before: &[f64]) -> (Verdict, f64) {
        let (now, before) = (report("a", "1x8", now), report("a", "1x8", before));
        let row = compare(&now, &before, "b").unwrap().rows.remove(0);
        (row.verdict, row.noise)
    }

    #[test]
    fn only_what_is_beyond_the_noise_is_marked() {
        let steady = [10.0, 10.0, 10.0];
        assert_eq!(held(&steady, &steady), (Verdict::WithinNoise, 0.03));
        assert_eq!(held(&[10.2; 3], &steady).0, Verdict::WithinNoise);
        assert_eq!(held(&[10.4; 3], &steady).0, Verdict::Slower);
        assert_eq!(held(&[9.6; 3], &steady).0, Verdict::Faster);
        // A spread of 14.8 % on one side: 44 % may be chance.
        let (verdict, noise) = held(&[14.0; 3], &[9.0, 10.0, 11.0]);
        assert!((noise - 0.44478).abs() < 1e-9 && verdict == Verdict::WithinNoise);
        assert_eq!(held(&[14.6; 3], &[9.0, 10.0, 11.0]).0, Verdict::Slower);
        assert_eq!(held(&[6.8; 3], &[9.0, 10.0, 11.0]).0, Verdict::Faster);
        // On both sides they add up like sides of a right angle.
        let noise = held(&[9.0, 10.0, 11.0], &[9.0, 10.0, 11.0]).1;
        assert!((noise - 0.44478 * 2f64.sqrt()).abs() < 1e-9);
        // Two samples, however far apart.
        assert_eq!(held(&[99.0; 2], &steady).0, Verdict::NoiseUnknown);
    }

    #[test]
    fn a_report_against_itself_and_against_another_device() {
        let mine = report("a", "1x8", &[3.0, 1.0, 2.0]);
        let same = compare(&mine, &mine, "b").unwrap();
        assert!(same.same_device && same.rows[0].verdict == Verdict::WithinNoise);
        assert_eq!((same.rows[0].ratio, same.copy_ratio, same.fma_ratio), (1.0, Some(1.0), None));
        assert!(same.only_before.is_empty() && same.only_now.is_empty());
        let other = compare(&mine, &report("z", "2x8", &[1.0]), "b").unwrap();
        assert!(!other.same_device && other.baseline_device == "z" && other.rows.is_empty());
        assert_eq!(other.only_now, ["norm · RMS · 1x8"]);
        assert_eq!(other.only_before, ["norm · RMS · 2x8"]);
    }
}
