//! A GGUF file as a Hugging Face checkpoint: configuration, tokenizer, tensors by their names there,
//! and their values.

mod architecture;
mod config;
mod error;
mod header;
mod metadata;
mod sentencepiece;
mod split;
mod tensors;
mod tokenizer;
mod types;
mod vocabulary;

use std::{
    collections::BTreeSet,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use serde_json::Value;

pub use error::GgufError;
pub use split::paths;
pub use tensors::{Stored, TensorSource};
pub use tokenizer::TokenizerFiles;

use crate::{
    kernels::{BlockType, quantised::Blocks},
    model::config::ModelConfig,
};
use architecture::Architecture;
use config::Found;
use header::TensorInfo;
use split::{Joined, Split};
use tensors::{LONG_FACTORS, ROPE_FACTORS, expert, file_name, split_pairs};
use types::GgmlType;

/// An open GGUF model: headers read, tensors on disk.
pub struct Gguf {
    files: Joined,
    architecture: &'static Architecture,
}

impl Gguf {
    /// Opens a model by its only or its first file, and reads the headers of all its files.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let files = split::open(path)?;
        let unsupported = |what, got: &str, supported: String| GgufError::Unsupported {
            path: path.to_owned(),
            what,
            got: format!("{got:?}"),
            supported,
        };
        if let Some(kind) = files.metadata.text("general.type")?
            && kind != "model"
        {
            return Err(unsupported("a file of type", kind, "model".to_owned()));
        }
        let key = "general.architecture";
        let name = files.metadata.text(key)?;
        let name = name.ok_or_else(|| files.metadata.missing(key, "a string"))?;
        let architecture = Architecture::named(name)
            .map_err(|supported| unsupported("architecture", name, supported))?;
        Ok(Self { files, architecture })
    }

    /// The checkpoint's `config.json` without the ids of special tokens, `dtype` being the storage
    /// type that will be written.
    pub fn config(&self, dtype: &str) -> Result<Value, GgufError> {
        let has = |name: &str| self.files.tensors.contains_key(name);
        let (_, embedding) = self.find("token_embd.weight")?;
        let factors = self.architecture.interleaved && has(ROPE_FACTORS);
        let long = self.architecture.name == "phi3" && has(LONG_FACTORS[0]);
        let long = long.then(|| LONG_FACTORS.map(|name| self.dequantise(name)));
        let long_factors = match long {
            Some([short, long]) => Some([short?, long?]),
            None => None,
        };
        let found = Found {
            vocab_size: embedding.shape.first().copied().unwrap_or_default(),
            tied: !has("output.weight"),
            qkv_bias: has("blk.0.attn_q.bias"),
            output_bias: has("blk.0.attn_output.bias"),
            mlp_bias: has("blk.0.ffn_up.bias"),
            rope_factors: factors.then(|| self.dequantise(ROPE_FACTORS)).transpose()?,
            long_factors,
        };
        config::config(&self.files.metadata, self.architecture, &found, dtype)
    }

    /// The model's tokenizer as files of the checkpoint, with the ids of its special tokens.
    pub fn tokenizer(&self) -> Result<TokenizerFiles, GgufError> {
        tokenizer::tokenizer_files(&self.files.metadata)
    }

    /// Where each tensor of the checkpoint comes from. The files hold exactly these tensors:
    /// missing and left-over ones, and other shapes, are errors.
    pub fn sources(&self, config: &ModelConfig) -> Result<Vec<TensorSource>, GgufError> {
        let source = |(name, shape): (String, Vec<usize>)| {
            let interleaved_heads = match name.rsplit('.').nth(1) {
                Some("q_proj") if self.architecture.interleaved => Some(config.heads),
                Some("k_proj") if self.architecture.interleaved => Some(config.kv_heads),
                _ => None,
            };
            let one_added = self.architecture.one_added && name.ends_with("norm.weight");
            let own = || (file_name(&name, self.architecture.norms_after), None);
            let experts = config.experts.as_ref().map_or(0, |experts| experts.count);
            let (file_name, expert) = expert(&name)
                .map_or_else(own, |(file_name, number)| (file_name, Some((number, experts))));
            TensorSource { name, shape, file_name, expert, interleaved_heads, one_added }
        };
        let sources: Vec<TensorSource> = config.tensors().into_iter().map(source).collect();
        let names: BTreeSet<&str> = sources.iter().map(|s| s.file_name.as_str()).collect();
        let used = |name: &str| {
            names.contains(name)
                || (self.architecture.interleaved && name == ROPE_FACTORS)
                || (self.architecture.name == "phi3" && LONG_FACTORS.contains(&name))
        };
        if let Some(name) = self.files.tensors.keys().find(|name| !used(name)) {
            let (architecture, layers) = (self.architecture.name, config.layers);
            let reason = format!("is not one of a {architecture} of {layers} layers");
            return Err(self.refuse(name, reason));
        }
        for source in &sources {
            let (name, (_, info)) = (&source.file_name, self.find(&source.file_name)?);
            let experts = source.expert.map(|(_, experts)| experts);
            let expected: Vec<usize> = experts.into_iter().chain(source.shape.clone()).collect();
            if info.shape != expected {
                let got = &info.shape;
                return Err(self.refuse(name, format!("has shape {got:?}, expected {expected:?}")));
            }
        }
        Ok(sources)
    }

    /// How a tensor is stored in its file.
    pub fn stored(&self, source: &TensorSource) -> Result<Stored, GgufError> {
        Ok(self.find(&source.file_name)?.1.kind.into())
    }

    /// The values of a tensor, dequantised to f32, row-major, rotary pairs in Hugging Face's order
    /// (first halves of a head, then second halves).
    pub fn values(&self, source: &TensorSource) -> Result<Vec<f32>, GgufError> {
        let (bytes, kind) = self.bytes(&source.file_name, source.expert)?;
        let mut values = kind.values(&bytes);
        if source.one_added {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
        let Some(heads) = source.interleaved_heads else { return Ok(values) };
        let width = source.shape.iter().skip(1).product();
        Ok(split_pairs(&values, heads, width))
    }

    /// The blocks of a tensor that are kept as `kind` ([`Stored::Blocks`]), row after row, rows in
    /// the same order as [`Self::values`].
    pub fn blocks(&self, source: &TensorSource, kind: BlockType) -> Result<Blocks, GgufError> {
        let (mut bytes, stored) = self.bytes(&source.file_name, source.expert)?;
        if let Some(heads) = source.interleaved_heads {
            let rows = source.shape.first().copied().unwrap_or(1).max(1);
            bytes = split_pairs(&bytes, heads, bytes.len() / rows);
        }
        let mut blocks = Blocks::new(kind);
        stored.blocks(&bytes, |scale, minimum, numbers| {
            blocks.push(scale, minimum.unwrap_or(0.0), numbers);
        });
        Ok(blocks)
    }

    fn dequantise(&self, name: &str) -> Result<Vec<f32>, GgufError> {
        let (bytes, kind) = self.bytes(name, None)?;
        Ok(kind.values(&bytes))
    }

    /// The bytes of a tensor, or of one expert's part of it, and how they are stored.
    fn bytes(
        &self,
        name: &str,
        expert: Option<(usize, usize)>,
    ) -> Result<(Vec<u8>, GgmlType), GgufError> {
        let (part, info) = self.find(name)?;
        let (number, experts) = expert.unwrap_or((0, 1));
        let mut bytes = vec![0; info.bytes / experts.max(1)];
        let start = info.start + (number * bytes.len()) as u64;
        let mut file = &part.file;
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|source| GgufError::Read { path: part.path.clone(), source })?;
        Ok((bytes, info.kind))
    }

    fn find(&self, name: &str) -> Result<(&Split, &TensorInfo), GgufError> {
        let found = self.files.tensors.get(name);
        let found = found.and_then(|(part, info)| Some((self.files.parts.get(*part)?, info)));
        found.ok_or_else(|| self.refuse(name, "is missing".to_owned()))
    }

    fn refuse(&self, name: &str, reason: String) -> GgufError {
        let part = self.files.tensors.get(name).and_then(|(part, _)| self.files.parts.get(*part));
        let path = part.map_or(self.files.metadata.path(), |part| &part.path).to_owned();
        GgufError::Tensor { path, name: name.to_owned(), reason }
    }
}
