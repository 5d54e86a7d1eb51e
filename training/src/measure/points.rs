//! Figures of one point of a sweep, from its answers. Pure.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{answers::Answer, reference::Reference};
use crate::{
    rewards::overlap::rouge_l,
    rl::balance::{BalanceError, Standardiser},
    setup::Prompt,
};

/// One point: the answers of one model to all prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// μ, normalised, in the order of the objectives.
    pub preference: Vec<f64>,
    /// λ of the preference; `None` for θ_sft.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lambda: Option<Vec<f64>>,
    /// Mean reward of every objective over prompts and seeds, in its own unit.
    pub mean: Vec<f64>,
    /// Standard deviation of the seeds' means; of the prompts' rewards when there is one seed.
    pub spread: Vec<f64>,
    /// The means in σ: (mean − m)/s with the run's frozen scale.
    pub standardised: Vec<f64>,
    /// Estimate of KL(π ‖ π_sft), nats per answer; only of answers sampled at T = 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Whether θ_sft is at least as good in every reward and better in one.
    pub dominated: bool,
    /// Statistics of the answers' text.
    pub text: Text,
}

impl Point {
    /// Testing reward Σ μᵢzᵢ, in σ.
    pub fn value(&self) -> f64 {
        self.preference.iter().zip(&self.standardised).map(|(mu, z)| mu * z).sum()
    }
}

/// Statistics of the text of answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Text {
    /// Mean number of words.
    pub words: f64,
    /// Share that ended before the limit on their length.
    pub finished: f64,
    /// Distinct pairs of neighbouring words over all such pairs.
    pub distinct_2: f64,
    /// Mean ROUGE-L F-measure against the best reference; `None` without references.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rouge_l: Option<f64>,
}

/// The figures of the answers to `prompts`, which come prompt by prompt under every seed.
pub fn point(
    preference: &[f64],
    lambda: Option<Vec<f64>>,
    answers: &[&Answer],
    (prompts, seeds): (&[&Prompt], &[u64]),
    standardiser: &Standardiser,
    reference: Option<&Reference>,
) -> Result<Point, BalanceError> {
    let count = answers.first().map_or(0, |answer| answer.rewards.len());
    let series = |objective: usize, seed: Option<u64>| -> Vec<f64> {
        let of_seed = answers.iter().filter(|answer| seed.is_none_or(|seed| answer.seed == seed));
        of_seed.filter_map(|answer| answer.rewards[objective]).collect()
    };
    let spread = |objective| match seeds {
        [_] => deviation(&series(objective, None)),
        seeds => {
            let means: Vec<f64> =
                seeds.iter().map(|seed| mean(&series(objective, Some(*seed)))).collect();
            deviation(&means)
        }
    };
    let means: Vec<f64> = (0..count).map(|objective| mean(&series(objective, None))).collect();
    let kl = reference.and_then(|reference| {
        let ratios: Option<Vec<f64>> = answers.iter().map(|a| reference.log_ratio(a)).collect();
        ratios.map(|ratios| mean(&ratios))
    });
    Ok(Point {
        preference: preference.to_vec(),
        lambda,
        standardised: standardiser.apply(&means)?,
        mean: means,
        spread: (0..count).map(spread).collect(),
        kl,
        dominated: false,
        text: text(answers, prompts),
    })
}

fn text(answers: &[&Answer], prompts: &[&Prompt]) -> Text {
    let each = |f: &dyn Fn(&Answer) -> f64| mean(&answers.iter().map(|a| f(a)).collect::<Vec<_>>());
    let mut pairs = 0usize;
    let mut distinct = HashSet::new();
    for answer in answers {
        let words: Vec<&str> = answer.response.split_whitespace().collect();
        pairs += words.len().saturating_sub(1);
        distinct.extend(words.windows(2).map(|pair| (pair[0], pair[1])));
    }
    let overlaps: Vec<f64> = answers
        .iter()
        .filter_map(|answer| {
            let prompt = prompts.iter().find(|prompt| prompt.example.id == answer.row)?;
            let references = prompt.example.references.iter();
            let scores = references.map(|r| rouge_l(&answer.response, r, false));
            scores.fold(None, |best: Option<f64>, score| Some(best.map_or(score, |b| b.max(score))))
        })
        .collect();
    Text {
        words: each(&|answer| answer.response.split_whitespace().count() as f64),
        finished: each(&|answer| f64::from(u8::from(answer.finished))),
        distinct_2: distinct.len() as f64 / pairs.max(1) as f64,
        rouge_l: (!overlaps.is_empty()).then(|| mean(&overlaps)),
    }
}

/// Mean of numbers; 0 of none.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn deviation(values: &[f64]) -> f64 {
    let middle = mean(values);
    mean(&values.iter().map(|value| (value - middle).powi(2)).collect::<Vec<_>>()).sqrt()
}
