//! Reading checkpoints. [`WeightStore`] maps safetensors and GGUF files into memory and answers by
//! tensor name; [`Checkpoint`] joins it with the configuration; [`read_json`] reads a configuration
//! file; [`read_tensors`] reads a small file whole. Nothing here knows the GPU, and no input, however
//! damaged, panics.

mod awq;
mod budget;
mod bytes;
mod calibrated;
mod checkpoint;
mod codes;
mod compressed;
mod compressed_export;
mod config;
mod foreign;
mod gguf;
mod gguf_blocks;
mod gguf_config;
mod gguf_meta;
mod gguf_names;
mod gguf_repack;
mod gguf_store;
mod gptq;
mod image_expect;
mod image_file;
mod image_kind;
mod image_model;
mod image_names;
mod image_shapes;
mod image_store;
#[cfg(test)]
mod image_tests;
mod locate;
pub mod lora;
mod lora_names;
mod packed;
mod quantize;
mod spill;
mod statistics;
mod store;
mod view;

pub use budget::{Sensitivities, budget_recipe};
pub use calibrated::Method;
pub use checkpoint::{Checkpoint, gguf_file, read_config};
pub use config::read_json;
pub use foreign::has_quantization_config;
pub use gguf::{Gguf, GgufTensor};
pub use gguf_blocks::{GgmlType, decode as decode_ggml};
pub use gguf_names::{ARCHITECTURES, Architecture};
pub use gguf_repack::becomes;
pub(crate) use gguf_store::transpose;
pub use image_file::is_image_gguf;
pub use image_kind::{ImageFamily, Kind};
pub use image_model::{ImageModel, PIPELINES, Part, Vocabulary};
pub(crate) use packed::layout_of;
pub(crate) use quantize::transposes;
pub use quantize::{Form, Quantize, QuantizedReport, TensorReport, quantize, quantize_with};
pub use safetensors::Dtype;
pub use store::{WeightStore, read_tensors};
pub use view::View;

/// The Levenshtein distance between two names: how many letters to insert, delete or replace.
pub(crate) fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Up to three of `names` nearest to `wanted`, nearest first, as ` (nearest: a, b, c)`; nothing when
/// there are none.
pub(crate) fn nearest_names<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> String {
    let mut scored: Vec<(usize, &str)> = names.map(|n| (edit_distance(wanted, n), n)).collect();
    scored.sort();
    let best: Vec<&str> = scored.iter().take(3).map(|&(_, name)| name).collect();
    match best.is_empty() {
        true => String::new(),
        false => format!(" (nearest: {})", best.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_letters() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "ab"), 2);
        assert_eq!(edit_distance("same", "same"), 0);
        let names = ["conv_in.weight", "conv_out.weight", "z"];
        assert!(
            nearest_names("conv_im.weight", names.into_iter()).starts_with(" (nearest: conv_in")
        );
    }
}
