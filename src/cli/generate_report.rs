//! What `inknib generate` tells of a picture: on the terminal, as JSON, in the file's chunks.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::common::Ui;
use super::generate::Painted;
use super::generate_inputs::Inputs;
use super::json;
use crate::Result;
use crate::diffusion::image::{INKNIB_CHUNK, PARAMETERS_CHUNK};
use crate::diffusion::record::{Batch, RECORD_VERSION, Record, Tiling, Weights, fingerprint};
use crate::diffusion::settings::Settings;
use crate::diffusion::text_to_image::{Passes, Request};
use crate::gpu::{Elem, Gpu};
use crate::graph::Launch;

/// One picture of a run with all that it was made of.
pub(super) struct Made<'a> {
    pub inputs: &'a Inputs,
    pub request: &'a Request,
    pub painted: &'a Painted,
    /// Place in the batch.
    pub place: usize,
}

impl Made<'_> {
    /// Everything that repeats the run.
    pub fn record(&self, gpu: &Gpu) -> Result<Record> {
        let Made { inputs, request, painted, place } = self;
        let image = &painted.picture.images[*place];
        let mut files: Vec<PathBuf> = Vec::new();
        for part in inputs.model.parts() {
            files.extend(inputs.model.store(part)?.files().map(Path::to_path_buf));
        }
        files.dedup();
        let split = painted.memory.passes == Passes::Apart;
        let tiling =
            painted.memory.vae_tile.map(|tile| Tiling { tile: tile * 8, overlap: tile * 2 });
        let act = inputs.activations.resolve(gpu)?;
        Ok(Record {
            record: RECORD_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            model: inputs.model_name.clone(),
            model_hash: fingerprint(&files)?,
            weights: Weights { format: painted.weights.clone(), ..Weights::default() },
            vae: inputs.vae.clone(),
            prompt: request.prompt.clone(),
            negative_prompt: request.negative.clone(),
            prompt_syntax: request.syntax,
            clip_skip: (request.clip_skip > 0).then_some(request.clip_skip + 1),
            embeddings: inputs.embeddings.clone(),
            loras: inputs.loras.clone(),
            width: image.width,
            height: image.height,
            steps: request.steps,
            sampler: painted.picture.sampler.name().into(),
            scheduler: request.spacing.map(|s| s.label().to_lowercase().replace(' ', "_")),
            cfg_scale: request.guidance,
            cfg_rescale: (request.guidance_rescale > 0.0).then_some(request.guidance_rescale),
            seed: request.seed,
            rng: request.rng.name().into(),
            batch: (request.batch > 1).then_some(Batch { size: request.batch, index: *place }),
            init_image: inputs.init_image.clone(),
            mask: inputs.mask.clone(),
            controlnets: inputs.controls.clone(),
            vae_tiling: tiling,
            split_guidance: split,
            kernels: format!("{:?}", inputs.kernels).to_lowercase(),
            activations: if act == Elem::F16 { "f16" } else { "f32" }.into(),
            adapter: gpu.adapter().name.clone(),
            driver: gpu.adapter().driver.clone(),
            ..Record::default()
        })
    }

    /// AUTOMATIC1111's fields.
    fn settings(&self) -> Settings {
        let Made { inputs, request, painted, place } = self;
        let image = &painted.picture.images[*place];
        let path = Path::new(&inputs.model_name);
        let model = path.file_stem().map(|n| n.to_string_lossy().into_owned());
        let batch = request.batch > 1;
        Settings {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative.clone(),
            steps: Some(request.steps),
            sampler: Some(painted.picture.sampler.label().into()),
            schedule: request.spacing.map(|s| s.label().into()),
            cfg_scale: Some(request.guidance),
            seed: Some(request.seed),
            size: Some((image.width, image.height)),
            model,
            denoising_strength: request.start.as_ref().map(|start| start.strength),
            clip_skip: (request.clip_skip > 0).then_some(request.clip_skip + 1),
            rng: (request.rng == crate::diffusion::rng::RngKind::Cpu).then(|| "CPU".into()),
            batch_size: batch.then_some(request.batch),
            batch_pos: batch.then_some(*place),
            version: Some(format!("inknib {}", env!("CARGO_PKG_VERSION"))),
            ..Settings::default()
        }
    }
}

/// The text chunks of a picture's file.
pub(super) fn chunks(made: &Made<'_>, record: &Record) -> Vec<(String, String)> {
    vec![
        (PARAMETERS_CHUNK.to_string(), made.settings().infotext().to_string()),
        (INKNIB_CHUNK.to_string(), record.to_json().to_string()),
    ]
}

/// The JSON answer: the record of the first picture, all files, and what it cost.
pub(super) fn answer(
    gpu: &Gpu,
    all: &[(PathBuf, Record)],
    painted: &Painted,
    request: &Request,
) -> Result<Value> {
    let Some((path, record)) = all.first() else { return Ok(json!({ "images": [] })) };
    let seconds = &painted.picture.seconds;
    let s = |v: f64| json::round(v, 3);
    let mut weights =
        json::weights(&painted.weights, painted.bits_per_weight, painted.resident_bytes);
    weights["streamed_bytes"] = json!(painted.streamed_bytes);
    let mut answer = record.to_json();
    let own = json!({
        "image": path,
        "images": all.iter().map(|(path, _)| path).collect::<Vec<_>>(),
        "model_kind": painted.model,
        "weights": weights,
        "memory": painted.memory,
        "evaluations": painted.picture.evaluations,
        "batch_size": request.batch,
        "peak_gpu_bytes": painted.peak_bytes,
        "compile_seconds": s(gpu.compile_cost().1),
        "kernels_compiled": gpu.compile_cost().0,
        "seconds": {
            "load": s(painted.load_seconds),
            "encode": s(seconds.encode),
            "denoise": s(seconds.denoise),
            "decode": s(seconds.decode),
        },
        "seconds_per_step": s(seconds.denoise / painted.picture.steps.max(1) as f64),
        "warnings": painted.picture.warnings,
    });
    if let (Some(answer), Value::Object(own)) = (answer.as_object_mut(), own) {
        own.into_iter().for_each(|(key, value)| {
            answer.insert(key, value);
        });
    }
    Ok(answer)
}

/// One paragraph for people.
pub fn summary(output: &Path, gpu: &Gpu, painted: &Painted) -> String {
    let (picture, seconds) = (&painted.picture, &painted.picture.seconds);
    let size = picture.images.first().map_or((0, 0), |image| (image.width, image.height));
    let more = match picture.images.len() {
        0 | 1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    format!(
        "{}{more}: {} x {}, {} steps of {}\n  {} ({}), {} weights at {:.2} bits, {} resident\n  \
         load {:.1} s, encode {:.1} s, denoise {:.1} s, decode {:.1} s",
        output.display(),
        size.0,
        size.1,
        picture.steps,
        picture.sampler.label(),
        gpu.adapter().name,
        gpu.adapter().driver,
        painted.weights,
        painted.bits_per_weight,
        crate::gpu::mib(painted.resident_bytes),
        painted.load_seconds,
        seconds.encode,
        seconds.denoise,
        seconds.decode,
    )
}

/// The picture in the terminal, if a person looks at one.
pub fn show(path: &Path, ui: &Ui) {
    if ui.shows_pictures() {
        let config =
            viuer::Config { absolute_offset: false, width: Some(64), ..Default::default() };
        if let Ok(picture) = image::open(path) {
            // A terminal that cannot show pictures still has the file's name.
            let _ = viuer::print(&picture, &config);
        }
    }
}

/// Milliseconds of one step by kind of kernel, slowest first.
pub(super) fn profile(launches: &[(Launch, f64)], ui: &Ui) -> Result<()> {
    let mut kinds: Vec<(&str, usize, f64, u64)> = Vec::new();
    for (launch, ms) in launches {
        match kinds.iter_mut().find(|k| k.0 == launch.kernel) {
            Some(kind) => *kind = (kind.0, kind.1 + 1, kind.2 + ms, kind.3 + launch.flops),
            None => kinds.push((&launch.kernel, 1, *ms, launch.flops)),
        }
    }
    kinds.sort_by(|a, b| b.2.total_cmp(&a.2));
    let mut table = super::common::table(&["kernel", "launches", "ms", "GFLOP/s"]);
    for (kernel, count, ms, flops) in kinds {
        let rate = flops as f64 / ms.max(1e-6) * 1e-6;
        table.add_row([
            kernel.to_string(),
            count.to_string(),
            format!("{ms:.2}"),
            format!("{rate:.1}"),
        ]);
    }
    ui.line(&table.to_string())
}
