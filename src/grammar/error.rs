//! Why a constraint cannot be held.

/// Why a constraint cannot be held.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GrammarError {
    /// A part of a schema has no equivalent in a grammar.
    #[error("{path} is not supported: {reason}")]
    Unsupported {
        /// Where the part stands in the schema, such as `properties.tags.uniqueItems`.
        path: String,
        reason: String,
    },
    /// It is not a grammar, or too large or slow a one.
    #[error("{0}")]
    Invalid(String),
}
