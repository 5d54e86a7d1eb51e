//! The forms in which a request says its preference, and which one counts.
//!
//! Precedence: the body's `preference`, the model id (`NAME:helpful=0.7,harmless=0.3` or
//! `NAME:preset`), the header `X-Preference`, the soup's default. Only the form that counts is
//! looked at.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    error::ApiError,
    json::{shorten, show},
};
use crate::{
    preference::{Alpha, AlphaError, Preference, PreferenceError, Solution},
    soup::{Manifest, ManifestError},
};

/// What a request may choose from.
#[derive(Debug, Clone, PartialEq)]
pub struct Menu {
    /// Names of the objectives, in the order of the rows of B.
    pub objectives: Vec<String>,
    /// Presets and their weights, one per objective.
    pub presets: Vec<(String, Vec<f64>)>,
    /// The preference of requests that name none.
    pub default_preference: Preference,
    /// The extrapolation of requests that name none.
    pub default_alpha: Alpha,
    /// Smallest and largest α.
    pub alpha_bounds: (f64, f64),
}

/// A preference as written, before names are looked up.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// Weights by objective.
    Named(Vec<(String, f64)>),
    /// Weights in the order of the objectives.
    Listed(Vec<f64>),
    /// A preset.
    Preset(String),
}

const FORMS: &str = "an object of weights by objective, a list of weights in the order of the \
                     objectives, or the name of a preset";

impl Form {
    /// Reads the form from JSON; `param` names the field in errors.
    pub fn from_json(param: &str, value: Value) -> Result<Self, ApiError> {
        let weight = |place: String, value: &Value| {
            value.as_f64().ok_or_else(|| ApiError::value(place, show(value), "a finite number ≥ 0"))
        };
        match value {
            Value::String(name) => Ok(Self::Preset(name)),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .map(|(index, item)| weight(format!("{param}[{index}]"), item))
                .collect::<Result<_, _>>()
                .map(Self::Listed),
            Value::Object(map) => map
                .into_iter()
                .map(|(name, item)| {
                    let weight = weight(format!("{param}.{}", shorten(&name)), &item)?;
                    Ok((name, weight))
                })
                .collect::<Result<_, ApiError>>()
                .map(Self::Named),
            other => Err(ApiError::value(param, show(&other), FORMS)),
        }
    }

    /// Reads the form from a model id or header: `a=0.7,b=0.3`, `0.7,0.3`, or a preset.
    pub fn from_text(param: &str, text: &str) -> Result<Self, ApiError> {
        let parts = || text.split(',').map(str::trim);
        if text.contains('=') {
            return parts()
                .map(|part| pair(param, part))
                .collect::<Result<_, _>>()
                .map(Self::Named);
        }
        let numbers: Result<Vec<f64>, _> = parts().map(str::parse).collect();
        match numbers {
            Ok(weights) => Ok(Self::Listed(weights)),
            Err(_) => Ok(Self::Preset(text.trim().to_owned())),
        }
    }
}

fn pair(param: &str, part: &str) -> Result<(String, f64), ApiError> {
    let expected = "objective=weight pairs, such as helpful=0.7,harmless=0.3";
    let refuse = || ApiError::value(param, format!("{:?}", shorten(part)), expected);
    let (name, weight) = part.split_once('=').ok_or_else(refuse)?;
    Ok((name.trim().to_owned(), weight.trim().parse().map_err(|_| refuse())?))
}

impl Menu {
    /// What a soup offers.
    pub fn of(manifest: &Manifest) -> Result<Self, ManifestError> {
        let [min, max] = manifest.extrapolation.bounds;
        let preset =
            |name: &String| Some((name.clone(), manifest.preset(name)?.weights().to_vec()));
        Ok(Self {
            objectives: manifest.objective_names().map(str::to_owned).collect(),
            presets: manifest.presets.keys().filter_map(preset).collect(),
            default_preference: manifest.default_preference(),
            default_alpha: manifest.alpha()?,
            alpha_bounds: (min, max),
        })
    }

    /// The preference that a form means; `param` names the field in errors.
    pub fn preference(&self, param: &str, form: Form) -> Result<Preference, ApiError> {
        let n = self.objectives.len();
        let weights = match form {
            Form::Listed(weights) => weights,
            Form::Named(pairs) => self.by_objective(param, pairs)?,
            Form::Preset(name) => match self.presets.iter().find(|(preset, _)| *preset == name) {
                Some((_, weights)) => weights.clone(),
                None => {
                    let known = self.presets.iter().map(|(name, _)| name.as_str());
                    let got = format!("{:?}", shorten(&name));
                    return Err(ApiError::value(param, got, format!("a preset: {}", join(known))));
                }
            },
        };
        Preference::new(&weights, n).map_err(|error| match error {
            PreferenceError::Weight { index, value } => {
                let objective = self.objectives.get(index).map_or("?", String::as_str);
                ApiError::value(format!("{param}.{objective}"), value, "a finite number ≥ 0")
            }
            PreferenceError::Length { expected, got } => {
                let names = join(self.objectives.iter().map(String::as_str));
                let expected = format!("{expected}, one per objective: {names}");
                ApiError::value(param, format!("a list of {got} weights"), expected)
            }
            PreferenceError::Zero => {
                ApiError::value(param, "all zero", "at least one weight above 0")
            }
        })
    }

    /// The extrapolation that JSON means: a number, a list or an object by objective.
    pub fn alpha(&self, value: Value) -> Result<Alpha, ApiError> {
        let (min, max) = self.alpha_bounds;
        let number = |place: String, value: &Value| {
            value.as_f64().ok_or_else(|| {
                ApiError::value(place, show(value), format!("a number in [{min}, {max}]"))
            })
        };
        let alpha = match value {
            Value::Number(_) => Alpha::Scalar(number("alpha".into(), &value)?),
            Value::Array(items) => Alpha::PerObjective(
                items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| number(format!("alpha[{index}]"), item))
                    .collect::<Result<_, _>>()?,
            ),
            Value::Object(map) => {
                let pairs = map
                    .into_iter()
                    .map(|(name, item)| {
                        let value = number(format!("alpha.{}", shorten(&name)), &item)?;
                        Ok((name, value))
                    })
                    .collect::<Result<_, ApiError>>()?;
                Alpha::PerObjective(self.by_objective("alpha", pairs)?)
            }
            other => {
                let expected =
                    "a number, a list in the order of the objectives, or an object by objective";
                return Err(ApiError::value("alpha", show(&other), expected));
            }
        };
        alpha.check(self.objectives.len(), min, max).map_err(|error| match error {
            AlphaError::Length { expected, got } => ApiError::value(
                "alpha",
                format!("a list of {got} values"),
                format!("1 or {expected}, one per objective"),
            ),
            AlphaError::Bounds { value, min, max } => ApiError::value(
                "alpha",
                value,
                format!("a number in [{min}, {max}], the bounds of this soup"),
            ),
        })?;
        Ok(alpha)
    }

    /// Values in the order of the objectives; those left out are 0.
    fn by_objective(&self, param: &str, pairs: Vec<(String, f64)>) -> Result<Vec<f64>, ApiError> {
        let mut values: Vec<Option<f64>> = vec![None; self.objectives.len()];
        for (name, value) in pairs {
            let place = self.objectives.iter().position(|objective| *objective == name);
            let Some(slot) = place.and_then(|index| values.get_mut(index)) else {
                let known = join(self.objectives.iter().map(String::as_str));
                return Err(ApiError::Value {
                    param: format!("{param}.{}", shorten(&name)),
                    message: format!(
                        "{param} names {:?}, expected objectives of this soup: {known}",
                        shorten(&name)
                    ),
                });
            };
            if slot.replace(value).is_some() {
                return Err(ApiError::Value {
                    param: param.to_owned(),
                    message: format!(
                        "{param} names {name:?} twice, expected each objective at most once"
                    ),
                });
            }
        }
        Ok(values.into_iter().map(Option::unwrap_or_default).collect())
    }
}

/// What was solved, as every answer echoes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Solved {
    /// μ by objective, normalised.
    pub preference: Map<String, Value>,
    /// α: a number, or numbers by objective.
    pub alpha: Value,
    /// λ of backbone i under the objective that dominates column i of B.
    pub lambda: Map<String, Value>,
    /// c likewise, and that of θ_sft under `sft`.
    pub coefficients: Map<String, Value>,
}

impl Solved {
    /// Names the numbers of a solution.
    pub fn new(menu: &Menu, solution: &Solution) -> Self {
        let named = |values: &[f64]| -> Map<String, Value> {
            menu.objectives
                .iter()
                .zip(values)
                .map(|(name, value)| (name.clone(), (*value).into()))
                .collect()
        };
        let mut coefficients = named(&solution.coefficients.backbones);
        coefficients.insert("sft".into(), solution.coefficients.sft.into());
        Self {
            preference: named(solution.preference.weights()),
            alpha: match &solution.alpha {
                Alpha::Scalar(alpha) => (*alpha).into(),
                Alpha::PerObjective(alphas) => named(alphas).into(),
            },
            lambda: named(&solution.lambda),
            coefficients,
        }
    }
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "none exist".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn menu() -> Menu {
        Menu {
            objectives: vec!["helpful".into(), "harmless".into()],
            presets: vec![("kind".into(), vec![1.0, 3.0])],
            default_preference: Preference::uniform(2),
            default_alpha: Alpha::default(),
            alpha_bounds: (0.0, 1.0),
        }
    }

    fn json_form(value: Value) -> Result<Vec<f64>, String> {
        let form = Form::from_json("preference", value).map_err(|error| error.to_string())?;
        let preference =
            menu().preference("preference", form).map_err(|error| error.to_string())?;
        Ok(preference.weights().to_vec())
    }

    fn text_form(text: &str) -> Result<Vec<f64>, String> {
        let form = Form::from_text("model", text).map_err(|error| error.to_string())?;
        let preference = menu().preference("model", form).map_err(|error| error.to_string())?;
        Ok(preference.weights().to_vec())
    }

    #[test]
    fn every_form_gives_the_same_normalised_preference() {
        let expected = Ok(vec![0.25, 0.75]);
        assert_eq!(json_form(json!({"harmless": 3, "helpful": 1})), expected);
        assert_eq!(json_form(json!([1, 3])), expected);
        assert_eq!(json_form(json!("kind")), expected);
        assert_eq!(text_form("helpful=1, harmless=3"), expected);
        assert_eq!(text_form("0.5,1.5"), expected);
        assert_eq!(text_form("kind"), expected);
        assert_eq!(json_form(json!({"helpful": 2})), Ok(vec![1.0, 0.0]));
    }

    #[test]
    fn a_bad_preference_names_field_value_and_what_would_be_right() {
        for (value, message) in [
            (
                json!({"funny": 1}),
                "preference names \"funny\", expected objectives of this soup: helpful, harmless",
            ),
            (json!({"helpful": -0.5}), "preference.helpful is -0.5, expected a finite number ≥ 0"),
            (json!({"helpful": "x"}), "preference.helpful is \"x\", expected a finite number ≥ 0"),
            (json!([1, null]), "preference[1] is null, expected a finite number ≥ 0"),
            (
                json!([1, 2, 3]),
                "preference is a list of 3 weights, expected 2, one per objective: helpful, harmless",
            ),
            (
                json!([]),
                "preference is a list of 0 weights, expected 2, one per objective: helpful, harmless",
            ),
            (json!([0, 0]), "preference is all zero, expected at least one weight above 0"),
            (json!({}), "preference is all zero, expected at least one weight above 0"),
            (json!("mean"), "preference is \"mean\", expected a preset: kind"),
        ] {
            assert_eq!(json_form(value), Err(message.to_owned()));
        }
        assert!(
            json_form(json!(0.5)).unwrap_err().starts_with("preference is 0.5, expected an object")
        );
        for (text, part) in [
            ("helpful=NaN", "model.helpful is NaN"),
            ("inf,1", "model.helpful is inf"),
            ("helpful=1,helpful=2", "twice"),
            ("helpful=", "objective=weight pairs"),
            ("helpful=1,", "objective=weight pairs"),
            ("", "a preset: kind"),
        ] {
            let error = text_form(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn alpha_takes_three_forms_within_its_bounds() {
        let alpha = |value| menu().alpha(value).map_err(|error| error.to_string());
        assert_eq!(alpha(json!(0.5)), Ok(Alpha::Scalar(0.5)));
        assert_eq!(alpha(json!([0.1, 0.2])), Ok(Alpha::PerObjective(vec![0.1, 0.2])));
        assert_eq!(alpha(json!({"harmless": 0.2})), Ok(Alpha::PerObjective(vec![0.0, 0.2])));
        assert_eq!(
            alpha(json!(1.5)),
            Err("alpha is 1.5, expected a number in [0, 1], the bounds of this soup".into())
        );
        assert!(alpha(json!([0.1])).unwrap_err().contains("a list of 1 values"));
        assert!(alpha(json!({"funny": 0.1})).unwrap_err().contains("funny"));
        assert!(alpha(json!("high")).unwrap_err().contains("\"high\""));
    }
}
