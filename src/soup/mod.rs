//! Soups on disk: a manifest, a base, and backbones that are PEFT adapters or full checkpoints.
//!
//! [`Soup::open`] reads all of it and holds every part against the base: whatever it returns can
//! be merged. Weights come only from safetensors, mapped; nothing is copied.

pub mod adapter;
pub mod checkpoint;
mod digest;
pub mod geometry;
pub mod init;
pub mod inspect;
pub mod manifest;
pub mod peft;
pub mod weights;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde_json::Value;

pub use adapter::{Adapter, LoraModule};
pub use checkpoint::Checkpoint;
pub use manifest::{BackboneKind, BaseSource, Manifest, ManifestError};
pub use weights::{TensorSpec, WeightError};

use crate::{
    files::{FileError, read_bounded, read_json},
    model::config::ModelConfig,
    preference::MixingMatrix,
};
use weights::{WeightFile, first_non_finite};

/// Largest manifest that is read, in bytes.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// File name of the measured front inside a soup.
pub const FRONT: &str = "front.json";

/// Why a soup was refused.
#[derive(Debug, thiserror::Error)]
pub enum SoupError {
    /// The manifest is wrong.
    #[error("{path}: {error}", path = path.display())]
    Manifest {
        /// Path of the manifest.
        path: PathBuf,
        /// What is wrong.
        error: ManifestError,
    },
    /// Weights, their configuration or their directory are wrong.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A path leads out of the soup's directory, through a link.
    #[error(
        "{path}: leaves the soup: it leads to {target}, expected a file inside {soup}",
        path = path.display(), target = target.display(), soup = soup.display()
    )]
    Outside {
        /// The path as the soup names it.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
        /// The soup's directory.
        soup: PathBuf,
    },
    /// A weight file has no digest in the manifest.
    #[error("{path}: no sha256 in soup.toml, expected {key} = \"{got}\"", path = path.display())]
    Unlisted {
        /// The file.
        path: PathBuf,
        /// Its key in the table.
        key: String,
        /// The digest that it has.
        got: String,
    },
    /// A digest for a file that is no part of the soup.
    #[error("{table}.{key:?}: names no weight file of this soup (those are: {known})")]
    Stray {
        /// `sha256` or `base.sha256`.
        table: &'static str,
        /// The key.
        key: String,
        /// Keys that would be right.
        known: String,
    },
    /// A file cannot be read or written, or is not the one that the manifest describes.
    #[error(transparent)]
    File(#[from] FileError),
    /// A full backbone is not a model of the base's kind.
    #[error("{path}: {what}: expected {expected} (as in the base), got {got}", path = path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Tensor or key.
        what: String,
        /// The base's.
        expected: String,
        /// The backbone's.
        got: String,
    },
    /// A full backbone over a quantised base.
    #[error(
        "{path}: a full checkpoint over a base whose {tensor} is {dtype}: expected adapters, or a \
         base in bf16, f16 or f32",
        path = path.display()
    )]
    QuantisedBase {
        /// The backbone.
        path: PathBuf,
        /// A quantised tensor of the base.
        tensor: String,
        /// Its storage type.
        dtype: crate::kernels::Dtype,
    },
    /// The base is not where the manifest says.
    #[error(
        "base: nothing at {at}, expected a Hugging Face directory or a GGUF file; name another in \
         soup.toml, or fetch one with `ladle import`",
        at = at.display()
    )]
    Base {
        /// Where it should be.
        at: PathBuf,
    },
    /// The base is an id or a GGUF file, and the options name no directory.
    #[error("base: {spec} is not a directory: expected it to be imported and found first")]
    Unresolved {
        /// The id or file.
        spec: String,
    },
}

/// How to open a soup.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Directory of the base, instead of the one that the manifest names; needed where the manifest
    /// names an id or a GGUF file.
    pub base: Option<PathBuf>,
    /// Read every weight once: compare digests, refuse NaN and infinities.
    pub verify_digests: bool,
}

/// One tuned model.
pub enum Backbone {
    /// θᵢ = θ_sft + adapter.
    Adapter(Adapter),
    /// θᵢ in full.
    Full(Checkpoint),
}

impl Backbone {
    /// Its weight files.
    pub fn files(&self) -> &[WeightFile] {
        match self {
            Self::Adapter(adapter) => std::slice::from_ref(adapter.file()),
            Self::Full(checkpoint) => checkpoint.files(),
        }
    }

    fn untie(&mut self) {
        match self {
            Self::Adapter(adapter) => adapter.untie(),
            Self::Full(checkpoint) => checkpoint.untie(),
        }
    }
}

/// An opened soup: everything present, mapped, and fitting the base.
pub struct Soup {
    /// Its directory.
    pub dir: PathBuf,
    /// The checked manifest.
    pub manifest: Manifest,
    /// The base model.
    pub base: Checkpoint,
    /// What all models of the soup compute. Its head is tied where the base's is and no adapter
    /// parts it from the embedding.
    pub config: ModelConfig,
    /// Where the base was found.
    pub base_dir: PathBuf,
    /// Adapter that makes θ_sft of the base.
    pub sft: Option<Adapter>,
    /// Backbones, in the order of the columns of B.
    pub backbones: Vec<Backbone>,
    /// The matrix that maps μ to λ.
    pub mixing: MixingMatrix,
    /// The measured front (`front.json`), where the soup has one.
    pub front: Option<Value>,
    /// SHA-256, in hexadecimal, over the manifest, the settings of the adapters and the digests of
    /// all weights: what caches and answers identify the soup by.
    pub digest: String,
}

impl Soup {
    /// Opens and checks the soup in `dir`.
    pub fn open(dir: &Path, options: &OpenOptions) -> Result<Self, SoupError> {
        let (text, manifest) = read_manifest(dir)?;
        let refuse = |error| SoupError::Manifest { path: dir.join(manifest::FILE), error };
        let mixing = manifest.mixing().map_err(refuse)?;
        let base_dir = match &options.base {
            Some(base) => base.clone(),
            None => base_dir(dir, &manifest.base_source(dir)?)?,
        };
        let mut base = Checkpoint::open(&base_dir)?;
        let mut config = base.check()?;
        let root = fs::canonicalize(dir).map_err(FileError::at(dir))?;
        let adapter = |path: &Path, sft: Option<&Adapter>| {
            Ok::<_, SoupError>(open_adapter(&root, path)?.fit(&base, sft, &config)?)
        };
        let sft = manifest.sft.as_ref().map(|sft| adapter(&root.join(&sft.path), None));
        let mut sft = sft.transpose()?;
        let mut backbones = manifest
            .backbones
            .iter()
            .map(|entry| {
                let path = root.join(&entry.path);
                match entry.kind {
                    BackboneKind::Adapter => adapter(&path, sft.as_ref()).map(Backbone::Adapter),
                    BackboneKind::Full => {
                        open_full(&root, &path, &base, &config).map(Backbone::Full)
                    }
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        let unties = |backbone: &Backbone| matches!(backbone, Backbone::Adapter(a) if a.unties());
        if sft.as_ref().is_some_and(Adapter::unties) || backbones.iter().any(unties) {
            config = config.untied();
            base.untie();
            sft.iter_mut().for_each(Adapter::untie);
            backbones.iter_mut().for_each(Backbone::untie);
        }
        let front = root.join(FRONT);
        let front = if front.is_file() { Some(read_json(&front)?) } else { None };
        let mut soup = Self {
            dir: root,
            manifest,
            base,
            config,
            base_dir,
            sft,
            backbones,
            mixing,
            front,
            digest: String::new(),
        };
        if options.verify_digests {
            soup.verify_finite()?;
        }
        soup.digest = soup.checked_digest(&text, options.verify_digests)?;
        Ok(soup)
    }

    /// All adapters: the supervised one first, then the backbones'.
    pub fn adapters(&self) -> impl Iterator<Item = &Adapter> {
        let backbones = self.backbones.iter().filter_map(|backbone| match backbone {
            Backbone::Adapter(adapter) => Some(adapter),
            Backbone::Full(_) => None,
        });
        self.sft.iter().chain(backbones)
    }

    fn verify_finite(&self) -> Result<(), SoupError> {
        let adapters = self.adapters().flat_map(|adapter| {
            adapter.tensors().map(|(name, tensor)| (adapter.file().path.clone(), name, tensor))
        });
        let full = self.backbones.iter().filter_map(|backbone| match backbone {
            Backbone::Full(checkpoint) => Some(checkpoint),
            Backbone::Adapter(_) => None,
        });
        let full = full.flat_map(|checkpoint| {
            let named = checkpoint.tensors().iter();
            named.map(|(name, tensor)| (checkpoint.file_of(name), name.clone(), tensor))
        });
        let tensors: Vec<_> = adapters.chain(full).collect();
        tensors.into_par_iter().try_for_each(|(path, name, tensor)| {
            match first_non_finite(tensor) {
                None => Ok(()),
                Some(position) => Err(SoupError::Weights(WeightError::Tensor {
                    path,
                    tensor: name,
                    expected: "finite values".to_owned(),
                    got: format!("NaN or infinity at element {position}"),
                })),
            }
        })
    }
}

/// Reads and checks the manifest of the soup in `dir`; returns its text as well.
pub fn read_manifest(dir: &Path) -> Result<(String, Manifest), SoupError> {
    let path = dir.join(manifest::FILE);
    let text = String::from_utf8(read_bounded(&path, MAX_MANIFEST_BYTES)?)
        .map_err(|error| FileError::at(&path)(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    match Manifest::parse(&text) {
        Ok(manifest) => Ok((text, manifest)),
        Err(error) => Err(SoupError::Manifest { path, error }),
    }
}

impl Manifest {
    /// Where the base of the soup in `dir` is to be found.
    pub fn base_source(&self, dir: &Path) -> Result<BaseSource, SoupError> {
        let refuse = |error| SoupError::Manifest { path: dir.join(manifest::FILE), error };
        self.base.source().map_err(refuse)
    }
}

/// The directory of a base that needs no import.
fn base_dir(dir: &Path, source: &BaseSource) -> Result<PathBuf, SoupError> {
    let spec = match source {
        BaseSource::Path(path) => return local_base(dir, path),
        BaseSource::Id { id, .. } => id.clone(),
        BaseSource::Gguf(path) => path.display().to_string(),
    };
    Err(SoupError::Unresolved { spec })
}

/// A base by its path relative to the soup in `dir`; refused where nothing is there.
pub fn local_base(dir: &Path, path: &Path) -> Result<PathBuf, SoupError> {
    let at = dir.join(path);
    if at.exists() { Ok(at) } else { Err(SoupError::Base { at }) }
}

/// Refuses a file or directory that a link leads out of the soup.
fn stay_inside(root: &Path, path: &Path) -> Result<(), SoupError> {
    let target = fs::canonicalize(path).map_err(FileError::at(path))?;
    if target.starts_with(root) {
        return Ok(());
    }
    Err(SoupError::Outside { path: path.to_owned(), target, soup: root.to_owned() })
}

fn open_adapter(root: &Path, path: &Path) -> Result<Adapter, SoupError> {
    stay_inside(root, path)?;
    let adapter = Adapter::open(path)?;
    stay_inside(root, &path.join(adapter::CONFIG))?;
    stay_inside(root, &adapter.file().path)?;
    Ok(adapter)
}

fn open_full(
    root: &Path,
    path: &Path,
    base: &Checkpoint,
    config: &ModelConfig,
) -> Result<Checkpoint, SoupError> {
    stay_inside(root, path)?;
    let checkpoint = full_backbone(path, base, config)?;
    stay_inside(root, &path.join("config.json"))?;
    for file in checkpoint.files() {
        stay_inside(root, &file.path)?;
    }
    Ok(checkpoint)
}

/// A checkpoint that computes what the base (of `config`) does, from other weights.
fn full_backbone(
    path: &Path,
    base: &Checkpoint,
    config: &ModelConfig,
) -> Result<Checkpoint, SoupError> {
    let quantised = |checkpoint: &Checkpoint| {
        let mut tensors = checkpoint.tensors().iter();
        let (name, tensor) = tensors.find(|(_, tensor)| tensor.dtype().blocks().is_some())?;
        Some((name.clone(), tensor.dtype()))
    };
    if let Some((tensor, dtype)) = quantised(base) {
        return Err(SoupError::QuantisedBase { path: path.to_owned(), tensor, dtype });
    }
    let mut checkpoint = Checkpoint::open(path)?;
    let mismatch = |path, what, expected, got| SoupError::Mismatch { path, what, expected, got };
    if let Some((key, expected, got)) = config.difference(&checkpoint.model()?) {
        return Err(mismatch(path.join("config.json"), key.to_owned(), expected, got));
    }
    checkpoint.check()?;
    if let Some((name, dtype)) = quantised(&checkpoint) {
        let (file, what) = (checkpoint.file_of(&name), format!("tensor {name}"));
        return Err(mismatch(file, what, "f32, f16 or bf16".into(), dtype.to_string()));
    }
    Ok(checkpoint)
}
