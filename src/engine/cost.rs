//! What a forward pass costs in each execution mode, as a pure model.
//!
//! A pass streams its weights once and does its products for every row. With
//! `read = overhead + bytes(mode) / bandwidth` and `compute = rows · flops(mode) / peak`, each times
//! a factor per mode that is learned from measured steps,
//!
//! `t(mode, rows) = max(read, compute) + (1 − overlap) · min(read, compute)`.
//!
//! Accelerators overlap the two; CPU cores, as measured (`benches/decode.rs`), hardly do. The two
//! factors of a mode are learned apart: the marginal cost of a row decides the mode of a busy batch,
//! the cost of reading the weights that of a lone request, and their errors differ.
//!
//! Fused, each distinct c is its own pass over its own merged weights; mixed, all c share one pass
//! over the base, the low-rank factors and the full backbones. A merge reads every source and
//! writes the result once, and multiplies out low-rank terms. Attention is left out: it costs the
//! same in both modes.
//!
//! *Promotion* is ski rental: every step, each mixed c is credited with the time that merged
//! weights would have saved it; when the credit reaches the price of the merge, it is merged in the
//! background, for requests to come. A preference that is asked once is never merged, a hot one
//! soon. Credits halve every `half_life`.

use std::{collections::HashMap, hash::Hash, time::Duration};

use super::request::Mode;

/// Longest a step with prompts may take, in times of the step without them: the bound for few
/// prompts, and for many.
const STALL: [f64; 2] = [2.0, 4.0];
/// What each prompt that waits beside the first adds to that, over the number of decoding rows.
const ROWS_OF_PROMPT: f64 = 8.0;
/// How far one measured pass moves the model.
const LEARNING_RATE: f64 = 0.1;

/// What a forward pass moves and computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pass {
    /// Weight bytes read.
    pub bytes: f64,
    /// Floating-point operations per token row.
    pub flops_per_row: f64,
}

/// What a soup costs on a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Footprint {
    /// A pass over merged weights.
    pub fused: Pass,
    /// A pass with per-row coefficients.
    pub mixed: Pass,
    /// Bytes that one merge reads and writes.
    pub merge_bytes: f64,
    /// Floating-point operations of one merge's low-rank products.
    pub merge_flops: f64,
}

/// What a machine can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// Sustained memory bandwidth, bytes/s.
    pub bandwidth: f64,
    /// Sustained products, flop/s.
    pub peak: f64,
    /// Sustained low-rank products of a merge, flop/s.
    pub merge_peak: f64,
    /// Fixed time of a pass, seconds.
    pub overhead: f64,
    /// How far reading and computing go on at once, from 0 (one after the other) to 1.
    pub overlap: f64,
}

impl Machine {
    /// Two current server cores that multiply in pairs of bf16, for weights in bf16.
    pub const BF16_CORES: Self =
        Self { bandwidth: 35e9, peak: 600e9, merge_peak: 60e9, overhead: 0.5e-3, overlap: 0.0 };

    /// Two current server cores that multiply in tiles of bf16, for weights in bf16.
    pub const TILE_CORES: Self =
        Self { bandwidth: 25e9, peak: 900e9, merge_peak: 60e9, overhead: 0.5e-3, overlap: 0.0 };

    /// A current data-centre GPU; the learned factors correct it within some steps.
    pub const GPU: Self =
        Self { bandwidth: 2e12, peak: 200e12, merge_peak: 200e12, overhead: 2e-3, overlap: 1.0 };
}

impl Default for Machine {
    /// Two current server cores; the learned factors correct it within some steps.
    fn default() -> Self {
        Self { bandwidth: 20e9, peak: 150e9, merge_peak: 60e9, overhead: 0.5e-3, overlap: 0.0 }
    }
}

/// Rows of one step that share coefficients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Token rows.
    pub rows: usize,
    /// Whether merged weights are at hand.
    pub fused: bool,
}

/// The cost model: see the module.
#[derive(Debug, Clone)]
pub struct CostModel {
    footprint: Footprint,
    machine: Machine,
    /// Of fused and of mixed passes. What was never measured takes the other's.
    factors: [Option<Factors>; 2],
}

/// How much longer than by its [`Machine`] a pass reads and computes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Factors {
    read: f64,
    compute: f64,
}

impl CostModel {
    /// A model that has measured nothing yet.
    pub fn new(footprint: Footprint, machine: Machine) -> Self {
        Self { footprint, machine, factors: [None; 2] }
    }

    /// Predicted seconds of one pass.
    pub fn pass(&self, mode: Mode, rows: usize) -> f64 {
        let (read, compute) = self.parts(mode, rows);
        self.both(read, compute)
    }

    /// Seconds of reading and of computing of one pass.
    fn parts(&self, mode: Mode, rows: usize) -> (f64, f64) {
        if rows == 0 {
            return (0.0, 0.0);
        }
        let pass = match mode {
            Mode::Fused => self.footprint.fused,
            Mode::Mixed => self.footprint.mixed,
        };
        let Factors { read, compute } = self.factors(mode);
        let Machine { bandwidth, peak, overhead, .. } = self.machine;
        let flops = rows as f64 * pass.flops_per_row;
        (read * (overhead + pass.bytes / bandwidth), compute * flops / peak)
    }

    /// Seconds of reading and computing, as far as they overlap.
    fn both(&self, read: f64, compute: f64) -> f64 {
        read.max(compute) + (1.0 - self.machine.overlap) * read.min(compute)
    }

    /// Rows of prefill that may join `decoding` rows while `prompts` wait to be computed. The step
    /// may take twice as long as without them, and up to four times the more prompts wait beside the
    /// first, per decoding row, so that the last of a burst waits less long.
    /// `mode` is one that decodes now, so that its passes are known.
    pub fn rows_beside(&self, mode: Mode, decoding: usize, prompts: usize) -> usize {
        let [least, most] = STALL;
        let beside_first = prompts.saturating_sub(1) as f64;
        let stall =
            (1.0 + ROWS_OF_PROMPT * beside_first / decoding.max(1) as f64).clamp(least, most);
        let limit = stall * self.pass(mode, decoding);
        let (mut fits, mut beyond) = (decoding, decoding + 1);
        while self.pass(mode, beyond) <= limit && beyond < usize::MAX / 2 {
            (fits, beyond) = (beyond, 2 * beyond);
        }
        while beyond - fits > 1 {
            let middle = fits + (beyond - fits) / 2;
            let within = self.pass(mode, middle) <= limit;
            (fits, beyond) = if within { (middle, beyond) } else { (fits, middle) };
        }
        fits - decoding
    }

    /// Predicted seconds of one merge, scaled by the learned factors of fused passes.
    pub fn merge(&self) -> f64 {
        let Footprint { merge_bytes, merge_flops, .. } = self.footprint;
        let Factors { read, compute } = self.factors(Mode::Fused);
        let Machine { bandwidth, merge_peak, .. } = self.machine;
        self.both(read * merge_bytes / bandwidth, compute * merge_flops / merge_peak)
    }

    fn factors(&self, mode: Mode) -> Factors {
        let [fused, mixed] = self.factors;
        let own_first = if mode == Mode::Fused { fused.or(mixed) } else { mixed.or(fused) };
        own_first.unwrap_or(Factors { read: 1.0, compute: 1.0 })
    }

    /// Which groups run fused: of all ways to take the k largest that have merged weights, the
    /// cheapest. Without merged weights a group is mixed.
    pub fn partition(&self, groups: &[Group]) -> Vec<Mode> {
        let mut fusable: Vec<usize> = (0..groups.len()).filter(|&i| groups[i].fused).collect();
        fusable.sort_by_key(|&i| (std::cmp::Reverse(groups[i].rows), i));
        let mut mixed_rows: usize = groups.iter().map(|group| group.rows).sum();
        let mut fused_time = 0.0;
        let mut best = (self.pass(Mode::Mixed, mixed_rows), 0);
        for (taken, &index) in (1..).zip(&fusable) {
            fused_time += self.pass(Mode::Fused, groups[index].rows);
            mixed_rows -= groups[index].rows;
            let time = fused_time + self.pass(Mode::Mixed, mixed_rows);
            if time < best.0 {
                best = (time, taken);
            }
        }
        let mut modes = vec![Mode::Mixed; groups.len()];
        fusable[..best.1].iter().for_each(|&index| modes[index] = Mode::Fused);
        modes
    }

    /// Seconds that a step saves if `rows` of its `mixed_rows` had merged weights; may be < 0.
    pub fn saving(&self, mixed_rows: usize, rows: usize) -> f64 {
        self.pass(Mode::Mixed, mixed_rows)
            - self.pass(Mode::Mixed, mixed_rows.saturating_sub(rows))
            - self.pass(Mode::Fused, rows)
    }

    /// Learns from a measured pass of `rows` rows: a step of normalised least mean squares on the
    /// logarithms, each factor moved by its share of the predicted time.
    pub fn observe_pass(&mut self, mode: Mode, rows: usize, measured: Duration) {
        let (read, compute) = self.parts(mode, rows);
        let predicted = self.both(read, compute).max(1e-9);
        // Bounds the influence of one slow step (a page fault, a busy neighbour).
        let ratio = (measured.as_secs_f64() / predicted).clamp(0.25, 4.0);
        let hidden = 1.0 - self.machine.overlap;
        let (read_weight, compute_weight) =
            if read > compute { (1.0, hidden) } else { (hidden, 1.0) };
        let shares = [read_weight * read / predicted, compute_weight * compute / predicted];
        let norm: f64 = shares.iter().map(|share| share * share).sum();
        let moved = |factor: f64, share: f64| {
            (factor * ratio.powf(LEARNING_RATE * share / norm)).clamp(1e-3, 1e3)
        };
        let Factors { read, compute } = self.factors(mode);
        let learned = Factors { read: moved(read, shares[0]), compute: moved(compute, shares[1]) };
        self.factors[usize::from(mode == Mode::Mixed)] = Some(learned);
    }
}

/// Credits towards promotion, by key.
#[derive(Debug, Clone)]
pub struct Promoter<Key> {
    half_life: Duration,
    capacity: usize,
    credits: HashMap<Key, (f64, Duration)>,
}

impl<Key: Eq + Hash + Clone> Promoter<Key> {
    /// Remembers at most `capacity` keys.
    pub fn new(half_life: Duration, capacity: usize) -> Self {
        Self { half_life, capacity, credits: HashMap::new() }
    }

    /// Credits `key` with `saving` seconds (nothing if ≤ 0) and says whether its credit has
    /// reached `price`; then it starts again at 0.
    pub fn credit(&mut self, key: &Key, saving: f64, price: f64, now: Duration) -> bool {
        if saving <= 0.0 {
            return false;
        }
        if self.credits.len() >= self.capacity && !self.credits.contains_key(key) {
            self.forget_small(now);
        }
        let (old, since) = self.credits.get(key).copied().unwrap_or((0.0, now));
        let credit = decayed(old, self.half_life, now.saturating_sub(since)) + saving;
        if credit >= price {
            self.credits.remove(key);
            return true;
        }
        self.credits.insert(key.clone(), (credit, now));
        false
    }

    /// Drops the smaller half of the credits.
    fn forget_small(&mut self, now: Duration) {
        let half_life = self.half_life;
        let left = |&(credit, since): &(f64, Duration)| {
            decayed(credit, half_life, now.saturating_sub(since))
        };
        let mut all: Vec<f64> = self.credits.values().map(left).collect();
        let middle = all.len() / 2;
        let (_, &mut median, _) = all.select_nth_unstable_by(middle, f64::total_cmp);
        self.credits.retain(|_, &mut credit| left(&credit) > median);
    }
}

/// A credit after a time of decay.
fn decayed(credit: f64, half_life: Duration, after: Duration) -> f64 {
    credit * (-after.as_secs_f64() / half_life.as_secs_f64()).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A LoRA soup of 135 M parameters in bf16 with three rank-16 adapters.
    fn lora() -> CostModel {
        let footprint = Footprint {
            fused: Pass { bytes: 270e6, flops_per_row: 270e6 },
            mixed: Pass { bytes: 285e6, flops_per_row: 285e6 },
            merge_bytes: 555e6,
            merge_flops: 13e9,
        };
        CostModel::new(footprint, Machine::default())
    }

    /// Three full checkpoints and θ_sft.
    fn full() -> CostModel {
        let footprint = Footprint {
            fused: Pass { bytes: 270e6, flops_per_row: 270e6 },
            mixed: Pass { bytes: 1080e6, flops_per_row: 1080e6 },
            merge_bytes: 1350e6,
            merge_flops: 0.0,
        };
        CostModel::new(footprint, Machine::default())
    }

    fn modes(model: &CostModel, groups: &[(usize, bool)]) -> Vec<Mode> {
        let group = |&(rows, fused): &(usize, bool)| Group { rows, fused };
        model.partition(&groups.iter().map(group).collect::<Vec<_>>())
    }

    #[test]
    fn prompts_double_the_step_of_those_that_decode_or_more_the_more_they_are() {
        for model in [lora(), full()] {
            for (decoding, prompts, stall) in [
                (1, 1, 2.0),
                (16, 2, 2.0),
                (16, 5, 3.0),
                (64, 128, 4.0),
                (4, 12, 4.0),
                (1, 15, 4.0),
                (500, 1, 2.0),
            ] {
                let alone = model.pass(Mode::Fused, decoding);
                let rows = decoding + model.rows_beside(Mode::Fused, decoding, prompts);
                assert!(model.pass(Mode::Fused, rows) <= stall * alone + 1e-9, "{decoding}");
                assert!(model.pass(Mode::Fused, rows + 1) > stall * alone, "{decoding}");
            }
        }
    }

    #[test]
    fn one_preference_with_merged_weights_is_fused_and_without_is_mixed() {
        for model in [lora(), full()] {
            assert_eq!(modes(&model, &[(16, true)]), [Mode::Fused]);
            assert_eq!(modes(&model, &[(16, false)]), [Mode::Mixed]);
        }
    }

    #[test]
    fn many_preferences_of_a_lora_soup_share_one_pass() {
        assert!(modes(&lora(), &[(1, true); 16]).iter().all(|&mode| mode == Mode::Mixed));
    }

    #[test]
    fn a_full_soup_fuses_a_few_preferences_and_mixes_many() {
        assert_eq!(modes(&full(), &[(1, true); 2]), [Mode::Fused; 2]);
        assert!(modes(&full(), &[(1, true); 16]).iter().all(|&mode| mode == Mode::Mixed));
    }

    #[test]
    fn the_partition_is_never_worse_than_either_mode_alone() {
        let model = full();
        for n in 0..64u32 {
            let groups: Vec<Group> = (0..6)
                .map(|i| Group {
                    rows: 1 + (n as usize * 31 + i * 17) % 200,
                    fused: n >> i & 1 == 1,
                })
                .collect();
            let chosen = model.partition(&groups);
            let (mut fused, mut mixed) = (0.0, 0);
            for (group, mode) in groups.iter().zip(chosen) {
                match mode {
                    Mode::Fused => {
                        assert!(group.fused);
                        fused += model.pass(Mode::Fused, group.rows);
                    }
                    Mode::Mixed => mixed += group.rows,
                }
            }
            let time = fused + model.pass(Mode::Mixed, mixed);
            let all_mixed = model.pass(Mode::Mixed, groups.iter().map(|g| g.rows).sum());
            assert!(time <= all_mixed);
        }
    }

    #[test]
    fn predictions_follow_what_is_measured() {
        let mut model = lora();
        for _ in 0..200 {
            model.observe_pass(Mode::Fused, 1, Duration::from_millis(30));
        }
        assert!((model.pass(Mode::Fused, 1) - 0.030).abs() < 0.003);
    }

    /// As measured: a pass is slower than the machine's figures by more than a further row is.
    #[test]
    fn what_a_pass_costs_and_what_a_row_more_costs_are_learned_apart() {
        let mut model = lora();
        let truth = |mode, rows| match mode {
            Mode::Fused => 16.5e-3 + 2.2e-3 * rows as f64,
            Mode::Mixed => 23.0e-3 + 2.45e-3 * rows as f64,
        };
        for step in 0..2000 {
            let mode = if step % 2 == 0 { Mode::Fused } else { Mode::Mixed };
            let rows = [1, 4, 8, 16, 39][step / 2 % 5];
            model.observe_pass(mode, rows, Duration::from_secs_f64(truth(mode, rows)));
        }
        for mode in [Mode::Fused, Mode::Mixed] {
            for rows in [1, 2, 16, 39, 100] {
                let (got, expected) = (model.pass(mode, rows), truth(mode, rows));
                assert!((got / expected - 1.0).abs() < 0.05, "{mode:?} {rows}: {got} {expected}");
            }
        }
        // Alone, merged weights pay; a row, or a prompt's, of a busy batch is best left in it.
        assert!(model.saving(1, 1) > 0.0);
        assert!(model.saving(8, 1) < 0.0);
        assert!(model.saving(31, 23) < 0.0);
    }

    #[test]
    fn a_slow_machine_does_not_favour_the_mode_that_was_never_measured() {
        let mut model = lora();
        let ratio = model.pass(Mode::Mixed, 4) / model.pass(Mode::Fused, 4);
        for _ in 0..200 {
            model.observe_pass(Mode::Mixed, 4, Duration::from_millis(200));
        }
        let learned = model.pass(Mode::Mixed, 4) / model.pass(Mode::Fused, 4);
        assert!((ratio - learned).abs() < 0.01, "{ratio} {learned}");
    }

    #[test]
    fn a_key_is_promoted_when_its_credit_pays_the_merge_and_a_rare_one_never() {
        let mut promoter = Promoter::new(Duration::from_secs(60), 8);
        let at = Duration::from_secs;
        assert!(!promoter.credit(&"hot", 0.04, 0.1, at(0)));
        assert!(!promoter.credit(&"hot", 0.04, 0.1, at(1)));
        assert!(promoter.credit(&"hot", 0.04, 0.1, at(2)));
        assert!(!promoter.credit(&"hot", 0.04, 0.1, at(3)), "the credit starts again");
        for hour in 0..100 {
            assert!(!promoter.credit(&"rare", 0.09, 0.1, at(3600 * hour)));
            assert!(!promoter.credit(&"worse", -1.0, 0.1, at(hour)));
        }
    }

    #[test]
    fn a_burst_of_keys_is_forgotten_before_a_hot_one() {
        let mut promoter = Promoter::new(Duration::from_secs(60), 16);
        assert!(!promoter.credit(&0, 0.09, 0.1, Duration::ZERO));
        for key in 1..1000 {
            assert!(!promoter.credit(&key, 0.001, 0.1, Duration::ZERO));
            assert!(promoter.credits.len() <= 16);
        }
        assert!(promoter.credit(&0, 0.02, 0.1, Duration::ZERO));
    }
}
