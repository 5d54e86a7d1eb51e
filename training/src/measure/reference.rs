//! log π_sft of answers, from which the KL of a model to θ_sft is estimated.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use candle_core::Device;
use ladle::soup::Soup;
use serde::{Deserialize, Serialize};

use super::{
    answers::{Answer, Lines},
    error::EvaluateError,
};
use crate::{
    error::RunError,
    metrics::progress,
    rl::{lora::LoraConfig, packing::Sequence, policy::Policy, update::reference_log_probs},
    run::Run,
    setup::Prompt,
    weights::merged,
};

/// One answer's log-probability, as a line of `reference.jsonl`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Scored {
    row: String,
    tokens: Vec<u32>,
    log_prob: f64,
}

/// θ_sft, as the scorer of responses.
pub trait Frozen {
    /// Log-probability of each response to a prompt at T = 1, nats.
    fn log_probs(&self, prompt: &Prompt, responses: &[Vec<u32>])
    -> Result<Vec<f64>, EvaluateError>;
}

/// Log-probabilities under θ_sft at T = 1, nats, by row and tokens.
pub struct Reference(HashMap<(String, Vec<u32>), f64>);

impl Reference {
    /// Scores the answers to `prompts` that the file at `path` lacks, and adds them to it.
    pub fn of<'a>(
        prompts: &[&Prompt],
        answers: &[&Answer],
        path: &Path,
        frozen: impl FnOnce() -> Result<Box<dyn Frozen + 'a>, EvaluateError>,
    ) -> Result<Self, EvaluateError> {
        let (mut lines, known) = Lines::<Scored>::open(path)?;
        let known = known.into_iter().map(|scored| ((scored.row, scored.tokens), scored.log_prob));
        let mut known: HashMap<(String, Vec<u32>), f64> = known.collect();
        let mut missing: BTreeMap<&str, Vec<Vec<u32>>> = BTreeMap::new();
        for answer in answers {
            let key = (answer.row.clone(), answer.tokens.clone());
            let of_row = missing.entry(&answer.row).or_default();
            if !answer.tokens.is_empty() && !known.contains_key(&key) && !of_row.contains(&key.1) {
                of_row.push(key.1);
            }
        }
        missing.retain(|_, responses| !responses.is_empty());
        if missing.is_empty() {
            return Ok(Self(known));
        }
        let frozen = frozen()?;
        let bar = progress("reference", missing.len() as u64, "prompts");
        for (row, responses) in missing {
            let prompt = prompts.iter().find(|prompt| prompt.example.id == row);
            let Some(prompt) = prompt else { continue };
            let log_probs = frozen.log_probs(prompt, &responses)?;
            let scored = responses.into_iter().zip(log_probs);
            let scored =
                scored.map(|(tokens, log_prob)| Scored { row: row.into(), tokens, log_prob });
            let scored: Vec<Scored> = scored.collect();
            lines.append(&scored)?;
            known.extend(scored.into_iter().map(|s| ((s.row, s.tokens), s.log_prob)));
            bar.inc(1);
        }
        bar.finish();
        Ok(Self(known))
    }

    /// The estimate of KL(π ‖ π_sft) of an answer drawn from π: log π − log π_sft, nats.
    pub fn log_ratio(&self, answer: &Answer) -> Option<f64> {
        if answer.tokens.is_empty() {
            return Some(0.0);
        }
        let reference = self.0.get(&(answer.row.clone(), answer.tokens.clone()))?;
        Some(answer.log_prob - reference)
    }
}

/// θ_sft as the frozen network of training.
pub struct Tape {
    policy: Policy,
    /// Rows of one forward at most.
    rows: usize,
}

impl Tape {
    /// The network of a soup on the base of `run`.
    pub fn open(run: &Run, soup: &Soup) -> Result<Self, EvaluateError> {
        let frozen = match &soup.sft {
            None => run.base.weights.clone(),
            Some(sft) if !sft.saved.is_empty() => {
                let reason = "its supervised adapter has modules_to_save, with which no KL is \
                              computed here: measure it through a server (--engine)";
                return Err(EvaluateError::Soup { path: soup.dir.clone(), reason: reason.into() });
            }
            Some(sft) => {
                let dtype = run.config.precision.dtype();
                merged(&run.base.weights, &sft.modules, &run.base.model, dtype)
                    .map_err(RunError::from)?
            }
        };
        let none = LoraConfig { rank: 1, targets: Some(Vec::new()), ..LoraConfig::default() };
        let policy = Policy::new(&run.base.model, &frozen, &none, &Device::Cpu, 0);
        let policy = policy.and_then(|policy| policy.in_precision(run.config.precision));
        Ok(Self { policy: policy.map_err(RunError::from)?, rows: run.config.rl.rows })
    }
}

impl Frozen for Tape {
    /// Responses to one prompt share its rows.
    fn log_probs(
        &self,
        prompt: &Prompt,
        responses: &[Vec<u32>],
    ) -> Result<Vec<f64>, EvaluateError> {
        let sequence = |response: &Vec<u32>| Sequence {
            prompt: prompt.tokens.clone(),
            response: response.clone(),
            active_from: None,
        };
        let sequences: Vec<Sequence> = responses.iter().map(sequence).collect();
        let log_probs = reference_log_probs(&self.policy, &sequences, self.rows, 1.0);
        let each = log_probs.map_err(RunError::from)?.into_iter();
        Ok(each.map(|values| values.into_iter().map(f64::from).sum()).collect())
    }
}
