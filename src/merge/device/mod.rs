//! Merging on a GPU. The sources stay in device memory, or are streamed through it where they do not
//! fit; a merge is a few launches over tables that are built once.

mod fused;
mod resident;
mod table;

pub use fused::{DeviceBuilder, DeviceCache, DeviceModel, Sources, compute_dtype, largest_staging};
pub use resident::Resident;
