//! Division of device memory: a pure decision over sizes.

use crate::{config::MergeMode, merge::device::Sources};

/// What a soup needs of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// All that mixed steps and merges read: base, backbones, adapters.
    pub sources: usize,
    /// The part of it that merges need on the device even when full-rank sources are streamed.
    pub factors: usize,
    /// The largest staging area that streaming needs.
    pub staging: usize,
    /// One merged model.
    pub model: usize,
    /// Activations of the largest step.
    pub activations: usize,
    /// Keys and values; `None`: a quarter of what is left.
    pub kv: Option<usize>,
    /// Merged models; `None`: what is left.
    pub merged: Option<usize>,
}

/// How device memory is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Where the sources of merges are.
    pub sources: Sources,
    /// Whether steps with per-row coefficients are possible: they need all sources on the device.
    pub mixes: bool,
    /// Bytes of keys and values.
    pub kv: usize,
    /// Bytes of merged models.
    pub merged: usize,
}

/// The budget is too small for any division.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the device memory budget is {budget} bytes, expected at least {needed} (weights, key/value \
     cache and activations of this soup in this mode)"
)]
pub struct NoFit {
    pub budget: usize,
    /// The least that would do.
    pub needed: usize,
}

/// Least bytes of keys and values where no budget is given for them.
const LEAST_KV: usize = 64 << 20;

/// Divides device memory. Sources stay on the device where they fit beside everything else (and, when fused
/// models are wanted, one of those); otherwise they are streamed for every merge, and every request
/// runs fused.
pub fn place(demand: &Demand, budget: usize, mode: MergeMode) -> Result<Placement, NoFit> {
    let sum = |parts: &[usize]| parts.iter().fold(0usize, |sum, &part| sum.saturating_add(part));
    let fixed = sum(&[demand.activations, demand.kv.unwrap_or(LEAST_KV)]);
    // In auto, a soup whose budget for merged models is below one of them runs without any.
    let fuses = match mode {
        MergeMode::Fused => true,
        MergeMode::Mixed => false,
        MergeMode::Auto => demand.merged.is_none_or(|bytes| bytes >= demand.model),
    };
    let one_model = if fuses { demand.model } else { 0 };
    let resident = sum(&[fixed, demand.sources, one_model]);
    let streamed = sum(&[fixed, demand.factors, demand.staging, demand.staging, demand.model]);
    let mixed_only = sum(&[fixed, demand.sources]);
    let finish = |sources, mixes, weights: usize, merges: bool| {
        let left = budget - demand.activations - weights;
        let least = if merges { demand.model } else { 0 };
        let share = ((left - least) / if merges { 4 } else { 1 }).max(LEAST_KV);
        let kv = demand.kv.unwrap_or(share.min(left - least));
        let room = left - kv;
        let merged = if merges { demand.merged.unwrap_or(room).min(room) } else { 0 };
        Placement { sources, mixes, kv, merged }
    };
    if resident <= budget {
        return Ok(finish(Sources::Resident, mode != MergeMode::Fused, demand.sources, fuses));
    }
    if mode == MergeMode::Auto && mixed_only <= budget {
        return Ok(finish(Sources::Resident, true, demand.sources, false));
    }
    if fuses && streamed <= budget {
        let sources = Sources::Streamed { staging: demand.staging };
        return Ok(finish(sources, false, demand.factors + 2 * demand.staging, true));
    }
    let needed = if fuses { resident.min(streamed) } else { resident };
    Err(NoFit { budget, needed })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: usize = 1 << 30;

    /// Three full 7B checkpoints and the base, bf16.
    fn full() -> Demand {
        Demand {
            sources: 52 * GIB,
            factors: 0,
            staging: GIB,
            model: 13 * GIB,
            activations: GIB / 2,
            kv: Some(8 * GIB),
            merged: None,
        }
    }

    #[test]
    fn everything_stays_where_there_is_room() {
        let placed = place(&full(), 130 * GIB, MergeMode::Auto).unwrap();
        assert_eq!(placed.sources, Sources::Resident);
        assert!(placed.mixes);
        assert_eq!(placed.merged, 130 * GIB - GIB / 2 - 52 * GIB - 8 * GIB);
    }

    #[test]
    fn a_small_device_streams_and_then_only_fuses() {
        let placed = place(&full(), 40 * GIB, MergeMode::Auto).unwrap();
        assert_eq!(placed.sources, Sources::Streamed { staging: GIB });
        assert!(!placed.mixes && placed.merged >= 13 * GIB);
        assert!(place(&full(), 40 * GIB, MergeMode::Mixed).is_err());
        let refused = place(&full(), 20 * GIB, MergeMode::Auto).unwrap_err();
        assert_eq!(refused.needed, GIB / 2 + 8 * GIB + 2 * GIB + 13 * GIB);
    }

    #[test]
    fn a_budget_without_bounds_fits_nowhere() {
        let demand = Demand { kv: Some(usize::MAX), ..full() };
        let refused = place(&demand, 130 * GIB, MergeMode::Auto).unwrap_err();
        assert_eq!(refused, NoFit { budget: 130 * GIB, needed: usize::MAX });
    }

    #[test]
    fn auto_gives_up_fusing_before_it_streams() {
        let lora = Demand { sources: 14 * GIB, factors: GIB, ..full() };
        let placed = place(&lora, 24 * GIB, MergeMode::Auto).unwrap();
        assert_eq!((placed.sources, placed.mixes, placed.merged), (Sources::Resident, true, 0));
        assert!(!place(&lora, 40 * GIB, MergeMode::Fused).unwrap().mixes);
    }

    #[test]
    fn budgets_are_never_passed_and_a_model_fits_where_models_are_merged() {
        let modes = [MergeMode::Auto, MergeMode::Fused, MergeMode::Mixed];
        for budget in (1..160).map(|n| n * GIB) {
            for mode in modes {
                for kv in [None, Some(4 * GIB)] {
                    for merged in [None, Some(GIB), Some(30 * GIB)] {
                        let demand = Demand { kv, merged, ..full() };
                        let Ok(placed) = place(&demand, budget, mode) else { continue };
                        let weights = match placed.sources {
                            Sources::Resident => demand.sources,
                            Sources::Streamed { staging } => demand.factors + 2 * staging,
                        };
                        let used = weights + demand.activations + placed.kv + placed.merged;
                        assert!(used <= budget, "{budget} {mode:?} {demand:?} {placed:?}");
                        let one = demand.model.min(merged.unwrap_or(usize::MAX));
                        assert!(placed.mixes || placed.merged >= one);
                        assert!(placed.kv >= LEAST_KV);
                    }
                }
            }
        }
    }
}
