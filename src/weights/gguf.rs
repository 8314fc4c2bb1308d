//! [`Gguf`]: the container of llama.cpp's models, versions 2 and 3 (ggml's docs/gguf.md). A header of
//! typed metadata and tensor descriptions, then the tensors.
//!
//! The file is taken as hostile: counts are bounded by what is left of it, every size and offset is
//! computed with checked arithmetic and held against its length, names come once, tensors do not
//! overlap.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::bytes::Bytes;
use super::gguf_blocks::GgmlType;
use super::gguf_meta::{Bad, Cursor, Kind, Number, Value, number};
use crate::{Error, Result};

/// Most values and most tensors; the largest models have some thousands of tensors.
const MOST_ENTRIES: usize = 1 << 16;
/// Bytes that a value and a tensor description take at least: lengths, a kind, a byte of value.
const LEAST_VALUE: usize = 8 + 4 + 1;
const LEAST_TENSOR: usize = 8 + 4 + 8 + 4 + 8;
/// Axes of a tensor (ggml's `GGML_MAX_DIMS`).
const MOST_AXES: u32 = 4;

/// A tensor's description.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    pub ty: GgmlType,
    /// Slowest axis first, as everywhere here: a linear layer is `[N, K]`, K the block's axis. (The
    /// file lists them the other way round.)
    pub shape: Vec<usize>,
    pub(super) range: Range<usize>,
}

impl GgufTensor {
    /// Number of weights.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none; the reader refuses such tensors.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }
}

/// An opened GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: Bytes,
    version: u32,
    values: BTreeMap<String, Value>,
    tensors: BTreeMap<String, GgufTensor>,
}

impl Gguf {
    /// Maps the file and reads its header.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf> {
        Gguf::new(path.as_ref(), Bytes::map(path.as_ref())?)
    }

    /// The same over bytes in memory; `name` stands for the file in messages.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Gguf> {
        Gguf::new(Path::new(name), Bytes::Held(bytes))
    }
    pub(super) fn release(&self) {
        self.bytes.release_all();
    }

    pub(super) fn new(path: &Path, bytes: Bytes) -> Result<Gguf> {
        let (version, values, tensors) = read(bytes.get()).map_err(|why| {
            Error::Model(format!("{}: not a usable GGUF file: {why}", path.display()))
        })?;
        Ok(Gguf { path: path.to_path_buf(), bytes, version, values, tensors })
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All tensors by the file's own names.
    pub fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// Whether any tensor is stored in quantized blocks.
    pub fn is_quantized(&self) -> bool {
        self.tensors.values().any(|t| t.ty.is_quantized())
    }

    /// The bytes of a tensor of this file.
    pub fn data(&self, tensor: &GgufTensor) -> &[u8] {
        self.bytes.get().get(tensor.range.clone()).unwrap_or_default()
    }

    /// The bytes of the whole file.
    pub(super) fn file(&self) -> &[u8] {
        self.bytes.get()
    }

    /// The names of all metadata, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// A text; `None` where there is no such key.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match (value.kind, std::str::from_utf8(self.at(&value.range))) {
            (Kind::Text, Ok(text)) => Ok(Some(text)),
            (Kind::Text, Err(_)) => Err(self.bad(key, "is not UTF-8 text")),
            _ => Err(self.bad(key, "is not a text")),
        }
    }

    /// A whole number from 0, of any integer kind. Of an array whose elements are all equal (some
    /// files give one number for every layer) it is that element.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(numbers) = self.numbers_of(key)? else { return Ok(None) };
        let mut found = None;
        for n in numbers {
            let Number::Whole(n) = n else { return Err(self.bad(key, "is not a whole number")) };
            let n = usize::try_from(n).map_err(|_| self.bad(key, "is out of range"))?;
            if found.is_some_and(|f| f != n) {
                return Err(self.bad(key, "differs from layer to layer, which no net here has"));
            }
            found = Some(n);
        }
        found.map(Some).ok_or_else(|| self.bad(key, "is an empty array"))
    }

    /// A number of any kind; it must be finite.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.numbers(key)?.as_deref() {
            None => Ok(None),
            Some([one]) => Ok(Some(*one)),
            Some(_) => Err(self.bad(key, "is not a single number")),
        }
    }

    /// The numbers of an array, or one number; all must be finite.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(numbers) = self.numbers_of(key)? else { return Ok(None) };
        let real = numbers.map(|n| match n {
            Number::Whole(n) => n as f64,
            Number::Real(r) => r,
        });
        let real: Vec<f64> = real.collect();
        match real.iter().all(|n| n.is_finite()) {
            true => Ok(Some(real)),
            false => Err(self.bad(key, "holds a number that is not finite")),
        }
    }

    /// Booleans as they are; 0 and 1 of integer kinds are taken for them.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        if value.kind == Kind::Bool {
            return Ok(Some(self.at(&value.range) != [0]));
        }
        match self.count(key)? {
            Some(n @ (0 | 1)) => Ok(Some(n == 1)),
            _ => Err(self.bad(key, "is not true or false")),
        }
    }

    /// An array of booleans; `None` also where the value is of another kind.
    pub fn flags(&self, key: &str) -> Result<Option<Vec<bool>>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match value.elements {
            Some((Kind::Bool, _)) => {
                Ok(Some(self.at(&value.range).iter().map(|&b| b != 0).collect()))
            }
            _ => Ok(None),
        }
    }

    /// An array of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let Some((Kind::Text, count)) = value.elements else {
            return Err(self.bad(key, "is not a list of texts"));
        };
        let mut cursor = Cursor::new(self.at(&value.range));
        let mut texts = Vec::with_capacity(count);
        for _ in 0..count {
            // The walk at opening has checked the lengths; what is left to see is the encoding.
            texts.push(cursor.name("a text").map_err(|why| self.bad(key, &why))?);
        }
        Ok(Some(texts))
    }

    fn numbers_of(&self, key: &str) -> Result<Option<impl Iterator<Item = Number> + '_>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let (kind, count) = value.elements.unwrap_or((value.kind, 1));
        let bytes = self.at(&value.range);
        let size = bytes.len() / count.max(1);
        if count > 0 && number(kind, &bytes[..size]).is_none() {
            return Err(self.bad(key, "holds no numbers"));
        }
        Ok(Some(bytes.chunks_exact(size.max(1)).filter_map(move |b| number(kind, b))))
    }

    fn at(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get().get(range.clone()).unwrap_or_default()
    }

    /// An error about a value of the metadata.
    pub(crate) fn bad(&self, key: &str, why: &str) -> Error {
        Error::Model(format!("{}: metadata `{key}` {why}", self.path.display()))
    }
}

type Header = (u32, BTreeMap<String, Value>, BTreeMap<String, GgufTensor>);

fn read(bytes: &[u8]) -> Result<Header, Bad> {
    let mut cursor = Cursor::new(bytes);
    if !bytes.starts_with(b"GGUF") {
        return Err("it does not begin with the letters GGUF".into());
    }
    cursor.u32()?;
    let version = cursor.u32()?;
    match version {
        2 | 3 => {}
        1 => {
            return Err(
                "it has version 1, which llama.cpp gave up in 2023; convert it again from \
                         the original weights"
                    .into(),
            );
        }
        // The version's own bytes come in the other order.
        v if v & 0xffff == 0 && v != 0 => {
            return Err("it is big-endian; convert it again, without --bigendian".into());
        }
        other => return Err(format!("it has version {other}; this program reads 2 and 3")),
    }
    let most = |left: usize, least: usize| MOST_ENTRIES.min(left / least);
    let most_tensors = most(cursor.left(), LEAST_TENSOR);
    let tensor_count = cursor.count("the number of tensors", most_tensors)?;
    let most_values = most(cursor.left(), LEAST_VALUE);
    let value_count = cursor.count("the number of metadata values", most_values)?;
    let mut values = BTreeMap::new();
    for _ in 0..value_count {
        let name = cursor.name("a metadata name")?;
        let value = cursor.value(name)?;
        if values.insert(name.to_string(), value).is_some() {
            return Err(format!("the metadata `{name}` is there twice"));
        }
    }
    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let name = cursor.name("a tensor's name")?;
        let tensor = describe(&mut cursor).map_err(|why| format!("tensor `{name}`: {why}"))?;
        if tensors.insert(name.to_string(), tensor).is_some() {
            return Err(format!("the tensor `{name}` is there twice"));
        }
    }
    let alignment = alignment(bytes, values.get("general.alignment"))?;
    place(&mut tensors, cursor.at, alignment, bytes.len())?;
    Ok((version, values, tensors))
}

/// A tensor's description; its range counts from the start of the data until [`place`].
fn describe(cursor: &mut Cursor<'_>) -> Result<GgufTensor, Bad> {
    let axes = cursor.u32()?;
    if axes == 0 || axes > MOST_AXES {
        return Err(format!("it has {axes} axes; 1 to {MOST_AXES} are possible"));
    }
    let mut shape = Vec::with_capacity(MOST_AXES as usize);
    for _ in 0..axes {
        // 2^40 is far beyond any model; the product is checked below.
        shape.push(cursor.count("a size", 1 << 40)?);
    }
    let number = cursor.u32()?;
    let ty = GgmlType::from_number(number)
        .ok_or_else(|| format!("it has the type number {number}, which is unknown or given up"))?;
    let columns = shape[0];
    shape.reverse();
    let weights = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    let weights = weights.filter(|&n| n > 0 && n <= 1 << 40);
    let Some(weights) = weights else { return Err(format!("its shape {shape:?} is impossible")) };
    if !columns.is_multiple_of(ty.block()) {
        return Err(format!("its rows of {columns} weights are no whole blocks of {ty}"));
    }
    let bytes = (weights / ty.block()).checked_mul(ty.block_bytes());
    let start = usize::try_from(cursor.u64()?).ok();
    let end = start.zip(bytes).and_then(|(start, bytes)| start.checked_add(bytes));
    match (start, end) {
        (Some(start), Some(end)) => Ok(GgufTensor { ty, shape, range: start..end }),
        _ => Err("it lies beyond any file".into()),
    }
}

fn alignment(bytes: &[u8], value: Option<&Value>) -> Result<usize, Bad> {
    let Some(value) = value else { return Ok(32) };
    let found = match number(value.kind, &bytes[value.range.clone()]) {
        Some(Number::Whole(n)) => usize::try_from(n).ok(),
        _ => None,
    };
    let found = found.filter(|n| n.is_power_of_two() && (8..=1 << 20).contains(n));
    found.ok_or_else(|| "its `general.alignment` is no power of two from 8 to 2^20".into())
}

/// Moves the tensors' ranges to where the data begins, and checks that they lie inside the file,
/// aligned and apart from each other.
fn place(
    tensors: &mut BTreeMap<String, GgufTensor>,
    header: usize,
    alignment: usize,
    file: usize,
) -> Result<(), Bad> {
    let start = header.checked_next_multiple_of(alignment).unwrap_or(file);
    for (name, tensor) in tensors.iter_mut() {
        if !tensor.range.start.is_multiple_of(alignment) {
            return Err(format!(
                "tensor `{name}` begins at {}, which is no multiple of {alignment}",
                tensor.range.start
            ));
        }
        let ends = [tensor.range.start, tensor.range.end].map(|n| n.checked_add(start));
        let [Some(from), Some(to)] = ends else {
            return Err(format!("tensor `{name}` lies beyond any file"));
        };
        if to > file {
            return Err(format!(
                "tensor `{name}` ends at byte {to}, the file has {file}; the download is incomplete"
            ));
        }
        tensor.range = from..to;
    }
    let mut places: Vec<(&Range<usize>, &str)> =
        tensors.iter().map(|(name, t)| (&t.range, name.as_str())).collect();
    places.sort_by_key(|(range, _)| range.start);
    match places.windows(2).find(|pair| pair[0].0.end > pair[1].0.start) {
        None => Ok(()),
        Some(pair) => Err(format!("the tensors `{}` and `{}` overlap", pair[0].1, pair[1].1)),
    }
}
