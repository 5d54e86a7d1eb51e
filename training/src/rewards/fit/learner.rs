//! Training of the head, and its test figures.

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::{Linear, loss::cross_entropy, ops::sigmoid};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{features::Features, settings::Settings};
use crate::{
    draw,
    optimizer::{AdamW, AdamWConfig, learning_rate},
    rewards::{
        head::{Head, HeadNames},
        labels::auc,
    },
};

/// Result of a fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Training pairs or segments.
    pub trained: usize,
    /// Test pairs or segments.
    pub tested: usize,
    /// Passes over them that were kept.
    pub epochs: u64,
    /// Mean validation loss.
    pub loss: f64,
    /// Share of the test pairs whose better response has the higher reward, or of the test segments
    /// whose likeliest label is right.
    pub accuracy: f64,
    /// Accuracy of a constant guess: a half for pairs, the share of the commoner label for segments.
    pub guessing: f64,
    /// Chance that a segment with the error gets a higher logit of it than one without; 0.5 is
    /// chance. For pairs, the accuracy.
    pub auc: f64,
}

impl std::fmt::Display for Fit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { trained, epochs, tested, loss, accuracy, guessing, auc } = self;
        write!(
            f,
            "learned from {trained}, {epochs} epochs, validation loss {loss:.4}; tested on {tested}: accuracy {accuracy:.3} \
             (guessing: {guessing:.3}), AUC {auc:.3}"
        )
    }
}

/// The head's variables. Its input is standardised, which [`Learner::tensors`] puts into its first
/// layer: features of one network differ in scale by orders of magnitude.
pub(super) struct Learner<'a> {
    names: &'a HeadNames,
    /// Mean and standard deviation of the features, `[hidden]` each.
    mean: Tensor,
    scale: Tensor,
    /// Weight and bias of `dense` (where there is one) and `out`.
    layers: Vec<(String, Var, Var)>,
}

impl<'a> Learner<'a> {
    pub fn new(
        names: &'a HeadNames,
        train: &Features,
        labels: usize,
        seed: u64,
    ) -> candle_core::Result<Self> {
        let rows = train.states.flatten_to(1)?;
        let hidden = rows.dim(1)?;
        let mean = rows.mean(0)?;
        let scale = (rows.broadcast_sub(&mean)?.sqr()?.mean(0)? + 1e-8)?.sqrt()?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let bound = 1.0 / (hidden as f32).sqrt();
        let zeros = |size: usize| Var::zeros(size, DType::F32, &Device::Cpu);
        let mut layers = Vec::new();
        if let Some((name, _)) = names.dense {
            let weight = (0..hidden * hidden).map(|_| rng.random_range(-bound..bound)).collect();
            let weight = Var::from_vec::<_, f32>(weight, (hidden, hidden), &Device::Cpu)?;
            layers.push((name.to_owned(), weight, zeros(hidden)?));
        }
        let weight = Var::zeros((labels, hidden), DType::F32, &Device::Cpu)?;
        let bias = zeros(labels)?;
        if labels == 2 {
            // The initial bias gives the labels' frequencies.
            let share = train.wrong_share() as f32;
            bias.set(&Tensor::new(&[(1.0 - share).ln(), share.ln()], &Device::Cpu)?)?;
        }
        layers.push((names.out.to_owned(), weight, bias));
        Ok(Self { names, mean, scale, layers })
    }

    /// The trainable variables; no bias where the head has none.
    fn variables(&self) -> Vec<(String, Var)> {
        let last = self.layers.len() - 1;
        let each = self.layers.iter().enumerate().flat_map(|(at, (name, weight, bias))| {
            let weight = (format!("{name}.weight"), weight.clone());
            let bias = (format!("{name}.bias"), bias.clone());
            [Some(weight), (at < last || self.names.bias).then_some(bias)]
        });
        each.flatten().collect()
    }

    /// Logits `[items, sides, labels]` of states `[items, sides, hidden]`.
    fn logits(&self, states: &Tensor) -> candle_core::Result<Tensor> {
        let linear = |(_, weight, bias): &(String, Var, Var)| {
            Linear::new(weight.as_tensor().clone(), Some(bias.as_tensor().clone()))
        };
        let (dense, out) = match self.layers.as_slice() {
            [dense, out] => (Some(dense), out),
            layers => (None, &layers[0]),
        };
        let dense = dense.zip(self.names.dense).map(|(layer, (_, f))| (linear(layer), f));
        let head = Head { dense, out: linear(out) };
        head.forward(&states.broadcast_sub(&self.mean)?.broadcast_div(&self.scale)?)
    }

    /// Mean loss of the given items.
    fn loss(&self, states: &Tensor, wrong: &[bool]) -> candle_core::Result<Tensor> {
        let logits = self.logits(states)?;
        if logits.dim(1)? == 2 {
            let likelihood = sigmoid(&margins(&logits)?)?.maximum(1e-7)?.log()?;
            return likelihood.mean_all()?.neg();
        }
        let targets: Vec<u32> = wrong.iter().map(|wrong| u32::from(*wrong)).collect();
        cross_entropy(&logits.squeeze(1)?, &Tensor::new(targets, &Device::Cpu)?)
    }

    /// Trains, and keeps the weights of the epoch with the lowest loss on `validation`; returns the
    /// number of epochs and the loss.
    pub fn learn(
        &self,
        train: &Features,
        validation: &Features,
        settings: &Settings,
    ) -> candle_core::Result<(u64, f64)> {
        let decay = settings.weight_decay;
        let config = AdamWConfig { weight_decay: decay, ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(self.variables(), config)?;
        let batch = settings.batch.clamp(1, train.count());
        let per_epoch = train.count().div_ceil(batch) as u64;
        let total = settings.epochs * per_epoch;
        let mut best = (0, f64::INFINITY, Vec::new());
        for epoch in 0..=settings.epochs {
            let loss = self.loss(&validation.states, &validation.wrong)?.to_scalar::<f32>()?;
            if f64::from(loss) < best.1 {
                best = (epoch, loss.into(), self.copies()?);
            }
            let steps = if epoch < settings.epochs { per_epoch } else { 0 };
            for step in epoch * per_epoch..epoch * per_epoch + steps {
                let rows = draw::batch(settings.seed, train.count(), batch, step);
                let wrong: Vec<bool> =
                    rows.iter().filter_map(|&row| train.wrong.get(row).copied()).collect();
                let rows: Vec<u32> = rows.into_iter().map(|row| row as u32).collect();
                let states = train.states.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?;
                optimizer.accumulate(&self.loss(&states, &wrong)?.backward()?)?;
                optimizer.step(learning_rate(settings.learning_rate, step, 0, total))?;
            }
        }
        let (epochs, loss, copies) = best;
        for ((_, variable), copy) in self.variables().iter().zip(&copies) {
            variable.set(copy)?;
        }
        Ok((epochs, loss))
    }

    /// Copies of the variables' values.
    fn copies(&self) -> candle_core::Result<Vec<Tensor>> {
        self.variables().iter().map(|(_, variable)| variable.as_tensor().copy()).collect()
    }

    /// Figures on test rows.
    pub fn test(&self, test: &Features) -> candle_core::Result<Fit> {
        let logits = self.logits(&test.states)?;
        let tested = test.count();
        let fit = Fit {
            trained: 0,
            epochs: 0,
            tested,
            loss: 0.0,
            accuracy: 0.0,
            guessing: 0.5,
            auc: 0.0,
        };
        let share = |right: usize| right as f64 / tested.max(1) as f64;
        // Above 0: the better one has the higher reward, or the error is the likeliest label.
        let margins: Vec<f64> =
            margins(&logits)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
        if test.wrong.is_empty() {
            let accuracy = share(margins.iter().filter(|m| **m > 0.0).count());
            return Ok(Fit { accuracy, auc: accuracy, ..fit });
        }
        let right = margins.iter().zip(&test.wrong).filter(|(m, wrong)| (**m > 0.0) == **wrong);
        let (accuracy, wrong) = (share(right.count()), test.wrong_share());
        let auc = auc(&margins, &test.wrong);
        Ok(Fit { accuracy, guessing: wrong.max(1.0 - wrong), auc, ..fit })
    }

    /// The head as it is stored, for features that are not standardised.
    pub fn tensors(&self) -> candle_core::Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::new();
        for (at, (name, weight, bias)) in self.layers.iter().enumerate() {
            let (mut weight, mut bias) = (weight.as_tensor().detach(), bias.as_tensor().detach());
            if at == 0 {
                weight = weight.broadcast_div(&self.scale)?;
                let shift = weight.broadcast_mul(&self.mean)?.sum(D::Minus1)?;
                bias = (bias - shift)?;
            }
            tensors.push((format!("{name}.weight"), weight));
            // A missing bias drops a constant, which cancels in every pair.
            if at + 1 < self.layers.len() || self.names.bias {
                tensors.push((format!("{name}.bias"), bias));
            }
        }
        Ok(tensors)
    }
}

/// `r(better) − r(worse)` of pairs, `logit(error) − logit(fine)` of segments: `[items]`.
fn margins(logits: &Tensor) -> candle_core::Result<Tensor> {
    let flat = logits.flatten_from(1)?;
    let (first, second) = (flat.narrow(1, 0, 1)?, flat.narrow(1, 1, 1)?);
    let pairs = logits.dim(1)? == 2;
    let margin = if pairs { first - second } else { second - first };
    margin?.squeeze(1)
}
