//! Models from the Hugging Face hub: one commit, the files that serving needs, resumed where an
//! earlier download stopped.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use hf_hub::{
    HFClient, HFError, HFRepositorySync, RepoTypeModel,
    progress::{DownloadEvent, ProgressEvent, ProgressHandler},
    repository::RepoTreeEntry,
};
use serde_json::Value;

use super::{error::ImportError, progress::Progress};
use crate::files::{check_sha256, read_json};

/// Bytes asked for at once: what an interruption can lose.
const CHUNK: u64 = 32 << 20;
/// Pauses before asking again after a failure of the network.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8)];
/// `model_type`s that ladle has a decoder for.
const MODEL_TYPES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];
/// Files beside the weights that are fetched where they exist.
const COMPANIONS: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE",
    "README.md",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Whether a file belongs to a model as ladle keeps it.
pub fn belongs(name: &str) -> bool {
    COMPANIONS.contains(&name) || name == INDEX || name.ends_with(".safetensors")
}

/// A file as the hub lists it.
struct Listed {
    size: u64,
    /// Named for large files, by some hubs.
    sha256: Option<String>,
}

fn listed(entry: RepoTreeEntry) -> Option<(String, Listed)> {
    match entry {
        RepoTreeEntry::File { path, size, lfs, .. } => {
            Some((path, Listed { size, sha256: lfs.and_then(|lfs| lfs.sha256) }))
        }
        RepoTreeEntry::Directory { .. } => None,
    }
}

/// A model repository on the hub.
pub struct Hub {
    id: String,
    revision: Option<String>,
    repository: HFRepositorySync<RepoTypeModel>,
}

impl Hub {
    /// Prepares access, with the token and the endpoint of the environment (`HF_TOKEN`,
    /// `HF_ENDPOINT`). Nothing is sent yet.
    pub fn new(
        id: &str,
        revision: Option<&str>,
        endpoint: Option<&str>,
    ) -> Result<Self, ImportError> {
        let refuse = |e: HFError| ImportError::Hub { id: id.to_owned(), reason: e.to_string() };
        let mut builder = HFClient::builder().cache_enabled(false);
        if let Some(endpoint) = endpoint {
            builder = builder.endpoint(endpoint);
        }
        let (owner, name) = hf_hub::split_id(id);
        let repository = builder.build_sync().map_err(refuse)?.model(owner, name);
        Ok(Self { id: id.to_owned(), revision: revision.map(str::to_owned), repository })
    }

    /// Downloads the model into `out` and returns its commit. Parts wait in `downloads`, by commit,
    /// until the model is whole.
    pub fn download(&self, downloads: &Path, out: &Path) -> Result<String, ImportError> {
        let info =
            self.ask(|| self.repository.info().maybe_revision(self.revision.clone()).send())?;
        let commit = info.sha.ok_or_else(|| self.refuse("the hub named no commit".to_owned()))?;
        let entries = self.ask(|| self.repository.list_tree().revision(commit.as_str()).send())?;
        let listed: BTreeMap<String, Listed> = entries.into_iter().filter_map(listed).collect();
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
        let config: Value = read_json(&waiting.join("config.json"))?;
        let model_type = config["model_type"].as_str().unwrap_or_default();
        if !MODEL_TYPES.contains(&model_type) {
            let known = MODEL_TYPES.join(", ");
            return Err(self.refuse(format!("model_type {model_type:?}: expected {known}")));
        }
        let companions = COMPANIONS.iter().skip(1).filter(|name| listed.contains_key(**name));
        files.extend(companions.map(|name| (*name).to_owned()));
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
        let plain = |shard: &String| shard.ends_with(".safetensors") && !shard.contains('/');
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

    /// Completes one file in `waiting`, from where it stopped.
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
        let progress = Arc::new(Progress::start(name, size));
        while have < size {
            let end = size.min(have.saturating_add(CHUNK));
            let bytes = self.ask(|| {
                let shown = Shown { progress: progress.clone(), from: have };
                let request = self.repository.download_file_to_bytes().filename(name);
                request.revision(commit).range(have..end).progress(shown).send()
            })?;
            let wanted = usize::try_from(end - have).unwrap_or(usize::MAX);
            if bytes.len() != wanted {
                let got = bytes.len();
                let reason = format!("{name}: asked for bytes {have}..{end}, got {got} bytes");
                return Err(self.refuse(reason));
            }
            file.write_all(&bytes).map_err(ImportError::io(&part))?;
            have = end;
            progress.set(have);
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

    /// Asks the hub, again after a pause where the network failed.
    fn ask<T>(&self, mut request: impl FnMut() -> Result<T, HFError>) -> Result<T, ImportError> {
        let mut pauses = PAUSES.iter();
        loop {
            let error = match request() {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let hint = match &error {
                HFError::AuthRequired { .. } | HFError::Forbidden { .. } => {
                    "; a gated or private model needs HF_TOKEN"
                }
                HFError::Request { .. } | HFError::Http { .. } => {
                    if let Some(pause) = pauses.next() {
                        thread::sleep(*pause);
                        continue;
                    }
                    "; what was downloaded is kept, run the command again to resume"
                }
                _ => "",
            };
            return Err(self.refuse(format!("{error}{hint}")));
        }
    }

    fn refuse(&self, reason: String) -> ImportError {
        ImportError::Hub { id: self.id.clone(), reason }
    }
}

/// Shows the bytes of one request on the bar of its file.
struct Shown {
    progress: Arc<Progress>,
    from: u64,
}

impl ProgressHandler for Shown {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Download(DownloadEvent::Progress { files }) = event
            && let Some(file) = files.first()
        {
            self.progress.set(self.from.saturating_add(file.bytes_completed));
        }
    }
}
