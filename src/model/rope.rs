//! Rotary constants of a `config.json`.

use serde_json::{Map, Value};

use super::{
    config::ModelConfigError,
    keys::{Keys, error},
};
use crate::kernels::Rope;

/// Rotary constants: `inv_freq[j] = theta^(−2j / head_dim)`, scaled by `rope_type`; `default_theta`
/// where the configuration names none. f32 as in
/// transformers, with which the models were trained.
pub(super) fn rope(
    keys: &Keys<'_>,
    head_dim: usize,
    max_positions: usize,
    default_theta: f64,
) -> Result<Rope, ModelConfigError> {
    // transformers 5 keeps everything in `rope_parameters`. 4 keeps `rope_theta` apart and the rest
    // in `rope_scaling`, which wins where both are present.
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
    let inside = |e: ModelConfigError| ModelConfigError { key: format!("{name}.{}", e.key), ..e };
    if let Some((key, _)) = section.map.iter().find(|(_, value)| value.is_object()) {
        return Err(inside(error(key, "frequencies that differ by layer are not served")));
    }
    let theta = match section.get("rope_theta") {
        Some(_) => section.positive("rope_theta", None).map_err(inside)?,
        None => keys.positive("rope_theta", Some(default_theta))?,
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
    let original = || {
        // As in transformers, the key beside the section wins over the one inside.
        let key = "original_max_position_embeddings";
        match keys.get(key) {
            Some(_) => keys.positive(key, None),
            None => section.positive(key, Some(max_positions as f64)).map_err(inside),
        }
    };
    let mut scale = 1.0;
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
            let scaling = Llama3 { factor: positive("factor")?, low, high, original: original()? };
            inv_freq.iter_mut().for_each(|f| {
                *f = (f64::from(*f) * scaling.multiplier(f64::from(*f))) as f32;
            });
        }
        "yarn" => {
            let yarn = Yarn::read(&section, original()?, max_positions).map_err(inside)?;
            scale = yarn.scale as f32;
            yarn.stretch(&mut inv_freq, theta);
        }
        other => {
            let known = "\"default\", \"linear\", \"llama3\" or \"yarn\"";
            return Err(inside(error("rope_type", format!("is {other:?}, must be {known}"))));
        }
    }
    match inv_freq.iter().position(|frequency| !frequency.is_finite() || *frequency <= 0.0) {
        None => Ok(Rope { inv_freq, scale }),
        Some(pair) => {
            let reason = format!("the frequency of pair {pair} is {}", inv_freq[pair]);
            Err(error("rope_theta, rope_scaling or rope_parameters", reason))
        }
    }
}

/// Rotary constants of a model whose layers with a window have their own: those of the others, then
/// theirs. transformers 5 keeps both in `rope_parameters`, by type of layer; 4 has
/// `rope_local_base_freq` beside the keys of the others.
pub(super) fn local_and_global(
    keys: &Keys<'_>,
    head_dim: usize,
    max_positions: usize,
    default_theta: f64,
) -> Result<[Rope; 2], ModelConfigError> {
    let nested = keys.get("rope_parameters").and_then(Value::as_object);
    let nested = nested.filter(|map| map.contains_key("full_attention"));
    if nested.is_some() && keys.get("rope_scaling").is_some() {
        return Err(error("rope_scaling", "stands beside rope_parameters of each type of layer"));
    }
    let part = |kind: &str, keys_of_4: [(&str, &str); 2], default| {
        let map = match nested {
            Some(map) => Map::from_iter(
                map.get(kind).map(|part| ("rope_parameters".to_owned(), part.clone())),
            ),
            None => Map::from_iter(
                keys_of_4
                    .into_iter()
                    .filter_map(|(name, key)| Some((name.to_owned(), keys.get(key)?.clone()))),
            ),
        };
        rope(&Keys { map: &map }, head_dim, max_positions, default)
    };
    let global = [("rope_theta", "rope_theta"), ("rope_scaling", "rope_scaling")];
    let local = [("rope_theta", "rope_local_base_freq"); 2];
    Ok([
        part("full_attention", global, default_theta)?,
        part("sliding_attention", local, 10_000.0)?,
    ])
}

/// Llama 3's scaling of rotary frequencies: wavelengths above `original / low` are stretched by
/// `factor`, those below `original / high` kept, and those between blended, linearly in
/// 1/wavelength.
#[derive(Debug, Clone, Copy)]
pub struct Llama3 {
    /// Factor of long wavelengths.
    pub factor: f64,
    /// `low_freq_factor`.
    pub low: f64,
    /// `high_freq_factor`.
    pub high: f64,
    /// Context that the model was trained with, in tokens.
    pub original: f64,
}

impl Llama3 {
    /// What a frequency (radians per token) is multiplied by: 1/factor to 1.
    pub fn multiplier(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let smooth = (self.original / wavelength - self.low) / (self.high - self.low);
        let smooth = smooth.clamp(0.0, 1.0);
        (1.0 - smooth) / self.factor + smooth
    }
}

/// YaRN (Peng et al. 2023, §3): pairs that turn more than `fast` times within the original context are
/// kept, those that turn less than `slow` times are stretched by `factor`, and those between blended,
/// linearly in the number of the pair; cos and sin are multiplied by `scale`.
#[derive(Debug, Clone, Copy)]
struct Yarn {
    factor: f64,
    /// Turns within the original context.
    fast: f64,
    slow: f64,
    /// Whether the ends of the blend are whole numbers of pairs.
    truncate: bool,
    /// Context that the model was trained with, in tokens.
    original: f64,
    scale: f64,
}

impl Yarn {
    fn read(
        section: &Keys<'_>,
        original: f64,
        max_positions: usize,
    ) -> Result<Self, ModelConfigError> {
        let factor = section.positive("factor", Some(max_positions as f64 / original))?;
        let fast = section.positive("beta_fast", Some(32.0))?;
        let slow = section.positive("beta_slow", Some(1.0))?;
        if fast <= slow {
            return Err(error("beta_fast", format!("is {fast}, must be above beta_slow = {slow}")));
        }
        let grown = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let both = ["mscale", "mscale_all_dim"].map(|key| section.positive(key, Some(0.0)));
        let [numerator, denominator] = both;
        let default = match (numerator?, denominator?) {
            (numerator, denominator) if numerator > 0.0 && denominator > 0.0 => {
                grown(numerator) / grown(denominator)
            }
            _ => grown(1.0),
        };
        let scale = section.positive("attention_factor", Some(default))?;
        let truncate = section.get("truncate").is_none() || section.flag("truncate")?;
        Ok(Self { factor, fast, slow, truncate, original, scale })
    }

    fn stretch(&self, inv_freq: &mut [f32], theta: f64) {
        let width = 2.0 * inv_freq.len() as f64;
        let pair = |turns: f64| {
            let wavelength = self.original / (turns * 2.0 * std::f64::consts::PI);
            width * wavelength.ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (pair(self.fast), pair(self.slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(width - 1.0));
        if low == high {
            high += 0.001;
        }
        for (index, frequency) in inv_freq.iter_mut().enumerate() {
            let stretched = (((index as f64 - low) / (high - low)) as f32).clamp(0.0, 1.0);
            let kept = *frequency * (1.0 - stretched);
            *frequency = *frequency / self.factor as f32 * stretched + kept;
        }
    }
}
