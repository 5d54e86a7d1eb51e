//! Files and directories that are written whole or not at all, JSON on disk, SHA-256.
//!
//! All files that the program keeps are written by [`write()`], [`write_with`] or [`Staging`]:
//! temporary name beside the target, fsync, rename, fsync of the directory. Whenever the program is
//! killed, a reader finds the old content or the new one; what it leaves beside it is removed by the
//! next who writes there.

mod staging;
mod temporary;

use std::{
    fs::{self, File, Metadata},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

pub use staging::Staging;
pub use temporary::{Temporary, sweep};

/// Largest JSON file that is read, in bytes.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Why a file was not read or written. The message holds the cause, so there is no `source`.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("{path}: {error}", path = path.display())]
    Io {
        path: PathBuf,
        /// The refusal.
        error: io::Error,
    },
    /// A document is longer than any that makes sense.
    #[error("{path}: document: expected at most {limit} bytes, got {got}", path = path.display())]
    TooLong {
        path: PathBuf,
        /// The bound in bytes.
        limit: u64,
        /// The file's length in bytes.
        got: u64,
    },
    /// A document is not the JSON that was expected, or cannot be written as JSON.
    #[error("{path}: document: expected JSON, got {error}", path = path.display())]
    Json {
        path: PathBuf,
        /// What is wrong, and where.
        error: serde_json::Error,
    },
    /// A file is another than the one whose digest is known.
    #[error("{path}: sha256 is {got}, expected {expected}", path = path.display())]
    Digest {
        path: PathBuf,
        /// The known digest.
        expected: String,
        /// The file's digest.
        got: String,
    },
}

impl FileError {
    /// Adds the path to an I/O error.
    pub fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::Io { path, error }
    }

    /// The same error about another path.
    fn map_path(mut self, change: impl FnOnce(PathBuf) -> PathBuf) -> Self {
        let (Self::Io { path, .. }
        | Self::TooLong { path, .. }
        | Self::Json { path, .. }
        | Self::Digest { path, .. }) = &mut self;
        *path = change(std::mem::take(path));
        self
    }
}

/// Writes `bytes` to `path`, replacing what is there; the parent directory is made where absent.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_with(path, |out| out.write_all(bytes).map_err(FileError::at(path)))
}

/// As [`write()`], with the content that `fill` writes. When `fill` fails, `path` stays as it was.
pub fn write_with<E: From<FileError>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
) -> Result<(), E> {
    let io = |error| FileError::Io { path: path.to_owned(), error };
    let parent = parent(path);
    fs::create_dir_all(parent).map_err(io)?;
    sweep(parent);
    let temporary = Temporary::file(parent).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file());
    fill(&mut out)?;
    out.flush().map_err(io)?;
    drop(out);
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(path).map_err(io)?;
    sync_directory(parent).map_err(io)?;
    Ok(())
}

/// Writes `value` as indented JSON with a final line break, as [`write()`] does.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| FileError::Json { path: path.to_owned(), error })?;
    write(path, format!("{text}\n").as_bytes())
}

/// Reads a JSON file of at most 64 MiB.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let text = read_bounded(path, MAX_JSON_BYTES)?;
    serde_json::from_slice(&text).map_err(|error| FileError::Json { path: path.to_owned(), error })
}

/// Reads a file of at most `limit` bytes.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let got = fs::metadata(path).map_err(FileError::at(path))?.len();
    if got > limit {
        return Err(FileError::TooLong { path: path.to_owned(), limit, got });
    }
    fs::read(path).map_err(FileError::at(path))
}

/// A file as it was when it was read. Equal are two of one file in one state, by whatever path.
#[derive(Debug, Clone)]
pub struct Seen {
    pub path: PathBuf,
    /// Device, inode, length, and the time of the last write in seconds and nanoseconds.
    stamp: (u64, u64, u64, i64, i64),
}

impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        self.stamp == other.stamp
    }
}

impl Seen {
    /// `path`, of which an open file says `metadata`.
    pub fn new(path: &Path, metadata: &Metadata) -> Self {
        let m = metadata;
        let stamp = (m.dev(), m.ino(), m.len(), m.mtime(), m.mtime_nsec());
        Self { path: path.to_owned(), stamp }
    }

    /// Whether another file, or none, has its place now, or it was written to.
    pub fn changed(&self) -> bool {
        !fs::metadata(&self.path).is_ok_and(|now| Self::new(&self.path, &now) == *self)
    }
}

/// Where ladle keeps what it fetches and makes: `LADLE_HOME`, by default `ladle` in the user's cache
/// (`$XDG_CACHE_HOME`, by default `~/.cache`). `None` where none of these is set.
pub fn home() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    set("LADLE_HOME").or_else(|| Some(cache()?.join("ladle")))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Copies a file; an error of the copying names both.
pub fn copy(from: &Path, to: &Path) -> Result<(), FileError> {
    let mut source = File::open(from).map_err(FileError::at(from))?;
    let mut target = File::create(to).map_err(FileError::at(to))?;
    io::copy(&mut source, &mut target).map(drop).map_err(|error| {
        let said = format!("copied from {}: {error}", from.display());
        FileError::at(to)(io::Error::new(error.kind(), said))
    })
}

/// SHA-256 of `bytes` in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file in lower-case hexadecimal; memory holds 1 MiB of it.
pub fn file_sha256(path: &Path) -> Result<String, FileError> {
    let mut file = File::open(path).map_err(FileError::at(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(FileError::at(path))?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update(bytes);
    }
    Ok(hex(&hasher.finalize()))
}

/// Refuses a file whose digest is another than `expected`.
pub fn check_sha256(path: &Path, expected: &str) -> Result<(), FileError> {
    same_digest(path, expected, file_sha256(path)?)
}

/// Refuses `got`, the digest of `path`, where it is another than `expected`.
pub fn same_digest(path: &Path, expected: &str, got: String) -> Result<(), FileError> {
    if got == expected {
        return Ok(());
    }
    Err(FileError::Digest { path: path.to_owned(), expected: expected.to_owned(), got })
}

/// The directory that holds `path`; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes names in a directory survive a power cut.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_read_a_new_file_may_read_an_atomic_one() {
        let directory = tempfile::tempdir().unwrap();
        let [plain, whole] = ["plain", "whole"].map(|name| directory.path().join(name));
        fs::write(&plain, b"x").unwrap();
        write(&whole, b"x").unwrap();
        let [plain, whole] = [plain, whole].map(|path| fs::metadata(path).unwrap().permissions());
        assert_eq!(plain, whole);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nested").join("file");
        write(&path, b"old").unwrap();
        let refused = write_with(&path, |out| {
            out.write_all(b"half").map_err(FileError::at(&path))?;
            Err(FileError::at(&path)(io::Error::other("disk full")))
        });
        assert!(refused.unwrap_err().to_string().ends_with("nested/file: disk full"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn digests_of_bytes_and_files_are_the_published_ones() {
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), abc);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("abc");
        write(&path, b"abc").unwrap();
        check_sha256(&path, abc).unwrap();
        let error = check_sha256(&path, &sha256(b"abd")).unwrap_err().to_string();
        assert!(error.contains(abc) && error.contains("/abc: sha256 is"), "{error}");
    }

    #[test]
    fn json_reads_back_and_errors_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        let value = serde_json::json!({"b": [1, 0.1], "a": "é"});
        write_json(&path, &value).unwrap();
        assert_eq!(read_json::<serde_json::Value>(&path).unwrap(), value);
        write(&path, b"{").unwrap();
        let error = read_json::<serde_json::Value>(&path).unwrap_err().to_string();
        assert!(error.contains("a.json: document: expected JSON, got EOF"), "{error}");
        let error = read_bounded(&path, 0).unwrap_err().to_string();
        assert!(error.contains("expected at most 0 bytes, got 1"), "{error}");
    }
}
