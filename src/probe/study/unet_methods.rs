//! The methods that find codes, side by side on the same runs, and the calibration that some of them need.

use std::path::PathBuf;
use std::rc::Rc;

use super::imitate::{Change, Imitation, Span};
use super::unet::{Judged, Painted, UnetLab, painted};
use super::weights::{HQQ, Q4_0, Weights, within};
use super::{Outcome, Section};
use crate::Result;
use crate::gpu::Elem;
use crate::probe::calibrate::{Options, PROMPTS, Paint, calibrate_image, layers};
use crate::probe::compare::OnStage;
use crate::probe::plot::{Axis, Plot, number};
use crate::quant::{Recipe, Statistics};
use crate::weights::{Method, WeightStore};

/// How weights are made.
enum How {
    Recipe(Recipe),
    /// By a method that has seen calibration data; biases are corrected.
    Calibrated(Recipe, Method),
    /// 8 bits with one scale for each row.
    Channels(Recipe),
}

/// A method and what it does.
struct Made {
    name: &'static str,
    calibrated: bool,
    judged: Judged,
    pictures: Painted,
}

/// Everything that is compared. A small net may keep too much in 16 bits for the budget, which is then left out.
fn plans(store: &WeightStore, statistics: &Statistics) -> Result<Vec<(&'static str, How)>> {
    let int4 = Recipe::builtin("int4", "unet")?;
    let budget = |known| within(store, (&int4, BITS), known);
    let recipe = |words: &str| Recipe::from_argument(words, "unet").map(How::Recipe);
    let mut all = vec![
        ("Q4_0 on every layer", How::Recipe(Recipe::parse("q4_0", Q4_0, "unet")?)),
        ("HQQ, groups of 64", How::Recipe(Recipe::parse("hqq-g64", HQQ, "unet")?)),
        ("int4", recipe("int4")?),
        ("int4-quality", recipe("int4-quality")?),
        ("int4, groups of 32", recipe("int4-g32-cubic")?),
    ];
    all.extend(budget(None)?.map(|r| ("--bits 4.6", How::Recipe(r))));
    let calibrated = |method| How::Calibrated(int4.clone(), method);
    all.extend([
        ("int4, biases corrected", calibrated(Method::Mse)),
        ("int4, imatrix", calibrated(Method::Imatrix)),
        ("int4, AWQ", calibrated(Method::Awq)),
        ("int4, GPTQ", calibrated(Method::Gptq)),
    ]);
    let known = budget(Some(statistics))?;
    all.extend(known.map(|r| ("--bits 4.6, GPTQ", How::Calibrated(r, Method::Gptq))));
    all.push(("INT8 per channel", How::Channels(int4.clone())));
    all.push(("int8, groups of 64", recipe("int8")?));
    Ok(all)
}

/// M: methods, from the plainest to the most careful.
pub(super) fn methods(lab: &mut UnetLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let statistics = lab.calibrated(true, on_stage)?;
    let store = lab.store()?;
    let base = lab.runs(on_stage)?;
    let requests = lab.options.requests.clone();
    let channel = Imitation::plain(8, Span::Channel);
    let file = lab.options.scratch.join("study-unet.partial.safetensors");
    let mut found = Vec::new();
    for (name, how) in plans(&store, &statistics)? {
        on_stage(name, 0, 0);
        let calibrated = matches!(how, How::Calibrated(..));
        let weights = match how {
            How::Recipe(recipe) => Weights::Recipe(recipe),
            How::Calibrated(recipe, method) => {
                Weights::packed(&store, (&recipe, method), &statistics, &file)?.0
            }
            How::Channels(recipe) => Weights::Change(recipe, Change::Imitation(&channel, None)),
        };
        let judged = lab.judge(name, &weights, on_stage)?;
        let pictures = painted(&lab.again(&requests, name, on_stage)?, &base)?;
        found.push(Made { name, calibrated, judged, pictures });
    }
    // What calibration kept in case of a stop is large, and of no use any more.
    let _ = std::fs::remove_file(lab.sums());
    Ok(vec![table(&found)])
}

/// What the budget asks for.
const BITS: f64 = 4.6;

fn by_bits(found: &[Made]) -> Plot {
    let plot = Plot::new(
        Axis::linear("bits per weight of the UNet, everything counted"),
        Axis::linear("SQNR of ε, dB"),
    );
    let point = |m: &Made| {
        let (bits, db) = (m.judged.bits, m.judged.db());
        ((bits, db), format!("{}: {} bits, {} dB", m.name, number(bits), number(db)))
    };
    let of = |calibrated| found.iter().filter(move |m| m.calibrated == calibrated).map(point);
    plot.scatter("without calibration", of(false).collect::<Vec<_>>())
        .scatter("with calibration", of(true).collect::<Vec<_>>())
}

fn table(found: &[Made]) -> Section {
    let db = |name: &str| found.iter().find(|m| m.name == name).map_or(f64::NAN, |m| m.judged.db());
    let (q4, hqq, plain, best) = (
        db("Q4_0 on every layer"),
        db("HQQ, groups of 64"),
        db("--bits 4.6"),
        db("--bits 4.6, GPTQ"),
    );
    let title = "Methods by bits";
    let mut section = Section::new(
        "M",
        "What helps",
        "Four bits for a whole UNet, 3×3 convolutions included, are good enough if the codes are chosen with care.",
        "Every method on the same runs. Q4_0 and HQQ are the baselines: what llama.cpp and hqq would do. Calibrated methods have \
         seen other prompts, painted by the fp16 model.",
    )
    .found(
        match plain.is_nan() {
            true => Outcome::NotTested,
            false => Outcome::of(plain >= q4 + 4.0 && plain >= hqq + 2.0),
        },
        format!(
            "At 4.6 bits for the whole UNet, as the file has it, ε keeps {} dB without calibration, {} dB more than Q4_0 and {} dB \
             more than HQQ; with calibration {} dB.",
            number(plain),
            number(plain - q4),
            number(plain - hqq),
            number(best),
        ),
    )
    .paragraph(
        "Bits are those in memory, where norms and biases have 32 bits; in a small net that is a tenth of a bit more than in the \
         file.",
    )
    .figure(title, by_bits(found).svg(title), "Teacher-forced, means over the pairs and five steps; point at a dot for its name.")
    .table(
        &["method", "bits per weight", "SQNR of ε, dB", "PSNR, dB", "SSIM"],
        found.iter().map(|m| {
            vec![
                m.name.to_string(),
                number(m.judged.bits),
                number(m.judged.db()),
                number(m.pictures.psnr),
                number(m.pictures.ssim),
            ]
        }),
    );
    for m in found {
        section = section
            .number(&format!("{}: bits", m.name), m.judged.bits)
            .number(&format!("{}: eps_db", m.name), m.judged.db())
            .number(&format!("{}: psnr_db", m.name), m.pictures.psnr)
            .number(&format!("{}: ssim", m.name), m.pictures.ssim);
    }
    section
}

/// Prompts of a calibration, and evaluations of each, at most: XᵀX of more costs minutes.
const PROMPTS_SEEN: usize = 4;
const STEPS: usize = 10;
/// Sums on the GPU at once.
const MEMORY: u64 = 1 << 30;

impl UnetLab {
    /// What calibration knows; `gram`: with XᵀX.
    pub(super) fn calibrated(
        &mut self,
        gram: bool,
        on_stage: &mut OnStage<'_>,
    ) -> Result<Rc<Statistics>> {
        let enough = |s: &Rc<Statistics>| !gram || s.layers.values().all(|l| !l.gram.is_empty());
        if let Some(known) = self.statistics.clone().filter(enough) {
            return Ok(known);
        }
        let (store, recipe) = (self.store()?, Recipe::builtin("int4", "unet")?);
        let options = Options {
            model: self.options.folder.clone(),
            layers: layers(&store, &recipe)?,
            gram,
            act: Elem::F32,
            state: gram.then(|| self.sums()),
            memory: MEMORY,
        };
        let requests = &self.options.requests;
        let seen = PROMPTS_SEEN.min(requests.len());
        let prompts = PROMPTS.iter().take(seen).map(|p| (*p).to_string()).collect();
        let steps = requests.first().map_or(STEPS, |r| r.steps.min(STEPS));
        let guidance = requests.first().map_or(1.0, |r| r.guidance);
        let paint = Paint { prompts, steps, guidance };
        let mut stage = |label: &str, done: usize, total: usize| {
            on_stage(&format!("calibration, {label}"), done, total);
        };
        let known = Rc::new(calibrate_image(&self.gpu, &options, &paint, &mut stage)?);
        self.statistics = Some(known.clone());
        Ok(known)
    }

    /// The file that keeps what calibration has summed up.
    fn sums(&self) -> PathBuf {
        self.options.scratch.join("calibration.safetensors")
    }

    /// Error of ε and PSNR with weights rounded to bfloat16, of the first pairs.
    pub(super) fn bfloat(&mut self, on_stage: &mut OnStage<'_>) -> Result<[f64; 2]> {
        let few = self.few().to_vec();
        let runs = self.runs(on_stage)?;
        let weights = Weights::Change(Recipe::builtin("fp16", "unet")?, Change::Bf16);
        let judged = self.judge("bf16", &weights, on_stage)?;
        let painted = painted(&self.again(&few, "bf16", on_stage)?, &runs)?;
        Ok([judged.noise.sqrt(), painted.psnr])
    }
}
