//! What a soup costs, counted over its plan.

use super::cost::{Footprint, Pass};
use crate::{
    kernels::{Dtype, HostTensor},
    merge::{SoupPlan, low_rank::total_rank},
    model::{
        config::ModelConfig,
        names::{is_embedding, is_expert, is_table, is_vocabulary},
    },
};

/// How much faster products of bytes (quantised weights) are than products of floats where
/// arithmetic bounds both (`benches/decode.rs`, prefill).
const QUANTISED_SPEED: f64 = 2.0;

/// What a pass moves and computes, counted over the plan's tensors. An embedding that is not
/// also the head is looked up by row, so it costs nothing; the head costs its bytes, and its
/// products only for the rows that are sampled.
pub(super) fn footprint(plan: &SoupPlan, config: &ModelConfig) -> Footprint {
    let none = Pass { bytes: 0.0, flops_per_row: 0.0 };
    let mut cost = Footprint { fused: none, mixed: none, merge_bytes: 0.0, merge_flops: 0.0 };
    for tensor in plan.tensors() {
        let elements: f64 = tensor.shape().iter().map(|&dim| dim as f64).product();
        let merged = tensor.dtype.bytes(tensor.shape()).map_or(0.0, |bytes| bytes as f64);
        let bytes = |t: &HostTensor| t.bytes().len() as f64;
        let dense: f64 = tensor.dense.iter().map(|term| bytes(&term.tensor)).sum();
        let factors = tensor.low_rank.iter().flat_map(|term| [&term.lora.down, &term.lora.up]);
        let (mut low_rank, mut low_rank_elements) = (0.0, 0.0);
        for factor in factors {
            low_rank += bytes(factor);
            low_rank_elements += factor.len() as f64;
        }
        let ranks = total_rank(&tensor.low_rank);
        cost.merge_flops += 2.0 * elements * ranks as f64;
        cost.merge_bytes += dense + low_rank + merged;
        let embedding = is_embedding(&tensor.name);
        if embedding && !config.tied {
            continue;
        }
        cost.fused.bytes += merged;
        cost.mixed.bytes += dense + low_rank;
        let multiplied = !is_vocabulary(&tensor.name) && !is_table(&tensor.name);
        let linear = tensor.shape().len() == 2 && multiplied;
        if linear {
            // The part of the rows that an expert computes.
            let share = match &config.experts {
                Some(experts) if is_expert(&tensor.name) => {
                    experts.active as f64 / experts.count as f64
                }
                _ => 1.0,
            };
            let work = |dtype: Dtype| {
                share * elements / if dtype.blocks().is_some() { QUANTISED_SPEED } else { 1.0 }
            };
            let dense: f64 = tensor.dense.iter().map(|term| work(term.tensor.dtype())).sum();
            cost.fused.flops_per_row += 2.0 * work(tensor.dtype);
            cost.mixed.flops_per_row += 2.0 * (dense + share * low_rank_elements);
        }
    }
    cost
}

/// Bytes of the activations of the largest step, in f32 and in a rounded copy: the residual stream,
/// what a layer holds at once, and the logits.
pub(super) fn activations(config: &ModelConfig, step_rows: usize, logit_rows: usize) -> usize {
    let widths =
        6 * config.hidden_size + 3 * config.heads * config.head_dim + 3 * config.intermediate_size;
    let logits = logit_rows * config.vocab_size;
    step_rows.saturating_mul(widths).saturating_add(logits).saturating_mul(6)
}
