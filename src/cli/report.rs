//! `inknib report`: results of several adapters side by side.

use std::path::PathBuf;

use serde_json::json;

use super::common::{Ui, table};
use crate::Result;
use crate::files::{ending, write_whole};
use crate::probe::side_by_side::{Block, SideBySide, read};

const EXAMPLES: &str = "\
The files are what `inknib test -o FILE.json` and `inknib bench --ops -o FILE.json` write, on any machine.

Examples:
  inknib report a.json b.json
  inknib report docs/adapters/*.json -o adapters.html -o adapters.md
  inknib report test.json bench.json       both of one adapter";

/// Flags of `inknib report`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Results, at least one
    #[arg(required = true, value_name = "FILE.json")]
    pub files: Vec<PathBuf>,
    /// Write the report to a file: .html or .md; may be given several times
    #[arg(short, long, value_name = "FILE")]
    pub output: Vec<PathBuf>,
}

const FORMS: [&str; 2] = ["html", "md"];
const TITLE: &str = "Adapters side by side";

/// Prints the report, or writes it.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    for file in &args.output {
        ending(file, &FORMS)?;
    }
    let stacks = read(&args.files)?;
    let report = SideBySide::of(&stacks);
    for file in &args.output {
        let text = match ending(file, &FORMS)? {
            "html" => report.html(TITLE),
            _ => report.markdown(TITLE),
        };
        write_whole(file, text.as_bytes())?;
        ui.note(&format!("{} written", file.display()));
    }
    if ui.json() {
        let names: Vec<String> =
            stacks.iter().map(|s| format!("{} ({}, {})", s.adapter, s.backend, s.driver)).collect();
        return ui.answer(&json!({
            "adapters": names,
            "failed": report.failed,
            "output": args.output,
        }));
    }
    if !args.output.is_empty() {
        return Ok(());
    }
    for block in &report.blocks {
        match block {
            Block::Heading(words) => ui.line(&format!("\n{}", words.to_uppercase()))?,
            Block::Paragraph(words) => ui.line(words)?,
            Block::Table(headings, rows) => {
                let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
                let mut shown = table(&headings);
                rows.iter().for_each(|row| {
                    shown.add_row(row);
                });
                ui.line(&shown.to_string())?;
            }
        }
    }
    Ok(())
}
