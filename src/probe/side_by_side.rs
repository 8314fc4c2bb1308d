//! Results of `inknib test` and `inknib bench` of several adapters side by side: which kernels are right where, how fast
//! each is against its own ceilings, and how far apart what they paint and say is.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::markdown;
use super::optest::{Case, Known, Status, Whole, distances, families, worst};
use super::page::Page;
use crate::{Error, Result};

/// One adapter with one driver.
#[derive(Clone, Debug, Default)]
pub struct Stack {
    /// What columns are called: `A`, `B` …
    pub letter: String,
    pub adapter: String,
    pub driver: String,
    pub backend: String,
    /// Names of the files that told of it.
    pub files: Vec<String>,
    pub features: Vec<String>,
    pub cases: Vec<Case>,
    pub models: Vec<Whole>,
    /// `inknib bench --json`: ceilings, ops, models.
    pub bench: Option<Value>,
}

/// Part of a report.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    Heading(String),
    Paragraph(String),
    /// Headings and rows.
    Table(Vec<String>, Vec<Vec<String>>),
}

/// The same words as a page, and as Markdown.
#[derive(Clone, Debug, Default)]
pub struct SideBySide {
    pub blocks: Vec<Block>,
    /// Cases that failed and are not known to.
    pub failed: usize,
}

/// Reads results; those of one adapter and driver come together, whatever files they are in.
///
/// # Errors
/// `Io`, and `Usage` for a file that is no result of `inknib test` or `inknib bench`.
pub fn read(paths: &[impl AsRef<Path>]) -> Result<Vec<Stack>> {
    let known = Known::shipped()?;
    let mut stacks: Vec<Stack> = Vec::new();
    for path in paths {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let refuse = |why: String| {
            let path = path.display();
            Error::Usage(format!(
                "{path}: no result of `inknib test -o FILE.json` or `inknib bench --json`: {why}"
            ))
        };
        let value: Value = serde_json::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        let several = value.get("adapters").and_then(Value::as_array).cloned();
        let file = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into());
        for one in several.unwrap_or_else(|| vec![value]) {
            let mut found = stack(&one, &file).map_err(refuse)?;
            // A browser's results do not know the list.
            let Stack { adapter, driver, backend, cases, .. } = &mut found;
            let failed = cases.iter_mut().filter(|case| case.status == Status::Failed);
            failed.for_each(|case| known.judge([adapter, driver, backend], case));
            merge(&mut stacks, found);
        }
    }
    for (stack, letter) in stacks.iter_mut().zip('A'..) {
        stack.letter = letter.to_string();
    }
    Ok(stacks)
}

fn stack(value: &Value, file: &str) -> std::result::Result<Stack, String> {
    let word = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_string);
    let adapter = word("adapter").ok_or("it names no adapter")?;
    let part = |name: &str| value.get(name).cloned().filter(|part| !part.is_null());
    let cases = match part("cases") {
        Some(cases) => Vec::<Case>::deserialize(cases).map_err(|e| e.to_string())?,
        None => Vec::new(),
    };
    let benched = part("ceilings").is_some() || part("ops").is_some();
    let models = match part("models") {
        Some(models) if !benched && !cases.is_empty() => {
            Vec::<Whole>::deserialize(models).map_err(|e| e.to_string())?
        }
        _ => Vec::new(),
    };
    let bench = (cases.is_empty() && (benched || part("models").is_some())).then(|| value.clone());
    if cases.is_empty() && bench.is_none() {
        return Err("it has neither cases nor ceilings".into());
    }
    let features = value.pointer("/device/features").and_then(Value::as_object);
    let has = features.into_iter().flatten().filter(|(_, has)| **has == Value::Bool(true));
    Ok(Stack {
        adapter,
        driver: word("driver").unwrap_or_default(),
        backend: word("backend").unwrap_or_default(),
        files: vec![file.to_string()],
        features: has.map(|(name, _)| name.clone()).collect(),
        cases,
        models,
        bench,
        letter: String::new(),
    })
}

fn merge(stacks: &mut Vec<Stack>, new: Stack) {
    let same = |old: &&mut Stack| {
        let fits = old.cases.is_empty() || new.cases.is_empty();
        (&old.adapter, &old.driver, &old.backend) == (&new.adapter, &new.driver, &new.backend)
            && fits
            && (old.bench.is_none() || new.bench.is_none())
    };
    match stacks.iter_mut().find(same) {
        Some(old) => {
            old.files.extend(new.files);
            old.bench = old.bench.take().or(new.bench);
            if old.cases.is_empty() {
                (old.cases, old.models, old.features) = (new.cases, new.models, new.features);
            }
        }
        None => stacks.push(new),
    }
}

impl SideBySide {
    /// Lays the stacks side by side.
    pub fn of(stacks: &[Stack]) -> SideBySide {
        let mut report = SideBySide::default();
        let count =
            |status| stacks.iter().flat_map(|s| &s.cases).filter(move |c| c.status == status);
        report.failed = count(Status::Failed).count() + count(Status::Unexpected).count();
        report.paragraph(format!(
            "{} driver stacks, {} cases run, {} failed, {} known to fail.",
            stacks.len(),
            stacks.iter().map(|s| s.cases.len()).sum::<usize>(),
            report.failed,
            count(Status::Known).count(),
        ));
        report.stacks(stacks);
        report.correctness(stacks);
        report.distances(stacks);
        report.speed(stacks);
        report
    }

    fn heading(&mut self, words: &str) {
        self.blocks.push(Block::Heading(words.into()));
    }
    fn paragraph(&mut self, words: impl Into<String>) {
        self.blocks.push(Block::Paragraph(words.into()));
    }
    fn table(&mut self, headings: Vec<String>, rows: Vec<Vec<String>>) {
        if !rows.is_empty() {
            self.blocks.push(Block::Table(headings, rows));
        }
    }

    fn stacks(&mut self, stacks: &[Stack]) {
        self.heading("Driver stacks");
        let row = |s: &Stack| {
            let features =
                if s.features.is_empty() { "none".into() } else { s.features.join(", ") };
            let parts = [&s.letter, &s.adapter, &s.driver, &s.backend, &features];
            let mut row: Vec<String> = parts.into_iter().cloned().collect();
            row.push(s.files.join(", "));
            row
        };
        self.table(
            words(["", "adapter", "driver", "backend", "features", "from"]),
            stacks.iter().map(row).collect(),
        );
    }

    fn correctness(&mut self, stacks: &[Stack]) {
        let tested: Vec<&Stack> = stacks.iter().filter(|s| !s.cases.is_empty()).collect();
        if tested.is_empty() {
            return;
        }
        self.heading("Correctness");
        self.paragraph(
            "Cases that passed of those that ran, and the NMSE of the one nearest to its tolerance.",
        );
        let mut ops: Vec<&str> = Vec::new();
        for stack in &tested {
            for (op, _) in families(&stack.cases) {
                if !ops.contains(&op) {
                    ops.push(op);
                }
            }
        }
        let rows = ops.iter().map(|op| {
            let cells = tested.iter().map(|stack| correct(&stack.cases, op));
            std::iter::once((*op).to_string()).chain(cells).collect()
        });
        let rows: Vec<Vec<String>> = rows.collect();
        let headings = headings("op", tested.iter().copied());
        self.table(headings, rows);
        let mut failures = Vec::new();
        for stack in &tested {
            for case in stack.cases.iter().filter(|c| c.status != Status::Passed) {
                let parts =
                    [stack.letter.clone(), case.status.mark().into(), case.name(), case.trouble()];
                failures.push(parts.to_vec());
            }
        }
        if !failures.is_empty() {
            self.paragraph("What did not pass, or not as expected:");
        }
        self.table(words(["", "", "case", "what"]), failures);
    }

    fn distances(&mut self, stacks: &[Stack]) {
        let mut rows = Vec::new();
        for (i, a) in stacks.iter().enumerate() {
            for b in &stacks[..i] {
                for d in distances(&a.models, &b.models) {
                    // Not `>`: NaN is apart.
                    let near = d.rel_l2 <= d.allowed;
                    rows.push(vec![
                        format!("{} and {}", b.letter, a.letter),
                        d.model,
                        d.activations,
                        format!("{:.1e}", d.rel_l2),
                        format!("{:.0e}", d.allowed),
                        if near { "✓" } else { "✗" }.into(),
                        if d.same_reply { "the same" } else { "other words" }.into(),
                    ]);
                }
            }
        }
        if rows.is_empty() {
            return;
        }
        self.heading("What they paint and say");
        self.paragraph(
            "‖a − b‖ / ‖b‖ of the latents of a picture after four steps, and of the logits of a fixed \
             conversation, between adapters.",
        );
        self.table(words(["", "model", "activations", "apart", "allowed", "", "reply"]), rows);
    }

    fn speed(&mut self, stacks: &[Stack]) {
        let benched: Vec<(&Stack, &Value)> =
            stacks.iter().filter_map(|s| Some((s, s.bench.as_ref()?))).collect();
        if benched.is_empty() {
            return;
        }
        self.heading("Speed");
        let mut names: Vec<String> = Vec::new();
        for (_, bench) in &benched {
            let ceilings = bench["ceilings"].as_object();
            names.extend(ceilings.into_iter().flatten().map(|(name, _)| name.clone()));
        }
        dedup(&mut names);
        let headings = |first: &str| headings(first, benched.iter().map(|(stack, _)| *stack));
        let rows = names.iter().filter_map(|name| {
            let cells = benched.iter().map(|(_, bench)| number(&bench["ceilings"][name]));
            let cells: Vec<String> = cells.collect();
            let any = cells.iter().any(|cell| !cell.is_empty());
            any.then(|| std::iter::once(name.clone()).chain(cells).collect())
        });
        let rows: Vec<Vec<String>> = rows.collect();
        self.paragraph("Ceilings, measured on each adapter:");
        self.table(headings("ceiling"), rows);
        let of = |bench: &Value, name: &str| bench[name].as_array().cloned().unwrap_or_default();
        let mut keys: Vec<String> = Vec::new();
        for (_, bench) in &benched {
            keys.extend(of(bench, "ops").iter().map(|op| key(op, &["op", "spec", "shape"])));
            keys.extend(of(bench, "models").iter().map(|m| key(m, &["model", "test"])));
        }
        dedup(&mut keys);
        let cell = |bench: &Value, wanted: &str| {
            let ops =
                of(bench, "ops").into_iter().map(|op| (key(&op, &["op", "spec", "shape"]), op));
            let models = of(bench, "models").into_iter().map(|m| (key(&m, &["model", "test"]), m));
            let found = ops.chain(models).find(|(name, _)| name == wanted);
            found.map_or_else(String::new, |(_, entry)| speed_of(&entry))
        };
        let rows = keys.iter().map(|wanted| {
            let cells = benched.iter().map(|(_, bench)| cell(bench, wanted));
            std::iter::once(wanted.clone()).chain(cells).collect()
        });
        let rows = rows.collect();
        self.paragraph("Time, and the fraction of the adapter's own ceiling:");
        self.table(headings("what"), rows);
    }

    /// One self-contained page.
    pub fn html(&self, title: &str) -> String {
        let mut page = Page::new(title);
        for block in &self.blocks {
            match block {
                Block::Heading(words) => page.heading(words),
                Block::Paragraph(words) => page.paragraph(words),
                Block::Table(headings, rows) => {
                    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
                    page.table(&headings, rows.clone());
                }
            }
        }
        page.finish()
    }

    /// The same as Markdown.
    pub fn markdown(&self, title: &str) -> String {
        let mut text = format!("# {title}\n");
        for block in &self.blocks {
            text.push('\n');
            match block {
                Block::Heading(words) => text += &format!("## {words}\n"),
                Block::Paragraph(words) => text += &format!("{words}\n"),
                Block::Table(headings, rows) => text += &markdown::table(headings, rows),
            }
        }
        text
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_string).to_vec()
}

/// A column for each stack behind the first: by letter and name, or by letters alone where names would make the table too wide.
fn headings<'a>(first: &str, stacks: impl Iterator<Item = &'a Stack> + Clone) -> Vec<String> {
    const NAMED: usize = 4;
    let few = stacks.clone().count() <= NAMED;
    let name = |stack: &Stack| match few {
        true => format!("{}: {}", stack.letter, stack.adapter),
        false => stack.letter.clone(),
    };
    std::iter::once(first.to_string()).chain(stacks.map(name)).collect()
}

/// Keeps the first of equal names, in order.
fn dedup(names: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
}

fn key(entry: &Value, fields: &[&str]) -> String {
    let words = fields.iter().filter_map(|field| entry[*field].as_str());
    words.collect::<Vec<_>>().join(" ")
}

fn number(value: &Value) -> String {
    value.as_f64().map_or_else(String::new, |v| match v.abs() {
        0.0..10.0 => format!("{v:.2}"),
        10.0..1000.0 => format!("{v:.1}"),
        _ => format!("{v:.0}"),
    })
}

/// `1.20 ms, 45 %`, in whatever unit the entry has.
fn speed_of(entry: &Value) -> String {
    let units = [("ms", "ms"), ("tokens_per_second", "t/s"), ("seconds_per_step", "s")];
    let found = units.into_iter().find_map(|(field, unit)| {
        let value = number(&entry[field]);
        (!value.is_empty()).then(|| format!("{value} {unit}"))
    });
    let fraction = entry["fraction_of_ceiling"].as_f64().map(|f| format!("{:.0} %", 100.0 * f));
    found.into_iter().chain(fraction).collect::<Vec<_>>().join(", ")
}

/// `✓ 12 of 12, 4e-14`: how many passed, and the NMSE of the worst.
fn correct(cases: &[Case], op: &str) -> String {
    let of: Vec<&Case> = cases.iter().filter(|case| case.op == op).collect();
    let Some(worst) = worst(&of) else { return "–".into() };
    let count = |status| of.iter().filter(|case| case.status == status).count();
    let failed = count(Status::Failed) + count(Status::Unexpected);
    let ran = of.len() - count(Status::Skipped);
    let passed = count(Status::Passed) + count(Status::Unexpected);
    let mark = if failed > 0 { "✗" } else { "✓" };
    let nmse = if worst.nmse == 0.0 { ", exact".into() } else { format!(", {:.0e}", worst.nmse) };
    let known = match count(Status::Known) {
        0 => String::new(),
        n => format!(", {n} known"),
    };
    format!("{mark} {passed} of {ran}{known}{nmse}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn write(folder: &Path, name: &str, value: &Value) -> std::path::PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, value.to_string()).unwrap();
        path
    }

    fn case(status: &str) -> Value {
        json!({"op": "matmul", "spec": "fp16", "shape": "1x2x3", "set": "ragged", "tier": "none",
               "kernels": "fast", "activations": "f32", "nmse": 5e-9, "max_error": null, "tolerance": 1e-8,
               "max_tolerance": 1e-4, "status": status, "seconds": 0.1})
    }

    #[test]
    fn results_of_one_stack_come_together() {
        let folder = tempfile::tempdir().unwrap();
        let test = |adapter: &str, status: &str| json!({"adapter": adapter, "driver": "d", "backend": "vulkan", "cases": [case(status)], "models": []});
        let bench = json!({"adapter": "x", "driver": "d", "backend": "vulkan",
            "ceilings": {"copy_gb_s": 12.5}, "ops": [{"op": "matmul", "spec": "int4", "shape": "1x2x3",
            "ms": 1.5, "fraction_of_ceiling": 0.5}], "models": []});
        let files = [
            write(folder.path(), "a.json", &test("x", "passed")),
            write(
                folder.path(),
                "b.json",
                &json!({"adapters": [test("y", "failed"), test("z", "known")]}),
            ),
            write(folder.path(), "c.json", &bench),
        ];
        let stacks = read(&files).unwrap();
        let names: Vec<&str> = stacks.iter().map(|s| s.adapter.as_str()).collect();
        assert_eq!(names, ["x", "y", "z"]);
        assert_eq!(stacks[0].files, ["a.json", "c.json"]);
        let report = SideBySide::of(&stacks);
        assert_eq!(report.failed, 1);
        let text = report.markdown("t");
        for part in ["✓ 1 of 1, 5e-9", "✗ 0 of 1", "1 known", "1.50 ms, 50 %", "12.5", "A: x"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let page = report.html("t");
        assert!(page.contains("<td>matmul</td>") && !page.contains("http"));
    }

    #[test]
    fn what_is_no_result_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (text, word) in [
            ("{", "no result of"),
            ("{\"adapter\": \"x\"}", "neither cases nor ceilings"),
            ("{\"cases\": []}", "names no adapter"),
            ("{\"adapter\": \"x\", \"cases\": [{\"op\": 3}]}", "a.json"),
        ] {
            let path = folder.path().join("a.json");
            std::fs::write(&path, text).unwrap();
            let error = read(&[path]).unwrap_err();
            assert!(error.to_string().contains(word) && error.exit_code() == 2, "{text}: {error}");
        }
    }
}
