//! What an import leaves beside a model: where it came from and what belongs to it.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::error::ImportError;
use crate::files::{FileError, check_sha256, file_sha256, read_json, write_json};

/// File name of the record.
const RECORD: &str = "ladle.json";

/// What was imported, as `ladle.json` beside the model keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of this record.
    pub format: u32,
    /// The source: a named model, a hub id, or a file's name.
    pub source: String,
    /// sha256 of the file, or the hub's commit.
    pub version: String,
    /// Storage type chosen at import, for what was dequantised, and how matrices were quantised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Every file by name.
    pub files: BTreeMap<String, FileRecord>,
}

/// One file of an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Size in bytes.
    pub bytes: u64,
    /// Digest in hexadecimal.
    pub sha256: String,
}

impl Record {
    /// The record of an imported model; `None` where `dir` has none, or has lost files that it
    /// names (by presence and size; [`verify`] compares digests).
    pub fn read(dir: &Path) -> Result<Option<Self>, ImportError> {
        let path = dir.join(RECORD);
        let record: Self = match read_json(&path) {
            Ok(record) => record,
            Err(FileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let whole = record.files.iter().all(|(name, file)| {
            fs::metadata(dir.join(name)).is_ok_and(|meta| meta.len() == file.bytes)
        });
        Ok(whole.then_some(record))
    }

    /// Source, storage type and version, for people.
    pub(super) fn describe(&self) -> String {
        describe(&self.source, self.dtype.as_deref(), &self.version)
    }

    /// Records the files of `dir`.
    pub(super) fn write(
        dir: &Path,
        source: String,
        dtype: Option<String>,
        version: String,
    ) -> Result<(), ImportError> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(ImportError::io(dir))? {
            let path = entry.map_err(ImportError::io(dir))?.path();
            let bytes = fs::metadata(&path).map_err(ImportError::io(&path))?.len();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let record = FileRecord { bytes, sha256: file_sha256(&path)? };
            files.insert(name.unwrap_or_default(), record);
        }
        let record = Self { format: 1, source, version, dtype, files };
        Ok(write_json(&dir.join(RECORD), &record)?)
    }
}

/// Compares the files of an imported model, but those that are `known`, with the digests that its
/// import recorded. A directory without a record has nothing to compare with.
pub(super) fn verify(dir: &Path, known: impl Fn(&str) -> bool) -> Result<(), ImportError> {
    let Some(record) = Record::read(dir)? else { return Ok(()) };
    let unknown = record.files.iter().filter(|(name, _)| !known(name));
    for (name, file) in unknown {
        check_sha256(&dir.join(name), &file.sha256)?;
    }
    Ok(())
}

/// An import for people.
pub(super) fn describe(source: &str, dtype: Option<&str>, version: &str) -> String {
    let dtype = dtype.map(|dtype| format!(" in {dtype}")).unwrap_or_default();
    let version: String = version.chars().take(12).collect();
    format!("{source}{dtype} ({version})")
}
