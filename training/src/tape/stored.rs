//! Keys and values of rows that are not part of a batch.

use std::sync::Arc;

use ladle::kernels::{Result, check::fits};

use crate::autograd::tree::Tree;

/// Keys (rotated) and values of consecutive rows from position 0 on: of each layer
/// `[rows, kv_heads · head_dim]` each, f32.
#[derive(Debug, Clone, Default)]
pub struct KeysAndValues {
    pub(super) layers: Vec<[Arc<Vec<f32>>; 2]>,
}

impl KeysAndValues {
    /// Keys and values of each layer.
    pub fn of(layers: impl IntoIterator<Item = [Arc<Vec<f32>>; 2]>) -> Self {
        Self { layers: layers.into_iter().collect() }
    }

    /// Bytes of the values.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().map(|values| size_of::<f32>() * values.len()).sum()
    }
}

/// The cache of a [`super::Tape`]: stored rows that segments name by number in their `blocks`,
/// constants of every forward and backward, and, where that is asked for, the rows of a forward.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// The rows that segments continue.
    pub given: Vec<Arc<KeysAndValues>>,
    /// Receives the keys and values of the batch, layer by layer; none: they are not kept.
    pub kept: Option<KeysAndValues>,
}

impl Stored {
    /// Keys and values that each tree continues, of one layer; empty where a tree continues none.
    pub(super) fn of(
        &self,
        trees: &[Tree],
        layer: usize,
        width: usize,
    ) -> Result<Vec<[Arc<Vec<f32>>; 2]>> {
        let one = |tree: &Tree| {
            let Some(number) = tree.stored else { return Ok(Default::default()) };
            let given = self.given.get(number).and_then(|given| given.layers.get(layer));
            let [keys, values] = given.cloned().unwrap_or_default();
            fits("attention", "stored keys", tree.before * width, keys.len())?;
            fits("attention", "stored values", tree.before * width, values.len())?;
            Ok([keys, values])
        };
        trees.iter().map(one).collect()
    }
}
