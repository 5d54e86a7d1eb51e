//! Keys and values that rows of a batch attend to without computing them: of rows that are not part of
//! the batch, and of rows of this forward by the block that they were stored in.

use std::{collections::HashMap, ops::Range, sync::Arc};

use ladle::kernels::{Result, Segment, check::fits};

use super::Value;
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
    /// What this forward has stored.
    pub held: Blocks,
}

/// Keys and values of segments of a forward, by layer and first block, which no two segments share.
#[derive(Debug, Clone, Default)]
pub struct Blocks(HashMap<(usize, u32), Held>);

/// Keys and values of consecutive rows of two activations `[_, kv_heads · head_dim]`.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub rows: Range<usize>,
    pub pair: [Value; 2],
}

impl Held {
    /// Rows that nothing learned feeds.
    fn constant(pair: [Arc<Vec<f32>>; 2], rows: usize, width: usize) -> Self {
        let pair = pair.map(|data| Value { data, rows, width, node: None });
        Self { rows: 0..rows, pair }
    }

    /// The elements of the rows.
    pub fn elements(&self) -> Range<usize> {
        let [keys, _] = &self.pair;
        self.rows.start * keys.width..self.rows.end * keys.width
    }
}

impl Stored {
    /// Keys and values that each tree continues, of one layer; empty where a tree continues none.
    pub(super) fn of(&self, trees: &[Tree], layer: usize, width: usize) -> Result<Vec<Held>> {
        let one = |tree: &Tree| {
            let Some(number) = tree.stored else {
                return Ok(Held::constant(Default::default(), 0, width));
            };
            let given = self.given.get(number).and_then(|given| given.layers.get(layer));
            let [keys, values] = given.cloned().unwrap_or_default();
            fits("attention", "stored keys", tree.before * width, keys.len())?;
            fits("attention", "stored values", tree.before * width, values.len())?;
            Ok(Held::constant([keys, values], tree.before, width))
        };
        trees.iter().map(one).collect()
    }

    /// Holds keys and values of the segments' rows in a layer.
    pub(super) fn hold(
        &mut self,
        [keys, values]: [&Value; 2],
        layer: usize,
        segments: &[Segment],
    ) -> Result<()> {
        fits("store", "rows of values", keys.rows, values.rows)?;
        fits("store", "width of values", keys.width, values.width)?;
        for segment in segments {
            let Some(&block) = segment.blocks.first() else {
                return fits("store", "blocks of a segment (at least)", 1, 0);
            };
            let rows = segment.rows.clone();
            fits("store", "rows of keys (at least)", rows.end.max(keys.rows), keys.rows)?;
            let held = Held { rows, pair: [keys.clone(), values.clone()] };
            self.held.0.insert((layer, block), held);
        }
        Ok(())
    }

    /// What a layer holds of the segments of `trees`, one each.
    pub(super) fn held(
        &self,
        layer: usize,
        segments: &[Segment],
        trees: &[Tree],
        width: usize,
    ) -> Result<Vec<Held>> {
        let one = |(segment, tree): (&Segment, &Tree)| {
            let block = segment.blocks.first().copied().unwrap_or_default();
            let empty = || Held::constant(Default::default(), 0, width);
            let held = self.held.0.get(&(layer, block)).cloned().unwrap_or_else(empty);
            fits("attend", "stored rows", tree.before, held.rows.len())?;
            fits("attend", "width of keys", width, held.pair[0].width)?;
            Ok(held)
        };
        segments.iter().zip(trees).map(one).collect()
    }
}
