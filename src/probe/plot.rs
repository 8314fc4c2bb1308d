//! Plots as SVG inside of a page: colours and fonts come from the page's style ([`super::page`]), so that one
//! drawing serves light and dark. Written here because the charts are few, and because plotting libraries
//! write fixed colours.

use std::fmt::Write;

use super::plot_axis::Fitted;
pub use super::plot_axis::{Axis, Scale, number};

/// Height of a line of names.
const LINE: f64 = 17.0;

/// A point of a line: (x, y).
pub type Point = (f64, f64);

/// What is drawn, in this order.
#[derive(Clone, Debug)]
enum Layer {
    Line {
        name: String,
        points: Vec<Point>,
        floor: bool,
    },
    Scatter {
        name: String,
        points: Vec<(Point, String)>,
    },
    /// From the first to the second of each x.
    Band {
        points: Vec<(f64, [f64; 2])>,
    },
    /// One value for each category.
    Bars {
        name: String,
        values: Vec<f64>,
    },
    /// Between two edges each.
    Histogram {
        name: String,
        bins: Vec<([f64; 2], f64)>,
    },
}

/// A chart with two axes.
#[derive(Clone, Debug)]
pub struct Plot {
    x: Axis,
    y: Axis,
    categories: Vec<String>,
    stacked: bool,
    layers: Vec<Layer>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 46.0;

impl Plot {
    pub fn new(x: Axis, y: Axis) -> Plot {
        Plot { x, y, categories: Vec::new(), stacked: false, layers: Vec::new() }
    }
    /// A chart of bars; the x axis has names.
    pub fn categories(label: &str, names: impl IntoIterator<Item = String>, y: Axis) -> Plot {
        let categories = names.into_iter().collect();
        Plot { categories, ..Plot::new(Axis::linear(label), y) }
    }
    /// A line through points in order of x. What is not finite interrupts it.
    pub fn line(mut self, name: &str, points: impl IntoIterator<Item = Point>) -> Plot {
        let points = points.into_iter().collect();
        self.layers.push(Layer::Line { name: name.into(), points, floor: false });
        self
    }
    /// The noise floor: a dashed grey line, so that it looks alike in every chart. Nothing without points;
    /// where none of them has a place, because nothing differs, the legend says so.
    pub fn floor(mut self, name: &str, points: impl IntoIterator<Item = Point>) -> Plot {
        let mut points: Vec<Point> = points.into_iter().collect();
        if points.is_empty() {
            return self;
        }
        points.retain(|(_, y)| self.y.shows(*y));
        let name = if points.is_empty() { format!("{name} (none)") } else { name.into() };
        self.layers.push(Layer::Line { name, points, floor: true });
        self
    }
    /// Where a value is likely: between two values of each x, in the colour of the line drawn next.
    pub fn band(mut self, points: impl IntoIterator<Item = (f64, [f64; 2])>) -> Plot {
        self.layers.push(Layer::Band { points: points.into_iter().collect() });
        self
    }
    /// Points with what is shown when one is pointed at.
    pub fn scatter(
        mut self,
        name: &str,
        points: impl IntoIterator<Item = (Point, String)>,
    ) -> Plot {
        self.layers
            .push(Layer::Scatter { name: name.into(), points: points.into_iter().collect() });
        self
    }
    /// A value for each category; bars of several names stand side by side.
    pub fn bars(mut self, name: &str, values: impl IntoIterator<Item = f64>) -> Plot {
        self.layers.push(Layer::Bars { name: name.into(), values: values.into_iter().collect() });
        self
    }
    /// Bars stand on each other.
    pub fn stacked(mut self) -> Plot {
        self.stacked = true;
        self
    }
    /// A value for each range of x.
    pub fn histogram(
        mut self,
        name: &str,
        bins: impl IntoIterator<Item = ([f64; 2], f64)>,
    ) -> Plot {
        self.layers.push(Layer::Histogram { name: name.into(), bins: bins.into_iter().collect() });
        self
    }

    /// The SVG element. `title` is read to those who do not see it.
    pub fn svg(&self, title: &str) -> String {
        let (x, y) = self.fit();
        let names = self.names();
        // Further lines of names push the chart down.
        let lines = names.iter().map(|(_, _, (_, row))| *row).max().unwrap_or(0);
        let pushed = LINE * lines as f64;
        let mut out = open(WIDTH, HEIGHT + pushed, title);
        if lines > 0 {
            let _ = write!(out, "<g transform=\"translate(0 {pushed})\">");
        }
        self.frame(&mut out, &x, &y);
        let mut colour = 0;
        let bars = self.layers.iter().filter(|l| matches!(l, Layer::Bars { .. })).count();
        let (mut bar, mut base) = (0, vec![0.0; self.categories.len()]);
        for layer in &self.layers {
            match layer {
                Layer::Line { points, floor: true, .. } => {
                    draw_line(&mut out, points, "floor", (&x, &y))
                }
                Layer::Line { points, .. } => {
                    draw_line(&mut out, points, &format!("s{colour}"), (&x, &y));
                    colour += 1;
                }
                Layer::Band { points } => draw_band(&mut out, points, colour, (&x, &y)),
                Layer::Scatter { points, .. } => {
                    for ((a, b), label) in points {
                        if self.x.shows(*a) && self.y.shows(*b) {
                            dot(&mut out, (across(&x, *a), down(&y, *b)), colour, label, 3.5);
                        }
                    }
                    colour += 1;
                }
                Layer::Bars { values, .. } => {
                    let beside = if self.stacked { (0, 1) } else { (bar, bars) };
                    self.draw_bars(&mut out, (values, &mut base), (colour, beside), &y);
                    (bar, colour) = (bar + 1, colour + 1);
                }
                Layer::Histogram { bins, .. } => {
                    for ([from, to], value) in bins {
                        let label =
                            format!("{} to {}: {}", number(*from), number(*to), number(*value));
                        let side = (across(&x, *from) + 0.5, across(&x, *to) - 0.5);
                        block(
                            &mut out,
                            side,
                            (down(&y, *value), down(&y, y.low)),
                            (colour, &label),
                        );
                    }
                    colour += 1;
                }
            }
        }
        if lines > 0 {
            out.push_str("</g>");
        }
        for (name, class, (at, row)) in names {
            let y = 14.0 + LINE * row as f64;
            line(&mut out, &class, (at, y), (at + 18.0, y));
            text(&mut out, "start", (at + 23.0, y + 4.0), name);
        }
        out.push_str("</svg>");
        out
    }

    fn fit(&self) -> (Fitted, Fitted) {
        let (mut xs, mut ys, mut zero) = (Vec::new(), Vec::new(), false);
        let mut sums = vec![0.0; self.categories.len()];
        for layer in &self.layers {
            match layer {
                Layer::Line { points, .. } => points.iter().for_each(|(x, y)| {
                    xs.push(*x);
                    ys.push(*y);
                }),
                Layer::Scatter { points, .. } => points.iter().for_each(|((x, y), _)| {
                    xs.push(*x);
                    ys.push(*y);
                }),
                Layer::Band { points } => ys.extend(points.iter().flat_map(|(_, ends)| *ends)),
                Layer::Bars { values, .. } => {
                    zero = true;
                    ys.extend(values);
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                }
                Layer::Histogram { bins, .. } => {
                    zero = true;
                    xs.extend(bins.iter().flat_map(|(edges, _)| *edges));
                    ys.extend(bins.iter().map(|(_, value)| *value));
                }
            }
        }
        if self.stacked {
            ys.extend(sums);
        }
        // Data fill the width; only heights are rounded outwards.
        let finite = |v: &&f64| self.x.shows(**v);
        let least = xs.iter().filter(finite).copied().fold(f64::INFINITY, f64::min);
        let most = xs.iter().filter(finite).copied().fold(f64::NEG_INFINITY, f64::max);
        let mut axis = self.x.clone();
        if axis.range.is_none() && axis.scale == Scale::Linear && least < most {
            axis.range = Some([least, most]);
        }
        (axis.fit(xs.into_iter(), false), self.y.fit(ys.into_iter(), zero))
    }

    fn frame(&self, out: &mut String, x: &Fitted, y: &Fitted) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in &y.ticks {
            let at = down(y, *tick);
            line(out, "grid", (LEFT, at), (right, at));
            text(out, "end", (LEFT - 8.0, at + 4.0), &number(*tick));
        }
        line(out, "axis", (LEFT, bottom), (right, bottom));
        if self.categories.is_empty() {
            for tick in &x.ticks {
                let at = across(x, *tick);
                line(out, "axis", (at, bottom), (at, bottom + 4.0));
                text(out, "middle", (at, bottom + 18.0), &number(*tick));
            }
        }
        let wide = (right - LEFT) / self.categories.len().max(1) as f64;
        // As many names as there is room for.
        let longest = self.categories.iter().map(|n| n.chars().count()).max().unwrap_or(1);
        let every = ((longest as f64 * 7.0 + 8.0) / wide).ceil().max(1.0) as usize;
        for (i, name) in self.categories.iter().enumerate().step_by(every) {
            text(out, "middle", (LEFT + wide * (i as f64 + 0.5), bottom + 18.0), name);
        }
        text(out, "middle", ((LEFT + right) / 2.0, HEIGHT - 8.0), &self.x.label);
        let (at, label) = ((TOP + bottom) / 2.0, escape(&self.y.label));
        let _ = write!(
            out,
            "<text class=\"label\" text-anchor=\"middle\" transform=\"translate(14 {at:.1}) rotate(-90)\">{label}</text>"
        );
    }

    fn draw_bars(
        &self,
        out: &mut String,
        (values, base): (&[f64], &mut [f64]),
        (colour, (bar, bars)): (usize, (usize, usize)),
        y: &Fitted,
    ) {
        let wide = (WIDTH - RIGHT - LEFT) / self.categories.len().max(1) as f64;
        let each = wide * 0.8 / bars.max(1) as f64;
        for (i, value) in values.iter().enumerate().filter(|(_, v)| self.y.shows(**v)) {
            let left = LEFT + wide * (i as f64 + 0.1) + each * bar as f64;
            let foot = if self.stacked { base.get(i).copied().unwrap_or(0.0) } else { 0.0 };
            let name = self.categories.get(i).map_or("", String::as_str);
            let label = format!("{name}: {}", number(*value));
            let foot_at = down(y, foot.max(y.low));
            block(out, (left, left + each), (down(y, foot + value), foot_at), (colour, &label));
            if let Some(base) = base.get_mut(i) {
                *base += value;
            }
        }
    }

    /// Names of the layers above the chart, from the left: each with its class, place and line.
    fn names(&self) -> Vec<(&str, String, (f64, usize))> {
        let (mut at, mut row, mut colour) = (LEFT, 0, 0);
        let mut names = Vec::new();
        for layer in &self.layers {
            let (name, class) = match layer {
                Layer::Line { name, floor: true, .. } => (name, "floor".to_string()),
                Layer::Line { name, .. }
                | Layer::Scatter { name, .. }
                | Layer::Bars { name, .. }
                | Layer::Histogram { name, .. } => {
                    colour += 1;
                    (name, format!("s{}", colour - 1))
                }
                Layer::Band { .. } => continue,
            };
            if name.is_empty() {
                continue;
            }
            let width = 23.0 + 6.9 * name.chars().count() as f64 + 14.0;
            if at > LEFT && at + width > WIDTH {
                (at, row) = (LEFT, row + 1);
            }
            names.push((name.as_str(), class, (at, row)));
            at += width;
        }
        names
    }
}

fn across(x: &Fitted, value: f64) -> f64 {
    LEFT + x.place(value) * (WIDTH - RIGHT - LEFT)
}
fn down(y: &Fitted, value: f64) -> f64 {
    HEIGHT - BOTTOM - y.place(value) * (HEIGHT - BOTTOM - TOP)
}

fn draw_line(out: &mut String, points: &[Point], class: &str, (x, y): (&Fitted, &Fitted)) {
    let mut path = String::new();
    let mut pen = 'M';
    for (a, b) in points {
        if a.is_finite() && b.is_finite() {
            let _ = write!(path, "{pen}{:.1} {:.1}", across(x, *a), down(y, *b));
            pen = 'L';
        } else {
            pen = 'M';
        }
    }
    let _ = write!(out, "<path class=\"line {class}\" d=\"{path}\"/>");
    // Places that can be pointed at, while they are few.
    if points.len() <= 60 && class != "floor" {
        for (a, b) in points.iter().filter(|(a, b)| a.is_finite() && b.is_finite()) {
            let at = (across(x, *a), down(y, *b));
            let label = escape(&format!("{}: {}", number(*a), number(*b)));
            let _ = write!(
                out,
                "<circle class=\"{class} mark\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\"><title>{label}</title></circle>",
                at.0, at.1
            );
        }
    }
}

fn draw_band(
    out: &mut String,
    points: &[(f64, [f64; 2])],
    colour: usize,
    (x, y): (&Fitted, &Fitted),
) {
    let whole = |p: &&(f64, [f64; 2])| p.0.is_finite() && p.1.iter().all(|v| v.is_finite());
    let points: Vec<_> = points.iter().filter(whole).collect();
    if points.is_empty() {
        return;
    }
    let there = points.iter().map(|(a, [low, _])| (across(x, *a), down(y, *low)));
    let back = points.iter().rev().map(|(a, [_, high])| (across(x, *a), down(y, *high)));
    let corners: Vec<String> = there.chain(back).map(|(a, b)| format!("{a:.1},{b:.1}")).collect();
    let _ = write!(out, "<polygon class=\"band s{colour}\" points=\"{}\"/>", corners.join(" "));
}

/// The beginning of an SVG element in units of CSS pixels.
pub(super) fn open(width: f64, height: f64, title: &str) -> String {
    format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">", escape(title))
}

/// A bar from one side to another and from top to bottom.
pub(super) fn block(
    out: &mut String,
    (left, right): (f64, f64),
    (top, bottom): (f64, f64),
    (colour, label): (usize, &str),
) {
    let (top, bottom) = (top.min(bottom), top.max(bottom));
    let _ = write!(
        out,
        "<rect class=\"s{colour} fill\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
        (right - left).max(0.5),
        bottom - top,
        escape(label)
    );
}

fn dot(out: &mut String, (x, y): (f64, f64), colour: usize, label: &str, radius: f64) {
    let label = escape(label);
    let _ = write!(
        out,
        "<circle class=\"s{colour} fill\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"><title>{label}</title></circle>"
    );
}

pub(super) fn line(out: &mut String, class: &str, (x1, y1): Point, (x2, y2): Point) {
    let _ = write!(
        out,
        "<line class=\"line {class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    );
}

/// `anchor`: start, middle, end.
pub(super) fn text(out: &mut String, anchor: &str, (x, y): Point, words: &str) {
    let words = escape(words);
    let _ = write!(out, "<text text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>");
}

/// Words as they may stand in HTML and in its attributes.
pub fn escape(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_names_take_several_lines() {
        let long = "a name of a line that is rather long, as names are";
        let plot = |n: usize| {
            (0..n).fold(Plot::new(Axis::linear("x"), Axis::linear("y")), |plot, _| {
                plot.line(long, [(0.0, 0.0), (1.0, 1.0)])
            })
        };
        let (one, four) = (plot(1).svg("t"), plot(4).svg("t"));
        assert!(!one.contains("<g ") && four.contains("translate(0 51)"), "{four}");
        assert_eq!((four.matches(long).count(), four.matches("</g>").count()), (4, 1));
        let height = |svg: &str| {
            svg.split("viewBox=\"0 0 ").nth(1).map(|s| s.split(['"', ' ']).nth(1).map(String::from))
        };
        assert_ne!(height(&one), height(&four));
    }

    #[test]
    fn places_of_a_line() {
        let plot = Plot::new(Axis::linear("step"), Axis::linear("error").between(0.0, 10.0));
        let plot = plot.line("ours", [(0.0, 0.0), (1.0, f64::NAN), (2.0, 10.0)]);
        let svg = plot.floor("floor", [(0.0, 5.0), (2.0, 5.0)]).svg("errors & steps");
        // The ends of the frame; the value between is left out, so that there are two beginnings.
        assert!(svg.contains("d=\"M66.0 274.0M706.0 34.0\""), "{svg}");
        assert!(svg.contains("class=\"line floor\" d=\"M66.0 154.0L706.0 154.0\""));
        assert!(svg.contains("aria-label=\"errors &amp; steps\"") && svg.ends_with("</svg>"));
        assert!(!svg.contains("NaN"));
        // A floor of nothing has no place on a logarithmic axis.
        let plot = Plot::new(Axis::linear("step"), Axis::log("error")).line("ours", [(0.0, 0.1)]);
        let svg = plot.floor("floor", [(0.0, 0.0), (1.0, 0.0)]).svg("t");
        assert!(
            svg.contains("floor (none)") && svg.contains("class=\"line floor\" d=\"\""),
            "{svg}"
        );
    }

    #[test]
    fn bars_stand_beside_or_on_each_other() {
        let names = || ["a".to_string(), "b".to_string()];
        let plot = |y: Axis| {
            Plot::categories("x", names(), y).bars("one", [1.0, 2.0]).bars("two", [3.0, 8.0])
        };
        let beside = plot(Axis::linear("y")).svg("t");
        let stacked = plot(Axis::linear("y").between(0.0, 10.0)).stacked().svg("t");
        assert_eq!(beside.matches("<rect").count(), 4);
        // Of 240 units for 10: the second bar of b stands on 48 and is 192 high, up to the top.
        assert!(stacked.contains("y=\"34.0\" width=\"256.0\" height=\"192.0\""), "{stacked}");
        let bins = [([0.0, 1.0], 2.0), ([1.0, 2.0], 4.0)];
        let histogram = Plot::new(Axis::linear("x"), Axis::linear("y")).histogram("h", bins);
        assert_eq!(histogram.svg("t").matches("<rect").count(), 2);
    }
}
