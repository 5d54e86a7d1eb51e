//! A GPU through the CUDA driver. Its functions are declared by cudarc, which loads the driver's
//! library when a GPU is asked for; of cudarc the layer of plain calls is used, because memory here
//! belongs to no stream and kernels take their arguments as addresses.

use std::{
    cell::Cell,
    collections::HashMap,
    ffi::{CStr, CString, c_void},
    path::PathBuf,
    ptr::null_mut,
    sync::Arc,
};

use cudarc::driver::{
    result::{self, DriverError, ctx, module, primary_ctx, stream},
    sys::{self, CUcontext, CUdevice_attribute as Attribute, CUfunction, CUresult, CUstream},
};

use super::{
    KERNELS,
    device::{Device, DeviceError, Result, Shape, Urgency},
    image,
    library::Library,
};

const REMEDY: &str =
    "install NVIDIA's driver (the r580 branch or later), or serve with --device cpu";

/// The first compute capability with bf16 tensor cores and asynchronous copies.
const OLDEST: (i32, i32) = (8, 0);

/// Loads the driver, without which every call of cudarc panics.
fn load() -> Result<()> {
    let library = Library::load(&["libcuda.so.1", "libcuda.so"], REMEDY)?;
    // SAFETY: NVIDIA's driver runs no code of ours when loaded; addresses are only compared.
    let (ours, cudarcs) = unsafe {
        let found = sys::is_culib_present();
        let cudarcs = || sys::culib().get::<usize>("cuInit").ok().map(|address| *address);
        (library.function::<usize>("cuInit")?, found.then(cudarcs).flatten())
    };
    if cudarcs == Some(ours) {
        return Ok(());
    }
    let other = "is not the library that the system finds as libcuda.so";
    Err(library.error(other.to_owned()))
}

/// The error of a call.
fn failed(call: &str) -> impl FnOnce(DriverError) -> DeviceError {
    move |error| {
        let text = error.error_string().map_or("unknown".into(), CStr::to_string_lossy);
        let reason = format!("CUDA error {}: {text}", error.0 as u32);
        DeviceError::Call { call: call.to_owned(), reason }
    }
}

/// One GPU's primary context, never released: other libraries may share it.
struct Context(CUcontext);

// SAFETY: the driver is thread-safe, and a context may be current on any number of threads.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

thread_local! {
    /// The context that is current on this thread.
    static CURRENT: Cell<CUcontext> = const { Cell::new(null_mut()) };
}

impl Context {
    /// Makes the context current on this thread.
    fn enter(&self) -> Result<()> {
        if CURRENT.get() != self.0 {
            // SAFETY: a live context.
            unsafe { ctx::set_current(self.0) }.map_err(failed("cuCtxSetCurrent"))?;
            CURRENT.set(self.0);
        }
        Ok(())
    }
}

/// One GPU.
pub struct Gpu {
    context: Arc<Context>,
    name: String,
    kernels: HashMap<&'static str, Function>,
}

struct Function(CUfunction);

// SAFETY: a handle that the driver takes on any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Gpu {
    /// The GPU with this number, with the kernels from one of `caches` or compiled.
    pub fn open(ordinal: usize, caches: &[PathBuf]) -> Result<Arc<Self>> {
        load()?;
        result::init().map_err(failed("cuInit"))?;
        let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
        let device = result::device::get(ordinal).map_err(failed("cuDeviceGet"))?;
        let name = result::device::get_name(device).map_err(failed("cuDeviceGetName"))?;
        let attribute = |attribute| {
            // SAFETY: the device is as the driver gave it.
            unsafe { result::device::get_attribute(device, attribute) }
                .map_err(failed("cuDeviceGetAttribute"))
        };
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < OLDEST {
            let (major, minor) = capability;
            return Err(DeviceError::Call {
                call: format!("opening {name}"),
                reason: format!("compute capability {major}.{minor}, expected 8.0 or later"),
            });
        }
        let image = image::find(capability, caches)?;
        // SAFETY: as above.
        let context = unsafe { primary_ctx::retain(device) };
        let context = Arc::new(Context(context.map_err(failed("cuDevicePrimaryCtxRetain"))?));
        context.enter()?;
        // SAFETY: an image as NVRTC made it; the module is never unloaded.
        let module = unsafe { module::load_data(image.as_ptr().cast()) };
        let module = module.map_err(failed("cuModuleLoadData"))?;
        let mut kernels = HashMap::new();
        for &kernel in KERNELS {
            let symbol = CString::new(kernel).unwrap_or_default();
            // SAFETY: a live module.
            let function = unsafe { module::get_function(module, symbol) };
            kernels.insert(kernel, Function(function.map_err(failed(kernel))?));
        }
        Ok(Arc::new(Self { context, name, kernels }))
    }

    /// Copies within the device.
    ///
    /// # Safety
    /// Both have `bytes` bytes until the stream is synchronised.
    pub unsafe fn copy(&self, stream: &Stream, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream.handle) }
            .map_err(failed("cuMemcpyDtoDAsync"))
    }
}

/// Device memory.
pub struct Buffer {
    context: Arc<Context>,
    address: u64,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated by `allocate`, freed once; the driver waits for work that uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// A stream.
pub struct Stream {
    context: Arc<Context>,
    handle: CUstream,
}

// SAFETY: the driver takes a stream on any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: created by `stream`, destroyed once; work under way is still finished.
            let _ = unsafe { stream::destroy(self.handle) };
        }
    }
}

/// Pinned host memory.
pub struct Pinned {
    context: Arc<Context>,
    at: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: zeroed when allocated, that long, and owned.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes) }
    }
}

impl AsMut<[u8]> for Pinned {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated by `pinned`, freed once.
            let _ = unsafe { result::free_host(self.at.cast()) };
        }
    }
}

impl Device for Gpu {
    type Buffer = Buffer;
    type Stream = Stream;
    type Pinned = Pinned;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn memory(&self) -> Result<(usize, usize)> {
        self.context.enter()?;
        result::mem_get_info().map_err(failed("cuMemGetInfo"))
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        self.context.enter()?;
        // SAFETY: the context is current.
        match unsafe { result::malloc_sync(bytes.max(16)) } {
            Ok(address) => Ok(Buffer { context: self.context.clone(), address }),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(DeviceError::OutOfMemory { bytes })
            }
            Err(error) => Err(failed("cuMemAlloc")(error)),
        }
    }

    fn address(&self, buffer: &Buffer) -> u64 {
        buffer.address
    }

    fn pinned(&self, bytes: usize) -> Result<Pinned> {
        self.context.enter()?;
        // SAFETY: the memory is zeroed before anything reads it.
        let at = unsafe {
            let at = result::malloc_host(bytes.max(16), 0).map_err(failed("cuMemHostAlloc"))?;
            at.cast::<u8>().write_bytes(0, bytes);
            at.cast()
        };
        Ok(Pinned { context: self.context.clone(), at, bytes })
    }

    fn stream(&self, urgency: Urgency) -> Result<Stream> {
        self.context.enter()?;
        let range = stream::get_priority_range();
        let (least, greatest) = range.map_err(failed("cuCtxGetStreamPriorityRange"))?;
        let priority = match urgency {
            Urgency::Decode => greatest,
            Urgency::Background => least,
        };
        // No order with the default stream.
        let handle = stream::create_with_priority(stream::StreamKind::NonBlocking, priority)
            .map_err(failed("cuStreamCreate"))?;
        Ok(Stream { context: self.context.clone(), handle })
    }

    fn synchronize(&self, stream: &Stream) -> Result<()> {
        self.context.enter()?;
        // SAFETY: a live stream.
        unsafe { stream::synchronize(stream.handle) }.map_err(failed("cuStreamSynchronize"))
    }

    unsafe fn upload(&self, stream: &Stream, to: u64, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        self.context.enter()?;
        // SAFETY: the caller's promise. Memory that is not pinned is read before the call returns.
        unsafe { result::memcpy_htod_async(to, from, stream.handle) }
            .map_err(failed("cuMemcpyHtoDAsync"))
    }

    unsafe fn download(&self, stream: &Stream, from: u64, to: &mut [u8]) -> Result<()> {
        if !to.is_empty() {
            self.context.enter()?;
            // SAFETY: the caller's promise; waited for below, before `to` is used again.
            unsafe { result::memcpy_dtoh_async(to, from, stream.handle) }
                .map_err(failed("cuMemcpyDtoHAsync"))?;
        }
        self.synchronize(stream)
    }

    unsafe fn zero(&self, stream: &Stream, at: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.context.enter()?;
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(at, 0, bytes, stream.handle) }
            .map_err(failed("cuMemsetD8Async"))
    }

    unsafe fn launch(
        &self,
        stream: &Stream,
        kernel: &'static str,
        shape: Shape,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        self.context.enter()?;
        let unknown =
            || DeviceError::Call { call: kernel.to_owned(), reason: "is not a kernel".to_owned() };
        let function = self.kernels.get(kernel).ok_or_else(unknown)?.0;
        let Shape { grid, block, shared } = shape;
        let blocks = (grid[0], grid[1], grid[2]);
        let handle = stream.handle;
        // SAFETY: the caller's promise.
        unsafe { result::launch_kernel(function, blocks, (block, 1, 1), shared, handle, arguments) }
            .map_err(failed(kernel))
    }
}
