//! Language: tokens, chat templates, sampling and the decoder's loop.

pub mod generation_config;
pub mod sampler;
pub mod stop;
pub mod tokenizer;
