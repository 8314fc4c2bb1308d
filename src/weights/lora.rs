//! LoRA files (Hu et al. 2021): for some layers of a net two thin matrices whose product is added to the
//! layer's weight. [`Adapters`] holds any number of them, each with a weight of its own; what is asked for
//! is one pair of matrices for a layer, ready to run beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

pub use super::lora_names::LoraNet;
use super::lora_names::{flat, parse};
use super::{View, WeightStore, nearest_names};
use crate::quant::conv_to_rows;
use crate::{Error, Result};

/// What a file adds to one layer: `scale · up · down`.
#[derive(Debug)]
struct Module {
    /// Its name in the file, without the part.
    name: String,
    rank: usize,
    taps: usize,
    channels: usize,
    rows: usize,
    /// `[rank, taps, channels]`
    down: Vec<f32>,
    /// `[rows, rank]`
    up: Vec<f32>,
    /// alpha / rank
    scale: f32,
    used: AtomicBool,
}

/// A LoRA file.
#[derive(Debug)]
pub struct Lora {
    path: PathBuf,
    modules: BTreeMap<(LoraNet, String), Module>,
}

impl Lora {
    /// Reads a `.safetensors` file, or a folder with one, under the names of kohya's scripts, of diffusers
    /// or of PEFT. alpha comes from the file's tensors, else from the configuration in its header or beside
    /// it, else it is the rank.
    ///
    /// # Errors
    /// `Model` for other kinds of adapters (LoHa, LoKr, DoRA, LoCon with a middle matrix), by name, and for
    /// halves that are missing or do not fit one another.
    pub fn open(path: impl AsRef<Path>) -> Result<Lora> {
        let path = path.as_ref();
        let folder = if path.is_dir() { Some(path) } else { path.parent() };
        let beside = folder.map(|folder| folder.join("adapter_config.json"));
        let text = beside.and_then(|file| std::fs::read_to_string(file).ok());
        let config = text.and_then(|text| serde_json::from_str(&text).ok());
        Lora::from_store(&WeightStore::open(path)?, config.as_ref())
    }

    /// As [`Lora::open`]; `config` is PEFT's `adapter_config.json`.
    pub fn from_store(store: &WeightStore, config: Option<&Value>) -> Result<Lora> {
        let file = store.path().display();
        let header = match store.metadata("lora_adapter_metadata") {
            Some(text) => serde_json::from_str(text).ok(),
            None => None,
        };
        let mut found: BTreeMap<(LoraNet, String), [Option<View<'_>>; 3]> = BTreeMap::new();
        for name in store.names() {
            let (net, module, part) = parse(name)
                .map_err(|why| Error::Model(format!("{file}: tensor `{name}` {why}")))?;
            let parts = found.entry((net, module)).or_default();
            if parts[part as usize].replace(store.get(name)?).is_some() {
                let why = "names a module that another tensor of the file names as well";
                return Err(Error::Model(format!("{file}: tensor `{name}` {why}")));
            }
        }
        if found.is_empty() {
            return Err(Error::Model(format!("{file}: there is no tensor in this LoRA")));
        }
        let mut modules = BTreeMap::new();
        for (key, parts) in found {
            let alphas = Alphas { header: header.as_ref(), config, key: &key };
            let module = Module::read(parts, &alphas).map_err(|why| {
                Error::Model(format!("{file}: module `{}` of the LoRA {why}", key.1))
            })?;
            modules.insert(key, module);
        }
        Ok(Lora { path: store.path().to_path_buf(), modules })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Number of layers of a net that it changes.
    pub fn count(&self, net: LoraNet) -> usize {
        self.modules.keys().filter(|(n, _)| *n == net).count()
    }

    /// Holds every module for `net` against the checkpoint it is to be added to.
    fn check(&self, net: LoraNet, store: &WeightStore) -> Result<()> {
        let weights =
            store.names().filter_map(|name| Some((flat(name.strip_suffix(".weight")?), name)));
        let weights: BTreeMap<String, &str> = weights.collect();
        let (mut missing, mut other) = (Vec::new(), Vec::new());
        for ((_, path), module) in self.modules.iter().filter(|((n, _), _)| *n == net) {
            let Some(name) = weights.get(path) else {
                missing.push(path);
                continue;
            };
            let shape = store.shape(name)?;
            let taps = shape.iter().skip(2).product::<usize>();
            if shape.get(..2) != Some(&[module.rows, module.channels]) || taps != module.taps {
                other.push(format!("`{name}` is {shape:?}, its change {}", module.describe()));
            }
        }
        if missing.is_empty() && other.is_empty() {
            return Ok(());
        }
        let mut why = Vec::new();
        if let Some(first) = missing.first() {
            let nearest = nearest_names(first, weights.keys().map(String::as_str));
            why.push(format!("{} are not in the model, as `{first}`{nearest}", missing.len()));
        }
        if let Some(first) = other.first() {
            why.push(format!("{} have another shape: {first}", other.len()));
        }
        Err(Error::Model(format!(
            "{}: {} of {} modules for the {} do not fit {}: {}; the LoRA was made for another base model",
            self.path.display(),
            missing.len() + other.len(),
            self.count(net),
            net.name(),
            store.path().display(),
            why.join("; ")
        )))
    }
}

/// Where alpha stands if no tensor holds it.
struct Alphas<'a> {
    header: Option<&'a Value>,
    config: Option<&'a Value>,
    key: &'a (LoraNet, String),
}

impl Alphas<'_> {
    /// A field of PEFT's configuration for the module's net.
    fn field(&self, name: &str) -> Option<&Value> {
        let (net, _) = self.key;
        let header = self.header.and_then(|h| h.get(format!("{}.{name}", net.name())));
        header.or_else(|| self.config?.get(name)).filter(|v| !v.is_null())
    }
    fn flag(&self, name: &str) -> bool {
        self.field(name).and_then(Value::as_bool).unwrap_or(false)
    }
    /// alpha of the module, if any configuration has it.
    fn alpha(&self) -> Option<f64> {
        let pattern = self.field("alpha_pattern").and_then(Value::as_object);
        let own = pattern.into_iter().flatten().find(|(pattern, _)| {
            let (path, pattern) = (&self.key.1, flat(pattern));
            path.strip_suffix(&pattern).is_some_and(|rest| rest.is_empty() || rest.ends_with('_'))
        });
        own.map(|(_, alpha)| alpha).or_else(|| self.field("lora_alpha"))?.as_f64()
    }
}

impl Module {
    fn read(
        [down, up, alpha]: [Option<View<'_>>; 3],
        alphas: &Alphas<'_>,
    ) -> Result<Module, String> {
        let (Some(down), Some(up)) = (down, up) else {
            return Err("has only one of its two matrices".into());
        };
        if alphas.flag("use_dora") {
            return Err("is DoRA, which is not supported; supported is plain LoRA".into());
        }
        let shapes = || format!("has matrices of shapes {:?} and {:?}", down.shape, up.shape);
        let (rank, channels, window) = match *down.shape {
            [rank, channels] => (rank, channels, [1, 1]),
            [rank, channels, kh, kw] => (rank, channels, [kh, kw]),
            _ => return Err(shapes()),
        };
        let rows = match *up.shape {
            [rows, r] | [rows, r, 1, 1] if r == rank && rank > 0 => rows,
            _ => return Err(shapes() + ", which do not belong together"),
        };
        let values = |view: &View<'_>| view.to_f32().map_err(|e| e.to_string());
        let alpha = match &alpha {
            Some(alpha) if alpha.len() == 1 => values(alpha)?.first().map(|a| f64::from(*a)),
            Some(alpha) => return Err(format!("has an alpha of shape {:?}", alpha.shape)),
            None => alphas.alpha(),
        };
        let divisor = match alphas.flag("use_rslora") {
            true => (rank as f64).sqrt(),
            false => rank as f64,
        };
        let scale = alpha.map_or(1.0, |alpha| alpha / divisor) as f32;
        let numbers = values(&down)?;
        let (down_values, taps) = match window {
            [1, 1] => (numbers, 1),
            [kh, kw] => (conv_to_rows(&numbers, [rank, channels, kh, kw]).0, kh * kw),
        };
        let up_values = values(&up)?;
        if !scale.is_finite() || down_values.iter().chain(&up_values).any(|v| !v.is_finite()) {
            return Err("holds values that are not finite".into());
        }
        let (down_name, used) = (down.name, AtomicBool::new(false));
        let name = down_name.rsplit_once(".lora").map_or(down_name, |(name, _)| name).to_string();
        let (down, up) = (down_values, up_values);
        Ok(Module { name, rank, taps, channels, rows, down, up, scale, used })
    }

    fn describe(&self) -> String {
        let Module { rank, taps, channels, rows, .. } = self;
        match taps {
            1 => format!("[{rows}, {rank}] by [{rank}, {channels}]"),
            _ => format!("[{rows}, {rank}] by [{rank}, {channels}, {taps} taps]"),
        }
    }
}

/// The low-rank branch of a layer: all its LoRAs in one pair of matrices, weights and scales in `up`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    pub rank: usize,
    /// `[rank, taps, channels]`
    pub down: Vec<f32>,
    /// `[rows, rank]`
    pub up: Vec<f32>,
}

/// LoRA files with their weights, in the order they were added.
#[derive(Debug, Default)]
pub struct Adapters {
    loras: Vec<(Lora, Strength)>,
}

/// How much of a LoRA is wanted; 1 is how it was trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strength {
    pub unet: f32,
    pub text_encoder: f32,
}

impl Strength {
    fn of(self, net: LoraNet) -> f32 {
        match net {
            LoraNet::Unet => self.unet,
            LoraNet::TextEncoder | LoraNet::TextEncoder2 => self.text_encoder,
        }
    }
}

impl Adapters {
    /// Adds a file. Its effect is multiplied by `weight`; 1 is how it was trained.
    pub fn push(&mut self, lora: Lora, weight: f32) {
        self.push_strength(lora, Strength { unet: weight, text_encoder: weight });
    }
    /// Adds a file with a weight for the UNet and one for the text encoders.
    pub fn push_strength(&mut self, lora: Lora, strength: Strength) {
        self.loras.push((lora, strength));
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.loras.is_empty()
    }
    /// The files and their weights.
    pub fn loras(&self) -> impl Iterator<Item = (&Lora, Strength)> {
        self.loras.iter().map(|(lora, strength)| (lora, *strength))
    }

    /// Holds every module for `net` against the checkpoint it is to be added to.
    ///
    /// # Errors
    /// `Model` for a file that was made for another base: how many modules do not fit, and an example with
    /// the nearest names or both shapes.
    pub fn check(&self, net: LoraNet, store: &WeightStore) -> Result<()> {
        self.loras.iter().try_for_each(|(lora, _)| lora.check(net, store))
    }

    /// What the files add to the layer at `path` (`down_blocks.0.resnets.0.conv1`) of `rows` outputs, and
    /// note that it was asked for. None where no file has something for it, or with a weight other than 0.
    ///
    /// # Errors
    /// `Model` for other sizes than the layer's.
    pub fn branch(
        &self,
        net: LoraNet,
        path: &str,
        [rows, taps, channels]: [usize; 3],
    ) -> Result<Option<LowRank>> {
        let key = (net, flat(path));
        let mut parts = Vec::new();
        for (lora, strength) in &self.loras {
            let weight = strength.of(net);
            let Some(module) = lora.modules.get(&key) else { continue };
            if [module.rows, module.taps, module.channels] != [rows, taps, channels] {
                return Err(Error::Model(format!(
                    "{}: `{}` is {}, the layer `{path}` has {rows} outputs, {taps} taps and {channels} \
                     channels; the LoRA was made for another base model",
                    lora.path.display(),
                    module.name,
                    module.describe()
                )));
            }
            module.used.store(true, Ordering::Relaxed);
            if weight != 0.0 {
                parts.push((module, weight * module.scale));
            }
        }
        let rank: usize = parts.iter().map(|(module, _)| module.rank).sum();
        if rank == 0 {
            return Ok(None);
        }
        let mut down: Vec<f32> = parts.iter().flat_map(|(m, _)| &m.down).copied().collect();
        let mut up = Vec::with_capacity(rows * rank);
        for row in 0..rows {
            for (module, scale) in &parts {
                up.extend(module.up[row * module.rank..][..module.rank].iter().map(|v| v * scale));
            }
        }
        balance(&mut down, &mut up, rank);
        Ok(Some(LowRank { rank, down, up }))
    }

    /// Modules that no layer has asked for so far, with the files' names.
    pub fn unused(&self) -> Vec<String> {
        let all =
            self.loras.iter().flat_map(|(lora, _)| lora.modules.values().map(move |m| (lora, m)));
        let unused = all.filter(|(_, module)| !module.used.load(Ordering::Relaxed));
        unused.map(|(lora, module)| format!("{}: {}", lora.path.display(), module.name)).collect()
    }
}

/// Moves a power of two from one matrix of each rank to the other, so that both have numbers of like size. A
/// scale like 1/128 would else push `up` into f16's subnormals; a power of two rounds nothing.
fn balance(down: &mut [f32], up: &mut [f32], rank: usize) {
    let k = down.len() / rank;
    let largest = |most: f32, v: &f32| most.max(v.abs());
    for r in 0..rank {
        let row = &mut down[r * k..][..k];
        let (a, b) =
            (row.iter().fold(0.0, largest), up.iter().skip(r).step_by(rank).fold(0.0, largest));
        if a == 0.0 || b == 0.0 {
            continue;
        }
        let factor = ((a / b).log2() / 2.0).round().exp2();
        row.iter_mut().for_each(|v| *v /= factor);
        up.iter_mut().skip(r).step_by(rank).for_each(|v| *v *= factor);
    }
}
