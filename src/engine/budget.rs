//! Division of the host's memory under a ceiling: a pure decision over sizes.

use std::fmt;

use crate::config::ServeConfig;

/// Keys and values, and merged models, where no budget is given for them and there is room.
pub const KV_BYTES: usize = 1 << 30;
pub const MERGED_BYTES: usize = 2 << 30;
/// Least bytes of keys and values where no budget is given for them.
const LEAST_KV: usize = 64 << 20;
/// The program itself, its threads and what the allocator keeps.
const PROGRAM: usize = 48 << 20;
/// What a tokenizer takes in memory for each byte of its file, its trie for grammars included.
const TOKENIZER: usize = 16;
/// What the check of a body takes at most for each byte of it (JSON, template, texts).
const CHECK: usize = 24;
/// What the checks of bodies of at most 64 KiB take, which run beside each other.
const SMALL_CHECKS: usize = 64 << 20;
/// A request in progress: its body, if that is small, and the answer that is not sent yet.
const REQUEST: usize = 64 << 10;
/// A connection and its buffers.
const CONNECTION: usize = 24 << 10;

/// What a server holds besides keys, values and merged models, at most; bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// All weights of the soup, and the adapters once more as passes read them.
    pub weights: usize,
    /// Program and tokenizer.
    pub process: usize,
    /// Activations of the largest step.
    pub activations: usize,
    /// Bodies of more than 64 KiB, as configured, and their checks.
    pub bodies: usize,
    /// Requests that run or wait, and connections.
    pub requests: usize,
    /// The soups that are served meanwhile, with their budgets.
    pub beside: usize,
}

impl Held {
    /// Counts it: bytes of weights, of the tokenizer's file and of activations, and what requests may
    /// bring under a configuration; one that waits has a prompt of at most `context` tokens.
    pub fn new(
        weights: usize,
        tokenizer: usize,
        activations: usize,
        context: usize,
        config: &ServeConfig,
    ) -> Self {
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let limits = &config.limits;
        let checks = bytes(limits.max_body).saturating_mul(CHECK);
        let waiting = config.max_queue.saturating_add(config.max_sequences);
        let prompts = waiting.saturating_mul(context).saturating_mul(size_of::<u32>());
        let requests = limits.max_in_flight.saturating_mul(REQUEST);
        let connections = config.connections.most.saturating_mul(CONNECTION);
        Self {
            weights,
            process: PROGRAM.saturating_add(tokenizer.saturating_mul(TOKENIZER)),
            activations,
            bodies: sum(&[bytes(limits.body_memory), checks, SMALL_CHECKS]),
            requests: sum(&[requests, prompts, connections]),
            beside: 0,
        }
    }

    fn sum(&self) -> usize {
        let Self { weights, process, activations, bodies, requests, beside } = *self;
        sum(&[weights, process, activations, bodies, requests, beside])
    }
}

fn sum(parts: &[usize]) -> usize {
    parts.iter().fold(0, |sum, &part| sum.saturating_add(part))
}

/// What is asked for keys, values and merged models; `None`: what there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub kv: Option<usize>,
    pub merged: Option<usize>,
    /// One merged model; 0 where nothing is merged.
    pub model: usize,
    /// Whether requests need merged models.
    pub fused: bool,
}

/// Bytes of keys and values, and of merged models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    pub kv: usize,
    pub merged: usize,
}

/// The ceiling is too low for any division.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "max_memory is {}, expected at least {}: weights {}, process {}, activations {}, request bodies \
     and their checks {}, requests and connections {}, keys and values {}, merged models {}{}. Lower \
     max_body, body_memory, max_in_flight, max_queue, max_context, max_connections, kv_cache or \
     merge_cache",
    Mib(*ceiling), Mib(*needed), Mib(held.weights), Mib(held.process), Mib(held.activations),
    Mib(held.bodies), Mib(held.requests), Mib(least.kv), Mib(least.merged), beside(held)
)]
pub struct NoRoom {
    pub ceiling: usize,
    pub held: Held,
    pub least: Budgets,
    /// The least that would do.
    pub needed: usize,
}

fn beside(held: &Held) -> String {
    match held.beside {
        0 => String::new(),
        bytes => format!(", what is served meanwhile {}", Mib(bytes)),
    }
}

/// Bytes as people write them.
struct Mib(usize);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0.div_ceil(1 << 20))
    }
}

/// Divides what `held` leaves of `ceiling`. Merged models get three quarters of it where one fits; at
/// most the defaults are taken.
pub fn divide(held: &Held, wanted: &Wanted, ceiling: usize) -> Result<Budgets, NoRoom> {
    let Wanted { kv, merged, model, fused } = *wanted;
    let merged = if model == 0 { Some(0) } else { merged };
    let least = Budgets {
        kv: kv.unwrap_or(LEAST_KV),
        merged: merged.unwrap_or(if fused { model } else { 0 }),
    };
    let needed = sum(&[held.sum(), least.kv, least.merged]);
    if needed > ceiling {
        return Err(NoRoom { ceiling, held: *held, least, needed });
    }
    let room = ceiling - held.sum();
    let merges = merged.is_none() && room - least.kv >= model;
    let share = if merges { (room - model) / 4 } else { room - least.merged };
    let kv = kv.unwrap_or(share.clamp(LEAST_KV, KV_BYTES.max(LEAST_KV)));
    let left = if merges { room - kv } else { 0 };
    Ok(Budgets { kv, merged: merged.unwrap_or(left.min(MERGED_BYTES)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn held() -> Held {
        Held {
            weights: 260 * MIB,
            process: 112 * MIB,
            activations: 48 * MIB,
            bodies: 224 * MIB,
            requests: 144 * MIB,
            beside: 0,
        }
    }

    fn wanted() -> Wanted {
        Wanted { kv: None, merged: None, model: 256 * MIB, fused: false }
    }

    #[test]
    fn what_is_left_goes_to_keys_and_values_and_to_merged_models() {
        let at = |ceiling: usize| divide(&held(), &wanted(), ceiling * MIB).unwrap();
        let of = |kv: usize, merged: usize| Budgets { kv: kv * MIB, merged: merged * MIB };
        assert_eq!(at(788 + 256 + 400), of(100, 556));
        // Not enough for a merged model: none, and the more keys and values.
        assert_eq!(at(788 + 256 + 63), of(319, 0));
        assert_eq!(at(788 + 64), of(64, 0));
        // Never more than the defaults.
        assert_eq!(at(788 + 100_000), of(1024, 2048));
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused_with_the_sum() {
        let kv = Wanted { kv: Some(300 * MIB), ..wanted() };
        let budgets = divide(&held(), &kv, 1400 * MIB).unwrap();
        assert_eq!(budgets, Budgets { kv: 300 * MIB, merged: 312 * MIB });
        let error = divide(&held(), &kv, 1087 * MIB).unwrap_err();
        assert_eq!(error.needed, 1088 * MIB);
        let told = error.to_string();
        for part in [
            "max_memory is 1087 MiB, expected at least 1088 MiB",
            "weights 260 MiB",
            "process 112 MiB",
            "keys and values 300 MiB",
            "merged models 0 MiB",
        ] {
            assert!(told.contains(part), "{told}");
        }
        let merged = Wanted { merged: Some(512 * MIB), ..wanted() };
        let budgets = divide(&held(), &merged, 1400 * MIB).unwrap();
        assert_eq!(budgets, Budgets { kv: 100 * MIB, merged: 512 * MIB });
        assert_eq!(divide(&held(), &merged, 1363 * MIB).unwrap_err().needed, 1364 * MIB);
        let fused = Wanted { fused: true, ..wanted() };
        assert_eq!(divide(&held(), &fused, 1000 * MIB).unwrap_err().needed, 1108 * MIB);
    }

    #[test]
    fn no_division_exceeds_its_ceiling_whatever_is_asked_for() {
        for ceiling in (0..60).map(|n| n * 97 * MIB) {
            for kv in [None, Some(0), Some(80 * MIB), Some(usize::MAX)] {
                for merged in [None, Some(0), Some(MIB), Some(700 * MIB)] {
                    for (model, fused) in [(0, false), (256 * MIB, false), (256 * MIB, true)] {
                        let wanted = Wanted { kv, merged, model, fused };
                        let Ok(given) = divide(&held(), &wanted, ceiling) else { continue };
                        let used = held().sum() + given.kv + given.merged;
                        assert!(used <= ceiling, "{ceiling} {wanted:?} {given:?}");
                        assert!(kv.is_none_or(|kv| kv == given.kv));
                        assert!(model == 0 || merged.is_none_or(|merged| merged == given.merged));
                        assert!(!fused || merged.is_some() || given.merged >= model);
                    }
                }
            }
        }
    }
}
