//! The HTTP server.
//!
//! A request's way: [`observe`] gives it an id and a span, [`limits`] lets it in, [`incoming`]
//! reads its body, [`validate`] makes a checked request of it (solving its [`preference`]),
//! [`run`] runs it on the engine, and the route writes the answer, whole or as a [`stream`].
//! Whatever goes wrong leaves through the table in [`error`].

mod admin;
mod app;
mod auth;
pub mod error;
mod generate;
mod incoming;
mod json;
mod knobs;
mod limits;
mod load;
mod observe;
mod openai;
mod openapi;
mod playground;
pub mod preference;
mod prompt;
mod router;
mod run;
mod server;
mod stream;
mod tokens;
mod validate;

pub use server::{ServeError, bind, command, run, serve};
