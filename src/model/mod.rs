//! The language model: one Llama-family decoder, its variants as data.
//!
//! [`config`] reads a Hugging Face `config.json`; [`decoder`] is the forward pass over any
//! [`crate::kernels::Kernels`]; [`linear`] is a parameter that may be one merged matrix or a
//! per-row mixture. Knows nothing of HTTP, preferences or soups.

pub mod config;
pub mod decoder;
pub mod linear;
mod read;
