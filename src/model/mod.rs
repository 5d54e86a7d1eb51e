//! The language model: one Llama-family decoder, its variants as data.
//!
//! [`config`] is what a Hugging Face `config.json` says; [`names`] holds the names of its tensors;
//! [`decoder`] is the forward pass over any
//! [`crate::kernels::Kernels`]; [`linear`] is a parameter that may be one merged matrix or a
//! per-row mixture. Knows nothing of HTTP, preferences or soups.

pub mod config;
pub mod decoder;
pub mod linear;
pub mod names;
mod read;
