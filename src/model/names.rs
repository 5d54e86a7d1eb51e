//! Names of the tensors of a checkpoint, as transformers writes them for the Llama family and for T5.
//! Every other file takes them from here.

/// The embedding table `[vocab, hidden]`.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The last norm `[hidden]`.
pub const NORM: &str = "model.norm.weight";
/// The output head `[vocab, hidden]`; absent where it is tied to the embedding.
pub const HEAD: &str = "lm_head.weight";

/// The embedding table of T5, of encoder and decoder.
pub const T5_EMBEDDING: &str = "shared.weight";
/// Other names of T5's embedding table, which repeat it where a checkpoint has them.
pub const T5_COPIES: [&str; 2] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
/// The last norms of T5's encoder and decoder `[hidden]`.
pub const T5_NORMS: [&str; 2] =
    ["encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"];
/// The biases by distance of T5's encoder and decoder `[buckets, heads]`.
pub const T5_BIASES: [&str; 2] = [
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
];
/// What the first T5 checkpoints store beside them, which no T5 reads.
const T5_UNREAD: &str = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";

/// Last component of the path of a linear layer, by which adapters name their targets.
pub const TARGETS: [&str; 9] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
];

/// The same of T5.
pub const T5_TARGETS: [&str; 8] = ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"];

/// A module of one decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// Norm before the attention.
    InputNorm,
    /// Norm after the attention: of its output where norms stand after, else before the feed-forward
    /// layer.
    PostNorm,
    /// Norm before the feed-forward layer, where another stands after the attention.
    PreMlpNorm,
    /// Norm of the feed-forward layer's output.
    PostMlpNorm,
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Query, key and value projections in one.
    Qkv,
    /// Attention output projection.
    O,
    /// Norm of the queries.
    QNorm,
    /// Norm of the keys.
    KNorm,
    /// Gate projection of the feed-forward layer.
    Gate,
    /// Up projection of the feed-forward layer.
    Up,
    /// Gate and up projections in one.
    GateUp,
    /// Down projection of the feed-forward layer.
    Down,
    /// Norm before the attention to the encoder's output.
    CrossNorm,
    /// Query projection of that attention.
    CrossQ,
    /// Its key projection, of the encoder's output.
    CrossK,
    /// Its value projection, of the same.
    CrossV,
    /// Its output projection.
    CrossO,
}

/// A stack of layers: how the paths of its modules are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// A decoder alone.
    Decoder,
    /// The encoder of T5.
    T5Encoder {
        /// Whether its feed-forward layers have a gate.
        gated: bool,
    },
    /// The decoder of T5.
    T5Decoder {
        /// As the encoder's.
        gated: bool,
    },
}

impl Stack {
    /// Full path of a module of layer `layer`, such as `decoder.block.3.layer.1.EncDecAttention.q`.
    pub fn path(self, module: Module, layer: usize) -> String {
        let (stack, feed_forward, gated) = match self {
            Self::Decoder => return module.path(layer),
            Self::T5Encoder { gated } => ("encoder", 1, gated),
            Self::T5Decoder { gated } => ("decoder", 2, gated),
        };
        let (part, name) = match module {
            Module::InputNorm => (0, "layer_norm"),
            Module::Q => (0, "SelfAttention.q"),
            Module::K => (0, "SelfAttention.k"),
            Module::V => (0, "SelfAttention.v"),
            Module::O => (0, "SelfAttention.o"),
            Module::CrossNorm => (1, "layer_norm"),
            Module::CrossQ => (1, "EncDecAttention.q"),
            Module::CrossK => (1, "EncDecAttention.k"),
            Module::CrossV => (1, "EncDecAttention.v"),
            Module::CrossO => (1, "EncDecAttention.o"),
            Module::PostNorm => (feed_forward, "layer_norm"),
            Module::Gate => (feed_forward, "DenseReluDense.wi_0"),
            Module::Up if gated => (feed_forward, "DenseReluDense.wi_1"),
            Module::Up => (feed_forward, "DenseReluDense.wi"),
            Module::Down => (feed_forward, "DenseReluDense.wo"),
            other => (feed_forward, other.name()),
        };
        format!("{stack}.block.{layer}.layer.{part}.{name}")
    }

    /// Name of a module's weight.
    pub fn weight(self, module: Module, layer: usize) -> String {
        format!("{}.weight", self.path(module, layer))
    }

    /// Name of a module's bias.
    pub fn bias(self, module: Module, layer: usize) -> String {
        format!("{}.bias", self.path(module, layer))
    }
}

impl Module {
    /// Path inside its layer, such as `self_attn.q_proj`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InputNorm => "input_layernorm",
            Self::PostNorm => "post_attention_layernorm",
            Self::PreMlpNorm => "pre_feedforward_layernorm",
            Self::PostMlpNorm => "post_feedforward_layernorm",
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::Qkv => "self_attn.qkv_proj",
            Self::O => "self_attn.o_proj",
            Self::QNorm => "self_attn.q_norm",
            Self::KNorm => "self_attn.k_norm",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::GateUp => "mlp.gate_up_proj",
            Self::Down => "mlp.down_proj",
            Self::CrossNorm => "cross_attention_layernorm",
            Self::CrossQ => "cross_attn.q_proj",
            Self::CrossK => "cross_attn.k_proj",
            Self::CrossV => "cross_attn.v_proj",
            Self::CrossO => "cross_attn.o_proj",
        }
    }

    /// Full path in a decoder alone, such as `model.layers.3.self_attn.q_proj`.
    pub fn path(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}", self.name())
    }
}

/// How the experts of a mixture are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertNames {
    /// `mlp.experts.3.gate_proj` (Qwen3-MoE).
    Mlp,
    /// `block_sparse_moe.experts.3.w1` (Mixtral).
    Mixtral,
}

/// Where transformers 5 has the feed-forward half of every model, and adapters that are made with it.
const MLP: &str = ".mlp.";
const MIXTRAL: &str = ".block_sparse_moe.";

impl ExpertNames {
    /// Path of the router of a layer.
    pub fn router(self, layer: usize) -> String {
        format!("model.layers.{layer}{}gate", self.part())
    }

    /// Path of an expert's gate, up or down projection.
    pub fn path(self, layer: usize, expert: usize, module: Module) -> String {
        let name = match (self, module) {
            (Self::Mixtral, Module::Gate) => "w1",
            (Self::Mixtral, Module::Up) => "w3",
            (Self::Mixtral, _) => "w2",
            (Self::Mlp, module) => module.name().trim_start_matches("mlp."),
        };
        format!("model.layers.{layer}{}experts.{expert}.{name}", self.part())
    }

    /// The path in a checkpoint of what transformers 5 calls `path`.
    pub fn stored(self, path: &str) -> String {
        path.replacen(MLP, self.part(), 1)
    }

    /// What transformers 5 calls the `path` of a checkpoint.
    pub fn current(self, path: &str) -> String {
        path.replacen(self.part(), MLP, 1)
    }

    fn part(self) -> &'static str {
        match self {
            Self::Mlp => MLP,
            Self::Mixtral => MIXTRAL,
        }
    }
}

/// Path of the module that owns `tensor`: the name without `.weight` or `.bias`.
pub fn module_of(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(module, _)| module)
}

/// Last name of the path of the module that owns `tensor`, such as q_proj.
pub fn last_of(tensor: &str) -> &str {
    let module = module_of(tensor);
    module.rsplit_once('.').map_or(module, |(_, last)| last)
}

/// Whether `tensor` is an embedding table.
pub fn is_embedding(tensor: &str) -> bool {
    tensor == EMBEDDING || tensor == T5_EMBEDDING
}

/// Whether `tensor` is the embedding table or the output head.
pub fn is_vocabulary(tensor: &str) -> bool {
    is_embedding(tensor) || T5_COPIES.contains(&tensor) || tensor == HEAD
}

/// Whether `tensor` is a table that is looked up and not multiplied: adapters have no factors of it.
pub fn is_table(tensor: &str) -> bool {
    is_embedding(tensor) || T5_BIASES.contains(&tensor)
}

/// Whether `path` is of an expert's linear layer.
pub fn is_expert(path: &str) -> bool {
    path.contains(".experts.")
}

/// Whether `tensor` is the router of a mixture of experts.
pub fn is_router(tensor: &str) -> bool {
    tensor.ends_with(".gate.weight")
}

/// Whether `tensor` multiplies the rows of prompts that T5 encodes, and no others: of its encoder, or
/// keys and values of what is encoded.
pub fn is_of_prompts(tensor: &str) -> bool {
    let cross = [".EncDecAttention.k.", ".EncDecAttention.v."];
    tensor.starts_with("encoder.") || cross.iter().any(|part| tensor.contains(part))
}

/// Whether `tensor` is one that a model of its kind never reads.
pub fn is_unread(tensor: &str) -> bool {
    is_rotary_buffer(tensor) || tensor == T5_UNREAD
}

/// Whether `tensor` is a buffer of rotary frequencies, which old checkpoints store; the frequencies
/// follow from the configuration.
pub fn is_rotary_buffer(tensor: &str) -> bool {
    tensor.ends_with("rotary_emb.inv_freq")
}

/// Whether `tensor` belongs to the value head that trainers add to a language model.
pub fn is_value_head(tensor: &str) -> bool {
    tensor.starts_with("v_head.")
}
