//! Weights as the nets ask for them: [`WeightStore::pack`] for matrices and convolutions,
//! [`WeightStore::vector`] for biases and norms, wherever and however they are stored.

use std::borrow::Cow;

use safetensors::Dtype;

use super::WeightStore;
use super::config::parse_json;
use super::gguf_store::transpose;
use crate::quant::file::{FileHeader, METADATA_KEY, PackedHeader, Scheme, VERSION};
use crate::quant::{
    Format, Layout, Numbers, Offset, Order, Packed, QuantSpec, Words, rows_to_conv,
};
use crate::{Error, Result};

impl WeightStore {
    /// The weight `name` of PyTorch's shape `[N, K]` or `[Cout, Cin, kh, kw]`, packed for the GPU. A
    /// 1×1 convolution and a linear layer are the same thing, so either may be asked for where the
    /// other is stored.
    ///
    /// A file of plain numbers is quantized as `spec` says. A quantized file decides for itself: its
    /// packed weights come back bit for bit, or as near as the formats here allow
    /// ([`becomes`](super::becomes) for GGUF), and what it keeps plain stays F16 or F32. So does a
    /// checkpoint that was quantized by another program.
    pub fn pack(&self, name: &str, shape: &[usize], spec: &QuantSpec) -> Result<Packed> {
        self.pack_as(name, shape, spec, true)
    }

    /// As [`WeightStore::pack`]; without `keep` the weights of a GGUF file, or of a checkpoint that
    /// another program quantized, are decoded and quantized again as `spec` says.
    pub fn pack_as(
        &self,
        name: &str,
        shape: &[usize],
        spec: &QuantSpec,
        keep: bool,
    ) -> Result<Packed> {
        if let Some(packed) = self.gguf.as_ref().and_then(|gguf| gguf.pack(name, spec, keep)) {
            self.expect(name, shape)?;
            return packed.map_err(|e| self.about(name, e));
        }
        let layout = layout_of(shape).ok_or_else(|| {
            Error::Runtime(format!("tensor `{name}`: a weight has 2 or 4 axes, not {shape:?}"))
        })?;
        if let Some(packed) = self.packed(name) {
            self.expect(name, shape)?;
            if self.transposed(name) {
                let why = "the file holds its transpose, as GPT-2's Conv1D is multiplied; the file belongs to \
                           another model";
                return Err(self.about(name, Error::Model(why.into())));
            }
            return match keep || self.foreign().is_none() {
                true => packed,
                false => Packed::pack(&packed?.decode(), layout, spec, None)
                    .map_err(|e| self.about(name, e)),
            };
        }
        let view = self.get(name)?;
        self.expect(name, shape)?;
        let numbers = view.numbers()?;
        let spec = self.spec_of_plain(view.dtype, &numbers, spec, keep);
        Packed::pack_numbers(&numbers, Order::TapsLast, layout, &spec, None)
            .map_err(|e| self.about(name, e))
    }

    /// How a tensor of plain numbers is packed: as `spec` says, unless the file was quantized.
    fn spec_of_plain(
        &self,
        dtype: Dtype,
        numbers: &Numbers<'_>,
        spec: &QuantSpec,
        keep: bool,
    ) -> QuantSpec {
        let most = half::f16::MAX.to_f32();
        let halves = || numbers.to_f32().iter().all(|v| !v.is_finite() || v.abs() <= most);
        match (self.quantized().is_some(), dtype) {
            (true, Dtype::F16) => QuantSpec::F16,
            (true, _) => QuantSpec::F32,
            (false, _) if self.foreign().is_none() || !keep => *spec,
            // What its program left alone was to stay as it is; f16 has more digits than bf16.
            (false, Dtype::F16 | Dtype::BF16) if halves() => QuantSpec::F16,
            (false, _) => QuantSpec::F32,
        }
    }

    /// The transpose `[N, K]` of the matrix `name`, whose shape in the checkpoint is `[K, N]` (GPT-2's
    /// `Conv1D`), packed for the GPU. `keep` as in [`WeightStore::pack_as`]. GPTQ and AWQ files hold it as
    /// the linear layer `[N, K]` (`pack` of AutoGPTQ's and GPTQModel's layers begins with the transpose), and
    /// so do files that `inknib quantize` wrote. Where groups run along N, which no kernel here can use,
    /// the weight is decoded and kept in 16 bits.
    ///
    /// # Errors
    /// `Model` for compressed-tensors, too: llm-compressor quantizes linear layers alone, and a square
    /// matrix does not tell along which axis its groups would run.
    pub fn pack_transposed(
        &self,
        name: &str,
        [k, n]: [usize; 2],
        spec: &QuantSpec,
        keep: bool,
    ) -> Result<Packed> {
        // Quantized elsewhere it is a linear layer like any other.
        if let Some(foreign) = self.foreign().filter(|foreign| foreign.shape(name).is_some()) {
            return match foreign.holds_linear() {
                true => self.pack_as(name, &[n, k], spec, keep),
                false => Err(self.about(
                    name,
                    Error::Model(
                        "compressed-tensors does not say which way a Conv1D was packed; take the original \
                         checkpoint in FP16 or BF16, or one in GPTQ or GGUF"
                            .into(),
                    ),
                )),
            };
        }
        self.expect(name, &[k, n])?;
        if self.transposed(name)
            && let Some(packed) = self.packed(name)
        {
            return packed;
        }
        let packed = self.gguf.as_ref().and_then(|g| g.pack_transposed(name, spec, keep));
        let packed = match packed {
            Some(packed) => packed,
            None => {
                let values = transpose(&self.values(name)?, k, n);
                let packed =
                    self.quantized().is_some_and(|header| header.tensors.contains_key(name));
                let spec = match packed {
                    true => QuantSpec::F16,
                    false => {
                        let numbers = Numbers::F32(Cow::Borrowed(&values));
                        self.spec_of_plain(self.get(name)?.dtype, &numbers, spec, keep)
                    }
                };
                Packed::pack(&values, Layout::linear(n, k), &spec, None)
            }
        };
        packed.map_err(|e| self.about(name, e))
    }

    /// The packed weight of a quantized file, bit for bit as it was written; `None` where `name` is
    /// plain or absent.
    pub fn packed(&self, name: &str) -> Option<Result<Packed>> {
        if let Some(foreign) = self.foreign() {
            return Some(foreign.packed(self, name)?.map_err(|e| self.about(name, e)));
        }
        let header = self.quantized()?.tensors.get(name)?;
        Some(self.read_packed(name, header).map_err(|e| self.about(name, e)))
    }

    /// Whether a quantized file holds the transpose of this tensor.
    fn transposed(&self, name: &str) -> bool {
        self.quantized().and_then(|h| h.tensors.get(name)).is_some_and(|h| h.transposed)
    }

    fn read_packed(&self, name: &str, header: &PackedHeader) -> Result<Packed> {
        let words = self.words(&format!("{name}.q"))?;
        let halves = |part: &str| -> Result<Words> {
            let part = format!("{name}.{part}");
            let bytes = self.get(&part)?.bytes;
            if bytes.len().is_multiple_of(4) {
                return self.words(&part);
            }
            let bits = bytes.as_chunks::<2>().0.iter().map(|&b| u16::from_le_bytes(b));
            Ok(crate::quant::pair_halves(&bits.collect::<Vec<u16>>()).into())
        };
        let (scales, offsets) = match header.offset {
            Offset::None => (halves("s")?, Words::default()),
            Offset::Zero | Offset::Min => (halves("s")?, halves("z")?),
        };
        let format = header.format();
        let mut packed =
            Packed::from_parts_with_offsets(header.layout, format, words, scales, offsets)?;
        packed.sqnr_db = header.sqnr_db;
        Ok(packed)
    }

    /// The bytes of a tensor as words, where they lie.
    fn words(&self, name: &str) -> Result<Words> {
        let missing = || Error::Model(format!("no tensor `{name}`"));
        let entry = self.entries.get(name).ok_or_else(missing)?;
        Ok(Words::lying(self.shards[entry.shard].bytes.clone(), entry.range.clone()))
    }

    /// A bias, a norm or any other vector of `len` numbers, as f32. Axes of length 1 do not matter.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        if let Some(values) = self.gguf.as_ref().and_then(|gguf| gguf.values(name)) {
            self.expect(name, &[len])?;
            return values.map_err(|e| self.about(name, e));
        }
        let view = self.get(name)?;
        if view.len() != len || view.shape.iter().filter(|&&n| n != 1).count() > 1 {
            view.expect_shape(&[len])?;
        }
        view.to_f32()
    }

    /// Layout and format that [`WeightStore::pack_as`] would give this weight, without reading its
    /// values: an estimate where another program quantized the file.
    pub fn outline(
        &self,
        name: &str,
        shape: &[usize],
        spec: &QuantSpec,
    ) -> Result<(Layout, Format)> {
        self.expect(name, shape)?;
        let layout = layout_of(shape).ok_or_else(|| {
            Error::Runtime(format!("tensor `{name}`: a weight has 2 or 4 axes, not {shape:?}"))
        })?;
        let format = match self.quantized() {
            None => Format::of(spec),
            Some(header) => header.tensors.get(name).map_or(Format::F16, |h| match h.scheme {
                Scheme::Int4 => Format::Q4 { group: h.group, cubic: h.c as f32, offset: h.offset },
                Scheme::Int8 => Format::Q8 { group: h.group },
            }),
        };
        Ok((layout, format))
    }

    /// All values of a tensor as f32 in PyTorch's own order, a packed weight decoded.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        if let Some(values) = self.gguf.as_ref().and_then(|gguf| gguf.values(name)) {
            return values.map_err(|e| self.about(name, e));
        }
        match self.packed(name) {
            None => self.get(name)?.to_f32(),
            Some(packed) => {
                let (packed, transposed) = (packed?, self.transposed(name));
                let Layout { rows, channels, .. } = packed.layout;
                Ok(match transposed {
                    true => transpose(&packed.decode(), rows, channels),
                    false => rows_to_conv(&packed.decode(), packed.layout),
                })
            }
        }
    }

    /// The shape of a tensor in PyTorch's order, plain or packed.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        if let Some(shape) = self.gguf.as_ref().and_then(|gguf| gguf.shape(name)) {
            return Ok(shape);
        }
        if let Some(shape) = self.foreign().and_then(|foreign| foreign.shape(name)) {
            return Ok(shape);
        }
        match self.quantized().and_then(|header| header.tensors.get(name)) {
            Some(header) => Ok(&header.shape),
            None => Ok(self.get(name)?.shape),
        }
    }

    /// An error with both shapes unless the tensor has the shape `expected`, 1×1 windows left out.
    fn expect(&self, name: &str, expected: &[usize]) -> Result<()> {
        let shape = self.shape(name)?;
        match without_window(shape) == without_window(expected) {
            true => Ok(()),
            false => Err(Error::Model(format!(
                "{}: tensor `{name}` has shape {shape:?}, the model needs {expected:?}; the file \
                 belongs to another model or configuration",
                self.path().display()
            ))),
        }
    }

    /// Adds file and tensor to the message of a bad weight.
    pub(super) fn about(&self, name: &str, e: Error) -> Error {
        match e {
            Error::Model(why) => {
                Error::Model(format!("{}: tensor `{name}`: {why}", self.path().display()))
            }
            other => other,
        }
    }

    /// The header of a quantized file, with every packed weight's parts checked against it.
    pub(super) fn read_quantized_header(&self) -> Result<Option<FileHeader>> {
        let Some(json) = self.metadata(METADATA_KEY) else { return Ok(None) };
        let file = self.path().display();
        let header: FileHeader = parse_json(&format!("{file}: header `{METADATA_KEY}`"), json)?;
        if !(1..=VERSION).contains(&header.version) {
            return Err(Error::Model(format!(
                "{file}: quantized file of version {}, this program reads versions 1 to {VERSION}; make \
                 it again from the original weights with `inknib quantize`",
                header.version
            )));
        }
        for (name, packed) in &header.tensors {
            self.check_packed(name, packed).map_err(|e| self.about(name, e))?;
        }
        Ok(Some(header))
    }

    fn check_packed(&self, name: &str, header: &PackedHeader) -> Result<()> {
        let layout = header.layout;
        layout.check()?;
        let fits = header.group > 0
            && header.group.is_multiple_of(8)
            && (0.0..=1.0).contains(&header.c)
            && (header.offset == Offset::None || header.c == 0.0 && header.scheme == Scheme::Int4)
            && match (header.transposed, &header.shape[..]) {
                (true, &[k, n]) => layout_of(&[n, k]) == Some(layout),
                (true, _) => false,
                (false, shape) => layout_of(shape) == Some(layout),
            };
        let row_words = layout.row_stride() / header.format().per_word();
        let groups = if fits { layout.row_groups(header.group) } else { 0 };
        let is = |part: &str, dtype, n| {
            self.entry_is(&format!("{name}.{part}"), dtype, &[layout.rows, n])
        };
        let offsets = header.offset == Offset::None || is("z", Dtype::F16, groups);
        let parts = is("q", Dtype::U32, row_words) && is("s", Dtype::F16, groups) && offsets;
        match fits && parts && !self.is_plain(name) {
            true => Ok(()),
            false => Err(Error::Model(
                "its words and scales are missing or do not fit the file's header; fetch or make the \
                 file again"
                    .into(),
            )),
        }
    }
}

/// The layout of a weight of PyTorch's shape `[N, K]` or `[Cout, Cin, kh, kw]`; `None` for others
/// and where the sizes overflow.
pub(crate) fn layout_of(shape: &[usize]) -> Option<Layout> {
    let layout = match *shape {
        [rows, channels] => Layout::linear(rows, channels),
        [rows, channels, kh, kw] => Layout { rows, taps: kh.checked_mul(kw)?, channels },
        _ => return None,
    };
    layout.check().is_ok().then_some(layout)
}

/// A shape with a 1×1 convolution window taken off.
fn without_window(shape: &[usize]) -> &[usize] {
    match shape {
        [_, _, 1, 1] => &shape[..2],
        _ => shape,
    }
}
