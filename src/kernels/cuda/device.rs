//! What the GPU code asks of a device: memory, ordered work, kernels by name. [`super::driver`] is
//! the one that computes on a GPU; the tests bring an emulator, so that everything above this trait
//! runs and is checked where there is none.

use std::ffi::c_void;

/// What a device refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// The device has no room.
    #[error("the device has no room for {bytes} more bytes")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// A library that the GPU needs cannot be used.
    #[error("{library}: {reason}; {remedy}")]
    Library {
        /// Its file name.
        library: String,
        /// What is wrong.
        reason: String,
        /// How to mend it.
        remedy: &'static str,
    },
    /// A call failed.
    #[error("{call}: {reason}")]
    Call {
        /// The call, or the kernel.
        call: String,
        /// The device's words.
        reason: String,
    },
}

/// Result of a device.
pub type Result<T> = std::result::Result<T, DeviceError>;

/// Memory, streams and kernels. Work on one stream is done in the order in which it was given;
/// streams are independent of each other. Addresses are the device's.
pub trait Device: Send + Sync + 'static {
    /// A run of device memory, at least 16-byte aligned, freed when dropped.
    type Buffer: Send + Sync;
    /// An order of work.
    type Stream: Send + Sync;
    /// Host memory that the device reads at full speed.
    type Pinned: AsRef<[u8]> + AsMut<[u8]> + Send;

    /// What it is, for logs.
    fn name(&self) -> String;
    /// Bytes free and in all.
    fn memory(&self) -> Result<(usize, usize)>;
    /// Memory whose contents are whatever they were.
    fn allocate(&self, bytes: usize) -> Result<Self::Buffer>;
    /// First byte of a buffer.
    fn address(&self, buffer: &Self::Buffer) -> u64;
    /// Pinned host memory.
    fn pinned(&self, bytes: usize) -> Result<Self::Pinned>;
    /// A new stream.
    fn stream(&self, urgency: Urgency) -> Result<Self::Stream>;
    /// Waits for all work of a stream.
    fn synchronize(&self, stream: &Self::Stream) -> Result<()>;
    /// Copies to the device; `from` may be reused when this returns, unless it is pinned: then once
    /// the stream was synchronised.
    ///
    /// # Safety
    /// `to` has room for `from.len()` bytes until the stream is synchronised.
    unsafe fn upload(&self, stream: &Self::Stream, to: u64, from: &[u8]) -> Result<()>;
    /// Copies to the host, after all earlier work of the stream; complete on return.
    ///
    /// # Safety
    /// `from` is readable for `to.len()` bytes.
    unsafe fn download(&self, stream: &Self::Stream, from: u64, to: &mut [u8]) -> Result<()>;
    /// Sets bytes to 0.
    ///
    /// # Safety
    /// `at` has room for `bytes` bytes until the stream is synchronised.
    unsafe fn zero(&self, stream: &Self::Stream, at: u64, bytes: usize) -> Result<()>;
    /// Runs a kernel of [`super::KERNELS`].
    ///
    /// # Safety
    /// `arguments` point to values of the kernel's parameter types, in order, and every address in
    /// them is valid for what the kernel does with it until the stream is synchronised.
    unsafe fn launch(
        &self,
        stream: &Self::Stream,
        kernel: &'static str,
        shape: Shape,
        arguments: &mut [*mut c_void],
    ) -> Result<()>;
}

/// Which of two streams goes first where both have work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// What clients wait for.
    Decode,
    /// What may take what is left.
    Background,
}

/// How a kernel is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks: x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block, a multiple of 32.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Shape {
    /// `blocks` blocks of `block` threads.
    pub fn of(blocks: usize, block: u32) -> Self {
        Self { grid: [count(blocks), 1, 1], block, shared: 0 }
    }
}

/// A number of blocks as the device takes it. Far below the limit for any model that fits a device.
pub(super) fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

/// Runs a kernel: `launch!(device, stream, "name", shape, argument, …)`; arguments are values of
/// exactly the kernel's parameter types.
///
/// # Safety
/// As [`Device::launch`].
macro_rules! launch {
    ($device:expr, $stream:expr, $kernel:expr, $shape:expr, $($argument:expr),+ $(,)?) => {
        // One expression: the arguments live until the call is made.
        $device.launch($stream, $kernel, $shape, &mut [$(
            std::ptr::from_ref(&$argument).cast_mut().cast::<std::ffi::c_void>()
        ),+])
    };
}
pub(crate) use launch;
