//! A GPU through the CUDA driver, whose library is loaded when a GPU is asked for.

use std::{
    cell::Cell,
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    path::PathBuf,
    ptr::null_mut,
    sync::Arc,
};

use super::{
    KERNELS,
    device::{Device, DeviceError, Result, Shape, Urgency},
    image,
    library::{Library, functions},
};

const REMEDY: &str =
    "install NVIDIA's driver (the r580 branch or later), or serve with --device cpu";

functions! {
    /// What is used of the driver. Its types: device and result are ints, handles are pointers,
    /// device addresses are u64.
    Driver {
        init: c"cuInit" fn(c_uint);
        error_string: c"cuGetErrorString" fn(c_int, *mut *const c_char);
        device: c"cuDeviceGet" fn(*mut c_int, c_int);
        device_name: c"cuDeviceGetName" fn(*mut c_char, c_int, c_int);
        attribute: c"cuDeviceGetAttribute" fn(*mut c_int, c_int, c_int);
        retain: c"cuDevicePrimaryCtxRetain" fn(*mut *mut c_void, c_int);
        set_current: c"cuCtxSetCurrent" fn(*mut c_void);
        priorities: c"cuCtxGetStreamPriorityRange" fn(*mut c_int, *mut c_int);
        memory: c"cuMemGetInfo_v2" fn(*mut usize, *mut usize);
        allocate: c"cuMemAlloc_v2" fn(*mut u64, usize);
        free: c"cuMemFree_v2" fn(u64);
        allocate_host: c"cuMemHostAlloc" fn(*mut *mut c_void, usize, c_uint);
        free_host: c"cuMemFreeHost" fn(*mut c_void);
        stream: c"cuStreamCreateWithPriority" fn(*mut *mut c_void, c_uint, c_int);
        synchronize: c"cuStreamSynchronize" fn(*mut c_void);
        destroy: c"cuStreamDestroy_v2" fn(*mut c_void);
        upload: c"cuMemcpyHtoDAsync_v2" fn(u64, *const c_void, usize, *mut c_void);
        download: c"cuMemcpyDtoHAsync_v2" fn(*mut c_void, u64, usize, *mut c_void);
        copy: c"cuMemcpyDtoDAsync_v2" fn(u64, u64, usize, *mut c_void);
        set: c"cuMemsetD8Async" fn(u64, u8, usize, *mut c_void);
        load: c"cuModuleLoadData" fn(*mut *mut c_void, *const c_void);
        function: c"cuModuleGetFunction" fn(*mut *mut c_void, *mut c_void, *const c_char);
        launch: c"cuLaunchKernel" fn(*mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void, *mut *mut c_void, *mut *mut c_void);
    }
}

/// cudaErrorMemoryAllocation.
const OUT_OF_MEMORY: c_int = 2;
/// CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
const CAPABILITY: [c_int; 2] = [75, 76];
/// CU_STREAM_NON_BLOCKING: no order with the default stream.
const NON_BLOCKING: c_uint = 1;
/// The first compute capability with bf16 tensor cores and asynchronous copies.
const OLDEST: (i32, i32) = (8, 0);

/// The driver and one GPU's context; lives as long as anything made of it.
struct Context {
    driver: Driver,
    /// The GPU's primary context, never released: other libraries may share it.
    handle: *mut c_void,
}

// SAFETY: the driver is thread-safe, and a context may be current on any number of threads.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

thread_local! {
    /// The context that is current on this thread.
    static CURRENT: Cell<*mut c_void> = const { Cell::new(null_mut()) };
}

impl Context {
    /// The driver, with the context current on this thread.
    fn driver(&self) -> Result<Driver> {
        if CURRENT.get() != self.handle {
            // SAFETY: a live context.
            self.check("cuCtxSetCurrent", unsafe { (self.driver.set_current)(self.handle) })?;
            CURRENT.set(self.handle);
        }
        Ok(self.driver)
    }

    fn check(&self, call: &str, code: c_int) -> Result<()> {
        check(&self.driver, call, code)
    }
}

fn check(driver: &Driver, call: &str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let mut text = c"an unknown error".as_ptr();
    // SAFETY: gives a static text or leaves null.
    let text = unsafe {
        (driver.error_string)(code, &mut text);
        if text.is_null() { c"an unknown error" } else { CStr::from_ptr(text) }
    };
    let reason = format!("CUDA error {code}: {}", text.to_string_lossy());
    Err(DeviceError::Call { call: call.to_owned(), reason })
}

/// One GPU.
pub struct Gpu {
    context: Arc<Context>,
    name: String,
    kernels: HashMap<&'static str, Function>,
}

struct Function(*mut c_void);

// SAFETY: a handle that the driver takes on any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Gpu {
    /// The GPU with this number, with the kernels from one of `caches` or compiled.
    pub fn open(ordinal: usize, caches: &[PathBuf]) -> Result<Arc<Self>> {
        let driver = Driver::load(&Library::load(&["libcuda.so.1", "libcuda.so"], REMEDY)?)?;
        let check = |call, code| check(&driver, call, code);
        let (mut device, mut handle) = (0, null_mut());
        let mut name = [0u8; 128];
        let mut capability = [0; 2];
        // SAFETY: outputs are ours and as large as is said.
        unsafe {
            check("cuInit", (driver.init)(0))?;
            let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
            check("cuDeviceGet", (driver.device)(&mut device, ordinal))?;
            let got = (driver.device_name)(name.as_mut_ptr().cast(), 127, device);
            check("cuDeviceGetName", got)?;
            for (value, attribute) in capability.iter_mut().zip(CAPABILITY) {
                check("cuDeviceGetAttribute", (driver.attribute)(value, attribute, device))?;
            }
            check("cuDevicePrimaryCtxRetain", (driver.retain)(&mut handle, device))?;
        }
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy();
        let capability = (capability[0], capability[1]);
        if capability < OLDEST {
            let (major, minor) = capability;
            return Err(DeviceError::Call {
                call: format!("opening {name}"),
                reason: format!("compute capability {major}.{minor}, expected 8.0 or later"),
            });
        }
        let context = Arc::new(Context { driver, handle });
        let image = image::find(capability, caches)?;
        let driver = context.driver()?;
        let mut module = null_mut();
        let mut kernels = HashMap::new();
        // SAFETY: an image as NVRTC made it; the module is never unloaded.
        unsafe {
            check("cuModuleLoadData", (driver.load)(&mut module, image.as_ptr().cast()))?;
            for &kernel in KERNELS {
                let mut function = null_mut();
                let symbol = CString::new(kernel).unwrap_or_default();
                let found = (driver.function)(&mut function, module, symbol.as_ptr());
                check(kernel, found)?;
                kernels.insert(kernel, Function(function));
            }
        }
        Ok(Arc::new(Self { context, name: name.into_owned(), kernels }))
    }

    /// Copies within the device.
    ///
    /// # Safety
    /// Both have `bytes` bytes until the stream is synchronised.
    pub unsafe fn copy(&self, stream: &Stream, to: u64, from: u64, bytes: usize) -> Result<()> {
        let driver = self.context.driver()?;
        // SAFETY: the caller's promise.
        let code = unsafe { (driver.copy)(to, from, bytes, stream.handle) };
        self.context.check("cuMemcpyDtoDAsync", code)
    }
}

/// Device memory.
pub struct Buffer {
    context: Arc<Context>,
    address: u64,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Ok(driver) = self.context.driver() {
            // SAFETY: allocated by `allocate`, freed once; the driver waits for work that uses it.
            unsafe { (driver.free)(self.address) };
        }
    }
}

/// A stream.
pub struct Stream {
    context: Arc<Context>,
    handle: *mut c_void,
}

// SAFETY: the driver takes a stream on any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(driver) = self.context.driver() {
            // SAFETY: created by `stream`, destroyed once; work under way is still finished.
            unsafe { (driver.destroy)(self.handle) };
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
        if let Ok(driver) = self.context.driver() {
            // SAFETY: allocated by `pinned`, freed once.
            unsafe { (driver.free_host)(self.at.cast()) };
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
        let driver = self.context.driver()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: outputs are ours.
        self.context.check("cuMemGetInfo", unsafe { (driver.memory)(&mut free, &mut total) })?;
        Ok((free, total))
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        let driver = self.context.driver()?;
        let mut address = 0;
        // SAFETY: the output is ours.
        match unsafe { (driver.allocate)(&mut address, bytes.max(16)) } {
            OUT_OF_MEMORY => Err(DeviceError::OutOfMemory { bytes }),
            code => {
                self.context.check("cuMemAlloc", code)?;
                Ok(Buffer { context: self.context.clone(), address })
            }
        }
    }

    fn address(&self, buffer: &Buffer) -> u64 {
        buffer.address
    }

    fn pinned(&self, bytes: usize) -> Result<Pinned> {
        let driver = self.context.driver()?;
        let mut at = null_mut();
        // SAFETY: the output is ours; the memory is zeroed before anything reads it.
        unsafe {
            let code = (driver.allocate_host)(&mut at, bytes.max(16), 0);
            self.context.check("cuMemHostAlloc", code)?;
            at.cast::<u8>().write_bytes(0, bytes);
        }
        Ok(Pinned { context: self.context.clone(), at: at.cast(), bytes })
    }

    fn stream(&self, urgency: Urgency) -> Result<Stream> {
        let driver = self.context.driver()?;
        let (mut least, mut greatest, mut handle) = (0, 0, null_mut());
        // SAFETY: outputs are ours.
        unsafe {
            let range = (driver.priorities)(&mut least, &mut greatest);
            self.context.check("cuCtxGetStreamPriorityRange", range)?;
            let priority = match urgency {
                Urgency::Decode => greatest,
                Urgency::Background => least,
            };
            let code = (driver.stream)(&mut handle, NON_BLOCKING, priority);
            self.context.check("cuStreamCreate", code)?;
        }
        Ok(Stream { context: self.context.clone(), handle })
    }

    fn synchronize(&self, stream: &Stream) -> Result<()> {
        let driver = self.context.driver()?;
        // SAFETY: a live stream.
        self.context.check("cuStreamSynchronize", unsafe { (driver.synchronize)(stream.handle) })
    }

    unsafe fn upload(&self, stream: &Stream, to: u64, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        let driver = self.context.driver()?;
        // SAFETY: the caller's promise. Memory that is not pinned is read before the call returns.
        let code = unsafe { (driver.upload)(to, from.as_ptr().cast(), from.len(), stream.handle) };
        self.context.check("cuMemcpyHtoDAsync", code)
    }

    unsafe fn download(&self, stream: &Stream, from: u64, to: &mut [u8]) -> Result<()> {
        if !to.is_empty() {
            let driver = self.context.driver()?;
            // SAFETY: the caller's promise; waited for below, before `to` is used again.
            let code =
                unsafe { (driver.download)(to.as_mut_ptr().cast(), from, to.len(), stream.handle) };
            self.context.check("cuMemcpyDtoHAsync", code)?;
        }
        self.synchronize(stream)
    }

    unsafe fn zero(&self, stream: &Stream, at: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let driver = self.context.driver()?;
        // SAFETY: the caller's promise.
        self.context.check("cuMemsetD8Async", unsafe { (driver.set)(at, 0, bytes, stream.handle) })
    }

    unsafe fn launch(
        &self,
        stream: &Stream,
        kernel: &'static str,
        shape: Shape,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let driver = self.context.driver()?;
        let unknown =
            || DeviceError::Call { call: kernel.to_owned(), reason: "is not a kernel".to_owned() };
        let function = self.kernels.get(kernel).ok_or_else(unknown)?.0;
        let Shape { grid: [x, y, z], block, shared } = shape;
        let arguments = arguments.as_mut_ptr();
        // SAFETY: the caller's promise.
        let code = unsafe {
            let handle = stream.handle;
            (driver.launch)(function, x, y, z, block, 1, 1, shared, handle, arguments, null_mut())
        };
        self.context.check(kernel, code)
    }
}
