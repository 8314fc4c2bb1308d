//! Image models in every layout that people have them in.

#[path = "layouts/folders.rs"]
mod folders;
