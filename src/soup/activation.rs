//! Where in a sequence the backbones become active (`docs/algorithms.md` §2.4).
//!
//! With c(t) the coefficients of row t and a the position that [`ActiveFrom::position`] gives,
//! c(t) = (0, …, 0, 1) for t < a, which is θ_sft, and c(t) = c for t ≥ a.

use serde::{Deserialize, Serialize};

/// The rows that the backbones of a soup act on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// Every row: the prompt and the answer.
    #[default]
    All,
    /// The answer, with what introduces it; θ_sft computes the rows before.
    Answer,
}

impl Activation {
    /// Whether it is what a manifest that names none means.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The first row that the backbones act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActiveFrom {
    /// The first row of the sequence.
    Start,
    /// The start of the generation prompt: what the chat template appends to messages to open the
    /// answer. A prompt without one becomes active with its last token, whose row gives the first
    /// token of the answer.
    GenerationPrompt,
    /// The start of the last occurrence of these tokens in the prompt (PEFT's
    /// `alora_invocation_tokens`).
    Tokens(Vec<u32>),
}

/// A prompt in which the invocation tokens do not occur.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "does not hold the tokens {tokens:?}, which activate the backbones of this soup: expected them \
     where the answer begins"
)]
pub struct NotInvoked {
    /// The invocation tokens.
    pub tokens: Vec<u32>,
}

impl ActiveFrom {
    /// The position from which the backbones act on an answer to `prompt` (at least one token), at
    /// most its last; `None` where they act on every row. `generation_prompt` is the position of the
    /// generation prompt, where there is one.
    pub fn position(
        &self,
        prompt: &[u32],
        generation_prompt: Option<usize>,
    ) -> Result<Option<usize>, NotInvoked> {
        let last = prompt.len().saturating_sub(1);
        match self {
            Self::Start => Ok(None),
            Self::GenerationPrompt => Ok(Some(generation_prompt.map_or(last, |at| at.min(last)))),
            Self::Tokens(tokens) => match prompt.windows(tokens.len()).rposition(|w| w == tokens) {
                Some(at) => Ok(Some(at)),
                None => Err(NotInvoked { tokens: tokens.clone() }),
            },
        }
    }

    /// The first active row by a soup's `activation` and its adapters' invocation tokens, in the
    /// order of the backbones. All adapters name the same tokens, or none does.
    pub fn agreed(
        activation: Activation,
        adapters: &[Option<&[u32]>],
    ) -> Result<Self, Disagreement> {
        let tokens = match activation {
            Activation::All => None,
            Activation::Answer => adapters.first().copied().flatten(),
        };
        if let Some(adapter) = adapters.iter().position(|other| *other != tokens) {
            return Err(Disagreement { adapter, expected: expected(activation, tokens) });
        }
        Ok(match (activation, tokens) {
            (Activation::All, _) => Self::Start,
            (Activation::Answer, None) => Self::GenerationPrompt,
            (Activation::Answer, Some(tokens)) => Self::Tokens(tokens.to_vec()),
        })
    }

    /// Whether the backbones act on the answer only.
    pub fn is_answer(&self) -> bool {
        *self != Self::Start
    }
}

/// An adapter whose invocation tokens are not those of its soup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// Index among the adapters.
    pub adapter: usize,
    /// The invocation tokens that would be right.
    pub expected: String,
}

fn expected(activation: Activation, tokens: Option<&[u32]>) -> String {
    match (activation, tokens) {
        (Activation::All, _) => "it unset, or activation = \"answer\" in soup.toml (`ladle init \
                                 --activation answer`)"
            .to_owned(),
        (Activation::Answer, None) => "it unset, as in the backbones before it".to_owned(),
        (Activation::Answer, Some(tokens)) => {
            format!("{tokens:?}, as in the backbones before it")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_occurrence_of_the_tokens_counts() {
        let from = ActiveFrom::Tokens(vec![7, 8]);
        assert_eq!(from.position(&[7, 8, 1, 7, 8, 2], None), Ok(Some(3)));
        assert_eq!(from.position(&[1, 2, 7, 8], Some(0)), Ok(Some(2)));
        // Overlapping occurrences: the last start.
        assert_eq!(ActiveFrom::Tokens(vec![7, 7]).position(&[7, 7, 7], None), Ok(Some(1)));
        for prompt in [&[][..], &[7], &[8, 7], &[7, 1, 8]] {
            let refused = from.position(prompt, None).unwrap_err();
            assert_eq!(refused.tokens, [7, 8]);
        }
    }

    #[test]
    fn a_prompt_without_a_generation_prompt_is_active_from_its_last_token() {
        let from = ActiveFrom::GenerationPrompt;
        assert_eq!(from.position(&[1, 2, 3], None), Ok(Some(2)));
        assert_eq!(from.position(&[1, 2, 3], Some(1)), Ok(Some(1)));
        assert_eq!(from.position(&[1, 2, 3], Some(3)), Ok(Some(2)), "a template that appends none");
        assert_eq!(from.position(&[1], Some(0)), Ok(Some(0)));
        assert_eq!(ActiveFrom::Start.position(&[1, 2, 3], Some(1)), Ok(None));
    }

    #[test]
    fn adapters_agree_on_their_tokens_or_the_first_that_does_not_is_named() {
        use Activation::{All, Answer};
        let (a, b) = (Some(&[7u32, 8][..]), Some(&[7u32][..]));
        assert_eq!(ActiveFrom::agreed(All, &[None, None]), Ok(ActiveFrom::Start));
        assert_eq!(ActiveFrom::agreed(Answer, &[None, None]), Ok(ActiveFrom::GenerationPrompt));
        assert_eq!(ActiveFrom::agreed(Answer, &[a, a]), Ok(ActiveFrom::Tokens(vec![7, 8])));
        assert_eq!(ActiveFrom::agreed(Answer, &[]), Ok(ActiveFrom::GenerationPrompt));
        for (activation, adapters, index) in [
            (All, [None, a], 1),
            (Answer, [a, b], 1),
            (Answer, [a, None], 1),
            (Answer, [None, a], 1),
        ] {
            let refused = ActiveFrom::agreed(activation, &adapters).unwrap_err();
            assert_eq!(refused.adapter, index, "{adapters:?}: {}", refused.expected);
        }
    }
}
