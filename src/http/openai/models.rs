//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde_json::{Value, json};

use crate::http::{app::App, error::ApiError, request::Model, served::Served};

fn describe(served: &Served, id: &str) -> Value {
    json!({
        "id": id,
        "object": "model",
        "created": served.created,
        "owned_by": "ladle",
        "max_model_len": served.context(),
    })
}

/// The ids: the soup, and each of its presets as `NAME:preset`.
fn ids(served: &Served) -> impl Iterator<Item = String> {
    let presets = served.menu.presets.iter().map(|(preset, _)| format!("{}:{preset}", served.name));
    std::iter::once(served.name.clone()).chain(presets)
}

/// All models.
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let soups = app.soups.served()?;
    let of = |served: &Arc<Served>| -> Vec<Value> {
        ids(served).map(|id| describe(served, &id)).collect()
    };
    let data: Vec<Value> = soups.iter().flat_map(of).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// One of them, or the soup with any preference that it understands (`NAME:helpful=0.7,brief=0.3`).
pub async fn get(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(id) = id.map_err(|rejection| ApiError::Model {
        name: "(not UTF-8)".to_owned(),
        reason: rejection.body_text(),
    })?;
    let served = app.served(Some(&id))?;
    let model = Model::of_path(&served, &id)?;
    Ok(Json(describe(&served, &model.id)))
}
