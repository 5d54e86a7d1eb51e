//! The values of tensors.

use candle_core::{Storage, Tensor, bail};

/// Calls `f` with the values of a contiguous f32 tensor on the CPU.
pub(crate) fn read<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> candle_core::Result<R> {
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => Ok(f(&storage.as_slice()?[start..end])),
        _ => bail!("expected a contiguous tensor on the CPU, got {layout:?} on {:?}", x.device()),
    }
}
