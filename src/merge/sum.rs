//! The arithmetic of a merge on slices: weighted sums of one storage type in one pass, and the
//! f32 building blocks for everything else.
//!
//! Order of the operations on an element, in every path: `c₀x₀`, then `+ cₖxₖ` for each further
//! term, then `+ bᵣaᵣ` for each rank, all in f32, then one rounding to the storage type.

mod kernel;
mod product;
mod round;
mod weighted;

pub use kernel::{StorageRange, TILE_ROWS};
pub use product::{add_product, panels};
pub use round::round;
pub use weighted::{accumulate, weighted_sum};
