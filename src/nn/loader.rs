//! [`Loader`] walks a checkpoint by the dotted names it has there, packs each tensor as the recipe says, and keeps
//! account of what became resident.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::cache::{Cached, WeightCache};
use super::{Bias, Conv2d, Embedding, GroupNorm, LayerNorm, Linear, Positions, RmsNorm};
use crate::gpu::Gpu;
use crate::graph::{Residence, Vector, Weight};
use crate::ops::conv2d::Conv;
use crate::quant::{Format, Layout, Packed, Recipe};
use crate::weights::WeightStore;
use crate::weights::lora::{Adapters, LoraNet};
use crate::{Error, Result};

/// One tensor as it lies on the GPU.
#[derive(Clone, Debug)]
pub struct LoadedTensor {
    /// Its name in the checkpoint.
    pub path: String,
    pub format: Format,
    /// Real weights, padding not counted.
    pub elements: usize,
    /// Bytes on the GPU, scales and padding counted.
    pub bytes: u64,
    /// Signal to quantization noise in dB; `None` where the original is not known.
    pub sqnr_db: Option<f64>,
    /// Whether it stays on the GPU or is streamed.
    pub residence: Residence,
}

/// What a net keeps resident.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    pub tensors: Vec<LoadedTensor>,
}

impl LoadReport {
    /// Bytes of all tensors on the GPU.
    pub fn resident_bytes(&self) -> u64 {
        self.on(Residence::Gpu)
    }
    /// Bytes of all tensors that stay on the host and are streamed.
    pub fn streamed_bytes(&self) -> u64 {
        self.on(Residence::Host)
    }
    fn on(&self, residence: Residence) -> u64 {
        self.tensors.iter().filter(|t| t.residence == residence).map(|t| t.bytes).sum()
    }
    /// Number of real weights.
    pub fn elements(&self) -> u64 {
        self.tensors.iter().map(|t| t.elements as u64).sum()
    }
    /// Bits of memory per weight, with scales, padding, norms and biases.
    pub fn bits_per_weight(&self) -> f64 {
        let bytes = self.resident_bytes() + self.streamed_bytes();
        bytes as f64 * 8.0 / self.elements().max(1) as f64
    }
    /// Takes over the tensors of another net.
    pub fn merge(&mut self, other: LoadReport) {
        self.tensors.extend(other.tensors);
    }
}

pub(super) struct Shared<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) store: &'a WeightStore,
    pub(super) recipe: &'a Recipe,
    progress: Option<&'a dyn Fn(&LoadedTensor)>,
    loaded: RefCell<Vec<LoadedTensor>>,
    /// Weights read since the checkpoint's pages were last given back.
    read: Cell<usize>,
    /// Bytes of matrices that may still become resident; what comes later stays on the host.
    room: Cell<u64>,
    /// Nothing is read and nothing goes to the GPU: layers have sizes alone.
    pub(super) outline: Cell<bool>,
}

/// Weights after which pages of the checkpoint are given back: without that the process is as large as the file.
const RELEASE: usize = 32 << 20;

/// A place in a checkpoint (`down_blocks.0.attentions.1`), from which layers are loaded.
#[derive(Clone)]
pub struct Loader<'a> {
    pub(super) shared: Rc<Shared<'a>>,
    pub(super) path: String,
    pub(super) adapters: Option<(&'a Adapters, LoraNet)>,
    pub(super) cached: Option<Cached<'a>>,
}

impl<'a> Loader<'a> {
    /// The root of a checkpoint. The recipe sees the tensors' names as the checkpoint has them.
    pub fn new(gpu: &'a Gpu, store: &'a WeightStore, recipe: &'a Recipe) -> Loader<'a> {
        Loader::with_progress(gpu, store, recipe, None)
    }

    /// As [`Loader::new`]; `progress` is told of each tensor once it is on the GPU.
    pub fn with_progress(
        gpu: &'a Gpu,
        store: &'a WeightStore,
        recipe: &'a Recipe,
        progress: Option<&'a dyn Fn(&LoadedTensor)>,
    ) -> Loader<'a> {
        let (loaded, read) = Default::default();
        let room = Cell::new(u64::MAX);
        let outline = Cell::new(false);
        let shared = Rc::new(Shared { gpu, store, recipe, progress, loaded, read, room, outline });
        Loader { shared, path: String::new(), adapters: None, cached: None }
    }

    /// What `cache` has in the recipe's format is taken from there instead of the checkpoint. Matrices that
    /// the checkpoint holds joined are read again.
    pub fn sharing(self, cache: &'a WeightCache) -> Loader<'a> {
        Loader { cached: Some(Cached { cache, fill: false }), ..self }
    }
    /// As [`Loader::sharing`]; what is not there yet is kept there for others.
    pub fn filling(self, cache: &'a WeightCache) -> Loader<'a> {
        Loader { cached: Some(Cached { cache, fill: true }), ..self }
    }

    /// At most so many bytes of matrices become resident on the GPU; the rest stays on the host and is
    /// streamed by the plans that need it.
    pub fn limit_resident(&self, bytes: u64) {
        self.shared.room.set(bytes);
    }

    /// As [`Loader::new`], but nothing is read: layers have the sizes that they would have, the report
    /// counts them, and plans made of them can be measured ([`Plan::footprint`](crate::graph::Plan)).
    pub fn outline(gpu: &'a Gpu, store: &'a WeightStore, recipe: &'a Recipe) -> Loader<'a> {
        let loader = Loader::new(gpu, store, recipe);
        loader.shared.outline.set(true);
        loader
    }

    /// The place `name` below this one.
    pub fn pp(&self, name: impl std::fmt::Display) -> Loader<'a> {
        Loader { path: self.name(name), ..self.clone() }
    }
    /// The dotted path of this place; empty at the root.
    pub fn path(&self) -> &str {
        &self.path
    }
    /// The device that everything is loaded to.
    pub fn gpu(&self) -> &'a Gpu {
        self.shared.gpu
    }
    /// Whether the checkpoint has the tensor `name` below this place.
    pub fn contains(&self, name: &str) -> bool {
        self.shared.store.contains(&self.name(name))
    }
    /// Everything loaded so far from this checkpoint, from any place.
    pub fn report(&self) -> LoadReport {
        LoadReport { tensors: self.shared.loaded.borrow().clone() }
    }

    pub(super) fn name(&self, name: impl std::fmt::Display) -> String {
        match self.path.is_empty() {
            true => name.to_string(),
            false => format!("{}.{name}", self.path),
        }
    }

    fn note(&self, tensor: LoadedTensor) -> Result<()> {
        let shared = &self.shared;
        if let Some(progress) = shared.progress {
            progress(&tensor);
        }
        shared.read.set(shared.read.get() + tensor.elements);
        if shared.read.get() > RELEASE {
            shared.store.release();
            shared.read.set(0);
        }
        shared.loaded.borrow_mut().push(tensor);
        Ok(())
    }

    /// Whether all weights go straight from the checkpoint to the GPU, or would: no cache, no limit.
    pub(super) fn alone(&self) -> bool {
        let shared = &self.shared;
        self.cached.is_none() && shared.room.get() == u64::MAX
    }

    /// Counts a weight that lies on the GPU.
    pub(super) fn note_weight(
        &self,
        path: String,
        weight: &Weight,
        sqnr_db: Option<f64>,
    ) -> Result<()> {
        let (format, elements, bytes) = (weight.format(), weight.elements(), weight.bytes());
        let residence = Residence::Gpu;
        self.note(LoadedTensor { path, format, elements, bytes, sqnr_db, residence })
    }

    pub(super) fn upload_outline(
        &self,
        path: String,
        layout: Layout,
        format: Format,
    ) -> Result<Weight> {
        let weight = Weight::outline(self.shared.gpu, layout, format)?;
        self.note_outline(path, &weight);
        Ok(weight)
    }

    /// Counts a weight that has a size alone.
    pub(super) fn note_outline(&self, path: String, weight: &Weight) {
        let (elements, bytes) = (weight.elements(), weight.bytes());
        self.record(path, weight.format(), elements, bytes, Residence::Outline);
    }

    /// Counts a tensor of an outline; vectors as if they were on the GPU.
    pub(super) fn record(
        &self,
        path: String,
        format: Format,
        elements: usize,
        bytes: u64,
        residence: Residence,
    ) {
        let tensor = LoadedTensor { path, format, elements, bytes, sqnr_db: None, residence };
        self.shared.loaded.borrow_mut().push(tensor);
    }

    /// The matrix `name` of PyTorch's shape `[N, K]` or `[Cout, Cin, kh, kw]`, in the recipe's format.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let (path, shared) = (self.name(name), &self.shared);
        let (spec, keep) = (shared.recipe.spec_for(&path), shared.recipe.keep_packed);
        if shared.outline.get() {
            let (layout, format) = shared.store.outline(&path, shape, &spec)?;
            return self.upload_outline(path, layout, format);
        }
        if let Some((weight, tensor)) = self.cached.and_then(|c| c.cache.weight(&path, spec)) {
            shared.loaded.borrow_mut().push(tensor);
            return Ok(weight);
        }
        let packed = shared.store.pack_as(&path, shape, &spec, keep)?;
        let weight = self.upload(path, &packed)?;
        if let (Some(Cached { cache, fill: true }), Some(tensor)) =
            (self.cached, shared.loaded.borrow().last())
        {
            cache.keep_weight(spec, &weight, tensor);
        }
        Ok(weight)
    }

    pub(super) fn upload(&self, path: String, packed: &Packed) -> Result<Weight> {
        if self.shared.outline.get() {
            return self.upload_outline(path, packed.layout, packed.format);
        }
        let bytes = packed.bytes() as u64;
        let room = self.shared.room.get();
        let residence = if bytes <= room { Residence::Gpu } else { Residence::Host };
        let weight = Weight::place(self.shared.gpu, &path, packed, residence)?;
        let (format, sqnr_db) = (packed.format, packed.sqnr_db);
        let (elements, bytes) = (weight.elements(), weight.bytes());
        if residence == Residence::Gpu && room != u64::MAX {
            self.shared.room.set(room.saturating_sub(bytes));
        }
        self.note(LoadedTensor { path, format, elements, bytes, sqnr_db, residence })?;
        Ok(weight)
    }

    /// The vector `name` of `len` numbers, as f32.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vector> {
        let path = self.name(name);
        if self.shared.outline.get() {
            self.shared.store.shape(&path)?;
            self.record(path, Format::F32, len, len as u64 * 4, Residence::Gpu);
            return Vector::outline(self.shared.gpu, len);
        }
        if let Some((vector, tensor)) = self.cached.and_then(|c| c.cache.vector(&path)) {
            self.shared.loaded.borrow_mut().push(tensor);
            return Ok(vector);
        }
        let values = self.shared.store.vector(&path, len)?;
        let vector = self.upload_vector(path, &values)?;
        if let (Some(Cached { cache, fill: true }), Some(tensor)) =
            (self.cached, self.shared.loaded.borrow().last())
        {
            cache.keep_vector(&vector, tensor);
        }
        Ok(vector)
    }

    pub(super) fn upload_vector(&self, path: String, values: &[f32]) -> Result<Vector> {
        let vector = Vector::upload(self.shared.gpu, &path, values)?;
        let (format, elements, bytes) = (Format::F32, values.len(), vector.buffer.bytes());
        let sqnr_db = Some(f64::INFINITY);
        let residence = Residence::Gpu;
        self.note(LoadedTensor { path, format, elements, bytes, sqnr_db, residence })?;
        Ok(vector)
    }

    pub(super) fn bias(&self, len: usize, bias: Bias) -> Result<Option<Vector>> {
        let load = match bias {
            Bias::Yes => true,
            Bias::No => false,
            Bias::IfPresent => self.contains("bias"),
        };
        load.then(|| self.vector("bias", len)).transpose()
    }

    /// `name.weight` `[n, k]` (or `[n, k, 1, 1]`) and `name.bias` `[n]`.
    pub fn linear(&self, name: &str, n: usize, k: usize, bias: Bias) -> Result<Linear> {
        let at = self.pp(name);
        Ok(Linear {
            weight: at.weight("weight", &[n, k])?,
            bias: at.bias(n, bias)?,
            branch: at.branch([n, 1, k])?,
        })
    }

    /// A square convolution: `name.weight` `[cout, cin, kernel, kernel]` and `name.bias` `[cout]`.
    pub fn conv(
        &self,
        name: &str,
        cin: usize,
        cout: usize,
        kernel: usize,
        conv: Conv,
    ) -> Result<Conv2d> {
        self.conv_with(name, cin, cout, kernel, conv, Bias::Yes)
    }

    /// As [`Loader::conv`], with a bias or without.
    pub fn conv_with(
        &self,
        name: &str,
        cin: usize,
        cout: usize,
        kernel: usize,
        conv: Conv,
        bias: Bias,
    ) -> Result<Conv2d> {
        let at = self.pp(name);
        let weight = at.weight("weight", &[cout, cin, kernel, kernel])?;
        let branch = at.branch([cout, kernel * kernel, cin])?;
        Ok(Conv2d { weight, bias: at.bias(cout, bias)?, conv, branch })
    }

    /// `name.weight` `[rows, channels]`, one row per token.
    pub fn embedding(&self, name: &str, rows: usize, channels: usize) -> Result<Embedding> {
        Ok(Embedding { weight: self.pp(name).weight("weight", &[rows, channels])?, added: None })
    }

    /// `name.weight` `[rows, channels]`, whose first rows are added to a stream of tokens.
    pub fn positions(&self, name: &str, rows: usize, channels: usize) -> Result<Positions> {
        let path = self.pp(name).name("weight");
        let store = self.shared.store;
        let shape = store.shape(&path)?;
        if shape != [rows, channels] {
            return Err(Error::Model(format!(
                "{}: tensor `{path}` has shape {shape:?}, the model needs [{rows}, {channels}]; the \
                 file belongs to another model or configuration",
                store.path().display()
            )));
        }
        let values = store.values(&path)?;
        let (elements, format) = (values.len(), Format::F32);
        let (bytes, sqnr_db) = (elements as u64 * 4, Some(f64::INFINITY));
        let residence = Residence::Gpu;
        self.note(LoadedTensor { path, format, elements, bytes, sqnr_db, residence })?;
        Ok(Positions { values, channels })
    }

    /// `name.weight` and `name.bias`, both `[channels]`.
    pub fn group_norm(
        &self,
        name: &str,
        groups: usize,
        channels: usize,
        eps: f64,
    ) -> Result<GroupNorm> {
        let at = self.pp(name);
        let (gamma, beta) = (at.vector("weight", channels)?, at.vector("bias", channels)?);
        Ok(GroupNorm { gamma, beta, groups, eps: eps as f32, path: at.path })
    }
    /// `name.weight` and `name.bias`, both `[channels]`.
    pub fn layer_norm(&self, name: &str, channels: usize, eps: f64) -> Result<LayerNorm> {
        let at = self.pp(name);
        let (gamma, beta) = (at.vector("weight", channels)?, at.vector("bias", channels)?);
        Ok(LayerNorm { gamma, beta, eps: eps as f32 })
    }
    /// `name.weight` `[channels]`.
    pub fn rms_norm(&self, name: &str, channels: usize, eps: f64) -> Result<RmsNorm> {
        Ok(RmsNorm { gamma: self.pp(name).vector("weight", channels)?, eps: eps as f32 })
    }
    /// `name.weight` `[channels]`, of which the checkpoint holds γ − 1 (Gemma).
    pub fn rms_norm_offset(&self, name: &str, channels: usize, eps: f64) -> Result<RmsNorm> {
        let path = self.pp(name).name("weight");
        let values = self.shared.store.vector(&path, channels)?;
        let values: Vec<f32> = values.into_iter().map(|v| v + 1.0).collect();
        Ok(RmsNorm { gamma: self.upload_vector(path, &values)?, eps: eps as f32 })
    }
}
