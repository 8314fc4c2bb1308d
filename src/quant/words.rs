//! The words of a packed weight, which need not be copied where a file holds them as the GPU reads them.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Bytes that stay where they are as long as somebody holds them (a mapped file).
pub trait Held: AsRef<[u8]> + Send + Sync {
    /// Gives the pages of a range, which was read, back to the system; reading again brings them back.
    fn release(&self, range: Range<usize>) {
        let _ = range;
    }
}

impl Held for Vec<u8> {}

/// Bytes of several owners.
pub type SharedBytes = Arc<dyn Held>;

/// 32-bit words, little-endian in a file: in memory of their own, or where they lie.
#[derive(Clone)]
pub struct Words(Place);

#[derive(Clone)]
enum Place {
    Own(Vec<u32>),
    /// A range of bytes that begins and ends with a word, aligned as words are.
    Lying(SharedBytes, Range<usize>),
}

impl Words {
    /// The words in a range of bytes: left there where they are aligned and this machine reads them as they are.
    pub fn lying(held: SharedBytes, range: Range<usize>) -> Words {
        let all: &[u8] = (*held).as_ref();
        let bytes = all.get(range.clone()).unwrap_or_default();
        if cfg!(target_endian = "little") && bytemuck::try_cast_slice::<u8, u32>(bytes).is_ok() {
            return Words(Place::Lying(held, range));
        }
        let words = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b));
        Words(Place::Own(words.collect()))
    }
}

impl Words {
    /// A range of these words, left where they lie if they lie in a file.
    pub fn part(&self, range: Range<usize>) -> Words {
        let end = range.end.min(self.len());
        let range = range.start.min(end)..end;
        match &self.0 {
            Place::Own(words) => words[range].to_vec().into(),
            Place::Lying(held, whole) => {
                let (begin, end) = (whole.start + 4 * range.start, whole.start + 4 * range.end);
                Words(Place::Lying(held.clone(), begin..end))
            }
        }
    }
    /// After they were read: gives the memory that a file's pages took back to the system.
    pub fn release(&self) {
        if let Place::Lying(held, range) = &self.0 {
            held.release(range.clone());
        }
    }
}

impl Default for Words {
    fn default() -> Words {
        Words(Place::Own(Vec::new()))
    }
}

impl From<Vec<u32>> for Words {
    fn from(words: Vec<u32>) -> Words {
        Words(Place::Own(words))
    }
}

impl Deref for Words {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        match &self.0 {
            Place::Own(words) => words,
            Place::Lying(held, range) => {
                let all: &[u8] = (**held).as_ref();
                // Looked at when it was made; the bytes have not moved since.
                bytemuck::cast_slice(&all[range.clone()])
            }
        }
    }
}

impl PartialEq for Words {
    fn eq(&self, other: &Words) -> bool {
        self[..] == other[..]
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self[..].fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lie_where_they_are_aligned() {
        let words: Vec<u32> = (1..=9).collect();
        let held: SharedBytes = Arc::new(bytemuck::cast_slice::<u32, u8>(&words).to_vec());
        let begin = (0..4).find(|i| (*held).as_ref()[*i..].as_ptr().cast::<u32>().is_aligned());
        let begin = begin.unwrap();
        let lying = Words::lying(held.clone(), begin..begin + 8);
        assert!(matches!(lying.0, Place::Lying(..)));
        let own = Words::lying(held.clone(), begin + 1..begin + 9);
        assert!(matches!(own.0, Place::Own(..)) && own.len() == 2 && own != lying);
        assert_eq!(Words::lying(held, 30..90), Words::default());
        let part = lying.part(1..9);
        assert!(matches!(part.0, Place::Lying(..)) && part[..] == lying[1..]);
        assert!(lying.part(7..9).is_empty());
    }
}
