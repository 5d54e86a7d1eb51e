//! `ladle init`: writes a soup directory from adapters and checkpoints.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    activation::Activation,
    adapter::{self, Adapter},
    checkpoint::{self, Checkpoint},
    digest,
    error::SoupError,
    manifest::{
        self, BackboneEntry, BackboneKind, BaseEntry, Extrapolation, Manifest, ManifestError,
        Mixing, Objective, SftEntry,
    },
    open::{OpenOptions, Soup, base_dir, full_backbone, same_tokenizer},
    weights::WeightFile,
};
use crate::files::{self, FileError, Staging, same_digest};

/// The parts of a new soup.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The soup's name.
    pub name: String,
    /// Where the base is; a relative path is taken from the working directory. Where it has digests,
    /// the base must have these.
    pub base: BaseEntry,
    /// Directory of the supervised adapter.
    pub sft: Option<PathBuf>,
    /// Objectives, in order; empty: those of the backbones' names.
    pub objectives: Vec<Objective>,
    /// Names and directories of the backbones, in the order of the objectives.
    pub backbones: Vec<(String, PathBuf)>,
    /// The mixing matrix.
    pub mixing: Mixing,
    /// The rows that the backbones act on.
    pub activation: Activation,
}

/// Writes the soup of `recipe` as `dir`: adapters and checkpoints are copied (a soup owns its
/// weights), the base is referred to and pinned by digest. The soup is opened and must pass `check`
/// before it gets its name: `dir` holds a soup that passes, or nothing.
pub fn init<E: From<SoupError>>(
    dir: &Path,
    recipe: &Recipe,
    options: &OpenOptions,
    check: impl FnOnce(&Soup) -> Result<(), E>,
) -> Result<Manifest, E> {
    let (staging, soup) = write(dir, recipe, options)?;
    check(&soup)?;
    staging.commit().map_err(SoupError::from)?;
    Ok(soup.manifest)
}

/// Writes a soup into a staging directory for `dir`, and opens it.
fn write(dir: &Path, recipe: &Recipe, options: &OpenOptions) -> Result<(Staging, Soup), SoupError> {
    let refuse = |error| SoupError::Manifest { path: dir.join(manifest::FILE), error };
    let mut base = recipe.base.clone();
    for path in [&mut base.path, &mut base.gguf].into_iter().flatten() {
        // A manifest's paths are relative to the soup, these to the working directory.
        *path = fs::canonicalize(&path).map_err(FileError::at(path.clone()))?;
    }
    let base_dir = match &options.base {
        Some(base) => base.clone(),
        None => base_dir(dir, &base)?,
    };
    let mut base_model = Checkpoint::open(&base_dir)?;
    let config = base_model.check()?;
    let pinned = digest::of_files(&base_dir, base_model.files().iter());
    if !base.sha256.is_empty() {
        let absent = || "absent".to_owned();
        for file in base.sha256.keys().chain(pinned.keys()) {
            let of = |digests: &BTreeMap<String, String>| digests.get(file).cloned();
            let (expected, got) = (of(&base.sha256), of(&pinned).unwrap_or_else(absent));
            same_digest(&base_dir.join(file), &expected.unwrap_or_else(absent), got)?;
        }
    }
    base.sha256 = pinned;

    let names = recipe.backbones.iter().map(|(name, _)| Objective::named(name));
    let objectives = match recipe.objectives.as_slice() {
        [] => names.collect(),
        objectives => objectives.to_vec(),
    };
    let mut manifest = Manifest {
        format: manifest::FORMAT,
        name: recipe.name.clone(),
        description: None,
        examples: Vec::new(),
        default: None,
        activation: recipe.activation,
        base,
        sft: recipe.sft.as_ref().map(|_| SftEntry { path: "sft".into() }),
        mixing: recipe.mixing.clone(),
        extrapolation: Extrapolation::default(),
        presets: BTreeMap::new(),
        reasoning_effort: BTreeMap::new(),
        objectives,
        backbones: recipe
            .backbones
            .iter()
            .map(|(name, path)| BackboneEntry {
                name: name.clone(),
                path: Path::new("backbones").join(name),
                kind: kind(path),
            })
            .collect(),
        sha256: BTreeMap::new(),
    };
    // Names become directories: they are checked before anything is written.
    manifest.check().map_err(refuse)?;

    let staging = Staging::new(dir)?;
    let root = fs::canonicalize(staging.path()).map_err(FileError::at(staging.path()))?;
    // Run at once, so that what is written there is named by where it was to be.
    let fill = || {
        let mut copied = Vec::new();
        // The sources are checked before they are copied, so that errors name the paths that were
        // given.
        let adapter = |from: &Path, sft: Option<&Adapter>| {
            same_tokenizer(from, &base_model, config.vocab_size)?;
            Ok::<_, SoupError>(Adapter::open(from)?.fit(&base_model, sft, &config)?)
        };
        let sft = recipe.sft.as_deref().map(|from| adapter(from, None)).transpose()?;
        if let Some(from) = &recipe.sft {
            copied.extend(copy_adapter(from, &root.join("sft"))?);
        }
        for (entry, (_, from)) in manifest.backbones.iter().zip(&recipe.backbones) {
            let to = root.join(&entry.path);
            copied.extend(match entry.kind {
                BackboneKind::Adapter => {
                    adapter(from, sft.as_ref())?;
                    copy_adapter(from, &to)?
                }
                BackboneKind::Full => {
                    let checkpoint = full_backbone(from, &base_model, &config, options.residence)?;
                    copy_checkpoint(&checkpoint, &to)?
                }
            });
        }
        manifest.sha256 = digest::of_files(&root, copied.iter());
        let path = root.join(manifest::FILE);
        let text = manifest.to_toml().map_err(|error| refuse(ManifestError::Write(error)))?;
        files::write(&path, text.as_bytes())?;
        let options = OpenOptions { base: Some(base_dir), verify_digests: true, ..*options };
        Soup::open(&root, &options)
    };
    match fill() {
        Ok(soup) => Ok((staging, soup)),
        Err(SoupError::File(error)) => Err(staging.named(error).into()),
        Err(other) => Err(other),
    }
}

fn kind(path: &Path) -> BackboneKind {
    match path.join(adapter::CONFIG).exists() {
        true => BackboneKind::Adapter,
        false => BackboneKind::Full,
    }
}

fn copy_adapter(from: &Path, to: &Path) -> Result<Vec<WeightFile>, SoupError> {
    copy(from, to, &[adapter::CONFIG.into(), adapter::WEIGHTS.into()])?;
    Ok(vec![Adapter::open(to)?.file().clone()])
}

fn copy_checkpoint(source: &Checkpoint, to: &Path) -> Result<Vec<WeightFile>, SoupError> {
    let from = source.dir();
    let weights = source.files().iter().filter_map(|file| file.path.file_name());
    let mut names: Vec<PathBuf> = weights.map(PathBuf::from).collect();
    names.push("config.json".into());
    if !from.join(checkpoint::SINGLE).is_file() {
        names.push(checkpoint::INDEX.into());
    }
    copy(from, to, &names)?;
    Ok(Checkpoint::open(to)?.files().to_vec())
}

fn copy(from: &Path, to: &Path, names: &[PathBuf]) -> Result<(), FileError> {
    fs::create_dir_all(to).map_err(FileError::at(to))?;
    for name in names {
        files::copy(&from.join(name), &to.join(name))?;
    }
    Ok(())
}
