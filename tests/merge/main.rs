//! Merging: dense sums against an f64 reference, mixed against fused decoding, the cache under load.

mod cache;
mod dense;
mod fixtures;
mod mixed;
mod soups;
