//! Language: tokens, chat templates, sampling and the decoder's loop.

pub mod chat;
pub mod decoder;
pub mod generation_config;
mod python;
pub mod sampler;
pub mod stop;
pub mod template;
pub mod tokenizer;
