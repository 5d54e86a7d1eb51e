//! Settings of an evaluation.

use serde::{Deserialize, Serialize};

use super::{methods::Kind, regime::Region};

/// Settings of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Settings that a resumed evaluation must keep.
    pub fixed: Fixed,
    /// Extrapolations that are tried on validation prompts; 0 is always one.
    pub alphas: Vec<f64>,
    /// Whether test prompts are answered at all of them, with no choice of the best.
    pub every_alpha: bool,
    /// Methods compared, beside θ_sft.
    pub methods: Vec<Kind>,
}

/// Prompts, preferences and decoding: the same for every method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fixed {
    /// Test prompts of each point (all there are, if fewer).
    pub prompts: usize,
    /// Validation prompts that α is chosen on.
    pub dev_prompts: usize,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// Seeds of the sampling (one, if greedy).
    pub seeds: Vec<u64>,
    /// The sweep: μ, normalised.
    pub preferences: Vec<Vec<f64>>,
    /// Whether a server answers, which may compute in other types and on another device.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub server: bool,
}

/// Fewest points of a sweep.
const FEWEST: usize = 3;

impl Settings {
    /// Refuses settings that leave nothing to compare, and normalises the preferences.
    pub fn checked(mut self, objectives: usize) -> Result<Self, String> {
        let Fixed { prompts, dev_prompts, temperature, seeds, preferences, .. } = &mut self.fixed;
        if *prompts == 0 || *dev_prompts == 0 {
            return Err("--prompts and --dev-prompts: expected at least 1".to_owned());
        }
        if !(temperature.is_finite() && *temperature >= 0.0) {
            return Err(format!("--temperature is {temperature}, expected a number of at least 0"));
        }
        let mut distinct = seeds.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if seeds.is_empty() || distinct.len() != seeds.len() {
            return Err(format!("--seeds is {seeds:?}, expected distinct seeds, at least one"));
        }
        if *temperature == 0.0 && seeds.len() > 1 {
            let reason = "expected one with --temperature 0: greedy answers are the same under all";
            return Err(format!("--seeds is {seeds:?}, {reason}"));
        }
        for weights in preferences.iter_mut() {
            let sum: f64 = weights.iter().sum();
            let valid = weights.iter().all(|w| w.is_finite() && *w >= 0.0) && sum > 0.0;
            if weights.len() != objectives || !valid {
                return Err(format!(
                    "the preference {weights:?}: expected {objectives} weights of at least 0, not \
                     all zero"
                ));
            }
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        let count = preferences.len();
        if count < FEWEST {
            return Err(format!("{count} preferences, expected at least {FEWEST}"));
        }
        if !preferences.iter().any(|mu| Region::of(mu) == Region::Interior) {
            return Err(format!(
                "no preference of the grid gives every one of {objectives} objectives some weight; \
                 expected a finer grid, at least --grid {objectives}"
            ));
        }
        if let Some(alpha) = self.alphas.iter().find(|alpha| !alpha.is_finite()) {
            return Err(format!("--alphas has {alpha}, expected finite numbers"));
        }
        if self.every_alpha && self.alphas.iter().all(|alpha| *alpha == 0.0) {
            return Err("--every-alpha: expected --alphas with one beside 0".to_owned());
        }
        self.alphas.push(0.0);
        // 0 first: the least extrapolation of those that are equally good is chosen.
        self.alphas.sort_by(|a, b| a.abs().total_cmp(&b.abs()).then(a.total_cmp(b)));
        self.alphas.dedup();
        Ok(self)
    }
}
