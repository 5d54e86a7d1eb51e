//! A directory that is whole or absent: everything is written beside the target and renamed last.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{FileError, TEMPORARY, parent, sync_directory};

/// A directory in the making. Dropping it before [`Staging::commit`] removes every trace.
pub struct Staging {
    temporary: TempDir,
    target: PathBuf,
}

impl Staging {
    /// Starts a directory that will appear as `target`, which must not exist (or be empty).
    pub fn new(target: &Path) -> Result<Self, FileError> {
        let occupied = match fs::read_dir(target) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        if occupied {
            let error = io::Error::new(
                io::ErrorKind::AlreadyExists,
                "already exists and is not an empty directory; choose another or remove it",
            );
            return Err(FileError::Io { path: target.to_owned(), error });
        }
        let parent = parent(target);
        fs::create_dir_all(parent).map_err(FileError::at(parent))?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let temporary = builder.tempdir_in(parent).map_err(FileError::at(parent))?;
        Ok(Self { temporary, target: target.to_owned() })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Syncs what was written and gives it its name.
    pub fn commit(self) -> Result<(), FileError> {
        let Self { temporary, target } = self;
        sync(temporary.path()).map_err(FileError::at(&target))?;
        fs::rename(temporary.path(), &target).map_err(FileError::at(&target))?;
        // The directory has moved: there is nothing left to remove.
        let _ = temporary.keep();
        let parent = parent(&target);
        sync_directory(parent).map_err(FileError::at(parent))
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sync(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    sync_directory(dir)
}
