//! `config.json` → [`ModelConfig`]: every key that changes the computation is read or refused.

use serde_json::{Map, Value};

use super::config::{ConfigError, ModelConfig};
use crate::kernels::Rope;

/// What distinguishes the families; the rest they share.
struct Family {
    model_type: &'static str,
    /// Biases on q, k, v without a key that says so.
    always_qkv_bias: bool,
    /// `attention_bias` is read, for q, k, v and o.
    attention_bias_key: bool,
    /// `mlp_bias` is read.
    mlp_bias_key: bool,
    /// Norms on the heads of q and k.
    qk_norm: bool,
    /// How `sliding_window` becomes a window per layer.
    window: WindowRule,
    /// `head_dim` when the key is absent; `None` is hidden_size / num_attention_heads.
    head_dim: Option<usize>,
}

#[derive(Clone, Copy)]
enum WindowRule {
    /// The family has none.
    Never,
    /// All layers, when the key is a number; transformers' default where it is absent.
    All { absent: usize },
    /// Only with `use_sliding_window`: the layers of `layer_types`, else those from
    /// `max_window_layers` on.
    Chosen,
}

const FAMILIES: [Family; 4] = [
    Family {
        model_type: "llama",
        always_qkv_bias: false,
        attention_bias_key: true,
        mlp_bias_key: true,
        qk_norm: false,
        window: WindowRule::Never,
        head_dim: None,
    },
    Family {
        model_type: "mistral",
        always_qkv_bias: false,
        attention_bias_key: false,
        mlp_bias_key: false,
        qk_norm: false,
        window: WindowRule::All { absent: 4096 },
        head_dim: None,
    },
    Family {
        model_type: "qwen2",
        always_qkv_bias: true,
        attention_bias_key: false,
        mlp_bias_key: false,
        qk_norm: false,
        window: WindowRule::Chosen,
        head_dim: None,
    },
    Family {
        model_type: "qwen3",
        always_qkv_bias: false,
        attention_bias_key: true,
        mlp_bias_key: false,
        qk_norm: true,
        window: WindowRule::Chosen,
        head_dim: Some(128),
    },
];

// Far above any model of the family, and small enough that no product of a few overflows.
const MAX_WIDTH: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_POSITIONS: usize = 1 << 26;

impl ModelConfig {
    /// Reads and checks a `config.json` as transformers 4 or 5 write it.
    pub fn from_json(json: &Value) -> Result<Self, ConfigError> {
        config(json)
    }
}

fn config(json: &Value) -> Result<ModelConfig, ConfigError> {
    let keys = Keys { map: json.as_object().ok_or_else(|| error("(root)", "is not an object"))? };
    let family = family(&keys)?;
    for key in ["quantization_config", "num_local_experts", "num_experts"] {
        if keys.get(key).is_some() {
            return Err(error(key, "quantised and mixture-of-experts checkpoints are not served"));
        }
    }
    match keys.get("hidden_act") {
        None => {}
        Some(value) if value == "silu" => {}
        Some(value) => return Err(error("hidden_act", format!("is {value}, must be \"silu\""))),
    }

    let hidden_size = keys.size("hidden_size", MAX_WIDTH)?;
    let layers = keys.size("num_hidden_layers", MAX_LAYERS)?;
    let heads = keys.size("num_attention_heads", MAX_HEADS)?;
    // transformers' default where the key is absent is a constant in the other families.
    let default = (family.model_type == "llama" || keys.map.contains_key("num_key_value_heads"))
        .then_some(heads);
    let kv_heads = keys.size_or("num_key_value_heads", MAX_HEADS, default)?;
    if heads % kv_heads != 0 {
        let reason = format!("is {kv_heads}, must divide num_attention_heads = {heads}");
        return Err(error("num_key_value_heads", reason));
    }
    let derived = (hidden_size % heads == 0).then_some(hidden_size / heads);
    let head_dim = keys.size_or("head_dim", MAX_HEAD_DIM, family.head_dim.or(derived))?;
    if head_dim % 2 != 0 {
        let reason = format!("is {head_dim}, must be even: rotary pairs halve it");
        return Err(error("head_dim", reason));
    }
    let max_positions = keys.size("max_position_embeddings", MAX_POSITIONS)?;
    let attention_bias = family.attention_bias_key && keys.flag("attention_bias")?;
    let vocab_size = keys.size("vocab_size", MAX_VOCAB)?;

    Ok(ModelConfig {
        model_type: family.model_type.to_owned(),
        vocab_size,
        hidden_size,
        intermediate_size: keys.size("intermediate_size", MAX_WIDTH)?,
        layers,
        heads,
        kv_heads,
        head_dim,
        max_positions,
        norm_eps: keys.norm_eps()?,
        rope: rope(&keys, head_dim, max_positions)?,
        windows: windows(&keys, family.window, layers)?,
        qkv_bias: family.always_qkv_bias || attention_bias,
        output_bias: attention_bias,
        mlp_bias: family.mlp_bias_key && keys.flag("mlp_bias")?,
        qk_norm: family.qk_norm,
        tied: keys.flag("tie_word_embeddings")?,
        eos: eos(&keys, vocab_size)?,
    })
}

fn family(keys: &Keys<'_>) -> Result<&'static Family, ConfigError> {
    let known = FAMILIES.map(|family| family.model_type).join(", ");
    let name = keys.get("model_type").and_then(Value::as_str).ok_or_else(|| {
        error("model_type", format!("is missing or not a string, must be one of {known}"))
    })?;
    FAMILIES.iter().find(|family| family.model_type == name).ok_or_else(|| {
        error("model_type", format!("is {name:?}, which is not served; must be one of {known}"))
    })
}

/// Rotary constants: `inv_freq[j] = theta^(−2j / head_dim)`, scaled as the type says. f32 as in
/// transformers, whose models were trained with those very values.
fn rope(keys: &Keys<'_>, head_dim: usize, max_positions: usize) -> Result<Rope, ConfigError> {
    // transformers 5 keeps everything in `rope_parameters`; 4 had theta apart, and wins there.
    let filled =
        |key| keys.get(key).filter(|value| value.as_object().is_none_or(|m| !m.is_empty()));
    let (name, section) = match (filled("rope_scaling"), filled("rope_parameters")) {
        (Some(value), _) => ("rope_scaling", Some(value)),
        (None, value) => ("rope_parameters", value),
    };
    let empty = Map::new();
    let section = match section {
        None => Keys { map: &empty },
        Some(value) => Keys {
            map: value
                .as_object()
                .ok_or_else(|| error(name, format!("is {value}, must be an object")))?,
        },
    };
    let inside = |e: ConfigError| ConfigError { key: format!("{name}.{}", e.key), ..e };
    if let Some((key, _)) = section.map.iter().find(|(_, value)| value.is_object()) {
        return Err(inside(error(key, "frequencies that differ by layer are not served")));
    }
    let theta = match section.get("rope_theta") {
        Some(_) => section.positive("rope_theta", None).map_err(inside)?,
        None => keys.positive("rope_theta", Some(10_000.0))?,
    };
    if section
        .get("partial_rotary_factor")
        .or(keys.get("partial_rotary_factor"))
        .is_some_and(|value| value.as_f64() != Some(1.0))
    {
        return Err(error("partial_rotary_factor", "only whole heads are rotated; must be 1"));
    }
    let mut inv_freq: Vec<f32> = (0..head_dim / 2)
        .map(|j| 1.0 / (theta as f32).powf((2 * j) as f32 / head_dim as f32))
        .collect();

    let kind = match section.get("rope_type").or(section.get("type")) {
        None => "default",
        Some(value) => value.as_str().unwrap_or("(not a string)"),
    };
    let positive = |key| section.positive(key, None).map_err(inside);
    match kind {
        "default" if section.get("factor").is_none_or(|factor| factor.as_f64() == Some(1.0)) => {}
        "default" => {
            let reason = "is set without a rope_type that uses it, such as \"linear\"";
            return Err(inside(error("factor", reason)));
        }
        "linear" => {
            let factor = positive("factor")? as f32;
            inv_freq.iter_mut().for_each(|f| *f /= factor);
        }
        "llama3" => {
            let low = positive("low_freq_factor")?;
            let high = positive("high_freq_factor")?;
            if high <= low {
                let reason = format!("is {high}, must be above low_freq_factor = {low}");
                return Err(inside(error("high_freq_factor", reason)));
            }
            // As in transformers, the key beside the section wins over the one inside.
            let key = "original_max_position_embeddings";
            let original = match keys.get(key) {
                Some(_) => keys.positive(key, None)?,
                None => section.positive(key, Some(max_positions as f64)).map_err(inside)?,
            };
            let scaling = Llama3 { factor: positive("factor")?, low, high, original };
            inv_freq.iter_mut().for_each(|f| *f = scaling.apply(*f));
        }
        other => {
            let reason = format!("is {other:?}, must be \"default\", \"linear\" or \"llama3\"");
            return Err(inside(error("rope_type", reason)));
        }
    }
    Ok(Rope { inv_freq, scale: 1.0 })
}

/// Llama 3's scaling: long wavelengths are stretched by `factor`, short ones kept, those between
/// interpolated.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
}

impl Llama3 {
    fn apply(&self, frequency: f32) -> f32 {
        let f = f64::from(frequency);
        let wavelength = 2.0 * std::f64::consts::PI / f;
        if wavelength > self.original / self.low {
            (f / self.factor) as f32
        } else if wavelength < self.original / self.high {
            frequency
        } else {
            let smooth = (self.original / wavelength - self.low) / (self.high - self.low);
            ((1.0 - smooth) * f / self.factor + smooth * f) as f32
        }
    }
}

fn windows(
    keys: &Keys<'_>,
    rule: WindowRule,
    layers: usize,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let width = |absent| match keys.map.get("sliding_window") {
        None => Ok(absent),
        Some(Value::Null) => Ok(None),
        Some(_) => keys.size("sliding_window", MAX_POSITIONS).map(Some),
    };
    match rule {
        WindowRule::Never => Ok(vec![None; layers]),
        WindowRule::All { absent } => Ok(vec![width(Some(absent))?; layers]),
        WindowRule::Chosen => {
            if !keys.flag("use_sliding_window")? {
                return Ok(vec![None; layers]);
            }
            let window = width(Some(4096))?;
            let Some(types) = keys.get("layer_types") else {
                let first = keys.count_or("max_window_layers", MAX_LAYERS, Some(28))?;
                return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
            };
            let types =
                types.as_array().filter(|types| types.len() == layers).ok_or_else(|| {
                    let reason = format!("must be a list of num_hidden_layers = {layers} names");
                    error("layer_types", reason)
                })?;
            let one = |(layer, name): (usize, &Value)| match name.as_str() {
                Some("sliding_attention") => Ok(window),
                Some("full_attention") => Ok(None),
                _ => Err(error(
                    &format!("layer_types[{layer}]"),
                    format!("is {name}, must be \"sliding_attention\" or \"full_attention\""),
                )),
            };
            types.iter().enumerate().map(one).collect()
        }
    }
}

fn eos(keys: &Keys<'_>, vocab_size: usize) -> Result<Vec<u32>, ConfigError> {
    let key = "eos_token_id";
    let id = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .filter(|&id| (id as usize) < vocab_size)
            .ok_or_else(|| {
                let reason = format!("{value} is not a token id below vocab_size = {vocab_size}");
                error(key, reason)
            })
    };
    match keys.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

/// A JSON object read key by key; `null` is absent.
struct Keys<'a> {
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// An integer in 1..=max.
    fn size(&self, key: &str, max: usize) -> Result<usize, ConfigError> {
        self.size_or(key, max, None)
    }

    fn size_or(&self, key: &str, max: usize, default: Option<usize>) -> Result<usize, ConfigError> {
        match self.count_or(key, max, default)? {
            0 => Err(error(key, format!("is 0, must be an integer from 1 to {max}"))),
            size => Ok(size),
        }
    }

    /// An integer in 0..=max.
    fn count_or(
        &self,
        key: &str,
        max: usize,
        default: Option<usize>,
    ) -> Result<usize, ConfigError> {
        let Some(value) = self.get(key) else {
            return default
                .ok_or_else(|| error(key, format!("is missing, must be an integer to {max}")));
        };
        value
            .as_u64()
            .and_then(|value| usize::try_from(value).ok())
            .filter(|&value| value <= max)
            .ok_or_else(|| error(key, format!("is {value}, must be an integer to {max}")))
    }

    /// A finite number above 0.
    fn positive(&self, key: &str, default: Option<f64>) -> Result<f64, ConfigError> {
        let Some(value) = self.get(key) else {
            return default.ok_or_else(|| error(key, "is missing, must be a number above 0"));
        };
        value
            .as_f64()
            .filter(|value| value.is_finite() && *value > 0.0)
            .ok_or_else(|| error(key, format!("is {value}, must be a number above 0")))
    }

    fn norm_eps(&self) -> Result<f32, ConfigError> {
        let (key, eps) = ("rms_norm_eps", self.positive("rms_norm_eps", Some(1e-6))?);
        if eps > 0.1 || eps < f64::from(f32::MIN_POSITIVE) {
            return Err(error(key, format!("is {eps}, must be a small number, at most 0.1")));
        }
        Ok(eps as f32)
    }

    fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| error(key, format!("is {value}, must be true or false"))),
        }
    }
}

fn error(key: &str, reason: impl Into<String>) -> ConfigError {
    ConfigError { key: key.to_owned(), reason: reason.into() }
}
