//! Weights that several nets of one checkpoint share, so that a net in which one layer differs costs that
//! layer alone.

use std::cell::RefCell;
use std::collections::HashMap;

use super::LoadedTensor;
use crate::graph::{Vector, Weight};
use crate::quant::QuantSpec;

/// Weights on the GPU by name and format. What is loaded through it with
/// [`Loader::filling`](super::Loader::filling) stays until it is dropped.
#[derive(Debug, Default)]
pub struct WeightCache {
    weights: RefCell<HashMap<String, (QuantSpec, Weight, LoadedTensor)>>,
    vectors: RefCell<HashMap<String, (Vector, LoadedTensor)>>,
}

/// How a loader uses a cache.
#[derive(Clone, Copy)]
pub(super) struct Cached<'a> {
    pub cache: &'a WeightCache,
    /// Whether what is not there yet is put there.
    pub fill: bool,
}

impl WeightCache {
    /// Names of the matrices, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.weights.borrow().keys().cloned().collect();
        names.sort();
        names
    }
    /// What is known of a matrix.
    pub fn tensor(&self, path: &str) -> Option<LoadedTensor> {
        self.weights.borrow().get(path).map(|(_, _, tensor)| tensor.clone())
    }

    pub(super) fn weight(&self, path: &str, spec: QuantSpec) -> Option<(Weight, LoadedTensor)> {
        let weights = self.weights.borrow();
        let (_, weight, tensor) = weights.get(path).filter(|(have, _, _)| *have == spec)?;
        Some((weight.clone(), tensor.clone()))
    }
    pub(super) fn keep_weight(&self, spec: QuantSpec, weight: &Weight, tensor: &LoadedTensor) {
        let entry = (spec, weight.clone(), tensor.clone());
        self.weights.borrow_mut().insert(tensor.path.clone(), entry);
    }
    pub(super) fn vector(&self, path: &str) -> Option<(Vector, LoadedTensor)> {
        self.vectors.borrow().get(path).cloned()
    }
    pub(super) fn keep_vector(&self, vector: &Vector, tensor: &LoadedTensor) {
        self.vectors.borrow_mut().insert(tensor.path.clone(), (vector.clone(), tensor.clone()));
    }
}
