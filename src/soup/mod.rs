//! Soups on disk: a manifest, a base, and backbones that are PEFT adapters or full checkpoints.
//!
//! [`Soup::open`] reads every part and checks it against the base: a soup that opens can be merged.
//! Weights come only from safetensors, mapped; nothing is copied.

pub mod activation;
pub mod adapter;
pub mod bones;
pub mod checkpoint;
mod digest;
mod error;
pub mod geometry;
mod header;
pub mod init;
pub mod inspect;
pub mod manifest;
mod open;
pub mod peft;
pub mod weights;

pub use activation::{Activation, ActiveFrom, NotInvoked};
pub use adapter::{Adapter, LoraModule};
pub use checkpoint::Checkpoint;
pub use error::{SoupError, WeightError};
pub use header::TensorSpec;
pub use manifest::{BackboneKind, BaseSource, Manifest, ManifestError};
pub use open::{
    Backbone, FRONT, OpenOptions, Soup, base_source, local_base, read_front, read_manifest,
};
