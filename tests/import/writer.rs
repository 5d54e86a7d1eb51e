//! GGUF files as llama.cpp writes them, to be changed before they are written.

/// A value of the metadata.
#[derive(Clone)]
pub enum Value {
    U16(u16),
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    Bool(bool),
    Text(String),
    Bytes(Vec<u8>),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// Kind and bytes, written as they are.
    Raw(u32, Vec<u8>),
}

impl Value {
    fn kind(&self) -> u32 {
        match self {
            Self::U16(_) => 2,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) | Self::Bytes(_) => 8,
            Self::Texts(_) | Self::I32s(_) | Self::F32s(_) => 9,
            Self::U64(_) => 10,
            Self::Raw(kind, _) => *kind,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.kind().to_le_bytes());
        match self {
            Self::U16(value) => out.extend(value.to_le_bytes()),
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::I32(value) => out.extend(value.to_le_bytes()),
            Self::U64(value) => out.extend(value.to_le_bytes()),
            Self::F32(value) => out.extend(value.to_le_bytes()),
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::Text(value) => text(out, value.as_bytes()),
            Self::Bytes(value) => text(out, value),
            Self::Texts(values) => {
                array(out, 8, values.len());
                values.iter().for_each(|value| text(out, value.as_bytes()));
            }
            Self::I32s(values) => {
                array(out, 5, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::F32s(values) => {
                array(out, 6, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::Raw(_, bytes) => out.extend(bytes),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

fn array(out: &mut Vec<u8>, kind: u32, len: usize) {
    out.extend(kind.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// ggml's id of the storage type.
    pub kind: u32,
    pub data: Vec<u8>,
    /// Instead of the offset after the tensor before.
    pub offset: Option<u64>,
}

/// A file.
#[derive(Clone)]
pub struct Model {
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

pub const HIDDEN: u64 = 64;
pub const LAYERS: u32 = 2;
/// Words beside the 256 bytes and three special tokens.
const WORDS: [&str; 4] = ["th", "the", "an", "Ġthe"];

impl Model {
    /// A llama of two layers with a tied head and SmolLM's pre-tokenizer, all in f32.
    pub fn tiny() -> Self {
        let mut tokens: Vec<String> =
            (0..=255u8).map(|byte| byte_level(byte).to_string()).collect();
        tokens.extend(WORDS.map(str::to_owned));
        let mut types = vec![1; tokens.len()];
        for special in ["<|begin|>", "<|end|>", "<|pad|>"] {
            tokens.push(special.to_owned());
            types.push(3);
        }
        let vocab = tokens.len() as u64;
        let mut model = Self { metadata: Vec::new(), tensors: Vec::new() };
        let settings: [(&str, Value); 18] = [
            ("general.architecture", "llama".into()),
            ("general.name", "tiny".into()),
            ("llama.context_length", Value::U32(256)),
            ("llama.embedding_length", Value::U32(64)),
            ("llama.block_count", Value::U32(LAYERS)),
            ("llama.feed_forward_length", Value::U32(128)),
            ("llama.attention.head_count", Value::U32(4)),
            ("llama.attention.head_count_kv", Value::U32(2)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.rope.freq_base", Value::F32(10_000.0)),
            ("tokenizer.ggml.model", "gpt2".into()),
            ("tokenizer.ggml.pre", "smollm".into()),
            ("tokenizer.ggml.tokens", Value::Texts(tokens)),
            ("tokenizer.ggml.token_type", Value::I32s(types)),
            (
                "tokenizer.ggml.merges",
                Value::Texts(["t h", "th e", "a n", "Ġ the"].map(str::to_owned).to_vec()),
            ),
            ("tokenizer.ggml.bos_token_id", Value::U32(260)),
            ("tokenizer.ggml.eos_token_id", Value::U32(261)),
            ("tokenizer.ggml.padding_token_id", Value::U32(262)),
        ];
        model.metadata.extend(settings.map(|(key, value)| (key.to_owned(), value)));
        model.add("token_embd.weight", &[vocab, HIDDEN]);
        model.add("output_norm.weight", &[HIDDEN]);
        for layer in 0..LAYERS {
            for (part, shape) in [
                ("attn_norm", &[HIDDEN][..]),
                ("ffn_norm", &[HIDDEN]),
                ("attn_q", &[HIDDEN, HIDDEN]),
                ("attn_k", &[32, HIDDEN]),
                ("attn_v", &[32, HIDDEN]),
                ("attn_output", &[HIDDEN, HIDDEN]),
                ("ffn_gate", &[128, HIDDEN]),
                ("ffn_up", &[128, HIDDEN]),
                ("ffn_down", &[HIDDEN, 128]),
            ] {
                model.add(&format!("blk.{layer}.{part}.weight"), shape);
            }
        }
        model
    }

    /// The same with a SentencePiece vocabulary.
    pub fn sentencepiece() -> Self {
        let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
        tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
        tokens.extend(["▁", "a", "▁a", "b"].map(str::to_owned));
        let mut types = vec![2, 3, 3];
        types.extend([6; 256]);
        types.extend([1; 4]);
        let scores = (0..tokens.len()).map(|id| -(id as f32)).collect();
        let mut model = Self::tiny();
        model.set("tokenizer.ggml.model", "llama");
        model.set("tokenizer.ggml.tokens", Value::Texts(tokens));
        model.set("tokenizer.ggml.token_type", Value::I32s(types));
        model.set("tokenizer.ggml.scores", Value::F32s(scores));
        for key in ["pre", "merges", "padding_token_id"] {
            model.remove(&format!("tokenizer.ggml.{key}"));
        }
        model.set("tokenizer.ggml.bos_token_id", Value::U32(1));
        model.set("tokenizer.ggml.eos_token_id", Value::U32(2));
        model
    }

    /// Adds a tensor of f32 with values that only its name decides.
    pub fn add(&mut self, name: &str, shape: &[u64]) {
        let mut state =
            name.bytes().fold(1u32, |hash, byte| hash.wrapping_mul(31) + u32::from(byte));
        let mut value = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 * 0.2 - 0.1
        };
        let count: u64 = shape.iter().product();
        let data = (0..count).flat_map(|_| value().to_le_bytes()).collect();
        let (name, shape) = (name.to_owned(), shape.to_vec());
        self.tensors.push(Tensor { name, shape, kind: 0, data, offset: None });
    }

    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self.metadata.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
    }

    pub fn remove(&mut self, key: &str) {
        let before = self.metadata.len();
        self.metadata.retain(|(known, _)| known != key);
        assert_eq!(self.metadata.len() + 1, before, "{key}");
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect(name)
    }

    /// The strings under a key.
    pub fn texts(&mut self, key: &str) -> &mut Vec<String> {
        match self.metadata.iter_mut().find(|(known, _)| known == key) {
            Some((_, Value::Texts(texts))) => texts,
            _ => panic!("{key} is no list of strings"),
        }
    }

    /// Renames the architecture and the keys of its settings.
    pub fn rename(&mut self, architecture: &str) {
        for (key, _) in &mut self.metadata {
            *key = key.replace("llama.", &format!("{architecture}."));
        }
        self.set("general.architecture", architecture);
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        const ALIGNMENT: usize = 32;
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut out, key.as_bytes());
            value.write(&mut out);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
            text(&mut out, tensor.name.as_bytes());
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(data);
        out
    }

    /// The parts that `llama-gguf-split` makes: settings in the first, `counts` tensors in each.
    pub fn split(&self, counts: &[usize]) -> Vec<Self> {
        assert_eq!(counts.iter().sum::<usize>(), self.tensors.len());
        let mut tensors = self.tensors.iter();
        let part = |(index, count): (usize, &usize)| {
            let own: Vec<_> = tensors.by_ref().take(*count).cloned().collect();
            let metadata = if index == 0 { self.metadata.clone() } else { Vec::new() };
            let mut part = Self { metadata, tensors: own };
            part.set("split.no", Value::U16(index as u16));
            part.set("split.count", Value::U16(counts.len() as u16));
            part.set("split.tensors.count", Value::I32(self.tensors.len() as i32));
            part
        };
        counts.iter().enumerate().map(part).collect()
    }
}

/// A byte in GPT-2's printable alphabet.
fn byte_level(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !printable(*byte)).count();
    char::from_u32(256 + before as u32).expect("a letter")
}
