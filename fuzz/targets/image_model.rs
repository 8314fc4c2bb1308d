//! A text-to-image model in a single file: its names and shapes are the fuzzer's, from pieces of real
//! ones; every part's configuration and tensors are asked for. One byte chooses safetensors or GGUF as it
//! stands.
#![no_main]

use inknib::weights::{Dtype, ImageModel, Part};
use inknib_fuzz::{Bytes, exercise};
use libfuzzer_sys::fuzz_target;

/// Names that make the reader go on.
const NAMES: [&str; 16] = [
    "model.diffusion_model.input_blocks.0.0.weight",
    "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
    "model.diffusion_model.input_blocks.3.0.op.weight",
    "model.diffusion_model.output_blocks.0.0.in_layers.2.weight",
    "model.diffusion_model.output_blocks.5.1.proj_in.weight",
    "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
    "model.diffusion_model.label_emb.0.0.weight",
    "model.diffusion_model.out.2.weight",
    "first_stage_model.decoder.mid.block_1.conv1.weight",
    "first_stage_model.decoder.up.0.block.0.conv1.weight",
    "first_stage_model.decoder.mid.attn_1.q.weight",
    "cond_stage_model.model.token_embedding.weight",
    "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
    "conditioner.embedders.1.model.text_projection",
    "conditioner.embedders.1.model.token_embedding.weight",
    "global_step",
];

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let file = match bytes.byte() & 3 {
        0 => [b"GGUF", bytes.0].concat(),
        1 => bytes.0.to_vec(),
        _ => {
            let types: &[Dtype] = &[Dtype::F16, Dtype::F32, Dtype::BF16, Dtype::I64];
            let parts: Vec<(&str, &[Dtype])> = NAMES.iter().map(|name| (*name, types)).collect();
            bytes.file(&parts, Some(("modelspec.prediction_type", "v")))
        }
    };
    let Ok(model) = ImageModel::from_bytes("fuzz", file) else { return };
    let _ = (model.describe(), model.index(), model.scheduler(), model.spare());
    for part in Part::ALL {
        let _ = (model.config(part), model.vocabulary(part));
        if let Ok(store) = model.store(part) {
            let _ = exercise(&store);
        }
    }
});
