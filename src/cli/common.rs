//! What commands share: flags for the GPU and the model, the model folder, and the terminal.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use comfy_table::{LineStyle, TableStyle};
use serde::{Deserialize, Serialize};

use super::bytes::parse_bytes;
use super::progress::Bar;
use super::{avoid, tuned};
use crate::gpu::{Elem, Gpu, GpuOptions, Without};
use crate::graph::Kernels;
use crate::nets::language::FAMILIES;
use crate::quant::{AUTO, Recipe};
use crate::weights::{
    Gguf, ImageModel, gguf_file, has_quantization_config, is_image_gguf, read_json,
};
use crate::{Error, Result};

/// Which GPU, and how much of it. Flatten it into a command's `Args`.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "GPU")]
pub struct GpuArgs {
    /// An index of `inknib devices` or a part of an adapter's name [default: the best one]
    #[arg(long, visible_alias = "adapter", value_name = "INDEX|NAME")]
    pub device: Option<String>,
    /// GPU memory that may be taken in all, e.g. 4G, 512MiB or bytes
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub vram_budget: Option<u64>,
    /// Leave optional features out: f16,subgroups,timestamps,coop (cooperative
    /// matrices),limits,pipeline-cache (compiled kernels on disk) or all
    /// (to test what remains); also fast-kernels, which leaves the
    /// reference kernels
    #[arg(long, value_name = "LIST", value_parser = Without::parse)]
    pub without: Option<Without>,
    /// Lossy: round what few rows (decoding) bring to INT8 or uniform INT4 weights to eight
    /// bits for each 32 channels, and multiply integers; cubic INT4, the default, is left alone.
    /// demo-chat's logits change by 1 %, where int4-g32-uniform changed them by 10 %
    #[arg(long)]
    pub int_dot: bool,
}

impl GpuArgs {
    /// The same as the library takes it.
    pub fn options(&self) -> GpuOptions {
        GpuOptions {
            device: self.device.clone(),
            vram_budget: self.vram_budget,
            without: self.without.unwrap_or_default(),
            int_dot: self.int_dot,
            pipelines: avoid::cache_folder().map(|folder| folder.join("pipelines")),
        }
    }
    /// Opens the adapter, without what `inknib doctor` found wrong on it and with what `inknib tune` found fastest.
    pub fn open(&self, ui: &Ui) -> Result<Gpu> {
        Gpu::open(&avoid::obey(self.options(), ui)?).map(tuned::apply)
    }
}

/// `--kernels`
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelChoice {
    /// The fast kernels
    #[default]
    Fast,
    /// The fast kernels as a real GPU gets them, on a software adapter too
    Hardware,
    /// One invocation per output element: slow and obviously right
    Reference,
}

impl KernelChoice {
    /// What this device runs when it is asked for these.
    pub fn on(self, gpu: &Gpu) -> Kernels {
        Kernels::from(self).on(gpu.caps())
    }
}

impl From<KernelChoice> for Kernels {
    fn from(choice: KernelChoice) -> Kernels {
        match choice {
            KernelChoice::Fast => Kernels::Fast,
            KernelChoice::Hardware => Kernels::Hardware,
            KernelChoice::Reference => Kernels::Reference,
        }
    }
}

/// `--activations`
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivationChoice {
    /// f16 where the GPU has it, f32 on software adapters and elsewhere
    #[default]
    Auto,
    F32,
    F16,
}

impl ActivationChoice {
    /// The element type that this device is to store activations in.
    ///
    /// # Errors
    /// `Usage` if f16 was asked for and the adapter has none.
    pub fn resolve(self, gpu: &Gpu) -> Result<Elem> {
        let caps = gpu.caps();
        match self {
            ActivationChoice::F16 if !caps.f16 => Err(Error::Usage(format!(
                "{} has no f16 in shaders; use --activations f32",
                gpu.adapter().name
            ))),
            ActivationChoice::F16 => Ok(Elem::F16),
            ActivationChoice::F32 => Ok(Elem::F32),
            ActivationChoice::Auto if caps.f16 && !caps.software => Ok(Elem::F16),
            ActivationChoice::Auto => Ok(Elem::F32),
        }
    }
    /// What decided it.
    pub fn reason(self, gpu: &Gpu) -> &'static str {
        match self {
            ActivationChoice::F32 | ActivationChoice::F16 => "asked for",
            ActivationChoice::Auto if gpu.caps().software => "a CPU converts f16 slowly",
            ActivationChoice::Auto if gpu.caps().f16 => "shaders have f16",
            ActivationChoice::Auto => "shaders have no f16, or it is left out",
        }
    }
}

/// Which model and in which number format. Flatten it into a command's `Args`.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A model folder, a .gguf file, or the name of a folder in models/ or $INKNIB_MODELS
    #[arg(short, long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// int4, int8, fp16, fp32, a format such as int4-g32-uniform, or a recipe file (*.toml); auto is
    /// what a quantized file has, else int4
    #[arg(long, value_name = "FORMAT", default_value = AUTO)]
    pub weights: String,
    /// Which shaders compute
    #[arg(long, value_enum, value_name = "WHICH", default_value_t)]
    pub kernels: KernelChoice,
    /// How values between layers are stored
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    pub activations: ActivationChoice,
}

impl ModelArgs {
    /// The kernels that this device plans with.
    pub fn kernels(&self, gpu: &Gpu) -> Kernels {
        self.kernels.on(gpu)
    }
    /// The element type of activations on this device.
    pub fn act(&self, gpu: &Gpu) -> Result<Elem> {
        self.activations.resolve(gpu)
    }
    /// The recipe for one net of the model: `unet`, `text_encoder`, `vae` or `llm`.
    pub fn recipe(&self, net: &str) -> Result<Recipe> {
        Recipe::from_argument(&self.weights, net)
    }
    /// `--weights` for the model at `path`: "auto" only where the file decides, else "int4" for it.
    pub fn weights_for(&self, path: &Path) -> &str {
        let decides = || {
            let gguf = gguf_file(path).ok().flatten().and_then(|file| Gguf::open(file).ok());
            match gguf {
                Some(gguf) => gguf.is_quantized(),
                None => has_quantization_config(path),
            }
        };
        if self.weights == AUTO && !decides() { "int4" } else { &self.weights }
    }
    /// The folder that `-m` names, or `default` (`demo-scenes`, `demo-chat`) without `-m`.
    ///
    /// # Errors
    /// `Usage` without either, else as [`ModelFolder::find`].
    pub fn folder(&self, default: Option<&str>) -> Result<ModelFolder> {
        match (&self.model, default) {
            (Some(path), _) => ModelFolder::find(path),
            (None, Some(name)) => ModelFolder::find(Path::new(name)),
            (None, None) => Err(Error::Usage(
                "which model? give a folder with -m, for instance -m models/demo-chat".into(),
            )),
        }
    }
}

/// What a model folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// `model_index.json` with text encoder, UNet and autoencoder in subfolders, or a single file.
    TextToImage,
    /// `config.json` with one language model, or a GGUF file.
    Llm,
}

/// A model on disk whose family is known. Weights in it may be floats or quantized already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFolder {
    pub path: PathBuf,
    pub family: Family,
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    model_type: Option<String>,
}

impl ModelFolder {
    /// Finds the folder and says what it holds. A bare name is also looked for in $INKNIB_MODELS and
    /// in the `models` folder of the working folder and of the program's own folder and those above.
    ///
    /// # Errors
    /// `Model`, naming what was looked for.
    pub fn find(path: &Path) -> Result<ModelFolder> {
        let path = locate(path)?;
        if let Some(path) = gguf_file(&path)? {
            let family = match is_image_gguf(&Gguf::open(&path)?)? {
                true => Family::TextToImage,
                false => Family::Llm,
            };
            return Ok(ModelFolder { path, family });
        }
        if path.is_file() && path.extension().is_some_and(|e| e == "safetensors") {
            let family = Family::TextToImage;
            return ImageModel::open(&path).map(|_| ModelFolder { path, family });
        }
        if path.is_file() {
            return Err(Error::Model(format!(
                "{}: a file; give the folder with model_index.json (pictures) or config.json (text), \
                 a .safetensors checkpoint (pictures), or a .gguf file (either)",
                path.display()
            )));
        }
        let has = |name: &str| path.join(name).is_file();
        let family = match (has("model_index.json"), has("config.json")) {
            (true, _) => ImageModel::open(&path).map(|_| Family::TextToImage)?,
            (false, true) => language_model(&path)?,
            (false, false) => {
                return Err(Error::Model(format!(
                    "{}: no model here; looked for model_index.json (text to image) and config.json \
                     (language model)",
                    path.display()
                )));
            }
        };
        Ok(ModelFolder { path, family })
    }

    /// This folder if it is of that family.
    ///
    /// # Errors
    /// `Model`, naming the command that fits.
    pub fn expect(self, family: Family) -> Result<ModelFolder> {
        if self.family == family {
            return Ok(self);
        }
        let (is, command) = match self.family {
            Family::TextToImage => ("a text-to-image model", "inknib generate"),
            Family::Llm => ("a language model", "inknib chat"),
        };
        Err(Error::Model(format!("{}: {is}; use `{command}` for it", self.path.display())))
    }
}

fn language_model(path: &Path) -> Result<Family> {
    let head: Head = read_json(path, "config.json")?;
    let file = path.join("config.json");
    if let Some(class) = head.class_name {
        return Err(Error::Model(format!(
            "{}: one net of a pipeline (`{class}`); give the folder above it, with model_index.json",
            file.display()
        )));
    }
    let kind = head.model_type.unwrap_or_default();
    match FAMILIES.contains(&kind.as_str()) {
        true => Ok(Family::Llm),
        false => Err(Error::Model(format!(
            "{}: the architecture `{kind}` is not one that runs here; there is {}",
            file.display(),
            FAMILIES.join(", ")
        ))),
    }
}

/// The path itself if it exists, else a bare name in one of the model folders.
fn locate(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    let bare = path.components().count() == 1;
    let mut shelves: Vec<PathBuf> = Vec::new();
    if bare {
        shelves.extend(std::env::var_os("INKNIB_MODELS").map(PathBuf::from));
        shelves.push(PathBuf::from("models"));
        let program = std::env::current_exe().unwrap_or_default();
        shelves.extend(program.ancestors().skip(1).take(4).map(|folder| folder.join("models")));
    }
    if let Some(found) = shelves.iter().map(|s| s.join(path)).find(|p| p.is_dir()) {
        return Ok(found);
    }
    let also = if bare { ", neither here nor in models/ nor in $INKNIB_MODELS" } else { "" };
    Err(Error::Model(format!(
        "{}: no such model folder or file{also}; give a folder with model_index.json or config.json, or a \
         .gguf file",
        path.display()
    )))
}

/// Where a command's words go. Answers to stdout, notes and progress to stderr.
pub struct Ui {
    json: bool,
    progress: bool,
    answered: Cell<bool>,
}

/// How messages and [`is_broken_pipe`] call stdout.
const STDOUT: &str = "standard output";

impl Ui {
    /// `json`: the answer is to be a JSON value, and nothing else goes to stdout.
    pub fn new(json: bool) -> Ui {
        let progress = !json && std::io::stderr().is_terminal();
        Ui { json, progress, answered: Cell::new(false) }
    }
    /// Whether `--json` was given.
    pub fn json(&self) -> bool {
        self.json
    }
    /// Whether a JSON answer has been printed.
    pub fn answered(&self) -> bool {
        self.answered.get()
    }
    /// Whether a person looks at stdout (pictures may be shown there).
    pub fn shows_pictures(&self) -> bool {
        !self.json && std::io::stdout().is_terminal()
    }
    /// The JSON answer of a command, once.
    pub fn answer(&self, value: &impl Serialize) -> Result<()> {
        self.answered.set(true);
        let text = serde_json::to_string_pretty(value)
            .map_err(|e| Error::Runtime(format!("the answer cannot be written as JSON: {e}")))?;
        put(&format!("{text}\n"))
    }
    /// A line of the answer for people; nothing with `--json`.
    pub fn line(&self, text: &str) -> Result<()> {
        if self.json { Ok(()) } else { put(&format!("{text}\n")) }
    }
    /// Part of the answer, as it comes; nothing with `--json`.
    pub fn print(&self, text: &str) -> Result<()> {
        if self.json { Ok(()) } else { put(text) }
    }
    /// A remark on stderr; nothing with `--json`.
    pub fn note(&self, text: &str) {
        if !self.json {
            // There is nowhere to report that stderr is closed.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }
    /// What somebody has to know whatever they asked for: on stderr, also with `--json`.
    pub fn warn(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "inknib: {text}");
    }
    /// A progress bar of `total` steps on stderr, a spinner if `total` is 0; invisible with `--json`
    /// and where stderr is no terminal. It goes when it is dropped.
    pub fn bar(&self, label: &str, total: u64) -> Bar {
        Bar::new(label, total, self.progress)
    }
}

/// One JSON value on a line of stdout, at once.
pub fn print_json_line(value: &serde_json::Value) -> Result<()> {
    put(&format!("{value}\n"))
}

fn put(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Error::io(STDOUT, e))
}

/// Whether the reader of stdout has gone (`| head`): not worth a message.
pub fn is_broken_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { path, source }
        if path == Path::new(STDOUT) && source.kind() == std::io::ErrorKind::BrokenPipe)
}

/// An empty table with these headings, no wider than the terminal.
pub fn table(headings: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    let rule = LineStyle::none().fill('─').junction('─');
    table.load_style(TableStyle::new().header_separator(rule));
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table.set_header(headings);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) {
        std::fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        std::fs::write(folder.join(name), text).unwrap();
    }

    #[test]
    fn folders_say_what_they_hold() {
        let temp = tempfile::tempdir().unwrap();
        let (pictures, talk) = (temp.path().join("pictures"), temp.path().join("talk"));
        write(&talk, "config.json", "{\"model_type\": \"llama\"}");
        let found = ModelFolder::find(&talk).unwrap();
        assert_eq!(found.family, Family::Llm);
        let e = found.expect(Family::TextToImage).unwrap_err().to_string();
        assert!(e.contains("inknib chat"), "{e}");
        write(&pictures, "model_index.json", "{\"_class_name\": \"StableDiffusionPipeline\"}");
        let missing = ModelFolder::find(&pictures).unwrap_err().to_string();
        assert!(missing.contains("text_encoder/config.json"), "{missing}");
        for net in ["text_encoder", "unet", "vae"] {
            write(&pictures, &format!("{net}/config.json"), "{\"_class_name\": \"X\"}");
        }
        assert_eq!(ModelFolder::find(&pictures).unwrap().family, Family::TextToImage);
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let single = golden.join("unet_sd15/weights.safetensors");
        assert_eq!(ModelFolder::find(&single).unwrap().family, Family::TextToImage);
        let e = ModelFolder::find(&golden.join("vae_kl/weights.safetensors")).unwrap_err();
        assert!(e.to_string().contains("no UNet in it, only VAE"), "{e}");
        let e = ModelFolder::find(&golden.join("llama/model.safetensors")).unwrap_err().to_string();
        assert!(e.contains("of a UNet, a VAE or a text encoder"), "{e}");
        let e = ModelFolder::find(&pictures.join("unet")).unwrap_err().to_string();
        assert!(e.contains("the folder above"), "{e}");
    }

    #[test]
    fn wrong_models_are_named() {
        let temp = tempfile::tempdir().unwrap();
        let find = |path: PathBuf| {
            let e = ModelFolder::find(&path).unwrap_err();
            assert_eq!(e.exit_code(), 4);
            e.to_string()
        };
        let e = find(temp.path().to_path_buf());
        assert!(e.contains("model_index.json") && e.contains("config.json"), "{e}");
        assert!(find(temp.path().join("gone")).contains("no such model folder"));
        assert!(find(PathBuf::from("no-such-model")).contains("INKNIB_MODELS"));
        write(temp.path(), "config.json", "{\"model_type\": \"mamba\"}");
        assert!(find(temp.path().to_path_buf()).contains("`mamba`"));
        assert!(find(temp.path().join("config.json")).contains("give the folder"));
        write(temp.path(), "model_index.json", "{\"_class_name\": \"FluxPipeline\"}");
        assert!(find(temp.path().to_path_buf()).contains("`FluxPipeline`"));
    }
}
