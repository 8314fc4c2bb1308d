//! Architectures. Each file reads like the paper: tensors have the checkpoint's own names, `forward`
//! records and never fails, and nothing here knows buffers, casts or kernels.

pub mod clip;
mod config;
pub mod controlnet;
mod gpt2;
pub mod language;
mod llama;
mod llama_config;
mod phi;
mod pixel_attention;
mod resnet;
mod rotary;
pub mod taesd;
mod transformer;
pub mod unet;
pub mod unet2d;
mod unet_block;
mod unet_config;
mod unet_hoisted;
mod unet_layout;
pub mod vae;
mod vae_config;
mod vae_encoder;
