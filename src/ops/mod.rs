//! One op, one file: params, Spec, shape rule, lowering and the f64 oracle. The shaders have the same stem
//! in shaders/ (fast) and shaders/reference/ (obvious).

pub mod assign;
pub mod attention;
pub mod canary;
pub mod ceiling;
pub mod channels;
pub mod concat;
pub mod conv2d;
pub mod embed;
pub mod finite;
pub mod gather;
pub mod gram;
pub mod guidance;
pub mod kv_cache;
pub mod matmul;
pub mod moments;
pub mod norm;
pub mod pointwise;
pub mod rope;
pub mod round8;
pub mod sampler;
pub mod softmax;
pub mod timestep;
pub mod topk;

use crate::gpu::{Elem, Spec};
use crate::quant::{Format, Offset};

/// What tests/shaders.rs and tests/layout.rs need to know of an op.
pub struct OpInfo {
    pub name: &'static str,
    /// Every variant that a plan may ask for.
    pub specs: Vec<Spec>,
    /// Name, offset and size of the fields of `struct Params`; each shader of the op declares the same.
    pub params: &'static [(&'static str, usize, usize)],
}

/// Every op. Adding one is this line and its `mod` line.
pub fn all() -> Vec<OpInfo> {
    [
        assign::info(),
        attention::info(),
        canary::info(),
        ceiling::info(),
        channels::info(),
        concat::info(),
        conv2d::info(),
        embed::info(),
        finite::info(),
        gather::info(),
        gram::info(),
        guidance::info(),
        kv_cache::info(),
        matmul::info(),
        matmul::gated::info(),
        matmul::joint::info(),
        moments::info(),
        norm::info(),
        pointwise::info(),
        rope::info(),
        round8::info(),
        sampler::info(),
        softmax::info(),
        timestep::info(),
        topk::info(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Declares a params struct whose fields the layout test can compare with the shader's.
#[macro_export]
macro_rules! params {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }
        impl $name {
            /// Name, offset and size of each field.
            pub const FIELDS: &'static [(&'static str, usize, usize)] = &[
                $((stringify!($field), std::mem::offset_of!($name, $field), std::mem::size_of::<$ty>())),*
            ];
        }
    };
}

/// Formats that the shader tests go through.
pub(crate) fn formats() -> Vec<Format> {
    // Groups of 16 are those of GGUF's Q6_K.
    let mut all =
        vec![Format::F32, Format::F16, Format::Q8 { group: 64 }, Format::Q8 { group: 16 }];
    for group in [32, 64, 128] {
        let form = |cubic| Format::Q4 { group, cubic, offset: Offset::None };
        all.extend([0.0, 0.01].map(form));
    }
    let asymmetric = [(128, Offset::Zero), (32, Offset::Min)];
    all.extend(asymmetric.map(|(group, offset)| Format::Q4 { group, cubic: 0.0, offset }));
    all
}

/// Element types of activations.
pub(crate) const ACTS: [Elem; 2] = [Elem::F32, Elem::F16];
