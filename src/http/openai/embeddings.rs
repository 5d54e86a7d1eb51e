//! `POST /v1/embeddings`: final hidden states of an input's tokens, scaled to length 1.

use std::sync::Arc;

use axum::{Json, extract::State};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::http::{
    app::App,
    error::ApiError,
    incoming::Incoming,
    request::embeddings::{Encoding, embeddings},
    run::{Run, collect},
};

/// Embeds inputs.
pub async fn handle(
    State(app): State<Arc<App>>,
    request: Incoming,
) -> Result<Json<Value>, ApiError> {
    let (checked, encoding) = request.check(embeddings).await?;
    let model = checked.model.clone();
    let mut run = Run::start(app, checked).await?;
    let choices = collect(&mut run).await?;
    let data = choices.iter().enumerate().map(|(index, choice)| {
        let embedding = written(&unit(&choice.embedding), encoding);
        json!({"object": "embedding", "index": index, "embedding": embedding})
    });
    let (data, tokens) = (data.collect::<Vec<_>>(), run.usage().prompt_tokens);
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "ladle": run.echo(),
    })))
}

/// A vector of the same direction and length 1.
fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    vector.iter().map(|x| (f64::from(*x) / length.max(f64::MIN_POSITIVE)) as f32).collect()
}

fn written(vector: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => json!(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            BASE64_STANDARD.encode(bytes).into()
        }
    }
}
