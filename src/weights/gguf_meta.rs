//! GGUF's metadata: typed values under names, read with nothing trusted.
//!
//! A value is walked once, when the file is opened, and remembered as a range of bytes; what it
//! holds is decoded where it is asked for. So a file can make the reader hold no more than some bytes
//! for each value it has.

use std::ops::Range;

/// Longest name of a value (the specification's limit).
const MOST_KEY_BYTES: usize = 65_535;
/// Longest single text; chat templates have some 20 kB.
const MOST_TEXT_BYTES: usize = 1 << 24;
/// Most elements of one array; vocabularies have some 300,000 tokens and 500,000 merges.
const MOST_ELEMENTS: usize = 1 << 24;
/// Arrays within arrays. Nothing in use has any.
const MOST_NESTING: usize = 4;
/// Most bytes of everything before the tensors; 20 MB are much.
pub(super) const MOST_METADATA_BYTES: usize = 1 << 28;

/// The kind of a value, by its number in the file (ggml's gguf.h `enum gguf_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_number(number: u32) -> Option<Kind> {
        use Kind::*;
        let kinds = [U8, I8, U16, I16, U32, I32, F32, Bool, Text, Array, U64, I64, F64];
        kinds.get(number as usize).copied()
    }

    /// Bytes of a value of fixed size.
    fn bytes(self) -> Option<usize> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::Text | Kind::Array => None,
        }
    }
}

/// A value: where its bytes lie. For an array these are its elements, for a text its letters.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Value {
    pub(super) kind: Kind,
    /// Kind and number of the elements of an array.
    pub(super) elements: Option<(Kind, usize)>,
    pub(super) range: Range<usize>,
}

/// Reads little-endian values one after the other; every length is checked against what is left.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
}

/// What is wrong at a place of the file, without the file's name.
pub(super) type Bad = String;

impl<'a> Cursor<'a> {
    /// A cursor over the first bytes of a file.
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// The bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: usize) -> Result<Range<usize>, Bad> {
        if self.left() < n {
            return Err(format!("it ends inside its header, {} bytes after its start", self.at));
        }
        if self.at + n > MOST_METADATA_BYTES {
            return Err(format!("its header has more than {MOST_METADATA_BYTES} bytes"));
        }
        self.at += n;
        Ok(self.at - n..self.at)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        let range = self.take(N)?;
        let mut out = [0; N];
        out.copy_from_slice(&self.bytes[range]);
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Bad> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Bad> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count or a length that must not be above `most`.
    pub(super) fn count(&mut self, what: &str, most: usize) -> Result<usize, Bad> {
        let count = self.u64()?;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(format!("{what} is {count}, more than {most}")),
        }
    }

    fn letters(&mut self, what: &str, most: usize) -> Result<Range<usize>, Bad> {
        // A longer text than what is left is refused by `take`, before anything is made of it.
        let bytes = self.count(&format!("the length of {what}"), most)?;
        self.take(bytes)
    }

    /// A name: UTF-8, at most as long as the specification allows.
    pub(super) fn name(&mut self, what: &str) -> Result<&'a str, Bad> {
        let range = self.letters(what, MOST_KEY_BYTES)?;
        std::str::from_utf8(&self.bytes[range]).map_err(|_| format!("{what} is not UTF-8"))
    }

    /// The kind and place of the value that comes.
    pub(super) fn value(&mut self, name: &str) -> Result<Value, Bad> {
        let kind = self.kind(name)?;
        match kind {
            Kind::Array => {
                let (element, count, range) = self.elements(name, 0)?;
                Ok(Value { kind, elements: Some((element, count)), range })
            }
            Kind::Text => {
                let range = self.letters(&format!("the text `{name}`"), MOST_TEXT_BYTES)?;
                Ok(Value { kind, elements: None, range })
            }
            _ => {
                let range = self.take(kind.bytes().unwrap_or_default())?;
                Ok(Value { kind, elements: None, range })
            }
        }
    }

    fn kind(&mut self, name: &str) -> Result<Kind, Bad> {
        let number = self.u32()?;
        Kind::from_number(number)
            .ok_or_else(|| format!("`{name}` has a value of unknown kind {number}"))
    }

    fn elements(&mut self, name: &str, depth: usize) -> Result<(Kind, usize, Range<usize>), Bad> {
        if depth == MOST_NESTING {
            return Err(format!(
                "`{name}` has arrays within arrays, more than {MOST_NESTING} deep"
            ));
        }
        let kind = self.kind(name)?;
        let count = self.count(&format!("the length of the array `{name}`"), MOST_ELEMENTS)?;
        let start = self.at;
        match (kind, kind.bytes()) {
            (_, Some(bytes)) => {
                self.take(bytes * count)?;
            }
            (Kind::Text, _) => {
                for _ in 0..count {
                    self.letters(&format!("a text of `{name}`"), MOST_TEXT_BYTES)?;
                }
            }
            (_, None) => {
                for _ in 0..count {
                    self.elements(name, depth + 1)?;
                }
            }
        }
        Ok((kind, count, start..self.at))
    }
}

/// A number as every numeric kind gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Whole(i128),
    Real(f64),
}

/// The number in `bytes`, which have the size of `kind`; `None` for kinds that are no numbers.
pub(super) fn number(kind: Kind, bytes: &[u8]) -> Option<Number> {
    fn le<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
        bytes.try_into().ok()
    }
    Some(match kind {
        Kind::U8 => Number::Whole(u8::from_le_bytes(le(bytes)?).into()),
        Kind::I8 => Number::Whole(i8::from_le_bytes(le(bytes)?).into()),
        Kind::U16 => Number::Whole(u16::from_le_bytes(le(bytes)?).into()),
        Kind::I16 => Number::Whole(i16::from_le_bytes(le(bytes)?).into()),
        Kind::U32 => Number::Whole(u32::from_le_bytes(le(bytes)?).into()),
        Kind::I32 => Number::Whole(i32::from_le_bytes(le(bytes)?).into()),
        Kind::U64 => Number::Whole(u64::from_le_bytes(le(bytes)?).into()),
        Kind::I64 => Number::Whole(i64::from_le_bytes(le(bytes)?).into()),
        // By its shortest decimal form, so that 1e-5 stays 1e-5 and not 9.99999974e-6.
        Kind::F32 => {
            let value = f32::from_le_bytes(le(bytes)?);
            Number::Real(value.to_string().parse().unwrap_or_else(|_| value.into()))
        }
        Kind::F64 => Number::Real(f64::from_le_bytes(le(bytes)?)),
        Kind::Bool | Kind::Text | Kind::Array => return None,
    })
}
