//! The value head of PPO: `V = w·h + b`, its own linear layer on the last hidden state.

use candle_core::{DType, Device, Result, Tensor, Var};

/// A linear head that starts at 0: the first advantages are the rewards themselves.
pub struct ValueHead {
    weight: Var,
    bias: Var,
}

impl ValueHead {
    /// A head over hidden states of the given width.
    pub fn new(hidden: usize, device: &Device) -> Result<Self> {
        let weight = Var::zeros((hidden, 1), DType::F32, device)?;
        Ok(Self { weight, bias: Var::zeros(1, DType::F32, device)? })
    }

    /// The trainable variables by name.
    pub fn variables(&self) -> Vec<(String, Var)> {
        let named = [("value_head.weight", &self.weight), ("value_head.bias", &self.bias)];
        named.map(|(name, var)| (name.to_owned(), var.clone())).to_vec()
    }

    /// Values `[rows]` of hidden states `[rows, hidden]`, tracked.
    pub fn values(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.matmul(self.weight.as_tensor())?.squeeze(1)?.broadcast_add(self.bias.as_tensor())
    }

    /// Values of host hidden states, `[rows, hidden]` flat.
    pub fn host_values(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let weight = self.weight.as_tensor().flatten_all()?.to_vec1::<f32>()?;
        let bias = self.bias.as_tensor().to_vec1::<f32>()?;
        let dot = |row: &[f32]| row.iter().zip(&weight).map(|(h, w)| h * w).sum::<f32>();
        let bias = bias.first().copied().unwrap_or(0.0);
        Ok(hidden.chunks_exact(weight.len()).map(|row| dot(row) + bias).collect())
    }
}
