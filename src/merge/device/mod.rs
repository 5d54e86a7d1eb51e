//! Merging on a GPU: the sources stay in device memory, or are streamed through it where they do
//! not fit, and one c is merged by a few launches over tables that are made once.

mod fused;
mod resident;
mod table;

pub use fused::{DeviceBuilder, DeviceCache, DeviceModel, Sources, compute_dtype, largest_staging};
pub use resident::Resident;
