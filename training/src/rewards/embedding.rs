//! Sentence embeddings: mean of the encoder's states over the tokens, scaled to length 1.

use super::classifier::{ModelError, Parts, failed, read_json};
use candle_core::DType;
use std::path::Path;
use tokenizers::EncodeInput;

/// A sentence encoder such as all-MiniLM-L6-v2, as sentence-transformers lays it out.
pub struct SentenceEncoder {
    parts: Parts,
}

impl SentenceEncoder {
    /// Opens a directory with `config.json`, `model.safetensors`, `tokenizer.json`, and, where they
    /// exist, `sentence_bert_config.json` (`max_seq_length`) and `1_Pooling/config.json`, which must
    /// say mean pooling.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let optional = |name: &str| {
            let path = dir.join(name);
            if path.exists() { read_json(&path).map(Some) } else { Ok(None) }
        };
        let limits = optional("sentence_bert_config.json")?;
        let longest = limits.and_then(|c| c.get("max_seq_length")?.as_u64()).map(|n| n as usize);
        if let Some(pooling) = optional("1_Pooling/config.json")? {
            let mean = pooling.get("pooling_mode_mean_tokens").and_then(|v| v.as_bool());
            if mean == Some(false) {
                let path = dir.join("1_Pooling/config.json");
                return Err(failed(&path)("only mean pooling is supported".into()));
            }
        }
        Ok(Self { parts: Parts::open(dir, longest)? })
    }

    /// One unit vector a text.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
        let encodings = self.parts.encode(texts.iter().map(|&text| EncodeInput::from(text)))?;
        self.parts.run(&encodings, |states, batch| {
            let mask = batch.mask.to_dtype(DType::F32)?.unsqueeze(2)?;
            let mean = states.broadcast_mul(&mask)?.sum(1)?.broadcast_div(&mask.sum(1)?)?;
            let length = mean.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?;
            mean.broadcast_div(&length)?.to_vec2()
        })
    }
}

/// Cosine of two unit vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}
