//! The rows of a report of `inknib bench`, whether it was made just now or read from a file.

use std::path::Path;

use serde_json::Value;

use super::bench_ops::median_and_spread;
use crate::{Error, Result};

/// One measurement: of an op, or of a model's test.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `op` or `model`.
    pub kind: &'static str,
    /// The op or the model.
    pub name: String,
    /// The op's spec or the model's test.
    pub spec: String,
    /// Empty for models.
    pub shape: String,
    /// Median of the samples: of an op, a token, a UNet step or a decode.
    pub ms: f64,
    /// 1.4826 times the median absolute deviation.
    pub spread_ms: f64,
    pub samples: usize,
    pub gb_s: Option<f64>,
    pub gflop_s: Option<f64>,
    pub fraction: Option<f64>,
    pub compile_seconds: Option<f64>,
}

impl Row {
    /// As a person names it.
    pub fn title(&self) -> String {
        let words = [&self.name, &self.spec, &self.shape].map(String::as_str);
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" · ")
    }
    /// Whether both are measurements of the same thing.
    pub fn same(&self, other: &Row) -> bool {
        let key = |row: &Row| (row.kind, row.name.clone(), row.spec.clone(), row.shape.clone());
        key(self) == key(other)
    }
}

/// Reads a report that was saved with `-o FILE.json` or `--json`.
///
/// # Errors
/// `Io`, and `Usage` for a file of something else.
pub fn read_report(path: &Path) -> Result<Value> {
    let refuse = |why: String| {
        Error::Usage(format!(
            "{}: not a report of `inknib bench` as -o FILE.json and --json write it: {why}",
            path.display()
        ))
    };
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let report: Value = serde_json::from_slice(&text).map_err(|e| refuse(e.to_string()))?;
    match rows(&report) {
        Ok(rows) if rows.is_empty() => Err(refuse("it has no row".into())),
        Ok(_) => Ok(report),
        Err(why) => Err(refuse(why)),
    }
}

/// All rows of a report; what is missing in it as an error.
pub fn rows(report: &Value) -> Result<Vec<Row>, String> {
    if !report["adapter"].is_string() {
        return Err("expected an object with \"adapter\" and \"ops\" or \"models\"".into());
    }
    let mut rows = Vec::new();
    for (list, read) in [("ops", op as fn(&Value) -> Option<Row>), ("models", model)] {
        let members = match &report[list] {
            Value::Null => continue,
            Value::Array(members) => members,
            _ => return Err(format!("\"{list}\" is no list")),
        };
        for (i, member) in members.iter().enumerate() {
            let row = read(member).filter(|row| row.ms.is_finite() && row.ms > 0.0);
            rows.push(row.ok_or_else(|| {
                format!("{list}[{i}] lacks a name or samples that are times or rates")
            })?);
        }
    }
    Ok(rows)
}

fn text(row: &Value, name: &str) -> Option<String> {
    row[name].as_str().map(String::from)
}

fn samples(row: &Value) -> Option<Vec<f64>> {
    row["samples"].as_array()?.iter().map(Value::as_f64).collect()
}

fn row(kind: &'static str, names: [String; 3], samples_ms: &[f64], from: &Value) -> Row {
    let [name, spec, shape] = names;
    let (ms, spread_ms) = median_and_spread(samples_ms);
    Row {
        kind,
        name,
        spec,
        shape,
        ms,
        spread_ms,
        samples: samples_ms.len(),
        gb_s: from["gb_s"].as_f64().or(from["gb_per_second"].as_f64()),
        gflop_s: from["gflop_s"].as_f64(),
        fraction: from["fraction_of_ceiling"].as_f64(),
        // A model's kernels are shared by all of its tests.
        compile_seconds: from["compile_seconds"].as_f64().filter(|_| kind == "op"),
    }
}

fn op(from: &Value) -> Option<Row> {
    let names = [text(from, "op")?, text(from, "spec")?, text(from, "shape")?];
    Some(row("op", names, &samples(from)?, from))
}

fn model(from: &Value) -> Option<Row> {
    let names = [text(from, "model")?, text(from, "test")?, String::new()];
    // Tokens a second, or seconds of a step.
    let ms = |sample: f64| match from["tokens_per_second"].is_number() {
        true => 1e3 / sample,
        false => 1e3 * sample,
    };
    let samples: Vec<f64> = samples(from)?.into_iter().map(ms).collect();
    Some(row("model", names, &samples, from))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rates_and_times_become_milliseconds() {
        let report = json!({
            "adapter": "a",
            "ops": [{ "op": "softmax", "spec": "rows", "shape": "3x4", "samples": [2.0, 1.0, 4.0], "gb_s": 5.0 }],
            "models": [
                { "model": "chat int4", "test": "tg8", "tokens_per_second": 20.0, "samples": [10.0, 20.0, 40.0] },
                { "model": "sd int4", "test": "unet 64x64", "samples": [0.5, 0.25] },
            ],
        });
        let rows = rows(&report).unwrap();
        assert_eq!(rows.iter().map(|r| r.ms).collect::<Vec<_>>(), [2.0, 50.0, 375.0]);
        assert_eq!((rows[0].gb_s, rows[1].gb_s, rows[2].samples), (Some(5.0), None, 2));
        assert_eq!(rows[0].title(), "softmax · rows · 3x4");
        assert_eq!(rows[1].title(), "chat int4 · tg8");
        assert!(rows[0].same(&rows[0]) && !rows[0].same(&rows[1]));
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.json");
        let refused = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let error = read_report(&path).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.contains("b.json") && text.contains("inknib bench"), "{text}");
            text
        };
        assert!(refused("{").contains("line 1"));
        assert!(refused("[]").contains("\"adapter\""));
        assert!(refused("{\"adapter\": \"a\"}").contains("no row"));
        assert!(refused("{\"adapter\": \"a\", \"ops\": 3}").contains("\"ops\" is no list"));
        assert!(refused("{\"adapter\": \"a\", \"ops\": [{\"op\": \"x\"}]}").contains("ops[0]"));
        let zero = "{\"adapter\": \"a\", \"models\": [{\"model\": \"m\", \"test\": \"t\", \"samples\": [0]}]}";
        assert!(refused(zero).contains("models[0]"));
        assert_eq!(read_report(&folder.path().join("gone")).unwrap_err().exit_code(), 1);
    }
}
