//! LoRA's dropout (Hu et al. 2021; PEFT's `lora_dropout`): each input of a down projection is 0 with
//! probability p and divided by 1 − p otherwise, each projection with a mask of its own.
//!
//! Masks are not stored. Whether an element stays is a function of the draw, the projection and the
//! element's index in the batch, so the backward and a resumed run compute the same mask.

use std::{collections::HashMap, sync::Arc};

use candle_core::{Tensor, TensorId};
use rayon::prelude::*;

use super::rows::CHUNK;

/// The masks of one forward.
#[derive(Debug, Clone)]
pub struct Dropout {
    rate: f64,
    draw: u64,
    projections: Arc<HashMap<TensorId, u64>>,
}

impl Dropout {
    /// Masks of probability `rate` (in [0, 1)) for the inputs of `projections`, each with its number;
    /// another `draw` gives other masks.
    pub fn new(rate: f64, draw: u64, projections: Arc<HashMap<TensorId, u64>>) -> Self {
        Self { rate, draw, projections }
    }

    /// The mask on the input of `weight`.
    pub(super) fn mask(&self, weight: &Tensor) -> Option<Mask> {
        let number = *self.projections.get(&weight.id())?;
        let key = mix(self.draw.wrapping_add(mix(number)));
        let threshold = (self.rate * f64::from(u32::MAX)) as u32;
        Some(Mask { key, threshold, scale: (1.0 / (1.0 - self.rate)) as f32 })
    }
}

/// One mask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mask {
    key: u64,
    threshold: u32,
    scale: f32,
}

impl Mask {
    /// `out += mask ⊙ x / (1 − p)`.
    pub(super) fn add(self, out: &mut [f32], x: &[f32]) {
        let chunks = out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate();
        chunks.for_each(|(chunk, (out, x))| {
            let first = (chunk * CHUNK / 2) as u64;
            for (index, (out, x)) in (first..).zip(out.chunks_mut(2).zip(x.chunks(2))) {
                let bits = mix(self.key.wrapping_add(index.wrapping_mul(INCREMENT)));
                for ((out, x), bits) in
                    out.iter_mut().zip(x).zip([bits as u32, (bits >> 32) as u32])
                {
                    *out += if bits < self.threshold { 0.0 } else { x * self.scale };
                }
            }
        });
    }
}

/// SplitMix64 (Steele et al. 2014): its increment and its output function.
const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(INCREMENT);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
