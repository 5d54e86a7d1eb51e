//! Every family × everything that is served of it: each cell is tried through the import, the soup and
//! the engine, against the decoder (whose logits tests/model.rs compares with transformers') over
//! weights summed the slow and plain way. What is refused must say so. docs/base-models.md has the
//! table.

#[path = "../support/answers.rs"]
#[allow(dead_code)] // its other users need more of it
mod answers;
#[path = "../common/soup.rs"]
mod common;
mod decoders;
#[path = "../support/families.rs"]
mod families;
mod long;
mod soups;
mod t5;

use std::fs;

use common::fixture;
use families::{CAPABILITIES, FAMILIES, Family};

/// Tries one cell; the error is the refusal.
fn attempt(family: &Family, capability: &str) -> Result<(), String> {
    match family.model_type {
        "t5" => t5::attempt(capability),
        _ => decoders::attempt(family, capability),
    }
}

#[test]
fn every_cell_is_served_right_or_refused_by_name() {
    let mut wrong = Vec::new();
    // The trainer's column is tried in training/tests/families.rs.
    for capability in CAPABILITIES.into_iter().filter(|capability| *capability != "train") {
        for family in &FAMILIES {
            let cell = match (attempt(family, capability), family.refusal(capability)) {
                (Ok(()), None) => continue,
                (Ok(()), Some(said)) => format!("served, expected {said:?}"),
                (Err(error), Some(said)) if error.contains(said) => continue,
                (Err(error), _) => error,
            };
            wrong.push(format!("{} {capability}: {cell}", family.model_type));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn all_families_are_in_the_table() {
    let unknown = serde_json::json!({"model_type": "none of them"});
    let error = ladle::model::config::ModelConfig::from_json(&unknown).err().unwrap().to_string();
    let names: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
    assert!(error.ends_with(&format!("must be one of {}", names.join(", "))), "{error}");
}

#[test]
fn the_page_has_the_table() {
    let mut table = format!("| | {} |\n|{}\n", CAPABILITIES.join(" | "), "---|".repeat(10));
    let mut refusals = String::new();
    for family in &FAMILIES {
        let cell = |capability| if family.refusal(capability).is_none() { "yes" } else { "no" };
        let cells = CAPABILITIES.map(cell).join(" | ");
        table.push_str(&format!("| `{}` | {cells} |\n", family.model_type));
        for (capability, said) in family.refused {
            refusals.push_str(&format!("- `{}`, {capability}: “{said}”\n", family.model_type));
        }
    }
    let expected = format!("{table}\n{refusals}");
    let page = fixture("../../docs/base-models.md");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains(&expected), "docs/base-models.md should have:\n\n{expected}");
}
