//! What `inknib quantize` knows beyond the weights: calibration, and the recipe for a budget of bits.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::common::{Family, GpuArgs, ModelFolder, Ui};
use crate::gpu::Elem;
use crate::probe::calibrate::{
    Options, PROMPTS, Paint, QUESTIONS, Read, calibrate_image, calibrate_text, layers,
};
use crate::probe::perplexity::read_text;
use crate::quant::{Recipe, Statistics};
use crate::weights::{Form, Method, Sensitivities, WeightStore, budget_recipe};
use crate::{Error, Result};

/// `--method`
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MethodChoice {
    /// The nearest level at the scale of least squared error; needs no calibration
    #[default]
    Mse,
    /// The same, errors weighed by what the layer reads there
    Imatrix,
    /// Errors taken back by later columns, for the least error in the layer's output
    Gptq,
    /// Channels with large inputs scaled up, their norm down
    Awq,
}

impl From<MethodChoice> for Method {
    fn from(choice: MethodChoice) -> Method {
        match choice {
            MethodChoice::Mse => Method::Mse,
            MethodChoice::Imatrix => Method::Imatrix,
            MethodChoice::Gptq => Method::Gptq,
            MethodChoice::Awq => Method::Awq,
        }
    }
}

/// `--form`
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FormChoice {
    /// This program's own form
    #[default]
    Inknib,
    /// "pack-quantized", which transformers and vLLM read
    CompressedTensors,
}

impl FormChoice {
    /// The form for a model.
    ///
    /// # Errors
    /// `Usage` for picture models in another form than this program's.
    pub fn of(self, model: &ModelFolder) -> Result<Form> {
        match (self, model.family) {
            (FormChoice::Inknib, _) => Ok(Form::Own),
            (FormChoice::CompressedTensors, Family::Llm) => Ok(Form::CompressedTensors),
            (FormChoice::CompressedTensors, Family::TextToImage) => Err(Error::Usage(
                "--form compressed-tensors is for language models; picture models stay in inknib's form".into(),
            )),
        }
    }
}

/// Flags for how codes and formats are chosen.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Method")]
pub struct MethodArgs {
    /// How the codes of 4-bit weights are found; all but mse run the model first
    #[arg(long, value_enum, value_name = "METHOD", default_value_t)]
    pub method: MethodChoice,
    /// Run the model first, whatever the method: corrects biases, and --bits counts errors of outputs
    #[arg(long)]
    pub calibrate: bool,
    /// Prompts, one a line, or for a language model a text [default: ones of its own]
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Steps painted for each prompt
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub calibration_steps: usize,
    /// Keep what calibration sums up in this file, and use it if it is there
    #[arg(long, value_name = "FILE")]
    pub statistics: Option<PathBuf>,
    /// Bits per weight of the UNet, or of the language model, everything counted; formats go where they help most
    #[arg(long, value_name = "N")]
    pub bits: Option<f64>,
    /// What `inknib compare --sweep` has measured of each layer, for --bits
    #[arg(long, value_name = "FILE", requires = "bits")]
    pub sensitivities: Option<PathBuf>,
}

/// Guidance at which calibration paints.
const GUIDANCE: f64 = 4.0;
/// Tokens of an answer, and windows of a text, at most.
const ANSWER: usize = 96;
const WINDOWS: usize = 64;
/// Sums on the GPU at once.
const MEMORY: u64 = 1 << 30;

/// Statistics, and in words what they are of.
pub struct Known {
    pub statistics: Statistics,
    pub data: String,
}

impl MethodArgs {
    /// Whether the model is to run first.
    pub fn calibrates(&self) -> bool {
        self.calibrate || Method::from(self.method).needs().0
    }

    /// What a run that goes on must have in common with the one that stopped.
    pub fn settings(&self) -> String {
        format!(
            "{:?} {} {:?} {} {:?} {:?}",
            self.method,
            self.calibrates(),
            self.calibration,
            self.calibration_steps,
            self.bits,
            self.sensitivities
        )
    }

    /// The recipe within the budget of bits, if there is one.
    pub fn budget(
        &self,
        store: &WeightStore,
        recipe: Recipe,
        known: Option<&Known>,
    ) -> Result<Recipe> {
        let Some(bits) = self.bits else { return Ok(recipe) };
        if !bits.is_finite() || bits <= 0.0 {
            return Err(Error::Usage(format!("--bits {bits}: give a number like 4.6")));
        }
        let sensitivities = match &self.sensitivities {
            Some(path) => Sensitivities::read(path)?,
            None => Sensitivities::default(),
        };
        budget_recipe(store, &recipe, bits, &sensitivities, known.map(|k| &k.statistics))
    }

    /// Runs the model, unless nobody wants that; the sums are kept in `state` meanwhile.
    pub fn calibrate(
        &self,
        model: &ModelFolder,
        store: &WeightStore,
        recipe: &Recipe,
        (gpu, state): (&GpuArgs, &Path),
        ui: &Ui,
    ) -> Result<Option<Known>> {
        if !self.calibrates() {
            return Ok(None);
        }
        let gpu = gpu.open(ui)?;
        let options = Options {
            model: model.path.clone(),
            layers: layers(store, recipe)?,
            gram: Method::from(self.method).needs().1 || self.bits.is_some(),
            // Sums of what f16 activations would have been are as good; f32 is what every adapter has.
            act: Elem::F32,
            state: Some(self.statistics.clone().unwrap_or_else(|| state.to_path_buf())),
            memory: MEMORY,
        };
        let bar = ui.bar("calibrate", 0);
        let mut on_stage = |stage: &str, done: usize, total: usize| {
            bar.total(total as u64);
            bar.at(done as u64);
            bar.say(stage.to_string());
        };
        let text = self.calibration.as_deref().map(read_text).transpose()?;
        let (statistics, data) = match model.family {
            Family::TextToImage => {
                let paint = self.paint(text)?;
                let data = format!(
                    "{} prompts, {} steps, guidance {}",
                    paint.prompts.len(),
                    paint.steps,
                    paint.guidance
                );
                (calibrate_image(&gpu, &options, &paint, &mut on_stage)?, data)
            }
            Family::Llm => {
                let (read, data) = match text {
                    Some(text) => {
                        let data = format!("a text of {} characters", text.chars().count());
                        (Read::Text { text, windows: WINDOWS }, data)
                    }
                    None => {
                        let questions: Vec<String> = QUESTIONS.map(String::from).to_vec();
                        let data = format!("its answers to {} questions", questions.len());
                        (Read::Answers { questions, most: ANSWER }, data)
                    }
                };
                (calibrate_text(&gpu, &options, &read, &mut on_stage)?, data)
            }
        };
        Ok(Some(Known { statistics, data }))
    }

    fn paint(&self, text: Option<String>) -> Result<Paint> {
        let lines = |text: String| -> Vec<String> {
            text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect()
        };
        let prompts = text.map_or_else(|| PROMPTS.map(String::from).to_vec(), lines);
        if prompts.is_empty() || self.calibration_steps == 0 {
            return Err(Error::Usage(
                "calibration needs prompts, one a line, and at least one step".into(),
            ));
        }
        Ok(Paint { prompts, steps: self.calibration_steps, guidance: GUIDANCE })
    }
}
