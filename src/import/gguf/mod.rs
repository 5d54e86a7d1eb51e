//! Reading a GGUF file as a Hugging Face checkpoint: configuration, tensor names, dequantised
//! values. The tokenizer is rebuilt in [`tokenizer`].

mod sentencepiece;
pub mod tensors;
pub mod tokenizer;

use std::{
    collections::BTreeSet,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use candle_core::{
    Device,
    quantized::gguf_file::{Content, Value as Meta},
};
use serde_json::{Map, Value, json};

use tensors::{Stored, checkpoint_name, llama3_factors, q4_k_as_q4_1, split_pairs};

/// A GGUF file that cannot be turned into a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be opened.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not GGUF, or is damaged.
    #[error("{path}: not a readable GGUF file: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A metadata key is missing or has another type.
    #[error("{path}: metadata {key}: expected {expected}, got {got}")]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it should be.
        expected: &'static str,
        /// What is there.
        got: String,
    },
    /// The model or its tokenizer is of a kind that ladle does not have.
    #[error("{path}: {what} {got:?} is not supported (supported: {supported})")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported.
        what: &'static str,
        /// Its value.
        got: String,
        /// The values that are.
        supported: String,
    },
    /// A tensor has a name or shape that its architecture does not have.
    #[error("{path}: tensor {name} {shape:?}: {reason}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// Its shape, outermost first.
        shape: Vec<usize>,
        /// What is wrong.
        reason: String,
    },
}

/// Architectures whose files are read, which are also Hugging Face's `model_type`.
const ARCHITECTURES: [(&str, &str); 3] =
    [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")];

/// One tensor of the checkpoint and how it comes out of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSource {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Name in the file.
    gguf_name: String,
    /// How it is stored in the file.
    pub stored: Stored,
    /// Heads whose rows stand in interleaved order.
    interleaved_heads: Option<usize>,
}

/// An open GGUF file: header read, tensors on disk.
pub struct Gguf {
    path: PathBuf,
    content: Content,
    reader: BufReader<File>,
    architecture: &'static str,
    class: &'static str,
}

impl Gguf {
    /// Opens a file and reads its header.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let path = path.to_owned();
        let file =
            File::open(&path).map_err(|source| GgufError::Read { path: path.clone(), source })?;
        let mut reader = BufReader::new(file);
        let content = Content::read(&mut reader)
            .map_err(|e| GgufError::Format { path: path.clone(), reason: e.to_string() })?;
        let got = match content.metadata.get("general.architecture") {
            Some(Meta::String(name)) => name.clone(),
            other => {
                let got = other.map_or("nothing".to_owned(), |v| format!("{:?}", v.value_type()));
                let key = "general.architecture".to_owned();
                return Err(GgufError::Metadata { path, key, expected: "a string", got });
            }
        };
        let Some(&(architecture, class)) = ARCHITECTURES.iter().find(|(name, _)| *name == got)
        else {
            let supported = ARCHITECTURES.map(|(name, _)| name).join(", ");
            return Err(GgufError::Unsupported { path, what: "architecture", got, supported });
        };
        Ok(Self { path, content, reader, architecture, class })
    }

    /// The checkpoint's `config.json`, `dtype` being the storage type that will be written.
    pub fn config(&mut self, dtype: &str) -> Result<Value, GgufError> {
        let hidden = self.model_usize("embedding_length")?;
        let heads = self.model_usize("attention.head_count")?;
        let has = |name: &str| self.content.tensor_infos.contains_key(name);
        let (tied, biased) = (!has("output.weight"), has("blk.0.attn_q.bias"));
        let (output_bias, mlp_bias) = (has("blk.0.attn_output.bias"), has("blk.0.ffn_up.bias"));
        let kv_heads = self.optional_usize("attention.head_count_kv")?.unwrap_or(heads);
        let head_dim = match self.optional_usize("attention.key_length")? {
            Some(width) => width,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        for key in ["attention.value_length", "rope.dimension_count"] {
            if let Some(width) = self.optional_usize(key)?
                && width != head_dim
            {
                return Err(self.unsupported(self.model_key(key), width, format!("{head_dim}")));
            }
        }
        if let Some(experts) = self.optional_usize("expert_count")?
            && experts > 0
        {
            return Err(self.unsupported(self.model_key("expert_count"), experts, "0".to_owned()));
        }
        let vocab = self.content.tensor_infos.get("token_embd.weight");
        let vocab = vocab.and_then(|info| info.shape.dims().first().copied());
        let vocab = vocab.ok_or_else(|| self.missing("tensor token_embd.weight", "a matrix"))?;
        let mut config = json!({
            "architectures": [self.class],
            "model_type": self.architecture,
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": self.model_usize("feed_forward_length")?,
            "num_hidden_layers": self.model_usize("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.model_usize("context_length")?,
            "rms_norm_eps": self.model_f32("attention.layer_norm_rms_epsilon", None)?,
            "rope_theta": self.model_f32("rope.freq_base", Some(10_000.0))?,
            "rope_scaling": self.rope_scaling(head_dim)?,
            "tie_word_embeddings": tied,
            "torch_dtype": dtype,
        });
        if self.architecture == "llama" {
            if biased != output_bias {
                let got = if biased { "q, k, v only" } else { "output only" };
                return Err(self.unsupported(
                    "attention bias on".to_owned(),
                    got,
                    "all or none".into(),
                ));
            }
            config["attention_bias"] = json!(biased);
            config["mlp_bias"] = json!(mlp_bias);
            if let Some(window) = self.optional_usize("attention.sliding_window")? {
                config["architectures"] = json!(["MistralForCausalLM"]);
                config["model_type"] = json!("mistral");
                config["sliding_window"] = json!(window);
            }
        }
        if self.architecture == "qwen3" {
            config["attention_bias"] = json!(biased);
        }
        for (key, id) in self.special_ids()? {
            config[key] = json!(id);
        }
        Ok(config)
    }

    /// `bos_token_id`, `eos_token_id`, `pad_token_id`: those that the file names.
    pub fn special_ids(&self) -> Result<Map<String, Value>, GgufError> {
        let mut ids = Map::new();
        for (name, key) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
            if let Some(id) = self.optional(&format!("tokenizer.ggml.{key}_token_id"))? {
                ids.insert(format!("{name}_token_id"), json!(id));
            }
        }
        // A model that ends its turns with another token than its texts stops at both.
        if let (Some(eot), Some(eos)) =
            (self.optional("tokenizer.ggml.eot_token_id")?, ids.get("eos_token_id").cloned())
            && eos != json!(eot)
        {
            ids.insert("eos_token_id".to_owned(), json!([eos, eot]));
        }
        Ok(ids)
    }

    /// Every tensor of the checkpoint, in the order of their names. A tensor that the architecture
    /// does not have is an error: nothing of a file is dropped silently.
    pub fn tensors(&self) -> Result<Vec<TensorSource>, GgufError> {
        let heads = self.model_usize("attention.head_count")?;
        let kv_heads = self.optional_usize("attention.head_count_kv")?.unwrap_or(heads);
        let names: BTreeSet<&String> = self.content.tensor_infos.keys().collect();
        let mut sources = Vec::with_capacity(names.len());
        for gguf_name in names {
            // The rotary factors are in the configuration (see `rope_scaling`).
            if gguf_name == "rope_freqs.weight" {
                continue;
            }
            let Some(info) = self.content.tensor_infos.get(gguf_name) else { continue };
            let shape = info.shape.dims().to_vec();
            let unknown = |reason: &str| GgufError::Tensor {
                path: self.path.clone(),
                name: gguf_name.clone(),
                shape: shape.clone(),
                reason: reason.to_owned(),
            };
            let (name, part) = checkpoint_name(gguf_name)
                .ok_or_else(|| unknown("not a tensor of this architecture"))?;
            // llama.cpp stores the rotary pairs of q and k side by side for this architecture only.
            let interleaved_heads = match part {
                "attn_q" if self.architecture == "llama" => Some(heads),
                "attn_k" if self.architecture == "llama" => Some(kv_heads),
                _ => None,
            };
            if let Some(heads) = interleaved_heads
                && !shape.first().is_some_and(|&rows| heads > 0 && rows.is_multiple_of(2 * heads))
            {
                return Err(unknown(&format!("rows are not pairs of {heads} heads")));
            }
            sources.push(TensorSource {
                name,
                shape,
                gguf_name: gguf_name.clone(),
                stored: info.ggml_dtype.into(),
                interleaved_heads,
            });
        }
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(sources)
    }

    /// The values of a tensor, dequantised to f32, row-major, rotary pairs in Hugging Face's order
    /// (first halves of a head, then second halves).
    pub fn values(&mut self, source: &TensorSource) -> Result<Vec<f32>, GgufError> {
        let values = self.dequantise(&source.gguf_name)?;
        let Some(heads) = source.interleaved_heads else { return Ok(values) };
        let width = source.shape.iter().skip(1).product();
        Ok(split_pairs(&values, heads, width))
    }

    /// The blocks of a tensor that are kept ([`Stored::kept`]), row after row, rows in the same order
    /// as [`Self::values`].
    pub fn blocks(&mut self, source: &TensorSource) -> Result<Vec<u8>, GgufError> {
        let read = self.content.tensor(&mut self.reader, &source.gguf_name, &Device::Cpu);
        let bytes = read.and_then(|tensor| Ok(tensor.data()?.into_owned()));
        let mut bytes = bytes.map_err(|e| self.unreadable(&source.gguf_name, &e))?;
        if source.stored == Stored::Q4K {
            bytes = q4_k_as_q4_1(&bytes);
        }
        let Some(heads) = source.interleaved_heads else { return Ok(bytes) };
        let rows = source.shape.first().copied().unwrap_or(1).max(1);
        Ok(split_pairs(&bytes, heads, bytes.len() / rows))
    }

    fn unreadable(&self, tensor: &str, error: &candle_core::Error) -> GgufError {
        GgufError::Format { path: self.path.clone(), reason: format!("tensor {tensor}: {error}") }
    }

    fn dequantise(&mut self, name: &str) -> Result<Vec<f32>, GgufError> {
        self.content
            .tensor(&mut self.reader, name, &Device::Cpu)
            .and_then(|tensor| tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>())
            .map_err(|e| self.unreadable(name, &e))
    }

    /// `rope_scaling` of the configuration. Llama 3's is not in the metadata: the file carries the
    /// factors that follow from it, so the published settings are tried and must give these factors.
    fn rope_scaling(&mut self, head_dim: usize) -> Result<Value, GgufError> {
        if self.content.tensor_infos.contains_key("rope_freqs.weight") {
            let factors = self.dequantise("rope_freqs.weight")?;
            let theta =
                f64::from(self.f32_value(&self.model_key("rope.freq_base"), Some(10_000.0))?);
            let factor = factors.iter().copied().fold(1.0f32, f32::max).round();
            let expected = llama3_factors(theta, head_dim, f64::from(factor));
            let same = factors.len() == expected.len()
                && factors.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4 * b);
            if !same {
                let supported = "those of Llama 3.1 to 3.3".to_owned();
                return Err(self.unsupported("rotary factors".to_owned(), "others", supported));
            }
            return Ok(json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            }));
        }
        let kind = self.string(&self.model_key("rope.scaling.type"))?;
        match kind.as_deref() {
            None | Some("none") => Ok(Value::Null),
            Some("linear") => Ok(
                json!({"rope_type": "linear", "factor": self.model_f32("rope.scaling.factor", None)?}),
            ),
            Some(other) => Err(self.unsupported(
                self.model_key("rope.scaling.type"),
                other,
                "none, linear".into(),
            )),
        }
    }

    fn unsupported(&self, what: String, got: impl ToString, supported: String) -> GgufError {
        let got = format!("{what} = {}", got.to_string());
        GgufError::Unsupported { path: self.path.clone(), what: "setting", got, supported }
    }

    fn missing(&self, key: &str, expected: &'static str) -> GgufError {
        let (path, got) = (self.path.clone(), "nothing".to_owned());
        GgufError::Metadata { path, key: key.to_owned(), expected, got }
    }

    fn mistyped(&self, key: &str, expected: &'static str, value: &Meta) -> GgufError {
        let (path, got) = (self.path.clone(), format!("{:?}", value.value_type()));
        GgufError::Metadata { path, key: key.to_owned(), expected, got }
    }

    fn model_key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn model_usize(&self, key: &str) -> Result<usize, GgufError> {
        self.optional_usize(key)?
            .ok_or_else(|| self.missing(&self.model_key(key), "a whole number"))
    }

    fn optional_usize(&self, key: &str) -> Result<Option<usize>, GgufError> {
        let value = self.optional(&self.model_key(key))?;
        Ok(value.and_then(|v| usize::try_from(v).ok()))
    }

    /// A whole number of the metadata.
    fn optional(&self, key: &str) -> Result<Option<u64>, GgufError> {
        let Some(value) = self.content.metadata.get(key) else { return Ok(None) };
        let number = match value {
            Meta::I8(v) => u64::try_from(*v).ok(),
            Meta::I16(v) => u64::try_from(*v).ok(),
            Meta::I32(v) => u64::try_from(*v).ok(),
            Meta::I64(v) => u64::try_from(*v).ok(),
            Meta::Bool(_) => None,
            other => other.to_u64().ok(),
        };
        number.map(Some).ok_or_else(|| self.mistyped(key, "a whole number", value))
    }

    fn f32_value(&self, key: &str, default: Option<f32>) -> Result<f32, GgufError> {
        match (self.content.metadata.get(key), default) {
            (Some(Meta::F32(value)), _) => Ok(*value),
            (None, Some(value)) => Ok(value),
            (None, None) => Err(self.missing(key, "an f32")),
            (Some(other), _) => Err(self.mistyped(key, "an f32", other)),
        }
    }

    /// An f32 of the metadata as JSON, in its shortest spelling (1e-5 rather than
    /// 9.999999747378752e-6, which is the same f32).
    fn model_f32(&self, key: &str, default: Option<f32>) -> Result<Value, GgufError> {
        let value = self.f32_value(&self.model_key(key), default)?;
        Ok(format!("{value:e}").parse::<f64>().map_or(Value::Null, |v| json!(v)))
    }

    fn string(&self, key: &str) -> Result<Option<String>, GgufError> {
        match self.content.metadata.get(key) {
            None => Ok(None),
            Some(Meta::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.mistyped(key, "a string", other)),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.content.metadata.get(key) {
            None => Ok(None),
            Some(Meta::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.mistyped(key, "a boolean", other)),
        }
    }

    /// Whether the metadata has a key.
    fn has(&self, key: &str) -> bool {
        self.content.metadata.contains_key(key)
    }

    /// An array of the metadata, each element through `read`.
    fn array<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&Meta) -> Option<T>,
    ) -> Result<Vec<T>, GgufError> {
        match self.content.metadata.get(key) {
            None => Err(self.missing(key, expected)),
            Some(Meta::Array(values)) => values
                .iter()
                .map(|value| read(value).ok_or_else(|| self.mistyped(key, expected, value)))
                .collect(),
            Some(other) => Err(self.mistyped(key, expected, other)),
        }
    }
}
