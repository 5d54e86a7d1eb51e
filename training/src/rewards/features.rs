//! A feature vector of each text: the last token's hidden state of a causal language model.

use super::{
    classifier::{ModelError, Parts, failed},
    decoder,
    layers::model_type,
};
use std::path::Path;
use tokenizers::EncodeInput;

/// A decoder that gives texts their features.
pub struct Featuriser(Parts);

impl Featuriser {
    /// Opens the directory of a causal language model; texts are cut to 1024 tokens or its limit.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let parts = Parts::open(dir, Some(1024))?;
        let kind = model_type(&parts.config);
        if kind != "gpt2" && !decoder::FAMILY.contains(&kind) {
            let reason =
                format!("model_type is {kind}, expected gpt2, {}", decoder::FAMILY.join(", "));
            return Err(failed(&dir.join("config.json"))(reason));
        }
        Ok(Self(parts))
    }

    /// One vector a text.
    pub fn features(&self, texts: &[String]) -> Result<Vec<Vec<f64>>, String> {
        let Self(parts) = self;
        let encodings = parts.encode(texts.iter().map(|text| EncodeInput::from(text.as_str())))?;
        if let Some(index) = encodings.iter().position(|encoding| encoding.is_empty()) {
            return Err(format!("text {} has no tokens", index + 1));
        }
        let states = parts.run(&encodings, |states, batch| {
            parts.network.pooled(states, batch)?.to_vec2::<f32>()
        })?;
        Ok(states.into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect())
    }
}
