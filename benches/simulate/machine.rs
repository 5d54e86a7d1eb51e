//! What a forward pass costs on a machine that is described by figures: a roofline with launches,
//! reading of keys and values, and all-reduces.

use ladle::engine::cost;
use serde::{Deserialize, Serialize};

/// Bytes of a bf16 value.
const VALUE: f64 = 2.0;
/// Kernels of a block with merged weights: two norms, q/k/v, rotary and cache write, attention,
/// output, gate/up, activation, down, residuals.
const BLOCK_KERNELS: f64 = 10.0;
/// Ranks that vLLM keeps slots of (`MaxLoRARanks`).
const SLOT_RANKS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];

/// One device, or several that share every product (tensor parallel).
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// What the results call it.
    pub name: String,
    /// Memory bandwidth of a device, bytes/s, as in its data sheet.
    pub bandwidth: f64,
    /// Dense products of a device, flop/s, as in its data sheet.
    pub peak: f64,
    /// Shares of the two that kernels sustain.
    pub sustained: [f64; 2],
    /// Memory of a device, bytes; 90 % of it is used.
    pub memory: f64,
    /// Seconds per kernel launch.
    pub launch: f64,
    /// Seconds per step on the host: planning, sampling, delivery.
    pub step: f64,
    /// Seconds per row beside the products: norms, activations, sampling.
    pub row: f64,
    /// What merges on the device read and write, bytes/s of one device; passes meanwhile take
    /// twice as long.
    pub merge: f64,
    /// Host to device, bytes/s, of one device.
    pub link: f64,
    /// Reading or writing in host memory, bytes/s, for merges made there.
    pub host_bandwidth: f64,
    /// Devices that share every product.
    pub devices: f64,
    /// Between devices, bytes/s in one direction, and seconds per all-reduce.
    pub fabric: [f64; 2],
    /// Bandwidth, products, those of merges, overhead and overlap that the engine's cost model
    /// begins with, where they are not the ones above.
    pub told: Option<[f64; 5]>,
}

/// A Llama-family decoder.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Blocks.
    pub layers: f64,
    /// Width.
    pub hidden: f64,
    /// Width of the feed-forward layer.
    pub inner: f64,
    /// Query heads.
    pub heads: f64,
    /// Key/value heads.
    pub kv_heads: f64,
    /// Rows of the embedding.
    pub vocabulary: f64,
    /// Whether the head is the embedding.
    pub tied: bool,
}

/// How backbones differ from the base.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Kind {
    /// Adapters of all linear layers.
    Lora {
        /// Their rank.
        rank: usize,
    },
    /// Checkpoints, beside θ_sft.
    Full,
}

/// A soup in bf16.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Soup {
    /// What the results call it.
    pub name: String,
    /// Its decoder.
    pub shape: Shape,
    /// Backbones.
    pub backbones: f64,
    /// What they are.
    pub kind: Kind,
}

/// The weights' part of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Weight bytes read.
    pub bytes: f64,
    /// Floating-point operations per row, without head and attention.
    pub flops_per_row: f64,
    /// Kernels launched.
    pub kernels: f64,
}

/// The rows' part of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rows {
    /// Token rows.
    pub rows: f64,
    /// Rows whose logits are computed.
    pub outputs: f64,
    /// Keys (and values) read, summed over sequences.
    pub keys: f64,
    /// Keys attended to, summed over rows.
    pub attended: f64,
}

impl Rows {
    /// Adds positions `start..end` of a sequence, the last one's logits if `output`.
    pub fn add(&mut self, start: usize, end: usize, output: bool) {
        let (start, end) = (start as f64, end as f64);
        self.rows += end - start;
        self.outputs += f64::from(u8::from(output));
        self.keys += end;
        self.attended += (end - start) * (start + end + 1.0) / 2.0;
    }

    /// Adds another pass's rows.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.outputs += other.outputs;
        self.keys += other.keys;
        self.attended += other.attended;
    }
}

impl Shape {
    /// Inputs and outputs of a block's linear layers.
    fn linears(&self) -> [(f64, f64); 7] {
        let keys = self.hidden / self.heads * self.kv_heads;
        let (h, i) = (self.hidden, self.inner);
        [(h, h), (h, keys), (h, keys), (h, h), (h, i), (h, i), (i, h)]
    }

    /// Parameters of the linear layers of all blocks.
    pub fn body(&self) -> f64 {
        self.layers * self.linears().iter().map(|(i, o)| i * o).sum::<f64>()
    }

    /// Parameters of the head.
    pub fn head(&self) -> f64 {
        self.vocabulary * self.hidden
    }

    /// All parameters but norms.
    pub fn parameters(&self) -> f64 {
        self.body() + self.head() * if self.tied { 1.0 } else { 2.0 }
    }

    /// Parameters of an adapter.
    pub fn adapter(&self, rank: usize) -> f64 {
        self.layers * rank as f64 * self.linears().iter().map(|(i, o)| i + o).sum::<f64>()
    }

    /// Bytes of a token's keys and values.
    pub fn kv_bytes(&self) -> f64 {
        2.0 * VALUE * self.layers * self.hidden / self.heads * self.kv_heads
    }
}

impl Soup {
    /// A pass over merged weights.
    pub fn fused(&self) -> Work {
        let shape = &self.shape;
        Work {
            bytes: VALUE * (shape.body() + shape.head()),
            flops_per_row: 2.0 * shape.body(),
            kernels: BLOCK_KERNELS * shape.layers,
        }
    }

    /// A pass with per-row coefficients: low-rank terms take two kernels more per linear layer,
    /// the stacked product of full backbones one (its weighted sum).
    pub fn mixed(&self) -> Work {
        match self.kind {
            Kind::Lora { rank } => self.beside(self.backbones, rank),
            Kind::Full => {
                let (fused, terms) = (self.fused(), self.backbones + 1.0);
                Work {
                    bytes: terms * fused.bytes,
                    flops_per_row: terms * fused.flops_per_row,
                    kernels: fused.kernels + 7.0 * self.shape.layers,
                }
            }
        }
    }

    /// A pass over base weights and `read` adapters of `rank` beside them, one adapter a row.
    pub fn adapted(&self, read: f64, rank: usize) -> Work {
        let one = self.beside(1.0, rank);
        let adapter = VALUE * self.shape.adapter(rank);
        Work { bytes: self.fused().bytes + read * adapter, ..one }
    }

    /// A pass over base weights and the terms of `adapters` adapters for every row.
    fn beside(&self, adapters: f64, rank: usize) -> Work {
        let (fused, extra) = (self.fused(), adapters * self.shape.adapter(rank));
        Work {
            bytes: fused.bytes + VALUE * extra,
            flops_per_row: fused.flops_per_row + 2.0 * extra,
            kernels: fused.kernels + 2.0 * 7.0 * self.shape.layers,
        }
    }

    /// Bytes of a merged model.
    pub fn merged_bytes(&self) -> f64 {
        VALUE * self.shape.parameters()
    }

    /// Bytes of base (or θ_sft) and backbones.
    pub fn source_bytes(&self) -> f64 {
        let backbone = match self.kind {
            Kind::Lora { rank } => self.shape.adapter(rank),
            Kind::Full => self.shape.parameters(),
        };
        VALUE * (self.shape.parameters() + self.backbones * backbone)
    }

    /// Bytes that a merge reads and writes.
    pub fn merge_bytes(&self) -> f64 {
        self.source_bytes() + self.merged_bytes()
    }

    /// Rank of a mix as one adapter (exact: the factors side by side), and of its slot.
    pub fn mix_rank(&self) -> Option<(usize, usize)> {
        let Kind::Lora { rank } = self.kind else { return None };
        let rank = rank * self.backbones as usize;
        Some((rank, SLOT_RANKS.into_iter().find(|&slot| slot >= rank).unwrap_or(rank)))
    }

    /// Bytes of an adapter.
    pub fn adapter_bytes(&self, rank: usize) -> f64 {
        VALUE * self.shape.adapter(rank)
    }

    /// What the engine's cost model is told.
    pub fn footprint(&self) -> cost::Footprint {
        let pass = |work: Work| cost::Pass { bytes: work.bytes, flops_per_row: work.flops_per_row };
        let (fused, mixed) = (pass(self.fused()), pass(self.mixed()));
        let ranks = self.mix_rank().map_or(0.0, |(rank, _)| rank as f64);
        let merge_flops = 2.0 * self.shape.body() * ranks;
        cost::Footprint { fused, mixed, merge_bytes: self.merge_bytes(), merge_flops }
    }
}

impl Machine {
    /// Sustained bandwidth of all devices.
    pub fn read(&self) -> f64 {
        self.devices * self.bandwidth * self.sustained[0]
    }

    /// Sustained products of all devices.
    pub fn products(&self) -> f64 {
        self.devices * self.peak * self.sustained[1]
    }

    /// Bytes that weights, keys and values may take.
    pub fn usable(&self) -> f64 {
        0.9 * self.devices * self.memory
    }

    /// Seconds of one forward pass; `share` of the devices is left to it.
    pub fn pass(&self, shape: &Shape, work: &Work, rows: &Rows, share: f64) -> f64 {
        let bytes = work.bytes + shape.kv_bytes() * rows.keys;
        let head = 2.0 * shape.head() * rows.outputs;
        let attention = 4.0 * shape.layers * shape.hidden * rows.attended;
        let flops = work.flops_per_row * rows.rows + head + attention;
        let roof = (bytes / self.read()).max(flops / self.products()) + self.row * rows.rows;
        work.kernels * self.launch + roof / share + self.all_reduces(shape, rows)
    }

    /// Two a block, of bf16 activations, as rings.
    fn all_reduces(&self, shape: &Shape, rows: &Rows) -> f64 {
        if self.devices < 2.0 {
            return 0.0;
        }
        let ring = 2.0 * (self.devices - 1.0) / self.devices;
        let bytes = ring * VALUE * shape.hidden * rows.rows;
        2.0 * shape.layers * (self.fabric[1] + bytes / self.fabric[0])
    }

    /// What the engine's cost model is told.
    pub fn figures(&self, soup: &Soup) -> cost::Machine {
        let products = self.products();
        let own = [self.read(), products, products, soup.fused().kernels * self.launch, 1.0];
        let [bandwidth, peak, merge_peak, overhead, overlap] = self.told.unwrap_or(own);
        cost::Machine { bandwidth, peak, merge_peak, overhead, overlap }
    }
}
