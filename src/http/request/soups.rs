//! What is asked of the served soup itself.

use std::path::{Component, Path, PathBuf};

use super::{Context, json::Fields};
use crate::{config::SoupAddress, http::error::ApiError};

/// A soup that is to be served.
pub struct Wish {
    pub source: Source,
    /// The generation to replace, where it must be a certain one.
    pub generation: Option<u64>,
    /// The new soup's digest, where it must be a certain one.
    pub digest: Option<String>,
}

/// Where the next generation is.
pub enum Source {
    /// A path of names; which directory it starts from, the server decides.
    Directory(PathBuf),
    Address(SoupAddress),
}

/// Reads the body of `PUT /admin/soups/NAME`.
pub fn replacement(context: &Context<'_>, body: &[u8]) -> Result<Wish, ApiError> {
    let mut fields = context.parse(body)?;
    let generation = fields.integer("if_generation", 0..=u64::MAX)?;
    Ok(Wish { generation, ..wish(fields)? })
}

/// Reads the body of `POST /admin/soups`.
pub fn addition(context: &Context<'_>, body: &[u8]) -> Result<Wish, ApiError> {
    wish(context.parse(body)?)
}

fn wish(mut fields: Fields) -> Result<Wish, ApiError> {
    let expected = "a path of names below soup_root, such as \"summaries-2\", or an address below one \
                    of soup_source";
    let below = |text: &str| {
        let plain = |part| matches!(part, Component::Normal(_));
        !text.is_empty() && Path::new(text).components().all(plain)
    };
    let read = |text: &str| match SoupAddress::is_meant(text) {
        true => text.parse().ok().map(Source::Address),
        false => below(text).then(|| Source::Directory(text.into())),
    };
    let source =
        fields.convert("source", |value| value.as_str().and_then(read), || expected.to_owned())?;
    let source = source.ok_or_else(|| fields.missing("source", expected))?;
    let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    let digest = fields.convert(
        "digest",
        |value| {
            let whole = |text: &&str| text.len() == 64 && text.bytes().all(digit);
            value.as_str().filter(whole).map(str::to_owned)
        },
        || "a soup's digest, 64 digits of 0-9 a-f".to_owned(),
    )?;
    fields.finish()?;
    Ok(Wish { source, generation: None, digest })
}
