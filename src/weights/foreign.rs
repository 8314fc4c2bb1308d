//! Checkpoints that other programs quantized, presented as if they were plain: which format a
//! `quantization_config` names, which tensors are parts of which weight, and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::awq::Awq;
use super::compressed::Compressed;
use super::gptq::Gptq;
use super::{Dtype, View, WeightStore};
use crate::quant::Packed;
use crate::{Error, Result};

#[derive(Debug)]
enum Method {
    Gptq(Gptq),
    Awq(Awq),
    Compressed(Compressed),
}

/// The packed weights of a checkpoint that another program quantized.
#[derive(Debug)]
pub(super) struct Foreign {
    method: Method,
    parts: Parts,
}

/// Weights under the names that plain checkpoints have for them, and the tensors they are made of.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// `NAME.weight` and its `[N, K]`.
    shapes: BTreeMap<String, [usize; 2]>,
    names: BTreeSet<String>,
}

/// What a part of a weight is stored as.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    /// 32-bit words.
    Words,
    Integers,
    Floats,
}

impl Parts {
    /// Collects every `NAME.main` with its other parts. `shape` gives `[N, K]` from the main one.
    pub(super) fn find(
        store: &WeightStore,
        main: &str,
        others: &[&str],
        shape: impl Fn(&str) -> Result<[usize; 2]>,
    ) -> Result<Parts> {
        let mut parts = Parts::default();
        let suffix = format!(".{main}");
        for name in store.stored_names().filter_map(|name| name.strip_suffix(&suffix)) {
            let weight = format!("{name}.weight");
            if store.is_plain(&weight) {
                return Err(Error::Model(format!(
                    "{}: both `{weight}` and `{name}.{main}` are there; the file is damaged",
                    store.path().display()
                )));
            }
            let shape = shape(name).map_err(|e| store.about(&weight, e))?;
            for part in others.iter().chain([&main]).map(|part| format!("{name}.{part}")) {
                if store.is_plain(&part) {
                    parts.names.insert(part);
                }
            }
            parts.shapes.insert(weight, shape);
        }
        Ok(parts)
    }
}

impl Foreign {
    /// What `config` (a `config.json` or one of its predecessors) makes of the tensors of `store`;
    /// `None` where nothing is packed.
    ///
    /// # Errors
    /// For methods and layouts that are not read, and packed tensors without a configuration.
    pub(super) fn find(
        store: &WeightStore,
        config: Option<(&Path, &Value)>,
    ) -> Result<Option<Foreign>> {
        let config = config.and_then(|(path, value)| Config::of(store, path, value));
        let mut packed = store
            .stored_names()
            .filter(|n| n.ends_with(".qweight") || n.ends_with(".weight_packed"));
        let Some(config) = config else {
            return match packed.next() {
                None => Ok(None),
                Some(name) => Err(Error::Model(format!(
                    "{}: `{name}` belongs to a quantized checkpoint, but there is no config.json with \
                     a quantization_config beside the weights; put it there, it says how they are to \
                     be read",
                    store.path().display()
                ))),
            };
        };
        let method = match config.method() {
            "gptq" => Method::Gptq(Gptq::new(&config)?),
            "awq" => Method::Awq(Awq::new(&config)?),
            "compressed-tensors" => Method::Compressed(Compressed::new(&config)?),
            other => return Err(config.refuse(&format!("the quantization method `{other}`"))),
        };
        let parts = match &method {
            Method::Gptq(m) => m.find(store)?,
            Method::Awq(m) => m.find(store)?,
            Method::Compressed(m) => m.find(store)?,
        };
        if let Some(name) = packed.find(|name| !parts.names.contains(*name)) {
            return Err(Error::Model(format!(
                "{}: the quantization_config is that of {}, to which `{name}` of {} does not belong; the \
                 two are from different checkpoints",
                config.path.display(),
                config.method(),
                store.path().display()
            )));
        }
        Ok((!parts.shapes.is_empty()).then_some(Foreign { method, parts }))
    }

    /// How messages name the format.
    pub(super) fn describe(&self) -> String {
        match &self.method {
            Method::Gptq(m) => m.describe(),
            Method::Awq(m) => m.describe(),
            Method::Compressed(m) => m.describe(),
        }
    }

    /// The packed weights by name.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.parts.shapes.keys()
    }
    /// Whether a tensor of the file is a part of a packed weight.
    pub(super) fn is_part(&self, name: &str) -> bool {
        self.parts.names.contains(name)
    }
    /// `[N, K]` of a packed weight.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.parts.shapes.get(name).map(|shape| shape.as_slice())
    }

    /// Whether every packed weight is a linear layer `[N, K]`, whatever module it was.
    pub(super) fn holds_linear(&self) -> bool {
        matches!(self.method, Method::Gptq(_) | Method::Awq(_))
    }

    /// The packed weight of this name, if it is one.
    pub(super) fn packed(&self, store: &WeightStore, name: &str) -> Option<Result<Packed>> {
        let (shape, layer) = (*self.parts.shapes.get(name)?, name.strip_suffix(".weight")?);
        let codes = match &self.method {
            Method::Gptq(m) => m.read(store, layer, shape),
            Method::Awq(m) => m.read(store, layer, shape),
            Method::Compressed(m) => m.read(store, layer, shape),
        };
        Some(codes.and_then(|codes| codes.pack()))
    }
}

impl WeightStore {
    /// The tensor `name.part`, stored as it must be.
    pub(super) fn part(&self, name: &str, part: &str, kind: Part) -> Result<View<'_>> {
        let full = format!("{name}.{part}");
        if !self.is_plain(&full) {
            return Err(Error::Model(format!("`{full}` is missing; the download is incomplete")));
        }
        let view = self.get(&full)?;
        let allowed: &[Dtype] = match kind {
            Part::Words => &[Dtype::I32, Dtype::U32],
            Part::Integers => &[Dtype::I8, Dtype::I32, Dtype::U32, Dtype::I64],
            Part::Floats => &[Dtype::F16, Dtype::BF16, Dtype::F32],
        };
        match allowed.contains(&view.dtype) {
            true => Ok(view),
            false => Err(Error::Model(format!(
                "`{full}` is stored as {:?}, which is not what its quantization_config calls for",
                view.dtype
            ))),
        }
    }
}

/// A `quantization_config`, or a part of one, and the file it stands in.
pub(super) struct Config<'a> {
    path: &'a Path,
    values: &'a Map<String, Value>,
    method: &'a str,
}

impl<'a> Config<'a> {
    fn of(store: &WeightStore, path: &'a Path, config: &'a Value) -> Option<Config<'a>> {
        let nested = ["quantization_config", "compression_config"];
        let nested = nested.iter().find_map(|key| config.get(key)?.as_object());
        // quantize_config.json and quant_config.json are nothing else.
        let layers = || store.stored_names().any(|name| name.ends_with(".qweight"));
        let own = || config.as_object().filter(|_| is_old_config(path) && layers());
        let values = nested.or_else(own)?;
        let awq = path.file_name().is_some_and(|name| name == OLD_CONFIGS[1]);
        let packed = store.stored_names().any(|n| n.ends_with(".weight_packed"));
        let method = match values.get("quant_method").and_then(Value::as_str) {
            Some(method) => method,
            None if awq => "awq",
            None if packed => "compressed-tensors",
            None if values.get("load_in_4bit").is_some() => "bitsandbytes",
            None => "gptq",
        };
        Some(Config { path, values, method })
    }

    /// The method by its usual name.
    fn method(&self) -> &'a str {
        match self.method {
            // What the library was called in files before it had a name of its own.
            "compressed_tensors" | "sparseml" => "compressed-tensors",
            other => other,
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|v| !v.is_null())
    }
    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.values.get(key).and_then(Value::as_str)
    }

    /// A whole number; `None` where it is absent or null.
    pub(super) fn number(&self, key: &str) -> Result<Option<i64>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_i64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(key, "a whole number")),
            },
        }
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// A group size; `None` for −1 and for null, which stand for a whole row.
    pub(super) fn group(&self, key: &str) -> Result<Option<usize>> {
        match self.number(key)? {
            None | Some(-1) => Ok(None),
            Some(n @ 1..=0x1000_0000) => Ok(Some(n as usize)),
            Some(_) => Err(self.wrong(key, "−1 or a positive number")),
        }
    }

    pub(super) fn object(&self, key: &str) -> Option<Config<'a>> {
        let values = self.values.get(key)?.as_object()?;
        Some(Config { values, ..*self })
    }

    /// The objects inside the object `key`.
    pub(super) fn objects(&self, key: &str) -> impl Iterator<Item = Config<'a>> {
        let inner = self.values.get(key).and_then(Value::as_object);
        let inner = inner.into_iter().flat_map(Map::values).filter_map(Value::as_object);
        let (path, method) = (self.path, self.method);
        inner.map(move |values| Config { path, values, method })
    }

    fn wrong(&self, key: &str, wanted: &str) -> Error {
        let value = &self.values[key];
        Error::Model(format!(
            "{}: quantization_config: `{key}` is {value}, expected {wanted}",
            self.path.display()
        ))
    }

    /// The error for what is not read.
    pub(super) fn refuse(&self, what: &str) -> Error {
        Error::Model(format!(
            "{}: {what} is not read; take the original checkpoint in FP16 or BF16, which is quantized \
             while it is loaded, or one in GGUF, GPTQ (4 or 8 bits), AWQ (GEMM) or compressed-tensors \
             pack-quantized (4 or 8 bits)",
            self.path.display()
        ))
    }
}

/// Files of older programs that hold the configuration alone: AutoGPTQ's and AutoAWQ's.
const OLD_CONFIGS: [&str; 2] = ["quantize_config.json", "quant_config.json"];

fn is_old_config(path: &Path) -> bool {
    path.file_name().is_some_and(|name| OLD_CONFIGS.iter().any(|old| name == *old))
}

/// Whether a file beside the weights at `path` says that another program quantized them: what
/// `--weights auto` asks for before anything is opened.
pub fn has_quantization_config(path: impl AsRef<Path>) -> bool {
    config_beside(path.as_ref()).is_some()
}

/// The file beside the weights at `path` (a file, or a folder) that says how they were quantized, if
/// there is one. A file that is no JSON is none: the net's own reader says what is wrong with it.
pub(super) fn config_beside(path: &Path) -> Option<(PathBuf, Value)> {
    /// A configuration is a few kilobytes; larger files are something else.
    const LARGEST: u64 = 16 << 20;
    let folder = if path.is_dir() { path } else { path.parent()? };
    let read = |name: &str| {
        let file = folder.join(name);
        let small = std::fs::metadata(&file).is_ok_and(|m| m.is_file() && m.len() <= LARGEST);
        let text = small.then(|| std::fs::read_to_string(&file).ok())??;
        let value: Value = serde_json::from_str(text.trim_start_matches('\u{feff}')).ok()?;
        Some((file, value))
    };
    let nested = |(_, v): &(PathBuf, Value)| {
        v.get("quantization_config").or(v.get("compression_config")).is_some_and(Value::is_object)
    };
    read("config.json").filter(nested).or_else(|| OLD_CONFIGS.iter().find_map(|name| read(name)))
}
