//! Shared libraries that are loaded at run time: ladle starts without them, and says which one is
//! missing when a GPU is asked for.

use std::{
    ffi::{CStr, CString, c_void},
    path::{Path, PathBuf},
};

use super::device::{DeviceError, Result};

/// Names directories, separated by colons, where CUDA's libraries are looked for first.
pub const LIBRARY_PATH: &str = "LADLE_CUDA_LIBS";

/// A loaded library; it stays loaded.
pub struct Library {
    name: String,
    remedy: &'static str,
    handle: *mut c_void,
}

// SAFETY: a handle is an opaque number to dlsym, which any thread may call.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// The directories of [`LIBRARY_PATH`].
pub fn directories() -> Vec<PathBuf> {
    std::env::var_os(LIBRARY_PATH)
        .map(|paths| std::env::split_paths(&paths).collect())
        .unwrap_or_default()
}

fn open(path: &Path) -> std::result::Result<*mut c_void, String> {
    let text = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: a terminated path; the libraries named here run no code of ours when loaded.
    let handle = unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: dlerror gives null or a terminated text, valid until the next call on this thread.
    let reason = unsafe {
        let text = libc::dlerror();
        if text.is_null() { c"unknown".as_ptr() } else { text.cast_const() }
    };
    // SAFETY: as above.
    Err(unsafe { CStr::from_ptr(reason) }.to_string_lossy().into_owned())
}

impl Library {
    /// Loads the first of `names` that is found, in [`LIBRARY_PATH`] and then where the system looks.
    pub fn load(names: &[&str], remedy: &'static str) -> Result<Self> {
        let mut reason = String::new();
        let mut directories = directories();
        directories.push(PathBuf::new());
        for directory in &directories {
            for name in names {
                let path = directory.join(name);
                if directory.as_os_str().is_empty() || path.exists() {
                    match open(&path) {
                        Ok(handle) => {
                            return Ok(Self { name: (*name).to_owned(), remedy, handle });
                        }
                        Err(why) => reason = why,
                    }
                }
            }
        }
        Err(DeviceError::Library { library: names[0].to_owned(), reason, remedy })
    }

    /// Loads a library that another will look for by name; where there is none, that one will say so.
    pub fn preload(path: &Path) {
        if let Err(reason) = open(path) {
            tracing::debug!(path = %path.display(), reason, "not preloaded");
        }
    }

    /// Address of a function.
    pub fn symbol(&self, name: &CStr) -> Result<*mut c_void> {
        // SAFETY: a live handle and a terminated name.
        let symbol = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        if symbol.is_null() {
            return Err(DeviceError::Library {
                library: self.name.clone(),
                reason: format!("has no function {}", name.to_string_lossy()),
                remedy: self.remedy,
            });
        }
        Ok(symbol)
    }
}

/// Declares a table of functions of a library: `functions! { Table { field: "symbol" fn(…) -> …; } }`
/// with a constructor `load(&Library)`.
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident { $($field:ident: $symbol:literal fn($($argument:ty),*);)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $table { $($field: unsafe extern "C" fn($($argument),*) -> i32,)+ }
        impl $table {
            fn load(library: &Library) -> Result<Self> {
                Ok(Self { $($field: {
                    let symbol = library.symbol($symbol)?;
                    // SAFETY: the library's function of this name has this type.
                    unsafe {
                        std::mem::transmute::<
                            *mut c_void,
                            unsafe extern "C" fn($($argument),*) -> i32,
                        >(symbol)
                    }
                },)+ })
            }
        }
    };
}
pub(super) use functions;
