//! Digests of weight files, checked against the manifest, and of a soup as a whole.

use std::{collections::BTreeMap, path::Path};

use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{checkpoint::Checkpoint, error::SoupError, weights::WeightFile};
use crate::files::{file_sha256, hex, same_digest, sha256};

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

/// The files beside the base's weights and configuration that decide what is answered.
const TEXTS: [&str; 5] = [
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// The parts that identify a soup.
pub(super) struct Parts<'a> {
    /// The text of `soup.toml`.
    pub text: &'a str,
    /// The digests that it lists for the soup's weight files.
    pub listed: &'a BTreeMap<String, String>,
    /// Those of the base's.
    pub pinned: &'a BTreeMap<String, String>,
    /// The soup's directory.
    pub dir: &'a Path,
    /// The weight files in it.
    pub own: Vec<&'a WeightFile>,
    /// The settings of its adapters and full backbones.
    pub settings: Vec<&'a Value>,
    /// The base's directory.
    pub base_dir: &'a Path,
    pub base: &'a Checkpoint,
}

impl Parts<'_> {
    /// Checks that the manifest lists exactly the soup's weight files; with `verify`, also that the
    /// digests are those of the files' bytes.
    pub fn check(&self, verify: bool) -> Result<(), SoupError> {
        let base: Vec<_> = self.base.files().iter().collect();
        no_stray("sha256", self.dir, &self.own, self.listed)?;
        no_stray("base.sha256", self.base_dir, &base, self.pinned)?;
        let key_of = |file: &WeightFile| key(self.dir, file);
        if let Some(file) = self.own.iter().find(|file| !self.listed.contains_key(&key_of(file))) {
            return Err(SoupError::Unlisted {
                path: file.path.clone(),
                key: format!("sha256.{:?}", key_of(file)),
                got: sha256(file.bytes()),
            });
        }
        if !verify {
            return Ok(());
        }
        let own = self.own.iter().map(|file| (*file, self.listed.get(&key_of(file))));
        let base = base.iter().map(|file| (*file, self.pinned.get(&key(self.base_dir, file))));
        let expected = |(file, digest): (_, Option<_>)| Some((file, digest?));
        let files: Vec<(&WeightFile, &String)> = own.chain(base).filter_map(expected).collect();
        let same = |file: &WeightFile, expected: &str| {
            same_digest(&file.path, expected, sha256(file.bytes()))
        };
        Ok(files.into_par_iter().try_for_each(|(file, expected)| same(file, expected))?)
    }

    /// The soup's digest. Weights of the base that are not pinned by content are identified by their
    /// tensors' names, types and places, and their size.
    pub fn digest(&self) -> Result<String, SoupError> {
        let mut hasher = Sha256::new();
        let mut part = |bytes: &[u8]| {
            // Length first: no two sequences of parts read the same.
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(self.text.as_bytes());
        for settings in &self.settings {
            part(settings.to_string().as_bytes());
        }
        part(self.base.config().to_string().as_bytes());
        for name in TEXTS {
            let path = self.base_dir.join(name);
            part(name.as_bytes());
            let digest = if path.is_file() { file_sha256(&path)? } else { String::new() };
            part(digest.as_bytes());
        }
        for file in self.base.files() {
            let key = key(self.base_dir, file);
            part(key.as_bytes());
            part(self.pinned.get(&key).map_or("", String::as_str).as_bytes());
            part(file.header());
            part(&(file.bytes().len() as u64).to_le_bytes());
        }
        Ok(hex(&hasher.finalize()))
    }
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
