//! How mixes are served, and what each way makes of a machine's memory and links.

use ladle::{config::MergeMode, preference::Coefficients};
use serde::{Deserialize, Serialize};

use crate::machine::{Machine, Soup};

/// How mixes are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// ladle: the cost model chooses.
    Auto,
    /// ladle, every mix merged on the device.
    Fused,
    /// ladle, nothing merged.
    Mixed,
    /// Every mix is an adapter (or, of full checkpoints, a model) of its own that is made on the
    /// host and moved into a slot; one adapter a row, as in vLLM.
    OneAdapter,
    /// Adapters with scales, one mix in a batch, as in llama.cpp.
    OneMix,
    /// vLLM with the resolver of deploy/vllm: as one adapter a row, of mixes on a grid, each written to
    /// disk by processes of its own and read from there whenever its slot was taken.
    Plugin,
}

/// Figures of the resolver.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Plugin {
    /// Slots, and so adapters in a batch (`--max-loras`).
    pub slots: usize,
    /// Mixes that the grid of preferences leaves.
    pub cells: u64,
    /// Seconds of the processes that solve and merge, without writing; two mixes at once.
    pub seconds: f64,
    /// Bytes/s, written and read.
    pub disk: f64,
}

impl Plugin {
    /// The mix of the grid that stands for another one; each stands for as many.
    pub fn on_grid(&self, mix: &Coefficients) -> Coefficients {
        let bits = mix.backbones.first().map_or(0, |weight| weight.to_bits());
        let cell = (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % self.cells;
        Coefficients { backbones: vec![cell as f64, 0.0], sft: 1.0 - cell as f64 }
    }
}

/// Budgets of the engine.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Token rows of a step.
    pub step_tokens: usize,
    /// Rows of a sequence's prefill in a step.
    pub prefill_chunk: usize,
    /// Sequences in a batch.
    pub lanes: usize,
    /// Sequences that may wait; beyond it a request is refused.
    pub max_waiting: usize,
    /// Tokens of a key/value block.
    pub block_tokens: usize,
    /// Share of the memory left by the weights that keys and values get; slots get the rest.
    pub kv_share: f64,
    /// Most adapters in a batch, where each row has one.
    pub max_adapters: usize,
    /// Where a resolver makes them.
    pub plugin: Plugin,
}

/// What is simulated.
#[derive(Clone, Copy)]
pub struct System<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The soup.
    pub soup: &'a Soup,
    /// The budgets.
    pub engine: &'a Engine,
    /// How mixes are served.
    pub policy: Policy,
}

/// What a policy makes of a machine's memory and links.
pub struct Plan {
    /// Who chooses the execution mode.
    pub mode: MergeMode,
    /// Mixes that fit beside the weights.
    pub slots: usize,
    /// Bytes of each.
    pub slot_bytes: f64,
    /// Key/value blocks.
    pub kv_blocks: usize,
    /// Seconds to fill a slot, with a mix never seen before and with one seen before.
    pub build: [f64; 2],
}

impl System<'_> {
    /// Divides memory and prices a slot.
    pub fn plan(&self) -> Plan {
        let (machine, soup) = (self.machine, self.soup);
        let link = machine.devices * machine.link;
        let (sources, merged) = (soup.source_bytes(), soup.merged_bytes());
        let ladle = soup.merge_bytes() / (machine.devices * machine.merge);
        let (mode, resident, slot_bytes, build, most) = match (self.policy, soup.mix_rank()) {
            (Policy::Auto, _) => (MergeMode::Auto, sources, merged, [ladle; 2], usize::MAX),
            (Policy::Fused, _) => (MergeMode::Fused, sources, merged, [ladle; 2], usize::MAX),
            (Policy::Mixed, _) => (MergeMode::Mixed, sources, merged, [ladle; 2], usize::MAX),
            (Policy::OneAdapter, Some((rank, slot))) => {
                let bytes = soup.adapter_bytes(rank);
                let again = bytes / link;
                let first = again + 2.0 * bytes / machine.host_bandwidth;
                let slot = soup.adapter_bytes(slot);
                (MergeMode::Fused, merged, slot, [first, again], self.engine.max_adapters)
            }
            (Policy::Plugin, Some((rank, slot))) => {
                let Plugin { slots, seconds, disk, .. } = self.engine.plugin;
                let bytes = soup.adapter_bytes(rank);
                let again = bytes / disk + bytes / link;
                let first = (seconds + bytes / disk) / 2.0 + again;
                (MergeMode::Fused, merged, soup.adapter_bytes(slot), [first, again], slots)
            }
            (Policy::OneAdapter | Policy::Plugin, None) => {
                let again = merged / link;
                let first = again + soup.merge_bytes() / machine.host_bandwidth;
                (MergeMode::Fused, 0.0, merged, [first, again], usize::MAX)
            }
            (Policy::OneMix, _) => (MergeMode::Fused, sources, 0.0, [0.0; 2], 1),
        };
        let room = (machine.usable() - resident).max(0.0);
        let kv_block = self.engine.block_tokens as f64 * soup.shape.kv_bytes();
        let kv_blocks = (self.engine.kv_share * room / kv_block) as usize;
        let slots = ((1.0 - self.engine.kv_share) * room / slot_bytes).min(1e6) as usize;
        Plan { mode, slots: slots.clamp(1, most), slot_bytes, kv_blocks, build }
    }
}
