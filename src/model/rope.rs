//! Rotary constants of a `config.json`.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::{
    config::ModelConfigError,
    keys::{Keys, error},
};
use crate::kernels::Rope;

/// What the rotary constants of a model follow from beside its keys.
#[derive(Clone, Copy)]
pub(super) struct Rotation {
    /// Width of a head.
    pub head_dim: usize,
    /// Longest sequence, in tokens.
    pub max_positions: usize,
    /// `rope_theta` where the configuration names none.
    pub theta: f64,
    /// Whether heads may be rotated in part, and scaled by longrope.
    pub partial: bool,
}

/// The part of a configuration that scales rotation.
struct Section<'a> {
    name: &'static str,
    keys: Keys<'a>,
    /// `rope_type`.
    kind: &'a str,
}

impl<'a> Section<'a> {
    /// transformers 5 keeps everything in `rope_parameters`. 4 keeps `rope_theta` apart and the rest in
    /// `rope_scaling`, which wins where both are present.
    fn of(keys: &Keys<'a>, partial: bool) -> Result<Self, ModelConfigError> {
        static EMPTY: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
        let filled =
            |key| keys.get(key).filter(|value| value.as_object().is_none_or(|m| !m.is_empty()));
        let (name, section) = match (filled("rope_scaling"), filled("rope_parameters")) {
            (Some(value), _) => ("rope_scaling", Some(value)),
            (None, value) => ("rope_parameters", value),
        };
        let map = match section {
            None => &EMPTY,
            Some(value) => value
                .as_object()
                .ok_or_else(|| error(name, format!("is {value}, must be an object")))?,
        };
        let keys = Keys { map };
        let kind = match keys.get("rope_type").or(keys.get("type")) {
            None => "default",
            Some(value) => value.as_str().unwrap_or("(not a string)"),
        };
        // Old names of longrope in Phi-3's configurations.
        let kind = if partial && matches!(kind, "su" | "yarn") { LONG } else { kind };
        Ok(Self { name, keys, kind })
    }

    /// An error of a key inside.
    fn inside(&self, e: ModelConfigError) -> ModelConfigError {
        ModelConfigError { key: format!("{}.{}", self.name, e.key), ..e }
    }

    fn positive(&self, key: &str, default: Option<f64>) -> Result<f64, ModelConfigError> {
        self.keys.positive(key, default).map_err(|e| self.inside(e))
    }

    /// Context that the model was trained with, in tokens. As in transformers, the key beside the
    /// section wins over the one inside.
    fn original(&self, keys: &Keys<'_>, default: usize) -> Result<f64, ModelConfigError> {
        let key = "original_max_position_embeddings";
        match keys.get(key) {
            Some(_) => keys.positive(key, None),
            None => self.positive(key, Some(default as f64)),
        }
    }

    /// A factor for each rotated pair.
    fn factors(&self, key: &str, pairs: usize) -> Result<Vec<f32>, ModelConfigError> {
        let refuse = || {
            let reason = format!("must be a list of {pairs} numbers above 0");
            self.inside(error(key, reason))
        };
        let list = self.keys.get(key).and_then(Value::as_array).ok_or_else(refuse)?;
        let factor = |value: &Value| value.as_f64().map(|f| f as f32).filter(|f| *f > 0.0);
        let factors: Option<Vec<f32>> = list.iter().map(factor).collect();
        factors.filter(|factors| factors.len() == pairs).ok_or_else(refuse)
    }
}

const PARTIAL: &str = "partial_rotary_factor";
const LONG: &str = "longrope";
/// Phi-3's original context where the configuration names none.
const ORIGINAL: usize = 4096;

/// Longest sequence, in tokens, whose rotation does not depend on its length: longrope has other
/// factors beyond the original context.
pub(super) fn longest(
    keys: &Keys<'_>,
    Rotation { max_positions, partial, .. }: Rotation,
) -> Result<usize, ModelConfigError> {
    let section = Section::of(keys, partial)?;
    let same = || section.keys.get("short_factor") == section.keys.get("long_factor");
    if !partial || section.kind != LONG || same() {
        return Ok(max_positions);
    }
    Ok(max_positions.min(section.original(keys, ORIGINAL)? as usize))
}

/// Rotary constants: `inv_freq[j] = theta^(−2j / d)` for the d values of a head that are rotated, scaled
/// by `rope_type`. f32 as in transformers, with which the models were trained.
pub(super) fn rope(
    keys: &Keys<'_>,
    Rotation { head_dim, max_positions, theta, partial }: Rotation,
) -> Result<Rope, ModelConfigError> {
    let section = Section::of(keys, partial)?;
    if let Some((key, _)) = section.keys.map.iter().find(|(_, value)| value.is_object()) {
        let reason = "frequencies that differ by layer are not served";
        return Err(section.inside(error(key, reason)));
    }
    let theta = match section.keys.get("rope_theta") {
        Some(_) => section.positive("rope_theta", None)?,
        None => keys.positive("rope_theta", Some(theta))?,
    };
    let part = section.keys.get(PARTIAL).or(keys.get(PARTIAL));
    let rotated = match part {
        None => head_dim,
        Some(value) if partial => {
            let width = value.as_f64().map(|part| (head_dim as f64 * part) as usize);
            width.filter(|width| (2..=head_dim).contains(width) && width % 2 == 0).ok_or_else(
                || {
                    let reason =
                        format!("is {value}, must give an even part of head_dim = {head_dim}");
                    error(PARTIAL, reason)
                },
            )?
        }
        Some(value) if value.as_f64() == Some(1.0) => head_dim,
        Some(_) => return Err(error(PARTIAL, "only whole heads are rotated; must be 1")),
    };
    let base = |j: usize| (theta as f32).powf((2 * j) as f32 / rotated as f32);
    let mut inv_freq: Vec<f32> = (0..rotated / 2).map(|j| 1.0 / base(j)).collect();

    let positive = |key| section.positive(key, None);
    let original = || section.original(keys, max_positions);
    let mut scale = 1.0;
    match section.kind {
        "default"
            if section.keys.get("factor").is_none_or(|factor| factor.as_f64() == Some(1.0)) => {}
        "default" => {
            let reason = "is set without a rope_type that uses it, such as \"linear\"";
            return Err(section.inside(error("factor", reason)));
        }
        "linear" if !partial => {
            let factor = positive("factor")? as f32;
            inv_freq.iter_mut().for_each(|f| *f /= factor);
        }
        "llama3" if !partial => {
            let low = positive("low_freq_factor")?;
            let high = positive("high_freq_factor")?;
            if high <= low {
                let reason = format!("is {high}, must be above low_freq_factor = {low}");
                return Err(section.inside(error("high_freq_factor", reason)));
            }
            let scaling = Llama3 { factor: positive("factor")?, low, high, original: original()? };
            inv_freq.iter_mut().for_each(|f| {
                *f = (f64::from(*f) * scaling.multiplier(f64::from(*f))) as f32;
            });
        }
        "yarn" => {
            let yarn = Yarn::read(&section.keys, original()?, max_positions);
            let yarn = yarn.map_err(|e| section.inside(e))?;
            scale = yarn.scale as f32;
            yarn.stretch(&mut inv_freq, theta);
        }
        LONG if partial => {
            // The factors of sequences within the original context.
            let original = section.original(keys, ORIGINAL)?;
            if original < 2.0 {
                let reason = format!("is {original}, must be at least 2");
                return Err(error("original_max_position_embeddings", reason));
            }
            let short = section.factors("short_factor", rotated / 2)?;
            section.factors("long_factor", rotated / 2)?;
            let factor = section.positive("factor", Some(max_positions as f64 / original))?;
            let grown = if factor <= 1.0 { 1.0 } else { 1.0 + factor.ln() / original.ln() };
            scale = section.positive("attention_factor", Some(grown.sqrt()))? as f32;
            let stretched = short.iter().enumerate().map(|(j, short)| 1.0 / (short * base(j)));
            inv_freq = stretched.collect();
        }
        other => {
            let known = match partial {
                true => "\"default\" or \"longrope\"",
                false => "\"default\", \"linear\", \"llama3\" or \"yarn\"",
            };
            return Err(
                section.inside(error("rope_type", format!("is {other:?}, must be {known}")))
            );
        }
    }
    match inv_freq.iter().position(|frequency| !frequency.is_finite() || *frequency <= 0.0) {
        None => Ok(Rope { head_dim, inv_freq, scale }),
        Some(pair) => {
            let reason = format!("the frequency of pair {pair} is {}", inv_freq[pair]);
            Err(error("rope_theta, rope_scaling or rope_parameters", reason))
        }
    }
}

/// Rotary constants of a model whose layers with a window have their own: those of the others, then
/// theirs. transformers 5 keeps both in `rope_parameters`, by type of layer; 4 has the base of the
/// layers with a window under `key` (`default` where it is absent), beside the keys of the others.
pub(super) fn local_and_global(
    keys: &Keys<'_>,
    rotation: Rotation,
    (key, default): (&str, f64),
) -> Result<(Rope, Rope), ModelConfigError> {
    let nested = keys.get("rope_parameters").and_then(Value::as_object);
    let nested = nested.filter(|map| !map.is_empty());
    if nested.is_some_and(|map| !map.contains_key("full_attention")) {
        return Err(error("rope_parameters", "must have a section for each type of layer"));
    }
    if nested.is_some() && keys.get("rope_scaling").is_some() {
        return Err(error("rope_scaling", "stands beside rope_parameters of each type of layer"));
    }
    // transformers 5 gives a base that both would share to the layers without a window alone.
    if key == "rope_theta" && keys.positive(key, Some(default))? != default {
        let reason =
            format!("must be {default}, or stand in rope_parameters for each type of layer");
        return Err(error(key, reason));
    }
    let part = |kind: &str, keys_of_4: [(&str, &str); 2], theta| {
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
        rope(&Keys { map: &map }, Rotation { theta, ..rotation })
    };
    let global = [("rope_theta", "rope_theta"), ("rope_scaling", "rope_scaling")];
    Ok((
        part("full_attention", global, rotation.theta)?,
        part("sliding_attention", [("rope_theta", key); 2], default)?,
    ))
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
