//! `inknib study`: the claims about low-bit weights, one experiment each, as an article.

use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::common::{ActivationChoice, Family, GpuArgs, ModelFolder, Ui, table};
use super::generate::writable;
use super::progress::Stages;
use super::recover::once_more;
use crate::diffusion::sampler::Sampler;
use crate::diffusion::text_to_image::Request;
use crate::gpu::{Elem, Gpu};
use crate::probe::calibrate::{QUESTIONS, Read};
use crate::probe::compare::OnStage;
use crate::probe::compare_text::Passage;
use crate::probe::perplexity::read_text;
use crate::probe::study::{
    ASKED, Experiment, LlmOptions, PAGE, PROMPTS, Setup, Study, TextLab, UnetLab, UnetOptions,
    check_only, run as run_study, text_experiments, unet_experiments,
};
use crate::weights::{ImageFamily, ImageModel, Part, WeightStore};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Writes DIR/index.html, an article with a verdict and plots for every claim, and DIR/study.json with its numbers. Each finished
experiment is kept: a study that was stopped goes on where it was. A study of demo-scenes takes about an hour on two cores, one of
demo-chat some minutes.

Examples:
  inknib study unet -o why-int4-hurts
  inknib study unet -m stable-diffusion-v1-5/ -o sd15 --pairs 4 --steps 20
  inknib study unet -o quick --pairs 2 --steps 10 --only U1,U13
  inknib study llm -o what-int4-does-to-text
  inknib study llm -m Llama-3.2-1B/ -f wiki.txt --windows 16 -o llama";

/// Flags of `inknib study`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Which kind of net
    #[arg(value_enum)]
    pub net: NetChoice,
    /// A model folder, or the name of one in models/ or $INKNIB_MODELS [default: demo-scenes, demo-chat]
    #[arg(short, long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// The folder for the article and its numbers
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Claims or experiments to run, with commas [default: all]
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Pairs of runs: prompts in turn, each with a seed of its own [default: 8]
    #[arg(long, value_name = "N", help_heading = "Pictures")]
    pub pairs: Option<usize>,
    /// Prompts, one a line [default: ones of the demo model]
    #[arg(long, value_name = "FILE", help_heading = "Pictures")]
    pub prompts: Option<PathBuf>,
    /// Steps of the sampler, which is DDIM [default: 25]
    #[arg(long, value_name = "N", help_heading = "Pictures")]
    pub steps: Option<usize>,
    /// Guidance; 1 turns it off [default: 4]
    #[arg(long, visible_alias = "guidance-scale", help_heading = "Pictures")]
    pub cfg_scale: Option<f64>,
    /// Seed of the first pair [default: 7]
    #[arg(short, long, help_heading = "Pictures")]
    pub seed: Option<u64>,
    /// Score a text instead of the model's own answers: windows of 512 tokens of its first half; calibration reads the
    /// second half
    #[arg(short, long, value_name = "TEXT", help_heading = "Text")]
    pub file: Option<PathBuf>,
    /// Windows of the text that are scored [default: 8]
    #[arg(long, value_name = "N", requires = "file", help_heading = "Text")]
    pub windows: Option<usize>,
    /// How many of the 24 built-in questions are asked [default: all]
    #[arg(long, value_name = "N", conflicts_with = "file", help_heading = "Text")]
    pub questions: Option<usize>,
    /// Most tokens of an answer [default: 96]
    #[arg(
        long,
        visible_alias = "max-new-tokens",
        value_name = "N",
        conflicts_with = "file",
        help_heading = "Text"
    )]
    pub max_tokens: Option<usize>,
    #[command(flatten)]
    pub gpu: GpuArgs,
}

impl Args {
    /// The first flag that was given for the other kind of net.
    fn stray(&self) -> Option<&'static str> {
        let pictures = [
            ("--pairs", self.pairs.is_some()),
            ("--prompts", self.prompts.is_some()),
            ("--steps", self.steps.is_some()),
            ("--cfg-scale", self.cfg_scale.is_some()),
            ("--seed", self.seed.is_some()),
        ];
        let text = [
            ("--file", self.file.is_some()),
            ("--windows", self.windows.is_some()),
            ("--questions", self.questions.is_some()),
            ("--max-tokens", self.max_tokens.is_some()),
        ];
        let others: &[(&str, bool)] = match self.net {
            NetChoice::Unet => &text,
            NetChoice::Llm => &pictures,
        };
        others.iter().find(|(_, given)| *given).map(|(name, _)| *name)
    }
}

/// Kinds of nets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NetChoice {
    /// A text-to-image model's UNet
    Unet,
    /// A language model
    Llm,
}

/// Most pairs.
const PAIRS: usize = 4096;

/// Runs what is not there yet and writes the article.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    let (default, family) = match args.net {
        NetChoice::Unet => ("demo-scenes", Family::TextToImage),
        NetChoice::Llm => ("demo-chat", Family::Llm),
    };
    if let Some(flag) = args.stray() {
        let kind = match args.net {
            NetChoice::Unet => "a UNet",
            NetChoice::Llm => "a language model",
        };
        return Err(Error::Usage(format!("{flag} means nothing to a study of {kind}")));
    }
    let folder = ModelFolder::find(args.model.as_deref().unwrap_or(Path::new(default)))?;
    let folder = folder.expect(family)?;
    match args.net {
        // Experiments that are finished are not done again.
        NetChoice::Unet => once_more(ui, |_| unet(args, &folder, ui)),
        NetChoice::Llm => once_more(ui, |_| llm(args, &folder, ui)),
    }
}

fn unet(args: &Args, folder: &ModelFolder, ui: &Ui) -> Result<()> {
    let experiments = unet_experiments();
    check_only(&experiments, &args.only)?;
    let requests = requests(args)?;
    let first = requests[0].clone();
    let model = ImageModel::open(&folder.path)?;
    if model.kind().family == ImageFamily::Unconditional {
        return Err(Error::Usage(format!(
            "{}: paints without a prompt; a study compares what prompts give",
            folder.path.display()
        )));
    }
    let store = model.store(Part::Unet)?;
    original(&store, &folder.path)?;
    let gpu = args.gpu.open(ui)?;
    let act = ActivationChoice::Auto.resolve(&gpu)?;
    let mut setup = setup("unet", folder, &gpu, act);
    setup.sha256 = store.sha256();
    drop(store);
    let of = |name: &str, value: String| (name.to_string(), value);
    setup.conditions.extend([
        of("pairs (prompts and seeds)", requests.len().to_string()),
        of("seed of the first pair", first.seed.to_string()),
        of(
            "prompts",
            args.prompts
                .as_ref()
                .map_or("built in".into(), |file| named(file, &prompts(&requests))),
        ),
        of("sampler", format!("DDIM, {} steps", first.steps)),
        of("guidance", first.guidance.to_string()),
    ]);
    let options =
        UnetOptions { folder: folder.path.clone(), act, requests, scratch: args.output.clone() };
    let study = prepare(args, setup)?;
    go(args, study, &mut UnetLab::new(gpu, options), &experiments, ui)
}

fn requests(args: &Args) -> Result<Vec<Request>> {
    let pairs = args.pairs.unwrap_or(8);
    let steps = args.steps.unwrap_or(25);
    if !(1..=PAIRS).contains(&pairs) {
        return Err(Error::Usage(format!("--pairs {pairs}: give 1 to {PAIRS}")));
    }
    if steps < 5 {
        return Err(Error::Usage(format!(
            "--steps {steps}: a study looks at 5 steps at the least"
        )));
    }
    let prompts: Vec<String> = match &args.prompts {
        None => PROMPTS.map(String::from).to_vec(),
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
            text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect()
        }
    };
    if prompts.is_empty() {
        return Err(Error::Usage("the file of prompts is empty; write one a line".into()));
    }
    let guidance = args.cfg_scale.unwrap_or(4.0);
    if !guidance.is_finite() || guidance < 0.0 {
        return Err(Error::Usage(format!("--cfg-scale {guidance}: give 1 to 15")));
    }
    let request = |i: usize| Request {
        prompt: prompts[i % prompts.len()].clone(),
        seed: args.seed.unwrap_or(7).wrapping_add(i as u64),
        steps,
        guidance,
        sampler: Some(Sampler::Ddim { eta: 0.0 }),
        ..Request::default()
    };
    Ok((0..pairs).map(request).collect())
}

fn llm(args: &Args, folder: &ModelFolder, ui: &Ui) -> Result<()> {
    let experiments = text_experiments();
    check_only(&experiments, &args.only)?;
    let (passage, calibration) = passages(args)?;
    let store = WeightStore::open(&folder.path)?;
    original(&store, &folder.path)?;
    let gpu = args.gpu.open(ui)?;
    let act = ActivationChoice::Auto.resolve(&gpu)?;
    let mut setup = setup("llm", folder, &gpu, act);
    setup.sha256 = store.sha256();
    drop(store);
    let of = |name: &str, value: String| (name.to_string(), value);
    setup.conditions.extend(match &passage {
        Passage::Questions { questions, most } => [
            of("scored", format!("its own greedy answers to {} questions", questions.len())),
            of("most tokens of an answer", most.to_string()),
        ],
        Passage::Text { text, windows } => [
            of("scored", format!("{windows} windows of a text")),
            of("text", args.file.as_deref().map_or(String::new(), |file| named(file, text))),
        ],
    });
    setup.conditions.push(of(
        "calibration",
        match &calibration {
            Read::Answers { questions, .. } => {
                format!("its own answers to {} other questions", questions.len())
            }
            Read::Text { windows, .. } => {
                format!("at most {windows} windows of the text's second half")
            }
        },
    ));
    let options = LlmOptions {
        folder: folder.path.clone(),
        act,
        passage,
        calibration,
        scratch: args.output.clone(),
    };
    let study = prepare(args, setup)?;
    go(args, study, &mut TextLab::new(gpu, options), &experiments, ui)
}

/// An error for weights that have lost something before.
fn original(store: &WeightStore, path: &Path) -> Result<()> {
    match store.quantized().is_some() || store.quantized_elsewhere().is_some() {
        false => Ok(()),
        true => Err(Error::Usage(format!(
            "{}: is quantized already; a study begins with the original weights",
            path.display()
        ))),
    }
}

/// The last part of a path.
fn base_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).display().to_string()
}

/// A file's name and what tells whether its text is still the same.
fn named(file: &Path, text: &str) -> String {
    let digest: String = Sha256::digest(text).iter().take(6).map(|b| format!("{b:02x}")).collect();
    format!("{} (SHA-256 {digest}…)", base_name(file))
}

/// The prompts of all pairs, a line each.
fn prompts(requests: &[Request]) -> String {
    requests.iter().map(|r| r.prompt.as_str()).collect::<Vec<_>>().join("\n")
}

/// What is scored, and what calibration reads, which has nothing in common with it.
fn passages(args: &Args) -> Result<(Passage, Read)> {
    /// Windows of a text, scored and read by calibration; tokens of an answer.
    const WINDOWS: [usize; 2] = [8, 64];
    const TOKENS: usize = 96;
    if let Some(file) = &args.file {
        let text = read_text(file)?;
        // Between two words near the middle.
        let middle = text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at);
        let cut = text[middle..].find(char::is_whitespace).map_or(middle, |more| middle + more);
        let (first, second) = text.split_at(cut);
        let windows = args.windows.unwrap_or(WINDOWS[0]);
        if windows == 0 {
            return Err(Error::Usage("--windows 0 scores nothing; 8 are usual".into()));
        }
        return Ok((
            Passage::Text { text: first.into(), windows },
            Read::Text { text: second.into(), windows: WINDOWS[1] },
        ));
    }
    let count = args.questions.unwrap_or(ASKED.len());
    if !(1..=ASKED.len()).contains(&count) {
        return Err(Error::Usage(format!("--questions {count}: give 1 to {}", ASKED.len())));
    }
    let most = args.max_tokens.unwrap_or(TOKENS);
    if most < 2 {
        return Err(Error::Usage(format!(
            "--max-tokens {most}: answers are looked at in halves; give 2 at the least"
        )));
    }
    // Fewer questions are spread over all of them: stories are at the end.
    let spread = |all: &[&str], count: usize| -> Vec<String> {
        (0..count).map(|i| all[(i * all.len() + all.len() / 2) / count].to_string()).collect()
    };
    let (questions, seen) = (spread(&ASKED, count), spread(&QUESTIONS, count));
    Ok((Passage::Questions { questions, most }, Read::Answers { questions: seen, most }))
}

/// What both kinds have in common.
fn setup(net: &str, folder: &ModelFolder, gpu: &Gpu, act: Elem) -> Setup {
    let name = base_name(&folder.path);
    let of = |name: &str, value: String| (name.to_string(), value);
    let adapter = gpu.adapter();
    Setup {
        net: net.into(),
        model: name.clone(),
        conditions: vec![
            of("model", name),
            of("adapter", format!("{} ({})", adapter.name, adapter.driver)),
            of("activations", act.wgsl().to_string()),
        ],
        ..Setup::default()
    }
}

/// The study that is there, or a beginning.
fn prepare(args: &Args, setup: Setup) -> Result<Study> {
    std::fs::create_dir_all(&args.output).map_err(|e| Error::io(&args.output, e))?;
    writable(&args.output.join(PAGE))?;
    Study::open(&args.output, setup)
}

fn go<L>(
    args: &Args,
    mut study: Study,
    lab: &mut L,
    experiments: &[Experiment<L>],
    ui: &Ui,
) -> Result<()> {
    let mut stages = Stages::new(ui);
    let on_stage: &mut OnStage<'_> = &mut |label, done, total| stages.show(label, done, total);
    run_study(&mut study, &args.output, lab, experiments, &args.only, on_stage)?;
    drop(stages);
    // Pages are made anew, in case only their look has changed since.
    study.write(&args.output)?;
    let page = args.output.join(PAGE);
    if ui.json() {
        return ui.answer(
            &json!({ "output": page, "setup": study.setup, "sections": summaries(&study) }),
        );
    }
    let mut rows = table(&["", "what is said", "what was found", "verdict"]);
    for s in study.sections() {
        rows.add_row([s.id.as_str(), &s.claim, &s.finding, s.outcome.words()]);
    }
    ui.line(&rows.to_string())?;
    ui.line(&format!("{}: the article; open it in a browser", page.display()))
}

fn summaries(study: &Study) -> Vec<serde_json::Value> {
    let one = |s: &&crate::probe::study::Section| {
        json!({
            "id": s.id,
            "claim": s.claim,
            "finding": s.finding,
            "verdict": s.outcome,
            "numbers": s.numbers,
        })
    };
    study.sections().iter().map(one).collect()
}
