//! Axes of plots: from numbers to places, and the numbers that are written beside them.

/// How an axis is divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    #[default]
    Linear,
    /// Decades; values that are not positive are left out.
    Log,
}

/// A direction of a plot.
#[derive(Clone, Debug, Default)]
pub struct Axis {
    /// What is measured, with its unit.
    pub label: String,
    pub scale: Scale,
    /// Smallest and largest value; none: those of the data, rounded outwards.
    pub range: Option<[f64; 2]>,
}

impl Axis {
    pub fn linear(label: impl Into<String>) -> Axis {
        Axis { label: label.into(), ..Default::default() }
    }
    pub fn log(label: impl Into<String>) -> Axis {
        Axis { label: label.into(), scale: Scale::Log, range: None }
    }
    /// From `from` to `to` whatever the data.
    pub fn between(self, from: f64, to: f64) -> Axis {
        Axis { range: Some([from, to]), ..self }
    }

    /// Whether a value has a place.
    pub(super) fn shows(&self, value: f64) -> bool {
        value.is_finite() && (self.scale == Scale::Linear || value > 0.0)
    }

    /// Fixes the range by the data; `zero`: it includes 0 (bars start there).
    pub(super) fn fit(&self, values: impl Iterator<Item = f64>, zero: bool) -> Fitted {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| self.shows(*v)) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = if self.scale == Scale::Log { (1.0, 10.0) } else { (0.0, 1.0) };
        }
        if let Some([from, to]) = self.range {
            (low, high) = (from, to);
        }
        match self.scale {
            Scale::Linear => {
                if zero && self.range.is_none() {
                    (low, high) = (low.min(0.0), high.max(0.0));
                }
                if low == high {
                    let margin = if low == 0.0 { 0.5 } else { low.abs() / 10.0 };
                    (low, high) = (low - margin, high + margin);
                }
                let step = nice_step((high - low) / 5.0);
                if self.range.is_none() {
                    (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
                }
                // Half a step against rounding.
                let count = ((high - low) / step + 0.5) as usize;
                let first = (low / step).ceil() * step;
                let ticks = (0..=count).map(|i| first + i as f64 * step);
                let ticks = ticks.filter(|t| *t <= high + step * 1e-6).collect();
                Fitted { scale: self.scale, low, high, ticks }
            }
            Scale::Log => {
                let (from, to) = (low.log10().floor() as i32, high.log10().ceil() as i32);
                let to = if from == to { to + 1 } else { to };
                if self.range.is_none() {
                    (low, high) = (10f64.powi(from), 10f64.powi(to));
                }
                // A few decades have room for 2 and 5 between them; many skip some.
                let decades = to - from;
                let between: &[f64] = if decades <= 2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let skip = (decades / 7 + 1) as usize;
                let ticks = (from..=to)
                    .step_by(skip)
                    .flat_map(|d| between.iter().map(move |m| m * 10f64.powi(d)));
                let ticks = ticks.filter(|t| *t >= low * 0.999 && *t <= high * 1.001).collect();
                Fitted { scale: self.scale, low, high, ticks }
            }
        }
    }
}

/// An axis whose range is known.
#[derive(Clone, Debug)]
pub(super) struct Fitted {
    scale: Scale,
    pub low: f64,
    pub high: f64,
    pub ticks: Vec<f64>,
}

impl Fitted {
    /// Place between 0 (lowest) and 1 (highest); values beyond the ends lie on them.
    pub(super) fn place(&self, value: f64) -> f64 {
        let of = |v: f64| if self.scale == Scale::Log { v.log10() } else { v };
        let place = (of(value) - of(self.low)) / (of(self.high) - of(self.low));
        if place.is_finite() { place.clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// 1, 2 or 5 times a power of ten that is at least `rough`.
fn nice_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 5.0].into_iter().find(|d| d * power >= rough * 0.999);
    digit.unwrap_or(10.0) * power
}

/// A number as a reader likes it: 0.05, 12, 3·10⁻⁶.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return if value == f64::INFINITY { "∞".into() } else { "–".into() };
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-3..1e5).contains(&magnitude) {
        let exponent = magnitude.log10().floor() as i32;
        let digits = trimmed(format!("{:.2}", value / 10f64.powi(exponent)));
        let power = format!("10{}", superscript(exponent));
        return if digits == "1" { power } else { format!("{digits}·{power}") };
    }
    let digits = match magnitude {
        m if m >= 100.0 => 1,
        m if m >= 1.0 => 2,
        m if m >= 0.1 => 3,
        _ => 4,
    };
    trimmed(format!("{value:.digits$}"))
}

/// Without zeros at the end.
fn trimmed(digits: String) -> String {
    match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').replace('-', "−"),
        false => digits.replace('-', "−"),
    }
}

fn superscript(exponent: i32) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let digit = |c: char| match c.to_digit(10) {
        Some(d) => DIGITS[d as usize],
        None => '⁻',
    };
    exponent.to_string().chars().map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let fit = |axis: Axis, values: &[f64]| axis.fit(values.iter().copied(), false);
        let linear = fit(Axis::linear("x"), &[0.3, 9.6]);
        assert_eq!((linear.low, linear.high), (0.0, 10.0));
        assert_eq!(linear.ticks, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        let log = fit(Axis::log("x"), &[3e-6, f64::NAN, 0.0, 0.2]);
        assert_eq!((log.low, log.high), (1e-6, 1.0));
        assert_eq!(log.ticks.len(), 7);
        // 1e-12: logarithms of powers of ten.
        assert!((log.place(1e-3) - 0.5).abs() < 1e-12 && log.place(-1.0) == 0.0);
        let one = fit(Axis::linear("x"), &[5.0]);
        assert!(one.low < 5.0 && one.high > 5.0 && one.ticks.len() > 2);
        assert!(!fit(Axis::linear("x"), &[]).ticks.is_empty());
        let bars = Axis::linear("x").fit([3.0, 4.0].into_iter(), true);
        assert_eq!(bars.low, 0.0);
    }

    #[test]
    fn numbers_read_well() {
        let all = [0.0, 12.0, -0.5, 0.05, 1234.56, 3.2e-6, 1e-4, f64::NAN, f64::INFINITY];
        let read = ["0", "12", "−0.5", "0.05", "1234.6", "3.2·10⁻⁶", "10⁻⁴", "–", "∞"];
        assert_eq!(all.map(number), read);
    }
}
