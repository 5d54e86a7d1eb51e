//! The HTTP server.
//!
//! A request's way: `observe` gives it an id and a span, `limits` lets it in (key, drain,
//! `rate`, requests in progress), `incoming` reads its body, `request` makes a checked request
//! of it, `run` runs it on the engine, and the route (`generate`, `openai`, `responses`, `anthropic`) writes the answer,
//! whole or as a `stream`. Whatever goes wrong leaves through the table in `error`.

mod admin;
mod anthropic;
mod app;
mod auth;
mod calls;
mod connection;
mod error;
mod example;
mod generate;
mod incoming;
pub mod keys;
mod life;
mod limits;
mod load;
mod metrics;
mod observe;
mod openai;
mod openapi;
mod playground;
mod rate;
mod request;
mod responses;
mod router;
mod run;
mod server;
mod stream;
mod tokens;

pub use app::Served;
pub use load::{LoadError, load};
pub use server::{ServeError, bind, command, run, serve, serve_loaded};
