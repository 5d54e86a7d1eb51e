//! Randomness without state: a draw is a function of seed, purpose and step. A resumed run draws the
//! same numbers as an uninterrupted one, and no generator is saved.

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// Purpose of a draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Initial factors of an adapter.
    Factors,
    /// Order of the data.
    Order,
    /// Sampled tokens.
    Tokens,
    /// Order of the minibatches of one batch.
    Minibatches,
    /// The objective that a step counts (DRBO).
    Objective,
    /// Responses that the rewards are standardised on.
    Standardise,
    /// Responses to validation prompts.
    Validation,
    /// Dropout masks.
    Dropout,
    /// Resamples of an interval.
    Bootstrap,
    /// Rewards that prompts ask for, and the prompts.
    Goals,
    /// First centres of k-means.
    Clusters,
}

/// The generator of one purpose of a run, at one time (an epoch, a step).
pub fn generator(seed: u64, purpose: Purpose, time: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(derive(seed, purpose));
    rng.set_stream(time);
    rng
}

/// The seed of one purpose.
pub fn derive(seed: u64, purpose: Purpose) -> u64 {
    // SplitMix64's increment keeps the purposes of neighbouring seeds apart.
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1 + purpose as u64)
}

/// The items of batch number `step` of an endless walk over `0..count` that visits every item once
/// per epoch, each epoch in another order.
pub fn batch(seed: u64, count: usize, size: usize, step: u64) -> Vec<usize> {
    let mut items = Vec::with_capacity(size);
    let mut at = step * size as u64;
    let mut order: Option<(u64, Vec<usize>)> = None;
    while items.len() < size && count > 0 {
        let epoch = at / count as u64;
        let known = order.take_if(|(known, _)| *known == epoch);
        let (_, permutation) = order.insert(known.unwrap_or_else(|| {
            let mut permutation: Vec<usize> = (0..count).collect();
            permutation.shuffle(&mut generator(seed, Purpose::Order, epoch));
            (epoch, permutation)
        }));
        items.push(permutation[(at % count as u64) as usize]);
        at += 1;
    }
    items
}

/// A uniform number in [0, 1).
pub fn uniform(seed: u64, purpose: Purpose, time: u64) -> f64 {
    generator(seed, purpose, time).random()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_visits_everything_once_however_it_is_cut_into_batches() {
        let walk = |size: usize| -> Vec<usize> {
            (0..60 / size as u64).flat_map(|step| batch(7, 20, size, step)).collect()
        };
        let (threes, twelves) = (walk(3), walk(12));
        assert_eq!(threes, twelves);
        for epoch in threes.chunks(20) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..20).collect::<Vec<_>>());
        }
        assert_ne!(threes[..20], threes[20..40]);
    }
}
