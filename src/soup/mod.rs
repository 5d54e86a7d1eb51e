//! Soups on disk: a manifest, a base, and backbones that are PEFT adapters or full checkpoints.
//!
//! [`Soup::open`] reads all of it and holds every part against the base: whatever it returns can
//! be merged. Weights come only from safetensors, mapped; nothing is copied.

pub mod adapter;
pub mod checkpoint;
mod digest;
pub mod init;
pub mod inspect;
pub mod manifest;
mod peft;
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
}

/// An opened soup: everything present, mapped, and fitting the base.
pub struct Soup {
    /// Its directory.
    pub dir: PathBuf,
    /// The checked manifest.
    pub manifest: Manifest,
    /// The base model.
    pub base: Checkpoint,
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
        let base = Checkpoint::open(&base_dir)?;
        let root = fs::canonicalize(dir).map_err(FileError::at(dir))?;
        let sft = match &manifest.sft {
            Some(sft) => Some(open_adapter(&root, &root.join(&sft.path), &base)?),
            None => None,
        };
        let backbones = manifest
            .backbones
            .iter()
            .map(|entry| {
                let path = root.join(&entry.path);
                match entry.kind {
                    BackboneKind::Adapter => {
                        open_adapter(&root, &path, &base).map(Backbone::Adapter)
                    }
                    BackboneKind::Full => open_full(&root, &path, &base).map(Backbone::Full),
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        let front = root.join(FRONT);
        let front = if front.is_file() { Some(read_json(&front)?) } else { None };
        let mut soup = Self {
            dir: root,
            manifest,
            base,
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
        soup.digest = digest::of_soup(&soup, &text, options.verify_digests)?;
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

fn open_adapter(root: &Path, path: &Path, base: &Checkpoint) -> Result<Adapter, SoupError> {
    stay_inside(root, path)?;
    let adapter = Adapter::open(path)?;
    stay_inside(root, &path.join(adapter::CONFIG))?;
    stay_inside(root, &adapter.file().path)?;
    adapter.check(base)?;
    Ok(adapter)
}

fn open_full(root: &Path, path: &Path, base: &Checkpoint) -> Result<Checkpoint, SoupError> {
    stay_inside(root, path)?;
    let mut quantised = base.tensors().iter().filter(|(_, t)| t.dtype().blocks().is_some());
    if let Some((tensor, held)) = quantised.next() {
        let (path, tensor, dtype) = (path.to_owned(), tensor.clone(), held.dtype());
        return Err(SoupError::QuantisedBase { path, tensor, dtype });
    }
    let checkpoint = Checkpoint::open(path)?;
    stay_inside(root, &path.join("config.json"))?;
    for file in checkpoint.files() {
        stay_inside(root, &file.path)?;
    }
    same_model(&checkpoint, base)?;
    Ok(checkpoint)
}

/// Keys of `config.json` that change what the same tensors compute.
const FUNCTION_KEYS: [&str; 19] = [
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
    "tie_word_embeddings",
];

/// Refuses a checkpoint that is not a model of the base's kind.
fn same_model(checkpoint: &Checkpoint, base: &Checkpoint) -> Result<(), SoupError> {
    same_architecture(checkpoint, base)?;
    same_tensors(checkpoint, base)
}

fn same_architecture(checkpoint: &Checkpoint, base: &Checkpoint) -> Result<(), SoupError> {
    for key in FUNCTION_KEYS {
        let set = |config: &'_ Value| config.get(key).filter(|value| !value.is_null()).cloned();
        // A key that only one names stands at the other's default: the writers differ in that.
        if let (Some(expected), Some(got)) = (set(base.config()), set(checkpoint.config()))
            && !same_value(&expected, &got)
        {
            return Err(SoupError::Mismatch {
                path: checkpoint.dir().join("config.json"),
                what: key.to_owned(),
                expected: expected.to_string(),
                got: got.to_string(),
            });
        }
    }
    Ok(())
}

/// Equal, 10000 and 10000.0 being the same number.
fn same_value(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn same_tensors(checkpoint: &Checkpoint, base: &Checkpoint) -> Result<(), SoupError> {
    let mismatch = |name: &str, expected: String, got: String| SoupError::Mismatch {
        path: checkpoint.file_of(name),
        what: format!("tensor {name}"),
        expected,
        got,
    };
    for (name, tensor) in base.tensors() {
        let expected = format!("{:?}", tensor.shape());
        match checkpoint.get(name) {
            None => return Err(mismatch(name, expected, "no such tensor".to_owned())),
            Some(own) if own.shape() != tensor.shape() => {
                return Err(mismatch(name, expected, format!("{:?}", own.shape())));
            }
            Some(own) if own.dtype().blocks().is_some() => {
                return Err(mismatch(name, "f32, f16 or bf16".into(), own.dtype().to_string()));
            }
            Some(_) => {}
        }
    }
    match checkpoint.tensors().iter().find(|(name, _)| base.get(name).is_none()) {
        Some((name, own)) => {
            let got = format!("{:?}, a left-over tensor", own.shape());
            Err(mismatch(name, "no such tensor".to_owned(), got))
        }
        None => Ok(()),
    }
}
