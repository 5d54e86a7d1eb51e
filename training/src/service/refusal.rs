//! What a client is told of a request that failed, and the status of each kind.

use std::fmt::Display;

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::ledger::LedgerError;
use crate::{rewards::RewardError, rl::balance::BalanceError};

#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{field} is {got}, expected {expected}")]
    Value { field: String, got: String, expected: String },
    #[error("the body is larger than --max-bytes")]
    TooLarge,
    #[error("the body could not be read: {0}")]
    Body(String),
    #[error(
        "no such path; there are POST /rewards, POST /get_reward, GET /state, /health, /metrics"
    )]
    Path,
    #[error("the method is not one of this path")]
    Method,
    #[error(transparent)]
    Reward(#[from] RewardError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Balance(#[from] BalanceError),
    #[error("a reward panicked")]
    Panicked,
}

impl Refusal {
    pub fn value(field: impl Into<String>, got: impl Display, expected: impl Into<String>) -> Self {
        let got = got.to_string().chars().take(200).collect();
        Self::Value { field: field.into(), got, expected: expected.into() }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Value { .. } | Self::Body(_) | Self::Reward(RewardError::Sample { .. }) => {
                StatusCode::BAD_REQUEST
            }
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Path => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Ledger(LedgerError::Past { .. } | LedgerError::Parts { .. }) => {
                StatusCode::CONFLICT
            }
            // A reward's own server or model.
            Self::Reward(_) => StatusCode::BAD_GATEWAY,
            Self::Ledger(_) | Self::Balance(_) | Self::Panicked => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    fn field(&self) -> Option<String> {
        match self {
            Self::Value { field, .. } => Some(field.clone()),
            Self::Reward(RewardError::Sample { index, .. }) => Some(format!("rows[{index}]")),
            Self::Ledger(LedgerError::Past { .. }) => Some("step".to_owned()),
            Self::Ledger(LedgerError::Parts { .. }) => Some("part".to_owned()),
            _ => None,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::error!("{self}");
        }
        let error = json!({ "message": self.to_string(), "param": self.field() });
        (status, Json(json!({ "error": error }))).into_response()
    }
}
