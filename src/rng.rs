//! Random numbers that belong to a request, not to a batch.
//!
//! The draw for token `index` of a request is a pure function of its seed and that index, so a
//! seeded request gives the same tokens whoever shares its batch, after a preemption, and in
//! whichever step it is served.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// A uniform number in [0, 1) with 53 random bits: word `2·index` of the ChaCha8 stream of `seed`.
pub fn uniform(seed: u64, index: u64) -> f64 {
    let mut stream = ChaCha8Rng::seed_from_u64(seed);
    stream.set_word_pos(u128::from(index) * 2);
    (stream.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// A seed for a request that brought none, from the operating system's entropy.
pub fn fresh_seed() -> u64 {
    rand::random()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_depends_on_seed_and_index_only() {
        let forward: Vec<f64> = (0..64).map(|i| uniform(7, i)).collect();
        let backward: Vec<f64> = (0..64).rev().map(|i| uniform(7, i)).collect();
        assert!(forward.iter().eq(backward.iter().rev()));
        assert_ne!(uniform(7, 0), uniform(8, 0));
        assert_ne!(uniform(7, 0), uniform(7, 1));
    }

    #[test]
    fn draws_are_uniform_within_a_seed_and_across_seeds() {
        for draw in [|i| uniform(3, i), |i| uniform(i, 3)] {
            let mut bins = [0usize; 16];
            (0..16_000u64).for_each(|i| bins[(draw(i) * 16.0) as usize] += 1);
            let chi2: f64 = bins.iter().map(|&n| (n as f64 - 1000.0).powi(2) / 1000.0).sum();
            // 15 degrees of freedom: 37.7 is the 99.9 % point.
            assert!(chi2 < 37.7, "χ² = {chi2}, bins {bins:?}");
        }
    }
}
