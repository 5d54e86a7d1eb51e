//! Seeing and replacing the served soup: for holders of a named key with the right to.

use std::{fs, path::Path, sync::Arc};

use axum::{
    Json,
    extract::{FromRequestParts, Path as UrlPath, State, rejection::PathRejection},
    http::request::Parts,
};
use serde_json::{Value, json};

use super::{
    app::App,
    error::{ApiError, shorten},
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
    let served = app.served()?;
    Ok(Json(json!({"soups": [describe(&app, &served)]})))
}

/// `PUT /admin/soups/NAME`: answers when the new generation is served, or has been refused.
pub async fn replace(
    Manager(key): Manager,
    State(app): State<Arc<App>>,
    name: Result<UrlPath<String>, PathRejection>,
    request: Incoming,
) -> Result<Json<Value>, ApiError> {
    let name = name.map_or_else(|rejection| rejection.body_text(), |UrlPath(name)| name);
    let mut wish = request.check(soups::replacement).await?;
    let served = app.served()?;
    if name != served.name {
        let reason = format!("this server has {:?}", served.name);
        return Err(ApiError::Model { name: shorten(&name), reason });
    }
    wish.source = allowed(wish.source, app.soup_sources())?;
    let replaced = app.replace(Some(wish)).await;
    let replaced = replaced.inspect_err(|error| {
        tracing::warn!(key = key.name, %error, "the soup was not replaced");
    })?;
    let served = replaced.unwrap_or(served);
    tracing::info!(key = key.name, generation = served.generation, "the soup was replaced");
    Ok(Json(describe(&app, &served)))
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

fn describe(app: &App, served: &Served) -> Value {
    let draining = app.generations.draining().into_iter();
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
