//! Whether a model, or a soup on it, can be served: the checks that serving makes, before anything
//! is given a name.

use std::path::Path;

use super::error::ImportError;
use crate::{
    chat::ChatTemplate,
    merge::{MergeError, SoupPlan, mixed_decoder, plan::Ingredients},
    model::config::ModelConfig,
    soup::{Checkpoint, Soup},
    tokenizer::Tokenizer,
};

/// Checks a base model: configuration, every tensor and value, tokenizer, chat template, and that they fit.
pub fn base(dir: &Path) -> Result<(), ImportError> {
    let mut checkpoint = Checkpoint::open(dir)?;
    let config = checkpoint.check()?;
    checkpoint.verify_finite()?;
    texts(dir, &config)?;
    let alone = Ingredients {
        base: checkpoint.tensors(),
        sft: None,
        backbones: Vec::new(),
        answer_only: false,
    };
    Ok(plan(alone, config)?)
}

/// Checks a soup that was opened, and its base.
pub fn soup(soup: &Soup) -> Result<(), ImportError> {
    texts(&soup.base_dir, &soup.config)?;
    Ok(plan(soup.into(), soup.config.clone())?)
}

/// Tokenizer and chat template beside a model.
fn texts(dir: &Path, config: &ModelConfig) -> Result<(), ImportError> {
    let tokenizer = Tokenizer::from_dir(dir)?;
    let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
    if tokens > rows {
        return Err(ImportError::Vocabulary { path: dir.join("tokenizer.json"), tokens, rows });
    }
    if let Some(&id) = tokenizer.eos().iter().find(|&&id| id as usize >= rows) {
        return Err(ImportError::Id { dir: dir.to_owned(), id, rows });
    }
    ChatTemplate::from_dir(dir)?;
    Ok(())
}

/// Every tensor of the model, and nothing left over.
fn plan(ingredients: Ingredients<'_>, config: ModelConfig) -> Result<(), MergeError> {
    let plan = SoupPlan::new(ingredients, &config)?;
    mixed_decoder(&plan, config)?;
    Ok(())
}
