//! The kernels compiled for a GPU: taken from a cache by digest of source and architecture, else
//! compiled by NVRTC and kept. Only the compilation needs that library, and no GPU.

use std::{
    ffi::{CString, c_char, c_int, c_void},
    fs,
    path::{Path, PathBuf},
};

use super::{
    SOURCE,
    device::{DeviceError, Result},
    library::{Library, directories},
};
use crate::files::{self, FileError, home, sha256};

const REMEDY: &str = "install the wheel nvidia-cuda-nvrtc (13.0 for drivers of the r580 branch) or \
                      the CUDA toolkit, and name the directory of libnvrtc.so in LADLE_CUDA_LIBS; \
                      or compile the kernels elsewhere with `ladle kernels` and put them into \
                      $LADLE_HOME/kernels";

type Program = *mut c_void;
type GetSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type GetBytes = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// The functions of NVRTC. cudarc's bindings are not used, because they take a library by its name
/// alone and prefer an unversioned one of the system to that of
/// [`LIBRARY_PATH`](super::LIBRARY_PATH).
struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: GetSize,
    log: GetBytes,
    image_size: GetSize,
    image: GetBytes,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
}

impl Nvrtc {
    fn load() -> Result<Self> {
        let library = Library::load(&["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"], REMEDY)?;
        // SAFETY: the types are those of nvrtc.h.
        unsafe {
            Ok(Self {
                create: library.function("nvrtcCreateProgram")?,
                compile: library.function("nvrtcCompileProgram")?,
                log_size: library.function("nvrtcGetProgramLogSize")?,
                log: library.function("nvrtcGetProgramLog")?,
                image_size: library.function("nvrtcGetCUBINSize")?,
                image: library.function("nvrtcGetCUBIN")?,
                destroy: library.function("nvrtcDestroyProgram")?,
            })
        }
    }
}

/// File name of the kernels for an architecture such as `sm_90`.
pub fn file_name(architecture: &str) -> String {
    let digest = sha256(SOURCE.as_bytes());
    format!("{}.{architecture}.cubin", &digest[..16])
}

/// Architectures whose machine code runs on compute capability `major.minor`, best first.
fn architectures((major, minor): (i32, i32)) -> Vec<String> {
    (0..=minor).rev().map(|minor| format!("sm_{major}{minor}")).collect()
}

/// Where compiled kernels are kept: `$LADLE_HOME/kernels`, else in the user's cache directory, and
/// beside the program.
pub fn kernel_caches() -> Vec<PathBuf> {
    let program = std::env::current_exe().ok();
    let beside = program.as_deref().and_then(Path::parent).map(Path::to_owned);
    home().into_iter().chain(beside).map(|directory| directory.join("kernels")).collect()
}

/// The kernels for a GPU of this compute capability: from one of `caches`, else compiled and kept
/// in the first.
pub fn find(capability: (i32, i32), caches: &[PathBuf]) -> Result<Vec<u8>> {
    let usable = architectures(capability);
    for architecture in &usable {
        for cache in caches {
            if let Ok(image) = fs::read(cache.join(file_name(architecture))) {
                return Ok(image);
            }
        }
    }
    let begin = std::time::Instant::now();
    let image = compile(&usable[0])?;
    tracing::info!(architecture = usable[0], elapsed = ?begin.elapsed(), "compiled the kernels");
    if let Some(cache) = caches.first()
        && let Err(error) = keep(cache, &usable[0], &image)
    {
        tracing::warn!(%error, cache = %cache.display(), "the compiled kernels are not kept");
    }
    Ok(image)
}

/// Writes an image into a directory, whole or not at all; returns its path.
pub fn keep(
    directory: &Path,
    architecture: &str,
    image: &[u8],
) -> std::result::Result<PathBuf, FileError> {
    let path = directory.join(file_name(architecture));
    files::write(&path, image)?;
    Ok(path)
}

/// Compiles the kernels for an architecture such as `sm_90`.
pub fn compile(architecture: &str) -> Result<Vec<u8>> {
    for directory in directories() {
        // NVRTC looks for its own built-in headers by name alone.
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("libnvrtc-builtins.so") {
                Library::preload(&path);
            }
        }
    }
    let nvrtc = Nvrtc::load()?;
    let text = |text: &str| {
        let call =
            || DeviceError::Call { call: "nvrtc".into(), reason: format!("{text:?} ends early") };
        CString::new(text).map_err(|_| call())
    };
    let (source, name) = (text(SOURCE)?, text("ladle.cu")?);
    let options = [text(&format!("--gpu-architecture={architecture}"))?, text("--std=c++17")?];
    let options = options.each_ref().map(|option| option.as_ptr());
    let check = |call: &str, code: i32, reason: &str| match code {
        0 => Ok(()),
        code => Err(DeviceError::Call {
            call: call.to_owned(),
            reason: format!("NVRTC error {code}. {reason}"),
        }),
    };
    let mut program = std::ptr::null_mut();
    let none = std::ptr::null();
    // SAFETY: terminated texts that outlive the program; no headers; sizes as NVRTC gives them.
    unsafe {
        let created = (nvrtc.create)(&mut program, source.as_ptr(), name.as_ptr(), 0, none, none);
        check("nvrtcCreateProgram", created, "")?;
        let compiled = (nvrtc.compile)(program, options.len() as c_int, options.as_ptr());
        let mut size = 0;
        let mut image = Vec::new();
        let outcome = if compiled == 0 {
            let mut outcome = (nvrtc.image_size)(program, &mut size);
            if outcome == 0 {
                image.resize(size, 0u8);
                outcome = (nvrtc.image)(program, image.as_mut_ptr().cast());
            }
            check("nvrtcGetCUBIN", outcome, "")
        } else {
            (nvrtc.log_size)(program, &mut size);
            let mut log = vec![0u8; size];
            (nvrtc.log)(program, log.as_mut_ptr().cast());
            let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
            check("nvrtcCompileProgram", compiled, &log)
        };
        (nvrtc.destroy)(&mut program);
        outcome.map(|()| image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_a_lower_minor_architecture_of_the_same_major_is_taken() {
        assert_eq!(architectures((9, 0)), ["sm_90"]);
        let dir = tempfile::tempdir().unwrap();
        let kept = keep(dir.path(), "sm_80", b"image").unwrap();
        assert_eq!(kept, dir.path().join(file_name("sm_80")));
        assert_eq!(find((8, 6), &[dir.path().to_owned()]).unwrap(), b"image");
    }
}
