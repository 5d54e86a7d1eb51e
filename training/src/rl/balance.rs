//! Dynamic reward balancing (DRBO Algorithm 1, `docs/algorithms.md` §6) around a pre-set weight
//! vector.
//!
//! | symbol | here |
//! |---|---|
//! | f(R_j) = (R_j − mean_j)/std_j | [`Standardiser`] |
//! | W_j, the pre-set weights (n·w_i, column i of B, for backbone i) | `preset` |
//! | count_j, R̄_j⁽¹⁻ᵗ⁾, w_j, t, e | `counts`, `mean`, `weights`, `step`, `every` |
//! | B̃'s column, the step-weighted mean of w | [`Balance::realised`] |
//!
//! With [`Strategy::Average`] the weights stay at W/ΣW: exactly Bone Soup. Nothing here does I/O or
//! owns randomness; the state serialises, so that a resumed run continues it.

use serde::{Deserialize, Serialize};

/// Smallest divisor of a standardised reward.
pub const STD_FLOOR: f64 = 1e-6;

/// Errors of a balance, its data or its settings.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum BalanceError {
    /// A vector does not have one entry an objective.
    #[error("{name} has {got} entries, expected {expected}")]
    Length {
        /// The vector.
        name: &'static str,
        /// Number of objectives.
        expected: usize,
        /// Its length.
        got: usize,
    },
    /// A number out of range.
    #[error("{name}[{index}] is {value}, expected {expected}")]
    Value {
        /// The vector or setting.
        name: &'static str,
        /// Index in the vector.
        index: usize,
        /// The value found.
        value: f64,
        expected: &'static str,
    },
    /// z of *delta* may be negative, so it cannot be normalised by its sum.
    #[error("normalisation is sum, expected softmax with strategy delta, whose z may be negative")]
    Normalisation,
    /// The lead is more than the pre-set weights have.
    #[error("lead is {lead}, expected at most {column}, the lead of the pre-set weights")]
    Lead {
        /// The lead asked for.
        lead: f64,
        /// Own weight less the largest other one of W/ΣW.
        column: f64,
    },
    /// The pre-set weights do not have their single largest entry at the backbone's own objective.
    #[error("objective {dominant} does not dominate the pre-set weights {preset:?}")]
    Dominance {
        /// The backbone's own objective.
        dominant: usize,
        /// The pre-set weights.
        preset: Vec<f64>,
    },
    /// There are no samples to fit on.
    #[error("no samples to standardise on")]
    NoSamples,
}

/// Frozen scale of every reward, `f(R_j) = (R_j − mean_j)/std_j`, from samples of the *initial*
/// policy; it is saved with the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standardiser {
    /// Mean of every reward.
    pub mean: Vec<f64>,
    /// Standard deviation of every reward (population), at least 1e-6.
    pub std: Vec<f64>,
}

impl Standardiser {
    /// Fits on `rewards[objective][sample]`, each on the samples that it judges.
    pub fn fit(rewards: &[Vec<f64>]) -> Result<Self, BalanceError> {
        let (mut mean, mut std) = (Vec::new(), Vec::new());
        if rewards.is_empty() || rewards.iter().any(Vec::is_empty) {
            return Err(BalanceError::NoSamples);
        }
        for series in rewards {
            finite("reward", series)?;
            let samples = series.len() as f64;
            let m = series.iter().sum::<f64>() / samples;
            let variance = series.iter().map(|r| (r - m).powi(2)).sum::<f64>() / samples;
            mean.push(m);
            std.push(variance.sqrt().max(STD_FLOOR));
        }
        Ok(Self { mean, std })
    }

    /// f of the rewards that there are, one an objective.
    pub fn apply_present(&self, rewards: &[Option<f64>]) -> Result<Vec<Option<f64>>, BalanceError> {
        let filled: Vec<f64> = rewards.iter().map(|reward| reward.unwrap_or(0.0)).collect();
        let scaled = self.apply(&filled)?.into_iter().zip(rewards);
        Ok(scaled.map(|(scaled, reward)| reward.map(|_| scaled)).collect())
    }

    /// f of one sample's rewards, one an objective.
    pub fn apply(&self, rewards: &[f64]) -> Result<Vec<f64>, BalanceError> {
        same_length("rewards", self.mean.len(), rewards.len())?;
        finite("rewards", rewards)?;
        let scales = self.mean.iter().zip(&self.std);
        Ok(rewards.iter().zip(scales).map(|(r, (mean, std))| (r - mean) / std).collect())
    }
}

/// Strategy of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Fixed weights: Bone Soup's column of B.
    #[default]
    Average,
    /// z = W/x̂ with x = R̄ + 1: objectives that lag gain weight.
    Inverse,
    /// z = W·x̂ with x = the change of R̄ since the last update: objectives that still move gain
    /// weight.
    Delta,
    /// Fixed weights, of rewards that are normalised among the responses to one prompt
    /// ([`super::gdpo`]).
    Gdpo,
}

impl std::fmt::Display for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Average => "average",
            Self::Inverse => "inverse",
            Self::Delta => "delta",
            Self::Gdpo => "gdpo",
        })
    }
}

/// Normalisation of z to a point of the simplex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalisation {
    /// z/Σz, for positive z.
    Sum,
    /// softmax(z/T), T = 0.01·t.
    Softmax,
}

/// Settings of the balance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalanceConfig {
    /// How the weights follow the rewards.
    pub strategy: Strategy,
    /// How z becomes weights; left out, as the paper's eq. 5: `sum` with *inverse*, `softmax` with
    /// *delta*, whose z may be negative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalisation: Option<Normalisation>,
    /// Steps between updates, e ≥ 1.
    pub every: u64,
    /// τ ≥ 0 of *inverse*: share of the most negative x̂ that is added to all of them.
    pub shift: f64,
    /// Smallest x̂ of *inverse* after the shift, > 0.
    pub floor: f64,
    /// By how much a backbone's own weight leads every other one after an update, > 0; left out, half
    /// of the lead that its column of B has. A tie would make the realised B singular.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lead: Option<f64>,
}

impl BalanceConfig {
    /// How z becomes weights.
    pub fn normalisation(&self) -> Normalisation {
        self.normalisation.unwrap_or(match self.strategy {
            Strategy::Average | Strategy::Inverse | Strategy::Gdpo => Normalisation::Sum,
            Strategy::Delta => Normalisation::Softmax,
        })
    }
}

impl Default for BalanceConfig {
    fn default() -> Self {
        Self {
            strategy: Strategy::Average,
            normalisation: None,
            every: 10,
            shift: 1.0,
            floor: 1e-3,
            lead: None,
        }
    }
}

/// The state of DRBO Algorithm 1 for one policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Balance {
    config: BalanceConfig,
    preset: Vec<f64>,
    dominant: Option<Dominant>,
    step: u64,
    counts: Vec<u64>,
    /// Steps whose batch had responses that the objective's reward judges.
    seen: Vec<u64>,
    mean: Vec<f64>,
    mean_at_update: Vec<f64>,
    weights: Vec<f64>,
    realised: Vec<f64>,
    floor_hits: u64,
    projections: u64,
}

/// The objective whose weight must stay the largest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Dominant {
    own: usize,
    lead: f64,
}

/// Result of an update, for the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The new weights.
    pub weights: Vec<f64>,
    /// Objectives whose x̂ was below the floor at this update (*inverse*).
    pub floored: usize,
    /// Share of the way from w to W/ΣW that keeps the dominance, 0 to 1.
    pub moved: f64,
}

impl Balance {
    /// Starts at w = W/ΣW. `dominant` is the objective whose weight must stay the single largest
    /// (backbone i's own), or `None` for a policy without one.
    pub fn new(
        preset: Vec<f64>,
        dominant: Option<usize>,
        config: BalanceConfig,
    ) -> Result<Self, BalanceError> {
        let n = preset.len();
        check_preset(&preset, dominant)?;
        let lead = config.lead.unwrap_or(0.0);
        let settings = [
            ("shift", config.shift, config.shift >= 0.0, "a number ≥ 0"),
            ("floor", config.floor, config.floor > 0.0, "a number > 0"),
            ("every", config.every as f64, config.every > 0, "at least 1 step"),
            ("lead", lead, config.lead.is_none() || lead > 0.0, "a number > 0"),
        ];
        for (name, value, ok, expected) in settings {
            if !(ok && value.is_finite()) {
                return Err(BalanceError::Value { name, index: 0, value, expected });
            }
        }
        if config.strategy == Strategy::Delta && config.normalisation() == Normalisation::Sum {
            return Err(BalanceError::Normalisation);
        }
        let weights = normalised(&preset);
        let dominant = match dominant {
            None => None,
            Some(own) => {
                let column = lead_of(&weights, own);
                let lead = config.lead.unwrap_or(column / 2.0);
                if lead > column {
                    return Err(BalanceError::Lead { lead, column });
                }
                Some(Dominant { own, lead })
            }
        };
        Ok(Self {
            config,
            preset,
            dominant,
            step: 0,
            counts: vec![1; n],
            seen: vec![0; n],
            mean: vec![0.0; n],
            mean_at_update: vec![0.0; n],
            weights,
            realised: vec![0.0; n],
            floor_hits: 0,
            projections: 0,
        })
    }

    /// The weights in force: finite, ≥ 0, Σ = 1.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Steps taken.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Number of x̂ raised to the floor, and of updates that restored the dominance.
    pub fn interventions(&self) -> (u64, u64) {
        (self.floor_hits, self.projections)
    }

    /// Total reward of a sample, `Σ w_j f(R_j)`, from those standardised rewards that it has.
    pub fn combine(&self, standardised: &[Option<f64>]) -> Result<f64, BalanceError> {
        same_length("standardised rewards", self.weights.len(), standardised.len())?;
        let present = self.weights.iter().zip(standardised);
        Ok(present.filter_map(|(w, r)| Some(w * (*r)?)).sum())
    }

    /// The objective that `uniform ∈ [0, 1)` draws from w.
    pub fn draw(&self, uniform: f64) -> usize {
        let mut below = 0.0;
        let drawn = self.weights.iter().position(|w| {
            below += w;
            uniform < below
        });
        // Rounding can leave the sum just below `uniform`: then the last objective with weight.
        let last = || self.weights.iter().rposition(|&w| w > 0.0);
        drawn.or_else(last).unwrap_or(0)
    }

    /// Ends step t: counts the drawn objective, takes the batch's mean standardised rewards into
    /// R̄⁽¹⁻ᵗ⁾ and, every e steps, updates the weights. An objective without responses in the batch
    /// keeps its R̄.
    pub fn advance(
        &mut self,
        drawn: usize,
        batch_mean: &[Option<f64>],
    ) -> Result<Option<Update>, BalanceError> {
        let n = self.weights.len();
        same_length("batch means", n, batch_mean.len())?;
        let filled: Vec<f64> = batch_mean.iter().map(|mean| mean.unwrap_or(0.0)).collect();
        finite("batch mean", &filled)?;
        let Some(count) = self.counts.get_mut(drawn) else {
            return Err(BalanceError::Value {
                name: "drawn objective",
                index: 0,
                value: drawn as f64,
                expected: "an objective's index",
            });
        };
        *count += 1;
        self.step += 1;
        for (sum, w) in self.realised.iter_mut().zip(&self.weights) {
            *sum += w;
        }
        for ((mean, seen), r) in self.mean.iter_mut().zip(&mut self.seen).zip(batch_mean) {
            let Some(r) = r else { continue };
            *seen += 1;
            *mean += (r - *mean) / *seen as f64;
        }
        let fixed = matches!(self.config.strategy, Strategy::Average | Strategy::Gdpo);
        if fixed || !self.step.is_multiple_of(self.config.every) {
            return Ok(None);
        }
        let (proposed, floored) = self.propose();
        let (weights, moved) = match self.dominant {
            Some(Dominant { own, lead }) => {
                keep_dominance(&proposed, &normalised(&self.preset), own, lead)
            }
            None => (proposed, 0.0),
        };
        self.mean_at_update.clone_from(&self.mean);
        self.floor_hits += floored as u64;
        self.projections += u64::from(moved > 0.0);
        self.weights.clone_from(&weights);
        Ok(Some(Update { weights, floored, moved }))
    }

    /// Column i of the realised B̃: the mean of w over the steps taken (W/ΣW before the first).
    pub fn realised(&self) -> Vec<f64> {
        if self.step == 0 { self.weights.clone() } else { normalised(&self.realised) }
    }

    /// The update of DRBO Algorithm 1 (`docs/algorithms.md` §6.1): the weights as a function of R̄,
    /// the counts and W, and the number of x̂ that were floored.
    fn propose(&self) -> (Vec<f64>, usize) {
        let t = self.step as f64;
        let optimism = |count: u64| (2.0 * t.ln() / count as f64).sqrt();
        let gains = self.mean.iter().zip(&self.mean_at_update).zip(&self.counts);
        let x: Vec<f64> = gains
            .map(|((&mean, &before), &count)| {
                let x = match self.config.strategy {
                    Strategy::Delta => mean - before,
                    Strategy::Inverse | Strategy::Average | Strategy::Gdpo => mean + 1.0,
                };
                x + optimism(count)
            })
            .collect();
        let (mut floored, preset) = (0, &self.preset);
        let z: Vec<f64> = if self.config.strategy == Strategy::Delta {
            x.iter().zip(preset).map(|(x, preset)| preset * x).collect()
        } else {
            // W/x̂ has a pole at 0: negative x̂ are shifted, then held above the floor.
            let lowest = x.iter().copied().fold(0.0, f64::min);
            let shifted = x.iter().map(|x| x - self.config.shift * lowest);
            let positive = shifted.map(|x| {
                floored += usize::from(x < self.config.floor);
                x.max(self.config.floor)
            });
            positive.zip(preset).map(|(x, preset)| preset / x).collect()
        };
        let weights = match self.config.normalisation() {
            Normalisation::Sum => normalised(&z),
            Normalisation::Softmax => softmax(&z, 0.01 * t),
        };
        (weights, floored)
    }
}

/// By how much entry `own` is larger than the largest other one.
fn lead_of(weights: &[f64], own: usize) -> f64 {
    let others = weights.iter().enumerate().filter(|(j, _)| *j != own).map(|(_, w)| *w);
    let own = weights.get(own).copied().unwrap_or(0.0);
    own - others.fold(f64::NEG_INFINITY, f64::max)
}

/// Moves `weights` along the segment towards `column` until entry `own` is larger than every other
/// one by `lead`, and returns the share of the way (0: no move needed). The lead of `column` is at
/// least `lead`, so a point of the segment qualifies.
pub fn keep_dominance(weights: &[f64], column: &[f64], own: usize, lead: f64) -> (Vec<f64>, f64) {
    let ahead =
        |w: &[f64], j: usize| w.get(own).copied().unwrap_or(0.0) - w.get(j).copied().unwrap_or(0.0);
    let moved = (0..weights.len())
        .filter(|&j| j != own)
        .map(|j| {
            let (now, goal) = (ahead(weights, j), ahead(column, j));
            if now >= lead { 0.0 } else { ((lead - now) / (goal - now)).clamp(0.0, 1.0) }
        })
        .fold(0.0, f64::max);
    if moved == 0.0 {
        return (weights.to_vec(), 0.0);
    }
    let mixed: Vec<f64> = weights.iter().zip(column).map(|(w, b)| w + moved * (b - w)).collect();
    (normalised(&mixed), moved)
}

fn check_preset(preset: &[f64], dominant: Option<usize>) -> Result<(), BalanceError> {
    let bad = preset.iter().position(|w| !(w.is_finite() && *w >= 0.0));
    if let Some((index, &value)) = bad.and_then(|i| Some((i, preset.get(i)?))) {
        let expected = "a finite number ≥ 0";
        return Err(BalanceError::Value { name: "preset", index, value, expected });
    }
    if preset.iter().sum::<f64>() <= 0.0 {
        let expected = "weights that are not all zero";
        return Err(BalanceError::Value { name: "preset", index: 0, value: 0.0, expected });
    }
    let Some(own) = dominant else { return Ok(()) };
    let largest = preset.get(own).is_some_and(|own_weight| {
        preset.iter().enumerate().all(|(j, w)| j == own || w < own_weight)
    });
    if largest {
        Ok(())
    } else {
        Err(BalanceError::Dominance { dominant: own, preset: preset.to_vec() })
    }
}

fn normalised(z: &[f64]) -> Vec<f64> {
    let sum = z.iter().sum::<f64>();
    z.iter().map(|z| z / sum).collect()
}

fn softmax(z: &[f64], temperature: f64) -> Vec<f64> {
    let highest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = z.iter().map(|z| ((z - highest) / temperature).exp()).collect();
    normalised(&exp)
}

fn same_length(name: &'static str, expected: usize, got: usize) -> Result<(), BalanceError> {
    if expected == got { Ok(()) } else { Err(BalanceError::Length { name, expected, got }) }
}

fn finite(name: &'static str, values: &[f64]) -> Result<(), BalanceError> {
    match values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some((index, &value)) => {
            Err(BalanceError::Value { name, index, value, expected: "a finite number" })
        }
    }
}
