//! A report of `inknib bench` as tables, CSV, Markdown and a page.

use std::fmt::Write;

use serde_json::Value;

use super::bench_rows::{Row, rows};
use super::markdown::table;
use super::page::Page;
use super::roofline::{roofline, standalone};
use crate::files::ending;
use crate::{Error, Result};

/// A table with words above it.
#[derive(Clone, Debug)]
pub struct Sheet {
    pub title: &'static str,
    pub headings: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
    pub notes: Vec<String>,
}

/// What a file may be, by the ending of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    Csv,
    Markdown,
    Html,
    /// The roofline.
    Svg,
}

impl Form {
    /// # Errors
    /// `Usage` for other endings.
    pub fn of(path: &std::path::Path) -> Result<Form> {
        Ok(match ending(path, &["json", "csv", "md", "html", "svg"])? {
            "json" => Form::Json,
            "csv" => Form::Csv,
            "md" => Form::Markdown,
            "html" => Form::Html,
            _ => Form::Svg,
        })
    }
}

/// The text of a file.
///
/// # Errors
/// `Usage` for a roofline where nothing has a place on it.
pub fn render(report: &Value, form: Form) -> Result<String> {
    let rows = || rows(report).map_err(Error::Runtime);
    match form {
        Form::Json => serde_json::to_string_pretty(report)
            .map(|text| text + "\n")
            .map_err(|e| Error::Runtime(format!("the report cannot be written as JSON: {e}"))),
        Form::Csv => Ok(csv(&rows()?)),
        Form::Markdown => Ok(markdown(report, &sheets(report)?)),
        Form::Html => Ok(page(report, &sheets(report)?)),
        Form::Svg => roofline(report).map(|svg| standalone(&svg) + "\n").ok_or_else(|| {
            Error::Usage("a roofline is of ops that compute; measure some with --ops".into())
        }),
    }
}

/// Adapter and driver.
fn device(report: &Value) -> String {
    let word = |name: &str| report[name].as_str().unwrap_or("").to_string();
    format!("{} ({}), {}", word("adapter"), word("driver"), word("backend"))
}

/// Three digits that count.
fn digits(value: f64) -> String {
    let places = 2 - (value.abs().max(1e-6).log10().floor() as i32);
    format!("{value:.*}", places.clamp(0, 5) as usize)
}

fn percent(fraction: Option<f64>) -> String {
    fraction.map_or(String::new(), |f| format!("{:.1} %", 100.0 * f))
}

/// The tables of a report, those that have rows: ceilings, ops, models, comparison, kernels.
///
/// # Errors
/// `Runtime` if it is no report.
pub fn sheets(report: &Value) -> Result<Vec<Sheet>> {
    let rows = rows(report).map_err(Error::Runtime)?;
    let all = [
        ceilings(&report["ceilings"]),
        of_rows("op", "Ops", &rows),
        of_rows("model", "Models", &rows),
        comparison(&report["comparison"]),
        kernels(&report["kernels"]),
    ];
    Ok(all.into_iter().filter(|sheet| !sheet.rows.is_empty()).collect())
}

fn ceilings(from: &Value) -> Sheet {
    let named = [
        ("copy", "copy_gb_s", "GB/s"),
        ("copy by a kernel", "kernel_copy_gb_s", "GB/s"),
        ("multiply and add, f32", "fma_gflop_s", "GFLOP/s"),
        ("multiply and add, f16", "fma_f16_gflop_s", "GFLOP/s"),
        ("matrices, f16 into f32", "coop_gflop_s", "GFLOP/s"),
        ("dot4I8Packed", "int_dot_gop_s", "Gop/s"),
        ("dispatch", "dispatch_us", "µs"),
        ("submission and wait", "submit_us", "µs"),
    ];
    let row = |(words, field, unit): (&str, &str, &str)| {
        let value = from[field].as_f64()?;
        Some(vec![words.to_string(), format!("{} {unit}", digits(value))])
    };
    let rows = named.into_iter().filter_map(row).collect();
    Sheet { title: "Ceilings", headings: vec!["of this device", "best"], rows, notes: vec![] }
}

fn of_rows(kind: &str, title: &'static str, rows: &[Row]) -> Sheet {
    let number = |value: Option<f64>| value.map_or(String::new(), digits);
    let ops = kind == "op";
    let cells = |row: &Row| {
        let mut cells = vec![row.name.clone(), row.spec.clone()];
        cells.extend(ops.then(|| row.shape.clone()));
        cells.extend([
            format!("{} ± {}", digits(row.ms), digits(row.spread_ms)),
            number(row.gb_s),
            number(row.gflop_s),
            percent(row.fraction),
        ]);
        cells.extend(ops.then(|| number(row.compile_seconds)));
        cells
    };
    let headings = match ops {
        true => vec!["op", "spec", "shape", "ms", "GB/s", "GFLOP/s", "of ceiling", "compile, s"],
        false => vec!["model", "test", "ms", "GB/s", "GFLOP/s", "of ceiling"],
    };
    let rows = rows.iter().filter(|row| row.kind == kind).map(cells).collect();
    let notes = match ops {
        true => {
            "ms: median ± 1.4826 times the median absolute deviation. of ceiling: the least time that copy \
                 bandwidth and the FMA rate in f32 (or that of matrices, if it is higher) allow, over ms; more than 100 % where buffers stayed in caches."
        }
        false => {
            "ms: of a token, a UNet step or a decode, median ± 1.4826 times the median absolute deviation."
        }
    };
    Sheet { title, headings, rows, notes: vec![notes.to_string()] }
}

fn comparison(from: &Value) -> Sheet {
    /// More rows that the other report lacks are counted and not named.
    const FEW: usize = 4;
    let text = |value: &Value| value.as_str().unwrap_or("").to_string();
    let changes = from["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let row = |change: &Value| {
        let number = |name: &str| change[name].as_f64().unwrap_or(f64::NAN);
        let names = ["name", "spec", "shape"].map(|name| text(&change[name]));
        let mut cells = vec![names.join(" ").trim().to_string()];
        cells.extend(["before_ms", "now_ms"].map(|name| digits(number(name))));
        cells.push(format!("{:.3}", number("ratio")));
        cells.push(format!("{:.1} %", 100.0 * number("noise")));
        let verdict = match change["verdict"].as_str() {
            Some("within_noise") | None => String::new(),
            Some(verdict) => verdict.replace('_', " "),
        };
        cells.push(verdict);
        cells
    };
    let mut notes = Vec::new();
    if from["same_device"] == false {
        notes.push(format!(
            "Another device: the baseline is of {}; ratios compare devices, not versions.",
            text(&from["baseline_device"])
        ));
    }
    let ratio = |name: &str| from[name].as_f64().map_or("?".into(), |ratio| format!("{ratio:.3}"));
    notes.push(format!(
        "{}: ratios are now over before; copy bandwidth of the device x{}, FMA rate x{}. Rows are {}.",
        text(&from["baseline"]),
        ratio("copy_ratio"),
        ratio("fma_ratio"),
        text(&from["rule"])
    ));
    for (list, words) in
        [("only_before", "Only in the baseline"), ("only_now", "Not in the baseline")]
    {
        let names: Vec<&str> =
            from[list].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        match names.len() {
            0 => {}
            1..=FEW => notes.push(format!("{words}: {}.", names.join("; "))),
            n => notes.push(format!("{words}: {n} rows, the first {}.", names[0])),
        }
    }
    let headings = vec!["row", "before, ms", "now, ms", "ratio", "noise", ""];
    Sheet {
        title: "Against the baseline",
        headings,
        rows: changes.iter().map(row).collect(),
        notes,
    }
}

fn kernels(from: &Value) -> Sheet {
    let row = |kernel: &Value| {
        let seconds = kernel["compile_seconds"].as_f64()?;
        Some(vec![kernel["kernel"].as_str()?.to_string(), digits(1e3 * seconds)])
    };
    let rows = from.as_array().into_iter().flatten().filter_map(row).collect();
    let notes = "As far as the driver compiles before a kernel runs.".to_string();
    Sheet { title: "Kernels", headings: vec!["kernel", "compile, ms"], rows, notes: vec![notes] }
}

/// One line for each row, numbers in full.
fn csv(rows: &[Row]) -> String {
    let mut out = String::from(
        "kind,name,spec,shape,ms,spread_ms,samples,gb_s,gflop_s,fraction_of_ceiling,compile_seconds\n",
    );
    let number = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
    for row in rows {
        let names = [row.kind, &row.name, &row.spec, &row.shape].map(quoted);
        let times = [row.ms.to_string(), row.spread_ms.to_string(), row.samples.to_string()];
        let rates = [row.gb_s, row.gflop_s, row.fraction, row.compile_seconds].map(number);
        let _ = writeln!(out, "{},{},{}", names.join(","), times.join(","), rates.join(","));
    }
    out
}

/// A field as RFC 4180 wants it.
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_string(),
    }
}

fn markdown(report: &Value, sheets: &[Sheet]) -> String {
    let mut out = format!("# inknib bench\n\n{}\n", device(report));
    for sheet in sheets {
        let table = table(&sheet.headings, &sheet.rows);
        let _ = write!(out, "\n## {}\n\n{table}", sheet.title);
        sheet.notes.iter().for_each(|note| {
            let _ = write!(out, "\n{note}\n");
        });
    }
    out
}

fn page(report: &Value, sheets: &[Sheet]) -> String {
    let mut page = Page::new("inknib bench");
    page.lead(&device(report));
    if let Some(svg) = roofline(report) {
        page.figure(
            "Roofline",
            &svg,
            "Each dot is an op on one shape; the dashed lines are what copy bandwidth and the FMA rate (or that of matrices, if it is higher) allow. Ops that \
             move numbers and do not compute have no place here. Point at a dot for its name.",
        );
    }
    for sheet in sheets {
        page.heading(sheet.title);
        page.table(&sheet.headings, sheet.rows.iter().cloned());
        sheet.notes.iter().for_each(|note| page.paragraph(note));
    }
    page.finish()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn report() -> Value {
        json!({
            "adapter": "a", "driver": "d", "backend": "vulkan",
            "ceilings": { "copy_gb_s": 10.0, "fma_gflop_s": 100.0 },
            "ops": [{ "op": "matmul", "spec": "gemv | int4", "shape": "1x8, 4x8", "samples": [0.5, 0.25, 1.0],
                "flops": 64, "bytes": 48, "gb_s": 1.5, "gflop_s": 2.0, "fraction_of_ceiling": 0.125,
                "compile_seconds": 0.02 }],
            "models": [],
            "kernels": [{ "kernel": "matmul.wgsl", "compile_seconds": 0.02 }],
        })
    }

    #[test]
    fn every_form_has_the_numbers() {
        let report = report();
        let csv = render(&report, Form::Csv).unwrap();
        let row = "op,matmul,gemv | int4,\"1x8, 4x8\",0.5,0.37065,3,1.5,2,0.125,0.02";
        assert_eq!(csv.lines().nth(1), Some(row));
        let columns = csv.lines().next().map(|head| head.split(',').count());
        assert_eq!(columns, Some(11));
        let markdown = render(&report, Form::Markdown).unwrap();
        assert!(markdown.contains("| copy | 10.0 GB/s |"), "{markdown}");
        let row =
            "| matmul | gemv \\| int4 | 1x8, 4x8 | 0.500 ± 0.371 | 1.50 | 2.00 | 12.5 % | 0.0200 |";
        assert!(markdown.contains(row) && !markdown.contains("## Models"), "{markdown}");
        let page = render(&report, Form::Html).unwrap();
        assert!(page.contains("<svg") && page.contains("matmul.wgsl") && page.contains("12.5 %"));
        let back: Value = serde_json::from_str(&render(&report, Form::Json).unwrap()).unwrap();
        assert_eq!(back, report);
        assert!(render(&report, Form::Svg).unwrap().contains("GEMV") || report["ops"].is_null());
        let nothing = render(&json!({ "adapter": "a", "models": [] }), Form::Svg).unwrap_err();
        assert!(nothing.to_string().contains("--ops"));
    }

    #[test]
    fn another_device_is_said_aloud() {
        let mut now = report();
        let mut before = now.clone();
        before["adapter"] = json!("z");
        before["ops"][0]["samples"] = json!([5.0, 5.0, 5.0]);
        now["ops"][0]["samples"] = json!([1.0, 1.0, 1.0]);
        let comparison = super::super::bench_compare::compare(&now, &before, "b.json").unwrap();
        now["comparison"] = json!(comparison);
        let markdown = render(&now, Form::Markdown).unwrap();
        assert!(markdown.contains("Another device: the baseline is of z, d, vulkan"), "{markdown}");
        assert!(markdown.contains("| 5.00 | 1.00 | 0.200 | 3.0 % | faster |"), "{markdown}");
        assert!(markdown.contains("copy bandwidth of the device x1.000"), "{markdown}");
    }

    #[test]
    fn endings_say_the_form() {
        assert_eq!(Form::of(Path::new("a/b.JSON")).unwrap(), Form::Json);
        assert_eq!(Form::of(Path::new("b.svg")).unwrap(), Form::Svg);
        let error = Form::of(Path::new("b.png")).unwrap_err();
        assert!(
            error.exit_code() == 2
                && error
                    .to_string()
                    .contains("b.png: the name of this file must end in .json or .csv")
        );
        assert_eq!(
            [0.0, 0.01234, 5.0, 123.4, 98765.0].map(digits),
            ["0.00000", "0.0123", "5.00", "123", "98765"]
        );
    }
}
