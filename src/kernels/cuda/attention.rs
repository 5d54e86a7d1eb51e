//! Attention over the device's paged keys and values: tiles of query rows, and spans of long
//! contexts side by side.

use super::{
    CudaKernels, code,
    device::{Device, Shape, count, launch},
    int,
    memory::{Plain, bytes_of},
    row_threads,
    tensor::{KvCache, Tensor},
};
use crate::kernels::{
    AttentionShape, Batch, Dtype, KV_BLOCK, KernelError, KvDtype, KvShape, Result, Segment,
};

/// Query rows of a tile; as in attention.cu.
const TILE_ROWS: usize = 16;
/// Tokens of a span: enough work for a block, and enough blocks for one long sequence.
const SPAN: usize = 512;
/// Rows of a sequence up to which its context is cut into spans: more rows are blocks enough.
const DECODE_ROWS: usize = 8;

/// `Attention` of attention.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    q: u64,
    out: u64,
    partial: u64,
    cache: u64,
    blocks: u64,
    tiles: u64,
    rows: u64,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    window: i32,
    span: i32,
    spans: i32,
    small: u64,
    small_dtype: i32,
    /// 0: none.
    cap: f32,
}

/// `Tile` of attention.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    first: u32,
    rows: u32,
    position: u32,
    table: u32,
    start: u32,
    split: u32,
}

// SAFETY: six u32.
unsafe impl Plain for Tile {}

/// One launch: some of the batch's sequences.
#[derive(Debug, Default, PartialEq, Eq)]
struct Part {
    tiles: Vec<Tile>,
    /// The row of the batch that each split row is; empty where contexts are not cut.
    rows: Vec<u32>,
    spans: usize,
}

/// Block tables of all sequences, the slot of every row, and what is launched: sequences of many
/// rows, then of few.
#[derive(Debug, Default, PartialEq, Eq)]
struct Layout {
    tables: Vec<u32>,
    slots: Vec<u32>,
    parts: [Part; 2],
}

/// Numbers fit u32: rows and tokens are bounded by the cache, which a u32 indexes.
fn u(value: usize) -> u32 {
    value as u32
}

impl Layout {
    fn of(segments: &[Segment], group: usize) -> Self {
        let mut layout = Self::default();
        layout.parts.iter_mut().for_each(|part| part.spans = 1);
        for segment in segments {
            let tokens = segment.rows.len();
            let table = u(layout.tables.len());
            layout.tables.extend(&segment.blocks);
            layout.slots.extend((segment.cached..segment.cached + tokens).map(|position| {
                segment.blocks[position / KV_BLOCK] * u(KV_BLOCK) + u(position % KV_BLOCK)
            }));
            let few = tokens <= DECODE_ROWS;
            let part = &mut layout.parts[usize::from(few)];
            let split = u(part.rows.len());
            if few {
                part.rows.extend(segment.rows.clone().map(u));
                part.spans = part.spans.max((segment.cached + tokens).div_ceil(SPAN));
            }
            part.tiles.extend((0..tokens * group).step_by(TILE_ROWS).map(|start| Tile {
                first: u(segment.rows.start),
                rows: u(tokens),
                position: u(segment.cached),
                table,
                start: u(start),
                split,
            }));
        }
        layout
    }
}

impl<D: Device> CudaKernels<D> {
    /// A zeroed cache.
    pub fn cache(&self, shape: KvShape) -> Result<KvCache<D>> {
        if let KvDtype::Plain(dtype) = shape.dtype {
            super::plain("kv cache", dtype)?;
        }
        let bytes = shape.block_bytes().and_then(|bytes| bytes.checked_mul(shape.blocks));
        let refuse = || KernelError::Memory {
            op: "kv cache",
            bytes,
            source: std::io::Error::other("the size overflows"),
        };
        let bytes = bytes.ok_or_else(refuse)?;
        let buffer = self.device.allocate(bytes.max(16))?;
        let address = self.device.address(&buffer);
        let layer = bytes / shape.layers.max(1);
        let cache = KvCache::new(shape, layer, address, buffer);
        self.clear(&cache)?;
        Ok(cache)
    }

    /// Zeroes a cache.
    pub fn clear(&self, cache: &KvCache<D>) -> Result<()> {
        let bytes = cache.layer * cache.shape.layers;
        // SAFETY: the cache is that long.
        unsafe { self.device.zero(&self.stream, cache.address, bytes)? };
        Ok(())
    }

    /// Attention; the sizes were checked.
    #[allow(clippy::too_many_arguments)] // those of the trait's method
    pub(super) fn attend(
        &self,
        q: &Tensor<D>,
        k: &Tensor<D>,
        v: &Tensor<D>,
        layer: usize,
        shape: AttentionShape,
        batch: &Batch,
        cache: &KvCache<D>,
    ) -> Result<Tensor<D>> {
        let out = self.for_products(q.rows, q.width)?;
        let layout = Layout::of(&batch.segments, shape.heads / shape.kv_heads);
        let at = cache.address + (layer * cache.layer) as u64;
        self.store(at, k, v, &layout.slots, shape, cache.shape.dtype)?;
        let tables = self.memory.constant(bytes_of(&layout.tables))?;
        for part in layout.parts.iter().filter(|part| !part.tiles.is_empty()) {
            let tiles = self.memory.constant(bytes_of(&part.tiles))?;
            let rows = self.memory.constant(bytes_of(&part.rows))?;
            let split = part.rows.len() * shape.heads;
            let partial = match part.spans {
                1 => None,
                spans => Some(self.memory.take(split * spans * (shape.head_dim + 2) * 4)?),
            };
            let arguments = Arguments {
                q: q.address(),
                out: out.address(),
                partial: partial.as_ref().map_or(0, |partial| partial.address()),
                cache: at,
                blocks: tables.address(),
                tiles: tiles.address(),
                rows: rows.address(),
                heads: int(shape.heads),
                kv_heads: int(shape.kv_heads),
                head_dim: int(shape.head_dim),
                window: shape.window.map_or(0, int),
                span: if part.spans == 1 { i32::MAX } else { int(SPAN) },
                spans: int(part.spans),
                small: out.small_address(),
                small_dtype: self.small_code(),
                cap: shape.cap.unwrap_or(0.0),
            };
            let (kernel, block, shared) = kernel(cache.shape.dtype, shape.head_dim);
            let grid = [count(part.tiles.len()), count(shape.kv_heads), count(part.spans)];
            let work = Shape { grid, block, shared };
            // SAFETY: the batch was checked against the cache; tiles cover the part's rows, and
            // partial results have a place for each row, head and span.
            unsafe { launch!(self.device, &self.stream, kernel, work, arguments)? };
            if part.spans > 1 {
                let join = Shape::of(split, row_threads(shape.head_dim));
                // SAFETY: a block a row and head of the partial results.
                unsafe { launch!(self.device, &self.stream, "attention_join", join, arguments)? };
            }
        }
        Ok(out)
    }

    fn store(
        &self,
        layer: u64,
        k: &Tensor<D>,
        v: &Tensor<D>,
        slots: &[u32],
        shape: AttentionShape,
        dtype: KvDtype,
    ) -> Result<()> {
        if slots.is_empty() {
            return Ok(());
        }
        let kernel = match dtype {
            KvDtype::Plain(dtype) => {
                ["store_kv_f32", "store_kv_f16", "store_kv_bf16"][code(dtype) as usize]
            }
            KvDtype::Int8 => "store_kv_i8",
        };
        let places = self.memory.constant(bytes_of(slots))?;
        let work = Shape::of(slots.len(), row_threads(k.width));
        // SAFETY: a block a row; its slot lies in a block of the cache.
        unsafe {
            launch!(
                self.device,
                &self.stream,
                kernel,
                work,
                layer,
                k.address(),
                v.address(),
                places.address(),
                int(shape.kv_heads),
                int(shape.head_dim),
            )?;
        }
        Ok(())
    }
}

/// The kernel for a storage type and head width, its threads and its dynamic shared memory.
fn kernel(dtype: KvDtype, head_dim: usize) -> (&'static str, u32, u32) {
    let any = count((2 * head_dim + 32) * 4);
    let KvDtype::Plain(dtype) = dtype else { return ("attend_any_i8", 32, any) };
    match (dtype, head_dim) {
        (Dtype::Bf16, 64) => ("attend_bf16_64", 128, 0),
        (Dtype::Bf16, 128) => ("attend_bf16_128", 128, 0),
        (Dtype::F16, 64) => ("attend_f16_64", 128, 0),
        (Dtype::F16, 128) => ("attend_f16_128", 128, 0),
        (Dtype::F32, _) => ("attend_any_f32", 32, any),
        (Dtype::Bf16, _) => ("attend_any_bf16", 32, any),
        (Dtype::F16, _) => ("attend_any_f16", 32, any),
        (Dtype::Quantised(_), _) => unreachable!("keys and values are not quantised"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_query_row_once() {
        let segments = [
            Segment { rows: 0..1, cached: 1030, blocks: (0..70).collect() },
            Segment { rows: 1..40, cached: 3, blocks: vec![70, 71, 72] },
            Segment { rows: 40..41, cached: 0, blocks: vec![73] },
        ];
        let layout = Layout::of(&segments, 3);
        let [many, few] = &layout.parts;
        assert_eq!((many.spans, few.spans), (1, 3));
        assert_eq!(few.rows, [0, 40]);
        assert_eq!(many.tiles.len(), (39usize * 3).div_ceil(16));
        assert_eq!(
            few.tiles.iter().map(|t| (t.first, t.split)).collect::<Vec<_>>(),
            [(0, 0), (40, 1)]
        );
        assert!(
            many.tiles.iter().all(|t| (t.first, t.rows, t.position, t.table) == (1, 39, 3, 70))
        );
        assert_eq!(layout.slots[0], 64 * 16 + 6);
        assert_eq!(layout.slots[1], 70 * 16 + 3);
        assert_eq!(layout.slots.len(), 41);
    }
}
