//! What a plan takes and does, known before it is made.

/// Memory that a plan takes besides weights and what other plans hold, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Activations, as [`Plan::activation_bytes`](super::Plan::activation_bytes) counts them.
    pub activations: u64,
    /// Inputs and literals.
    pub inputs: u64,
    /// Parameters of all dispatches.
    pub params: u64,
    /// Of the activations, the buffers that outputs lie in: what stays where somebody keeps the outputs and
    /// drops the plan.
    pub outputs: u64,
    /// The most that a kernel reads or writes through one binding, weights left out.
    pub largest: u64,
    /// The copy through which the host reads a result; 0 unless whoever reads has set it.
    pub read_back: u64,
    /// Floating-point operations of one run; no memory.
    pub flops: u64,
}

impl Footprint {
    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.activations + self.inputs + self.params + self.read_back
    }
}
