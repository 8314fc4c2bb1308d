//! `inknib demo`: one picture and one short conversation with the models that ship with inknib.

use std::path::PathBuf;

use serde_json::json;

use super::common::{ActivationChoice, Family, GpuArgs, KernelChoice, ModelArgs, Ui};
use super::generate::Painter;
use super::generate_inputs::Inputs;
use super::generate_report::{Made, chunks};
use super::recover::on_device;
use super::session::{Session, Setup};
use super::{chat, generate};
use crate::text::generation_config::Overrides;
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  inknib demo
  inknib demo --weights fp16 -o scene.png";

const PROMPT: &str = "a red boat on a calm sea at sunset, snowy mountains behind";
const QUESTIONS: [&str; 3] =
    ["Hello! Who are you?", "What is 7 plus 5?", "Tell me a short story about a fox."];

/// Flags of `inknib demo`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub gpu: GpuArgs,
    /// int4, int8, fp16 or fp32
    #[arg(long, value_name = "FORMAT", default_value = "int4")]
    pub weights: String,
    /// The PNG to write
    #[arg(short, long, default_value = "demo.png")]
    pub output: PathBuf,
}

/// Paints, then talks.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    let model = |name: &str| ModelArgs {
        model: Some(name.into()),
        weights: args.weights.clone(),
        kernels: KernelChoice::Fast,
        activations: ActivationChoice::Auto,
    };
    generate::writable(&args.output)?;
    let scenes = model("demo-scenes");
    let folder = scenes.folder(None)?.expect(Family::TextToImage)?;
    ui.line(&format!("Painting \"{PROMPT}\" ..."))?;
    let inputs = Inputs::demo(&scenes, &folder.path, PROMPT)?;
    let (gpu, painted) = on_device(&args.gpu, ui, |gpu| {
        let painted = Painter::new(gpu, &inputs, ui)?.paint(&inputs.request, (0, 1), ui)?;
        Ok((gpu.clone(), painted))
    })?;
    let image = painted.picture.images.first();
    let image = image.ok_or_else(|| Error::Runtime("no picture was painted".into()))?;
    let made = Made { inputs: &inputs, request: &inputs.request, painted: &painted, place: 0 };
    image.write_png(&args.output, &chunks(&made, &made.record(&gpu)?))?;
    generate::show(&args.output, ui);
    ui.line(&generate::summary(&args.output, &gpu, &painted))?;

    let talk = model("demo-chat");
    let folder = talk.folder(None)?.expect(Family::Llm)?;
    ui.line("\nTalking ...")?;
    let (how, overrides) = (chat::How::default(), Overrides::default());
    let setup = Setup { gpu: &args.gpu, folder: &folder.path, model: &talk, how: &how, overrides };
    let mut session = Session::open(setup, Some(gpu), ui)?;
    let mut turns = Vec::new();
    for question in QUESTIONS {
        ui.line(&format!("> {question}"))?;
        let answer = chat::say(&mut session, question, ui)?;
        ui.line("")?;
        if question == QUESTIONS[QUESTIONS.len() - 1] {
            ui.line(&chat::summary(&session, &answer))?;
        }
        turns.push(json!({ "question": question, "answer": answer.text }));
    }
    if ui.json() {
        let Session { gpu, loaded, .. } = &session;
        let (kernels, compile) = gpu.compile_cost();
        return ui.answer(&json!({
            "image": args.output,
            "conversation": turns,
            "adapter": gpu.adapter().name,
            "weights": args.weights,
            "bits_per_weight": { "scenes": painted.bits_per_weight, "chat": loaded.bits_per_weight },
            "kernels_compiled": kernels,
            "compile_seconds": compile,
        }));
    }
    Ok(())
}
