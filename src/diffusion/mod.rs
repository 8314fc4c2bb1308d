//! Diffusion: schedules, samplers, random numbers, pictures and their text chunks.

pub mod autoencoder;
pub mod chunks;
mod conditioning;
mod control;
pub mod embedding;
pub mod image;
pub mod image_input;
pub mod image_sheet;
pub mod infotext;
mod inpaint;
pub mod measure;
pub mod memory;
pub mod preview;
pub mod prompt;
pub mod record;
pub mod request;
pub mod rng;
pub mod run;
pub mod sampler;
pub mod schedule;
mod schedule_config;
pub mod settings;
pub mod text_to_image;
pub mod tiling;
mod variant;
