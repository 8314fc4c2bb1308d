//! One tensor as it lies in a file, and its conversion to numbers.

use std::borrow::Cow;
use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;

use crate::quant::Numbers;
use crate::tensor::{Data, Tensor};
use crate::{Error, Result};

/// A tensor inside a mapped file: row-major, little-endian, borrowed from the
/// [`WeightStore`](super::WeightStore).
#[derive(Clone, Debug)]
pub struct View<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    pub dtype: Dtype,
    pub bytes: &'a [u8],
    /// The file it lies in, for messages.
    pub file: &'a Path,
}

impl View<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as f32, from F32, F16, BF16 or F64 (rounded). Integers are refused: a weight
    /// that is stored as integers belongs to a packed format with its own decoder.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        Ok(match self.dtype {
            Dtype::F32 => words(self.bytes, f32::from_le_bytes),
            Dtype::F16 => {
                let halves = self.halves();
                let mut out = vec![0.0; halves.len()];
                halves.convert_to_f32_slice(&mut out);
                out
            }
            Dtype::BF16 => words(self.bytes, |b: [u8; 2]| {
                f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)
            }),
            Dtype::F64 => words(self.bytes, |b| f64::from_le_bytes(b) as f32),
            _ => return Err(self.unsupported("floating-point numbers (F32, F16, BF16, F64)")),
        })
    }

    /// The elements in the type they are stored in, borrowed where the file's alignment allows it; F64
    /// is rounded to F32. Integers are refused, as by [`View::to_f32`].
    pub fn numbers(&self) -> Result<Numbers<'_>> {
        let brain = |b: [u8; 2]| bf16::from_bits(u16::from_le_bytes(b));
        Ok(match self.dtype {
            Dtype::F32 => Numbers::F32(cast(self.bytes, f32::from_le_bytes)),
            Dtype::F16 => Numbers::F16(self.halves()),
            Dtype::BF16 => Numbers::Bf16(cast(self.bytes, brain)),
            _ => Numbers::F32(Cow::Owned(self.to_f32()?)),
        })
    }

    /// The elements as i64, from any integer type or BOOL. U64 beyond i64 saturates.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        Ok(match self.dtype {
            Dtype::I64 => words(self.bytes, i64::from_le_bytes),
            Dtype::U64 => {
                words(self.bytes, |b| i64::try_from(u64::from_le_bytes(b)).unwrap_or(i64::MAX))
            }
            Dtype::I32 => words(self.bytes, |b| i64::from(i32::from_le_bytes(b))),
            Dtype::U32 => words(self.bytes, |b| i64::from(u32::from_le_bytes(b))),
            Dtype::I16 => words(self.bytes, |b| i64::from(i16::from_le_bytes(b))),
            Dtype::U16 => words(self.bytes, |b| i64::from(u16::from_le_bytes(b))),
            Dtype::I8 => words(self.bytes, |b| i64::from(i8::from_le_bytes(b))),
            Dtype::U8 | Dtype::BOOL => self.bytes.iter().map(|&b| i64::from(b)).collect(),
            _ => return Err(self.unsupported("integers (I8 to I64, U8 to U64, BOOL)")),
        })
    }

    /// The elements as u32 words; only from U32 or I32, whose bits are kept.
    pub fn to_u32(&self) -> Result<Vec<u32>> {
        match self.dtype {
            Dtype::U32 | Dtype::I32 => Ok(words(self.bytes, u32::from_le_bytes)),
            _ => Err(self.unsupported("32-bit words (U32, I32)")),
        }
    }

    /// The tensor in host memory: F16 stays F16, other floats become F32, U32 stays, other integers
    /// become I64.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let data = match self.dtype {
            Dtype::F16 => Data::F16(self.halves().into_owned()),
            Dtype::F32 | Dtype::BF16 | Dtype::F64 => Data::F32(self.to_f32()?),
            Dtype::U32 => Data::U32(self.to_u32()?),
            _ => Data::I64(self.to_i64()?),
        };
        Ok(Tensor { shape: self.shape.to_vec(), data })
    }

    /// An error that shows both shapes unless the tensor has exactly the shape `expected`.
    pub fn expect_shape(&self, expected: &[usize]) -> Result<()> {
        match self.shape == expected {
            true => Ok(()),
            false => Err(Error::Model(format!(
                "{}: tensor `{}` has shape {:?}, the model needs {:?}; the file belongs to another \
                 model or configuration",
                self.file.display(),
                self.name,
                self.shape,
                expected
            ))),
        }
    }

    /// The f16 elements, borrowed where the file's alignment allows it.
    fn halves(&self) -> Cow<'_, [f16]> {
        cast(self.bytes, f16::from_le_bytes)
    }

    fn unsupported(&self, wanted: &str) -> Error {
        Error::Model(format!(
            "{}: tensor `{}` is stored as {:?}, but {wanted} are needed here; convert the checkpoint \
             to F16 or F32",
            self.file.display(),
            self.name,
            self.dtype
        ))
    }
}

/// `bytes` as numbers where they lie, or else in pieces of `N`, each made a number.
fn cast<const N: usize, T: bytemuck::Pod>(
    bytes: &[u8],
    make: impl Fn([u8; N]) -> T,
) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(numbers) if cfg!(target_endian = "little") => Cow::Borrowed(numbers),
        _ => Cow::Owned(words(bytes, make)),
    }
}

/// `bytes` in pieces of `N`, each made a number. A remainder cannot occur: the header's check ties
/// the byte count to shape and type.
fn words<const N: usize, T>(bytes: &[u8], make: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&chunk| make(chunk)).collect()
}
