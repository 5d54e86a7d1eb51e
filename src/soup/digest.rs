//! Digests: of the weight files, against the manifest, and of a soup as a whole.

use std::{collections::BTreeMap, path::Path};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{Soup, SoupError, weights::WeightFile};
use crate::files::{FileError, hex, same_digest, sha256};

/// The key of `file` in the manifest: its path relative to `root`, with `/`.
pub fn key(root: &Path, file: &WeightFile) -> String {
    let path = file.path.strip_prefix(root).unwrap_or(&file.path);
    let parts: Vec<_> = path.components().map(|c| c.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}

/// Digests of `files` by key, in parallel.
pub fn of_files<'a>(
    root: &Path,
    files: impl Iterator<Item = &'a WeightFile>,
) -> BTreeMap<String, String> {
    let files: Vec<_> = files.collect();
    files.into_par_iter().map(|file| (key(root, file), sha256(file.bytes()))).collect()
}

impl Soup {
    /// The weight files inside the soup: the supervised adapter's and the backbones'.
    fn own_files(&self) -> impl Iterator<Item = &WeightFile> {
        let sft = self.sft.iter().map(|sft| sft.file());
        sft.chain(self.backbones.iter().flat_map(|backbone| backbone.files()))
    }

    /// Checks the manifest's digests (with `verify`, against the files' bytes) and returns the soup's.
    pub(super) fn checked_digest(&self, manifest: &str, verify: bool) -> Result<String, SoupError> {
        let own: Vec<_> = self.own_files().collect();
        let base: Vec<_> = self.base.files().iter().collect();
        let listed = &self.manifest.sha256;
        let pinned = &self.manifest.base.sha256;
        no_stray("sha256", &self.dir, &own, listed)?;
        no_stray("base.sha256", &self.base_dir, &base, pinned)?;
        if let Some(file) = own.iter().find(|file| !listed.contains_key(&key(&self.dir, file))) {
            return Err(SoupError::Unlisted {
                path: file.path.clone(),
                key: format!("sha256.{:?}", key(&self.dir, file)),
                got: sha256(file.bytes()),
            });
        }
        if verify {
            let files = own.iter().map(|file| (key(&self.dir, file), *file, listed));
            let base = base.iter().map(|file| (key(&self.base_dir, file), *file, pinned));
            files.chain(base).collect::<Vec<_>>().into_par_iter().try_for_each(
                |(key, file, table)| match table.get(&key) {
                    Some(expected) => same(file, expected),
                    None => Ok(()),
                },
            )?;
        }
        let mut hasher = Sha256::new();
        let mut part = |bytes: &[u8]| {
            // Length first: no two sequences of parts read the same.
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(manifest.as_bytes());
        for adapter in self.adapters() {
            part(adapter.document().to_string().as_bytes());
        }
        part(self.base.config().to_string().as_bytes());
        for file in base {
            // A base that is not pinned by content is told by its tensors and its size.
            let key = key(&self.base_dir, file);
            part(key.as_bytes());
            match pinned.get(&key) {
                Some(digest) => part(digest.as_bytes()),
                None => {
                    part(file.header());
                    part(&(file.bytes().len() as u64).to_le_bytes());
                }
            }
        }
        Ok(hex(&hasher.finalize()))
    }
}

fn same(file: &WeightFile, expected: &str) -> Result<(), FileError> {
    same_digest(&file.path, expected, sha256(file.bytes()))
}

fn no_stray(
    table: &'static str,
    root: &Path,
    files: &[&WeightFile],
    digests: &BTreeMap<String, String>,
) -> Result<(), SoupError> {
    let known: Vec<String> = files.iter().map(|file| key(root, file)).collect();
    match digests.keys().find(|listed| !known.contains(listed)) {
        Some(stray) => Err(SoupError::Stray { table, key: stray.clone(), known: known.join(", ") }),
        None => Ok(()),
    }
}
