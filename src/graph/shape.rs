//! Shapes of up to five dimensions, small enough to copy.

use std::fmt;

/// Dimensions, slowest first. Pictures are `[batch, height, width, channels]`, token streams
/// `[batch, tokens, channels]`: the same memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Shape {
    dims: [usize; 5],
    rank: usize,
}

impl Shape {
    pub fn new(dims: &[usize]) -> Shape {
        debug_assert!(dims.len() <= 5, "a shape has at most five dimensions");
        let mut shape = Shape { dims: [0; 5], rank: dims.len().min(5) };
        shape.dims[..shape.rank].copy_from_slice(&dims[..shape.rank]);
        shape
    }
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }
    pub fn rank(&self) -> usize {
        self.rank
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The last dimension (channels).
    pub fn last(&self) -> usize {
        self.dims().last().copied().unwrap_or(0)
    }
    /// Elements divided by the last dimension (pixels, tokens).
    pub fn rows(&self) -> usize {
        self.dims()[..self.rank.saturating_sub(1)].iter().product()
    }
    /// The same shape with another last dimension.
    pub fn with_last(mut self, last: usize) -> Shape {
        if self.rank > 0 {
            self.dims[self.rank - 1] = last;
        }
        self
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Shape {
        Shape::new(dims)
    }
}
impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Shape {
        Shape::new(&dims)
    }
}
impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}
