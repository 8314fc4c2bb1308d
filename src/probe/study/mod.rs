//! `study`: what is said about low-bit weights, one experiment for each claim, on a model that is at hand. Every
//! experiment ends in a number and a verdict; the page that is made of them ([`article`]) reads as an article.
//! Finished experiments are kept in a file, so that a stopped study goes on where it was.

mod article;
mod imitate;
mod text;
mod text_formats;
mod text_methods;
mod text_places;
mod text_runs;
mod text_values;
mod unet;
mod unet_formats;
mod unet_methods;
mod unet_noise;
mod unet_places;
mod unet_remedies;
mod unet_runs;
mod unet_values;
mod weights;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use article::study_page;
pub use imitate::{Change, Form, Imitation, Span, imitated};
pub use text::{ASKED, LlmOptions, TextLab, text_experiments};
pub use unet::{PROMPTS, UnetLab, UnetOptions, unet_experiments};

use super::compare::OnStage;
use crate::files::write_whole;
use crate::{Error, Result};

/// Version of the file.
const VERSION: u32 = 1;
/// The file in the study's folder.
pub const FILE: &str = "study.json";
/// The page in the study's folder.
pub const PAGE: &str = "index.html";

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Holds,
    DoesNotHold,
    /// It depends on something that the finding names.
    UnderConditions,
    /// This model or this program cannot tell; the finding says why.
    NotTested,
}

impl Outcome {
    /// As it is read.
    pub fn words(self) -> &'static str {
        match self {
            Outcome::Holds => "holds",
            Outcome::DoesNotHold => "does not hold",
            Outcome::UnderConditions => "holds under conditions",
            Outcome::NotTested => "not tested",
        }
    }
    /// `Holds` or `DoesNotHold`.
    pub(super) fn of(holds: bool) -> Outcome {
        if holds { Outcome::Holds } else { Outcome::DoesNotHold }
    }
}

/// A part of a section, in the order of reading.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Block {
    Paragraph(String),
    Figure {
        title: String,
        svg: String,
        caption: String,
    },
    Table {
        headings: Vec<String>,
        rows: Vec<Vec<String>>,
    },
    /// Pictures.
    Html(String),
}

/// A claim and what was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// `U1` to `U14` of UNets, `L1` to `L9` of language models, `M` for the methods.
    pub id: String,
    /// A heading of the article.
    pub title: String,
    /// What is said.
    pub claim: String,
    /// What was done to find out.
    pub experiment: String,
    /// What was found: one sentence with the number that decides.
    pub finding: String,
    pub outcome: Outcome,
    pub body: Vec<Block>,
    /// The figures behind it, by name with their unit at the end; `null` where one is not finite.
    pub numbers: BTreeMap<String, Option<f64>>,
}

impl Section {
    /// A section of which the finding is still to be said.
    pub(super) fn new(
        id: &str,
        title: &str,
        claim: &str,
        experiment: impl Into<String>,
    ) -> Section {
        Section {
            id: id.into(),
            title: title.into(),
            claim: claim.into(),
            experiment: experiment.into(),
            finding: String::new(),
            outcome: Outcome::NotTested,
            body: Vec::new(),
            numbers: BTreeMap::new(),
        }
    }
    /// Says what was found.
    pub(super) fn found(mut self, outcome: Outcome, finding: impl Into<String>) -> Section {
        (self.outcome, self.finding) = (outcome, finding.into());
        self
    }
    pub(super) fn paragraph(mut self, words: impl Into<String>) -> Section {
        self.body.push(Block::Paragraph(words.into()));
        self
    }
    /// The SVG is drawn for that title.
    pub(super) fn figure(
        mut self,
        title: &str,
        svg: String,
        caption: impl Into<String>,
    ) -> Section {
        self.body.push(Block::Figure { title: title.into(), svg, caption: caption.into() });
        self
    }
    pub(super) fn table(
        mut self,
        headings: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> Section {
        let headings = headings.iter().map(|h| (*h).to_string()).collect();
        self.body.push(Block::Table { headings, rows: rows.into_iter().collect() });
        self
    }
    pub(super) fn html(mut self, html: String) -> Section {
        self.body.push(Block::Html(html));
        self
    }
    pub(super) fn number(mut self, name: &str, value: f64) -> Section {
        self.numbers.insert(name.into(), value.is_finite().then_some(value));
        self
    }
    pub(super) fn numbers<'a>(self, all: impl IntoIterator<Item = (&'a str, f64)>) -> Section {
        all.into_iter().fold(self, |section, (name, value)| section.number(name, value))
    }
}

/// What is studied and how; a study goes on only where all of it is the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// `unet` or `llm`.
    pub net: String,
    /// The model's name.
    pub model: String,
    /// Of the net's weights.
    pub sha256: String,
    /// Name and value, for the reader: adapter, pairs, steps, guidance.
    pub conditions: Vec<(String, String)>,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Study {
    /// Version of this form.
    pub study: u32,
    pub setup: Setup,
    /// By the experiment that they come from.
    pub experiments: BTreeMap<String, Vec<Section>>,
    /// Seconds that each experiment took.
    pub seconds: BTreeMap<String, f64>,
}

impl Study {
    /// A study in `folder`: the one that is there, or a beginning.
    ///
    /// # Errors
    /// `Usage` for a study of something else, which is not written over.
    pub fn open(folder: &Path, setup: Setup) -> Result<Study> {
        let path = folder.join(FILE);
        let (experiments, seconds) = Default::default();
        let fresh = Study { study: VERSION, setup, experiments, seconds };
        if !path.exists() {
            return Ok(fresh);
        }
        let found = Study::read(&path)?;
        match found.setup == fresh.setup {
            true => Ok(found),
            false => Err(Error::Usage(format!(
                "{}: a study of {} under other conditions ({}); name another folder, or remove it",
                path.display(),
                found.setup.model,
                difference(&found.setup, &fresh.setup),
            ))),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// `Io`, and `Usage` for a file that is no study.
    pub fn read(path: &Path) -> Result<Study> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let study: Study = serde_json::from_str(&text)
            .map_err(|e| Error::Usage(format!("{}: no study: {e}", path.display())))?;
        match study.study {
            VERSION => Ok(study),
            other => Err(Error::Usage(format!(
                "{}: a study of version {other}, this program reads {VERSION}; name another folder",
                path.display()
            ))),
        }
    }

    /// All sections in the order of their claims.
    pub fn sections(&self) -> Vec<&Section> {
        let mut all: Vec<&Section> = self.experiments.values().flatten().collect();
        all.sort_by_key(|s| order(&s.id));
        all
    }

    /// Writes the file and the page; at no moment is there half of one.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::Runtime(format!("the study cannot be written as JSON: {e}")))?;
        write_whole(folder.join(FILE), text.as_bytes())?;
        write_whole(folder.join(PAGE), study_page(self).as_bytes())
    }
}

/// Letters, then the number: M after all others.
fn order(id: &str) -> (bool, u32) {
    (id == "M", id.trim_start_matches(|c: char| c.is_alphabetic()).parse().unwrap_or(0))
}

/// The first condition in which two setups differ.
fn difference(a: &Setup, b: &Setup) -> String {
    if a.sha256 != b.sha256 {
        return "the weights".into();
    }
    let differs = a.conditions.iter().zip(&b.conditions).find(|(a, b)| a != b);
    differs.map_or("the kind of net".into(), |((name, was), (_, is))| {
        format!("{name}: {was}, now {is}")
    })
}

/// An experiment: its name, the claims that it decides, and how it is done in a laboratory `L`.
pub struct Experiment<L> {
    pub name: &'static str,
    pub claims: &'static [&'static str],
    pub run: fn(&mut L, &mut OnStage<'_>) -> Result<Vec<Section>>,
}

/// Runs the experiments that are not in the study yet (of `only`, where it names any) and writes after each.
///
/// # Errors
/// As the experiments do; what is finished is written. `Interrupted` on Ctrl-C.
pub fn run<L>(
    study: &mut Study,
    folder: &Path,
    lab: &mut L,
    experiments: &[Experiment<L>],
    only: &[String],
    on_stage: &mut OnStage<'_>,
) -> Result<()> {
    let wanted = |e: &&Experiment<L>| only.is_empty() || only.iter().any(|id| names(e, id));
    for experiment in experiments.iter().filter(wanted) {
        if study.experiments.contains_key(experiment.name) {
            continue;
        }
        let start = std::time::Instant::now();
        let mut stage = |label: &str, done: usize, total: usize| {
            on_stage(&format!("{}: {label}", experiment.name), done, total);
        };
        let sections = (experiment.run)(lab, &mut stage)?;
        study.experiments.insert(experiment.name.into(), sections);
        study.seconds.insert(experiment.name.into(), start.elapsed().as_secs_f64());
        study.write(folder)?;
    }
    Ok(())
}

/// Whether an experiment is what `id` asks for: by its own name or that of a claim.
fn names<L>(experiment: &Experiment<L>, id: &str) -> bool {
    experiment.name == id || experiment.claims.iter().any(|c| c.eq_ignore_ascii_case(id))
}

/// An error for a word of `--only` that no experiment answers to.
///
/// # Errors
/// `Usage`, naming all that there are.
pub fn check_only<L>(experiments: &[Experiment<L>], only: &[String]) -> Result<()> {
    match only.iter().find(|id| !experiments.iter().any(|e| names(e, id))) {
        None => Ok(()),
        Some(id) => {
            let all = experiments.iter().map(|e| format!("{} ({})", e.name, e.claims.join(", ")));
            Err(Error::Usage(format!(
                "--only {id}: no experiment of that name; there are {}",
                all.collect::<Vec<_>>().join(", ")
            )))
        }
    }
}
