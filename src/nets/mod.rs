//! Architectures. Each file reads like the paper: tensors have the checkpoint's own names, `forward`
//! records and never fails, and nothing here knows buffers, casts or kernels.

pub mod clip;
mod config;
pub mod language;
mod llama;
mod resnet;
pub mod unet;
mod unet_config;
mod unet_hoisted;
pub mod vae;
