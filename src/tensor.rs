//! Host-side tensors: a shape and the numbers in row-major order (last axis fastest). They carry
//! what the graph reads and writes, and the golden tensors of the tests; weights on their way to
//! the GPU are [`crate::quant::Packed`].

use half::f16;

/// The numbers of a [`Tensor`], in one of the element types the engine computes with.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    I64(Vec<i64>),
    U32(Vec<u32>),
}

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::F32(v) => v.len(),
            Data::F16(v) => v.len(),
            Data::I64(v) => v.len(),
            Data::U32(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A shape and its elements, row-major. A scalar has the shape `[]` and one element.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Data,
}

impl Tensor {
    /// `data` under `shape`. The product of the shape must be the number of elements; a debug build
    /// checks it, [`Tensor::is_consistent`] asks.
    pub fn new(shape: &[usize], data: Data) -> Tensor {
        let tensor = Tensor { shape: shape.to_vec(), data };
        debug_assert!(tensor.is_consistent(), "{:?} of {} elements", tensor.shape, tensor.len());
        tensor
    }

    /// f32 elements under `shape`.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Tensor {
        Tensor::new(shape, Data::F32(data))
    }

    /// f16 elements under `shape`.
    pub fn f16(shape: &[usize], data: Vec<f16>) -> Tensor {
        Tensor::new(shape, Data::F16(data))
    }

    /// i64 elements under `shape`.
    pub fn i64(shape: &[usize], data: Vec<i64>) -> Tensor {
        Tensor::new(shape, Data::I64(data))
    }

    /// u32 elements under `shape`.
    pub fn u32(shape: &[usize], data: Vec<u32>) -> Tensor {
        Tensor::new(shape, Data::U32(data))
    }

    /// f32 zeros under `shape`.
    pub fn zeros(shape: &[usize]) -> Tensor {
        Tensor::f32(shape, vec![0.0; shape.iter().product()])
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Whether the shape's product is the number of elements.
    pub fn is_consistent(&self) -> bool {
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) == Some(self.len())
    }

    /// All elements as f32. Integers beyond 2^24 round to the nearest f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::F32(v) => v.clone(),
            Data::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Data::I64(v) => v.iter().map(|&x| x as f32).collect(),
            Data::U32(v) => v.iter().map(|&x| x as f32).collect(),
        }
    }

    /// All elements as i64; fractions are cut towards zero, NaN becomes 0.
    pub fn to_i64(&self) -> Vec<i64> {
        match &self.data {
            Data::F32(v) => v.iter().map(|&x| x as i64).collect(),
            Data::F16(v) => v.iter().map(|x| x.to_f32() as i64).collect(),
            Data::I64(v) => v.clone(),
            Data::U32(v) => v.iter().map(|&x| i64::from(x)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_between_element_types() {
        let t = Tensor::f16(&[2, 1], vec![f16::from_f32(1.5), f16::from_f32(-2.0)]);
        assert_eq!(t.to_f32(), [1.5, -2.0]);
        assert_eq!(t.to_i64(), [1, -2]);
        assert_eq!(Tensor::u32(&[1], vec![7]).to_f32(), [7.0]);
        assert_eq!(Tensor::i64(&[], vec![-3]).to_f32(), [-3.0]);
        assert_eq!((Tensor::zeros(&[2, 3]).len(), Tensor::zeros(&[0]).is_empty()), (6, true));
    }

    #[test]
    fn knows_when_shape_and_elements_disagree() {
        let bad = Tensor { shape: vec![2, 2], data: Data::F32(vec![0.0; 3]) };
        assert!(!bad.is_consistent());
        let huge = Tensor { shape: vec![usize::MAX, 2], data: Data::F32(vec![]) };
        assert!(!huge.is_consistent());
    }
}
