//! The choice of `--long-context`: longrope (Phi-3) has one set of rotary factors for sequences within
//! the original context and one for longer ones, and keys that were stored under one are wrong under
//! the other. A model that is imported so has the second at every length.

use std::path::Path;

use serde_json::Value;

use super::error::ImportError;
use crate::files::{read_json, write_json};

/// Gives the model in `dir`, which was asked for as `spec`, the long factors at every length.
pub(super) fn lengthen(spec: &str, dir: &Path) -> Result<(), ImportError> {
    let path = dir.join("config.json");
    let mut config: Value = read_json(&path)?;
    let section = ["rope_scaling", "rope_parameters"]
        .into_iter()
        .find(|section| config[*section]["long_factor"].is_array());
    let section = section.map(|section| &mut config[section]);
    match section.filter(|section| section["short_factor"] != section["long_factor"]) {
        Some(section) => section["short_factor"] = section["long_factor"].clone(),
        None => {
            let reason = "--long-context is for models whose longrope has two sets of factors \
                          (Phi-3 of 128k); this one rotates alike at every length"
                .to_owned();
            return Err(ImportError::Spec { spec: spec.to_owned(), reason });
        }
    }
    Ok(write_json(&path, &config)?)
}
