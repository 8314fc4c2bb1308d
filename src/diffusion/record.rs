//! The record of a picture: everything that repeats its run, as JSON in the `inknib` chunk of its PNG.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::prompt::PromptSyntax;
use super::settings::Settings;
use crate::{Error, Result};

/// Version of the form. It rises when a field changes its meaning; new fields do not raise it.
pub const RECORD_VERSION: u32 = 1;

/// How a picture was made. Absent fields have their defaults, fields that are not known here are kept in
/// [`Record::other`]; so files of other versions are read and written again without loss.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// [`RECORD_VERSION`] of the writer; 0 in files from before records.
    pub record: u32,
    /// Version of the program.
    pub version: String,

    /// Path as it was given.
    pub model: String,
    /// [`fingerprint`] of the files that were loaded.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub model_hash: String,
    pub weights: Weights,
    /// A VAE in place of the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae: Option<Source>,

    pub prompt: String,
    pub negative_prompt: String,
    pub prompt_syntax: PromptSyntax,
    /// AUTOMATIC1111's count: 1 is the last layer. None: the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_skip: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<Lora>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub embeddings: Vec<Source>,

    pub width: usize,
    pub height: usize,
    pub steps: usize,
    /// Name as `--sampling-method` takes it.
    pub sampler: String,
    /// Spacing of the noise levels as `--scheduler` takes it. None: the model's own.
    pub scheduler: Option<String>,
    /// Spacing of the timesteps (leading, linspace, trailing). None: the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_spacing: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta: Option<f64>,
    pub cfg_scale: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cfg_rescale: Option<f64>,
    /// Of this very picture, so that it can be repeated without its batch.
    pub seed: u64,
    /// `cpu` or `cuda`: whose order of random numbers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rng: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,

    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_image: Option<InitImage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<Source>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub controlnets: Vec<ControlNet>,

    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae_tiling: Option<Tiling>,
    /// Guidance in two passes of batch 1, to save memory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub split_guidance: bool,
    /// `fast` or `reference`.
    pub kernels: String,
    /// `f32` or `f16`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub activations: String,
    pub adapter: String,
    pub driver: String,

    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Number formats of the weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Weights {
    /// Recipe's name or file as `--weights` takes it.
    pub format: String,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A file that went into the picture.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// What a prompt calls it, where it has a name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub path: String,
    /// [`fingerprint`] of the file.
    pub hash: String,
}

/// An adapter and its weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lora {
    #[serde(flatten)]
    pub file: Source,
    pub unet: f64,
    pub text_encoder: f64,
}

/// A place in a batch, from 0, whose noise was drawn with one seed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Batch {
    pub size: usize,
    pub index: usize,
}

/// The picture that a run began with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InitImage {
    #[serde(flatten)]
    pub file: Source,
    pub strength: f64,
}

/// A ControlNet, its picture, and the share of the steps in which it steers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ControlNet {
    pub model: Source,
    pub image: Source,
    pub scale: f64,
    pub start: f64,
    pub end: f64,
}

/// Tiles of the VAE, in pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tiling {
    pub tile: usize,
    pub overlap: usize,
}

impl Record {
    /// Reads the text of a chunk; `file` is for messages.
    ///
    /// # Errors
    /// `Usage` for text that is no record, or one of a newer form.
    pub fn parse(text: &str, file: &Path) -> Result<Record> {
        let record: Record = serde_json::from_str(text).map_err(|e| {
            Error::Usage(format!(
                "{}: its `inknib` chunk is no JSON of ours ({e}); the file was changed by another \
                 program",
                file.display()
            ))
        })?;
        match record.record <= RECORD_VERSION {
            true => Ok(record),
            false => Err(Error::Usage(format!(
                "{}: made by inknib {}, whose records have form {}; this version reads up to form \
                 {RECORD_VERSION}, so take a newer one",
                file.display(),
                record.version,
                record.record
            ))),
        }
    }

    /// The text of the chunk.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// As much of a record as AUTOMATIC1111's text tells. Its sampler keeps the name that it has there,
    /// without the schedule; its noise is CUDA's unless the text says `RNG: CPU`.
    pub fn of_settings(settings: &Settings) -> Record {
        let (width, height) = settings.size.unwrap_or_default();
        let on_cpu = settings.rng.as_deref() == Some("CPU");
        let own = |text: &Option<String>| text.clone().unwrap_or_default();
        Record {
            record: RECORD_VERSION,
            model: own(&settings.model),
            prompt: settings.prompt.clone(),
            negative_prompt: settings.negative_prompt.clone(),
            clip_skip: settings.clip_skip.filter(|skip| *skip > 1),
            width,
            height,
            steps: settings.steps.unwrap_or_default(),
            sampler: own(&settings.sampler),
            scheduler: settings.schedule.clone(),
            eta: settings.eta,
            cfg_scale: settings.cfg_scale.unwrap_or_default(),
            seed: settings.seed.unwrap_or_default(),
            rng: if on_cpu { "cpu" } else { "cuda" }.to_string(),
            ..Record::default()
        }
    }

    /// What is different now, each as one line: with any of these the picture may differ from the first
    /// one in its last bits or wholly. Nothing where either side does not know.
    pub fn changes(&self, now: &Record) -> Vec<String> {
        let pairs = [
            ("version", &self.version, &now.version),
            ("adapter", &self.adapter, &now.adapter),
            ("driver", &self.driver, &now.driver),
            ("kernels", &self.kernels, &now.kernels),
            ("activations", &self.activations, &now.activations),
            ("weights", &self.weights.format, &now.weights.format),
            ("files of the model", &self.model_hash, &now.model_hash),
        ];
        let mut lines: Vec<String> = Vec::new();
        let mut compare = |what: &str, then: &str, now: &str| {
            if !then.is_empty() && !now.is_empty() && then != now {
                lines.push(format!("{what}: {then} then, {now} now"));
            }
        };
        for (what, then, now) in pairs {
            compare(what, then, now);
        }
        let both = |then: &Source, now: &Source| {
            let name = if then.name.is_empty() { &then.path } else { &then.name };
            (name.clone(), then.hash.clone(), now.hash.clone())
        };
        let mut files = Vec::new();
        files.extend(self.loras.iter().zip(&now.loras).map(|(a, b)| both(&a.file, &b.file)));
        files.extend(self.embeddings.iter().zip(&now.embeddings).map(|(a, b)| both(a, b)));
        files.extend(
            self.init_image.iter().zip(&now.init_image).map(|(a, b)| both(&a.file, &b.file)),
        );
        files.extend(self.mask.iter().zip(&now.mask).map(|(a, b)| both(a, b)));
        files.extend(self.vae.iter().zip(&now.vae).map(|(a, b)| both(a, b)));
        for (a, b) in self.controlnets.iter().zip(&now.controlnets) {
            files.extend([both(&a.model, &b.model), both(&a.image, &b.image)]);
        }
        for (name, then, now) in &files {
            compare(name, then, now);
        }
        lines
    }
}

/// Bytes of each sample of a file.
const SAMPLE: u64 = 1 << 16;

/// A cheap mark of files: the first 16 hexadecimal digits of SHA-256 over, for each file in the given
/// order, its length (u64, little endian) and three samples of 64 KiB, at its start, middle and end; all of
/// a file of at most 192 KiB. It tells versions of a model apart in milliseconds; a change between the
/// samples it does not see.
pub fn fingerprint<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Result<String> {
    let mut hash = Sha256::new();
    for path in files {
        let path = path.as_ref();
        sample(path, &mut hash).map_err(|e| Error::io(path, e))?;
    }
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

fn sample(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    hash.update(length.to_le_bytes());
    let starts = match length <= 3 * SAMPLE {
        true => vec![(0, length)],
        false => [0, (length - SAMPLE) / 2, length - SAMPLE].map(|at| (at, SAMPLE)).to_vec(),
    };
    let mut bytes = Vec::new();
    for (start, count) in starts {
        file.seek(SeekFrom::Start(start))?;
        bytes.clear();
        file.by_ref().take(count).read_to_end(&mut bytes)?;
        hash.update(&bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Record {
        let file = |name: &str, hash: &str| Source {
            name: name.into(),
            path: format!("{name}.safetensors"),
            hash: hash.into(),
        };
        Record {
            record: RECORD_VERSION,
            version: "0.1.0".into(),
            model: "models/demo-scenes".into(),
            model_hash: "00ff".into(),
            weights: Weights { format: "int4".into(), other: Map::new() },
            prompt: "a (red:1.2) boat".into(),
            negative_prompt: "blur\n\"quoted\"".into(),
            prompt_syntax: PromptSyntax::Plain,
            clip_skip: Some(2),
            loras: vec![Lora { file: file("ink", "aa"), unet: 0.8, text_encoder: 0.1 }],
            embeddings: vec![file("<cat>", "bb")],
            width: 512,
            height: 768,
            steps: 20,
            sampler: "dpm++2m".into(),
            scheduler: Some("karras".into()),
            timestep_spacing: Some("trailing".into()),
            eta: Some(0.3),
            cfg_scale: 7.1,
            cfg_rescale: Some(0.7),
            seed: u64::MAX,
            rng: "cuda".into(),
            batch: Some(Batch { size: 4, index: 3 }),
            init_image: Some(InitImage { file: file("", "cc"), strength: 0.55 }),
            mask: Some(file("", "dd")),
            controlnets: vec![ControlNet {
                model: file("canny", "ee"),
                image: file("edges", "ff"),
                scale: 1.0,
                start: 0.0,
                end: 0.9,
            }],
            vae_tiling: Some(Tiling { tile: 512, overlap: 128 }),
            split_guidance: true,
            kernels: "fast".into(),
            activations: "f16".into(),
            adapter: "A GPU".into(),
            driver: "1.2".into(),
            vae: Some(file("taesd", "11")),
            other: Map::new(),
        }
    }

    #[test]
    fn every_field_survives_the_chunk() {
        let (record, file) = (full(), Path::new("x.png"));
        let text = record.to_json().to_string();
        assert_eq!(Record::parse(&text, file).unwrap(), record);
        // What is absent is not written, and absent fields are no error.
        let small = Record { record: 1, ..Record::default() };
        let text = small.to_json().to_string();
        assert!(!text.contains("loras") && !text.contains("split_guidance"), "{text}");
        assert_eq!(Record::parse(&text, file).unwrap(), small);
        assert_eq!(Record::parse("{}", file).unwrap(), Record::default());
    }

    #[test]
    fn fields_of_other_versions_are_kept() {
        let text = r#"{"seed":7,"image":"boat.png","weights":{"format":"int4","bits_per_weight":4.25},
            "seconds":{"load":1.5},"future":[1]}"#;
        let record = Record::parse(text, Path::new("x.png")).unwrap();
        assert_eq!((record.seed, record.record, record.weights.format.as_str()), (7, 0, "int4"));
        let again = record.to_json();
        assert_eq!(again["weights"]["bits_per_weight"], 4.25);
        assert_eq!(again["future"][0], 1);
        assert_eq!(again["seconds"]["load"], 1.5);
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        for (text, word) in [
            ("{\"seed\":", "no JSON"),
            ("[1]", "no JSON"),
            ("{\"seed\":-1}", "no JSON"),
            ("{\"record\":9,\"version\":\"3.0\"}", "inknib 3.0"),
        ] {
            let error = Record::parse(text, Path::new("x.png")).unwrap_err().to_string();
            assert!(error.starts_with("x.png: ") && error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn changes_are_named() {
        let (then, mut now) = (full(), full());
        assert!(then.changes(&now).is_empty());
        now.driver = "1.3".into();
        now.loras[0].file.hash = "ab".into();
        now.adapter.clear();
        now.controlnets[0].image.hash = "fe".into();
        let lines = then.changes(&now);
        let expected =
            ["driver: 1.2 then, 1.3 now", "ink: aa then, ab now", "edges: ff then, fe now"];
        assert_eq!(lines, expected);
    }

    #[test]
    fn automatic1111s_text_is_half_a_record() {
        let settings = Settings::parse(
            "a boat\nNegative prompt: fog\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, \
             Seed: 5, Size: 512x640, Clip skip: 2",
        );
        let record = Record::of_settings(&settings);
        assert_eq!(
            (record.sampler.as_str(), record.scheduler.as_deref()),
            ("DPM++ 2M", Some("Karras"))
        );
        assert_eq!((record.width, record.height, record.steps, record.seed), (512, 640, 20, 5));
        assert_eq!((record.rng.as_str(), record.clip_skip), ("cuda", Some(2)));
        assert_eq!(record.prompt_syntax, PromptSyntax::A1111);
    }

    #[test]
    fn fingerprints_see_length_and_samples() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        let of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            fingerprint([&path]).unwrap()
        };
        let mut bytes = vec![1u8; 1 << 18];
        let first = of(&bytes);
        assert_eq!((first.len(), of(&bytes)), (16, first.clone()));
        for at in [0, (1 << 17), (1 << 18) - 1] {
            bytes[at] = 2;
            assert_ne!(of(&bytes), first, "at {at}");
            bytes[at] = 1;
        }
        assert_ne!(of(&bytes[1..]), first);
        // SHA-256 of eight zero bytes, the length of an empty file.
        assert_eq!(of(&[]), "af5570f5a1810b7a");
        assert!(fingerprint([folder.path().join("gone")]).is_err());
    }
}
