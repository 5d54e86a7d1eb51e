//! Device memory of one stream: recycled buffers for activations, and small constants that are
//! uploaded once per content (positions, block tables, coefficients: every layer of a forward asks
//! for the same ones).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::device::{Device, DeviceError, Result};

/// Constants kept: far more than one forward asks for.
const MOST_CONSTANTS: usize = 256;

/// Memory that goes back to its pool when dropped. Work that uses it must be on the pool's stream,
/// whose order keeps the next user from meeting this one.
pub struct Recycled<D: Device> {
    /// Taken only by `drop`.
    buffer: Option<D::Buffer>,
    class: usize,
    address: u64,
    home: Arc<Shared<D>>,
}

impl<D: Device> Recycled<D> {
    /// First byte.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl<D: Device> Drop for Recycled<D> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.home.lock().free.entry(self.class).or_default().push(buffer);
        }
    }
}

struct Shared<D: Device> {
    device: Arc<D>,
    state: Mutex<State<D>>,
}

struct State<D: Device> {
    free: HashMap<usize, Vec<D::Buffer>>,
    held: usize,
    constants: HashMap<Vec<u8>, Arc<Recycled<D>>>,
}

impl<D: Device> Shared<D> {
    fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Recycled memory for work on one stream.
pub struct Memory<D: Device> {
    shared: Arc<Shared<D>>,
    stream: Arc<D::Stream>,
}

impl<D: Device> Memory<D> {
    /// Empty.
    pub fn new(device: Arc<D>, stream: Arc<D::Stream>) -> Self {
        let state = State { free: HashMap::new(), held: 0, constants: HashMap::new() };
        Self { shared: Arc::new(Shared { device, state: Mutex::new(state) }), stream }
    }

    /// A buffer of at least `bytes`, contents unspecified.
    pub fn take(&self, bytes: usize) -> Result<Recycled<D>> {
        let class = class(bytes);
        let free = self.shared.lock().free.get_mut(&class).and_then(Vec::pop);
        let buffer = match free {
            Some(buffer) => buffer,
            None => {
                let allocate = || self.shared.device.allocate(class);
                let buffer = match allocate() {
                    Err(DeviceError::OutOfMemory { .. }) if self.trim()? > 0 => allocate()?,
                    other => other?,
                };
                self.shared.lock().held += class;
                buffer
            }
        };
        let address = self.shared.device.address(&buffer);
        Ok(Recycled { buffer: Some(buffer), class, address, home: self.shared.clone() })
    }

    /// A new buffer that holds `bytes`.
    pub fn upload(&self, bytes: &[u8]) -> Result<Recycled<D>> {
        let buffer = self.take(bytes.len())?;
        // SAFETY: the buffer has that many bytes, and outlives its use on this stream.
        unsafe { self.shared.device.upload(&self.stream, buffer.address(), bytes)? };
        Ok(buffer)
    }

    /// The device's copy of some bytes.
    pub fn constant(&self, bytes: &[u8]) -> Result<Arc<Recycled<D>>> {
        if let Some(known) = self.shared.lock().constants.get(bytes) {
            return Ok(known.clone());
        }
        let buffer = Arc::new(self.upload(bytes)?);
        let old = {
            let mut state = self.shared.lock();
            let full = state.constants.len() >= MOST_CONSTANTS;
            let old = if full { std::mem::take(&mut state.constants) } else { HashMap::new() };
            state.constants.insert(bytes.to_vec(), buffer.clone());
            old
        };
        // Outside the lock: dropping them gives them back.
        drop(old);
        Ok(buffer)
    }

    /// Gives what is not in use back to the device; returns how many bytes.
    pub fn trim(&self) -> Result<usize> {
        let constants = std::mem::take(&mut self.shared.lock().constants);
        drop(constants);
        // Work on them may still be under way.
        self.shared.device.synchronize(&self.stream)?;
        let mut state = self.shared.lock();
        let freed = state.free.drain().map(|(class, buffers)| class * buffers.len()).sum();
        state.held -= freed;
        Ok(freed)
    }

    /// Bytes taken from the device, in use or not.
    pub fn held(&self) -> usize {
        self.shared.lock().held
    }
}

/// Sizes in steps of an eighth of their power of two: at most 1/8 is left unused, and sizes that
/// are nearly equal share buffers.
fn class(bytes: usize) -> usize {
    let bytes = bytes.max(256);
    let step = (bytes.next_power_of_two() / 16).max(256);
    bytes.div_ceil(step) * step
}

/// The bytes of plain values.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: plain values have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of plain values, to write.
pub fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: plain values have no padding and take every bit pattern.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// Values without padding that take every bit pattern.
///
/// # Safety
/// That is what implementing it promises.
pub unsafe trait Plain: Copy {}
// SAFETY: so it is.
unsafe impl Plain for u32 {}
// SAFETY: so it is.
unsafe impl Plain for i32 {}
// SAFETY: so it is.
unsafe impl Plain for f32 {}

#[cfg(test)]
mod tests {
    use super::class;

    #[test]
    fn classes_hold_what_is_asked_and_waste_at_most_an_eighth() {
        for bytes in (1..100_000).chain([1 << 20, (1 << 20) + 1, 3 << 20]) {
            let size = class(bytes);
            assert!(size >= bytes && size.is_multiple_of(256));
            assert!(bytes <= 2048 || size <= bytes + bytes / 8, "{bytes} {size}");
            assert_eq!(class(size), size);
        }
    }
}
