//! The choice of `--quantise`.

use std::{fmt, str::FromStr};

use crate::kernels::BlockType;

/// How matrices are stored in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantise {
    /// In blocks of this type; the embedding and the head in Q8_0 at least, whose errors reach
    /// every token.
    To(BlockType),
    /// As a GGUF file has them: the same codes, where a type of blocks holds them, else as Q8_0.
    Keep,
}

impl fmt::Display for Quantise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::To(kind) => kind.name(),
            Self::Keep => "keep",
        })
    }
}

impl FromStr for Quantise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kind = BlockType::named(text).map(Self::To);
        kind.or((text == "keep").then_some(Self::Keep))
            .ok_or_else(|| format!("expected {} or keep", BlockType::names()))
    }
}
