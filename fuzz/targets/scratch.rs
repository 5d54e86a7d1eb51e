//! A file whose content is the fuzzer's, for doors that take a path.

use std::{fs, path::PathBuf, sync::OnceLock};

/// Writes `bytes` to the one scratch file of this process, in memory where the system has that.
pub fn file(bytes: &[u8]) -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
    });
    let path = dir.path().join("input");
    fs::write(&path, bytes).expect("written");
    path
}
