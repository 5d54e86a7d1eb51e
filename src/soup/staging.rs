//! A directory that is whole or absent: everything is written beside the target and renamed last.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::weights::WeightError;

/// A directory in the making. Dropping it before [`Staging::commit`] removes every trace.
pub struct Staging {
    temporary: TempDir,
    target: PathBuf,
}

impl Staging {
    /// Starts a directory that will appear as `target`, which must not exist (or be empty).
    pub fn new(target: &Path) -> Result<Self, WeightError> {
        let occupied = match fs::read_dir(target) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        if occupied {
            let source = io::Error::new(
                io::ErrorKind::AlreadyExists,
                "already exists and is not an empty directory; choose another or remove it",
            );
            return Err(WeightError::Io { path: target.to_owned(), source });
        }
        let parent = parent(target);
        fs::create_dir_all(parent).map_err(WeightError::io(parent))?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".ladle-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let temporary = builder.tempdir_in(parent).map_err(WeightError::io(parent))?;
        Ok(Self { temporary, target: target.to_owned() })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Syncs what was written and gives it its name.
    pub fn commit(self) -> Result<(), WeightError> {
        let Self { temporary, target } = self;
        sync(temporary.path()).map_err(WeightError::io(&target))?;
        fs::rename(temporary.path(), &target).map_err(WeightError::io(&target))?;
        // The directory has moved: there is nothing left to remove.
        let _ = temporary.keep();
        let parent = parent(&target);
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(WeightError::io(parent))
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
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
    File::open(dir)?.sync_all()
}
