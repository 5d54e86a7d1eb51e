//! The server through its own door: a real socket, the real engine, the tiny soup.

mod any_body;
mod ask;
mod attacks;
mod bad_input;
mod bucket;
mod changed_files;
mod client;
mod comparison;
mod compatibility;
mod connections;
mod description;
mod dialects;
mod embeddings;
mod foreign;
mod generate;
mod key_limits;
mod keys;
mod lifecycle;
mod limits;
mod logs;
mod memory;
mod metrics;
mod openai;
mod preference;
mod process;
mod protocol;
mod reproducible;
mod sdk;
mod server;
mod side_by_side;
mod sockets;
mod soups;
mod sources;
mod structured;
mod t5;
mod text;
mod tls;
mod tools;
mod traces;
mod work;

#[path = "../support/prerequisite.rs"]
mod prerequisite;
#[path = "../support/routes.rs"]
mod routes;
