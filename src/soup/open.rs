//! Opening a soup: [`Soup::open`] reads every part and checks it against the base.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{
    activation::{Activation, ActiveFrom},
    adapter::{self, Adapter},
    checkpoint::Checkpoint,
    digest::Parts,
    error::{SoupError, WeightError},
    manifest::{self, BackboneKind, BaseEntry, BaseSource, Manifest},
    weights::{WeightFile, check_finite},
};
use crate::{
    config::Residence,
    files::{FileError, Seen, read_bounded, read_json},
    model::config::ModelConfig,
    preference::MixingMatrix,
    tokenizer::Tokenizer,
};

/// Largest manifest that is read, in bytes.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// File name of the measured front inside a soup.
pub const FRONT: &str = "front.json";

/// How to open a soup.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Directory of the base, instead of the one that the manifest names; needed where the manifest
    /// names an id or a GGUF file.
    pub base: Option<PathBuf>,
    /// `base` is another model than the soup was made on: what the manifest pins does not hold.
    pub other_base: bool,
    /// Read every weight once: compare digests, refuse NaN and infinities.
    pub verify_digests: bool,
    /// Where the weights of the base and of full backbones lie.
    pub residence: Residence,
}

/// One tuned model.
pub enum Backbone {
    /// θᵢ = θ_sft + adapter.
    Adapter(Adapter),
    /// θᵢ in full.
    Full(Checkpoint),
}

impl Backbone {
    pub fn files(&self) -> &[WeightFile] {
        match self {
            Self::Adapter(adapter) => std::slice::from_ref(adapter.file()),
            Self::Full(checkpoint) => checkpoint.files(),
        }
    }

    /// `adapter_config.json` or `config.json`.
    fn settings(&self) -> &Value {
        match self {
            Self::Adapter(adapter) => adapter.document(),
            Self::Full(checkpoint) => checkpoint.config(),
        }
    }

    fn untie(&mut self) {
        match self {
            Self::Adapter(adapter) => adapter.untie(),
            Self::Full(checkpoint) => checkpoint.untie(),
        }
    }
}

/// An opened soup: everything present and fitting the base.
pub struct Soup {
    pub dir: PathBuf,
    /// The checked manifest.
    pub manifest: Manifest,
    /// The base model.
    pub base: Checkpoint,
    /// Configuration of all models of the soup. The head is tied if the base's is and no adapter
    /// unties it.
    pub config: ModelConfig,
    /// Where the base was found.
    pub base_dir: PathBuf,
    /// Adapter that makes θ_sft of the base.
    pub sft: Option<Adapter>,
    /// Backbones, in the order of the columns of B.
    pub backbones: Vec<Backbone>,
    /// The first row of a sequence that the backbones act on.
    pub active_from: ActiveFrom,
    /// The matrix that maps μ to λ.
    pub mixing: MixingMatrix,
    /// The measured front (`front.json`), where the soup has one.
    pub front: Option<Value>,
    /// SHA-256, in hexadecimal, over the manifest, the settings of its models, tokenizer and template,
    /// and the digests of all weights. Identifies the soup in caches and answers.
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
            None => base_dir(dir, &manifest.base)?,
        };
        let mut base = Checkpoint::open_as(&base_dir, options.residence)?;
        let mut config = base.check()?;
        let root = fs::canonicalize(dir).map_err(FileError::at(dir))?;
        let adapter = |path: &Path, sft: Option<&Adapter>| {
            same_tokenizer(path, &base, config.vocab_size)?;
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
                        open_full(&root, &path, &base, &config, options.residence)
                            .map(Backbone::Full)
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
        let active_from = active_from(manifest.activation, sft.as_ref(), &backbones)?;
        if active_from.is_answer() && config.encoder.is_some() {
            return Err(SoupError::Mismatch {
                path: dir.join(manifest::FILE),
                what: "activation".to_owned(),
                expected: format!("\"all\": the encoder of a {} is merged too", config.model_type),
                got: "\"answer\"".to_owned(),
            });
        }
        let front = read_front(&root, &manifest)?;
        let mut soup = Self {
            dir: root,
            manifest,
            base,
            config,
            base_dir,
            sft,
            backbones,
            active_from,
            mixing,
            front,
            digest: String::new(),
        };
        if options.verify_digests {
            soup.verify_finite()?;
        }
        soup.digest = soup.checked_digest(&text, options)?;
        Ok(soup)
    }

    /// Checks the digests of the manifest and returns the soup's.
    fn checked_digest(&self, text: &str, options: &OpenOptions) -> Result<String, SoupError> {
        let none = BTreeMap::new();
        let parts = Parts {
            listed: &self.manifest.sha256,
            pinned: if options.other_base { &none } else { &self.manifest.base.sha256 },
            text,
            dir: &self.dir,
            own: self.own_files().collect(),
            settings: self
                .sft
                .iter()
                .map(Adapter::document)
                .chain(self.backbones.iter().map(Backbone::settings))
                .collect(),
            base_dir: &self.base_dir,
            base: &self.base,
        };
        parts.check(options.verify_digests)?;
        parts.digest()
    }

    /// The weight files in the soup's directory.
    fn own_files(&self) -> impl Iterator<Item = &WeightFile> {
        let sft = self.sft.iter().map(Adapter::file);
        sft.chain(self.backbones.iter().flat_map(Backbone::files))
    }

    /// All weight files.
    pub fn weight_files(&self) -> impl Iterator<Item = &WeightFile> {
        self.base.files().iter().chain(self.own_files())
    }

    /// Bytes of all weight files.
    pub fn weight_bytes(&self) -> usize {
        self.weight_files().map(|file| file.bytes().len()).sum()
    }

    /// All weight files as they were when they were opened.
    pub fn seen(&self) -> Vec<Seen> {
        self.weight_files().map(|file| file.seen.clone()).collect()
    }

    /// All adapters: the supervised one first, then the backbones'.
    pub fn adapters(&self) -> impl Iterator<Item = &Adapter> {
        let backbones = self.backbones.iter().filter_map(|backbone| match backbone {
            Backbone::Adapter(adapter) => Some(adapter),
            Backbone::Full(_) => None,
        });
        self.sft.iter().chain(backbones)
    }

    /// Refuses NaN and infinities in the base and in what the soup adds.
    fn verify_finite(&self) -> Result<(), SoupError> {
        self.base.verify_finite()?;
        for backbone in &self.backbones {
            if let Backbone::Full(checkpoint) = backbone {
                checkpoint.verify_finite()?;
            }
        }
        let adapters = self.adapters().flat_map(|adapter| {
            adapter.tensors().map(|(name, tensor)| (adapter.file().path.clone(), name, tensor))
        });
        Ok(check_finite(adapters.collect())?)
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

/// Where the base of the soup in `dir` is to be found.
pub fn base_source(dir: &Path, base: &BaseEntry) -> Result<BaseSource, SoupError> {
    let path = || dir.join(manifest::FILE);
    base.source().map_err(|error| SoupError::Manifest { path: path(), error })
}

/// The directory of a base that needs no import.
pub(super) fn base_dir(dir: &Path, base: &BaseEntry) -> Result<PathBuf, SoupError> {
    let spec = match base_source(dir, base)? {
        BaseSource::Path(path) => return local_base(dir, &path),
        BaseSource::Id { id, .. } => id,
        BaseSource::Gguf(path) => path.display().to_string(),
    };
    Err(SoupError::Unresolved { spec })
}

/// A base by its path relative to the soup in `dir`; refused where nothing is there.
pub fn local_base(dir: &Path, path: &Path) -> Result<PathBuf, SoupError> {
    let at = dir.join(path);
    if at.exists() { Ok(at) } else { Err(SoupError::Base { at }) }
}

/// Refuses a path that a link leads out of the soup.
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

/// Where the backbones become active. All adapters must agree; a full checkpoint cannot say and is
/// active as the adapters are.
fn active_from(
    activation: Activation,
    sft: Option<&Adapter>,
    backbones: &[Backbone],
) -> Result<ActiveFrom, SoupError> {
    let refuse = |adapter: &Adapter, expected: String| WeightError::Json {
        path: adapter.dir().join(adapter::CONFIG),
        key: "alora_invocation_tokens".to_owned(),
        expected,
        got: adapter.invocation().map_or("nothing".to_owned(), |tokens| format!("{tokens:?}")),
    };
    if let Some(sft) = sft.filter(|sft| sft.invocation().is_some()) {
        let expected = "it unset: θ_sft computes every row".to_owned();
        return Err(refuse(sft, expected).into());
    }
    let adapters = backbones.iter().filter_map(|backbone| match backbone {
        Backbone::Adapter(adapter) => Some(adapter),
        Backbone::Full(_) => None,
    });
    let adapters: Vec<&Adapter> = adapters.collect();
    let tokens: Vec<_> = adapters.iter().map(|adapter| adapter.invocation()).collect();
    ActiveFrom::agreed(activation, &tokens).map_err(|disagreement| {
        refuse(adapters[disagreement.adapter], disagreement.expected).into()
    })
}

/// The measured front of the soup in `dir`, where it has one; refused if it says that it was measured on
/// other weights than the manifest's, or on a part of them.
pub fn read_front(dir: &Path, manifest: &Manifest) -> Result<Option<Value>, SoupError> {
    let path = dir.join(FRONT);
    if !path.is_file() {
        return Ok(None);
    }
    stay_inside(&fs::canonicalize(dir).map_err(FileError::at(dir))?, &path)?;
    let front: Value = read_json(&path)?;
    let Some(measured) = front["sha256"].as_object() else { return Ok(Some(front)) };
    let weights = manifest.weights().into_iter();
    let weights: Map<String, Value> = weights.map(|(file, own)| (file, own.into())).collect();
    let mut files = weights.keys().chain(measured.keys());
    let Some(file) = files.find(|file| weights.get(*file) != measured.get(*file)) else {
        return Ok(Some(front));
    };
    let of =
        |digests: &Map<String, Value>| digests.get(file).map_or("none".into(), Value::to_string);
    let (expected, got) = (of(&weights), of(measured));
    Err(SoupError::Front { path, file: file.clone(), expected, got })
}

fn open_full(
    root: &Path,
    path: &Path,
    base: &Checkpoint,
    config: &ModelConfig,
    residence: Residence,
) -> Result<Checkpoint, SoupError> {
    stay_inside(root, path)?;
    let checkpoint = full_backbone(path, base, config, residence)?;
    stay_inside(root, &path.join("config.json"))?;
    for file in checkpoint.files() {
        stay_inside(root, &file.path)?;
    }
    Ok(checkpoint)
}

/// Refuses a model that was tuned with other tokens than the base's, which answers are made with. A
/// directory without a tokenizer says nothing. `rows` are those of the embedding.
pub(super) fn same_tokenizer(dir: &Path, base: &Checkpoint, rows: usize) -> Result<(), SoupError> {
    let file = |dir: &Path| dir.join("tokenizer.json");
    if !file(dir).is_file() || !file(base.dir()).is_file() {
        return Ok(());
    }
    let [own, bases] = [dir, base.dir()].map(Tokenizer::from_dir);
    match bases?.difference(&own?, rows) {
        None => Ok(()),
        Some((what, expected, got)) => {
            Err(SoupError::Mismatch { path: file(dir), what, expected, got })
        }
    }
}

/// Opens a full backbone: the architecture and the tokens of the base (`config`), other weights.
pub(super) fn full_backbone(
    path: &Path,
    base: &Checkpoint,
    config: &ModelConfig,
    residence: Residence,
) -> Result<Checkpoint, SoupError> {
    let quantised = |checkpoint: &Checkpoint| {
        let mut tensors = checkpoint.tensors().iter();
        let (name, tensor) = tensors.find(|(_, tensor)| tensor.dtype().blocks().is_some())?;
        Some((name.clone(), tensor.dtype()))
    };
    if let Some((tensor, dtype)) = quantised(base) {
        return Err(SoupError::QuantisedBase { path: path.to_owned(), tensor, dtype });
    }
    let mut checkpoint = Checkpoint::open_as(path, residence)?;
    let mismatch = |path, what, expected, got| SoupError::Mismatch { path, what, expected, got };
    if let Some((key, expected, got)) = config.difference(&checkpoint.model()?) {
        return Err(mismatch(path.join("config.json"), key.to_owned(), expected, got));
    }
    same_tokenizer(path, base, config.vocab_size)?;
    checkpoint.check()?;
    if let Some((name, dtype)) = quantised(&checkpoint) {
        let (file, what) = (checkpoint.file_of(&name), format!("tensor {name}"));
        return Err(mismatch(file, what, "f32, f16 or bf16".into(), dtype.to_string()));
    }
    Ok(checkpoint)
}
