//! The calls of the driver, on a machine without one: driver.cpp is loaded as `libcuda.so.1`.

use std::{
    os::raw::c_int,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use ladle::{
    config::MergeMode,
    engine::{CpuBackend, CpuOptions, CudaBackend, CudaOptions},
    kernels::cuda::{Device, DeviceError, Gpu, LIBRARY_PATH, Urgency, image::keep},
    merge::device::Sources,
};

use crate::{
    emulator::{compiled, loaded},
    fixtures::{SOUPS, fixture, open},
    serve::{answers, assert_same, options, serve, smallest},
};

fn built() -> PathBuf {
    compiled("driver.cpp", &["-Wl,-soname,libcuda.so.1"])
}

type InUse = unsafe extern "C" fn() -> c_int;

/// The driver of driver.cpp. `None` where the system has one: there scripts/gpu-check checks it.
fn driver() -> Option<InUse> {
    static DRIVER: OnceLock<Option<InUse>> = OnceLock::new();
    *DRIVER.get_or_init(|| {
        // SAFETY: NVIDIA's driver runs no code of ours when loaded.
        if unsafe { libloading::Library::new("libcuda.so.1") }.is_ok() {
            return None;
        }
        // Found by this name from now on.
        let library = loaded(&built());
        // SAFETY: the function's type is that in driver.cpp.
        Some(unsafe { *library.get::<InUse>("driver_in_use").unwrap() })
    })
}

/// One test at a time, so that what is in use is its own.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory with what the driver takes for compiled kernels.
fn kernels() -> (tempfile::TempDir, [PathBuf; 1]) {
    let directory = tempfile::tempdir().unwrap();
    keep(directory.path(), "sm_90", b"kernels\0").unwrap();
    let caches = [directory.path().to_owned()];
    (directory, caches)
}

#[test]
fn memory_streams_and_copies_are_asked_for_as_the_driver_allows_and_given_back() {
    let Some(in_use) = driver() else { return };
    let (_alone, (_directory, caches)) = (alone(), kernels());
    let gpu = Gpu::open(0, &caches).unwrap();
    assert_eq!(gpu.name(), "Host GPU");
    let before = gpu.memory().unwrap();
    {
        let stream = gpu.stream(Urgency::Background).unwrap();
        let (a, b) = (gpu.allocate(64).unwrap(), gpu.allocate(64).unwrap());
        let (a, b) = (gpu.address(&a), gpu.address(&b));
        let mut pinned = gpu.pinned(64).unwrap();
        assert_eq!(pinned.as_ref(), [0; 64]);
        pinned.as_mut().fill(5);
        let values: Vec<u8> = (1..=64).collect();
        let mut got = vec![0; 64];
        // On a thread on which no context is current yet.
        // SAFETY: all ranges are within the two buffers, and are waited for.
        let on_a_new_thread = || unsafe {
            gpu.upload(&stream, a, &values)?;
            gpu.copy(&stream, b, a, 64)?;
            gpu.zero(&stream, b + 8, 8)?;
            gpu.download(&stream, b, &mut got)
        };
        thread::scope(|scope| scope.spawn(on_a_new_thread).join()).unwrap().unwrap();
        assert_eq!(got[..8], values[..8]);
        assert_eq!(got[8..16], [0; 8]);
        assert_eq!(got[16..], values[16..]);
        let refused = gpu.allocate(1 << 40).err();
        assert_eq!(refused, Some(DeviceError::OutOfMemory { bytes: 1 << 40 }));
        // SAFETY: the driver of driver.cpp looks at the range first.
        let refused = unsafe { gpu.upload(&stream, a + 8, &values) }.unwrap_err();
        assert_eq!(refused.to_string(), "cuMemcpyHtoDAsync: CUDA error 1: refused");
    }
    assert_eq!(gpu.memory().unwrap(), before);
    // SAFETY: takes nothing.
    assert_eq!(unsafe { in_use() }, 0);
    let refused = Gpu::open(1, &caches).err().unwrap().to_string();
    assert_eq!(refused, "cuDeviceGet: CUDA error 101: invalid device ordinal");
}

#[test]
fn soups_are_served_through_the_driver_as_on_the_cpu() {
    if driver().is_none() {
        return;
    }
    let (_alone, (_directory, caches)) = (alone(), kernels());
    let mut streamed = 0;
    for name in SOUPS {
        let soup = open(name);
        let cpu = CpuOptions { threads: Some(2), merged_bytes: 8 << 20, ..CpuOptions::default() };
        let cpu = CpuBackend::open(&soup, &cpu).unwrap();
        let expected = answers(&soup, &serve(&soup, cpu, MergeMode::Mixed));
        let gpu = || Gpu::open(0, &caches).unwrap();
        for mode in [MergeMode::Fused, MergeMode::Mixed] {
            let backend = CudaBackend::open(&soup, gpu(), &options(mode)).unwrap();
            assert_eq!(backend.placement().sources, Sources::Resident);
            let engine = serve(&soup, backend, mode);
            assert_same(&format!("{name} {mode:?}"), &answers(&soup, &engine), &expected);
        }
        let small = CudaOptions { merged_bytes: None, ..options(MergeMode::Fused) };
        let Some(backend) = smallest(&soup, &small, |_| gpu()) else { continue };
        let engine = serve(&soup, backend, MergeMode::Fused);
        assert_same(&format!("{name} streamed"), &answers(&soup, &engine), &expected);
        streamed += 1;
    }
    assert!(streamed > 0);
}

/// What `ladle serve --device cuda` says when it fails.
fn refusal(variables: &[(&str, &Path)]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ladle"))
        .args(["serve", "--port", "0", "--offline", "--device", "cuda", "--soup"])
        .arg(fixture("soup-tiny"))
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--device cpu") && !said.contains("panicked"), "{said}");
    said
}

#[test]
fn a_missing_driver_is_named_with_what_to_do() {
    if driver().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let none = refusal(&[(LIBRARY_PATH, directory.path())]);
    assert!(none.contains("error: libcuda.so.1: cannot open shared object file"), "{none}");
    // One that is there, but cannot be loaded, is told.
    let broken = directory.path().join("libcuda.so.1");
    std::fs::write(&broken, "no library").unwrap();
    let said = refusal(&[(LIBRARY_PATH, directory.path())]);
    assert!(said.contains(&format!("{}: ", broken.display())), "{said}");
}

/// Calls go to the library that the system finds first, which may be no driver at all.
#[test]
fn a_driver_that_another_library_hides_is_refused() {
    if driver().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let [named, hiding] = ["named/libcuda.so.1", "hiding/libcuda.so"].map(|path| {
        let path = directory.path().join(path);
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::copy(built(), &path).unwrap();
        path.parent().unwrap().to_owned()
    });
    let said = refusal(&[(LIBRARY_PATH, &named), ("LD_LIBRARY_PATH", &hiding)]);
    assert!(said.contains("libcuda.so.1: is not the library that the system finds"), "{said}");
}
