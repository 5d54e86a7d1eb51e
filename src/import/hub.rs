//! Models from the Hugging Face hub: one commit, the files that serving needs, resumed where an
//! earlier download stopped.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{ErrorKind, Read, Write},
    path::Path,
};

use serde_json::Value;

use super::{
    error::ImportError,
    fetch::{Client, Failure, patiently},
    packed::unpacked,
    progress::Progress,
};
use crate::{
    files::{check_sha256, read_json},
    model::config::ModelConfig,
    soup::checkpoint::{COMPANIONS, INDEX, SINGLE},
};

/// Bytes asked for at once.
const CHUNK: u64 = 32 << 20;
/// Documents about a model, fetched where it has them.
const NOTICES: [&str; 2] = ["LICENSE", "README.md"];

/// Whether a file is part of a model as ladle keeps it.
pub fn is_kept(name: &str) -> bool {
    let beside = COMPANIONS.contains(&name) || NOTICES.contains(&name);
    beside || name == INDEX || name.ends_with(".safetensors")
}

/// A file as the hub lists it.
struct Listed {
    size: u64,
    /// Digest of a large file; hubs list none for small ones.
    sha256: Option<String>,
}

/// A file's path in the repository and what is known of it; `None` for a directory.
fn listed(entry: &Value) -> Option<(String, Listed)> {
    let path = entry["path"].as_str().filter(|_| entry["type"] == "file")?;
    let sha256 = entry["lfs"]["oid"].as_str().map(str::to_owned);
    Some((path.to_owned(), Listed { size: entry["size"].as_u64()?, sha256 }))
}

/// A model repository on the hub.
pub struct Hub {
    id: String,
    revision: Option<String>,
    client: Client,
}

impl Hub {
    /// Prepares access; nothing is sent yet.
    pub fn new(
        id: &str,
        revision: Option<&str>,
        endpoint: Option<&str>,
    ) -> Result<Self, ImportError> {
        let client = Client::new(endpoint)
            .map_err(|e| ImportError::Hub { id: id.to_owned(), reason: e.to_string() })?;
        Ok(Self { id: id.to_owned(), revision: revision.map(str::to_owned), client })
    }

    /// Downloads the model into `out` and returns its commit. Parts wait in `downloads`, by commit,
    /// until the model is whole.
    pub fn download(&self, downloads: &Path, out: &Path) -> Result<String, ImportError> {
        let commit = self.commit()?;
        let listed = self.listing(&commit)?;
        let waiting = downloads.join(format!("{}@{commit}", self.id.replace('/', "--")));
        fs::create_dir_all(&waiting).map_err(ImportError::io(&waiting))?;

        // The configuration first: a model that cannot be served is refused before its weights.
        let mut files = vec!["config.json".to_owned()];
        self.require(&listed, "config.json")?;
        self.require(&listed, "tokenizer.json")?;
        let fetch = |name: &str| match listed.get(name) {
            Some(file) => self.fetch(name, file, &commit, &waiting),
            None => Err(self.refuse(format!("has no {name}"))),
        };
        fetch("config.json")?;
        let path = waiting.join("config.json");
        let config: Value = read_json(&path)?;
        let config = unpacked(&config, &path)?.unwrap_or(config);
        ModelConfig::from_json(&config).map_err(|e| self.refuse(e.to_string()))?;
        let beside = COMPANIONS.iter().skip(1).chain(&NOTICES);
        let beside = beside.filter(|name| listed.contains_key(**name));
        files.extend(beside.map(|name| (*name).to_owned()));
        if listed.contains_key(SINGLE) {
            files.push(SINGLE.to_owned());
        } else {
            self.require(&listed, INDEX)?;
            fetch(INDEX)?;
            files.push(INDEX.to_owned());
            files.extend(self.shards(&waiting, &listed)?);
        }
        for name in &files {
            fetch(name)?;
        }
        for name in &files {
            let from = waiting.join(name);
            fs::rename(&from, out.join(name)).map_err(ImportError::io(&from))?;
        }
        // Empty now; a file that something else put there is not ours to remove.
        let _ = fs::remove_dir(&waiting);
        Ok(commit)
    }

    /// The commit that the revision names.
    fn commit(&self) -> Result<String, ImportError> {
        let revision = self.revision.as_deref().map(|revision| {
            // A branch may hold a slash, which here must not end the segment.
            format!("/revision/{}", revision.replace('/', "%2F"))
        });
        let path = format!("/api/models/{}{}", self.id, revision.unwrap_or_default());
        let (info, _) = self.client.json(&self.client.url(&path)).map_err(self.failed())?;
        let commit = info["sha"].as_str().unwrap_or_default();
        if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(self.refuse(format!("the hub named no commit: {}", info["sha"])));
        }
        Ok(commit.to_owned())
    }

    /// The files at the top of the repository.
    fn listing(&self, commit: &str) -> Result<BTreeMap<String, Listed>, ImportError> {
        let mut files = BTreeMap::new();
        let mut page = Some(self.client.url(&format!("/api/models/{}/tree/{commit}", self.id)));
        while let Some(url) = page {
            let (entries, next) = self.client.json(&url).map_err(self.failed())?;
            let entries = entries
                .as_array()
                .ok_or_else(|| self.refuse(format!("{url}: expected a list of files")))?;
            files.extend(entries.iter().filter_map(listed));
            page = next.filter(|next| *next != url);
        }
        Ok(files)
    }

    /// The shards that the index names, each of which must be listed.
    fn shards(
        &self,
        waiting: &Path,
        listed: &BTreeMap<String, Listed>,
    ) -> Result<Vec<String>, ImportError> {
        let index: Value = read_json(&waiting.join(INDEX))?;
        let map = index["weight_map"].as_object().into_iter().flatten();
        let mut shards: Vec<String> =
            map.filter_map(|(_, shard)| shard.as_str().map(str::to_owned)).collect();
        shards.sort();
        shards.dedup();
        // The name goes into an address and into a path.
        let plain = |shard: &String| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            shard.ends_with(".safetensors") && !shard.starts_with('.') && shard.chars().all(plain)
        };
        if let Some(shard) =
            shards.iter().find(|shard| !plain(shard) || !listed.contains_key(*shard))
        {
            return Err(self.refuse(format!("{INDEX} names {shard:?}, which is no shard of it")));
        }
        Ok(shards)
    }

    fn require(&self, listed: &BTreeMap<String, Listed>, name: &str) -> Result<(), ImportError> {
        if listed.contains_key(name) {
            return Ok(());
        }
        let hint = match name {
            "tokenizer.json" => " (save it with transformers' fast tokenizer)",
            INDEX => " nor model.safetensors (weights are never read from pickles)",
            _ => "",
        };
        Err(self.refuse(format!("has no {name}{hint}")))
    }

    /// Downloads one file into `waiting`, or the rest of it that an earlier download left out.
    fn fetch(
        &self,
        name: &str,
        listed: &Listed,
        commit: &str,
        waiting: &Path,
    ) -> Result<(), ImportError> {
        let whole = waiting.join(name);
        if whole.is_file() {
            return Ok(());
        }
        let size = listed.size;
        let part = waiting.join(format!("{name}.part"));
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&part)
            .map_err(ImportError::io(&part))?;
        let mut have = file.metadata().map_err(ImportError::io(&part))?.len();
        if have > size {
            file.set_len(0).map_err(ImportError::io(&part))?;
            have = 0;
        }
        let progress = Progress::start(name, size);
        let url = self.client.url(&format!("/{}/resolve/{commit}/{name}", self.id));
        while have < size {
            let end = size.min(have.saturating_add(CHUNK));
            // What arrived before a failure is kept: the next attempt goes on from there.
            patiently(|| {
                let mut body = self.client.range(&url, have, end)?.take(end - have);
                let mut buffer = vec![0; 1 << 16];
                while have < end {
                    let read = body.read(&mut buffer).map_err(|e| Failure::broken(&url, &e))?;
                    let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                        return Err(Failure::broken(&url, &ErrorKind::UnexpectedEof.into()));
                    };
                    file.write_all(bytes)
                        .map_err(|e| Failure::lasting(format!("{}: {e}", part.display())))?;
                    have += read as u64;
                    progress.set(have);
                }
                Ok(())
            })
            .map_err(self.failed())?;
        }
        progress.finish();
        file.sync_all().map_err(ImportError::io(&part))?;
        if let Some(expected) = &listed.sha256
            && let Err(damaged) = check_sha256(&part, expected)
        {
            // Resuming would only append to the damage.
            fs::remove_file(&part).map_err(ImportError::io(&part))?;
            return Err(damaged.into());
        }
        fs::rename(&part, &whole).map_err(ImportError::io(&whole))
    }

    fn failed(&self) -> impl Fn(Failure) -> ImportError {
        |failure| self.refuse(failure.to_string())
    }

    fn refuse(&self, reason: String) -> ImportError {
        ImportError::Hub { id: self.id.clone(), reason }
    }
}
