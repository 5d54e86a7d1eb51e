//! The language model: one decoder, alone (the Llama family) or after an encoder (T5), its variants as
//! data.
//!
//! [`config`] is what a Hugging Face `config.json` says, [`rope`] its rotary constants; [`names`] holds
//! the names of the tensors; [`decoder`] is the forward pass over any [`crate::kernels::Kernels`],
//! made of the blocks in `layer`, `encoder_decoder` what an encoder adds to it; [`feed_forward`] is a
//! layer's second half, with experts or without; [`linear`] is a parameter that may be one merged matrix
//! or a per-row mixture. The module does not depend on HTTP, preferences or soups.

pub mod config;
pub mod decoder;
mod encoder_decoder;
mod families;
pub mod feed_forward;
mod keys;
mod layer;
pub mod linear;
pub mod names;
mod read;
pub mod rope;
mod t5;
