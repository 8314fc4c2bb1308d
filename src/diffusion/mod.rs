//! Diffusion: schedules, samplers, random numbers, pictures and their text chunks.

pub mod chunks;
pub mod embedding;
pub mod image;
pub mod image_input;
pub mod image_sheet;
pub mod infotext;
pub mod prompt;
pub mod record;
pub mod rng;
pub mod sampler;
pub mod schedule;
mod schedule_config;
pub mod settings;
pub mod text_to_image;
pub mod tiling;
