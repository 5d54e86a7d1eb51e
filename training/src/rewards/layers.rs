//! Shared by the architectures of reward models: padded batches, the trait of their layers, reading of
//! the configuration, the additive mask.

use candle_core::{DType, Device, Result, Tensor};
use serde_json::Value;

/// A tokenised batch, padded to its longest row.
#[derive(Debug)]
pub struct Batch {
    /// Token ids without padding.
    pub rows: Vec<Vec<u32>>,
    /// Token ids, `[batch, length]` u32.
    pub ids: Tensor,
    /// Segment ids, `[batch, length]` u32.
    pub types: Tensor,
    /// 1 for tokens, 0 for padding, `[batch, length]` u32.
    pub mask: Tensor,
}

impl Batch {
    /// Pads rows of `(ids, types)` with `pad`, to one token at least.
    pub fn new(rows: &[(&[u32], &[u32])], pad: u32) -> Result<Self> {
        let width = rows.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0).max(1);
        let padded = |fill: u32, row: &dyn Fn(&(&[u32], &[u32])) -> Vec<u32>| {
            let mut flat = Vec::with_capacity(rows.len() * width);
            for row in rows.iter().map(row) {
                let missing = width.saturating_sub(row.len());
                flat.extend(row);
                flat.extend(std::iter::repeat_n(fill, missing));
            }
            Tensor::from_vec(flat, (rows.len(), width), &Device::Cpu)
        };
        Ok(Self {
            rows: rows.iter().map(|(ids, _)| ids.to_vec()).collect(),
            ids: padded(pad, &|(ids, _)| ids.to_vec())?,
            types: padded(0, &|(_, types)| types.to_vec())?,
            mask: padded(0, &|(ids, _)| vec![1; ids.len()])?,
        })
    }
}

/// An architecture's layers.
pub(super) trait Layers: Send + Sync {
    /// Hidden states of the last layer, `[batch, length, hidden]`.
    fn forward(&self, batch: &Batch) -> Result<Tensor>;
}

/// `model_type` of a `config.json`.
pub(super) fn model_type(config: &Value) -> &str {
    config.get("model_type").and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(config: &Value) -> Result<T> {
    T::deserialize(config).map_err(|e| candle_core::Error::Msg(format!("config.json: {e}")))
}

/// An additive mask from a mask of ones and zeros: 0, or a large negative number.
pub(super) fn bias(mask: &Tensor) -> Result<Tensor> {
    mask.to_dtype(DType::F32)?.affine(1e30, -1e30)
}
