//! Rewards predicted from a measured front, and preferences that reach targets, against numpy
//! (`tests/reference/make_front.py`).

use ladle::preference::{Alpha, Front, Goal, LambdaRule, Menu, MixingMatrix, Preference, Solution};
use serde_json::{Value, json};

struct Case {
    reference: Value,
    menu: Menu,
    front: Front,
}

fn reference() -> Value {
    serde_json::from_str(include_str!("fixtures/front-reference.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn menu(objectives: &[&str]) -> Menu {
    Menu {
        objectives: objectives.iter().map(|name| (*name).to_owned()).collect(),
        presets: Vec::new(),
        efforts: Vec::new(),
        default_preference: Preference::uniform(objectives.len()),
        default_alpha: Alpha::default(),
        alpha_bounds: (0.0, 1.0),
        default_rule: LambdaRule::Exact,
    }
}

fn cases() -> Vec<Case> {
    let Value::Array(cases) = reference()["cases"].take() else { panic!("expected cases") };
    let case = |reference: Value| {
        let objectives = reference["front"]["objectives"].as_array().unwrap();
        let names: Vec<&str> = objectives.iter().map(|one| one["name"].as_str().unwrap()).collect();
        let menu = menu(&names);
        let front = read(&reference["front"], &menu).unwrap();
        Case { menu, front, reference }
    };
    cases.into_iter().map(case).collect()
}

fn read(front: &Value, menu: &Menu) -> Result<Front, String> {
    Front::read(Some(front), menu, &mixing(menu.objectives.len()))
}

/// B of the soups that make_front.py makes up.
fn mixing(n: usize) -> MixingMatrix {
    MixingMatrix::circulant(n, 0.7).unwrap()
}

fn solution(mu: &[f64], rule: LambdaRule, alpha: Alpha) -> Solution {
    mixing(mu.len()).solve_by(rule, &Preference::new(mu, mu.len()).unwrap(), &alpha)
}

impl Case {
    fn reach(&self, target: Value, maximise: &str) -> Result<Vec<f64>, String> {
        let goal = Goal::from_json(&self.menu, Some(target), Some(maximise.into()));
        let preference = goal.and_then(|goal| {
            goal.solve(&self.menu, &self.front, LambdaRule::Exact, &Alpha::default())
        });
        let mu = preference.map_err(|error| error.to_string())?;
        let predicted =
            self.front.predict(&solution(mu.weights(), LambdaRule::Exact, Alpha::default()));
        Ok(predicted.unwrap().iter().map(|one| one.value).collect())
    }

    fn place(&self, name: &str) -> usize {
        self.menu.objectives.iter().position(|objective| objective == name).unwrap()
    }
}

#[test]
fn predictions_and_their_errors_are_those_of_refitting_without_each_point() {
    for case in cases() {
        for expected in case.reference["predictions"].as_array().unwrap() {
            let mu = numbers(&expected["preference"]);
            // Left out: 0. The others are at or between two sweeps.
            let alpha = Alpha::Scalar(expected["alpha"].as_f64().unwrap_or(0.0));
            let predicted = case.front.predict(&solution(&mu, LambdaRule::Exact, alpha));
            for (index, one) in predicted.unwrap().iter().enumerate() {
                for (name, got) in [("value", one.value), ("low", one.low), ("high", one.high)] {
                    let expected = numbers(&expected[name])[index];
                    assert!((got - expected).abs() < 1e-9, "{name}: {got}, expected {expected}");
                }
            }
        }
    }
}

#[test]
fn a_target_is_reached_as_well_as_by_trying_every_preference() {
    for case in cases() {
        for expected in case.reference["targets"].as_array().unwrap() {
            let (target, maximise) = (&expected["target"], expected["maximise"].as_str().unwrap());
            let reached = case.reach(target.clone(), maximise).unwrap();
            let (name, bound) = target.as_object().unwrap().iter().next().unwrap();
            assert!(reached[case.place(name)] >= bound["min"].as_f64().unwrap() - 1e-6);
            let (got, best) = (reached[case.place(maximise)], expected["best"].as_f64().unwrap());
            assert!(got >= best - 1e-4, "{maximise} {got}, by exhaustion {best} with {target}");
        }
    }
}

#[test]
fn what_cannot_be_reached_is_said_with_what_can() {
    for case in cases() {
        let (largest, smallest) =
            (numbers(&case.reference["largest"]), numbers(&case.reference["smallest"]));
        for (index, name) in case.menu.objectives.iter().enumerate() {
            for (end, reached, beyond, word) in [
                ("min", largest[index], largest[index] + 0.5, "most"),
                ("max", smallest[index], smallest[index] - 0.5, "least"),
            ] {
                let error = case.reach(json!({name: {end: beyond}}), name).unwrap_err();
                let expected = format!(
                    "target.{name}.{end} is {beyond}, expected at {word} {reached:.3}, which the soup's front is predicted to reach"
                );
                assert_eq!(error, expected);
            }
        }
    }
}

#[test]
fn bounds_that_no_preference_keeps_at_once_are_refused_with_the_nearest() {
    let case = &cases()[0];
    let largest = numbers(&case.reference["largest"]);
    // Each alone can be reached, both cannot: the front falls from one end to the other.
    let target =
        json!({"helpful": {"min": largest[0] - 1e-3}, "harmless": {"min": largest[1] - 1e-3}});
    let error = case.reach(target, "helpful").unwrap_err();
    assert!(error.starts_with("target is out of reach, expected bounds that one preference keeps"));
    assert!(error.contains("nearest are helpful "), "{error}");
}

#[test]
fn only_what_was_measured_is_predicted() {
    let case = &cases()[0];
    for (rule, alpha) in [
        (LambdaRule::Clamp, Alpha::Scalar(0.0)),
        (LambdaRule::Exact, Alpha::Scalar(1.25)),
        (LambdaRule::Exact, Alpha::Scalar(-0.25)),
        (LambdaRule::Exact, Alpha::PerObjective(vec![0.0, 0.0])),
    ] {
        let measured =
            "lambda \"exact\" and one alpha of 0 to 1, where the soup's front was measured";
        let said = case.front.predict(&solution(&[0.5, 0.5], rule, alpha.clone()));
        assert_eq!(said, Err(format!("expected {measured}")));
        let goal = Goal::from_json(&case.menu, None, Some("helpful".into())).unwrap();
        let error = goal.solve(&case.menu, &case.front, rule, &alpha).unwrap_err();
        assert!(error.to_string().contains(measured), "{error}");
    }
}

#[test]
fn a_front_that_predicts_nothing_says_why() {
    let menu = menu(&["helpful", "harmless"]);
    let front = |change: &dyn Fn(&mut Value)| {
        let mut front = reference()["cases"][0]["front"].take();
        change(&mut front);
        let said = read(&front, &menu).map(|_| ()).unwrap_err();
        said.strip_prefix("the soup's front predicts nothing: ").unwrap().to_owned()
    };
    let few = |front: &mut Value| {
        front["methods"][0]["points"].as_array_mut().unwrap().truncate(3);
    };
    assert_eq!(front(&few), "it has 3 points, expected more than 3");
    let same = |front: &mut Value| {
        let points = front["methods"][0]["points"].as_array_mut().unwrap();
        for name in ["preference", "lambda"] {
            points.iter_mut().for_each(|point| point[name] = json!([0.5, 0.5]));
        }
    };
    assert_eq!(front(&same), "its preferences do not determine a quadratic");
    let foreign = |front: &mut Value| front["objectives"][0]["name"] = "kind".into();
    assert_eq!(front(&foreign), "it was measured for other objectives");
    let unserved = "it has no sweep of the soup as it is served";
    let each = |front: &mut Value, change: &dyn Fn(&mut Value)| {
        front["methods"].as_array_mut().unwrap().iter_mut().for_each(change);
    };
    // Logits are combined; λ of another B; the sweep of another soup in the same file.
    let logits = |front: &mut Value| each(front, &|method| method["kind"] = "mod".into());
    assert_eq!(front(&logits), unserved);
    let matrix = |front: &mut Value| {
        each(front, &|method| method["points"][0]["lambda"] = json!([0.0, 1.0]));
    };
    assert_eq!(front(&matrix), unserved);
    let run = |front: &mut Value| each(front, &|method| method["run"] = 1.into());
    assert_eq!(front(&run), unserved);
    let undated = |front: &mut Value| front["sha256"] = json!({});
    assert!(front(&undated).starts_with("it does not say which weights it was measured on"));
    let short = |front: &mut Value| front["methods"][0]["points"][0]["mean"] = json!([1.0]);
    assert_eq!(front(&short), "a point of it has another number of objectives");
    assert!(front(&|front: &mut Value| front["methods"] = 5.into()).contains("invalid type"));
}
