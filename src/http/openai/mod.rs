//! OpenAI's API, as far as it has a meaning here. What was solved stands beside the standard
//! fields in an object `ladle`.

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod models;
mod stream;
mod types;
