//! What a soup offers: the objectives, presets, defaults and bounds that written preferences are
//! looked up in, and the names under which a solution is told.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    form::{AlphaForm, Form, FormError},
    simplex::{Preference, PreferenceError},
    solve::{Alpha, AlphaError, LambdaRule, RULES, Solution},
    surrogate::Predicted,
};

/// The choices of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Menu {
    /// Names of the objectives, in the order of the rows of B.
    pub objectives: Vec<String>,
    /// Presets and their weights, one per objective.
    pub presets: Vec<(String, Vec<f64>)>,
    /// Presets of requests that name no preference, by their `reasoning_effort`.
    pub efforts: Vec<(String, String)>,
    /// The preference of requests that name none.
    pub default_preference: Preference,
    /// The extrapolation of requests that name none.
    pub default_alpha: Alpha,
    /// Smallest and largest α.
    pub alpha_bounds: (f64, f64),
    /// How λ follows from B⁻¹μ for requests that do not say.
    pub default_rule: LambdaRule,
}

impl Menu {
    /// The preference that a form means; `field` names the form in errors.
    pub fn preference(&self, field: &str, form: Form) -> Result<Preference, FormError> {
        let n = self.objectives.len();
        let weights = match form {
            Form::Listed(weights) => weights,
            Form::Named(pairs) => self.by_objective(field, pairs)?,
            Form::Preset(name) => match self.presets.iter().find(|(preset, _)| *preset == name) {
                Some((_, weights)) => weights.clone(),
                None => {
                    let known = join(self.presets.iter().map(|(name, _)| name.as_str()));
                    let expected = format!("a preset: {known}");
                    return Err(FormError::value(field, format!("{name:?}"), expected));
                }
            },
        };
        Preference::new(&weights, n).map_err(|error| match error {
            PreferenceError::Weight { index, value } => {
                let objective = self.objectives.get(index).map_or("?", String::as_str);
                FormError::value(format!("{field}.{objective}"), value, "a finite number ≥ 0")
            }
            PreferenceError::Length { expected, got } => {
                let expected = format!("{expected}, one per objective: {}", self.names());
                FormError::value(field, format!("a list of {got} weights"), expected)
            }
            PreferenceError::Zero => {
                FormError::value(field, "all zero", "at least one weight above 0")
            }
        })
    }

    /// The preference of a request that names none but says how much to think.
    pub fn of_effort(&self, effort: &str) -> Option<Form> {
        let (_, preset) = self.efforts.iter().find(|(known, _)| known == effort)?;
        Some(Form::Preset(preset.clone()))
    }

    /// The extrapolation that a form means; `field` names the form in errors.
    pub fn alpha(&self, field: &str, form: AlphaForm) -> Result<Alpha, FormError> {
        let (min, max) = self.alpha_bounds;
        let alpha = match form {
            AlphaForm::Scalar(alpha) => Alpha::Scalar(alpha),
            AlphaForm::Listed(alphas) => Alpha::PerObjective(alphas),
            AlphaForm::Named(pairs) => Alpha::PerObjective(self.by_objective(field, pairs)?),
        };
        alpha.check(self.objectives.len(), min, max).map_err(|error| match error {
            AlphaError::Length { expected, got } => FormError::value(
                field,
                format!("a list of {got} values"),
                format!("1 or {expected}, one per objective"),
            ),
            AlphaError::Bounds { value, min, max } => FormError::value(
                field,
                value,
                format!("a number in [{min}, {max}], the bounds of this soup"),
            ),
        })?;
        Ok(alpha)
    }

    /// The rule for λ that a value names; `field` names the value in errors.
    pub fn rule(&self, field: &str, value: &Value) -> Result<LambdaRule, FormError> {
        let named = value.as_str().and_then(|name| name.parse().ok());
        named.ok_or_else(|| FormError::value(field, value, RULES))
    }

    /// Values in the order of the objectives; those left out are 0.
    fn by_objective(&self, field: &str, pairs: Vec<(String, f64)>) -> Result<Vec<f64>, FormError> {
        let mut values: Vec<Option<f64>> = vec![None; self.objectives.len()];
        for (name, value) in pairs {
            let place = self.objectives.iter().position(|objective| *objective == name);
            let Some(slot) = place.and_then(|index| values.get_mut(index)) else {
                let (field, known) = (field.to_owned(), self.names());
                return Err(FormError::Objective { field, name, known });
            };
            if slot.replace(value).is_some() {
                return Err(FormError::Repeated { field: field.to_owned(), name });
            }
        }
        Ok(values.into_iter().map(Option::unwrap_or_default).collect())
    }

    fn names(&self) -> String {
        join(self.objectives.iter().map(String::as_str))
    }
}

/// The solution, as every answer echoes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Solved {
    /// μ by objective, normalised.
    pub preference: Map<String, Value>,
    /// α: a number, or numbers by objective.
    pub alpha: Value,
    /// λ of backbone i under the objective that dominates column i of B.
    pub lambda: Map<String, Value>,
    /// Whether λ is B⁻¹μ or its projection on the simplex.
    pub lambda_rule: LambdaRule,
    /// c likewise, and that of θ_sft under `sft`.
    pub coefficients: Map<String, Value>,
    /// What the rewards are expected to be by objective, where that was asked and is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Map<String, Value>>,
    /// Where that was asked and is not known: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unpredicted: Option<String>,
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
        let predicted = |predicted: &Vec<Predicted>| {
            let names = menu.objectives.iter().cloned();
            names.zip(predicted.iter().map(|one| json!(one))).collect()
        };
        let (predicted, unpredicted) = match &solution.predicted {
            Some(Ok(rewards)) => (Some(predicted(rewards)), None),
            Some(Err(reason)) => (None, Some(reason.clone())),
            None => (None, None),
        };
        Self {
            preference: named(solution.preference.weights()),
            alpha: match &solution.alpha {
                Alpha::Scalar(alpha) => (*alpha).into(),
                Alpha::PerObjective(alphas) => named(alphas).into(),
            },
            lambda: named(&solution.lambda),
            lambda_rule: solution.rule,
            coefficients,
            predicted,
            unpredicted,
        }
    }
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "none exist".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn menu() -> Menu {
        Menu {
            objectives: vec!["helpful".into(), "harmless".into()],
            presets: vec![("kind".into(), vec![1.0, 3.0])],
            efforts: Vec::new(),
            default_preference: Preference::uniform(2),
            default_alpha: Alpha::default(),
            alpha_bounds: (0.0, 1.0),
            default_rule: LambdaRule::Exact,
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
        assert_eq!(json_form(json!({"helpful": 2, "harmless": null})), Ok(vec![1.0, 0.0]));
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
            (
                json!({"helpful": null}),
                "preference is all zero, expected at least one weight above 0",
            ),
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
        let alpha = |value| {
            let form = AlphaForm::from_json("alpha", value).map_err(|error| error.to_string())?;
            menu().alpha("alpha", form).map_err(|error| error.to_string())
        };
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
