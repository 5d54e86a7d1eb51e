//! The HTTP server.
//!
//! A request's way: `observe` gives it an id and a span, `limits` lets it in (key, drain,
//! `rate`, requests in progress), `incoming` reads its body into the memory that `bodies` has for
//! it, `request` makes a checked request of it on one of the workers of `checks`, `run` runs it on the engine, and the route
//! (`generate`, `openai`, `responses`, `anthropic`) writes the answer,
//! whole or as a `stream`. Whatever goes wrong leaves through the table in `error`.

mod admin;
mod announce;
mod anthropic;
mod app;
mod auth;
mod bodies;
mod calls;
mod charge;
mod checks;
mod connection;
mod connections;
mod error;
mod failures;
mod generate;
mod generations;
mod incoming;
pub mod keys;
mod life;
mod limits;
mod load;
mod metrics;
mod observe;
mod openai;
mod openapi;
mod pieces;
mod playground;
mod protocol;
mod rate;
mod recent;
mod request;
mod responses;
mod roster;
mod router;
mod run;
mod served;
mod server;
mod socket;
mod soups;
mod spans;
mod stream;
mod tls;
mod tokens;
mod trace;
mod unread;

pub use connection::serve as serve_connections;
pub use load::{LoadError, load};
pub use served::{Beside, Served};
pub use server::{ServeError, bind, command, run, serve, serve_loaded, signal};
