//! Heads of reward models: the layers from hidden states to logits, with transformers' names.

use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear, linear_b};

use super::decoder;

/// Unit that a head scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadKind {
    /// A whole text (`…ForSequenceClassification`).
    Sequence,
    /// Every token (`…ForTokenClassification`).
    Tokens,
}

impl HeadKind {
    /// End of the name of transformers' class.
    pub fn class(self) -> &'static str {
        match self {
            Self::Sequence => "ForSequenceClassification",
            Self::Tokens => "ForTokenClassification",
        }
    }
}

pub(super) type Function = fn(&Tensor) -> Result<Tensor>;

/// Names of a head's layers in an architecture: `out(activation(dense(h)))`, or `out(h)`.
pub(super) struct HeadNames {
    /// The first layer, with a bias.
    pub dense: Option<(&'static str, Function)>,
    /// The layer that gives the logits.
    pub out: &'static str,
    /// Whether that layer has a bias.
    pub bias: bool,
}

impl HeadNames {
    pub fn of(model_type: &str, kind: HeadKind) -> Self {
        let llama = decoder::FAMILY.contains(&model_type);
        let one = |out, bias| Self { dense: None, out, bias };
        let two =
            |name, function: Function, out| Self { dense: Some((name, function)), out, bias: true };
        match (kind, model_type) {
            (HeadKind::Sequence, "gpt2") => one("score", false),
            (kind, _) if llama => one("score", kind == HeadKind::Tokens),
            (HeadKind::Tokens, _) => one("classifier", true),
            (_, "bert") => two("bert.pooler.dense", Tensor::tanh, "classifier"),
            (_, "distilbert") => two("pre_classifier", Tensor::relu, "classifier"),
            (_, "deberta-v2") => two("pooler.dense", Tensor::gelu_erf, "classifier"),
            _ => two("classifier.dense", Tensor::tanh, "classifier.out_proj"),
        }
    }
}

/// A head, ready to compute.
pub(super) struct Head {
    pub dense: Option<(Linear, Function)>,
    pub out: Linear,
}

impl Head {
    /// Reads the head of these names.
    pub fn load(
        names: &HeadNames,
        hidden: usize,
        labels: usize,
        weights: &VarBuilder,
    ) -> Result<Self> {
        let dense = match names.dense {
            Some((name, function)) => Some((linear(hidden, hidden, weights.pp(name))?, function)),
            None => None,
        };
        Ok(Self { dense, out: linear_b(hidden, labels, names.bias, weights.pp(names.out))? })
    }

    /// Logits `[…, labels]` of states `[…, hidden]`.
    pub fn forward(&self, states: &Tensor) -> Result<Tensor> {
        match &self.dense {
            Some((dense, function)) => self.out.forward(&function(&dense.forward(states)?)?),
            None => self.out.forward(states),
        }
    }
}
