//! Two saved reports side by side: two kinds of weights, two adapters, two versions. Any JSON that a command
//! prints will do; what both have is compared.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::{Error, Result};

/// One number of both reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Its path, `summary.kernel.mean`. `steps[]` is the mean over a list, `layers[conv_in]` one of its members.
    pub name: String,
    /// `None` where it is absent or not finite.
    pub a: Option<f64>,
    pub b: Option<f64>,
    /// b / a.
    pub ratio: Option<f64>,
}

/// A setting that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub name: String,
    pub a: Value,
    pub b: Value,
}

/// Both reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TwoReports {
    /// Words that differ: adapter, weights, prompts.
    pub differences: Vec<Difference>,
    pub figures: Vec<Figure>,
}

/// Reads a report.
///
/// # Errors
/// `Io`, and `Usage` for a file that is not JSON with at least one number.
pub fn read_report(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let report: Value = serde_json::from_str(&text).map_err(|e| {
        Error::Usage(format!("{}: no report of `inknib compare --json`: {e}", path.display()))
    })?;
    match report.is_object() {
        true => Ok(report),
        false => Err(Error::Usage(format!(
            "{}: no report of `inknib compare --json`: not an object",
            path.display()
        ))),
    }
}

/// Holds two reports against each other. `members`: list the members of lists as well, not their means
/// alone.
pub fn two_reports(a: &Value, b: &Value, members: bool) -> TwoReports {
    let (a, b) = (Flat::of(a, members), Flat::of(b, members));
    let find = |list: &[(String, f64)], name: &str| {
        let found = list.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        found.filter(|v| v.is_finite())
    };
    let only_b = b.numbers.iter().filter(|(name, _)| !a.numbers.iter().any(|(n, _)| n == name));
    let figures = a.numbers.iter().chain(only_b).map(|(name, _)| {
        let (a, b) = (find(&a.numbers, name), find(&b.numbers, name));
        let ratio = a.zip(b).map(|(a, b)| b / a).filter(|r| r.is_finite());
        Figure { name: name.clone(), a, b, ratio }
    });
    let differences = a.words.iter().filter_map(|(name, ours)| {
        let theirs = b.words.iter().find(|(n, _)| n == name).map_or(&Value::Null, |(_, v)| v);
        (*ours != theirs).then(|| Difference {
            name: name.clone(),
            a: (*ours).clone(),
            b: theirs.clone(),
        })
    });
    TwoReports { differences: differences.collect(), figures: figures.collect() }
}

/// A report without its tree.
#[derive(Default)]
struct Flat<'a> {
    numbers: Vec<(String, f64)>,
    words: Vec<(String, &'a Value)>,
    members: bool,
}

impl<'a> Flat<'a> {
    fn of(report: &'a Value, members: bool) -> Flat<'a> {
        let mut flat = Flat { members, ..Default::default() };
        flat.walk(String::new(), report);
        flat
    }

    fn walk(&mut self, name: String, value: &'a Value) {
        match value {
            Value::Object(fields) => {
                for (field, value) in fields {
                    let name =
                        if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
                    self.walk(name, value);
                }
            }
            Value::Array(list) => self.list(&name, list),
            Value::Number(number) => {
                self.numbers.push((name, number.as_f64().unwrap_or(f64::NAN)));
            }
            Value::Null => self.numbers.push((name, f64::NAN)),
            Value::String(_) | Value::Bool(_) => self.words.push((name, value)),
        }
    }

    /// The means of the members' figures, and each member where that is wanted.
    fn list(&mut self, name: &str, list: &'a [Value]) {
        let mut sums: Vec<(String, f64, usize)> = Vec::new();
        for (i, member) in list.iter().enumerate() {
            let mut flat = Flat { members: false, ..Default::default() };
            flat.walk(String::new(), member);
            for (field, value) in flat.numbers.iter().filter(|(_, value)| value.is_finite()) {
                match sums.iter_mut().find(|(known, _, _)| known == field) {
                    Some((_, sum, count)) => (*sum, *count) = (*sum + value, *count + 1),
                    None => sums.push((field.clone(), *value, 1)),
                }
            }
            if self.members {
                let called = ["name", "layer"].iter().find_map(|key| member.get(key)?.as_str());
                let called = called.map_or(i.to_string(), str::to_string);
                self.walk(format!("{name}[{called}]"), member);
            }
        }
        let dot = |field: &str| if field.is_empty() { String::new() } else { format!(".{field}") };
        let means = sums
            .into_iter()
            .map(|(field, sum, count)| (format!("{name}[]{}", dot(&field)), sum / count as f64));
        self.numbers.extend(means);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_both_have() {
        let a = json!({ "adapter": "one", "psnr": 30.0, "gone": 1,
            "layers": [{ "name": "x", "db": 10.0 }, { "name": "y", "db": 20.0 }], "bands": [1.0, 3.0] });
        let b = json!({ "adapter": "two", "psnr": 33.0, "new": 2,
            "layers": [{ "name": "x", "db": 30.0 }, { "name": "y", "db": null }], "bands": [2.0, 4.0] });
        let two = two_reports(&a, &b, false);
        assert_eq!(two.differences.len(), 1);
        assert_eq!((&two.differences[0].a, &two.differences[0].b), (&json!("one"), &json!("two")));
        let find = |name: &str| two.figures.iter().find(|f| f.name == name).unwrap();
        assert_eq!(find("psnr").ratio, Some(1.1));
        assert_eq!((find("gone").b, find("new").a, find("new").b), (None, None, Some(2.0)));
        // What is not finite does not count in a mean.
        assert_eq!((find("layers[].db").a, find("layers[].db").b), (Some(15.0), Some(30.0)));
        assert_eq!(find("bands[]").ratio, Some(1.5));
        let all = two_reports(&a, &b, true);
        let y = all.figures.iter().find(|f| f.name == "layers[y].db").unwrap();
        assert_eq!((y.a, y.b, y.ratio), (Some(20.0), None, None));
    }

    #[test]
    fn a_file_that_is_no_report() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.json");
        std::fs::write(&file, "[1]").unwrap();
        assert_eq!(read_report(&file).unwrap_err().exit_code(), 2);
        std::fs::write(&file, "no").unwrap();
        assert!(read_report(&file).unwrap_err().to_string().contains("compare --json"));
    }
}
