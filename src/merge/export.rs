//! `ladle merge`: the model of one c, written out for others to load.
//!
//! [`export_model`] writes a Hugging Face checkpoint, [`export_adapter`] one PEFT adapter.

mod adapter;
mod truncate;

use std::path::Path;

use serde_json::{Value, json};

pub use adapter::export_adapter;
pub use truncate::Truncation;

use super::{MergeError, dense::Merger, plan::SoupPlan};
use crate::{
    files::{self, FileError, Staging, write_json},
    kernels::Dtype,
    preference::{Coefficients, key::ModelKey},
    soup::{
        Soup, TensorSpec, WeightError,
        checkpoint::{COMPANIONS, SHARD_BYTES, write_checkpoint},
    },
};

/// Why a merged model was not written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The soup's weights do not add up to a model, or the merge failed.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Weights could not be written.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A merged model acts on every row.
    #[error(
        "the backbones of this soup are active on the answer only, which one set of weights cannot \
         be: expected --adapter, which writes an adapter with the invocation tokens, or a soup with \
         activation = \"all\""
    )]
    AnswerOnly,
    /// An adapter that is active on the answer only needs the tokens that begin it.
    #[error(
        "no tokens begin the answers of this soup: expected backbones with alora_invocation_tokens, \
         or a base whose chat template appends a generation prompt"
    )]
    NoInvocation,
    /// PEFT loads tensors stored whole for every row.
    #[error(
        "the merged adapter would store {tensor} whole, which PEFT loads for prompts too: expected \
         low-rank terms only where the backbones are active on the answer only"
    )]
    WholeTensor {
        /// The first such tensor or module.
        tensor: String,
    },
    /// An adapter that is active on the answer only cannot hold the SFT adapter of the prompt.
    #[error(
        "θ_sft of this soup is its base with an SFT adapter, which computes the prompts and which one \
         adapter of the answers cannot hold: expected a soup without [sft], its base merged with it"
    )]
    SftPrompt,
    /// A full checkpoint is not a low-rank change.
    #[error(
        "backbone {backbone} is a full checkpoint, expected adapters only: a soup with full \
         checkpoints merges to a whole model (leave out --adapter)"
    )]
    NotLowRank {
        /// Name of the backbone.
        backbone: String,
    },
}

/// Writes the merged model of `c` as a Hugging Face checkpoint that is whole or absent: weights in
/// the base's storage types (or all in `dtype`), tokenizer and configuration of the base. The
/// coefficients are the served ones ([`ModelKey`]). Refused where the backbones are active on the
/// answer only.
pub fn export_model(
    soup: &Soup,
    c: &Coefficients,
    dtype: Option<Dtype>,
    out: &Path,
) -> Result<(), ExportError> {
    if soup.active_from.is_answer() {
        return Err(ExportError::AnswerOnly);
    }
    let merger = Merger::new(SoupPlan::new(soup, &soup.config).map_err(MergeError::from)?, dtype)?;
    let c = &ModelKey::of(c).coefficients();
    let staging = Staging::new(out)?;
    fill(staging.path(), soup, &merger, (c, dtype)).map_err(|error| match error {
        ExportError::File(error) => staging.named(error).into(),
        other => other,
    })?;
    Ok(staging.commit()?)
}

/// Writes the model of c, with what its base has beside the weights, into `out`.
fn fill(
    out: &Path,
    soup: &Soup,
    merger: &Merger,
    (c, dtype): (&Coefficients, Option<Dtype>),
) -> Result<(), ExportError> {
    for name in COMPANIONS {
        let from = soup.base_dir.join(name);
        if from.is_file() {
            files::copy(&from, &out.join(name))?;
        }
    }
    let specs: Vec<_> = merger
        .plan()
        .tensors()
        .iter()
        .map(|tensor| TensorSpec {
            name: tensor.name.clone(),
            dtype: dtype.unwrap_or(tensor.dtype),
            shape: tensor.shape().to_vec(),
        })
        .collect();
    write_checkpoint(out, &specs, SHARD_BYTES, |spec| {
        merger.tensor(&spec.name, c).map_err(ExportError::from)
    })?;
    let config = merged_config(soup, dtype);
    Ok(write_json(&out.join("config.json"), &config)?)
}

/// The base's configuration, with the storage type that was chosen and whether the head is tied.
fn merged_config(soup: &Soup, dtype: Option<Dtype>) -> Value {
    let mut config = soup.base.config().clone();
    let name = dtype.map(|dtype| match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 | Dtype::Quantised(_) => "bfloat16",
    });
    for key in ["dtype", "torch_dtype"] {
        if let (Some(value), Some(name)) = (config.get_mut(key), name) {
            *value = json!(name);
        }
    }
    if let Some(tied) = config.get_mut("tie_word_embeddings") {
        *tied = json!(soup.config.tied);
    }
    config
}
