//! A directory that is whole or absent: everything is written beside the target and renamed last.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{FileError, parent, sync_directory, temporary::Temporary, temporary::sweep};

/// A directory in the making. Dropping it before [`Staging::commit`] removes every trace.
pub struct Staging {
    temporary: Temporary<TempDir>,
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
        sweep(parent);
        let temporary = Temporary::directory(parent).map_err(FileError::at(parent))?;
        Ok(Self { temporary, target: target.to_owned() })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// `error`, whose path may lie in the directory in the making, with the path that it would have
    /// had: the other one is gone when the message is read.
    pub fn named(&self, error: FileError) -> FileError {
        let real = fs::canonicalize(self.path());
        let places = real.iter().map(PathBuf::as_path).chain([self.path()]);
        error.map_path(|path| {
            let inside = places.into_iter().find_map(|place| path.strip_prefix(place).ok());
            inside.map(|inside| self.target.join(inside)).unwrap_or(path)
        })
    }

    /// Syncs what was written and gives it its name.
    pub fn commit(self) -> Result<(), FileError> {
        let target = self.target.clone();
        self.commit_as(&target)
    }

    /// As [`Staging::commit`], under another name in the same directory, where nothing is.
    pub fn commit_as(self, target: &Path) -> Result<(), FileError> {
        let Self { temporary, .. } = self;
        sync(temporary.path()).map_err(FileError::at(target))?;
        temporary.persist(target).map_err(FileError::at(target))?;
        let parent = parent(target);
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
