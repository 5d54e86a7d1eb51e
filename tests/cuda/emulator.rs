//! A device that runs the kernels' own source on the host (see emulator.h), with guard pages behind
//! every buffer, memory that starts as NaN, and as much of it as a test allows.

use std::{
    collections::hash_map::DefaultHasher,
    ffi::{CString, c_char, c_int, c_void},
    fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use ladle::kernels::cuda::{Device, DeviceError, KERNELS, SOURCE, Shape, Urgency, device::Result};

type Launch =
    unsafe extern "C" fn(*const c_char, *const u32, u32, u32, *mut *mut c_void, c_int) -> c_int;

/// Compiles one of the sources here once per text of all of them; returns the library.
pub fn compiled(source: &str, flags: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = root.join("tests/cuda");
    let mut hasher = DefaultHasher::new();
    for name in ["emulator.h", "emulator.cpp", source] {
        fs::read_to_string(tests.join(name)).unwrap().hash(&mut hasher);
    }
    (source, flags, SOURCE, KERNELS).hash(&mut hasher);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    let library = dir.join(format!("{:016x}.so", hasher.finish()));
    if !library.exists() {
        let own = dir.join(format!("{}-{source}", std::process::id()));
        fs::create_dir_all(&own).unwrap();
        let list: String = KERNELS.iter().map(|name| format!("KERNEL({name})\n")).collect();
        fs::write(own.join("kernels.inc"), list).unwrap();
        let fresh = own.join("emulator.so");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let status = Command::new(&compiler)
            .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas"])
            .args(["-fno-strict-aliasing", "-ffp-contract=off", "-U_FORTIFY_SOURCE"])
            .args(flags)
            .arg(format!("-I{}", root.join("src/kernels/cuda").display()))
            .arg(format!("-I{}", own.display()))
            .arg(tests.join(source))
            .arg("-o")
            .arg(&fresh)
            .status()
            .unwrap_or_else(|e| panic!("{compiler} (of build-essential) is needed: {e}"));
        assert!(status.success(), "{compiler} refused the kernels");
        fs::rename(&fresh, &library).unwrap();
        fs::remove_dir_all(&own).unwrap();
    }
    library
}

/// Loads a library for good.
pub fn loaded(library: &Path) -> &'static libloading::Library {
    // SAFETY: made by `compiled`; its initialisers fill tables.
    Box::leak(Box::new(unsafe { libloading::Library::new(library) }.unwrap()))
}

/// The emulated launch.
fn library() -> Launch {
    static LIBRARY: OnceLock<Launch> = OnceLock::new();
    *LIBRARY.get_or_init(|| {
        let library = loaded(&compiled("emulator.cpp", &[]));
        // SAFETY: the function has the type of `Launch`.
        unsafe { *library.get::<Launch>("emulator_launch").unwrap() }
    })
}

const PAGE: usize = 4096;

/// Host memory that ends where a page begins that nobody may touch.
pub struct Buffer {
    map: *mut u8,
    mapped: usize,
    address: u64,
    bytes: usize,
    used: Arc<AtomicUsize>,
}

// SAFETY: it is memory; who may touch it when is the device's contract.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
        // SAFETY: mapped by `allocate`.
        unsafe { libc::munmap(self.map.cast(), self.mapped) };
    }
}

/// The emulated device.
pub struct Emulator {
    limit: AtomicUsize,
    used: Arc<AtomicUsize>,
    descending: AtomicBool,
}

impl Emulator {
    /// With `limit` bytes of memory. Threads of a block run in descending order if so said.
    pub fn new(limit: usize, descending: bool) -> Arc<Self> {
        let used = Arc::default();
        Arc::new(Self { limit: limit.into(), used, descending: AtomicBool::new(descending) })
    }

    /// From now on with so much memory, whatever is in use.
    pub fn limit_to(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

impl Device for Emulator {
    type Buffer = Buffer;
    type Stream = ();
    type Pinned = Vec<u8>;

    fn name(&self) -> String {
        "emulator".to_owned()
    }

    fn memory(&self) -> Result<(usize, usize)> {
        let limit = self.limit.load(Ordering::Relaxed);
        Ok((limit.saturating_sub(self.used()), limit))
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        let taken = self.used.fetch_add(bytes, Ordering::Relaxed);
        if taken + bytes > self.limit.load(Ordering::Relaxed) {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(DeviceError::OutOfMemory { bytes });
        }
        let room = bytes.div_ceil(16) * 16;
        let data = room.div_ceil(PAGE) * PAGE;
        let mapped = data + PAGE;
        // SAFETY: a new anonymous map, of which the last page is then taken away.
        let map = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let map = libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0);
            assert_ne!(map, libc::MAP_FAILED);
            let map = map.cast::<u8>();
            map.write_bytes(0xff, data);
            assert_eq!(libc::mprotect(map.add(data).cast(), PAGE, libc::PROT_NONE), 0);
            map
        };
        let address = (map.addr() + data - room) as u64;
        Ok(Buffer { map, mapped, address, bytes, used: self.used.clone() })
    }

    fn address(&self, buffer: &Buffer) -> u64 {
        buffer.address
    }

    fn pinned(&self, bytes: usize) -> Result<Vec<u8>> {
        Ok(vec![0; bytes])
    }

    fn stream(&self, _: Urgency) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self, (): &()) -> Result<()> {
        Ok(())
    }

    unsafe fn upload(&self, (): &(), to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, (): &(), from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn zero(&self, (): &(), at: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        (): &(),
        kernel: &'static str,
        shape: Shape,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let name = CString::new(kernel).unwrap();
        let descending = self.descending.load(Ordering::Relaxed);
        // SAFETY: the caller's promise on the arguments.
        let code = unsafe {
            library()(
                name.as_ptr(),
                shape.grid.as_ptr(),
                shape.block,
                shape.shared,
                arguments.as_mut_ptr(),
                c_int::from(descending),
            )
        };
        let reason = match code {
            0 => return Ok(()),
            1 => "is not a kernel",
            2 => "its blocks are not whole warps",
            _ => "some threads wait at a barrier that others never reach",
        };
        Err(DeviceError::Call { call: kernel.to_owned(), reason: reason.to_owned() })
    }
}
