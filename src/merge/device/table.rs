//! The tables of merge.cu: the terms of each tensor, and the thread blocks that compute it.

use crate::{
    kernels::{
        Dtype,
        cuda::{code, memory::Plain},
    },
    merge::plan::TensorPlan,
};

/// Elements of a dense task, and rows and columns of a low-rank one; as in merge.cu.
const CHUNK: usize = 16384;
const EDGE: usize = 64;

/// `MergeTensor` of merge.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor {
    pub out: u64,
    pub len: u64,
    pub width: u32,
    pub dtype: u32,
    pub dense: u32,
    pub dense_count: u32,
    pub low_rank: u32,
    pub low_rank_count: u32,
    pub same: u32,
    pub padding: u32,
}

/// `DenseTerm` of merge.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dense {
    pub at: u64,
    pub term: i32,
    pub dtype: u32,
}

/// `LowRankTerm` of merge.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LowRank {
    pub down: u64,
    pub up: u64,
    pub scale: f64,
    pub term: i32,
    pub rank: u32,
    pub down_dtype: u32,
    pub up_dtype: u32,
}

// SAFETY: 16 + 32 bytes of numbers, no gaps.
unsafe impl Plain for Tensor {}
// SAFETY: 8 + 8 bytes, no gaps.
unsafe impl Plain for Dense {}
// SAFETY: 24 + 16 bytes, no gaps.
unsafe impl Plain for LowRank {}

/// Tables of some tensors.
#[derive(Debug, Default)]
pub struct Table {
    pub tensors: Vec<Tensor>,
    pub dense: Vec<Dense>,
    pub low_rank: Vec<LowRank>,
    /// `[tasks, 3]`: tensor, chunk, 0.
    pub dense_tasks: Vec<u32>,
    /// `[tasks, 3]`: tensor, tile row, tile column.
    pub low_rank_tasks: Vec<u32>,
}

fn u(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn term(index: Option<usize>) -> i32 {
    index.map_or(-1, |index| i32::try_from(index).unwrap_or(i32::MAX))
}

fn dtype_code(dtype: Dtype) -> u32 {
    code(dtype) as u32
}

impl Table {
    /// Adds a tensor that goes to byte `out` of the merged model as `dtype`. `dense` are the
    /// addresses of its dense terms, `factors` those of A and B of its low-rank terms.
    pub fn push(
        &mut self,
        plan: &TensorPlan,
        (out, dtype): (usize, Dtype),
        dense: &[u64],
        factors: &[(u64, u64)],
    ) {
        let index = u(self.tensors.len());
        let shape = plan.shape();
        let width = shape.last().copied().unwrap_or(1).max(1);
        let len: usize = shape.iter().product();
        let tensor = Tensor {
            out: out as u64,
            len: len as u64,
            width: u(width),
            dtype: dtype_code(dtype),
            dense: u(self.dense.len()),
            dense_count: u(plan.dense.len()),
            low_rank: u(self.low_rank.len()),
            low_rank_count: u(plan.low_rank.len()),
            same: u32::from(plan.dense.iter().all(|term| term.tensor.dtype() == dtype)),
            padding: 0,
        };
        self.tensors.push(tensor);
        self.dense.extend(plan.dense.iter().zip(dense).map(|(part, &at)| Dense {
            at,
            term: term(part.term),
            dtype: dtype_code(part.tensor.dtype()),
        }));
        self.low_rank.extend(plan.low_rank.iter().zip(factors).map(|(part, &(down, up))| {
            LowRank {
                down,
                up,
                scale: part.lora.scale,
                term: term(part.term),
                rank: u(part.rank()),
                down_dtype: dtype_code(part.lora.down.dtype()),
                up_dtype: dtype_code(part.lora.up.dtype()),
            }
        }));
        if plan.low_rank.is_empty() {
            let chunks = 0..len.div_ceil(CHUNK);
            self.dense_tasks.extend(chunks.flat_map(|chunk| [index, u(chunk), 0]));
        } else {
            for row in 0..(len / width).div_ceil(EDGE) {
                let columns = 0..width.div_ceil(EDGE);
                self.low_rank_tasks.extend(columns.flat_map(|column| [index, u(row), u(column)]));
            }
        }
    }
}
