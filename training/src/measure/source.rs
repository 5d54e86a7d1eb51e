//! Who answers an evaluation: the engine that serves, in this process or behind HTTP.

use std::borrow::Cow;

use indicatif::ProgressBar;

use super::{
    answers::{Answer, Asked, Book, weights},
    error::EvaluateError,
};
use crate::{run::Run, setup::Prompt};

type Result<T> = std::result::Result<T, EvaluateError>;

/// How answers are drawn.
#[derive(Clone, Copy)]
pub struct Decoding {
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// Most tokens of an answer.
    pub longest: usize,
}

/// An answer before it is scored.
pub struct Drawn {
    pub text: String,
    /// Token ids, end of sequence included.
    pub tokens: Vec<u32>,
    /// log π of the tokens at T = 1, nats.
    pub log_prob: f64,
    /// Whether it ended before the limit on its length.
    pub finished: bool,
}

/// An engine over the soup that is asked.
pub trait Source {
    /// Draws the answers of the model of `asked` to prompts under seeds, in their order; the bar
    /// counts them.
    fn draw(
        &self,
        asked: &Asked<'_>,
        prompts: &[(&Prompt, u64)],
        decoding: Decoding,
        bar: &ProgressBar,
    ) -> Result<Vec<Drawn>>;
}

/// Sampling and rewards, the same for all answers.
pub struct Judge<'a> {
    /// The run whose rewards judge the answers.
    pub subject: &'a Run,
    pub decoding: Decoding,
    /// Counts the answers.
    pub bar: ProgressBar,
}

impl Judge<'_> {
    /// Answers everything that `book` lacks, and scores the answers.
    pub fn ask(&self, source: &dyn Source, asked: &Asked<'_>, book: &mut Book) -> Result<()> {
        let missing = book.missing(asked);
        self.bar.dec_length((asked.prompts.len() * asked.seeds.len() - missing.len()) as u64);
        let told = missing.iter().map(|(prompt, _)| self.told(asked, prompt));
        let told = told.collect::<Result<Vec<_>>>()?;
        let seeds = missing.iter().map(|(_, seed)| *seed);
        let prompts: Vec<_> = told.iter().map(AsRef::as_ref).zip(seeds).collect();
        let drawn = source.draw(asked, &prompts, self.decoding, &self.bar)?;
        let (logits, weights) = weights(asked.model);
        let all = missing.iter().zip(&drawn);
        let samples: Vec<_> = all
            .map(|((prompt, _), drawn)| prompt.sample(drawn.text.clone(), drawn.finished))
            .collect();
        let scores = self.subject.rewards.score(&samples)?;
        let each = missing.iter().zip(drawn).enumerate();
        let answers = each.map(|(index, ((prompt, seed), drawn))| Answer {
            soup: asked.soup.to_owned(),
            coefficients: weights.to_vec(),
            logits,
            told: asked.model.told.clone(),
            seed: *seed,
            part: asked.part,
            row: prompt.example.id.clone(),
            response: drawn.text,
            tokens: drawn.tokens,
            log_prob: drawn.log_prob,
            finished: drawn.finished,
            rewards: scores.iter().map(|reward| reward[index]).collect(),
        });
        Ok(book.add(answers.collect())?)
    }

    /// The prompt with the words that its model is told.
    fn told<'p>(&self, asked: &Asked<'_>, prompt: &'p Prompt) -> Result<Cow<'p, Prompt>> {
        let Some(words) = &asked.model.told else { return Ok(Cow::Borrowed(prompt)) };
        let told = self.subject.base.told(prompt, words);
        told.map(Cow::Owned).map_err(|reason| asked.failed(prompt, reason))
    }
}
