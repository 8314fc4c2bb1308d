//! The roofline of a report of `inknib bench --ops` (Williams, Waterman and Patterson 2009): operations a second over
//! operations for each byte, below what copy bandwidth and FMA rate allow.

use std::fmt::Write;

use serde_json::Value;

use super::page;
use super::plot::{Axis, Plot, Point, number};

/// Names of what is drawn in one colour, and the ops in it.
const GROUPS: [(&str, &[&str]); 7] = [
    ("GEMV", &["gemv"]),
    ("GEMM", &["gemm"]),
    ("conv2d", &["conv2d"]),
    ("attention", &["attention"]),
    ("norm", &["norm"]),
    ("pointwise", &["pointwise"]),
    ("rope, softmax", &["rope", "softmax"]),
];

/// An op as a point of the plot.
struct Dot {
    group: String,
    at: Point,
    label: String,
}

/// The plot as an SVG element of a page; None without ops that compute or without ceilings.
pub fn roofline(report: &Value) -> Option<String> {
    let ceiling = |name: &str| report["ceilings"][name].as_f64().filter(|v| *v > 0.0);
    let (copy, fma) = (ceiling("copy_gb_s")?, ceiling("fma_gflop_s")?);
    let (peak, kind) = match ceiling("coop_gflop_s").filter(|coop| *coop > fma) {
        Some(coop) => (coop, "matrices"),
        None => (fma, "FMA"),
    };
    let dots: Vec<Dot> = report["ops"].as_array()?.iter().filter_map(dot).collect();
    if dots.is_empty() {
        return None;
    }
    let ridge = peak / copy;
    let edge =
        |start: f64, pick: fn(f64, f64) -> f64| dots.iter().map(|d| d.at.0).fold(start, pick);
    let (left, right) = (edge(ridge, f64::min) / 2.0, edge(ridge, f64::max) * 2.0);
    let axes = (Axis::log("operations for each byte"), Axis::log("GFLOP/s"));
    let mut plot = Plot::new(axes.0, axes.1)
        .floor(&format!("copy {} GB/s", number(copy)), [(left, left * copy), (ridge, peak)])
        .floor(&format!("{kind} {} GFLOP/s", number(peak)), [(ridge, peak), (right, peak)]);
    for (name, members) in GROUPS {
        let of = |dot: &&Dot| members.contains(&dot.group.as_str());
        let points: Vec<(Point, String)> =
            dots.iter().filter(of).map(|dot| (dot.at, dot.label.clone())).collect();
        // An empty group keeps its colour and has no name.
        plot = plot.scatter(if points.is_empty() { "" } else { name }, points);
    }
    Some(plot.svg("Roofline: GFLOP/s of ops over operations for each byte"))
}

fn dot(op: &Value) -> Option<Dot> {
    let (name, spec) = (op["op"].as_str()?, op["spec"].as_str()?);
    let (rate, flops, bytes) =
        (op["gflop_s"].as_f64()?, op["flops"].as_f64()?, op["bytes"].as_f64()?);
    let share = 100.0 * op["fraction_of_ceiling"].as_f64()?;
    let label = format!(
        "{name} {spec}, {}: {} GFLOP/s, {share:.0} % of the ceiling",
        op["shape"].as_str().unwrap_or(""),
        number(rate)
    );
    let form = spec.split(' ').next().unwrap_or("");
    let group = if name == "matmul" { form } else { name };
    Some(Dot { group: group.to_string(), at: (flops / bytes, rate), label })
}

/// An SVG element of a page as a file of its own: with its style, whose colours are written out because few viewers
/// of pictures know variables, for light and for dark.
pub fn standalone(svg: &str) -> String {
    let (light, dark) = (page::plot_style(false), page::plot_style(true));
    let mut head = String::from("<svg xmlns=\"http://www.w3.org/2000/svg\"");
    let rest = svg.strip_prefix("<svg").unwrap_or(svg);
    let (attributes, body) = rest.split_once('>').unwrap_or((rest, ""));
    let _ = write!(
        head,
        "{attributes}>\n<style>\n{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n</style>\n\
         <rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n{body}\n"
    );
    head
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dots_lie_below_a_roof_of_two_lines() {
        let op = |op: &str, spec: &str, flops: f64, rate: Option<f64>| {
            json!({ "op": op, "spec": spec, "shape": "s", "flops": flops, "bytes": 1e6, "gflop_s": rate,
                "fraction_of_ceiling": 0.5 })
        };
        let ops = [
            op("matmul", "gemv int4", 1e6, Some(5.0)),
            op("softmax", "rows", 1e5, Some(0.5)),
            op("embed", "int4", 0.0, None),
        ];
        let report = json!({ "ceilings": { "copy_gb_s": 10.0, "fma_gflop_s": 100.0 }, "ops": ops });
        let svg = roofline(&report).unwrap();
        // Ops that compute nothing have no intensity.
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("copy 10 GB/s") && svg.contains("FMA 100 GFLOP/s"), "{svg}");
        assert!(svg.contains("matmul gemv int4, s: 5 GFLOP/s, 50 % of the ceiling"));
        // Colours stay with their groups: GEMV is the first, softmax the seventh.
        assert!(svg.contains("class=\"s0 fill\"") && svg.contains("class=\"s6 fill\""));
        let file = standalone(&svg);
        assert!(file.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox="), "{file}");
        assert!(!file.contains("var(") && file.contains("prefers-color-scheme: dark"), "{file}");
        assert!(file.contains(".s0 { stroke: #2463a8; }") && file.contains("#79b4f2"), "{file}");
        assert_eq!(roofline(&json!({ "ops": [] })), None);
    }
}
