//! What is asked of the served soup itself.

use std::path::{Component, Path, PathBuf};

use super::Context;
use crate::http::error::ApiError;

/// `PUT /admin/soups/NAME`: where the next generation is, and the one that it must replace.
pub fn replacement(context: &Context<'_>, body: &[u8]) -> Result<(PathBuf, Option<u64>), ApiError> {
    let mut fields = context.parse(body)?;
    let expected = "a path of names below soup_root, such as \"summaries-2\"";
    let below = |text: &str| {
        let plain = |part| matches!(part, Component::Normal(_));
        !text.is_empty() && Path::new(text).components().all(plain)
    };
    let source = fields.convert(
        "source",
        |value| value.as_str().filter(|text| below(text)).map(PathBuf::from),
        || expected.to_owned(),
    )?;
    let source = source.ok_or_else(|| fields.missing("source", expected))?;
    let generation = fields.integer("if_generation", 0..=u64::MAX)?;
    fields.finish()?;
    Ok((source, generation))
}
