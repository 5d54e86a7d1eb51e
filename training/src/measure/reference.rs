//! log π_sft of answers, from which the KL of a model to θ_sft is estimated.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::{
    answers::{Answer, Lines},
    error::EvaluateError,
};
use crate::{
    error::RunError,
    metrics::progress,
    rl::{
        lora::{LoraConfig, Policy},
        packing::Sequence,
        update::reference_log_probs,
    },
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

/// Log-probabilities under θ_sft at T = 1, nats, by row and tokens.
pub struct Reference(HashMap<(String, Vec<u32>), f64>);

impl Reference {
    /// Scores the answers to `prompts` that the file at `path` lacks, and adds them to it. Answers
    /// to one prompt share its rows, whichever model gave them.
    pub fn of(
        run: &Run,
        prompts: &[&Prompt],
        answers: &[&Answer],
        path: &Path,
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
        let policy = policy(run)?;
        let bar = progress("reference", missing.len() as u64, "prompts");
        for (row, responses) in missing {
            let prompt = prompts.iter().find(|prompt| prompt.example.id == row);
            let Some(prompt) = prompt.map(|prompt| &prompt.tokens) else { continue };
            let sequence =
                |response| Sequence { prompt: prompt.clone(), response, active_from: None };
            let sequences: Vec<Sequence> = responses.into_iter().map(sequence).collect();
            let log_probs = reference_log_probs(&policy, &sequences, run.config.rl.rows, 1.0);
            let log_probs = log_probs.map_err(RunError::from)?;
            let mut scored = Vec::with_capacity(sequences.len());
            for (sequence, values) in sequences.into_iter().zip(log_probs) {
                let log_prob = values.into_iter().map(f64::from).sum();
                let (row, tokens) = (row.to_owned(), sequence.response);
                known.insert((row.clone(), tokens.clone()), log_prob);
                scored.push(Scored { row, tokens, log_prob });
            }
            lines.append(&scored)?;
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

/// θ_sft as the frozen network of training, without trainable parameters.
fn policy(run: &Run) -> Result<Policy, RunError> {
    let frozen = match run.sft()? {
        None => run.base.weights.clone(),
        Some(adapter) => merged(&run.base.weights, &adapter, &run.base.model)?,
    };
    let none = LoraConfig { rank: 1, targets: Vec::new(), ..LoraConfig::default() };
    Ok(Policy::new(&run.base.model, &frozen, &none, &Device::Cpu, 0)?)
}
