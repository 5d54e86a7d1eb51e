//! The server through its own door: a real socket, the real engine, the tiny soup.

mod any_body;
mod attacks;
mod bad_input;
mod changed_files;
mod client;
mod comparison;
mod compatibility;
mod connections;
mod description;
mod dialects;
mod embeddings;
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
mod reproducible;
mod sdk;
mod server;
mod sockets;
mod structured;
mod text;
mod tls;
mod tools;
mod traces;
mod work;

#[path = "../support/prerequisite.rs"]
mod prerequisite;
