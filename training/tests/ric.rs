//! RiC's wanted rewards and its filter against numpy (`tests/reference/training_ric.py`).

mod support;

use ladle_training::{
    config::Mapping,
    ric::goals::{Range, accepted, words},
};
use serde_json::Value;

use support::{numbers, reference, rows};

fn cases(key: &str) -> Vec<Value> {
    let cases = reference("ric.json")[key].as_array().unwrap().clone();
    assert!(!cases.is_empty());
    cases
}

fn range(case: &Value) -> Range {
    Range { low: numbers(&case["low"]), high: numbers(&case["high"]) }
}

#[test]
fn preferences_become_the_wanted_rewards_of_numpy() {
    for case in cases("mappings") {
        let preference = numbers(&case["preference"]);
        for (name, mapping) in
            [("l2", Mapping::L2), ("linf", Mapping::Linf), ("linear", Mapping::Linear)]
        {
            let wanted = range(&case).wanted(mapping, &preference);
            assert_eq!(wanted, numbers(&case[name]), "{name} of {case}");
        }
    }
}

#[test]
fn goals_lie_near_the_front_as_those_of_numpy() {
    for case in cases("goals") {
        let goal = range(&case).near_front(&numbers(&case["uniforms"]));
        assert_eq!(goal, numbers(&case["goal"]), "{case}");
    }
}

#[test]
fn responses_pass_the_filter_of_numpy() {
    for case in cases("filters") {
        let q = case["quantile"].as_f64().unwrap();
        let kept = accepted(&rows(&case["rewards"]), q);
        let expected: Vec<bool> =
            case["kept"].as_array().unwrap().iter().map(|kept| kept.as_bool().unwrap()).collect();
        assert_eq!(kept, expected, "quantile {q}");
    }
}

#[test]
fn prompts_tell_rewards_to_one_decimal() {
    for case in cases("words") {
        assert_eq!(words(&numbers(&case["rewards"])), case["words"].as_str().unwrap());
    }
    let rewards = [vec![1.0, -2.0], vec![0.5, 3.0], vec![-1.0, 0.0]];
    assert_eq!(Range::of(&rewards), Range { low: vec![-1.0, -2.0], high: vec![1.0, 3.0] });
}
