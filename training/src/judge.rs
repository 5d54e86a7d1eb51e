//! From sampled responses to weighted per-token scores and baselines.

use crate::{
    config::{Algorithm, Config},
    error::RunError,
    rewards::{RewardSet, SpanScore},
    rl::{
        advantage::{TokenScore, token_at},
        balance::{Balance, Standardiser, Strategy},
        gdpo::gdpo_advantages,
        packing::Sequence,
        rollout::Rollout,
    },
    setup::{Base, Prompt},
};

type Result<T> = std::result::Result<T, RunError>;

/// One batch of responses with their rewards.
pub struct Judged {
    /// In the order of the prompts.
    pub responses: Vec<Response>,
    /// Mean raw reward of each objective over the sampled responses that it judges.
    pub raw: Vec<Option<f64>>,
    /// Mean standardised reward of each objective.
    pub standardised: Vec<Option<f64>>,
}

/// One response with its rewards.
pub struct Response {
    /// Prompt and response.
    pub sequence: Sequence,
    /// The response as it was sampled.
    pub rollout: Rollout,
    /// Its standardised rewards.
    pub standardised: Vec<Option<f64>>,
    /// Weighted rewards at their tokens.
    pub scores: Vec<TokenScore>,
    /// Baseline of the total: the total of the greedy response to the same prompt (ReMax), or the mean
    /// of the other responses to it (RLOO); 0 with GDPO, whose scores are advantages.
    pub baseline: f64,
}

impl Response {
    /// Weighted rewards of the whole response.
    pub fn total(&self) -> f64 {
        self.scores.iter().map(|score| score.score).sum()
    }
}

/// The rewards with their scale and weights.
pub struct Judge<'a> {
    /// Its tokenizer decodes the responses.
    pub base: &'a Base,
    /// Algorithm and number of responses to a prompt.
    pub config: &'a Config,
    /// The objectives' rewards.
    pub rewards: &'a RewardSet,
    /// Their frozen scale.
    pub standardiser: &'a Standardiser,
    /// Their weights.
    pub balance: &'a Balance,
}

impl Judge<'_> {
    /// Scores the responses, `config.rollout.samples` of each prompt, and weighs the rewards. `greedy`
    /// has one response a prompt with ReMax, else none.
    pub fn batch(
        &self,
        prompts: &[&Prompt],
        sampled: Vec<Rollout>,
        greedy: Vec<Rollout>,
    ) -> Result<Judged> {
        let base = self.base;
        let samples = self.config.rollout.samples;
        let prompt_of = |index: usize| prompts[index / samples];
        let texts: Vec<_> = sampled
            .iter()
            .enumerate()
            .map(|(index, rollout)| base.sample(prompt_of(index), rollout))
            .collect();
        let baselines: Vec<_> = prompts
            .iter()
            .zip(&greedy)
            .map(|(prompt, rollout)| base.sample(prompt, rollout))
            .collect();
        let spans = self.rewards.spans(&texts)?;
        let baselines = self.totals(&self.rewards.score(&baselines)?)?;
        let mean = |reward: &Vec<Option<Vec<SpanScore>>>| {
            let judged: Vec<f64> = reward.iter().flatten().map(|spans| total(spans)).collect();
            (!judged.is_empty()).then(|| judged.iter().sum::<f64>() / judged.len() as f64)
        };
        let raw: Vec<Option<f64>> = spans.iter().map(mean).collect();
        let standardised = self.standardiser.apply_present(&raw)?;
        let Standardiser { mean, std } = self.standardiser;
        let weights = self.balance.weights();
        let mut responses = Vec::with_capacity(sampled.len());
        for (index, (rollout, text)) in sampled.into_iter().zip(&texts).enumerate() {
            let ends = base.ends(&rollout.tokens);
            let last = rollout.tokens.len().saturating_sub(1);
            let mut scores = Vec::new();
            for (((weight, mean), std), spans) in weights.iter().zip(mean).zip(std).zip(&spans) {
                let Some(spans) = &spans[index] else { continue };
                // w·(Σ scores − mean)/std: each part at its own end, the mean at the last token.
                scores.push(TokenScore { token: last, score: -weight * mean / std });
                for span in spans {
                    let whole = span.end == text.response.len();
                    let at = if whole { None } else { token_at(&ends, span.end) };
                    let token = at.unwrap_or(last);
                    scores.push(TokenScore { token, score: weight * span.score / std });
                }
            }
            let prompt = prompt_of(index);
            let sequence = Sequence {
                prompt: prompt.tokens.clone(),
                response: rollout.tokens.clone(),
                active_from: prompt.active_from(self.config.lora.activation),
            };
            let baseline = baselines.get(index / samples).copied().unwrap_or(0.0);
            let raw: Vec<Option<f64>> =
                spans.iter().map(|reward| reward[index].as_deref().map(total)).collect();
            let standardised = self.standardiser.apply_present(&raw)?;
            responses.push(Response { sequence, rollout, standardised, scores, baseline });
        }
        if self.config.balance.strategy == Strategy::Gdpo {
            let totals = |reward: &Vec<Option<Vec<SpanScore>>>| {
                reward.iter().map(|spans| spans.as_deref().map(total)).collect()
            };
            let rewards: Vec<Vec<Option<f64>>> = spans.iter().map(totals).collect();
            // The advantage of the whole response, at its last token, with nothing to compare to.
            let advantages = gdpo_advantages(&rewards, weights, samples);
            for (response, score) in responses.iter_mut().zip(advantages) {
                let token = response.rollout.tokens.len().saturating_sub(1);
                response.scores = vec![TokenScore { token, score }];
            }
        } else if self.config.rl.algorithm == Algorithm::Rloo {
            for group in responses.chunks_mut(samples) {
                let sum: f64 = group.iter().map(Response::total).sum();
                let others = (group.len() - 1) as f64;
                group.iter_mut().for_each(|r| r.baseline = (sum - r.total()) / others);
            }
        }
        Ok(Judged { responses, raw, standardised })
    }

    /// Weighted standardised rewards of samples, from `[reward][sample]`.
    fn totals(&self, scores: &[Vec<Option<f64>>]) -> Result<Vec<f64>> {
        let count = scores.first().map_or(0, Vec::len);
        let totals = (0..count).map(|sample| {
            let raw: Vec<Option<f64>> =
                scores.iter().filter_map(|r| r.get(sample)).copied().collect();
            Ok(self.balance.combine(&self.standardiser.apply_present(&raw)?)?)
        });
        totals.collect()
    }
}

/// The reward of a response: the sum over its parts.
fn total(spans: &[SpanScore]) -> f64 {
    spans.iter().map(|span| span.score).sum()
}
