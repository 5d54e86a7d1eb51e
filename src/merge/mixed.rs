//! One decoder for every c (the mixed execution mode): all terms of the soup, with per-row
//! coefficients ([`SoupPlan::term_values`]). Nothing is merged; adapters are stacked along
//! the rank once.

use std::collections::HashMap;

use super::{
    MergeError,
    low_rank::{stack, total_rank},
    plan::{SoupPlan, TensorPlan},
};
use crate::{
    kernels::{HostTensor, cpu::panels},
    model::{
        config::ModelConfig,
        decoder::Decoder,
        linear::{Dense, LowRank, Parameter},
    },
};

/// The soup's decoder over the mapped weights. Its batches need the coefficients of `plan`.
pub fn mixed_decoder(
    plan: &SoupPlan,
    config: ModelConfig,
) -> Result<Decoder<HostTensor>, MergeError> {
    let keep = |_: &str, tensor: &HostTensor| Ok(tensor.clone());
    mixed_decoder_of(plan, config, keep, keep, |_, up| Ok(panels(up)?))
}

/// The same on another device: `dense` brings full-rank terms there, `down` and `up` the stacked
/// factors; each gets the name of the tensor that the terms make.
pub fn mixed_decoder_of<W: Clone>(
    plan: &SoupPlan,
    config: ModelConfig,
    dense: impl Fn(&str, &HostTensor) -> Result<W, MergeError>,
    down: impl Fn(&str, &HostTensor) -> Result<W, MergeError>,
    up: impl Fn(&str, &HostTensor) -> Result<W, MergeError>,
) -> Result<Decoder<W>, MergeError> {
    let plans: HashMap<&str, &TensorPlan> =
        plan.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    Decoder::load(config, |name| {
        let missing = || MergeError::Missing { tensor: name.to_owned() };
        let tensor = *plans.get(name).ok_or_else(missing)?;
        let terms = tensor.dense.iter();
        let terms = terms.map(|d| Ok(Dense { weight: dense(name, &d.tensor)?, term: d.term }));
        let mut terms = terms.collect::<Result<Vec<_>, MergeError>>()?.into_iter();
        let first = terms.next().ok_or_else(missing)?;
        let low_rank = if tensor.low_rank.is_empty() {
            None
        } else {
            let ranks = total_rank(&tensor.low_rank).next_multiple_of(RANK_STEP);
            let refuse = |source| MergeError::Tensor { tensor: name.to_owned(), source };
            let LowRank { down: a, up: b, scales } =
                stack(&tensor.low_rank, ranks).map_err(refuse)?;
            Some(LowRank { down: down(name, &a)?, up: up(name, &b)?, scales })
        };
        Ok(Parameter { first, rest: terms.collect(), low_rank })
    })
}

/// The stacked rank is filled up with zeros to a multiple of this: GPUs load eight values at once.
const RANK_STEP: usize = 8;
