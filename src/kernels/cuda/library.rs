//! Shared libraries that are loaded at run time: ladle starts without them, and says which one is
//! missing when a GPU is asked for.

use std::{
    error::Error,
    path::{Path, PathBuf},
};

use super::device::{DeviceError, Result};

/// Names directories, separated by colons, where CUDA's libraries are looked for first.
pub const LIBRARY_PATH: &str = "LADLE_CUDA_LIBS";

/// A loaded library; it stays loaded.
pub struct Library {
    name: String,
    remedy: &'static str,
    loaded: &'static libloading::Library,
}

/// The directories of [`LIBRARY_PATH`].
pub fn directories() -> Vec<PathBuf> {
    std::env::var_os(LIBRARY_PATH)
        .map(|paths| std::env::split_paths(&paths).collect())
        .unwrap_or_default()
}

/// The system's message where it gave one; libloading's own names only the call that failed.
fn reason(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

fn open(path: &Path) -> std::result::Result<&'static libloading::Library, String> {
    // SAFETY: the libraries named here run no code of ours when loaded.
    let loaded = unsafe { libloading::Library::new(path) }.map_err(|error| reason(&error))?;
    Ok(Box::leak(Box::new(loaded)))
}

impl Library {
    /// Loads the first of `names` that is found, in [`LIBRARY_PATH`] and then where the system looks.
    pub fn load(names: &[&str], remedy: &'static str) -> Result<Self> {
        let named = |directory: PathBuf| names.iter().map(move |name| directory.join(name));
        let here = directories().into_iter().flat_map(named).filter(|path| path.exists());
        let mut first = None;
        for path in here.chain(names.iter().map(PathBuf::from)) {
            match open(&path) {
                Ok(loaded) => return Ok(Self { name: path.display().to_string(), remedy, loaded }),
                Err(reason) => first = first.or(Some(reason)),
            }
        }
        // The system's message begins with the name.
        let (name, reason) = (names[0], first.unwrap_or_default());
        let reason = reason.strip_prefix(name).unwrap_or(&reason).trim_start_matches(": ");
        let (library, reason) = (name.to_owned(), reason.to_owned());
        Err(DeviceError::Library { library, reason, remedy })
    }

    /// Loads a library that another will look for by name; where there is none, that one will say so.
    pub fn preload(path: &Path) {
        if let Err(reason) = open(path) {
            tracing::debug!(path = %path.display(), reason, "not preloaded");
        }
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `F` is a pointer to a function of that function's type.
    pub unsafe fn function<F: Copy>(&self, name: &str) -> Result<F> {
        // SAFETY: the caller's promise.
        match unsafe { self.loaded.get::<F>(name) } {
            Ok(function) => Ok(*function),
            Err(error) => Err(self.error(reason(&error))),
        }
    }

    /// The error of a library that cannot be used.
    pub fn error(&self, reason: String) -> DeviceError {
        DeviceError::Library { library: self.name.clone(), reason, remedy: self.remedy }
    }
}
