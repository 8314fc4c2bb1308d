//! Language: tokens, chat templates, sampling and the decoder's loop.

mod candidates;
pub mod chat;
mod clip_vocabulary;
pub mod decoder;
pub mod generation_config;
mod gguf_pre;
pub mod gguf_vocab;
mod python;
pub mod sampler;
pub mod stop;
pub mod template;
pub mod tokenizer;
mod tokenizer_clip;
