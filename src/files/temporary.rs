//! Files and directories in the making, and what a killed process left of them.
//!
//! Whoever makes one holds a lock on it, which the system releases when the process ends, however
//! it ends: what has the prefix and no lock belongs to nobody.

use std::{
    fs::{self, File},
    io,
    ops::Deref,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use tempfile::{Builder, NamedTempFile, TempDir};

/// Prefix of the names that files and directories have before they are whole.
pub const PREFIX: &str = ".ladle-partial-";

/// A temporary file or directory, removed when dropped. Nobody sweeps it meanwhile.
pub struct Temporary<T> {
    made: T,
    /// `None` where the file system has no locks; then nothing is swept there either.
    lock: Option<File>,
}

impl Temporary<NamedTempFile> {
    /// A file in `parent` with the permissions of any new file.
    pub fn file(parent: &Path) -> io::Result<Self> {
        // The library's own choice is readable for the owner alone.
        let make = |builder: &mut Builder| builder.permissions(mode(0o666)).tempfile_in(parent);
        make_in(parent, make, NamedTempFile::path)
    }

    /// Gives it its name.
    pub fn persist(self, path: &Path) -> io::Result<()> {
        let Self { made, lock } = self;
        made.persist(path).map_err(|error| error.error)?;
        drop(lock);
        Ok(())
    }
}

impl Temporary<TempDir> {
    /// A directory in `parent` with the permissions of any new directory.
    pub fn directory(parent: &Path) -> io::Result<Self> {
        let make = |builder: &mut Builder| builder.permissions(mode(0o777)).tempdir_in(parent);
        make_in(parent, make, TempDir::path)
    }

    /// Gives it its name.
    pub fn persist(self, path: &Path) -> io::Result<()> {
        let Self { made, lock } = self;
        fs::rename(made.path(), path)?;
        // The directory has moved: there is nothing left to remove.
        let _ = made.keep();
        drop(lock);
        Ok(())
    }
}

impl<T> Deref for Temporary<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.made
    }
}

fn mode(bits: u32) -> fs::Permissions {
    PermissionsExt::from_mode(bits)
}

fn make_in<T>(
    parent: &Path,
    make: impl FnOnce(&mut Builder) -> io::Result<T>,
    path: impl Fn(&T) -> &Path,
) -> io::Result<Temporary<T>> {
    // Nobody sweeps `parent` between the making and the lock.
    let door = shared(parent);
    let made = make(Builder::new().prefix(PREFIX))?;
    let lock = shared(path(&made));
    drop(door);
    Ok(Temporary { made, lock })
}

fn shared(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    file.lock_shared().ok()?;
    Some(file)
}

/// Removes what killed processes left in `place`. What cannot be removed only takes space.
pub fn sweep(place: &Path) {
    let exclusive = |path: &Path| {
        let file = File::open(path).ok()?;
        file.try_lock().ok()?;
        Some(file)
    };
    // Somebody who is making something there leaves the sweeping to the next one.
    let Some(_door) = exclusive(place) else { return };
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        if let Some(_lock) = exclusive(&path) {
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(place: &Path) -> usize {
        fs::read_dir(place).unwrap().count()
    }

    #[test]
    fn what_nobody_holds_is_swept_and_what_is_held_stays() {
        let place = tempfile::tempdir().unwrap();
        let file = Temporary::file(place.path()).unwrap();
        let directory = Temporary::directory(place.path()).unwrap();
        fs::write(directory.path().join("inside"), "x").unwrap();
        // As a killed process leaves them.
        fs::create_dir(place.path().join(".ladle-partial-abc")).unwrap();
        fs::write(place.path().join(".ladle-partial-abc/inside"), "x").unwrap();
        fs::write(place.path().join(".ladle-partial-def"), "x").unwrap();
        fs::write(place.path().join(".ladle-mine"), "x").unwrap();
        sweep(place.path());
        assert!(file.path().is_file() && directory.path().join("inside").is_file());
        assert_eq!(names(place.path()), 3);
        file.persist(&place.path().join("whole")).unwrap();
        directory.persist(&place.path().join("all")).unwrap();
        sweep(place.path());
        assert!(place.path().join("whole").is_file() && place.path().join("all/inside").is_file());
        assert_eq!(names(place.path()), 3);
    }
}
