//! One decoder for every c (the mixed execution mode): all terms of the soup, with per-row
//! coefficients from [`SoupPlan::row_coefficients`]. Nothing is merged; adapters are stacked along
//! the rank once.

use std::sync::Arc;

use super::{
    MergeError,
    plan::{LowRankTerm, SoupPlan, TensorPlan},
};
use crate::{
    kernels::{ColumnScale, Dtype, HostTensor, cpu::panels},
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
    let keep = |tensor: &HostTensor| Ok(tensor.clone());
    mixed_decoder_of(plan, config, keep, keep, |up| Ok(panels(up)?))
}

/// The same on another device: `dense` brings full-rank terms there, `down` and `up` the stacked
/// factors.
pub fn mixed_decoder_of<W: Clone>(
    plan: &SoupPlan,
    config: ModelConfig,
    dense: impl Fn(&HostTensor) -> Result<W, MergeError>,
    down: impl Fn(&HostTensor) -> Result<W, MergeError>,
    up: impl Fn(&HostTensor) -> Result<W, MergeError>,
) -> Result<Decoder<W>, MergeError> {
    Decoder::load(config, |name| {
        let missing = || MergeError::Missing { tensor: name.to_owned() };
        let tensor =
            plan.tensors().iter().find(|tensor| tensor.name == name).ok_or_else(missing)?;
        let terms = tensor.dense.iter();
        let terms = terms.map(|d| Ok(Dense { weight: dense(&d.tensor)?, term: d.term }));
        let mut terms = terms.collect::<Result<Vec<_>, MergeError>>()?.into_iter();
        let first = terms.next().ok_or_else(missing)?;
        let low_rank = if tensor.low_rank.is_empty() {
            None
        } else {
            let LowRank { down: a, up: b, scales } = stack(tensor)?;
            Some(LowRank { down: down(&a)?, up: up(&b)?, scales })
        };
        Ok(Parameter { first, rest: terms.collect(), low_rank })
    })
}

/// The stacked rank is filled up with zeros to a multiple of this: GPUs load eight values at once.
const RANK_STEP: usize = 8;

/// Stacks the factors along the rank: A as `[Σr, in]`, B as `[out, Σr]`, Σr filled up to a multiple
/// of [`RANK_STEP`]. They keep their storage type where it is one, else they are widened to f32;
/// either is exact.
fn stack(tensor: &TensorPlan) -> Result<LowRank<HostTensor>, MergeError> {
    let terms = &tensor.low_rank;
    let (out, width) = (tensor.shape()[0], tensor.shape()[1]);
    let ranks = terms.iter().map(rank).sum::<usize>().next_multiple_of(RANK_STEP);
    let downs: Vec<&HostTensor> = terms.iter().map(|term| &term.down).collect();
    let ups: Vec<&HostTensor> = terms.iter().map(|term| &term.up).collect();
    let mut scales = Vec::with_capacity(terms.len());
    let mut start = 0;
    for term in terms {
        let columns = start..start + rank(term);
        start = columns.end;
        scales.push(ColumnScale { columns, term: term.term, factor: term.scale as f32 });
    }
    let refuse = |source| MergeError::Tensor { tensor: tensor.name.clone(), source };
    Ok(LowRank {
        down: interleave(&downs, 1, vec![ranks, width]).map_err(refuse)?,
        up: interleave(&ups, out, vec![out, ranks]).map_err(refuse)?,
        scales,
    })
}

fn rank(term: &LowRankTerm) -> usize {
    term.down.shape()[0]
}

/// Cuts each part into `runs` equal runs and lays first the first run of every part, then the
/// second, and so on; zeros fill each up to its share of `shape`.
fn interleave(
    parts: &[&HostTensor],
    runs: usize,
    shape: Vec<usize>,
) -> Result<HostTensor, crate::kernels::host::HostError> {
    let dtype = parts[0].dtype();
    let wide: Vec<HostTensor>;
    let (parts, dtype) = if parts.iter().all(|part| part.dtype() == dtype) {
        (parts.to_vec(), dtype)
    } else {
        let widen =
            |part: &&HostTensor| HostTensor::from_f32(&part.to_f32(), part.shape().to_vec());
        wide = parts.iter().map(widen).collect::<Result<_, _>>()?;
        (wide.iter().collect(), Dtype::F32)
    };
    let size = shape.iter().product::<usize>() * dtype.size();
    let mut bytes = Vec::with_capacity(size);
    for run in 0..runs {
        for part in &parts {
            let len = part.bytes().len() / runs;
            bytes.extend_from_slice(&part.bytes()[run * len..(run + 1) * len]);
        }
        bytes.resize(size / runs * (run + 1), 0);
    }
    HostTensor::new(Arc::new(bytes), 0..size, dtype, shape)
}
