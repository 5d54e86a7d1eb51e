//! The frozen output head, a block of the vocabulary at a time.

use candle_core::{Error, Result};
use rayon::prelude::*;

use crate::tape::{Narrow, View, parallel_product};

/// Entries of the vocabulary whose logits exist at one time.
pub const BLOCK: usize = 1024;

/// A head `[vocab, hidden]`, multiplied with in f32, or in bf16 where there is a narrow one.
pub struct Head<'a> {
    /// In f32.
    pub weights: &'a [f32],
    /// Values of a hidden state.
    pub width: usize,
    /// The same in bf16, in blocks.
    pub narrow: Option<&'a Narrow>,
}

impl Head<'_> {
    /// Entries of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.weights.len() / self.width
    }

    /// Entries of the block that begins with `start`.
    pub fn len(&self, start: usize) -> usize {
        BLOCK.min(self.vocabulary() - start)
    }

    /// `logits = scale · hidden Wᵀ` `[rows, len]` for the block that begins with `start`.
    pub fn logits(
        &self,
        start: usize,
        hidden: &[f32],
        scale: f32,
        logits: &mut [f32],
    ) -> Result<()> {
        let (rows, len) = (hidden.len() / self.width, self.len(start));
        let Some(narrow) = self.narrow else {
            let (hidden, to) = (View::new(hidden, rows, self.width), View::new(logits, rows, len));
            parallel_product(to, false, hidden, self.block(start).t(), scale);
            return Ok(());
        };
        let sides = &narrow.head()[start / BLOCK];
        narrow.product(hidden, &sides.forward, logits, false).map_err(Error::wrap)?;
        logits.par_chunks_mut(len).for_each(|row| row.iter_mut().for_each(|x| *x *= scale));
        Ok(())
    }

    /// `mean += shares W` `[rows, hidden]` for the same block, `shares` `[rows, len]`.
    pub fn add_mean(&self, start: usize, shares: &[f32], mean: &mut [f32]) -> Result<()> {
        let rows = mean.len() / self.width;
        let Some(narrow) = self.narrow else {
            let block = self.block(start);
            let (shares, to) =
                (View::new(shares, rows, block.rows), View::new(mean, rows, self.width));
            parallel_product(to, true, shares, block, 1.0);
            return Ok(());
        };
        let sides = &narrow.head()[start / BLOCK];
        narrow.product(shares, &sides.backward, mean, true).map_err(Error::wrap)
    }

    /// The weights of a token, as they were multiplied.
    pub fn row(&self, token: usize) -> Vec<f32> {
        let narrow = self.narrow.and_then(|narrow| narrow.head()[token / BLOCK].forward.as_bf16());
        match narrow {
            Some(block) => {
                let row = &block[token % BLOCK * self.width..][..self.width];
                row.iter().map(|w| w.to_f32()).collect()
            }
            None => self.weights[token * self.width..][..self.width].to_vec(),
        }
    }

    fn block(&self, start: usize) -> View<&[f32]> {
        let len = self.len(start);
        View::new(&self.weights[start * self.width..][..len * self.width], len, self.width)
    }
}
