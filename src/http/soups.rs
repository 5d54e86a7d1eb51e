//! Seeing, adding, replacing and removing served soups: for holders of a named key with the right to.

use std::{fs, path::Path, sync::Arc};

use axum::{
    Json,
    extract::{FromRequestParts, Path as UrlPath, State, rejection::PathRejection},
    http::{StatusCode, request::Parts},
};
use serde_json::{Value, json};

use super::{
    app::App,
    error::{ApiError, shorten},
    generations::{Generations, Next},
    incoming::Incoming,
    keys::Key,
    request::soups::{self, Source},
    served::Served,
};
use crate::config::SoupAddress;

/// The key of a holder of the right; without named keys there is none.
pub struct Manager(Arc<Key>);

impl FromRequestParts<Arc<App>> for Manager {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, ApiError> {
        match parts.extensions.get::<Option<Arc<Key>>>() {
            Some(Some(key)) if key.soups => Ok(Self(key.clone())),
            _ => Err(ApiError::Forbidden(
                "this asks for a named key with the right to replace soups".to_owned(),
            )),
        }
    }
}

/// `GET /admin/soups`.
pub async fn list(_: Manager, State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let soups = app.soups.all();
    let soups = soups.iter().filter_map(|soup| Some(describe(soup, &*soup.current()?)));
    Ok(Json(json!({"soups": soups.collect::<Vec<_>>()})))
}

/// `POST /admin/soups`: answers when the soup is served, or has been refused.
pub async fn add(
    Manager(key): Manager,
    State(app): State<Arc<App>>,
    request: Incoming,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let mut wish = request.check(soups::addition).await?;
    wish.source = allowed(wish.source, app.soup_sources())?;
    let added = app.add(wish).await.inspect_err(|error| {
        tracing::warn!(key = key.name, %error, "no soup was added");
    })?;
    tracing::info!(key = key.name, soup = added.name, "a soup was added");
    let (soup, served) = app.soups.named(&added.name)?;
    Ok((StatusCode::CREATED, Json(describe(&soup, &served))))
}

/// `PUT /admin/soups/NAME`: answers when the new generation is served, or has been refused.
pub async fn replace(
    Manager(key): Manager,
    State(app): State<Arc<App>>,
    name: Result<UrlPath<String>, PathRejection>,
    request: Incoming,
) -> Result<Json<Value>, ApiError> {
    let mut wish = request.check(soups::replacement).await?;
    let (soup, served) = named(&app, name)?;
    wish.source = allowed(wish.source, app.soup_sources())?;
    let replaced = soup.change(Next::Wish(wish)).await;
    let replaced = replaced.inspect_err(|error| {
        tracing::warn!(key = key.name, soup = served.name, %error, "the soup was not replaced");
    })?;
    let served = replaced.unwrap_or(served);
    let generation = served.generation;
    tracing::info!(key = key.name, soup = served.name, generation, "the soup was replaced");
    Ok(Json(describe(&soup, &served)))
}

/// `DELETE /admin/soups/NAME`: from then on nobody finds it; what runs ends on it.
pub async fn remove(
    Manager(key): Manager,
    State(app): State<Arc<App>>,
    name: Result<UrlPath<String>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let (soup, served) = named(&app, name)?;
    soup.change(Next::Removed).await.inspect_err(|error| {
        tracing::warn!(key = key.name, soup = served.name, %error, "the soup was not removed");
    })?;
    tracing::info!(key = key.name, soup = served.name, "the soup was removed");
    Ok(StatusCode::NO_CONTENT)
}

/// The soup of a path.
fn named(
    app: &App,
    name: Result<UrlPath<String>, PathRejection>,
) -> Result<(Arc<Generations>, Arc<Served>), ApiError> {
    let name = name.map_or_else(|rejection| rejection.body_text(), |UrlPath(name)| name);
    let (soup, served) = app.soups.named(&name)?;
    match served.name == name {
        true => Ok((soup, served)),
        false => {
            let reason = "a soup's name has no preference".to_owned();
            Err(ApiError::Model { name: shorten(&name), reason })
        }
    }
}

/// A source that requests may name: a directory below the root, or an address below a prefix.
fn allowed(
    source: Source,
    (root, prefixes): (Option<&Path>, &[SoupAddress]),
) -> Result<Source, ApiError> {
    let closed =
        |option: &str| Err(ApiError::Forbidden(format!("the server was started without {option}")));
    match source {
        Source::Directory(source) => {
            let Some(root) = root else { return closed("soup_root") };
            let inside = || {
                let (root, source) = (fs::canonicalize(root).ok()?, root.join(&source));
                fs::canonicalize(source).ok().filter(|source| source.starts_with(root))
            };
            let expected = "a directory below soup_root, links included";
            let refuse = || ApiError::value("source", format!("{source:?}"), expected);
            inside().map(Source::Directory).ok_or_else(refuse)
        }
        Source::Address(_) if prefixes.is_empty() => closed("soup_source"),
        Source::Address(address) if prefixes.iter().any(|prefix| address.is_within(prefix)) => {
            Ok(Source::Address(address))
        }
        Source::Address(address) => {
            let known: Vec<String> = prefixes.iter().map(SoupAddress::to_string).collect();
            let expected = format!("one below soup_source ({})", known.join(", "));
            Err(ApiError::value("source", address, expected))
        }
    }
}

fn describe(soup: &Generations, served: &Served) -> Value {
    let draining = soup.draining().into_iter();
    let draining = draining
        .map(|(generation, requests)| json!({"generation": generation, "requests": requests}));
    json!({
        "name": served.name,
        "digest": served.digest,
        "generation": served.generation,
        "source": served.source,
        "draining": draining.collect::<Vec<_>>(),
    })
}
