//! `-o` and `--compare` of `inknib bench`.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::bench::Args;
use super::common::{Ui, table};
use crate::files::write_whole;
use crate::probe::bench_compare::compare;
use crate::probe::bench_report::{Form, Sheet, render, sheets};
use crate::probe::bench_rows::read_report;
use crate::{Error, Result};

/// Where a report goes and what it is held against.
pub(super) struct Files {
    outputs: Vec<(PathBuf, Form)>,
    baseline: Option<(PathBuf, Value)>,
}

impl Files {
    /// Reads the baseline and looks at the names, before anything that takes long.
    ///
    /// # Errors
    /// `Usage` for endings that are no form and for baselines that are no report; `Io`.
    pub(super) fn of(args: &Args) -> Result<Files> {
        let form = |path: &PathBuf| Form::of(path).map(|form| (path.clone(), form));
        let outputs: Vec<_> = args.output.iter().map(form).collect::<Result<_>>()?;
        if let Some((path, _)) = outputs.iter().find(|(_, form)| *form == Form::Svg && !args.ops())
        {
            return Err(Error::Usage(format!(
                "{}: a roofline is of ops; measure them with --ops",
                path.display()
            )));
        }
        let read = |path: &PathBuf| read_report(path).map(|report| (path.clone(), report));
        Ok(Files { outputs, baseline: args.compare.as_ref().map(read).transpose()? })
    }

    /// Adds the comparison to a report and writes it to every file.
    pub(super) fn finish(&self, report: &mut Value, ui: &Ui) -> Result<()> {
        if let Some((path, before)) = &self.baseline {
            report["comparison"] = json!(compare(report, before, &path.display().to_string())?);
        }
        for (path, form) in &self.outputs {
            write_whole(path, render(report, *form)?.as_bytes())?;
            ui.note(&format!("wrote {}", path.display()));
        }
        Ok(())
    }

    /// The comparison as a table, if there is one.
    pub(super) fn show_comparison(&self, report: &Value, ui: &Ui) -> Result<()> {
        let Some(comparison) = report.get("comparison") else { return Ok(()) };
        let list = sheets(report)?;
        match list.iter().find(|sheet| sheet.title == "Against the baseline") {
            Some(sheet) => show(sheet, ui),
            None => ui.line(&format!(
                "{}: no row of the baseline was measured now",
                comparison["baseline"].as_str().unwrap_or("")
            )),
        }
    }
}

/// A table and its notes.
pub(super) fn show(sheet: &Sheet, ui: &Ui) -> Result<()> {
    let mut out = table(&sheet.headings);
    sheet.rows.iter().for_each(|row| {
        out.add_row(row.clone());
    });
    ui.line(&out.to_string())?;
    sheet.notes.iter().try_for_each(|note| ui.line(note))
}
