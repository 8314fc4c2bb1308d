//! The quantized file: a safetensors file in which a packed weight `NAME` lies as `NAME.q` (u32
//! words `[rows, row words]`), `NAME.s` (f16 scales `[rows, groups of a row]`) and, where groups have
//! offsets, `NAME.z` (f16, as `NAME.s`), and everything else under its own name. One metadata key, `inknib`, holds a JSON header that says how each packed
//! weight is to be read and where it came from. Reading is [`crate::weights::WeightStore`]'s part.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::{Format, Layout, Offset, Packed};
use crate::files::temporary_beside;
use crate::tensor::{Data, Tensor};
use crate::{Error, Result};

/// The metadata key of the header.
pub const METADATA_KEY: &str = "inknib";
/// The newest version this program reads. It writes the oldest that tells all: 1, or 2 for a file with
/// offsets, or 3 for one with transposed weights.
pub const VERSION: u32 = 3;

/// What the file says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileHeader {
    pub version: u32,
    /// Name of the recipe the file was made by.
    pub recipe: String,
    /// SHA-256 of the source file or files, in hexadecimal.
    pub source_sha256: String,
    /// How codes were found, and on what; absent where nothing was calibrated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Packed weights by name.
    pub tensors: BTreeMap<String, PackedHeader>,
}

/// What a file's codes were chosen by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// `mse`, `imatrix`, `gptq` or `awq`.
    pub method: String,
    /// What the model painted or read, in words.
    pub data: String,
    /// Rows of the input that the layer which saw most was given.
    pub rows: f64,
    /// Signal to noise of each weight's layer output over the calibration data, in dB.
    pub output_sqnr_db: BTreeMap<String, f64>,
}

/// How one packed weight is to be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PackedHeader {
    pub scheme: Scheme,
    /// Channels per scale.
    pub group: u32,
    /// Curvature of the levels in units of (q−8)²; 0 for evenly spaced ones and for int8. An f32,
    /// written as the f64 of the same value so that no digit is lost.
    pub c: f64,
    /// What each group has besides its scale; int4 only.
    #[serde(default, skip_serializing_if = "is_none")]
    pub offset: Offset,
    pub layout: Layout,
    /// Shape of the source tensor: `[N, K]` or `[Cout, Cin, kh, kw]`; `[K, N]` of a transposed one.
    pub shape: Vec<usize>,
    /// Packed is the transpose of the source (transformers' `Conv1D`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub transposed: bool,
    /// Measured when it was packed; absent where nothing was lost or the source was not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqnr_db: Option<f64>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_none(offset: &Offset) -> bool {
    *offset == Offset::None
}

/// The packed schemes a file may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    Int4,
    Int8,
}

impl PackedHeader {
    /// The number format this header describes.
    pub fn format(&self) -> Format {
        match self.scheme {
            Scheme::Int4 => {
                Format::Q4 { group: self.group, cubic: self.c as f32, offset: self.offset }
            }
            Scheme::Int8 => Format::Q8 { group: self.group },
        }
    }
}

/// A tensor on its way into a quantized file.
#[derive(Clone, Debug)]
pub enum Stored {
    /// A Q4 or Q8 weight and the shape of its source.
    Packed { shape: Vec<usize>, packed: Packed },
    /// The transpose `[N, K]` of a source `shape` `[K, N]`, so that its groups run along the inputs.
    Transposed { shape: Vec<usize>, packed: Packed },
    /// A tensor that stays as it is.
    Plain(Tensor),
}

/// Writes a quantized file. It appears under `path` only when it is complete. Tensors are named
/// once; a packed weight must be Q4 or Q8.
pub fn write_quantized(
    path: impl AsRef<Path>,
    recipe: &str,
    source_sha256: &str,
    tensors: &[(String, Stored)],
) -> Result<()> {
    write_calibrated(path, recipe, source_sha256, tensors, None)
}

/// As [`write_quantized`], with a record of the calibration.
pub fn write_calibrated(
    path: impl AsRef<Path>,
    recipe: &str,
    source_sha256: &str,
    tensors: &[(String, Stored)],
    calibration: Option<Calibration>,
) -> Result<()> {
    let path = path.as_ref();
    let mut header = FileHeader {
        version: 1,
        recipe: recipe.to_string(),
        source_sha256: source_sha256.to_string(),
        calibration,
        tensors: BTreeMap::new(),
    };
    let mut pieces: BTreeMap<String, Piece<'_>> = BTreeMap::new();
    let mut put = |name: String, piece| match pieces.insert(name.clone(), piece) {
        None => Ok(()),
        Some(_) => Err(Error::Model(format!("{}: two tensors named `{name}`", path.display()))),
    };
    for (name, stored) in tensors {
        match stored {
            Stored::Plain(tensor) if !tensor.is_consistent() => {
                return Err(Error::Runtime(format!(
                    "tensor `{name}`: shape {:?} with {} elements",
                    tensor.shape,
                    tensor.len()
                )));
            }
            Stored::Plain(tensor) => put(name.clone(), Piece::plain(tensor))?,
            Stored::Packed { shape, packed } | Stored::Transposed { shape, packed } => {
                let mut described = describe(name, shape, packed)?;
                described.transposed = matches!(stored, Stored::Transposed { .. });
                header.version = header.version.max(version(&described));
                header.tensors.insert(name.clone(), described);
                let layout = packed.layout;
                let words = bytemuck::cast_slice(&packed.words);
                let shape = vec![layout.rows, packed.row_words()];
                put(format!("{name}.q"), Piece { dtype: Dtype::U32, shape, bytes: words })?;
                put(format!("{name}.s"), Piece::halves(packed, &packed.scales))?;
                if packed.format.offset() != Offset::None {
                    put(format!("{name}.z"), Piece::halves(packed, &packed.offsets))?;
                }
            }
        }
    }
    let json = serde_json::to_string(&header)
        .map_err(|e| Error::Runtime(format!("{}: header: {e}", path.display())))?;
    // One key only: the order of several would differ from run to run.
    let metadata = HashMap::from([(METADATA_KEY.to_string(), json)]);
    write_whole(path, |temporary| safetensors::serialize_to_file(pieces, Some(metadata), temporary))
}

/// Lets a file be written under a temporary name and gives it its own when it is complete.
pub(crate) fn write_whole(
    path: &Path,
    write: impl FnOnce(&Path) -> std::result::Result<(), safetensors::SafeTensorError>,
) -> Result<()> {
    let temporary = temporary_beside(path);
    // safetensors leaves a file that only its owner may read; one made plainly has the usual rights.
    let rights = std::fs::File::create(&temporary).and_then(|f| f.metadata());
    let rights = rights.map_err(|e| Error::io(&temporary, e))?.permissions();
    let written = write(&temporary)
        .map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => Error::io(&temporary, e),
            other => Error::Runtime(format!("{}: {other}", temporary.display())),
        })
        .and_then(|()| {
            std::fs::set_permissions(&temporary, rights).map_err(|e| Error::io(&temporary, e))
        })
        .and_then(|()| std::fs::rename(&temporary, path).map_err(|e| Error::io(path, e)));
    if written.is_err() {
        // The first error is the one to report; a left-over is only untidy.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn describe(name: &str, shape: &[usize], packed: &Packed) -> Result<PackedHeader> {
    if packed.columns.is_some() {
        return Err(Error::Runtime(format!(
            "tensor `{name}`: the quantized file cannot hold reordered channels"
        )));
    }
    let (scheme, group, c) = match packed.format {
        Format::Q4 { group, cubic, .. } => (Scheme::Int4, group, f64::from(cubic)),
        Format::Q8 { group } => (Scheme::Int8, group, 0.0),
        Format::F16 | Format::F32 => {
            return Err(Error::Runtime(format!(
                "tensor `{name}`: {:?} is stored plain, not packed",
                packed.format
            )));
        }
    };
    let sqnr_db = packed.sqnr_db.filter(|db| db.is_finite());
    let (layout, offset) = (packed.layout, packed.format.offset());
    let (shape, transposed) = (shape.to_vec(), false);
    Ok(PackedHeader { scheme, group, c, offset, layout, shape, transposed, sqnr_db })
}

/// The oldest version whose readers understand a weight.
fn version(header: &PackedHeader) -> u32 {
    match (header.transposed, header.offset) {
        (true, _) => 3,
        (false, Offset::Zero | Offset::Min) => 2,
        (false, Offset::None) => 1,
    }
}

struct Piece<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> Piece<'a> {
    /// Scales or offsets `[rows, groups of a row]`, without what pads them to words.
    fn halves(packed: &Packed, words: &'a [u32]) -> Piece<'a> {
        let shape = vec![packed.layout.rows, packed.row_groups()];
        let bytes: &[u8] = bytemuck::cast_slice(words);
        Piece { dtype: Dtype::F16, shape, bytes: &bytes[..2 * packed.scale_count()] }
    }

    fn plain(tensor: &'a Tensor) -> Piece<'a> {
        let (dtype, bytes) = match &tensor.data {
            Data::F32(v) => (Dtype::F32, bytemuck::cast_slice(v)),
            Data::F16(v) => (Dtype::F16, bytemuck::cast_slice(v)),
            Data::I64(v) => (Dtype::I64, bytemuck::cast_slice(v)),
            Data::U32(v) => (Dtype::U32, bytemuck::cast_slice(v)),
        };
        Piece { dtype, shape: tensor.shape.clone(), bytes }
    }
}

impl safetensors::View for Piece<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

// The file is little-endian and words go into it as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));
