//! A tokenizer's vocabulary as a trie of bytes.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::GrammarError;
use crate::tokenizer::Tokenizer;

/// The tokens below `size` by their bytes. Special tokens, and those that end a text, are no text:
/// a grammar reaches them only by name.
pub fn trie(tokenizer: &Tokenizer, size: usize) -> Result<TokEnv, GrammarError> {
    let invalid = |reason: &str| GrammarError::Invalid(reason.to_owned());
    let eos: Vec<u32> =
        tokenizer.eos().iter().copied().filter(|id| (*id as usize) < size).collect();
    let first = *eos.first().ok_or_else(|| {
        invalid("the model names no token that ends a text, so that no grammar can end")
    })?;
    let size = u32::try_from(size).map_err(|_| invalid("the vocabulary is too large"))?;
    let word = |id: u32| {
        if tokenizer.is_special(id) || eos.contains(&id) {
            let name = tokenizer.token(id).unwrap_or_default();
            return [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat();
        }
        tokenizer.bytes(id)
    };
    let words: Vec<Vec<u8>> = (0..size).map(word).collect();
    let trie = TokTrie::from(&TokRxInfo::new(size, first), &words).with_eos_tokens(&eos);
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}
