//! `config.json` of T5 → [`ModelConfig`]: every key that changes the computation is read or refused.

use serde_json::Value;

use super::{
    config::{EncoderConfig, ModelConfig, ModelConfigError, Multipliers, Norms, QkNorm, SoftCaps},
    keys::{Keys, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, error},
};
use crate::kernels::{Activation, Norm, Rope};

/// T5, T5 v1.1 and Flan-T5.
pub const MODEL_TYPE: &str = "t5";

/// Longest prompt + answer. Positions are relative, so the model itself sets no limit.
const LONGEST: usize = 1 << 13;
const MAX_BUCKETS: usize = 1 << 10;
const MAX_DISTANCE: usize = 1 << 14;

/// Values of `feed_forward_proj`: `dense_act_fn` and `is_gated_act` that go with it, and the function.
const FEED_FORWARD: [(&str, &str, bool, Activation); 4] = [
    // Without a gate it is max(x, 0), whatever the function of a gate would be.
    ("relu", "relu", false, Activation::Gelu),
    ("gated-gelu", "gelu_new", true, Activation::Gelu),
    ("gated-gelu_new", "gelu_new", true, Activation::Gelu),
    ("gated-silu", "silu", true, Activation::Silu),
];

/// Keys that are read below.
const READ: [&str; 20] = [
    "model_type",
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "feed_forward_proj",
    "dense_act_fn",
    "is_gated_act",
    "tie_word_embeddings",
    "scale_decoder_outputs",
    "decoder_start_token_id",
    "eos_token_id",
    "is_encoder_decoder",
    "is_decoder",
];

/// Keys that play no part in what the model computes: of training, of other heads, of the library, and
/// defaults of generation, which a request chooses.
const IGNORED: [&str; 57] = [
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "diversity_penalty",
    "do_sample",
    "dropout_rate",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "n_positions",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "use_bfloat16",
    "use_cache",
];

/// Reads and checks the object of a T5.
pub fn config(keys: &Keys<'_>) -> Result<ModelConfig, ModelConfigError> {
    let known = |key: &str| READ.contains(&key) || IGNORED.contains(&key);
    let sets = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    };
    if let Some((key, value)) = keys.map.iter().find(|(key, value)| !known(key) && sets(value)) {
        return Err(error(key, format!("is {value}, but no T5 that is served has it")));
    }
    let is = |key: &str, expected: bool| match keys.get(key) {
        Some(value) if *value != expected => {
            Err(error(key, format!("is {value}, must be {expected}")))
        }
        _ => Ok(()),
    };
    is("is_encoder_decoder", true)?;
    is("is_decoder", false)?;
    let (gated, activation) = feed_forward(keys)?;

    let hidden_size = keys.size("d_model", MAX_WIDTH)?;
    let heads = keys.size("num_heads", MAX_HEADS)?;
    let head_dim = keys.size("d_kv", MAX_HEAD_DIM)?;
    if head_dim % 2 != 0 {
        return Err(error("d_kv", format!("is {head_dim}, must be even")));
    }
    let encoder_layers = keys.size("num_layers", MAX_LAYERS)?;
    let layers = keys.size_or("num_decoder_layers", MAX_LAYERS, Some(encoder_layers))?;
    let vocab_size = keys.size("vocab_size", MAX_VOCAB)?;
    let norm = Norm { eps: keys.norm_eps("layer_norm_epsilon", 1e-6)?, shift: 0.0 };

    let flag = |key: &str, absent: bool| match keys.get(key) {
        None => Ok(absent),
        Some(_) => keys.flag(key),
    };
    // transformers 5 writes `tie_word_embeddings` as true whatever it is, and with it whether the
    // logits of tied embeddings are scaled.
    let tied = flag("tie_word_embeddings", true)?;
    let scaled = flag("scale_decoder_outputs", tied)?;
    let logits = if scaled { (hidden_size as f64).powf(-0.5) as f32 } else { 1.0 };

    Ok(ModelConfig {
        model_type: MODEL_TYPE.to_owned(),
        vocab_size,
        hidden_size,
        intermediate_size: keys.size("d_ff", MAX_WIDTH)?,
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        max_positions: LONGEST,
        norm,
        activation,
        gated,
        rope: Rope { head_dim, inv_freq: Vec::new(), scale: 1.0 },
        local_rope: None,
        windows: vec![None; layers],
        rotary: vec![false; layers],
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        fused: false,
        experts: None,
        caps: SoftCaps::default(),
        norms: Norms::Before,
        qk_norm: QkNorm::None,
        // Scores are not divided by √head_dim.
        multipliers: Multipliers {
            query: (head_dim as f64).sqrt() as f32,
            logits,
            ..Multipliers::ONE
        },
        tied: tied && scaled,
        eos: keys.ids("eos_token_id", vocab_size)?,
        encoder: Some(encoder(keys, encoder_layers, vocab_size)?),
    })
}

/// Whether the feed-forward layer has a gate, and its function.
fn feed_forward(keys: &Keys<'_>) -> Result<(bool, Activation), ModelConfigError> {
    let names = || FEED_FORWARD.map(|(name, ..)| name).join(", ");
    let key = "feed_forward_proj";
    let name = match keys.get(key) {
        None => "relu",
        Some(value) => value.as_str().unwrap_or_default(),
    };
    let found = FEED_FORWARD.iter().find(|(known, ..)| *known == name).ok_or_else(|| {
        let got = keys.get(key).map(Value::to_string).unwrap_or_default();
        error(key, format!("is {got}, must be one of {}", names()))
    })?;
    let (_, function, gated, activation) = *found;
    for (key, expected) in
        [("dense_act_fn", Value::from(function)), ("is_gated_act", Value::from(gated))]
    {
        if let Some(value) = keys.get(key).filter(|value| **value != expected) {
            let reason =
                format!("is {value}, must be {expected} beside feed_forward_proj {name:?}");
            return Err(error(key, reason));
        }
    }
    Ok((gated, activation))
}

fn encoder(
    keys: &Keys<'_>,
    layers: usize,
    vocab_size: usize,
) -> Result<EncoderConfig, ModelConfigError> {
    let key = "relative_attention_num_buckets";
    let buckets = keys.size_or(key, MAX_BUCKETS, Some(32))?;
    if buckets < 4 {
        return Err(error(key, format!("is {buckets}, must be at least 4")));
    }
    let key = "relative_attention_max_distance";
    let max_distance = keys.size_or(key, MAX_DISTANCE, Some(128))?;
    if max_distance <= buckets / 2 {
        let reason = format!("is {max_distance}, must be above half of the buckets, {buckets}");
        return Err(error(key, reason));
    }
    let key = "decoder_start_token_id";
    let [start] = keys.ids(key, vocab_size)?[..] else {
        return Err(error(key, "must be the one token id that answers begin after"));
    };
    Ok(EncoderConfig { layers, buckets, max_distance, start })
}
