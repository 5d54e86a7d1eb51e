//! Structured outputs: an answer is held to a grammar by a mask, the set of tokens that may come
//! next.
//!
//! [`Constraint`] is what a request asks for; [`Compiler`] makes a [`Grammar`] of it, within limits
//! of size and time, on a thread of its own. A sequence of the engine follows its grammar with a
//! [`Guide`], whose masks are computed on other threads while the forward pass runs. Grammars and
//! masks are llguidance's.

mod compiler;
mod constraint;
mod error;
mod guide;
pub mod lark;
mod schema;
mod vocabulary;

pub use compiler::Compiler;
pub use constraint::Constraint;
pub use error::GrammarError;
pub use guide::{Grammar, Guide, GuideError, Mask, Wake};
pub use schema::{prepare as prepare_schema, within};
