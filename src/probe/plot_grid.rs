//! Charts with names on one side: lists of horizontal bars and heat maps.

use std::fmt::Write;

use super::plot::{block, escape, line, number, open, text};
use super::plot_axis::Axis;

const WIDTH: f64 = 720.0;
const ROW: f64 = 17.0;
/// Width of a letter at the size that names have.
const LETTER: f64 = 6.4;

/// Horizontal bars, one for each name.
#[derive(Clone, Debug)]
pub struct BarList {
    axis: Axis,
    rows: Vec<(String, f64)>,
    floor: Option<(String, f64)>,
}

impl BarList {
    pub fn new(axis: Axis, rows: impl IntoIterator<Item = (String, f64)>) -> BarList {
        BarList { axis, rows: rows.into_iter().collect(), floor: None }
    }
    /// A dashed line at the noise floor.
    pub fn floor(mut self, name: &str, value: Option<f64>) -> BarList {
        self.floor = value.map(|value| (name.to_string(), value));
        self
    }

    /// The SVG element. `title` is read to those who do not see it.
    pub fn svg(&self, title: &str) -> String {
        let left = names_width(self.rows.iter().map(|(name, _)| name.as_str()));
        let (top, right) = (24.0, WIDTH - 60.0);
        let bottom = top + ROW * self.rows.len() as f64;
        let values = self.rows.iter().map(|(_, value)| *value);
        let x = self.axis.fit(values.chain(self.floor.iter().map(|(_, v)| *v)), true);
        let at = |value: f64| left + x.place(value) * (right - left);
        let mut out = open(WIDTH, bottom + 42.0, title);
        for tick in &x.ticks {
            line(&mut out, "grid", (at(*tick), top), (at(*tick), bottom));
            text(&mut out, "middle", (at(*tick), bottom + 16.0), &number(*tick));
        }
        for (i, (name, value)) in self.rows.iter().enumerate() {
            let y = top + ROW * i as f64;
            text(&mut out, "end", (left - 6.0, y + 12.5), name);
            if self.axis.shows(*value) {
                let label = format!("{name}: {}", number(*value));
                block(&mut out, (left, at(*value)), (y + 3.0, y + ROW - 2.0), (0, &label));
                text(&mut out, "start", (at(*value) + 5.0, y + 12.5), &number(*value));
            }
        }
        if let Some((name, value)) = &self.floor {
            line(&mut out, "floor", (at(*value), top - 4.0), (at(*value), bottom));
            text(&mut out, "middle", (at(*value), top - 9.0), name);
        }
        text(&mut out, "middle", ((left + right) / 2.0, bottom + 34.0), &self.axis.label);
        out.push_str("</svg>");
        out
    }
}

/// A value for every pair of a row and a column, as a shade of one colour.
#[derive(Clone, Debug)]
pub struct HeatMap {
    axis: Axis,
    columns: Vec<String>,
    rows: Vec<(String, Vec<f64>)>,
}

impl HeatMap {
    /// `axis` is that of the values.
    pub fn new(
        axis: Axis,
        columns: impl IntoIterator<Item = String>,
        rows: impl IntoIterator<Item = (String, Vec<f64>)>,
    ) -> HeatMap {
        HeatMap { axis, columns: columns.into_iter().collect(), rows: rows.into_iter().collect() }
    }

    /// The SVG element. `title` is read to those who do not see it.
    pub fn svg(&self, title: &str) -> String {
        let left = names_width(self.rows.iter().map(|(name, _)| name.as_str()));
        let top = 40.0;
        let wide = (WIDTH - 10.0 - left) / self.columns.len().max(1) as f64;
        let high = if self.rows.len() > 20 { ROW } else { 24.0 };
        let values = || self.rows.iter().flat_map(|(_, values)| values.iter().copied());
        // All shades are used: the ends are those of the data, not round numbers.
        let shown = || values().filter(|v| self.axis.shows(*v));
        let (least, most) =
            (shown().fold(f64::INFINITY, f64::min), shown().fold(f64::NEG_INFINITY, f64::max));
        let axis = match least < most && self.axis.range.is_none() {
            true => self.axis.clone().between(least, most),
            false => self.axis.clone(),
        };
        let shade = axis.fit(values(), false);
        let mut out = open(WIDTH, top + high * self.rows.len() as f64 + 30.0, title);
        text(&mut out, "start", (left, 14.0), &self.axis.label);
        let longest = self.columns.iter().map(|n| n.chars().count()).max().unwrap_or(1);
        let every = ((longest as f64 * LETTER + 6.0) / wide).ceil().max(1.0) as usize;
        for (i, name) in self.columns.iter().enumerate().step_by(every) {
            text(&mut out, "middle", (left + wide * (i as f64 + 0.5), top - 7.0), name);
        }
        for (i, (name, values)) in self.rows.iter().enumerate() {
            let y = top + high * i as f64;
            text(&mut out, "end", (left - 6.0, y + high / 2.0 + 4.5), name);
            for (j, value) in values.iter().enumerate() {
                let x = left + wide * j as f64;
                let column = self.columns.get(j).map_or("", String::as_str);
                let label = escape(&format!("{name}, {column}: {}", number(*value)));
                // Never quite the page's own colour, so that a cell shows where it is.
                let opacity =
                    if self.axis.shows(*value) { 0.06 + 0.94 * shade.place(*value) } else { 0.0 };
                let _ = write!(
                    out,
                    "<rect class=\"s0 fill\" fill-opacity=\"{opacity:.3}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{label}</title></rect>",
                    wide - 1.0,
                    high - 1.0
                );
                if wide > 46.0 && high > 20.0 && self.axis.shows(*value) {
                    let class = if opacity > 0.5 { "over" } else { "under" };
                    let _ = write!(
                        out,
                        "<text class=\"{class}\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                        x + wide / 2.0,
                        y + high / 2.0 + 4.5,
                        number(*value)
                    );
                }
            }
        }
        let bottom = top + high * self.rows.len() as f64;
        let ends = format!("palest {}, fullest {}", number(shade.low), number(shade.high));
        text(&mut out, "start", (left, bottom + 20.0), &ends);
        out.push_str("</svg>");
        out
    }
}

/// Room for names at the left.
fn names_width<'a>(names: impl Iterator<Item = &'a str>) -> f64 {
    let longest = names.map(|name| name.chars().count()).max().unwrap_or(0);
    (longest as f64 * LETTER + 12.0).clamp(40.0, 460.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_bar() {
        let rows = [("a".to_string(), 1.0), ("b".to_string(), 4.0), ("c".to_string(), f64::NAN)];
        let list =
            BarList::new(Axis::linear("dB").between(0.0, 4.0), rows).floor("floor", Some(2.0));
        let svg = list.svg("t");
        assert_eq!(svg.matches("<rect").count(), 2);
        // 40 to 660 for 0 to 4.
        assert!(svg.contains("x=\"40.0\" y=\"27.0\" width=\"155.0\""), "{svg}");
        assert!(svg.contains("class=\"line floor\" x1=\"350.0\""));
    }

    #[test]
    fn shades_follow_values() {
        let rows = [("r".to_string(), vec![0.0, 10.0, f64::NAN])];
        let columns = ["x", "y", "z"].map(str::to_string);
        let svg = HeatMap::new(Axis::linear("v"), columns, rows).svg("t");
        for opacity in ["0.060", "1.000", "0.000"] {
            assert!(svg.contains(&format!("fill-opacity=\"{opacity}\"")), "{svg}");
        }
    }
}
