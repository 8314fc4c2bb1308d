//! A GGUF file's tensors as [`WeightStore`](super::WeightStore) gives them out: by Hugging Face's
//! names, in Hugging Face's order, whatever the file does.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gguf::{Gguf, GgufTensor};
use super::gguf_blocks::GgmlType;
use super::gguf_names::{Architecture, Source, sources};
use super::gguf_repack::{decode_rows, repack};
use crate::quant::{Layout, Packed, QuantSpec, conv_to_rows};
use crate::{Error, Result};

/// The tensors of a GGUF file by Hugging Face's names.
#[derive(Debug)]
pub(super) struct GgufTensors {
    gguf: Arc<Gguf>,
    sources: BTreeMap<String, Source>,
    /// Whether any matrix is stored in blocks; then what is plain was left plain on purpose.
    quantized: bool,
}

impl GgufTensors {
    pub(super) fn release(&self) {
        self.gguf.release();
    }
    /// The tensors of a language model.
    pub(super) fn new(gguf: Arc<Gguf>) -> Result<GgufTensors> {
        let sources = sources(&gguf, Architecture::of(&gguf)?)?;
        Ok(GgufTensors::over(gguf, sources))
    }

    /// The tensors that `sources` names.
    pub(super) fn over(gguf: Arc<Gguf>, sources: BTreeMap<String, Source>) -> GgufTensors {
        let quantized = gguf.is_quantized();
        GgufTensors { gguf, sources, quantized }
    }

    pub(super) fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.sources.keys()
    }

    /// The shape in Hugging Face's order; `None` for an unknown name.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.sources.get(name).map(|source| source.shape.as_slice())
    }

    /// All values in Hugging Face's order; `None` for an unknown name.
    pub(super) fn values(&self, name: &str) -> Option<Result<Vec<f32>>> {
        let (source, tensor) = self.find(name)?;
        let stored = stored_layout(source, tensor.ty);
        Some(self.check(source, tensor, stored).map(|data| {
            let mut values = decode_rows(tensor.ty, data, stored, source.rows);
            if source.minus != 0.0 {
                values.iter_mut().for_each(|v| *v -= source.minus);
            }
            match source.transposed {
                true => transpose(&values, stored.rows, stored.channels),
                false => values,
            }
        }))
    }

    /// A matrix for the GPU, `None` for an unknown name. With `keep`, what the file has quantized
    /// stays as near to it as [`becomes`](super::becomes) says, and what it left plain beside
    /// quantized matrices stays plain; otherwise the decoded values are packed as `spec` says.
    ///
    /// A convolution in blocks is quantized again, in eight bits: its blocks run through the window
    /// first, groups here through the channels.
    pub(super) fn pack(&self, name: &str, spec: &QuantSpec, keep: bool) -> Option<Result<Packed>> {
        let (source, tensor) = self.find(name)?;
        let keep = keep && self.quantized;
        let whole = tensor.ty.is_quantized() && !source.transposed && source.minus == 0.0;
        let Some([stored, wanted]) = block_layouts(source, tensor.ty).filter(|_| keep && whole)
        else {
            // A transposed matrix is only asked for whole; `pack_transposed` reads it as stored.
            let spec = if keep { plain_spec(tensor.ty) } else { *spec };
            let values = self.values(name)?;
            return Some(values.and_then(|values| pack_shape(&values, &source.shape, &spec)));
        };
        Some(self.check(source, tensor, stored).and_then(|data| {
            let packed = repack(tensor.ty, data, stored, source.rows)?;
            if stored == wanted {
                return Ok(packed);
            }
            // Whole groups in rows without padding: the same words, cut into other rows.
            let (format, sqnr_db) = (packed.format, packed.sqnr_db);
            let mut cut = Packed::from_parts_with_offsets(
                wanted,
                format,
                packed.words,
                packed.scales,
                packed.offsets,
            )?;
            cut.sqnr_db = sqnr_db;
            Ok(cut)
        }))
    }

    /// The transpose `[N, K]` of a matrix that Hugging Face has as `[K, N]` (GPT-2's `Conv1D`), for
    /// which the file's own blocks serve; `None` for an unknown name.
    pub(super) fn pack_transposed(
        &self,
        name: &str,
        spec: &QuantSpec,
        keep: bool,
    ) -> Option<Result<Packed>> {
        let (source, tensor) = self.find(name)?;
        let keep = keep && self.quantized;
        let layout = stored_layout(source, tensor.ty);
        Some(self.check(source, tensor, layout).and_then(|data| {
            if !source.transposed {
                return Err(Error::Runtime(format!("`{name}` is not stored transposed")));
            }
            if keep && tensor.ty.is_quantized() {
                return repack(tensor.ty, data, layout, source.rows);
            }
            let spec = if keep { plain_spec(tensor.ty) } else { *spec };
            pack_plain(&decode_rows(tensor.ty, data, layout, source.rows), layout, &spec)
        }))
    }

    fn find(&self, name: &str) -> Option<(&Source, &GgufTensor)> {
        let source = self.sources.get(name)?;
        Some((source, self.gguf.tensors().get(&source.tensor)?))
    }

    /// The stored bytes, once the rows that `layout` asks for are known to be there.
    fn check(&self, source: &Source, tensor: &GgufTensor, layout: Layout) -> Result<&[u8]> {
        layout.check()?;
        let data = self.gguf.data(tensor);
        let row = layout.channels / tensor.ty.block() * tensor.ty.block_bytes();
        let needed = (source.rows.first + layout.rows).checked_mul(row);
        match needed {
            Some(needed)
                if needed <= data.len() && layout.channels.is_multiple_of(tensor.ty.block()) =>
            {
                Ok(data)
            }
            _ => Err(Error::Model(format!("`{}` has too few rows", source.tensor))),
        }
    }
}

/// Rows and columns as they lie in the file: `[N, K]`; anything else, and a matrix whose blocks
/// straddle its rows, as one row.
fn stored_layout(source: &Source, ty: GgmlType) -> Layout {
    let reordered = source.rows != super::gguf_repack::Rows::default();
    match (source.shape.as_slice(), source.transposed) {
        ([k, n], true) => Layout::linear(*n, *k),
        ([n, k], false) if reordered || k.is_multiple_of(ty.block()) => Layout::linear(*n, *k),
        // Heads of a bias are reordered as rows of one column each.
        (shape, _) if reordered => Layout::linear(shape.iter().product(), 1),
        (shape, _) => Layout::linear(1, shape.iter().product()),
    }
}

/// Columns of the matrix that ComfyUI-GGUF makes of a tensor whose rows are no whole K blocks.
const FLAT: usize = 256;

/// The layout in which a matrix of blocks is repacked, and the one that it has then; `None` where its
/// groups are not those of its rows.
fn block_layouts(source: &Source, ty: GgmlType) -> Option<[Layout; 2]> {
    let (&[n, k] | &[n, k, 1, 1]) = source.shape.as_slice() else { return None };
    let wanted = Layout::linear(n, k);
    if k.is_multiple_of(ty.block()) {
        return Some([wanted, wanted]);
    }
    let group = super::becomes(ty)?.group()? as usize;
    let whole = k.is_multiple_of(32) && k.is_multiple_of(group) && (n * k).is_multiple_of(FLAT);
    let straight = source.rows == super::gguf_repack::Rows::default();
    (whole && straight).then(|| [Layout::linear(n * k / FLAT, FLAT), wanted])
}

/// Packs values of PyTorch's shape `[N, K]` or `[Cout, Cin, kh, kw]`.
fn pack_shape(values: &[f32], shape: &[usize], spec: &QuantSpec) -> Result<Packed> {
    match *shape {
        [n, k, kh, kw] if kh * kw > 1 => {
            let (rows, layout) = conv_to_rows(values, [n, k, kh, kw]);
            pack_plain(&rows, layout, spec)
        }
        [n, ref rest @ ..] => pack_plain(values, Layout::linear(n, rest.iter().product()), spec),
        [] => Err(Error::Model("it is a single number where a weight is needed".into())),
    }
}

/// What a plain matrix beside quantized ones becomes.
fn plain_spec(ty: GgmlType) -> QuantSpec {
    match ty {
        GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 => QuantSpec::F16,
        _ => QuantSpec::Q8 { group: 32 },
    }
}

/// Packs as asked, or as F32 where F16 was asked for and cannot hold the values.
fn pack_plain(values: &[f32], layout: Layout, spec: &QuantSpec) -> Result<Packed> {
    let far = |v: &f32| v.is_finite() && v.abs() > half::f16::MAX.to_f32();
    match *spec == QuantSpec::F16 && values.iter().any(far) {
        true => Packed::pack(values, layout, &QuantSpec::F32, None),
        false => Packed::pack(values, layout, spec, None),
    }
}

/// `[rows, columns]` to `[columns, rows]`.
pub(crate) fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for column in 0..columns {
        out.extend((0..rows).map(|row| values[row * columns + column]));
    }
    out
}
